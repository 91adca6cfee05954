"""Latent diffusion against diffusers' own pipeline: the same pictures from the same noise."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from course_lib.papers import latent_diffusion as ld
from course_lib.recipes.mini_clip import build_tokenizer

PROMPTS = ["a tiger on a sea background", "a red star on a snow background"]


def tiny(prediction_type="v_prediction", text_width=32):
    """All parts, untrained and small; the weights of the U-Net's last layer are not zero, so that text matters."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        hidden_size=text_width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **ids,
    )  # fmt: skip
    parts = ld.LatentDiffusion(
        vae=ld.build_autoencoder((8, 8, 8, 8), 4),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=ld.build_unet(4, 8, (32, 64), text_width),
        scheduler=ld.build_schedule(prediction_type),
    )
    parts.vae.register_to_config(scaling_factor=0.4)
    for part in (parts.vae, parts.text_encoder, parts.unet):
        part.eval().requires_grad_(False)
    return parts


@pytest.fixture(scope="module")
def parts():
    return tiny()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (4.0, 0.0), (4.0, 0.7)])
def test_it_draws_what_stable_diffusion_draws(prediction_type, scale, rescale):
    parts = tiny(prediction_type)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = parts.draw(PROMPTS, generator=torch.Generator(), steps=4, scale=scale, rescale=rescale, latents=noise)
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": scale, "guidance_rescale": rescale, "output_type": "pt"}
    theirs = pipeline(PROMPTS, latents=noise, **options).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=2e-5, rtol=0)


def test_a_negative_prompt_is_what_it_is_led_away_from(parts):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = parts.draw(PROMPTS[:1], negative=PROMPTS[1], generator=torch.Generator(), steps=2, latents=noise)
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "pt"}
    theirs = pipeline(PROMPTS[:1], negative_prompt=PROMPTS[1:], latents=noise, **options).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=2e-5, rtol=0)


def test_the_pipeline_travels_and_comes_back_as_the_same_parts(parts, tmp_path):
    parts.pipeline().save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, local_files_only=True)
    again = ld.LatentDiffusion.of(loaded)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"generator": torch.Generator(), "steps": 2, "latents": noise}
    torch.testing.assert_close(again.draw(PROMPTS[:1], **options), parts.draw(PROMPTS[:1], **options))
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
    attention = [module for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))]
    assert attention and {module.inner_dim // module.heads for module in attention} == {16}


def test_steps_can_be_watched_and_the_generator_decides(parts):
    def drawn(seed):
        return list(parts.steps(PROMPTS, generator=torch.Generator().manual_seed(seed), steps=3))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert [step.step for step in first] == [1, 2, 3] and first[-1].x.shape == (2, 4, 8, 8)
    assert torch.equal(first[-1].x, again[-1].x) and not torch.equal(first[-1].x, other[-1].x)
