"""Latent diffusion against diffusers' own pipeline: the same images from the same noise."""

import inspect
from math import inf, nan

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from course_lib.papers.latent_diffusion import LatentDiffusion, build_unet
from course_lib.pipelines.text_encoder import TextEncoder

PROMPTS = ["a tiger on a sea background", "a red star on a snow background"]


@pytest.fixture(scope="module")
def system(untrained_diffusion):
    return untrained_diffusion()


def noise(b=2):
    return torch.randn(b, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def quiet_pipeline(system):
    pipeline = system.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (4.0, 0.0), (4.0, 0.7)])
def test_equals_stable_diffusion_pipeline(untrained_diffusion, prediction_type, scale, rescale):
    system = untrained_diffusion(prediction_type)
    kwargs = {
        "num_inference_steps": 4,
        "guidance_scale": scale,
        "guidance_rescale": rescale,
        "latents": noise(),
    }
    images = system.generate(PROMPTS, generator=torch.Generator(), **kwargs)
    expected = quiet_pipeline(system)(PROMPTS, output_type="pt", **kwargs).images
    torch.testing.assert_close(images / 2 + 0.5, expected, atol=2e-5, rtol=0)


def test_negative_prompt_equals_stable_diffusion_pipeline(system):
    kwargs = {"num_inference_steps": 2, "guidance_scale": 5.0, "latents": noise(1)}
    images = system.generate(
        PROMPTS[:1], negative_prompt=PROMPTS[1], generator=torch.Generator(), **kwargs
    )
    pipeline = quiet_pipeline(system)
    expected = pipeline(PROMPTS[:1], negative_prompt=PROMPTS[1:], output_type="pt", **kwargs).images
    torch.testing.assert_close(images / 2 + 0.5, expected, atol=2e-5, rtol=0)


def test_pipeline_round_trip_gives_the_same_parts(system, tmp_path):
    system.to_pipeline().save_pretrained(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, local_files_only=True
    )
    loaded = LatentDiffusion.from_pipeline(pipeline)
    kwargs = {"generator": torch.Generator(), "num_inference_steps": 2, "latents": noise(1)}
    expected = system.generate(PROMPTS[:1], **kwargs)
    torch.testing.assert_close(loaded.generate(PROMPTS[:1], **kwargs), expected)
    assert isinstance(loaded.unet, UNet2DConditionModel) and isinstance(loaded.vae, AutoencoderKL)


def test_one_string_is_not_a_list_of_letters(system):
    with pytest.raises(ValueError, match="prompts: expected a list, got one string, 'a tiger'"):
        system.generate("a tiger", generator=torch.Generator())


def test_heads_have_the_given_dim():
    unet = build_unet(4, 8, (32, 96), 32, head_dim=16)
    names = ("attn1", "attn2")
    attention = [layer for name, layer in unet.named_modules() if name.endswith(names)]
    assert attention and {layer.inner_dim // layer.heads for layer in attention} == {16}


def test_sampling_yields_every_step_and_depends_on_the_generator(system):
    def steps(seed):
        generator = torch.Generator().manual_seed(seed)
        return list(system.sample_iter(PROMPTS, generator=generator, num_inference_steps=3))

    first, again, other = steps(0), steps(0), steps(1)
    assert [step.index for step in first] == [1, 2, 3] and first[-1].x.shape == (2, 4, 8, 8)
    assert torch.equal(first[-1].x, again[-1].x) and not torch.equal(first[-1].x, other[-1].x)


def test_in_half_precision_samples_stay_in_float32(untrained_diffusion):
    full, half = untrained_diffusion(), untrained_diffusion()
    for part in (half.vae, half.text_encoder, half.unet):
        part.to(torch.bfloat16)
    kwargs = {"generator": torch.Generator(), "latents": noise()}
    runs = [[*system.sample_iter(PROMPTS, **kwargs)] for system in (full, half)]
    assert {step.x.dtype for step in runs[1]} == {torch.float32}
    spread = (runs[0][-1].x - noise()).std()
    assert (runs[1][-1].x - runs[0][-1].x).abs().max() < 0.2 * spread
    assert half.generate(PROMPTS, num_inference_steps=1, **kwargs).dtype == torch.float32


def test_compiled_unet_gives_the_same_images(system, monkeypatch):
    calls, compile = [], torch.compile

    def eager_compile(call, **options):
        calls.append(options)
        return compile(call, backend="eager")

    monkeypatch.setattr(torch, "compile", eager_compile)
    kwargs = {"generator": torch.Generator(), "num_inference_steps": 3, "latents": noise()}
    compiled = system.compile()
    expected = system.generate(PROMPTS, **kwargs)
    torch.testing.assert_close(compiled.generate(PROMPTS, **kwargs), expected, atol=1e-5, rtol=0)
    assert calls == [{"dynamic": False}] and compiled.vae is system.vae
    assert "forward" not in vars(system.unet) and compiled.unet.conv_in is system.unet.conv_in


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("prompts", "kwargs", "message"),
    [
        ([], {}, "prompts: expected one or more strings, got an empty list"),
        (["a tiger", None], {}, "prompts: expected one or more strings, got None"),
        (None, {}, "prompts: expected one or more strings, got None"),
        (PROMPTS, {"latents": noise(1)}, "latents: expected 2 rows, one for each prompt, got 1"),
        (PROMPTS, {"latents": noise(3)}, "latents: expected 2 rows, one for each prompt, got 3"),
        (PROMPTS, {"latents": noise()[0]}, "latents: expected .* needs a batch axis"),
        (PROMPTS, {"latents": noise().int()}, "latents: expected floating point"),
        (PROMPTS, {"latents": noise()[:, :3]}, "latents: expected 4 channels"),
        (PROMPTS, {"latents": noise() / 0}, "latents: expected finite values"),
        (PROMPTS, {"negative_prompt": [""] * 3}, "negative_prompt: expected one, or one for each"),
        (PROMPTS, {"negative_prompt": ["", None]}, "negative_prompt: expected one or more strings"),
        (PROMPTS, {"generator": [GENERATOR]}, "generator: expected one, or a list of 2"),
        (PROMPTS, {"num_inference_steps": 0}, "num_inference_steps: expected an integer"),
        *[(PROMPTS, {"guidance_scale": x}, "guidance_scale: expected") for x in (nan, inf, -1)],
        *[(PROMPTS, {"guidance_rescale": x}, "guidance_rescale: expected") for x in (nan, 2)],
    ],
)
def test_bad_input_is_refused(system, prompts, kwargs, message):
    sample_iter = inspect.unwrap(LatentDiffusion.sample_iter)
    with pytest.raises(ValueError, match=f"^{message}"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LatentDiffusion, "encode_prompt", inspect.unwrap(system.encode_prompt.__func__)
        )
        patch.setattr(TextEncoder, "__call__", inspect.unwrap(TextEncoder.__call__))
        patch.setattr(TextEncoder, "tokenize", inspect.unwrap(TextEncoder.tokenize))
        sample_iter(system, prompts, **{"generator": GENERATOR} | kwargs)


def test_negative_prompts_and_generators_as_in_the_video_pipeline(system):
    kwargs = {"num_inference_steps": 2, "guidance_scale": 5.0}
    options = {"latents": noise(), "generator": GENERATOR, **kwargs}
    expected = system.generate(PROMPTS, negative_prompt="", **options)
    assert torch.equal(system.generate(PROMPTS, negative_prompt=None, **options), expected)
    for kind in (tuple, iter, np.array):
        out = system.generate(kind(PROMPTS), negative_prompt=kind(["", ""]), **options)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    negatives = ["a red star", "a tiger"]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    out = system.generate(PROMPTS, negative_prompt=negatives, generator=generators, **kwargs)
    for row in range(2):
        single = system.generate(
            [PROMPTS[row]],
            negative_prompt=negatives[row],
            generator=torch.Generator().manual_seed(row),
            **kwargs,
        )
        torch.testing.assert_close(out[row : row + 1], single, atol=1e-5, rtol=0)
