"""mini-sd's recipe on untrained parts: its batches, and the folder that it writes."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from course_lib.diffusion import alpha_sigma_at, min_snr_weights
from course_lib.papers.latent_diffusion import build_unet
from course_lib.recipes import mini_sd
from course_lib.recipes.latent_cache import LatentCache
from course_lib.recipes.mini_clip import MAX_TOKENS
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import HELD_OUT_SHAPES, NOVEL_EMOJI

SMALL = TrainConfig(num_steps=3, batch_size=4, lr=1e-3, eval_samples=80)


@pytest.fixture(autouse=True)
def parts(untrained_parts, monkeypatch):
    cache = LatentCache(mini_sd.encode_chunk, chunk_size=8, num_chunks=2)
    monkeypatch.setattr(mini_sd, "CACHE", cache)
    return untrained_parts


def load(folder):
    return StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True
    )


def test_batches_are_pure_and_hide_latents_in_noise():
    batch, again = (mini_sd.make_batch(1, SMALL) for _ in range(2))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["x_t"].shape == (4, 16, 8, 8) and batch["text"].shape == (4, MAX_TOKENS, 128)
    alpha, sigma = alpha_sigma_at(mini_sd.scheduler(), batch["t"]).like(batch["x_t"])
    x0 = alpha * batch["x_t"] - sigma * batch["target"]
    items = mini_sd.CACHE[torch.arange(4, 8)]
    assert ((x0 - items["mean"]).abs() < 6 * items["std"] + 1e-3).all(), (
        "rows 4 to 8, sampled from their posteriors"
    )


def test_rows_have_min_snr_weights():
    batch = mini_sd.make_batch(0, SMALL)
    expected = min_snr_weights(mini_sd.scheduler(), batch["t"], 5.0)
    torch.testing.assert_close(batch["weight"].double(), expected, rtol=1e-6, atol=0)
    assert batch["weight"].unique().numel() == 4


def test_items_come_again_with_other_noise():
    first, later = (mini_sd.make_batch(number, SMALL) for number in (0, 4))  # 16 items: 4 batches
    assert not torch.equal(first["x_t"], later["x_t"])
    assert list(mini_sd.CACHE.chunks) == [0]


def test_captions_are_of_the_base_subset(parts):
    tokens = mini_sd.encode_chunk(range(400))["tokens"]
    tokenizer = parts.text_encoder().tokenizer
    captions = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    assert len(captions) == 400
    held_out = (*NOVEL_EMOJI, *HELD_OUT_SHAPES)
    assert not [text for text in captions if any(name in text for name in held_out)]


def test_a_tenth_of_the_captions_is_dropped(parts):
    null_text = parts.text_encoder()([""])[0]
    rows = torch.cat([mini_sd.make_batch(number, SMALL)["text"] for number in range(100)])
    is_dropped = (rows - null_text).abs().flatten(1).amax(1) < 1e-5
    assert 0.05 < is_dropped.double().mean() < 0.16


def test_the_pipeline_has_the_frozen_parts(parts):
    pipeline = mini_sd.build_pipeline(build_unet())
    assert pipeline.vae is parts.vae
    expected = parts.text_encoder()(["a tiger on a sea background"])
    torch.testing.assert_close(pipeline.encode_prompt(["a tiger on a sea background"]), expected)


def test_the_folder_is_a_pipeline_of_diffusers(tmp_path, parts):
    parts.vae.register_to_config(_name_or_path="somebody/mini-vae")  # as `from_pretrained` does
    mini_sd.save(build_unet(), tmp_path)
    assert not [
        file for file in tmp_path.rglob("*.json") if "somebody" in file.read_text(encoding="utf-8")
    ]
    pipeline = load(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a poodle on a sea background"
    image = pipeline(prompt, num_inference_steps=2, generator=torch.Generator()).images[0]
    assert image.size == (64, 64)
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype == torch.float32
    half = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    weights = [*tmp_path.rglob("*.safetensors")]
    assert sorted(file.parent.name for file in weights) == ["text_encoder", "unet", "vae"]


def test_the_unwrapped_checkpoint_is_the_unet(tmp_path):
    mini_sd.save(build_unet(), tmp_path)
    unet = mini_sd.RECIPE.unwrap_checkpoint(load(tmp_path)).eval()
    assert type(unet) is type(build_unet())
    images = mini_sd.generate(unet, ["a tiger"], torch.Generator())
    assert images.shape == (1, 3, 1, 64, 64)


def test_every_target_is_measured(monkeypatch):
    """With blank images: only the names of the metrics are compared."""

    def blank(model, prompts, generator, guidance_scale=1):
        return torch.zeros(len(prompts), 3, 1, 64, 64)

    monkeypatch.setattr(mini_sd, "generate", blank)
    metrics = mini_sd.evaluate(build_unet(), SMALL)
    assert set(mini_sd.RECIPE.targets) <= set(metrics)


def test_an_image_is_generated_for_each_prompt():
    unet = build_unet().eval().requires_grad_(False)
    images = mini_sd.generate(unet, ["a tiger", ""], torch.Generator())
    assert images.shape == (2, 3, 1, 64, 64) and images.abs().max() <= 1


def test_a_config_is_edited_in_utf_8_and_atomically(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_bytes('{"name": "é"}'.encode())
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    mini_sd._edit_json(file, lambda config: config.update(dtype="float32"))
    assert file.read_bytes().decode() == '{\n  "name": "é",\n  "dtype": "float32"\n}\n'
    file.write_bytes(b"{")
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        mini_sd._edit_json(file, dict)
