"""The pipeline against the image pipeline and against diffusers' video pipelines."""

import copy
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    HeunDiscreteScheduler,
    MotionAdapter,
    UNet3DConditionModel,
)
from PIL import Image
from torch import nn

from course_lib.nn.convert_diffusers import to_motion_model, to_unet3d
from course_lib.nn.inflate import inflate
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.papers import vdm
from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines.frame_condition import FrameCondition
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.pipelines.text_to_video import TextToVideoPipeline
from course_lib.pipelines.unet_adapter import temporal_guidance, unet_denoiser
from tests.nn.inflated import randomize_temporal
from tests.pipelines.small import PROMPTS, build_pipeline, noise


def last_sample(pipe, prompts=PROMPTS, **kwargs):
    *_, last = pipe.sample_iter(prompts, generator=torch.Generator(), **kwargs)
    return last.x


@pytest.mark.parametrize(("text", "frames"), [(True, True), (False, False)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_at_initialisation_it_gives_the_image_models_images(system, text, frames, scale):
    unet = build_unet(system.unet, temporal_cross_attention=text, frame_conditioning=frames)
    x, kwargs = noise(), {"num_inference_steps": 3, "guidance_scale": scale}
    out = last_sample(build_pipeline(system, unet), latents=x, **kwargs)
    for k in range(x.shape[2]):
        *_, expected = system.sample_iter(
            PROMPTS, latents=x[:, :, k], generator=torch.Generator(), **kwargs
        )
        torch.testing.assert_close(out[:, :, k], expected.x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_equals_diffusers_animatediff_pipeline(system, scale):
    ours = randomize_temporal(inflate(system.unet, "animatediff", num_heads=4, num_frames=8))
    theirs, x = to_motion_model(ours), noise()
    adapter = MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1)  # unused
    parts = (system.vae, system.text_encoder, system.tokenizer, theirs, adapter, system.scheduler)
    peer = AnimateDiffPipeline(*parts)
    peer.set_progress_bar_config(disable=True)
    kwargs = {"num_inference_steps": 3, "guidance_scale": scale, "num_frames": 5}
    expected = {
        kind: peer(
            PROMPTS, negative_prompt=["a boat"] * 2, latents=x.clone(), output_type=kind, **kwargs
        ).frames
        for kind in ("latent", "np")
    }
    for unet, negative in ((ours, "a boat"), (theirs, ["a boat"] * 2)):
        pipe = build_pipeline(system, unet)
        call = {"negative_prompt": negative, "latents": x, **kwargs}
        latents = pipe(PROMPTS, output_type="latent", **call).frames
        torch.testing.assert_close(latents, expected["latent"], atol=2e-5, rtol=0)
        frames = pipe(PROMPTS, output_type="np", **call).frames
        np.testing.assert_allclose(frames, expected["np"], atol=2e-5)


def test_it_takes_diffusers_unet3d(system):
    ours, x = randomize_temporal(inflate(system.unet, "modelscope")), noise()
    theirs = to_unet3d(ours)
    assert isinstance(theirs, UNet3DConditionModel)
    kwargs = {"latents": x, "num_inference_steps": 2, "output_type": "latent"}
    outs = [build_pipeline(system, unet)(PROMPTS, **kwargs).frames for unet in (ours, theirs)]
    torch.testing.assert_close(*outs, atol=2e-5, rtol=0)


def test_it_takes_a_unet_on_pixels(system):
    """VDM without a VAE: text, frames per second, and a size that has to be given."""
    torch.manual_seed(0)
    unet = vdm.build_unet(2 * 32, block_out_channels=(32, 32))
    scheduler = vdm.build_scheduler()
    pipe = build_pipeline(system, unet, vae=None, scheduler=scheduler)
    kwargs = {"num_frames": 3, "num_inference_steps": 2, "fps": 8}
    generator = torch.Generator().manual_seed(0)
    video = pipe.generate(
        PROMPTS, height=16, width=24, generator=generator, temporal_guidance_scale=2.0, **kwargs
    )
    assert video.shape == (2, 3, 3, 16, 24) and video.abs().max() <= 1
    frames = pipe(PROMPTS, height=16, width=16, output_type="np", **kwargs).frames
    assert frames.shape == (2, 3, 16, 16, 3)
    with pytest.raises(ValueError, match="height: expected pixels, since the U-Net has no"):
        pipe.generate(PROMPTS, **kwargs)


def test_temporal_scale_leads_from_images_to_videos(system, pipe):
    x = noise()

    def generate(**kwargs):
        return last_sample(pipe, latents=x, num_inference_steps=2, **kwargs)

    images, half, videos = (generate(temporal_scale=scale) for scale in (0, 0.5, 1.0))
    *_, expected = system.sample_iter(
        PROMPTS,
        latents=x[:, :, 1],
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator(),
    )
    torch.testing.assert_close(images[:, :, 1], expected.x, atol=1e-5, rtol=0)
    torch.testing.assert_close(videos, generate())
    assert not torch.allclose(half, videos, atol=1e-3)
    assert not torch.allclose(half, images, atol=1e-3)


def test_temporal_guidance_at_low_noise(system, pipe):
    x = noise()

    def steps(**kwargs):
        generator = torch.Generator()
        kwargs = {"latents": x, "num_inference_steps": 3, "generator": generator, **kwargs}
        return [step.x for step in pipe.sample_iter(PROMPTS, **kwargs)]

    cond = {"text": pipe.encode_prompt(PROMPTS), "cond_channels": FrameCondition.none(x).channels()}
    t = torch.full((len(x),), 300)
    model = unet_denoiser(pipe.unet)
    spatial_model = unet_denoiser(pipe.unet, temporal_scale=0)
    with torch.no_grad():
        images = [
            pipe.unet.spatial(x[:, :, k], t, system.encode_prompt(PROMPTS)).sample
            for k in range(x.shape[2])
        ]
        spatial = torch.stack(images, dim=2)
        full = pipe.unet(x, t, cond["text"], cond_channels=cond["cond_channels"]).sample
        guided = temporal_guidance(model, 3, spatial_model)(x, t, cond)
        torch.testing.assert_close(guided, spatial + 3 * (full - spatial), atol=1e-4, rtol=0)
        torch.testing.assert_close(temporal_guidance(model, 1, spatial_model)(x, t, cond), full)
    plain = steps()
    never = steps(temporal_guidance_scale=2, temporal_guidance_below=0)
    late = steps(temporal_guidance_scale=2, temporal_guidance_below=500)
    always = steps(temporal_guidance_scale=1, temporal_guidance_below=1001)
    torch.testing.assert_close(never[-1], plain[-1])
    torch.testing.assert_close(late[0], plain[0])  # text guidance at t = 999, no longer at 333
    assert not torch.allclose(late[-1], plain[-1], atol=1e-3)
    torch.testing.assert_close(always[-1], steps(guidance_scale=1)[-1])
    with pytest.raises(ValueError, match="temporal_guidance_scale: .* at least 0, got -1"):
        steps(temporal_guidance_scale=-1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temporal_scale": 0.5}, "temporal_scale: this UNetMotionModel does not take it"),
        (
            {"temporal_guidance_scale": 2},
            "temporal_guidance_scale: expected None, since UNetMotion",
        ),
        ({"fps": 8}, "fps: this UNetMotionModel does not take it"),
        ({"frame_index": torch.arange(5.0).expand(2, -1)}, "frame_index: this UNetMotionModel"),
    ],
)
def test_inputs_that_a_unet_does_not_take_are_refused(system, kwargs, message):
    unet = to_motion_model(inflate(system.unet, "animatediff", num_heads=4, num_frames=8))
    pipe = build_pipeline(system, unet)
    with pytest.raises(ValueError, match=message):
        pipe.sample_iter(PROMPTS, latents=noise(), generator=torch.Generator(), **kwargs)


def test_temporal_layers_read_token_embeddings_too(system, pipe):
    encoder = TextEncoder(system.text_encoder, system.tokenizer, token_embeddings=True)
    torch.testing.assert_close(pipe.encode_prompt(PROMPTS), encoder(PROMPTS))
    unet = build_unet(system.unet, temporal_cross_attention=False)
    plain = build_pipeline(system, unet).encode_prompt(PROMPTS)
    torch.testing.assert_close(plain, system.encode_prompt(PROMPTS))
    torch.testing.assert_close(pipe.encode_prompt(PROMPTS)[..., :32], plain)


def test_output_types(pipe):
    kwargs = {"num_frames": 3, "num_inference_steps": 1}

    def frames(kind, **more):
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPTS, output_type=kind, generator=generator, **kwargs | more).frames

    tensor, array, images = frames("pt"), frames("np"), frames("pil")
    assert tensor.shape == (2, 3, 3, 64, 64) and array.shape == (2, 3, 64, 64, 3)
    assert 0 <= tensor.min() < tensor.max() <= 1
    np.testing.assert_allclose(tensor.permute(0, 1, 3, 4, 2).numpy(), array, atol=1e-6)
    assert [len(video) for video in images] == [3, 3]
    assert all(isinstance(image, Image.Image) for image in images[0])
    np.testing.assert_allclose(np.asarray(images[1][2]) / 255, array[1, 2], atol=0.5 / 255 + 1e-6)
    latents = frames("latent")
    assert latents.shape == (2, 4, 3, 8, 8)
    decoded = pipe.decode_latents(latents).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(decoded, tensor, atol=1e-5, rtol=0)
    assert frames("latent", height=40, width=96).shape == (2, 4, 3, 5, 12)
    video = pipe.generate(PROMPTS, generator=torch.Generator().manual_seed(0), **kwargs)
    torch.testing.assert_close(video.transpose(1, 2) / 2 + 0.5, tensor, atol=1e-5, rtol=0)
    single = pipe(PROMPTS[0], output_type="latent", return_dict=False, **kwargs)
    assert isinstance(single, tuple) and single[0].shape == (1, 4, 3, 8, 8)


def test_videos_per_prompt_and_generators(pipe):
    """Order a, a, b, b; video i is what its generator alone gives; None is the empty prompt."""
    kwargs = {"num_frames": 2, "num_inference_steps": 2}

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    videos = pipe.sample_latents(PROMPTS, num_videos_per_prompt=2, generator=generators(), **kwargs)
    assert len(videos) == 4
    for row, generator in enumerate(generators()):
        single = pipe.sample_latents(PROMPTS[row // 2], generator=generator, **kwargs)
        torch.testing.assert_close(videos[row : row + 1], single, atol=1e-5, rtol=0)
    outs = [
        pipe.sample_latents(
            PROMPTS, negative_prompt=negative, generator=torch.Generator().manual_seed(0), **kwargs
        )
        for negative in (None, "", ["", ""])
    ]
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])


def test_guidance_scale_may_differ_between_frames(pipe):
    """A scale for each frame: the first step's frames are those of their own scalar scale."""
    x = noise(f=3)

    def first_step(scale):
        steps = pipe.sample_iter(
            PROMPTS,
            latents=x,
            num_inference_steps=2,
            guidance_scale=scale,
            generator=torch.Generator(),
        )
        return next(iter(steps)).x

    scales = torch.tensor([1.0, 2.0, 5.0])
    out = first_step(scales[:, None, None])
    for k, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(out[:, :, k], first_step(scale)[:, :, k], atol=1e-4, rtol=0)


def test_a_callback_sees_every_step_and_may_replace_the_latents(pipe):
    x, calls = noise(), []

    def record(pipe, index, t, tensors):
        calls.append((index, t, tensors["latents"].clone()))

    kwargs = {"latents": x, "num_inference_steps": 3, "output_type": "latent"}
    plain = pipe(PROMPTS, callback_on_step_end=record, **kwargs).frames
    steps = list(
        pipe.sample_iter(PROMPTS, latents=x, num_inference_steps=3, generator=torch.Generator())
    )
    assert [index for index, _, _ in calls] == [0, 1, 2]
    assert [t for _, t, _ in calls] == [step.t for step in steps]
    latents = torch.stack([latents for *_, latents in calls])
    torch.testing.assert_close(latents, torch.stack([step.x for step in steps]))
    torch.testing.assert_close(plain, calls[-1][2])

    def flip_last(pipe, index, t, tensors):
        return {"latents": tensors["latents"].flip(0)} if index == 2 else {}

    def zero_first(pipe, index, t, tensors):
        return {"latents": tensors["latents"] * 0} if index == 0 else None

    flipped = pipe(PROMPTS, callback_on_step_end=flip_last, **kwargs).frames
    torch.testing.assert_close(flipped, plain.flip(0))
    assert not torch.allclose(
        pipe(PROMPTS, callback_on_step_end=zero_first, **kwargs).frames, plain
    )

    def one_frame(pipe, index, t, tensors):
        return {"latents": tensors["latents"][:, :, :1]}

    with pytest.raises(ValueError, match="on_step"):
        pipe(PROMPTS, callback_on_step_end=one_frame, **kwargs)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_progress_bar_counts_the_schedulers_steps(system, pipe, capsys):
    heun = HeunDiscreteScheduler.from_config(system.scheduler.config)
    other = build_pipeline(system, copy.deepcopy(pipe.unet), scheduler=heun)
    other.set_progress_bar_config(disable=False)
    other(PROMPTS, num_frames=2, num_inference_steps=3, output_type="latent")
    assert "5/5" in capsys.readouterr().err


def test_a_temporal_decoder_may_take_the_place_of_the_vae(system, pipe):
    decoder, latents = inflate_decoder(system.vae), noise()
    other = build_pipeline(system, copy.deepcopy(pipe.unet), vae=decoder)
    expected = pipe.decode_latents(latents)
    torch.testing.assert_close(other.decode_latents(latents), expected, atol=1e-6, rtol=0)
    for parameter in decoder.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(other.decode_latents(latents), expected, atol=1e-3)


def test_save_pretrained_round_trip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = TextToVideoPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    kwargs = {"latents": noise(), "num_inference_steps": 2, "output_type": "latent"}
    torch.testing.assert_close(loaded(PROMPTS, **kwargs).frames, pipe(PROMPTS, **kwargs).frames)


def test_an_image_pipeline_gives_its_parts(system, pipe):
    image_pipeline = system.to_pipeline()
    other = TextToVideoPipeline.from_image_pipeline(image_pipeline, pipe.unet)
    assert other.vae is system.vae and other.unet is pipe.unet
    assert other.scheduler is image_pipeline.scheduler
    scheduler = copy.deepcopy(system.scheduler)
    other = TextToVideoPipeline.from_image_pipeline(image_pipeline, pipe.unet, scheduler)
    assert other.scheduler is scheduler


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_type": "gif"}, "output_type: expected one of pil, np, pt, latent, got 'gif'"),
        ({"height": 36}, "height: expected a multiple of 8 pixels, got 36"),
        ({"width": 0}, "width: expected an integer of at least 1, got 0"),
        ({"num_frames": 0}, "num_frames: expected an integer of at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected"),
        (
            {"negative_prompt": ["a boat"] * 3},
            "negative_prompt: expected one, or one for each of 2",
        ),
        ({"generator": [torch.Generator()] * 3}, "generator: expected one, or one for each of 2"),
    ],
)
def test_bad_input_is_refused(pipe, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe(PROMPTS, **kwargs)
