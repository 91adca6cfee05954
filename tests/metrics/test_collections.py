"""Metrics in a MetricCollection: shared states where settings agree, and only there."""

import pytest
import torch
from torchmetrics import MetricCollection

from course_lib import metrics
from course_lib.metrics.prompt_accuracy import CLASSES
from tests.metrics.protocol import (
    BATCHES,
    assert_same,
    clips,
    every_metric,
    filled,
    judge,
    maps,
    net,
    numbers,
    one_set,
    pairs,
)


@every_metric
@pytest.mark.parametrize("compute_groups", [True, False])
def test_in_a_collection(case, compute_groups):
    twins = MetricCollection({"a": case.make(), "b": case.make()}, compute_groups=compute_groups)
    for batch in BATCHES[:3]:
        twins.update(*case.args(*batch))
    twins(*case.args(*BATCHES[3]))
    assert len(twins.compute_groups if compute_groups else [1]) == 1
    expected = filled(case).compute()
    for name in ("a", "b"):
        assert_same(twins[name].compute(), expected)
    twins.reset()
    for batch in BATCHES:
        twins.update(*case.args(*batch))
    assert_same(twins["b"].compute(), expected)


@pytest.mark.parametrize(
    ("first", "second", "agree", "differ"),
    [
        (metrics.PSNR(), metrics.PSNR(cap=7), pairs(2, 0), (clips(2), clips(2))),
        (
            metrics.PerceptualDistance(maps, "a"),
            metrics.PerceptualDistance(lambda images: maps(images)[:1], "b"),
            (clips(2), clips(2)),
            pairs(2, 0),
        ),
        (
            metrics.DynamicDegree("exact"),
            metrics.DynamicDegree("exact", min_speed=0.1),
            (clips(2), torch.zeros(2, 2, 3, 16, 16)),
            (clips(2), torch.full((2, 2, 3, 16, 16), 0.1)),
        ),
        (
            metrics.DynamicDegree("exact"),
            metrics.DynamicDegree("exact", fps=1),
            (clips(2), torch.zeros(2, 2, 3, 16, 16)),
            (clips(2), torch.full((2, 2, 3, 16, 16), 0.5)),
        ),
        (
            metrics.WarpingError("ilk"),
            metrics.WarpingError(lambda video: torch.zeros(len(video), 2, 3, 16, 16), "zero"),
            (torch.zeros(2, 3, 4, 16, 16),),
            (clips(2),),
        ),
        (
            metrics.PromptAccuracy(judge, "a"),
            metrics.PromptAccuracy(lambda video: judge(-video.abs()), "b"),
            (torch.full((2, 3, 4, 16, 16), -0.5), CLASSES["subject"][:1] * 2),
            (torch.full((2, 3, 4, 16, 16), 0.5), CLASSES["subject"][:1] * 2),
        ),
    ],
)
def test_metrics_that_agree_on_the_first_batch_only(first, second, agree, differ):
    collection = MetricCollection({"a": first.clone(), "b": second.clone()})
    for batch in (agree, differ):
        collection.update(*batch)
        for metric in (first, second):
            metric.update(*batch)
    assert numbers(first.compute()) != numbers(second.compute())
    assert_same(collection["a"].compute(), first.compute())
    assert_same(collection["b"].compute(), second.compute())
    with pytest.raises(ValueError, match="settings"):
        first.merge_state(second)


def test_metrics_of_one_net_still_share_its_features():
    def counting(video):
        counting.calls += 1
        return net(video)

    counting.calls = 0
    kinds = (metrics.KernelDistance, metrics.PrecisionRecall, metrics.DistributionScores)
    collection = MetricCollection({kind.__name__: kind(counting, "net") for kind in kinds})
    for batch in BATCHES:
        collection.update(*one_set(*batch))
    assert counting.calls == 3 + 3  # each at first, then one for all
