"""Every metric keeps torchmetrics' protocol: forward, merge, reset, copies, collections, sync."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from course_lib import metrics
from tests.metrics.protocol import (
    BATCHES,
    CASES,
    assert_same,
    assert_unchanged,
    clips,
    every_metric,
    filled,
    net,
    snapshot,
    two_sets,
)


def test_every_metric_has_a_case():
    public = (getattr(metrics, name) for name in metrics.__all__)
    classes = {cls.__name__ for cls in public if inspect.isclass(cls) and issubclass(cls, Metric)}
    assert classes - {"PerClipMetric"} == {name.split()[0] for name in CASES}


@every_metric
def test_forward_is_the_value_of_the_batch_and_adds_it(case):
    metric = case.make()
    if case.two_sets:  # one batch has samples of one set: compared with all of the other
        metric.update(*case.args(5, 0))
        seeds = (1, 2, 3)
        others = {1: [(5, 0)], 2: [(6, 1)], 3: [(5, 0), (6, 2)]}
    else:
        seeds, others = (0, 1, 2, 3), {}
    for seed in seeds:
        metric(*case.args(6, seed))
        expected = filled(case, [*others.get(seed, ()), (6, seed)])
        assert_same(metric._forward_cache, expected.compute())
    batches = [(5 if case.two_sets and seed == 0 else 6, seed) for seed in range(4)]
    expected = filled(case, batches)
    assert_same(metric.compute(), expected.compute())
    assert metric.update_count == 4
    if hasattr(metric, "per_clip"):
        for key, values in expected.per_clip().items():
            torch.testing.assert_close(
                metric.per_clip()[key], values, rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("name", two_sets)
def test_calls_with_a_cached_real_set_count_it_once(name):
    case = CASES[name]
    metric = case.make()
    metric.cache_real = True
    metric.update(*case.args(9, 0))
    for _ in range(2):
        for seed in (1, 3):
            value = metric(*case.args(6, seed))
            assert_same(value, filled(case, [(9, 0), (6, seed)]).compute())
        assert_same(metric.compute(), filled(case, [(9, 0), (6, 1), (6, 3)]).compute())
        metric.reset()  # the real set stays
    with (
        pytest.raises(ValueError, match="generated samples: expected at least"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        metric.compute()


@every_metric
@pytest.mark.parametrize("call", ["update", "forward"])
def test_a_refused_call_changes_nothing(case, call):
    empty, metric = case.make(), filled(case)
    value = metric.compute()
    for changed in (empty, metric):
        before = snapshot(changed)
        video, *rest = case.args(3, 1)
        for bad in (video * math.nan, video[:, :, :1, :4, :4] * 9, video[0]):
            with pytest.raises(ValueError, match="expected"):
                getattr(changed, call)(bad, *rest)
            assert_unchanged(changed, before)
    assert metric.compute() is value  # not computed again


@every_metric
def test_a_batch_without_a_value_is_not_added(case):
    if case.min_clips < 2 and not case.two_sets:
        return
    metric = case.make()
    with pytest.raises(ValueError, match="samples: expected at least"):
        metric(*case.args(3, 0))  # too few, or the generated set is missing
    assert metric.update_count == 0 and not any(
        value for value in metric.metric_state.values() if isinstance(value, list)
    )
    metric = filled(case)
    before, value = snapshot(metric), metric.compute()
    if case.min_clips > 1:
        with pytest.raises(ValueError, match="samples: expected at least"):
            metric(*case.args(1, 1))
        assert_unchanged(metric, before)
    assert metric.compute() is value


@every_metric
def test_reset_starts_again(case):
    metric = filled(case)
    shared = [value for value in metric.metric_state.values() if isinstance(value, list)]
    sizes = [len(rows) for rows in shared]
    metric.reset()
    assert [len(rows) for rows in shared] == sizes  # another metric may hold these lists
    assert metric.update_count == 0
    assert_unchanged(metric, snapshot(case.make()))
    for batch in BATCHES:
        metric.update(*case.args(*batch))
    assert_same(metric.compute(), filled(case).compute(), rel=0)


@every_metric
@pytest.mark.parametrize(
    "make_copy", [Metric.clone, copy.copy, lambda metric: pickle.loads(pickle.dumps(metric))]
)
def test_copies_go_their_own_way(case, make_copy):
    metric = filled(case, BATCHES[:2])
    before, value = snapshot(metric), metric.compute()
    twin = make_copy(metric)
    for batch in BATCHES[2:]:
        twin.update(*case.args(*batch))
    assert_same(twin.compute(), filled(case).compute())
    assert_unchanged(metric, before)
    assert metric.compute() is value
    twin.reset()
    assert_unchanged(metric, before)


@every_metric
def test_two_halves_merge(case):
    expected = filled(case).compute()
    first, second = filled(case, BATCHES[2:]), filled(case, BATCHES[:2])
    before = snapshot(second)
    first.compute()
    first.merge_state(second)
    assert_same(first.compute(), expected)  # not the value before the merge
    assert first.update_count == 4
    assert_unchanged(second, before)
    fresh = case.make()
    fresh.merge_state(filled(case).metric_state)
    assert_same(fresh.compute(), expected)
    before = snapshot(first)
    with pytest.raises(ValueError, match="state variable"):
        first.merge_state(dict(list(second.metric_state.items())[:-1]))
    assert_unchanged(first, before)


@every_metric
def test_a_state_dict_holds_a_persistent_state(case):
    metric = filled(case)
    assert not metric.state_dict()
    metric.persistent(True)
    state = metric.state_dict()
    loaded, twin = case.make(), case.make()
    for other in (loaded, twin):
        other.persistent(True)
        other.load_state_dict(state)
    twin.update(*case.args(4, 2))
    twin.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert_same(loaded.compute(), metric.compute(), rel=0)


@every_metric
def test_states_of_two_processes_join(case):
    metric = filled(case)
    expected = filled(case, BATCHES * 2).compute()
    value, before = metric.compute(), snapshot(metric)
    metric.sync(lambda rows, group: [rows, rows], distributed_available=lambda: True)
    metric._computed = None
    with pytest.raises(TorchMetricsUserError):
        metric(*case.args(4, 0))
    metric._to_sync = metric._should_unsync = False
    synced = metric.compute()
    if isinstance(synced, tuple) and not isinstance(synced, metrics.Score):
        assert [len(rows) for rows in synced] == [18, 26]
    elif "inception" not in str(synced):  # its shuffle depends on the order
        assert_same(synced, expected, rel=1e-6)
    metric.unsync()
    metric._to_sync, metric._should_unsync, metric._computed = True, True, None
    assert_unchanged(metric, before)
    assert_same(metric.compute(), value, rel=0)


def test_a_refused_compute_leaves_the_metric_unsynced():
    metric = metrics.KernelDistance(net, "net")
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda rows, group: [rows, rows]
    metric.update(clips(4), True)
    with pytest.raises(ValueError, match="generated samples"):
        metric.compute()
    metric.update(clips(4, 1), False)
    assert len(metric.real) == 1 and metric.compute().n == 8


@every_metric
def test_devices_and_dtypes(case):
    metric, expected = filled(case, BATCHES[:2]), filled(case).compute()
    metric.to("cpu").set_dtype(torch.float32)
    for batch in BATCHES[2:]:
        metric.update(*case.args(*batch))
    assert_same(metric.compute(), expected, rel=1e-3)
    assert metric.to("meta").device.type == "meta"


def test_features_of_another_width_are_refused_at_once():
    def flat(video):
        return video.flatten(1)

    for metric, rest in (
        (metrics.FrechetDistance(flat, "flat"), [True]),
        (metrics.KernelDistance(flat, "flat"), [False]),
        (metrics.InceptionScore(flat, "flat"), []),
    ):
        metric.update(clips(3), *rest)
        before = snapshot(metric)
        with pytest.raises(ValueError, match=r"net\(video\): expected features of one width"):
            metric.update(clips(3, size=8), *rest)
        assert_unchanged(metric, before)


@pytest.mark.parametrize("real", ["generated", 1, 0, None, torch.tensor(True)])
def test_only_a_bool_says_which_set(real):
    bank = metrics.FeatureBank(net, "net")
    with pytest.raises(ValueError, match="real: expected True or False, got"):
        bank.update(clips(2), real)
    bank.update(clips(2), real=torch.ones(1).numpy()[0] > 0)  # NumPy's own bool
    assert len(bank.real) == 1


def test_memory_of_merged_frechet_distances_does_not_grow():
    metric, case = metrics.FrechetDistance(net, "net"), CASES["FrechetDistance"]
    for _ in range(30):
        metric.merge_state(filled(case))
    width = net(clips(1)).shape[1] + 1
    assert sum(map(len, metric.real)) <= 2 * width
    assert metric.compute().n == 270
