"""A case of every metric, for the tests of torchmetrics' protocol."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from course_lib import metrics
from course_lib.metrics.prompt_accuracy import CLASSES


def clips(n, seed=0, f=4, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, f, size, size, generator=generator) * 2 - 1


def flows(n, seed):
    return 3 * torch.randn(n, 2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def masks(n, seed):
    return clips(n, seed)[:, :1] > 0.9


def paths(n, seed):
    return torch.rand(n, 4, 2, generator=torch.Generator().manual_seed(seed)) - 0.5


def net(video):
    return torch.cat([video.mean(dim=(3, 4)).flatten(1), video[:, :, 0, 0, :2].flatten(1)], dim=1)


def image_net(images):
    return images[..., 0, :3].flatten(1)


def maps(images):
    return [images, images[..., ::2, ::2] ** 2]


def judge(video):
    """Classes that depend on a pixel; the prompts below name some of them."""
    index = (video[:, 0, 0, 0, 0] > 0).long()
    return {key: nn.functional.one_hot(index, len(names)).float() for key, names in CLASSES.items()}


class Encoder:
    def image(self, images):
        return image_net(images)

    def text(self, prompts):
        return torch.stack([torch.arange(9.0) == len(prompt) % 9 for prompt in prompts]).float()


def prompts(n, seed):
    names = [*CLASSES["subject"][:2], *CLASSES["subject"][:2]]
    return [names[(seed + i) % 3] for i in range(n)]


MOVING_CIRCLE = "a red circle moving left on a mint background"


class Case(NamedTuple):
    """A metric, and a function of the batch's size and seed that makes arguments of `update`."""

    make: object
    args: object
    min_clips: int = 1  # smallest batch that has a value
    two_sets: bool = False


def videos(n, seed):
    return (clips(n, seed),)


def pairs(n, seed):
    return clips(n, seed), clips(n, seed + 100)


def one_set(n, seed):
    return clips(n, seed), seed % 2 == 0


CASES = {
    "PSNR": Case(metrics.PSNR, pairs),
    "PSNR cap": Case(lambda: metrics.PSNR(cap=7), pairs),
    "SSIM": Case(metrics.SSIM, pairs),
    "PerceptualDistance": Case(lambda: metrics.PerceptualDistance(maps, "maps"), pairs),
    "FrameConsistency": Case(lambda: metrics.FrameConsistency(image_net, "net"), videos),
    "FrechetDistance": Case(
        lambda: metrics.FrechetDistance(net, "net"), one_set, min_clips=2, two_sets=True
    ),
    "KernelDistance": Case(
        lambda: metrics.KernelDistance(metrics.frame_features(image_net), "net"), one_set, 1, True
    ),
    "PrecisionRecall": Case(
        lambda: metrics.PrecisionRecall(metrics.mean_frame_features(image_net), "net"),
        one_set,
        4,
        True,
    ),
    "DistributionScores": Case(lambda: metrics.DistributionScores(net, "net"), one_set, 4, True),
    "FeatureBank": Case(lambda: metrics.FeatureBank(net, "net"), one_set, 1, True),
    "InceptionScore": Case(
        lambda: metrics.InceptionScore(net, "net", num_splits=2), videos, min_clips=4
    ),
    "PromptAccuracy": Case(
        lambda: metrics.PromptAccuracy(judge, "judge"),
        lambda n, seed: (clips(n, seed), prompts(n, seed)),
    ),
    "WarpingError": Case(
        lambda: metrics.WarpingError("exact"),
        lambda n, seed: (clips(n, seed), (flows(n, seed), flows(n, seed + 100))),
    ),
    "Flicker": Case(metrics.Flicker, videos),
    "Smoothness": Case(metrics.Smoothness, videos),
    "DynamicDegree": Case(
        lambda: metrics.DynamicDegree("exact"), lambda n, seed: (clips(n, seed), flows(n, seed))
    ),
    "TrajectoryError": Case(
        lambda: metrics.TrajectoryError("given"),
        lambda n, seed: (clips(n, seed), paths(n, seed), masks(n, seed)),
    ),
    "RenderingDistance": Case(
        metrics.RenderingDistance,
        lambda n, seed: (
            clips(n, seed, 2, 32),
            ["red circle moving left on a mint background"] * n,
        ),
    ),
    "TextAlignment": Case(
        lambda: metrics.TextAlignment(Encoder(), "encoder"),
        lambda n, seed: (clips(n, seed), prompts(n, seed)),
    ),
    "DirectionalSimilarity": Case(
        lambda: metrics.DirectionalSimilarity(Encoder(), "encoder"),
        lambda n, seed: (*pairs(n, seed), ["cat"] * n, ["tiger"] * n),
    ),
    "FrameAccuracy": Case(
        lambda: metrics.FrameAccuracy(Encoder(), "encoder"),
        lambda n, seed: (clips(n, seed), ["cat"] * n, ["tiger"] * n),
    ),
}
every_metric = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
two_sets = {name: case for name, case in CASES.items() if case.two_sets}
BATCHES = ((5, 0), (6, 1), (4, 2), (7, 3))  # real, generated, real, generated, with two sets


def filled(case, batches=BATCHES):
    metric = case.make()
    for batch in batches:
        metric.update(*case.args(*batch))
    return metric


def numbers(value):
    """Scores, or tensors of features, as a flat list of numbers; NaN as a word."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, metrics.Score):
        return [value.value, value.n, *(value.interval or ())]
    return [number for part in value for number in part.flatten().tolist()]


def assert_same(value, expected, rel=1e-9):
    assert numbers(value) == pytest.approx(numbers(expected), rel=rel, abs=1e-12, nan_ok=True)


def snapshot(metric):
    return copy.deepcopy(metric.metric_state), metric.update_count


def assert_unchanged(metric, before):
    state, count = before
    assert metric.update_count == count
    assert metric.metric_state.keys() == state.keys()
    for name, value in metric.metric_state.items():
        assert type(value) is type(state[name])
        rows, expected = (
            (value, state[name]) if isinstance(value, list) else ([value], [state[name]])
        )
        assert len(rows) == len(expected) and all(map(torch.equal, rows, expected))
