"""vdm's recipe: its batches, its base subset, its clips, and its metrics."""

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib import zoo
from course_lib.diffusion import alpha_sigma_at
from course_lib.nn.unet import VideoUNet
from course_lib.papers.vdm import build_unet
from course_lib.recipes import vdm
from course_lib.recipes.curriculum import FRAME_RATES
from course_lib.recipes.latent_cache import LatentCache
from course_lib.recipes.mini_clip import tokenize
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import SUBJECTS_24, Sampler, World, render, subset_of

EXTRA = {"image_steps": 2, "images_per_step": 3, "strided_steps": 2}
SMALL = TrainConfig(num_steps=3, batch_size=2, lr=1e-3, eval_samples=16, extra=EXTRA)


def use_cache(monkeypatch, chunk_size):
    cache = LatentCache(vdm.render_chunk, chunk_size, num_chunks=2)
    monkeypatch.setattr(vdm, "CACHE", cache)


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    """Two chunks of twelve clips."""
    use_cache(monkeypatch, 12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_unet(block_out_channels=(32, 32)).eval().requires_grad_(False)


def sampler():
    return Sampler("train", seed=61, **vdm.WORLD_KWARGS)


def all_clips():
    return vdm._to_float(vdm.CACHE[torch.arange(24)]["video"])


def clean(batch):
    """x0 = alpha x_t - sigma v."""
    alpha, sigma = alpha_sigma_at(vdm.scheduler(), batch["t"]).like(batch["x_t"])
    return alpha * batch["x_t"] - sigma * batch["target"]


def test_a_chunk_holds_its_scenes_at_their_rates_with_their_captions():
    clips = vdm.CACHE.chunk(1)
    assert clips["video"].shape == (12, 3, 16, 32, 32) and clips["video"].dtype == torch.uint8
    for row in (0, 4, 5, 11):
        fps = FRAME_RATES[row % 6]
        clip = render([sampler()(12 + row)], size=32, fps=fps, random_time_offset=True)
        assert clips["fps"][row] == fps
        assert (vdm._to_float(clips["video"][row]) - clip.video[0]).abs().max() <= 1 / 127
        assert torch.equal(clips["tokens"][row], tokenize(clip.paraphrases)[0])
        assert torch.equal(clips["image_tokens"][row], tokenize(clip.image_paraphrases)[0])


def test_it_is_trained_on_24_subjects_of_the_base_subset():
    scenes = [sampler()(index) for index in range(200)]
    assert all(subset_of(scene.subject, scene.motion) == "base" for scene in scenes)
    assert all(scene.subject in SUBJECTS_24 for scene in scenes)
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_images_come_first():
    batch = vdm.make_batch(1, SMALL)
    assert set(batch) == {"x_t", "t", "target", "weight", "text"}
    assert batch["x_t"].shape == (3, 3, 1, 32, 32) and batch["text"].shape == (3, 32, 256)
    for row, image in enumerate(clean(batch)[:, :, 0], start=3):  # a frame of clip 3, 4 and 5
        frames = all_clips()[row].transpose(0, 1)
        assert (frames - image).abs().amax(dim=(1, 2, 3)).min() < 1e-3


def test_then_come_strided_clips():
    batch = vdm.make_batch(3, SMALL)
    assert batch["x_t"].shape == (8, 3, 4, 32, 32) and batch["text"].shape == (8, 32, 256)
    assert batch["fps"].tolist() == [8] * 8
    index = batch["frame_index"][0]
    assert index.diff().tolist() == [4, 4, 4] and (batch["frame_index"] == index).all()
    rows = [row for row in range(24) if row % 6 < 4][8:]  # the second batch of those with 8 fps
    torch.testing.assert_close(clean(batch), all_clips()[rows][:, :, index], atol=2e-3, rtol=0)


def test_then_come_full_clips_with_images_appended():
    batch = vdm.make_batch(4, SMALL)
    assert batch["x_t"].shape == (2, 3, 20, 32, 32) and batch["text"].shape == (2, 20, 32, 256)
    assert batch["is_image"].tolist() == [[False] * 16 + [True] * 4] * 2
    video = all_clips()
    spinning = next(row for row in range(24) if sampler()(row).motion == "spinning")
    x0 = clean(batch)
    torch.testing.assert_close(x0[:, :, :16], video[[spinning, 0]], atol=1e-3, rtol=0)
    assert batch["fps"].tolist() == [FRAME_RATES[spinning % 6], 8]
    frames = video.transpose(1, 2).flatten(0, 1)
    for image in x0[:, :, 16:].transpose(1, 2).flatten(0, 1):
        assert (frames - image).abs().amax(dim=(1, 2, 3)).min() < 1e-3


def test_timesteps_are_of_high_noise_or_every_second_of_low_noise():
    generator = torch.Generator().manual_seed(0)
    high, mixed = (
        vdm.sample_timesteps(20_000, generator, high_noise) / 1000 for high_noise in (True, False)
    )
    for t, mean, std in (
        (high, 3 / 4, 0.194),
        (mixed[::2], 1 / 2, 0.289),
        (mixed[1::2], 1 / 4, 0.194),
    ):
        assert t.mean().item() == pytest.approx(mean, abs=0.01)
        assert t.std().item() == pytest.approx(std, abs=0.01)


def test_images_and_full_clips_have_low_noise_and_strided_clips_high_noise(monkeypatch):
    calls, sample_timesteps = [], vdm.sample_timesteps

    def spy(num_samples, generator, high_noise=False):
        calls.append((num_samples, high_noise))
        return sample_timesteps(num_samples, generator, high_noise)

    monkeypatch.setattr(vdm, "sample_timesteps", spy)
    for number in (1, 2, 4):
        vdm.make_batch(number, SMALL)
    assert calls == [(3, False), (8, True), (1, False)]  # one of two full clips has a hard motion


def test_hard_motions_have_their_share_and_their_timesteps(monkeypatch):
    use_cache(monkeypatch, 60)  # 24 clips have none that bounces
    generator = torch.Generator().manual_seed(0)
    batches = [vdm.sample_hard_motions(index, 16, generator) for index in range(200)]
    scene_of = sampler()
    for rows, _ in batches:
        motions = [scene_of(row).motion for row in rows.tolist()]
        assert motions[:5] == ["spinning"] * 5 and motions[5:9] == ["bouncing"] * 4
    t = torch.stack([t for _, t in batches])
    for part, low, high in ((t[:, :5], 50, 600), (t[:, 5:9], 650, 1000), (t[:, 9:], 0, 1000)):
        assert low <= part.min() < low + 0.02 * 1000 and high - 0.02 * 1000 < part.max() + 1 <= high
    rest = torch.cat([rows[9:] for rows, _ in batches])
    assert torch.equal(rest, torch.arange(len(rest)) % 120)  # every clip in its turn


def test_batches_are_pure():
    for number in (0, 2, 5):
        batch, again, other = (vdm.make_batch(n, SMALL) for n in (number, number, number + 1))
        assert all(torch.equal(batch[key], again[key]) for key in batch)
        assert not torch.equal(batch["x_t"][:, :, :1], other["x_t"][:, :, :1])


def test_each_text_is_dropped_by_itself():
    tokens = tokenize(["a tiger on a sea background"]).expand(400, -1)
    text = vdm._encode_text(tokens, torch.Generator().manual_seed(0))
    null_text = vdm._encode_text(tokenize([""]), torch.Generator().manual_seed(1))
    share = (text == null_text).all(dim=(1, 2)).float().mean()
    assert 0.05 < share < 0.16


def test_the_untrained_loss_of_every_phase_is_the_variance_of_the_target(model):
    for number in (0, 2, 4):
        batch = vdm.make_batch(number, SMALL)
        loss = vdm.loss_fn(model, batch, torch.Generator())
        assert 0.7 * batch["target"].square().mean() < loss < 2 * batch["target"].square().mean()


PROMPT = ["a tiger moving left on a sea background"]


def generate(model, prompts=PROMPT, seed=0, num_inference_steps=2, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return vdm.generate(
        model, prompts, generator, num_inference_steps=num_inference_steps, **kwargs
    )


def test_the_generator_decides_the_clips_and_the_chunk_size_does_not(model, monkeypatch):
    prompts = [*PROMPT, "a pig spinning on a white background", ""]
    clips = generate(model, prompts)
    assert clips.shape == (3, 3, 16, 32, 32) and clips.abs().max() <= 1
    assert not torch.equal(clips, generate(model, prompts, seed=1))
    monkeypatch.setattr(vdm, "GENERATION_BATCH", 2)
    chunked = generate(model, prompts)
    assert (clips - chunked).abs().mean() < 0.02  # the arithmetic is bfloat16's on some machines


def test_text_guidance_comes_first_and_then_temporal_guidance(model):
    calls = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    generate(model, num_inference_steps=4)
    assert [args[1].tolist() for args, _ in calls] == [[999] * 2, [749] * 2, [499] * 2, [249] * 2]
    null_text, text = (vdm.conditioning(prompts)["text"][0] for prompts in ([""], PROMPT))
    for args, kwargs in calls[:2]:
        assert kwargs.get("is_image") is None
        assert torch.equal(args[2], torch.stack([null_text, text]))
    for args, kwargs in calls[2:]:
        assert kwargs["is_image"].tolist() == [[True] * 16, [False] * 16]
        assert torch.equal(args[2], torch.stack([text, text]))
    calls.clear()
    unguided = {"guidance_scale": 1, "temporal_guidance_scale": None}
    generate(model, num_inference_steps=4, **unguided)
    assert [len(args[0]) for args, _ in calls] == [1] * 4
    assert all(kwargs.get("is_image") is None for _, kwargs in calls)


def test_the_conditioning_is_text_and_rate():
    cond = vdm.conditioning(["a tiger", ""], 16)
    assert cond["fps"].tolist() == [16, 16]
    expected = zoo.load_text_encoder(token_embeddings=True)(["a tiger", ""])
    torch.testing.assert_close(cond["text"], expected)


def test_token_embeddings_carry_the_motion_and_the_encoders_states_hardly_do():
    """Variance of the embeddings when one word of the prompt is exchanged."""
    directions = ("left", "right", "up", "down")
    prompts = {
        "motion": [f"a tiger moving {word} on a grass background" for word in directions],
        "subject": [
            f"a {name} moving left on a grass background"
            for name in ("tiger", "rocket", "penguin", "owl")
        ],
    }
    variance = {}
    for kind, texts in prompts.items():
        states, tokens = vdm.conditioning(texts)["text"].chunk(2, dim=-1)
        variance[kind] = [part.var(dim=0).sum().item() for part in (states, tokens)]
    assert variance["motion"][0] < 0.03 * variance["subject"][0]
    assert variance["motion"][1] > 0.3 * variance["subject"][1]


def test_a_longer_clip_has_the_same_beginning(model):
    short, long = (generate(model, num_frames=num_frames) for num_frames in (16, 20))
    assert long.shape[2] == 20 and torch.equal(long[:, :, :16], short)


def test_blocks_of_a_longer_clip_are_given_its_last_frames(model, monkeypatch):
    calls = []

    def extend(self, prompts, latents, *, num_frames, num_cond_frames, **kwargs):
        calls.append((tuple(latents.shape[1:3]), num_frames, num_cond_frames, kwargs))
        return torch.zeros(*latents.shape[:2], num_frames, *latents.shape[3:])

    monkeypatch.setattr(vdm.TextToVideoPipeline, "extend_autoregressively", extend)
    assert generate(model, [""], num_inference_steps=1, num_frames=40).shape[2] == 40
    ((*sizes, kwargs),) = calls
    assert sizes == [(3, 16), 40, vdm.NUM_COND_FRAMES]
    assert kwargs["reconstruction_weight"] == vdm.RECONSTRUCTION_WEIGHT
    assert kwargs["guidance_scale"] == vdm.GUIDANCE_SCALE


def test_every_target_is_measured(model, monkeypatch):
    calls = []

    def noise(model, prompts, generator, num_frames=16, **kwargs):
        calls.append((list(prompts), num_frames, kwargs))
        return torch.rand(len(prompts), 3, num_frames, 32, 32, generator=generator) * 2 - 1

    monkeypatch.setattr(vdm, "generate", noise)
    metrics = vdm.evaluate(model, SMALL)
    assert set(vdm.RECIPE.targets) <= set(metrics)
    world = World("test", size=8, num_frames=1, seed=1, **vdm.WORLD_KWARGS)
    names = [scene.motion.replace(" ", "_") for scene in world.batch(range(16)).scenes]
    by_motion = [metrics[f"motion_accuracy/{name}"] for name in names]
    assert sum(by_motion) / 16 == pytest.approx(metrics["motion_accuracy"])
    prompted, unconditional, long = calls
    assert prompted[1:] == (16, {})
    assert set(unconditional[0]) == {""}
    assert unconditional[1:] == (16, {"guidance_scale": 1, "temporal_guidance_scale": None})
    assert long[1:] == (64, {"fps": 32})
    # noise flickers alike at both ends
    assert metrics["long_video/flicker_ratio"] == pytest.approx(1, abs=0.02)


def test_the_folder_holds_network_and_schedule(model, tmp_path):
    vdm.RECIPE.save(model, tmp_path)
    assert VideoUNet.from_pretrained(tmp_path).config.cross_attention_dim == 256
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(scheduler.alphas_cumprod, vdm.scheduler().alphas_cumprod)
