"""show: what a notebook displays, and what is refused."""

import base64
import inspect
import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from course_lib.lab import show


@pytest.fixture
def shown(monkeypatch):
    """What a cell would have displayed."""
    images = []
    monkeypatch.setattr(show, "display", images.append)
    return images


def video(b=2, c=3, f=6, h=16, w=16, seed=0) -> torch.Tensor:
    return torch.rand(b, c, f, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def opened(image: show.PngImage) -> Image.Image:
    return Image.open(io.BytesIO(image.data))


def test_an_image_is_a_png_with_a_sentence():
    data, metadata = show.PngImage(b"\x89PNG", "a fox")._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == b"\x89PNG"
    assert data["text/plain"] == "[image: a fox]"
    assert metadata == {"image/png": {"alt": "a fox"}}


def test_video_is_an_animation_over_a_strip(shown):
    assert show.show_video(video(), ["a fox", "a cat"]) is None
    moving, strip = shown
    assert opened(moving).n_frames == 6 and getattr(opened(strip), "n_frames", 1) == 1
    assert moving.alt == "animation of 2: a fox; a cat"
    assert strip.alt == "film strip: animation of 2: a fox; a cat"
    show.show_video(video(), strip=False, alt="two blurs")
    assert len(shown) == 3 and shown[2].alt == "two blurs"


def test_one_clip_and_grey_and_one_frame(shown):
    show.show_video(video()[0], "a fox")
    show.show_video(video(c=1))
    show.show_video(video(f=1)[0].numpy())
    assert getattr(opened(shown[4]), "n_frames", 1) == 1
    assert shown[4].alt == "image of 1 without captions"
    pixel = np.asarray(opened(shown[2]).convert("RGB"))[9, 9]
    assert len(set(pixel.tolist())) == 1


def test_single_clips_in_a_dict_or_list_stand_side_by_side(shown):
    a, b = video()[0], video(seed=1)[0]
    show.show_video({"truth": a, "model": b}, strip=False)
    show.show_video([a, b], ["truth", "model"], strip=False)
    show.show_video([a, b], titles=["truth", "model"], strip=False)
    show.show_video(torch.stack([a, b]), ["truth", "model"], strip=False)
    assert len({image.data for image in shown}) == 1
    assert shown[0].alt == "animation of 2: truth; model"


def test_rows_of_batches_have_titles_and_captions(shown):
    rows = {"truth": video(), "model": video(seed=1)}
    show.show_video(rows, ["fox", "cat"])
    assert shown[0].alt == "animation of 4: truth: fox; truth: cat; model: fox; model: cat"
    show.show_video(rows, {"truth": ["fox", "cat"], "model": ["dog", "cow"]})
    assert shown[2].alt.endswith("model: dog; model: cow")
    show.show_video({"large": video()[0], "small": video(h=8, w=8)[0]}, strip=False)
    assert shown[4].alt == "animation of 2: large; small"


def test_speed(shown):
    show.show_video(video(), fps=4)
    assert opened(shown[0]).info["duration"] == pytest.approx(250)


def test_four_canonical_clips_stay_small(shown):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    frames = [
        torch.where((x - t / 10 + 0.7) ** 2 + y**2 < 0.15, 0.5 * x * y, 0.6 * y) for t in range(16)
    ]  # a shaded ball crosses a gradient
    clip = torch.stack(frames).expand(3, -1, -1, -1)
    show.show_video(
        torch.stack([clip, clip.flip(1), -clip, clip * 0.5]), ["a ball moving right"] * 4
    )
    assert len(shown[0].data) < 90_000 and len(shown[1].data) < 40_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(captions=["one"]), r"captions: expected one for each of 2 clips, got 1: \('one',\)"),
        (dict(titles=["a", "b"]), "titles: expected one for each of 1 rows, got 2"),
        (dict(scale=0), "scale: expected an integer of at least 1, got 0"),
        (dict(strip_frames=0), "strip_frames: expected an integer of at least 1, got 0"),
        (dict(strip_frames=-1), "strip_frames: expected an integer of at least 1, got -1"),
        (dict(fps=0), "fps: expected a finite number at least 0.1 and at most 100, got 0"),
        (dict(fps=math.nan), "fps: expected a finite number .*, got nan"),
        (dict(colours=1), "colours: expected an integer from 2 to 255, got 1"),
    ],
)
def test_bad_arguments_are_refused(shown, arguments, message):
    with pytest.raises(ValueError, match=message):
        show.show_video(video(), **arguments)
    assert shown == []


def test_bad_rows_are_named(shown):
    with pytest.raises(
        ValueError, match=r"video\['model'\]: expected .* got shape \(2, 6, 3, 16, 16\)"
    ):
        show.show_video({"truth": video(), "model": video().transpose(1, 2)})
    with pytest.raises(
        ValueError, match="titles: expected None with a dict, whose keys are the titles, got"
    ):
        show.show_video({"truth": video()}, titles=["truth"])
    with pytest.raises(ValueError, match="captions: expected an entry for 'model', got truth"):
        show.show_video({"truth": video(), "model": video()}, {"truth": ["a", "b"]})
    with pytest.raises(ValueError, match="video: expected at least one row, got none"):
        show.show_video([])


def test_images(shown):
    images = video(b=5, f=1)[:, :, 0]
    show.show_images(images, list("abcde"))
    show.show_images(images, columns=2, scale=1)
    show.show_images(images.bfloat16())
    assert shown[0].alt == "image of 5: a; b; c; d; e"
    pixels = np.asarray(opened(shown[1]).convert("RGB")).astype(float)
    expected = (images[0].movedim(0, -1).numpy() + 1) * 127.5
    assert np.abs(pixels[1:17, 1:17] - expected).mean() < 12  # at most 255 colours of 1280
    with pytest.raises(ValueError, match="columns: expected an integer of at least 1, got 0"):
        show.show_images(images, columns=0)


def test_flow_has_a_wheel_and_states_its_scale(shown):
    flow = torch.zeros(2, 4, 16, 16)
    flow[0] = 3.0
    flow[1] = 4.0
    show.show_flow(flow, "a slide")
    moving, strip = shown
    assert moving.alt == "optical flow of 1: a slide; full colour means 5 pixels"
    assert opened(moving).size[0] > 192 + 100  # the clip and the wheel
    show.show_flow(flow[:, 0])
    show.show_flow(torch.stack([flow, -flow]), ["there", "back"], max_flow=10, strip=False)
    assert len(shown) == 4 and "full colour means 10 pixels" in shown[3].alt


def test_the_wheel_shows_what_each_direction_looks_like():
    wheel = show._flow_legend(1.0)
    centre = (22 + 48, 44 + 48)
    colour = show.flow_to_rgb(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).flatten().numpy()
    np.testing.assert_array_equal(wheel[centre[0], centre[1] + 48], colour)  # right, at full speed
    assert (wheel[centre] == 255).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 4, 8, 8), (8, 8), (3, 2, 8, 8)])
def test_bad_flow_is_refused(shown, shape):
    with pytest.raises(ValueError, match=r"flow: expected \(2, h, w\), .* got shape"):
        show.show_flow(torch.zeros(shape))


def test_curves(shown):
    x = torch.arange(10)
    show.show_curves(
        {"plain": [1.0, 2.0], "xy": (x, x.float() + 1), "band": (x, x + 2, x + 1, x + 3)},
        "step", "loss", "Training", logy=True,
    )  # fmt: skip
    assert shown[0].alt == "Training: loss against step for plain, xy, band"
    assert opened(shown[0]).size == (720, 400) and len(shown[0].data) < 60_000
    assert plt.get_fignums() == []  # or the notebook shows it twice
    corner = np.asarray(opened(shown[0]).convert("RGB"))[0, 0]
    assert corner.tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (([1], [2], [3]), r"curve 'a': expected y, \(x, y\) or \(x, y, low, high\), got 3 parts"),
        (([1, 2], [3]), r"one equal length, got shapes \[\(2,\), \(1,\)\]"),
        ([], "one equal length"),
        (torch.zeros(2, 2), "one equal length"),
    ],
)
def test_bad_curves_are_refused(shown, curve, message):
    with pytest.raises(ValueError, match=message):
        show.show_curves({"a": curve}, "x", "y")
    plt.close("all")


def test_bars(shown):
    show.show_bars({"R3D": (0.8, 0.7, 0.9), "2D": 0.25, "none": 0}, "accuracy", "Motion")
    assert shown[0].alt == "Motion: accuracy: R3D 0.8, 2D 0.25, none 0"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("bar", [(0.5, 0.6, 0.7), (1, 2), (0.5, 0.4, float("inf"))])
def test_bad_bars_are_refused(shown, bar):
    with pytest.raises(
        ValueError, match="bar 'a': expected a number or .* with low <= value <= high, got"
    ):
        show.show_bars({"a": bar}, "accuracy")


@pytest.mark.parametrize("scale", [0, -1, 2.7, math.nan, "3", [1], True])
def test_a_scale_that_is_no_count_is_refused(shown, scale):
    unchecked = inspect.unwrap(show.show_images), inspect.unwrap(show.show_video)
    for function, value in zip(unchecked, (video()[:, :, 0], video()), strict=True):
        with pytest.raises(ValueError, match="scale: expected an integer of at least 1, got"):
            function(value, scale=scale)
    with pytest.raises(ValueError, match="columns: expected an integer of at least 1, got"):
        inspect.unwrap(show.show_images)(video()[:, :, 0], columns=scale)
    with pytest.raises(ValueError, match="strip_frames: expected an integer of at least 1, got"):
        inspect.unwrap(show.show_video)(video(), strip_frames=scale)
    assert shown == []


@pytest.mark.parametrize("max_flow", [0.0, -1.0, math.inf, math.nan])
def test_a_flow_of_no_scale_is_refused(shown, max_flow):
    with pytest.raises(ValueError, match="max_flow: expected a finite number above 0, got"):
        show.show_flow(torch.ones(2, 8, 8), max_flow=max_flow)
    assert shown == []


def test_a_flow_without_motion_is_shown(shown):
    show.show_flow(torch.zeros(2, 3, 8, 8))
    assert len(shown) == 2 and "full colour means 0 pixels" in shown[0].alt


@pytest.mark.parametrize("label", [r"$\foo$", "$5 and $6", "$x_$", r"$\bar\alpha$", "$", "a_b^c"])
def test_any_label_is_shown(shown, label):
    show.show_curves({label: [1, 2]}, label, label, label)
    show.show_bars({label: 1, "b": 2}, label, label)
    assert len(shown) == 2 and label in shown[0].alt and plt.get_fignums() == []


def test_a_formula_in_a_label_is_still_drawn(shown):
    for label in (r"$\alpha$", "α", r"$\foo$", r"\$\foo\$"):
        show.show_bars({label: 1}, "x", alt="bars")
    formula, letter, wrong, escaped = (opened(image).convert("RGB").tobytes() for image in shown)
    assert len({formula, letter, wrong}) == 3 and wrong == escaped


def test_nothing_to_draw_is_refused(shown):
    with pytest.raises(ValueError, match="bars: expected at least one, got none"):
        show.show_bars({}, "x")
    with pytest.raises(ValueError, match="curves: expected at least one, got none"):
        show.show_curves({}, "x", "y")
    assert shown == [] and plt.get_fignums() == []
