"""The timing engine, on a clock of its own and on the real one."""

import math
import time

import pytest
import torch

from course_lib.bench.timing import (
    BenchmarkRow,
    Contender,
    compare,
    contender_rows,
    interleaved_timings,
    quartiles,
    timed_with_results,
)


class Clock:
    """A clock that only advances when work is done."""

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
    times = interleaved_timings(functions, repeats=3, warmup=1, clock=clock)
    assert "".join(order) == "abccbaabccba"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_each_function_gets_its_own_time():
    clock = Clock()
    times = interleaved_timings(
        {"slow": clock.spend(0.5), "quick": clock.spend(0.125)}, repeats=4, clock=clock
    )
    assert times == {"slow": [0.5] * 4, "quick": [0.125] * 4}


def test_a_budget_ends_it_but_not_before_three_rounds():
    clock = Clock()
    assert (
        len(interleaved_timings({"a": clock.spend(1.0)}, 20, 1, budget_s=6.5, clock=clock)["a"])
        == 6
    )
    assert (
        len(interleaved_timings({"a": clock.spend(1.0)}, 20, 1, budget_s=0.1, clock=clock)["a"])
        == 3
    )
    assert (
        len(interleaved_timings({"a": clock.spend(1.0)}, 2, 1, budget_s=0.1, clock=clock)["a"]) == 2
    )


def test_ratio_of_a_factor_of_two():
    functions = {"long": lambda: time.sleep(0.04), "short": lambda: time.sleep(0.02)}
    times = interleaved_timings(functions, repeats=5)
    row = compare(times, "short", "long", benchmark="sleep", case="2x")
    assert row.ratio == pytest.approx(2, rel=0.2)
    assert row.ratio_low <= row.ratio <= row.ratio_high
    assert row.value == pytest.approx(20, rel=0.3) and row.unit == "ms"


def test_ratios_are_taken_within_rounds():
    # The machine is three times slower in the second round
    times = {"course": [1.0, 3.0, 1.0], "peer": [2.0, 6.0, 2.0]}
    row = compare(times, "course", "peer", benchmark="b", case="c")
    assert (row.ratio_low, row.ratio, row.ratio_high) == (2, 2, 2)


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)
    assert quartiles([7.0]) == (7, 7, 7)


def test_rows_are_rounded_for_json():
    row = BenchmarkRow("b", "c", "s", 1.234567, "ms", "p", 0.00012345678, 1.0, 2.0)
    assert row.as_dict()["value"] == 1.235 and row.as_dict()["ratio"] == 0.0001235
    assert row.as_dict()["case"] == "c"


@pytest.mark.parametrize(
    ("name", "functions", "kwargs"),
    [
        ("functions", {}, {}),
        ("repeats", {"a": print}, {"repeats": 0}),
        ("repeats", {"a": print}, {"repeats": True}),
        ("warmup", {"a": print}, {"warmup": -1}),
        ("budget_s", {"a": print}, {"budget_s": math.nan}),
        ("budget_s", {"a": print}, {"budget_s": -1}),
    ],
)
def test_a_timing_without_rounds_or_with_an_endless_budget_is_refused(name, functions, kwargs):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        interleaved_timings(functions, **kwargs)


def test_quartiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="values: expected at least 1, got 0"):
        quartiles([])


def test_results_are_those_of_the_last_call():
    calls = []
    times, results = timed_with_results({"a": lambda: calls.append(0) or len(calls)}, 3, 10)
    assert len(times["a"]) == 3 and results == {"a": 4}  # one warm-up round


class CachingConv(torch.nn.Module):
    """Returns a tuple, as diffusers' causal convolution does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return self.weight * x, "cache"


def test_a_contender_runs_forward_and_backward():
    x = torch.ones(2, requires_grad=True)
    contender = Contender(CachingConv(), (x,))
    assert contender.predict().tolist() == [3, 3]
    contender.sampling_step()
    assert contender.net.weight.grad is None
    for _ in range(2):  # gradients do not accumulate
        contender.training_step()
        assert contender.net.weight.grad == 2 and x.grad.tolist() == [3, 3]


def test_a_contender_may_be_called_in_another_way_and_in_bfloat16():
    net = torch.nn.Linear(4, 4)
    contender = Contender(net, (torch.ones(1, 4),), lambda x: net(2 * x), torch.bfloat16)
    assert contender.predict().dtype == torch.bfloat16
    expected = net(torch.full((1, 4), 2.0))
    torch.testing.assert_close(contender.predict().float(), expected, atol=0.05, rtol=0)


def test_rows_of_contenders_name_their_peers():
    contenders = {name: Contender(torch.nn.Linear(2, 2), (torch.ones(1, 2),)) for name in "ab"}
    rows = contender_rows(
        contenders,
        "training_step",
        [("a", "b")],
        benchmark="linear",
        case="2x2",
        budget_s=0,
        note=lambda name, times: f"{name}, {len(times)} rounds",
    )
    assert [(row.contender, row.peer, row.note) for row in rows] == [("a", "b", "a, 3 rounds")]
