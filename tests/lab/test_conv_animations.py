"""The animations of a sliding kernel show the real convolution: outputs are read from pixels."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from course_lib.lab import conv_animations


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, decoded: a list of (frames (n, h, w, 3), alt text)."""
    animations = []

    def decode(png):
        image = Image.open(io.BytesIO(png.data))
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
        animations.append((np.stack(frames), png.alt))

    monkeypatch.setattr(conv_animations, "display", decode)
    return animations


def test_the_finished_map_is_the_convolution(shown):
    image = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kernel = torch.randn(3, 3)
    conv_animations.slide_over_frame(image, kernel, stride=2)
    ((frames, alt),) = shown
    out = F.conv2d(image[None], kernel[None, None], stride=2)[0, 0]
    assert alt.startswith("animation: a 3x3 kernel") and "(4, 4)" in alt
    right, cell = 9 * 13 + 24, 26
    centres = frames[0][24 + cell // 2 :: cell, right + cell // 2 :: cell][:4, :4].astype(int)
    blue, red = centres[..., 2], centres[..., 0]
    strong = out.abs().numpy() > 0.15 * out.abs().max().item()
    assert strong.sum() > 5
    assert ((blue > red) == (out.numpy() > 0))[strong].all(), "blue is positive, orange negative"


def test_the_animation_grows_to_the_finished_map(shown):
    conv_animations.slide_over_frame(torch.rand(1, 8, 8), torch.ones(2, 2), stride=3)
    conv_animations.slide_over_clip(torch.rand(1, 5, 8, 8), torch.ones(3, 2, 2), stride=3)
    for frames, _ in shown:
        ink = [(frame != 255).sum() for frame in frames]
        assert len(ink) > 4 and ink[1] < ink[-1]
        assert (frames[0] == frames[-1]).all(), "a page on which nothing moves shows the result"


def test_signed_colours():
    values = torch.tensor([0.0, 2.0, -2.0, 1.0]).view(1, 1, 1, 2, 2)
    colours = conv_animations.signed_colours(values, gain=1)
    assert colours.shape == (1, 3, 1, 2, 2) and colours.abs().max() <= 1
    assert (colours[0, :, 0, 0, 0] == 1).all(), "zero is white"
    red, blue = colours[0, 0, 0], colours[0, 2, 0]
    assert blue[0, 1] > red[0, 1] and red[1, 0] > blue[1, 0]
    assert red[0, 1] < red[1, 1] < 1, "half as much is half as blue"
    assert torch.equal(
        conv_animations.signed_colours(values * 0, gain=1), torch.ones(1, 3, 1, 2, 2)
    )


def test_what_cannot_slide_is_refused():
    with pytest.raises(ValueError, match=r"kernel: expected at most shape \(4, 4\), got \(5, 5\)"):
        conv_animations.slide_over_frame(torch.zeros(1, 4, 4), torch.zeros(5, 5))
    with pytest.raises(
        ValueError, match=r"kernel: expected at most shape \(2, 4, 4\), got \(3, 2, 2\)"
    ):
        conv_animations.slide_over_clip(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="stride: expected an integer of at least 1, got 0"):
        conv_animations.slide_over_frame(torch.zeros(1, 4, 4), torch.zeros(2, 2), stride=0)
