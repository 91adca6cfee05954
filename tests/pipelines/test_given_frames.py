"""Given frames in the pipeline: they are shown, kept, and lead to longer and denser videos."""

import copy

import torch

from course_lib.diffusion import add_noise
from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines.frame_condition import FrameCondition, first_frames_mask
from course_lib.pipelines.text_to_video import COND_FRAMES_GUIDANCE_SCALE
from course_lib.pipelines.unet_adapter import unet_denoiser
from tests.pipelines.small import PROMPTS, build_pipeline, noise


def first_and_last(frames):
    mask = torch.tensor([[True, False, False, False, True]]).expand(len(frames), -1)
    return FrameCondition(frames, mask)


def test_guidance_leads_from_no_frames_to_the_given_ones_which_are_kept(pipe, monkeypatch):
    calls, forward = [], pipe.unet.forward

    def record(sample, timestep, encoder_hidden_states, **inputs):
        calls.append(inputs)
        return forward(sample, timestep, encoder_hidden_states, **inputs)

    monkeypatch.setattr(pipe.unet, "forward", record)
    frames = noise(seed=5)
    condition = first_and_last(frames)
    frame_index = torch.arange(5.0).expand(2, -1) / 4
    kwargs = {"num_frames": 5, "num_inference_steps": 2}

    def generate(**more):
        generator = torch.Generator().manual_seed(1)
        return pipe.sample_latents(PROMPTS, generator=generator, **kwargs, **more)

    out = generate(frame_condition=condition, frame_index=frame_index)
    torch.testing.assert_close(out[:, :, [0, 4]], frames[:, :, [0, 4]])
    assert len(calls) == 2
    for call in calls:
        uncond, cond = call["cond_channels"].chunk(2)
        torch.testing.assert_close(cond, condition.channels())
        assert not uncond.any()
        torch.testing.assert_close(call["frame_index"], frame_index.repeat(2, 1))
    free = generate()
    assert not calls[-1]["cond_channels"].any() and "frame_index" not in calls[-1]
    assert not torch.allclose(out[:, :, 1:4], free[:, :, 1:4], atol=1e-3)


def test_call_takes_given_frames_too(pipe):
    frames = noise(seed=5)
    kwargs = {"num_frames": 5, "num_inference_steps": 2, "frame_condition": first_and_last(frames)}
    outs = []
    for method in (pipe.sample_latents, lambda *a, **k: pipe(*a, output_type="latent", **k).frames):
        outs.append(method(PROMPTS, generator=torch.Generator().manual_seed(1), **kwargs))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(outs[1][:, :, 4], frames[:, :, 4])


def test_at_every_step_given_frames_are_at_their_noise_level(pipe):
    """With DDIM they are alpha · frames + sigma · the same noise throughout, as in training."""
    frames, eps = noise(seed=5), noise(seed=6)
    mask = torch.tensor([[True, False, False, True, False], [False, True, False, False, True]])
    kept = mask[:, None, :, None, None].expand_as(frames)
    condition = FrameCondition(frames.masked_fill(~kept, torch.nan), mask)
    kwargs = {"generator": torch.Generator(), "num_inference_steps": 5}
    first = max(step.t for step in pipe.sample_iter(PROMPTS, latents=eps, **kwargs))
    x = add_noise(pipe.scheduler, frames, eps, torch.tensor([first]))
    steps = [
        (step.t, step.x.clone())
        for step in pipe.sample_iter(PROMPTS, latents=x, frame_condition=condition, **kwargs)
    ]
    for (_, out), (t, _) in zip(steps, steps[1:], strict=False):
        expected = add_noise(pipe.scheduler, frames, eps, torch.tensor([t]))
        torch.testing.assert_close(out[kept], expected[kept], atol=1e-5, rtol=0)
        assert out.isfinite().all() and (out - expected)[~kept].abs().max() > 0.1


def test_a_unet_without_conditioning_channels_keeps_frames_by_replacement(system):
    pipe = build_pipeline(system, build_unet(system.unet, frame_conditioning=False))
    frames = noise(seed=5)
    kwargs = {"generator": torch.Generator(), "num_inference_steps": 2}
    out = pipe.sample_latents(PROMPTS, frame_condition=first_and_last(frames), **kwargs)
    torch.testing.assert_close(out[:, :, [0, 4]], frames[:, :, [0, 4]])
    guided = pipe.sample_latents(
        PROMPTS, frame_condition=first_and_last(frames), reconstruction_weight=2.0, **kwargs
    )
    torch.testing.assert_close(guided[:, :, [0, 4]], frames[:, :, [0, 4]])


def test_given_frames_decide_the_size(pipe):
    frames = torch.randn(2, 4, 3, 4, 12, generator=torch.Generator().manual_seed(0))
    condition = FrameCondition(frames, first_frames_mask(3, 1).expand(2, -1))
    out = pipe.sample_latents(
        PROMPTS, frame_condition=condition, num_inference_steps=1, generator=torch.Generator()
    )
    assert out.shape == frames.shape
    torch.testing.assert_close(out[:, :, 0], frames[:, :, 0])


def test_loops_hand_their_arguments_on(pipe, monkeypatch):
    calls = []

    def sample_latents(prompt, *, frame_condition, **kwargs):
        calls.append((list(prompt), kwargs))
        return frame_condition.frames

    monkeypatch.setattr(pipe, "sample_latents", sample_latents)
    pipe.interpolate_keyframes(PROMPTS, noise(f=7), keyframe_spacing=2.0, num_inference_steps=3)
    prompts, kwargs = calls.pop()
    assert prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    torch.testing.assert_close(kwargs.pop("frame_index"), (torch.arange(13) / 2).expand(4, -1))
    defaults = {"negative_prompt": ["", ""], "generator": torch.default_generator}
    expected = {"num_inference_steps": 3, "guidance_scale": COND_FRAMES_GUIDANCE_SCALE}
    assert kwargs == expected | defaults | {"negative_prompt": [""] * 4}
    pipe.extend_autoregressively(
        PROMPTS, noise(f=6), num_frames=7, num_cond_frames=2, guidance_scale=3
    )
    assert calls == [(PROMPTS, {"guidance_scale": 3} | defaults)]


def test_it_runs_in_half_precision_and_samples_stay_in_float32(system, pipe):
    half = build_pipeline(system, copy.deepcopy(pipe.unet), vae=copy.deepcopy(system.vae))
    half.to(torch.bfloat16)
    assert half.encode_prompt(PROMPTS).dtype == torch.bfloat16
    generator, keyframes = torch.Generator().manual_seed(0), noise(f=4)
    kwargs = {"num_inference_steps": 2}
    out = half.interpolate_keyframes(PROMPTS, keyframes, generator=generator, **kwargs)
    expected = pipe.interpolate_keyframes(
        PROMPTS, keyframes, generator=torch.Generator().manual_seed(0), **kwargs
    )
    assert out.shape == (2, 4, 13, 8, 8) and out.dtype == torch.float32
    torch.testing.assert_close(out[:, :, ::4], keyframes)
    assert (out - expected).abs().mean() < 0.1 * expected.abs().mean()
    longer = half.extend_autoregressively(
        PROMPTS, keyframes, num_frames=6, num_cond_frames=2, generator=generator, **kwargs
    )
    assert longer.shape == (2, 4, 6, 8, 8) and longer.isfinite().all()
    video = half.generate(
        PROMPTS, num_frames=2, num_inference_steps=1, generator=generator, temporal_scale=0.5
    )
    assert video.dtype == torch.float32
    cond = {
        "text": torch.zeros(2, 32, 64, dtype=torch.bfloat16),
        "cond_channels": FrameCondition.none(noise()).channels(),
    }
    pred = unet_denoiser(half.unet)(noise(), torch.tensor([3, 4]), cond)
    assert pred.dtype == torch.bfloat16
