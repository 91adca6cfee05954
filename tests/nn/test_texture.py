"""The texture statistics: closed forms, what they may not see, what they must."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.texture import BANDS, texture
from course_lib.world.corruption import blur


def clip(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_checkerboard_is_all_in_the_finest_band():
    """Its coarse version is its mean, 0: so the first band is the picture itself, with spread 1, and no other is."""
    rows = torch.arange(16)
    board = ((rows[:, None] + rows[None]) % 2 * 2.0 - 1).expand(1, 3, 2, 16, 16)
    expected = torch.tensor([[1.0] * 3 + [0.0] * 6])
    torch.testing.assert_close(texture(board), expected)
    # twice as large, it is in the second band
    large = F.interpolate(board[:, :, 0], scale_factor=2, mode="nearest")[:, :, None]
    assert texture(large)[0, 3:6] == pytest.approx(1)
    assert texture(large)[0, 6:].abs().max() == 0


def test_plain_colours_have_none():
    assert texture(torch.full((2, 3, 4, 32, 32), 0.7)).abs().max() < 1e-6


def test_the_bands_belong_to_their_channels_and_clips():
    one, two = clip(1, 3, 4, 16, 16), clip(1, 3, 4, 16, 16, seed=1)
    together = texture(torch.cat([one, two]))
    torch.testing.assert_close(together, torch.cat([texture(one), texture(two)]))
    grey = one.clone()
    grey[:, 1] = 0
    assert (texture(grey)[0, 1::3] == 0).all() and torch.equal(
        texture(grey)[0, 0::3], texture(one)[0, 0::3]
    )


def test_neither_order_nor_brightness_nor_mirrors_matter():
    video = clip(2, 3, 6, 32, 32) / 2
    for same in (video.flip(2), video[:, :, torch.randperm(6)], video + 0.3, video.flip(-1)):
        torch.testing.assert_close(texture(same), texture(video), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(texture(2 * video), 2 * texture(video))


def test_blur_takes_texture_away_the_finest_first():
    video = clip(1, 3, 2, 32, 32)
    left = (texture(blur(video, 1.0)) / texture(video))[0].unflatten(0, (BANDS, 3)).mean(1)
    assert left[0] < left[1] < left[2] < 1


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 8, got 12 x 16"):
        texture(torch.zeros(1, 3, 1, 12, 16))
