"""The timing engine, on a clock of its own and on the real one."""

import time

import pytest

from course_lib.bench.timing import Row, alternate, compare, quartiles


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        def work():
            self.now += seconds

        return work


def test_order_alternates_and_warm_up_is_not_counted():
    order, clock = [], Clock()
    functions = {name: lambda name=name: order.append(name) for name in "abc"}
    times = alternate(functions, repeats=3, warmup=1, clock=clock)
    assert "".join(order) == "abccbaabccba"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_each_function_gets_its_own_time():
    clock = Clock()
    times = alternate(
        {"slow": clock.spend(0.5), "quick": clock.spend(0.125)}, repeats=4, clock=clock
    )
    assert times == {"slow": [0.5] * 4, "quick": [0.125] * 4}


def test_a_budget_ends_it_but_not_before_three_rounds():
    clock = Clock()
    assert len(alternate({"a": clock.spend(1.0)}, 20, 1, budget_s=6.5, clock=clock)["a"]) == 6
    assert len(alternate({"a": clock.spend(1.0)}, 20, 1, budget_s=0.1, clock=clock)["a"]) == 3
    assert len(alternate({"a": clock.spend(1.0)}, 2, 1, budget_s=0.1, clock=clock)["a"]) == 2


def test_ratio_of_a_known_factor_of_two():
    functions = {"long": lambda: time.sleep(0.04), "short": lambda: time.sleep(0.02)}
    row = compare(alternate(functions, repeats=5), "short", "long", benchmark="sleep", case="2x")
    assert row.ratio == pytest.approx(2, rel=0.2)
    assert row.low <= row.ratio <= row.high
    assert row.value == pytest.approx(20, rel=0.3) and row.unit == "ms"


def test_ratios_are_taken_within_rounds():
    # The machine is three times slower in the second round; the ratio of the medians would still be 2 at best by luck
    times = {"ours": [1.0, 3.0, 1.0], "theirs": [2.0, 6.0, 2.0]}
    row = compare(times, "ours", "theirs", benchmark="b", case="c")
    assert (row.low, row.ratio, row.high) == (2, 2, 2)


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)
    assert quartiles([7.0]) == (7, 7, 7)


def test_rows_are_rounded_for_json():
    row = Row("b", "c", "s", 1.234567, "ms", "p", 0.00012345678, 1.0, 2.0)
    assert row.as_dict()["value"] == 1.235 and row.as_dict()["ratio"] == 0.0001235
    assert row.as_dict()["case"] == "c"


@pytest.mark.parametrize("functions, repeats", [({}, 3), ({"a": print}, 0)])
def test_nothing_to_time_is_refused(functions, repeats):
    with pytest.raises(ValueError, match="functions, repeats: expected at least one each"):
        alternate(functions, repeats)
