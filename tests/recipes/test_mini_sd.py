"""mini-sd's recipe on untrained parts: what it learns from, and the folder that it leaves."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel

from course_lib.diffusion import level_at, min_snr_weights
from course_lib.papers.latent_diffusion import build_autoencoder, build_unet
from course_lib.recipes import mini_clip, mini_sd
from course_lib.recipes.recipe import Settings
from course_lib.world import HELD_OUT_SHAPES, NOVEL_EMOJI

SMALL = Settings(steps=3, batch=4, lr=1e-3)


real_tower = mini_sd.text_tower


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    torch.manual_seed(0)
    vae = build_autoencoder().eval().requires_grad_(False)
    tower = CLIPTextModel(mini_clip.build().config.text_config).eval().requires_grad_(False)
    monkeypatch.setattr(mini_sd, "vae", lambda: vae)
    monkeypatch.setattr(mini_sd, "text_tower", lambda: tower)
    monkeypatch.setattr(mini_sd, "CHUNK", 8)
    monkeypatch.setattr(mini_sd, "CHUNKS", 2)
    mini_sd.chunk.cache_clear()
    yield vae, tower
    mini_sd.chunk.cache_clear()


def test_batches_are_pure_and_hide_latents_in_noise(untrained):
    vae, _ = untrained
    one, again = (mini_sd.batches(1, SMALL) for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["x_t"].shape == (4, 16, 8, 8) and one["text"].shape == (4, mini_clip.TOKENS, 128)
    signal, noise = level_at(mini_sd.SCHEDULE, one["t"]).beside(one["x_t"])
    hidden = signal * one["x_t"] - noise * one["target"]
    mean, std, _ = mini_sd.chunk(0)
    assert ((hidden - mean[4:8]).abs() < 6 * std[4:8] + 1e-3).all(), (
        "rows 4 to 8, drawn from their posteriors"
    )


def test_examples_are_weighed_by_min_snr():
    batch = mini_sd.batches(0, SMALL)
    expected = min_snr_weights(mini_sd.SCHEDULE, batch["t"], 5.0)
    torch.testing.assert_close(batch["weight"].double(), expected, rtol=1e-6, atol=0)
    assert batch["weight"].unique().numel() == 4


def test_chunks_come_round_again_with_other_noise():
    first, later = (
        mini_sd.batches(0, SMALL),
        mini_sd.batches(4, SMALL),
    )  # 2 chunks of 8 are 4 batches of 4
    assert not torch.equal(first["x_t"], later["x_t"])
    assert mini_sd.chunk.cache_info().currsize == 1


def test_it_learns_from_nothing_that_generators_may_not_see(monkeypatch):
    tokenizer = mini_clip.build_tokenizer()
    monkeypatch.setattr(mini_sd, "CHUNK", 400)
    captions = [tokenizer.decode(row, skip_special_tokens=True) for row in mini_sd.chunk(0)[2]]
    assert len(captions) == 400 and not [
        text for text in captions if any(name in text for name in (*NOVEL_EMOJI, *HELD_OUT_SHAPES))
    ]


def test_some_captions_are_forgotten(untrained):
    _, tower = untrained
    empty = tower(mini_clip.tokenize([""])).last_hidden_state[0]
    rows = torch.cat([mini_sd.batches(number, SMALL)["text"] for number in range(100)])
    forgotten = (rows - empty).abs().flatten(1).amax(1) < 1e-5
    assert 0.05 < forgotten.double().mean() < 0.16


def test_the_tower_is_the_text_half_of_mini_clip(monkeypatch):
    torch.manual_seed(3)
    clip = mini_clip.build().eval()
    monkeypatch.setattr(mini_sd.zoo, "load", lambda name: clip)
    tokens = mini_clip.tokenize(["a tiger on a sea background"])
    with torch.no_grad():
        ours, theirs = real_tower.__wrapped__()(tokens), clip.text_model(tokens)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state)


def test_the_folder_is_a_pipeline_that_draws(tmp_path, untrained):
    untrained[0].register_to_config(_name_or_path="somebody/mini-vae")  # as `from_pretrained` does
    mini_sd.save(build_unet(), tmp_path)
    assert not [file for file in tmp_path.rglob("*.json") if "somebody" in file.read_text()]
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a poodle on a sea background", num_inference_steps=2, generator=torch.Generator()
    ).images[0]
    assert picture.size == (64, 64)
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype == torch.float32
    half = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    weights = [*tmp_path.rglob("*.safetensors")]
    assert sorted(file.parent.name for file in weights) == ["text_encoder", "unet", "vae"]


def test_what_is_measured_again_is_the_unet(tmp_path):
    unet = build_unet()
    mini_sd.save(unet, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, local_files_only=True
    )
    trained = mini_sd.RECIPE.trained(pipeline)
    assert type(trained) is type(unet) and mini_sd.draw(
        trained.eval(), ["a tiger"], seed=0
    ).shape == (1, 3, 1, 64, 64)


def test_every_bar_is_measured(monkeypatch):
    """With pictures that nobody drew: it is the names that are compared."""
    blank = lambda model, prompts, seed, scale=1: torch.zeros(len(prompts), 3, 1, 64, 64)  # noqa: E731
    monkeypatch.setattr(mini_sd, "draw", blank)
    found = mini_sd.evaluate(build_unet(), SMALL)
    assert set(mini_sd.RECIPE.bars) <= set(found)


def test_pictures_are_drawn_one_for_each_prompt():
    unet = build_unet().eval().requires_grad_(False)
    pictures = mini_sd.draw(unet, ["a tiger", ""], seed=0)
    assert pictures.shape == (2, 3, 1, 64, 64) and pictures.abs().max() <= 1
