"""The animations of a sliding kernel show the real convolution: answers are read back from their pixels."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from course_lib.lab import slides


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, decoded: a list of (frames (n, h, w, 3), alt text)."""
    pictures = []

    def keep(picture):
        image, frames = Image.open(io.BytesIO(picture.data)), []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
        pictures.append((np.stack(frames), picture.alt))

    monkeypatch.setattr(slides, "display", keep)
    return pictures


def test_the_finished_map_is_the_convolution(shown):
    image, kernel = (
        torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        torch.randn(3, 3),
    )
    slides.slide_over_frame(image, kernel, stride=2)
    ((frames, alt),) = shown
    answer = F.conv2d(image[None], kernel[None, None], stride=2)[0, 0]
    assert alt.startswith("animation: a 3x3 kernel") and "(4, 4)" in alt
    right, cell = 9 * 13 + 24, 26
    centres = frames[0][24 + cell // 2 :: cell, right + cell // 2 :: cell][:4, :4].astype(int)
    blue, red = centres[..., 2], centres[..., 0]
    strong = answer.abs().numpy() > 0.15 * answer.abs().max().item()
    assert strong.sum() > 5
    assert ((blue > red) == (answer.numpy() > 0))[strong].all(), "blue is positive, orange negative"


def test_the_film_grows_from_nothing_to_the_finished_map(shown):
    slides.slide_over_frame(torch.rand(1, 8, 8), torch.ones(2, 2), stride=3)
    slides.slide_over_clip(torch.rand(1, 5, 8, 8), torch.ones(3, 2, 2), stride=3)
    for frames, _ in shown:
        ink = [(frame != 255).sum() for frame in frames]
        assert len(ink) > 4 and ink[1] < ink[-1]
        assert (frames[0] == frames[-1]).all(), "a page on which nothing moves shows the result"


def test_signed_colours():
    values = torch.tensor([0.0, 2.0, -2.0, 1.0]).view(1, 1, 1, 2, 2)
    colours = slides.signed_colours(values, gain=1)
    assert colours.shape == (1, 3, 1, 2, 2) and colours.abs().max() <= 1
    assert (colours[0, :, 0, 0, 0] == 1).all(), "zero is white"
    red, blue = colours[0, 0, 0], colours[0, 2, 0]
    assert blue[0, 1] > red[0, 1] and red[1, 0] > blue[1, 0]
    assert red[0, 1] < red[1, 1] < 1, "half as much is half as blue"
    assert torch.equal(slides.signed_colours(values * 0, gain=1), torch.ones(1, 3, 1, 2, 2))


def test_what_cannot_slide_is_refused():
    with pytest.raises(ValueError, match=r"kernel must fit into \(4, 4\), got \(5, 5\)"):
        slides.slide_over_frame(torch.zeros(1, 4, 4), torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"kernel must fit into \(2, 4, 4\), got \(3, 2, 2\)"):
        slides.slide_over_clip(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        slides.slide_over_frame(torch.zeros(1, 4, 4), torch.zeros(2, 2), stride=0)
