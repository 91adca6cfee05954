"""PSNR, SSIM and perceptual distance against scikit-image, torchmetrics and closed forms."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image import PeakSignalNoiseRatio

from course_lib.metrics import (
    PSNR,
    SSIM,
    PerceptualDistance,
    Score,
    image,
    perceptual_distance,
    psnr,
    ssim,
    ssim_map,
)


def pair(seed=0, b=2, c=3, f=3, size=24, noise=0.2):
    """A smooth video and the same with noise, different in every frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(b, c, f, 4, 4, generator=generator) * 2 - 1
    video = nn.functional.interpolate(coarse, size=(f, size, size), mode="trilinear")
    strength = noise * torch.rand(b, 1, f, 1, 1, generator=generator)
    return video, (video + strength * torch.randn(video.shape, generator=generator)).clamp(-1, 1)


def plain(value, c=3, f=2, size=16):
    return torch.full((1, c, f, size, size), float(value), dtype=torch.float64)


# PSNR


def test_psnr_of_each_frame_is_that_of_scikit_image():
    video, truth = pair()
    result = psnr(video, truth)
    assert result.shape == (2, 3) and result.dtype == torch.float64
    for clip in range(2):
        for frame in range(3):
            images = [x[clip, :, frame].double().numpy() for x in (truth, video)]
            assert result[clip, frame].item() == pytest.approx(
                peak_signal_noise_ratio(*images, data_range=2), rel=1e-12
            )


def test_pooled_psnr_is_that_of_torchmetrics_and_scikit_image():
    video, truth = pair()
    metric, theirs = PSNR(), PeakSignalNoiseRatio(data_range=2.0)
    metric.update(video, truth)
    theirs.update(video, truth)
    scores = metric.compute()
    assert float(scores["pooled"]) == pytest.approx(
        theirs.compute().item(), rel=1e-6
    )  # theirs is float32
    full = peak_signal_noise_ratio(truth.double().numpy(), video.double().numpy(), data_range=2)
    assert float(scores["pooled"]) == pytest.approx(full, rel=1e-12)
    assert float(scores["frame_mean"]) == pytest.approx(psnr(video, truth).mean().item(), rel=1e-12)
    assert [(score.name, score.n, score.unit) for score in scores.values()] == [
        ("psnr_frame_mean", 6, "dB"),
        ("psnr_pooled", 6, "dB"),
    ]


@given(seed=st.integers(0, 10**6), f=st.integers(1, 4), noise=st.floats(0.01, 1))
def test_the_mean_over_frames_is_never_below_the_pooled_one(seed, f, noise):
    metric = PSNR()
    metric.update(*pair(seed, f=f, size=8, noise=noise))
    scores = metric.compute()
    assert float(scores["frame_mean"]) >= float(scores["pooled"]) - 1e-9


def test_both_conventions_agree_when_all_frames_err_alike():
    metric = PSNR()
    metric.update(plain(0.1), plain(-0.1))
    for score in metric.compute().values():
        assert float(score) == pytest.approx(20)  # MSE 0.04 of 4


def test_black_against_white_is_zero_decibels():
    assert psnr(plain(-1), plain(1)).tolist() == [[0, 0]]


def test_equal_frames_are_infinite_unless_capped():
    video, truth = pair()
    truth[0, :, 0] = video[0, :, 0]
    free, capped = PSNR(), PSNR(cap=100)
    for metric in (free, capped):
        metric.update(video, truth)
    assert math.isinf(free.compute()["frame_mean"].value) and math.isfinite(
        free.compute()["pooled"].value
    )
    expected = psnr(video, truth).clamp(max=100).mean().item()
    score = capped.compute()["frame_mean"]
    assert score.name == "psnr_frame_mean_cap100" and score.value == pytest.approx(
        expected, rel=1e-12
    )


def test_a_cap_is_positive():
    with pytest.raises(ValueError, match="cap: expected a finite number above 0, got 0"):
        PSNR(cap=0)


# SSIM


def reference_ssim(a, b):
    """scikit-image in the paper's form; a, b: (c, h, w) in [0, 1]."""
    paper = dict(
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=0,
    )
    return structural_similarity(a.double().numpy(), b.double().numpy(), **paper)


@pytest.mark.parametrize(
    ("c", "size", "noise"), [(1, 11, 0.3), (3, 24, 0.1), (3, 40, 1.0), (4, 17, 0.01)]
)
def test_ssim_of_each_frame_is_that_of_scikit_image(c, size, noise):
    video, truth = pair(c=c, size=size, noise=noise)
    result = ssim(video, truth)
    for clip in range(2):
        for frame in range(3):
            images = [(x[clip, :, frame].double() + 1) / 2 for x in (video, truth)]
            assert result[clip, frame].item() == pytest.approx(reference_ssim(*images), abs=1e-10)


def test_the_map_is_the_inner_part_of_that_of_torchmetrics():
    video, truth = (x[:, :, 0].double() for x in pair(size=32))
    result = ssim_map(video, truth)
    _, full = structural_similarity_index_measure(
        (video + 1) / 2, (truth + 1) / 2, data_range=1.0, return_full_image=True
    )
    assert result.shape == (2, 3, 22, 22)
    torch.testing.assert_close(result, full[:, :, 5:-5, 5:-5], rtol=0, atol=1e-12)


@given(a=st.floats(-1, 1), b=st.floats(-1, 1))
def test_constant_images_follow_the_closed_form(a, b):
    x, y = (a + 1) / 2, (b + 1) / 2
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    result = ssim(plain(a), plain(b))
    assert result.flatten().tolist() == pytest.approx([expected] * 2, abs=1e-9)


def test_the_published_value_of_black_against_white():
    black, white = torch.full((1, 3, 30, 64, 64), -1.0), torch.ones(1, 3, 30, 64, 64)
    metric = SSIM()
    metric.update(black, white)
    assert f"{metric.compute().value:.4g}" == "9.999e-05"
    assert metric.compute()[0] == "ssim_gauss11_valid" and metric.compute().n == 30


def test_ssim_is_one_for_equal_videos_and_symmetric():
    video, truth = pair()
    torch.testing.assert_close(
        ssim(video, video), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(ssim(video, truth), ssim(truth, video), rtol=0, atol=1e-14)
    assert ssim(video, truth).max() < 0.99


def test_ssim_needs_a_window():
    video, truth = pair(size=11)
    assert ssim(video, truth).shape == (2, 3)
    with pytest.raises(ValueError, match="video: expected at least 11x11 pixels, got 11x10"):
        ssim(video[..., :10], truth[..., :10])


# Perceptual distance


class Pyramid(nn.Module):
    """Two convolutions, both seen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, images):
        first = self.first(images).relu()
        return [first, self.second(first)]


def by_hand(first, second, weights):
    """The formula, one place at a time."""
    total = 0.0
    for x, y, weight in zip(first, second, weights, strict=True):
        places = [
            (weight * (x[:, i, j] / x[:, i, j].norm() - y[:, i, j] / y[:, i, j].norm()) ** 2).sum()
            for i in range(x.shape[1])
            for j in range(x.shape[2])
        ]
        total += torch.stack(places).mean().item()
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_perceptual_distance_is_the_formula(weighted):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 5), (6, 2, 2)]
    maps = [
        [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for _ in range(2)
    ]
    weights = [
        torch.rand(shape[0], generator=generator) if weighted else torch.ones(shape[0])
        for shape in shapes
    ]
    result = perceptual_distance(*maps, weights if weighted else None)
    expected = [
        by_hand(*([layer[clip] for layer in side] for side in maps), weights) for clip in range(2)
    ]
    assert result.tolist() == pytest.approx(expected, rel=1e-6)  # 1e-8 under the root


def test_with_its_net_and_heads_it_is_the_lpips_of_torchmetrics():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _LPIPS(net="squeeze", pnet_rand=True)  # their heads on a random net: no download
    heads = [lin.model[-1].weight.flatten() for lin in theirs.lins]
    video, truth = pair(f=2, size=64)
    metric = PerceptualDistance(
        lambda images: list(theirs.net(theirs.scaling_layer(images))), "squeeze", heads
    )
    metric.update(video, truth)
    frames = [x.transpose(1, 2).flatten(0, 1) for x in (video, truth)]
    expected = theirs(*frames).mean().item()
    assert expected > 1e-4
    assert metric.compute().name == "perceptual_weighted[squeeze]"
    assert metric.compute().value == pytest.approx(expected, rel=1e-4)


def test_perceptual_distance_sees_directions_only():
    net = Pyramid().eval()
    maps, others = (net(x[:, :, 0]) for x in pair())
    assert perceptual_distance(maps, maps).tolist() == [0, 0]
    louder = [3 * layer for layer in maps]
    torch.testing.assert_close(
        perceptual_distance(louder, others), perceptual_distance(maps, others), atol=1e-5, rtol=0
    )


def test_perceptual_distance_can_be_a_loss_even_on_dead_features():
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    perceptual_distance([features], [torch.ones(1, 2, 3, 3)]).sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("first", "second", "weights", "message"),
    [
        ([], [], None, "expected equally many layers, at least one, got 0, 0 and no weights"),
        ([(1, 2, 3, 3)], [(1, 2, 3, 3)] * 2, None, "got 1, 2 and no weights"),
        ([(1, 2, 3, 3)], [(1, 2, 3, 3)], [(2,), (2,)], "got 1, 1 and 2 weights"),
        (
            [(1, 2, 3, 3)],
            [(1, 2, 3, 4)],
            None,
            r"layer 0: expected .* got \(1, 2, 3, 3\), \(1, 2, 3, 4\), \(2,\)",
        ),
        ([(1, 2, 3, 3)], [(1, 2, 3, 3)], [(3,)], r"layer 0: expected .* \(3,\)"),
    ],
)
def test_feature_maps_must_fit(first, second, weights, message):
    first, second = ([torch.ones(shape) for shape in shapes] for shapes in (first, second))
    with pytest.raises(ValueError, match=message):
        perceptual_distance(
            first, second, None if weights is None else [torch.ones(shape) for shape in weights]
        )


# What all three share

METRICS = {
    "psnr": PSNR,
    "ssim": SSIM,
    "perceptual": lambda: PerceptualDistance(Pyramid().eval(), "pyramid"),
}


def values(metric):
    scores = metric.compute()
    return (
        [float(scores)]
        if isinstance(scores, Score)
        else [float(score) for score in scores.values()]
    )


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_the_batching_does_not_matter(make):
    video, truth = pair(b=6, size=16)
    full, parts, other = make(), make(), make()
    full.update(video, truth)
    for start, stop in ((0, 1), (1, 4)):
        parts.update(video[start:stop], truth[start:stop])
    other.update(video[4:, :, :1], truth[4:, :, :1])  # and by frames, in another process
    other.update(video[4:, :, 1:], truth[4:, :, 1:])
    parts.merge_state(other)
    assert values(parts) == pytest.approx(
        values(full), rel=1e-6 if make is METRICS["perceptual"] else 1e-12
    )


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_refusals_and_what_is_left_alone(make):
    metric = make()
    video, truth = pair(size=16)
    with pytest.raises(ValueError, match=r"video: expected \(b, c, f, h, w\)"):
        metric.update(video[0], truth[0])
    with pytest.raises(ValueError, match="reference: expected values in"):
        metric.update(video, 2 * truth)
    with pytest.raises(ValueError, match="reference: expected the shape of video"):
        metric.update(video, truth[:1])
    fresh = make()
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(ValueError, match="frames compared: expected"),
    ):
        fresh.compute()
    before = video.clone()
    metric.update(video.requires_grad_(), truth)
    assert torch.equal(video, before) and video.requires_grad
    assert not any(state.requires_grad for state in metric.metric_state.values())
    assert all(
        state.dtype in (torch.float64, torch.int64) for state in metric.metric_state.values()
    )


def test_a_net_that_was_sent_back_to_training_is_noticed():
    metric = METRICS["perceptual"]()
    metric.train()
    with pytest.raises(ValueError, match="net: expected a network in evaluation mode"):
        metric.update(*pair())


def test_the_window_is_the_papers():
    row = torch.zeros(1, 11, 11, dtype=torch.float64)
    row[0, 5, 5] = 1
    centre = image._window_means(row).item()
    weights = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    assert centre == pytest.approx((weights[5] / weights.sum()).item() ** 2, rel=1e-12)


@pytest.mark.parametrize("cap", [math.nan, math.inf, -1.0])
def test_a_cap_is_a_number(cap):
    with pytest.raises(ValueError, match="cap: expected a finite number above 0, got"):
        PSNR(cap=cap)


def test_the_map_refuses_what_ssim_refuses():
    images = pair(size=12)[0][:, :, 0]
    for bad, message in (
        (images[0], r"images: expected \(b, c, h, w\)"),
        (images.to(torch.uint8), "images: expected floating point"),
        (images * math.nan, "images: expected finite"),
        (images * 9, r"images: expected values in \[-1, 1\]"),
        (images[..., :10], "images: expected at least 11x11 pixels, got 12x10"),
    ):
        with pytest.raises(ValueError, match=message):
            ssim_map(bad, bad)
    with pytest.raises(ValueError, match="reference: expected the shape of images"):
        ssim_map(images, images[:1])


def test_feature_maps_are_floats():
    maps = [torch.ones(2, 3, 4, 4)]
    for args, name in (
        (([maps[0].long()], maps), "features"),
        ((maps, [maps[0].byte()]), "reference"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\[0\]: expected floating point"):
            perceptual_distance(*args)
