"""What a pipeline of diffusers returns is shown as the same frames in the course's own form."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.animatediff import AnimateDiffPipelineOutput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from PIL import Image

from course_lib.lab import pipeline_output, show
from course_lib.pipelines.text_to_video import VideoPipelineOutput

show_video, show_images = inspect.unwrap(show.show_video), inspect.unwrap(show.show_images)
LEVELS = np.random.default_rng(0).integers(0, 256, (2, 5, 12, 14, 3), np.uint8)  # (b, f, h, w, 3)
UNIT = LEVELS.astype(np.float32) / 255
OWN = torch.from_numpy(UNIT).permute(0, 4, 1, 2, 3) * 2 - 1
PIL = [[Image.fromarray(frame) for frame in clip] for clip in LEVELS]
FORMS = {
    "pil": (PIL, False),
    "np": (UNIT, False),
    "pt": (torch.from_numpy(UNIT).permute(0, 1, 4, 2, 3), True),
    "levels": (LEVELS, False),
    "double": (UNIT.astype(np.float64), False),
    "tuple": (tuple(map(tuple, PIL)), False),
    "rgba": ([[frame.convert("RGBA") for frame in clip] for clip in PIL], False),
}


@pytest.fixture
def shown(monkeypatch):
    images = []
    monkeypatch.setattr(show, "display", images.append)
    return images


def shows(shown, *calls):
    """Whether all calls of `show_video` show the same."""
    sizes = []
    for args, kwargs in calls:
        del shown[:]
        show_video(*args, **kwargs)
        sizes.append([image.data for image in shown])
    return all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind",
    [VideoPipelineOutput, AnimateDiffPipelineOutput, SimpleNamespace],
)
def test_an_output_is_shown_as_clips(shown, form, kind):
    output = kind(frames=FORMS[form][0])
    assert shows(shown, ((OWN,), {}), ((output,), {}))
    show_video(output, ["a", "b"])
    assert shown[-2].alt == "animation of 2: a; b"


@pytest.mark.parametrize(
    "form", [form for form, (_, needs_output) in FORMS.items() if not needs_output]
)
def test_frames_are_shown_without_their_output(shown, form):
    frames = FORMS[form][0]
    assert shows(shown, ((OWN,), {}), ((frames,), {}))
    assert shows(shown, ((OWN[0],), {}), ((frames[0],), {}))
    assert shows(shown, ((OWN,), {}), (((frames,),), {}))  # return_dict=False
    rows = {"one": frames, "two": frames}
    assert shows(shown, (({"one": OWN, "two": OWN},), {}), ((rows,), {}))
    singles = {"one": frames[0], "two": frames[1]}
    assert shows(shown, (({"one": OWN[0], "two": OWN[1]},), {}), ((singles,), {}))


def test_outputs_are_rows_next_to_tensors(shown):
    output = VideoPipelineOutput(frames=PIL)
    assert shows(
        shown,
        (({"made": OWN, "true": OWN},), {}),
        (({"made": output, "true": OWN},), {}),
        (([output, OWN],), {"titles": ["made", "true"]}),
    )


def test_one_to_three_frames_have_their_colours_at_the_end(shown):
    for num_frames in (1, 2, 3):
        own, frames = OWN[:, :, :num_frames], UNIT[:, :num_frames]
        assert shows(shown, ((own,), {}), ((frames,), {}), ((VideoPipelineOutput(frames),), {}))
        output = VideoPipelineOutput(torch.from_numpy(frames).permute(0, 1, 4, 2, 3))
        assert shows(shown, ((own,), {}), ((output,), {}))


def test_the_course_s_own_form_stays_in_minus_one_to_one(shown):
    half = OWN / 2 + 0.5  # all in [0, 1]: pale, and not taken for a pipeline's
    with pytest.warns(UserWarning, match="video: all values lie in"):
        clips, is_batch = pipeline_output.videos_to_rgb(half, "video")
    assert is_batch and clips.min() >= 127
    array, _ = pipeline_output.videos_to_rgb(OWN.numpy(), "video")
    np.testing.assert_array_equal(array, LEVELS)


def test_latents_are_no_video(shown):
    for latents in (torch.randn(1, 4, 3, 8, 8), torch.randn(1, 16, 8, 8, 8)):
        with pytest.raises(ValueError, match="video: expected"):
            show_video(VideoPipelineOutput(latents))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full_like(UNIT, np.nan), r"video: expected values in \[0, 1\] .*, got nan to nan"),
        (np.full_like(UNIT, np.inf), "got inf to inf"),
        (UNIT * 2 - 1, r"expected values in \[0, 1\].* videos in \[-1, 1\] are \(b, c, f, h, w\)"),
        (UNIT * 255, r"expected values in \[0, 1\] .*, got 0 to 255"),
        (LEVELS.astype(np.int64), "expected floats in .0, 1., or levels as uint8, got int64"),
        (UNIT[:0], "no empty axis"),
        (UNIT[:, :0], "no empty axis"),
        ([PIL[0], PIL[1][:2]], "frames"),
        ([PIL[0][0], PIL[0][0].resize((4, 4))], "video: expected images of one size"),
        ([[PIL[0][0]], [PIL[0][0].resize((4, 4))], []], "video"),
        (PIL[0][0], "video: expected a torch tensor, a NumPy array or PIL images, got Image"),
        ([], "video: expected at least one row, got none"),
        ([PIL[0], None], "a NumPy array or PIL images, got NoneType"),
        (VideoPipelineOutput(frames=None), "got NoneType"),
        (VideoPipelineOutput(frames=[]), "got list"),
        (torch.from_numpy(UNIT), "looks like"),
        (torch.from_numpy(UNIT).permute(0, 1, 4, 2, 3), "looks like"),
    ],
)
def test_anything_else_is_refused(shown, value, message):
    if message == "frames":  # two rows of different length
        show_video(value)
        return
    with pytest.raises(ValueError, match=message):
        show_video(value)
    assert shown == []


def test_clips_of_different_length_in_one_row_are_refused(shown):
    with pytest.raises(ValueError, match="video: expected clips of one shape, got shapes"):
        show_video(VideoPipelineOutput(frames=[PIL[0], PIL[1][:2]]))


@pytest.mark.parametrize("form", ["pil", "np", "pt", "levels"])
def test_the_output_of_an_image_pipeline_is_shown(shown, form):
    images = {
        "pil": PIL[0], "np": UNIT[0], "levels": LEVELS[0],
        "pt": torch.from_numpy(UNIT[0]).permute(0, 3, 1, 2),
    }[form]  # fmt: skip
    show_images(OWN[0].transpose(0, 1), list("abcde"))
    show_images(StableDiffusionPipelineOutput(images, None), list("abcde"))
    if form != "pt":
        show_images(images, list("abcde"))
    assert len({image.data for image in shown}) == 1
