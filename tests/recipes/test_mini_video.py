"""mini-video's recipe: its batches, its base subset, what is trained and stored, its metrics."""

import json
import shutil

import pytest
import torch
from torch import nn

from course_lib import zoo
from course_lib.diffusion import alpha_sigma_at
from course_lib.nn.inflate import InflatedUNet
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, LatentDiffusion
from course_lib.papers.latent_diffusion import build_unet as build_image_unet
from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines.frame_condition import FrameCondition
from course_lib.pipelines.latents import encode
from course_lib.pipelines.text_to_video import TextToVideoPipeline
from course_lib.recipes import mini_clip, mini_sd, mini_video
from course_lib.recipes.curriculum import FRAME_RATES
from course_lib.recipes.latent_cache import LatentCache
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import Sampler, render, subset_of

EXTRA = {"strided_steps": 2, "hard_motion_from": 1000}
SMALL = TrainConfig(num_steps=3, batch_size=2, lr=1e-3, eval_samples=16, extra=EXTRA)


def use_cache(monkeypatch, chunk_size):
    cache = LatentCache(mini_video.encode_chunk, chunk_size, num_chunks=2)
    monkeypatch.setattr(mini_video, "CACHE", cache)


@pytest.fixture(autouse=True)
def parts(untrained_parts, monkeypatch):
    """Untrained parts, and two chunks of twelve clips."""
    use_cache(monkeypatch, 12)
    return untrained_parts


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    unet = build_unet(build_image_unet(block_out_channels=(32, 64)))
    for parameter in unet.temporal.parameters():
        nn.init.normal_(parameter, std=0.05)
    return unet.eval()


def clean(batch):
    """x0 = alpha x_t - sigma v."""
    alpha, sigma = alpha_sigma_at(mini_video.scheduler(), batch["t"]).like(batch["x_t"])
    return alpha * batch["x_t"] - sigma * batch["target"]


def test_a_chunk_holds_latents_of_its_scenes_at_their_rates(parts):
    clips, sampler = mini_video.CACHE.chunk(1), Sampler("train", seed=71)
    assert clips["latents"].shape == (12, LATENT_CHANNELS, 16, 8, 8)
    assert clips["latents"].dtype == torch.float16
    for row in (0, 4, 5, 11):
        fps = FRAME_RATES[row % 6]
        clip = render([sampler(12 + row)], fps=fps, random_time_offset=True)
        latents = encode(parts.vae, clip.video[0].transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(clips["latents"][row].float(), latents, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(clips["frame_index"][row], torch.arange(16) * 8 / fps)
        assert torch.equal(clips["tokens"][row], mini_clip.tokenize(clip.paraphrases)[0])


def test_it_is_trained_on_the_base_subset():
    scenes = [Sampler("train", seed=71)(index) for index in range(300)]
    assert all(subset_of(scene.subject, scene.motion) == "base" for scene in scenes)
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_the_first_batches_are_of_every_fourth_frame_of_many_clips():
    batch, again = (mini_video.make_batch(1, SMALL) for _ in range(2))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["x_t"].shape == (8, LATENT_CHANNELS, 4, 8, 8)
    assert batch["text"].shape == (8, mini_clip.MAX_TOKENS, 256)
    first = int(batch["frame_index"][0, 0])
    clips = mini_video.CACHE[torch.arange(8, 16)]  # the second batch of eight
    torch.testing.assert_close(batch["frame_index"], clips["frame_index"][:, first::4])
    x0 = clips["latents"][:, :, first::4].float()
    torch.testing.assert_close(clean(batch), x0, atol=1e-4, rtol=0)
    assert not batch["cond_channels"].any()


def test_later_batches_are_full_clips_with_given_frames(monkeypatch):
    mask = torch.arange(16).expand(2, -1) < 3
    monkeypatch.setattr(mini_video, "sample_cond_masks", lambda num_clips, generator: mask)
    batch = mini_video.make_batch(3, SMALL)
    assert batch["x_t"].shape == (2, LATENT_CHANNELS, 16, 8, 8)
    # after two steps of eight clips and one of two
    clips = mini_video.CACHE[torch.tensor([18, 19])]
    x0 = clips["latents"].float()
    torch.testing.assert_close(clean(batch), x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch["frame_index"], clips["frame_index"])
    torch.testing.assert_close(batch["cond_channels"], FrameCondition(x0, mask).channels())


def test_masks_give_nothing_every_fourth_frame_or_the_beginning():
    generator, offsets, lengths, rows = torch.Generator().manual_seed(0), set(), set(), []
    for _ in range(40):
        masks = mini_video.sample_cond_masks(16, generator)
        assert masks.shape == (16, 16) and masks.sum(dim=1).eq(0).sum() == 8
        given = [mask for mask in masks if mask.any()]
        prefixes = [mask for mask in given if mask[: int(mask.sum())].all()]
        keyframes = [mask for mask in given if not mask[: int(mask.sum())].all()]
        assert len(prefixes) == len(keyframes) == 4
        for mask in keyframes:
            first = int(mask.int().argmax())
            assert mask.sum() == 4 and mask[first::4].all()
            offsets.add(first)
        lengths |= {int(mask.sum()) for mask in prefixes}
        rows.append(masks.any(dim=1))
    assert offsets == {0, 1, 2, 3} and lengths == set(range(1, 9))
    assert torch.stack(rows).any(dim=0).all()  # no row, and so no clip, has always the same task


def test_a_batch_as_small_as_the_recipes_has_each_task():
    num_clips = mini_video.RECIPE.configs["cpu"].batch_size
    generator = torch.Generator().manual_seed(0)
    tasks = mini_video.FRAME_CONDITIONING_TASKS
    for _ in range(40):
        given = mini_video.sample_cond_masks(num_clips, generator).sum(dim=1)
        assert given.eq(0).sum() == num_clips * tasks["none"]
    assert sum(tasks.values()) == 1


def test_hard_motions_take_turns_where_no_frames_are_given(monkeypatch):
    use_cache(monkeypatch, 120)  # 24 clips have none that moves down
    sampler, generator = Sampler("train", seed=71), torch.Generator().manual_seed(0)
    resampled = []
    for number in range(80):
        mask = mini_video.sample_cond_masks(4, generator)
        old_rows, old_t = torch.arange(4) + 4 * number, torch.full((4,), 3)
        rows, t = mini_video.resample_hard_motions(number, old_rows, old_t, mask, generator)
        for i in range(4):
            row, timestep = rows[i].item(), t[i].item()
            if mask[i].any() or row == old_rows[i]:
                assert (row, timestep) == (old_rows[i], 3)
                continue
            motion = sampler(row).motion
            low, high = mini_video.HARD_MOTIONS[motion]
            assert low <= timestep < high and FRAME_RATES[row % 6] == 8
            resampled.append((motion, row))
    for motion in mini_video.HARD_MOTIONS:
        rows = [row for name, row in resampled if name == motion]
        assert len(rows) == 40  # of 160 clips without given frames; 40 stay what they were
        assert set(rows) == set(mini_video._rows_of(motion, 240).tolist())  # none is left out


def test_hard_motions_begin_at_their_step(monkeypatch):
    use_cache(monkeypatch, 120)
    extra = {"strided_steps": 2, "hard_motion_from": 5}
    config = TrainConfig(num_steps=9, batch_size=4, lr=1e-3, extra=extra)
    calls = []

    def same_clip(number, rows, t, *_):
        calls.append(number)
        return rows * 0, t

    monkeypatch.setattr(mini_video, "resample_hard_motions", same_clip)
    before, after = (clean(mini_video.make_batch(number, config)) for number in (4, 5))
    assert calls == [5] and not torch.allclose(before[0], before[1], atol=1e-3)
    torch.testing.assert_close(after, after[:1].expand_as(after), atol=1e-4, rtol=0)


def test_clips_come_again_with_other_noise():
    # After the two strided steps, 24 clips are 12 batches of two
    first, other, again = (mini_video.make_batch(number, SMALL) for number in (2, 6, 14))
    assert not torch.allclose(clean(first), clean(other), atol=1e-2)
    torch.testing.assert_close(clean(first), clean(again), atol=1e-4, rtol=0)
    assert not torch.equal(first["x_t"], again["x_t"])


def test_text_has_token_embeddings_and_is_dropped_at_times(parts, monkeypatch):
    monkeypatch.setattr(mini_video, "COND_DROP_PROB", 0.5)
    encoder = parts.text_encoder(token_embeddings=True)
    null_text = encoder([""])[0]
    text = torch.cat([mini_video.make_batch(number, SMALL)["text"] for number in range(2)])
    expected = encoder.encode(mini_video.CACHE[torch.arange(16)]["tokens"])
    is_dropped = [torch.allclose(row, null_text, atol=1e-5) for row in text]
    for row, own, dropped in zip(text, expected, is_dropped, strict=True):
        assert dropped or torch.allclose(row, own, atol=1e-5)
    assert 0 < sum(is_dropped) < 16


def test_only_temporal_layers_are_trained():
    batch = mini_video.make_batch(2, SMALL)
    torch.manual_seed(0)
    unet = build_unet(build_image_unet(block_out_channels=(32, 64)))
    mini_video.loss_fn(unet, batch, torch.Generator()).backward()
    assert all(parameter.grad is None for parameter in unet.spatial.parameters())
    gradients = [p.grad for p in unet.temporal.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in gradients)


def test_the_folder_has_the_temporal_layers_and_names_its_base(model, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    image, other_root = build_image_unet(block_out_channels=(32, 64)), tmp_path / "other"
    image.load_state_dict(model.spatial.half().float().state_dict())
    metadata = {"evaluation": {}}

    def save_mini_video(folder):
        mini_video.save(model, folder)

    def save_mini_sd(folder):
        mini_sd.save(image, folder)

    zoo.store("mini-sd", save_mini_sd, metadata, "# mini-sd")
    folder = zoo.store("mini-video", save_mini_video, metadata, "# mini-video")
    assert json.loads((folder / "base.json").read_text(encoding="utf-8"))["name"] == "mini-sd"
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in config and "_name_or_path" not in config
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size < 2.1 * sum(parameter.numel() for parameter in model.temporal.parameters())
    pipeline = zoo.load("mini-video")
    assert isinstance(pipeline, TextToVideoPipeline) and isinstance(pipeline.unet, InflatedUNet)
    assert not pipeline.unet.training
    assert not any(parameter.requires_grad for parameter in pipeline.unet.parameters())
    trained = mini_video.RECIPE.unwrap_checkpoint(pipeline).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value.half().float(), rtol=0, atol=0)
    expected = mini_video.scheduler().alphas_cumprod
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, expected)
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    # A recipe's result may lie elsewhere; its base is the course's
    zoo.store("mini-video", save_mini_video, metadata, "# mini-video", other_root)
    assert isinstance(zoo.load("mini-video", root=other_root), TextToVideoPipeline)
    # Another image model is not the one that the layers were trained on
    image = build_image_unet(block_out_channels=(32, 64))
    with pytest.raises(ValueError, match="model: expected the weights of mini-sd/unet"):
        zoo.write_base(tmp_path, "mini-sd", "unet", image)
    zoo.store("mini-sd", save_mini_sd, metadata, "# mini-sd")
    with pytest.raises(ValueError, match="checkpoint mini-video: "):
        zoo.load("mini-video")
    shutil.rmtree(tmp_path / "checkpoints" / "mini-sd")
    checksums = tmp_path / "checkpoints" / "SHA256SUMS"
    lines = checksums.read_text(encoding="utf-8").splitlines(keepends=True)
    checksums.write_text(
        "".join(line for line in lines if "  mini-sd/" not in line), encoding="utf-8"
    )
    with pytest.raises(FileNotFoundError, match="checkpoint mini-video: .*mini-sd"):
        zoo.load("mini-video")


def test_a_clip_is_generated_for_each_prompt(model, monkeypatch):
    monkeypatch.setattr(mini_video, "GENERATION_BATCH", 2)
    prompts = ["a tiger spinning on a sea background", "", "an owl moving up on a grass background"]

    def generate(**kwargs):
        kwargs = {"num_inference_steps": 2, "num_frames": 3} | kwargs
        return mini_video.generate(model, prompts, torch.Generator().manual_seed(0), **kwargs)

    clips = generate()
    assert clips.shape == (3, 3, 3, 64, 64) and clips.abs().max() <= 1
    assert not torch.allclose(clips[0], clips[2], atol=1e-2)
    # Every clip has its own arguments, whichever chunk it is in
    index = torch.arange(3.0).expand(3, -1) * torch.tensor([[1.0], [1.0], [4.0]])
    same, other = (
        generate(frame_index=frame_index) for frame_index in (index[:1].expand(3, -1), index)
    )
    torch.testing.assert_close(same[:2], other[:2])
    assert not torch.allclose(same[2], other[2], atol=1e-3)


def test_single_frames_are_compared_with_images_by_mini_sd():
    pipeline = zoo.load("mini-sd")
    images = mini_video._generate_images(["a tiger on a sea background"])
    assert images.shape == (1, 3, 1, 64, 64) and images.abs().max() <= 1
    expected = LatentDiffusion.from_pipeline(pipeline).generate(
        ["a tiger on a sea background"],
        generator=torch.Generator().manual_seed(3),
        **mini_video.SAMPLING,
    )
    assert (images[:, :, 0] - expected).abs().mean() < 0.02  # bfloat16 on some machines


def test_every_target_is_measured(model, monkeypatch):
    """With blank clips: only the names of the metrics are compared."""

    def blank(model, prompts, *_, **__):
        return torch.zeros(len(prompts), 3, 16, 64, 64)

    def random_images(prompts):
        return torch.rand(16, 3, 1, 64, 64) * 2 - 1

    monkeypatch.setattr(mini_video, "generate", blank)
    monkeypatch.setattr(mini_video, "_generate_images", random_images)
    metrics = mini_video.evaluate(model, SMALL)
    assert set(mini_video.RECIPE.targets) <= set(metrics)
    assert {"kvd/guided", "kid/single_frames", "kid/image_model", "clipsim"} <= set(metrics)
    assert all(isinstance(value, float | int | list) for value in metrics.values())
