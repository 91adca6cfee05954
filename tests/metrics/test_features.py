"""Features are taken once, as the net gives them; nets of one frame become nets of videos."""

import math

import pytest
import torch
from torch import nn

from course_lib.metrics import (
    FeatureBank,
    KernelDistance,
    extract_features,
    frame_features,
    kernel_distance,
    mean_frame_features,
)


def clips(n=6, seed=0, f=3):
    return torch.rand(n, 3, f, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def means(video):
    """A video net: mean of every channel in the first and in the last frame."""
    return torch.cat([video[:, :, 0].mean(dim=(2, 3)), video[:, :, -1].mean(dim=(2, 3))], dim=1)


def image_means(images):
    return images.mean(dim=(2, 3))


def test_an_image_net_sees_every_frame_as_a_sample():
    video = clips()
    result = frame_features(image_means)(video)
    assert result.shape == (18, 3)
    torch.testing.assert_close(result[5], video[1, :, 2].mean(dim=(1, 2)))


def test_the_mean_over_frames_is_blind_to_their_order_and_a_video_net_is_not():
    video = clips()
    result = mean_frame_features(image_means)(video)
    assert result.shape == (6, 3)
    torch.testing.assert_close(result[1], video[1].mean(dim=(1, 2, 3)))
    torch.testing.assert_close(mean_frame_features(image_means)(video.flip(2)), result)
    assert (means(video.flip(2)) - means(video)).abs().max() > 0.01


def test_features_are_float64_without_gradient():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 3 * 64, 4)).eval()
    video = clips().requires_grad_()
    result = extract_features(net, video)
    assert result.dtype == torch.float64 and not result.requires_grad
    torch.testing.assert_close(result, net(video).double().detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap", [frame_features, mean_frame_features, lambda net: FeatureBank(net, "x")]
)
def test_a_net_in_training_mode_is_refused_at_once(wrap):
    with pytest.raises(ValueError, match="net: expected a network in evaluation mode"):
        wrap(nn.Flatten())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda video: video.mean(dim=(1, 2, 3, 4)),
            r"net\(video\): expected \(n, d\).*got shape \(6,\)",
        ),
        (lambda video: means(video) / 0, r"net\(video\): expected finite values"),
        (lambda video: means(video).long(), r"net\(video\): expected floating point"),
        (nn.Flatten(), "net: expected a network in evaluation mode"),
    ],
)
def test_what_a_net_must_return(net, message):
    with pytest.raises(ValueError, match=message):
        extract_features(net, clips())


def test_a_bank_keeps_both_sides_in_order():
    bank = FeatureBank(means, "means")
    real, generated = clips(6), clips(4, seed=1)
    for batch in real.split(4):
        bank.update(batch, real=True)
    bank.update(generated, real=False)
    result = bank.compute()
    torch.testing.assert_close(result[0], means(real).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(result[1], means(generated).double(), rtol=0, atol=1e-7)


def test_a_bank_may_keep_the_real_side_over_a_reset():
    bank = KernelDistance(means, "means", cache_real=True)
    bank.update(clips(6), real=True)
    values = []
    for seed in (1, 2, 1):
        bank.update(clips(5, seed), real=False)
        values.append(bank.compute())
        bank.reset()
    assert values[0] == values[2] != values[1]
    forgetful = KernelDistance(means, "means")
    forgetful.update(clips(6), real=True)
    forgetful.reset()
    forgetful.update(clips(6), real=False)
    with pytest.raises(ValueError, match="real samples: expected at least 2, got 0"):
        forgetful.compute()


def test_the_number_of_samples_needed_is_named():
    bank = KernelDistance(means, "means")
    bank.update(clips(4), real=True)
    bank.update(clips(1), real=False)
    with pytest.raises(ValueError, match="generated samples: expected at least 2, got 1"):
        bank.compute()


def test_several_processes_join_their_rows():
    bank = KernelDistance(means, "means")
    bank.update(clips(4), real=True)
    bank.update(clips(3, seed=1), real=False)
    before = bank.compute()
    # two processes that hold the same: what gathering would bring
    bank.sync(dist_sync_fn=lambda rows, group: [rows, rows], distributed_available=lambda: True)
    bank._computed, bank._to_sync = None, False
    real, generated = bank.features()
    assert len(real) == 8 and len(generated) == 6
    twice = [means(x).double().repeat(2, 1) for x in (clips(4), clips(3, seed=1))]
    assert kernel_distance(real, generated) == pytest.approx(kernel_distance(*twice), rel=1e-6)
    bank.unsync()
    bank._to_sync = True
    assert bank.compute() == before


def test_a_bad_video_never_reaches_the_net():
    def untouched(video):
        raise AssertionError("the net was called")

    bank = FeatureBank(untouched, "none")
    for bad in (clips()[0], clips() * 2, clips() * math.nan, clips()[:, :, :0]):
        with pytest.raises(ValueError, match="video: expected"):
            bank.update(bad, real=True)
