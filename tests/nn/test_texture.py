"""The texture descriptor: closed forms, invariances and sensitivities."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.texture import NUM_BANDS, laplacian_band_std
from course_lib.world.corruption import blur


def rand_clip(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_checkerboard_is_all_in_the_finest_band():
    """Its coarse version is its mean, 0, so the first band is the image itself, with std 1."""
    rows = torch.arange(16)
    board = ((rows[:, None] + rows[None]) % 2 * 2.0 - 1).expand(1, 3, 2, 16, 16)
    expected = torch.tensor([[1.0] * 3 + [0.0] * 6])
    torch.testing.assert_close(laplacian_band_std(board), expected)
    # Twice as large, it is in the second band
    large = F.interpolate(board[:, :, 0], scale_factor=2, mode="nearest")[:, :, None]
    assert laplacian_band_std(large)[0, 3:6] == pytest.approx(1)
    assert laplacian_band_std(large)[0, 6:].abs().max() == 0


def test_plain_colours_have_no_texture():
    assert laplacian_band_std(torch.full((2, 3, 4, 32, 32), 0.7)).abs().max() < 1e-6


def test_bands_belong_to_their_channels_and_clips():
    one, two = rand_clip(1, 3, 4, 16, 16), rand_clip(1, 3, 4, 16, 16, seed=1)
    both = laplacian_band_std(torch.cat([one, two]))
    torch.testing.assert_close(both, torch.cat([laplacian_band_std(x) for x in (one, two)]))
    changed = one.clone()
    changed[:, 1] = 0
    stds = laplacian_band_std(changed)[0]
    assert (stds[1::3] == 0).all()
    assert torch.equal(stds[0::3], laplacian_band_std(one)[0, 0::3])


def test_order_brightness_and_mirroring_do_not_matter():
    video = rand_clip(2, 3, 6, 32, 32) / 2
    for same in (video.flip(2), video[:, :, torch.randperm(6)], video + 0.3, video.flip(-1)):
        stds = laplacian_band_std(same)
        torch.testing.assert_close(stds, laplacian_band_std(video), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(laplacian_band_std(2 * video), 2 * laplacian_band_std(video))


def test_blur_removes_the_finest_texture_first():
    video = rand_clip(1, 3, 2, 32, 32)
    ratio = laplacian_band_std(blur(video, 1.0)) / laplacian_band_std(video)
    fine, medium, coarse = ratio[0].unflatten(0, (NUM_BANDS, 3)).mean(1)
    assert fine < medium < coarse < 1


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 8, got 12 x 16"):
        laplacian_band_std(torch.zeros(1, 3, 1, 12, 16))
