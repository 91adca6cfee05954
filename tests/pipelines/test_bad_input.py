"""What the pipeline refuses before it samples: each message names the argument."""

import inspect
from math import inf, nan

import numpy as np
import pytest
import torch

from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines import frame_condition
from course_lib.pipelines.frame_condition import FrameCondition
from course_lib.pipelines.text_to_video import TextToVideoPipeline
from tests.pipelines.small import PROMPTS, build_pipeline, noise

# Without the tests' type checker, which users do not have
sample_iter = inspect.unwrap(TextToVideoPipeline.sample_iter)
GENERATOR = torch.Generator()


@pytest.fixture
def silent_pipe(pipe, monkeypatch):
    """A pipeline that may not do any work."""
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("the U-Net was called"))
    monkeypatch.setattr(pipe, "encode_prompt", lambda *_: pytest.fail("prompts were encoded"))
    return pipe


COUNTS = ("num_frames", "num_inference_steps", "num_videos_per_prompt", "height", "width")


@pytest.mark.parametrize("value", [0, -1, -8, 1.5, 2.0, True, "2", nan, inf])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_integers_of_at_least_one(silent_pipe, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected an integer of at least 1"):
        sample_iter(silent_pipe, PROMPTS, **{name: value})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: expected one or more strings, got an empty list"),
        ((), "prompt: expected one or more strings, got an empty list"),
        (None, "prompt: expected one or more strings, got None"),
        (["a tiger", None], "prompt: expected one or more strings, got None"),
        ([["a tiger"]], r"prompt: expected one or more strings, got \['a tiger'\]"),
        (b"a tiger", "prompt: expected one or more strings, got 97"),
        (7, "prompt: expected one or more strings, got 7"),
    ],
)
def test_prompts_are_strings(silent_pipe, prompt, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_iter(silent_pipe, prompt)
    with pytest.raises(
        ValueError, match=f"^negative_{message}" if prompt is not None else "^prompt"
    ):
        sample_iter(silent_pipe, PROMPTS if prompt is not None else None, negative_prompt=prompt)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"negative_prompt": [""] * 3}, "negative_prompt: expected one, or one for each of 2"),
        ({"negative_prompt": [""] * 4, "num_videos_per_prompt": 2}, "negative_prompt: expected"),
        ({"generator": [GENERATOR] * 3}, "generator: expected one, or one for each of 2"),
        ({"generator": [GENERATOR]}, "generator: expected one, or one for each of 2"),
        ({"generator": []}, "generator: expected one, or one for each of 2"),
        (
            {"generator": [GENERATOR] * 2, "num_videos_per_prompt": 2},
            "generator: expected one, or one for each of 4 videos; got 2",
        ),
        ({"generator": 7}, "generator: expected one, .* got int"),
        ({"generator": [GENERATOR, 7]}, "generator: expected one, .* got int"),
        ({"latents": noise(3)}, "latents: expected 2 rows, one for each prompt, got 3"),
        ({"latents": noise(1)}, "latents: expected 2 rows, one for each prompt, got 1"),
        ({"latents": noise(), "num_videos_per_prompt": 2}, "latents: expected 4 rows"),
        ({"latents": noise()[0]}, r"latents: expected \(b, c, f, y, x\).* needs a batch axis"),
        ({"latents": noise().int()}, "latents: expected floating point"),
        ({"latents": noise()[:, :3]}, "latents: expected 4 channels, as the U-Net has, got 3"),
        ({"latents": noise() / 0}, "latents: expected finite values"),
        ({"frame_condition": noise()}, "frame_condition: expected a FrameCondition, got Tensor"),
        ({"frame_index": torch.arange(5.0)}, r"frame_index: expected \(b, f\) = \(2, 5\)"),
        ({"frame_index": torch.ones(1, 5)}, r"frame_index: expected \(b, f\) = \(2, 5\)"),
        ({"frame_index": torch.full((2, 5), nan)}, "frame_index: expected finite values"),
    ],
)
def test_rows_fit_the_prompts(silent_pipe, kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_iter(silent_pipe, PROMPTS, num_frames=5, **kwargs)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temporal_scale", (nan, inf, True, "1")),
        ("temporal_guidance_scale", (nan, inf, -1, True, "1")),
        ("temporal_guidance_below", (nan, inf, None)),
        ("guidance_scale", (nan, inf, -1)),
        ("guidance_rescale", (nan, inf, -1, 2)),
        ("fps", (nan, inf, 0, -8, True)),
    ],
)
def test_numbers_are_finite(pipe, monkeypatch, name, values):
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("the U-Net was called"))
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            sample_iter(pipe, PROMPTS, num_frames=2, **{name: value})


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (noise(1), r"frame_condition: expected frames \(2, 4, 5, 8, 8\)"),
        (noise(3), r"frame_condition: expected frames \(2, 4, 5, 8, 8\)"),
        (noise()[:, :3], r"frame_condition: expected frames \(2, 4, 5, 8, 8\)"),
        (noise() / 0, "frame_condition: expected finite frames"),
    ],
)
def test_given_frames_fit_the_prompts(silent_pipe, frames, message):
    condition = FrameCondition.prefix(frames[:, :, :2], 5)
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_iter(silent_pipe, PROMPTS, frame_condition=condition)
    if len(frames) == 1:
        with pytest.raises(ValueError, match=f"^{message}"):
            sample_iter(silent_pipe, PROMPTS, frame_condition=condition, latents=noise())


@pytest.mark.parametrize("weight", [nan, inf, -1, True])
def test_the_weight_of_reconstruction_guidance_is_finite(pipe, weight):
    condition = FrameCondition.prefix(noise()[:, :, :2], 5)
    with pytest.raises(ValueError, match="^reconstruction_weight: expected a finite number"):
        sample_iter(pipe, PROMPTS, frame_condition=condition, reconstruction_weight=weight)


def test_given_frames_and_noise_have_one_length(silent_pipe):
    condition = FrameCondition.prefix(noise(f=2), 4)
    with pytest.raises(ValueError, match=r"^frame_condition: expected frames \(2, 4, 5, 8, 8\)"):
        sample_iter(silent_pipe, PROMPTS, frame_condition=condition, latents=noise())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"latents": noise()[:, :, :1]}, "expected the shape of latents"),
        ({"latents": noise()[:1]}, "expected the shape of latents"),
        ({"latents": noise()[0]}, "expected the shape of latents"),
        ({"latents": torch.zeros(1, 1, 1, 1, 1)}, "expected the shape of latents"),
        ({"latents": noise().long()}, "expected floating point"),
        (noise(), "expected a dict or None as its result, got Tensor"),
        (True, "expected a dict or None as its result, got bool"),
    ],
)
def test_a_callback_returns_latents_of_the_same_shape(pipe, result, message):
    with pytest.raises(ValueError, match=f"^callback_on_step_end: {message}"):
        pipe(
            PROMPTS,
            latents=noise(),
            num_inference_steps=1,
            callback_on_step_end=lambda *_: result,
        )


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("latents", lambda pipe, x, p: pipe.extend_autoregressively(p, x, num_frames=9)),
        ("keyframes", lambda pipe, x, p: pipe.interpolate_keyframes(p, x)),
    ],
)
def test_loops_need_a_prompt_for_each_video(silent_pipe, name, call):
    for prompts in (PROMPTS[:1], PROMPTS[0], [*PROMPTS, "a tiger"]):
        num_prompts = 1 if isinstance(prompts, str) else len(prompts)
        message = f"^{name}: expected {num_prompts} rows, one for each prompt, got 2"
        with pytest.raises(ValueError, match=message):
            call(silent_pipe, noise(f=4), prompts)
    with pytest.raises(ValueError, match=f"^{name}: expected 4 channels, as the U-Net has, got 3"):
        call(silent_pipe, noise(f=4)[:, :3], PROMPTS)


@pytest.mark.parametrize("name", ["factor", "window_size", "keyframe_spacing"])
@pytest.mark.parametrize("value", [0, -1, nan, inf, True, "2"])
def test_numbers_of_interpolation(name, value):
    loop = inspect.unwrap(frame_condition.interpolate_keyframes)
    kwargs = {"factor": 4, "window_size": 4, "keyframe_spacing": 1.0} | {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        loop(lambda *_: pytest.fail("sampled"), noise(f=4), **kwargs)


def test_a_folder_is_not_a_pipeline(system):
    build = inspect.unwrap(TextToVideoPipeline.from_image_pipeline.__func__)
    with pytest.raises(ValueError, match="^pipeline: expected a loaded pipeline, got str"):
        build(TextToVideoPipeline, "data/checkpoints/mini-sd", build_unet(system.unet))
    with pytest.raises(ValueError, match="^unet: expected a video U-Net, got str"):
        build(TextToVideoPipeline, system.to_pipeline(), "data/checkpoints/mini-video")


def test_a_mistyped_folder_stays_local(monkeypatch, tmp_path):
    calls = []

    def from_pretrained(folder, **kwargs):
        calls.append(kwargs)

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", from_pretrained)
    monkeypatch.delenv("COURSE_HUB", raising=False)
    TextToVideoPipeline.from_pretrained("some/where")
    TextToVideoPipeline.from_pretrained("some/where", local_files_only=False)
    monkeypatch.setattr("course_lib.runtime.hub_available", lambda: True)
    TextToVideoPipeline.from_pretrained(tmp_path / "nope")
    TextToVideoPipeline.from_pretrained("some/where")
    assert [call["local_files_only"] for call in calls] == [True, False, True, False]


def test_a_mistyped_folder_is_named(tmp_path):
    with pytest.raises((OSError, ValueError), match="nope"):
        TextToVideoPipeline.from_pretrained(tmp_path / "nope")


def test_loops_take_one_negative_prompt_and_generator_for_each_video(system, pipe):
    """Video i is what its own prompts and generator give, in every window."""
    keyframes = noise(f=7)
    kwargs = {"num_inference_steps": 1}
    negatives = ["a red star", "a tiger"]

    def generators():
        return tuple(torch.Generator().manual_seed(seed) for seed in (3, 4))

    out = pipe.interpolate_keyframes(
        PROMPTS, keyframes, negative_prompt=negatives, generator=generators(), **kwargs
    )
    longer = pipe.extend_autoregressively(
        (prompt for prompt in PROMPTS),
        keyframes,
        num_frames=14,
        negative_prompt=iter(negatives),
        generator=generators(),
        **kwargs,
    )
    for row, generator in enumerate(generators()):
        rows = slice(row, row + 1)
        single = pipe.interpolate_keyframes(
            PROMPTS[row],
            keyframes[rows],
            negative_prompt=negatives[row],
            generator=[generator],
            **kwargs,
        )
        torch.testing.assert_close(out[rows], single, atol=1e-5, rtol=0)
    for row, generator in enumerate(generators()):
        rows = slice(row, row + 1)
        single = pipe.extend_autoregressively(
            PROMPTS[row],
            keyframes[rows],
            num_frames=14,
            negative_prompt=negatives[row],
            generator=generator,
            **kwargs,
        )
        torch.testing.assert_close(longer[rows], single, atol=1e-5, rtol=0)


def test_two_videos_for_each_prompt_in_loops(pipe):
    keyframes = noise(f=7)
    out = pipe.interpolate_keyframes(
        PROMPTS[0],
        keyframes,
        num_videos_per_prompt=2,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=1,
    )
    expected = pipe.interpolate_keyframes(
        PROMPTS[:1] * 2,
        keyframes,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=1,
    )
    torch.testing.assert_close(out, expected)


def test_prompts_may_be_any_iterable(system, pipe):
    kwargs = {"num_frames": 2, "num_inference_steps": 1}

    def run(prompt, **more):
        generator = torch.Generator().manual_seed(0)
        return pipe.sample_latents(prompt, generator=generator, **kwargs, **more)

    expected = run(PROMPTS, negative_prompt=["a tiger", ""])
    for kind in (tuple, np.array, iter):
        out = run(kind(PROMPTS), negative_prompt=kind(["a tiger", ""]))
        torch.testing.assert_close(out, expected)
    frames = build_pipeline(system, pipe.unet)(iter(PROMPTS), output_type="latent", **kwargs).frames
    assert len(frames) == 2
