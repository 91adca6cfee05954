"""Corruptions change one property, by the given strength."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from course_lib.world import Scene, World, render
from course_lib.world.corruption import (
    CORRUPTIONS,
    blur,
    elastic_distortion,
    freeze,
    h264,
    hard_cut,
    jpeg,
    noise,
    remove_top,
    reverse,
    shift_hue,
    shuffle,
    swap_halves,
)


@pytest.fixture(scope="module")
def video():
    return World("test", subset="all", num_frames=8).batch(range(4)).video


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_keeps_shape_and_range_and_is_deterministic(video, name):
    before = video.clone()
    once, again = (CORRUPTIONS[name](video, generator(3)) for _ in range(2))
    assert once.shape == video.shape and once.abs().max() <= 1 + 1e-5
    assert torch.equal(once, again) and torch.equal(video, before) and not torch.equal(once, video)


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4])
def test_blur_equals_torchvision(video, sigma):
    radius = int(-(-3 * sigma // 1))
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = TF.gaussian_blur(frames, [2 * radius + 1] * 2, [float(sigma)] * 2)
    torch.testing.assert_close(
        blur(video, sigma).transpose(1, 2).flatten(0, 1), expected, atol=1e-5, rtol=0
    )


def test_blur_of_a_frame_smaller_than_the_kernel():
    assert blur(torch.zeros(1, 1, 1, 8, 8), 9).shape == (1, 1, 1, 8, 8)


def test_noise_has_the_given_std():
    grain = noise(torch.zeros(2, 3, 8, 32, 32), 0.1, generator())
    assert grain.std() == pytest.approx(0.1, rel=0.02) and abs(grain.mean()) < 2e-3


def test_hue_shift_of_a_third_turns_red_into_green():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    shifted = shift_hue(red, 1 / 3)[0, :, 0, 0, 0]
    torch.testing.assert_close(shifted, torch.tensor([-1.0, 1.0, -1.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize("compress, good, bad", [(jpeg, 95, 10), (h264, 5, 45)])
def test_compression_costs_more_when_stronger(video, compress, good, bad):
    fine, coarse = ((compress(video, level) - video).square().mean() for level in (good, bad))
    assert fine < 5e-3 < coarse


def test_freeze_reverse_swap_halves_hard_cut(video):
    assert (freeze(video).diff(dim=2) == 0).all()
    assert torch.equal(reverse(reverse(video)), video) and not torch.equal(reverse(video), video)
    assert torch.equal(swap_halves(swap_halves(video)), video)
    assert torch.equal(swap_halves(video)[:, :, :4], video[:, :, 4:])
    assert torch.equal(hard_cut(video)[:, :, :4], video[:, :, :4])
    assert torch.equal(hard_cut(video)[0, :, 4:], video[1, :, 4:]) and torch.equal(
        hard_cut(video)[-1, :, 4:], video[0, :, 4:]
    )


def test_shuffle_permutes_the_frames_of_each_clip_independently(video):
    shuffled = shuffle(video, generator())
    orders = []
    for clip, mixed in zip(video, shuffled, strict=True):
        gap = (clip[:, :, None] - mixed[:, None]).abs().amax((0, 3, 4))
        assert (gap == 0).any(0).all() and (gap == 0).any(1).all()
        orders.append(gap.argmin(0).tolist())
    assert len({tuple(order) for order in orders}) > 1


def test_shuffle_never_returns_the_original_or_reverse_order():
    clip = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(64, 1, 3, 1, 1) / 3
    for order in (shuffle(clip, generator()).flatten(1) * 3).round().int().tolist():
        assert order not in ([0, 1, 2], [2, 1, 0])


def test_elastic_distortion_flickers_only_if_inconsistent(video):
    still = video[:, :, :1].expand_as(video)
    consistent, flickering = (
        elastic_distortion(still, 2, generator(), consistent=s) for s in (True, False)
    )
    assert consistent.diff(dim=2).abs().max() < 1e-6 < 0.01 < flickering.diff(dim=2).abs().mean()
    errors = [(distorted - still).square().mean() for distorted in (consistent, flickering)]
    assert errors[0] == pytest.approx(errors[1].item(), rel=0.4)
    line = torch.arange(64.0) / 64
    # each ramp measures the displacement along one axis
    ramps = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    ramp = ramps[None, :, None].expand(8, 2, 4, 64, 64)
    for distorted in (
        elastic_distortion(ramp, 1.0, generator(), consistent=s) for s in (True, False)
    ):
        size = ((distorted - ramp)[..., 6:-6, 6:-6] * 64).square().mean((1, 3, 4)).sqrt()
        assert size.mean() == pytest.approx(1.0, rel=0.1) and size.std() < 0.15


def test_elastic_distortion_has_the_given_rms():
    ramp = (torch.arange(64.0) / 64).view(1, 1, 1, 1, 64).expand(8, 1, 1, 64, 64)
    inside = (slice(None), slice(None), slice(None), slice(8, -8), slice(8, -8))
    moved = (elastic_distortion(ramp, 1.0, generator(), consistent=True) - ramp)[inside] * 64
    assert moved.std() == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: shuffle(v[:, :, :2], generator()), "at least 3 frames to shuffle, got 2"),
        (lambda v: blur(v, 0), "sigma: expected a finite number above 0, got 0"),
        (lambda v: hard_cut(v[:1]), "at least 2 clips of 2 frames, got 1 of 8"),
        (lambda v: hard_cut(v[:, :, :1]), "at least 2 clips of 2 frames, got 4 of 1"),
    ],
)
def test_too_few_frames_or_clips_raise(video, call, message):
    with pytest.raises(ValueError, match=message):
        call(video)


def test_the_upper_part_of_a_subject_is_replaced_by_its_background():
    """A square's sides are upright: of its rows, half are left, and what is left is unchanged."""
    clips = render([Scene("red square", "standing still", "mint", 3)], num_frames=2)
    half = remove_top(clips, 0.5)
    changed = (half != clips.video).any(dim=1)[0, 0]
    subject = clips.alpha[0, 0, 0] > 0.5
    assert changed.any(dim=1).sum() == pytest.approx(subject.any(dim=1).sum() / 2, abs=1)
    assert torch.equal(half[..., ~changed], clips.video[..., ~changed])
    assert changed.any(dim=1).nonzero().max() < (subject & ~changed).any(dim=1).nonzero().min()
    everything = remove_top(clips, 1)
    assert everything.flatten(3).std(dim=3).max() < 0.2 < clips.video.flatten(3).std(dim=3).max()
    with pytest.raises(ValueError, match="part: "):
        remove_top(clips, 0)
