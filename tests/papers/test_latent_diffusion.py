"""Latent diffusion against diffusers' own pipeline: the same pictures from the same noise."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from course_lib.papers import latent_diffusion as ld

PROMPTS = ["a tiger on a sea background", "a red star on a snow background"]


@pytest.fixture(scope="module")
def parts(untrained_diffusion):
    return untrained_diffusion()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (4.0, 0.0), (4.0, 0.7)])
def test_it_draws_what_stable_diffusion_draws(untrained_diffusion, prediction_type, scale, rescale):
    parts = untrained_diffusion(prediction_type)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = parts.draw(
        PROMPTS, generator=torch.Generator(), steps=4, scale=scale, rescale=rescale, latents=noise
    )
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 4,
        "guidance_scale": scale,
        "guidance_rescale": rescale,
        "output_type": "pt",
    }
    theirs = pipeline(PROMPTS, latents=noise, **options).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=2e-5, rtol=0)


def test_a_negative_prompt_is_what_it_is_led_away_from(parts):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = parts.draw(
        PROMPTS[:1], negative=PROMPTS[1], generator=torch.Generator(), steps=2, latents=noise
    )
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "pt"}
    theirs = pipeline(PROMPTS[:1], negative_prompt=PROMPTS[1:], latents=noise, **options).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=2e-5, rtol=0)


def test_the_pipeline_travels_and_comes_back_as_the_same_parts(parts, tmp_path):
    parts.pipeline().save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, local_files_only=True
    )
    again = ld.LatentDiffusion.of(loaded)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"generator": torch.Generator(), "steps": 2, "latents": noise}
    torch.testing.assert_close(
        again.draw(PROMPTS[:1], **options), parts.draw(PROMPTS[:1], **options)
    )
    assert isinstance(again.unet, UNet2DConditionModel) and isinstance(again.vae, AutoencoderKL)


def test_one_string_is_not_taken_for_a_list_of_letters(parts):
    with pytest.raises(ValueError, match="prompts: expected a list, got one string, 'a tiger'"):
        parts.draw("a tiger", generator=torch.Generator())


def test_encode_and_decode_use_the_unit_of_the_latents(parts):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = parts.vae.encode(images).latent_dist
    torch.testing.assert_close(ld.encode(parts.vae, images), posterior.mean * 0.4)
    drawn = ld.encode(parts.vae, images, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, posterior.sample(torch.Generator().manual_seed(3)) * 0.4)
    assert drawn.shape == (2, 4, 8, 8)
    expected = parts.vae.decode(posterior.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(ld.decode(parts.vae, posterior.mean * 0.4), expected)


def test_the_autoencoder_takes_any_size_that_its_factor_divides(parts):
    images = torch.zeros(1, 3, 40, 96)
    latents = ld.encode(parts.vae, images)
    assert latents.shape == (1, 4, 5, 12) and ld.decode(parts.vae, latents).shape == images.shape


def test_heads_have_the_width_that_was_asked_for():
    unet = ld.build_unet(4, 8, (32, 96), 32, head_width=16)
    attention = [
        module for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))
    ]
    assert attention and {module.inner_dim // module.heads for module in attention} == {16}


def test_steps_can_be_watched_and_the_generator_decides(parts):
    def drawn(seed):
        return list(parts.steps(PROMPTS, generator=torch.Generator().manual_seed(seed), steps=3))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert [step.step for step in first] == [1, 2, 3] and first[-1].x.shape == (2, 4, 8, 8)
    assert torch.equal(first[-1].x, again[-1].x) and not torch.equal(first[-1].x, other[-1].x)


def test_in_half_precision_only_the_networks_are_not_what_they_add_up_to(untrained_diffusion):
    full, half = untrained_diffusion(), untrained_diffusion()
    for part in (half.vae, half.text_encoder, half.unet):
        part.to(torch.bfloat16)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    runs = [
        [*parts.steps(PROMPTS, generator=torch.Generator(), steps=25, latents=noise)]
        for parts in (full, half)
    ]
    assert {step.x.dtype for step in runs[1]} == {torch.float32}
    spread = (runs[0][-1].x - noise).std()
    assert (runs[1][-1].x - runs[0][-1].x).abs().max() < 0.2 * spread
    assert (
        half.draw(PROMPTS, generator=torch.Generator(), steps=1, latents=noise).dtype
        == torch.float32
    )


def test_compiled_it_draws_the_same(parts, monkeypatch):
    asked, compile = [], torch.compile

    def quickly(call, **options):
        asked.append(options)
        return compile(call, backend="eager")

    monkeypatch.setattr(torch, "compile", quickly)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"generator": torch.Generator(), "steps": 3, "latents": noise}
    compiled = parts.compiled()
    torch.testing.assert_close(
        compiled.draw(PROMPTS, **options), parts.draw(PROMPTS, **options), atol=1e-5, rtol=0
    )
    assert asked == [{"dynamic": False}] and compiled.vae is parts.vae
    assert "forward" not in vars(parts.unet) and compiled.unet.conv_in is parts.unet.conv_in
