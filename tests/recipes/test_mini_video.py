"""mini-video's recipe: its batches, what it may not see, what it leaves of itself, and what is measured."""

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel

from course_lib import zoo
from course_lib.diffusion import level_at
from course_lib.nn.inflate import InflatedUNet
from course_lib.papers.latent_diffusion import build_autoencoder, encode
from course_lib.papers.latent_diffusion import build_unet as build_image_unet
from course_lib.papers.vdm import read
from course_lib.papers.video_ldm import TextToVideoPipeline, beside, build_unet
from course_lib.recipes import mini_clip, mini_sd, mini_video
from course_lib.recipes.recipe import Settings
from course_lib.world import Sampler, part_of, render

SMALL = Settings(steps=3, batch=2, lr=1e-3, options={"sparse steps": 2, "practice from": 1000})


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """An untrained image model, and a few clips: two chunks of twelve."""
    torch.manual_seed(0)
    vae = build_autoencoder((8, 8, 8, 8)).eval().requires_grad_(False)
    tower = CLIPTextModel(mini_clip.build().config.text_config).eval().requires_grad_(False)
    monkeypatch.setattr(mini_sd, "vae", lambda: vae)
    monkeypatch.setattr(mini_sd, "text_tower", lambda: tower)
    monkeypatch.setattr(mini_video, "CHUNK", 12)
    monkeypatch.setattr(mini_video, "CHUNKS", 2)
    for function in (mini_video.chunk, mini_video._of):
        function.cache_clear()
    yield vae, tower
    for function in (mini_video.chunk, mini_video._of):
        function.cache_clear()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    unet = build_unet(build_image_unet(widths=(32, 64)))
    for parameter in unet.temporal.parameters():
        nn.init.normal_(parameter, std=0.05)
    return unet.eval()


def clean(batch):
    """x0 = signal x_t - noise v."""
    signal, noise = level_at(mini_video.SCHEDULE, batch["t"]).beside(batch["x_t"])
    return signal * batch["x_t"] - noise * batch["target"]


def test_a_chunk_holds_latents_of_its_scenes_at_their_rates(parts):
    vae, _ = parts
    clips, sampler = mini_video.chunk(1), Sampler("train", seed=71)
    assert clips.latents.shape == (12, 16, 16, 8, 8) and clips.latents.dtype == torch.float16
    for row in (0, 4, 5, 11):
        rate = mini_video.RATES[row % 6]
        clip = render([sampler(12 + row)], fps=rate, anytime=True)
        expected = encode(vae, clip.video[0].transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(clips.latents[row].float(), expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(clips.index[row], torch.arange(16) * 8 / rate)
        assert torch.equal(clips.tokens[row], mini_clip.tokenize(clip.paraphrases)[0])


def test_it_learns_only_from_what_generators_may_see():
    scenes = [Sampler("train", seed=71)(index) for index in range(300)]
    assert all(part_of(scene.subject, scene.motion) == "seen" for scene in scenes)
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_the_first_batches_are_of_every_fourth_frame_of_many_clips():
    batch, again = (mini_video.batches(1, SMALL) for _ in range(2))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["x_t"].shape == (8, 16, 4, 8, 8) and batch["text"].shape == (
        8,
        mini_clip.TOKENS,
        256,
    )
    clips = mini_video.chunk(0)
    first = int(batch["frame_index"][0, 0])
    rows = [8, 9, 10, 11]  # of the second batch of eight, as many as the first chunk has
    torch.testing.assert_close(batch["frame_index"][:4], clips.index[rows, first::4])
    torch.testing.assert_close(
        clean(batch)[:4], clips.latents[rows, :, first::4].float(), atol=1e-4, rtol=0
    )
    assert not batch["extra"].any()


def test_the_others_are_whole_clips_of_which_something_may_be_known(monkeypatch):
    monkeypatch.setattr(
        mini_video, "known", lambda count, generator: torch.arange(16).expand(count, -1) < 3
    )
    batch = mini_video.batches(3, SMALL)
    assert batch["x_t"].shape == (2, 16, 16, 8, 8)
    clips = mini_video._clips(
        torch.tensor([18, 19])
    )  # after two steps of eight clips and one of two
    torch.testing.assert_close(clean(batch), clips.latents.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch["frame_index"], clips.index)
    torch.testing.assert_close(
        batch["extra"], beside(clips.latents.float(), torch.arange(16).expand(2, -1) < 3)
    )


def test_clips_are_shown_nothing_every_fourth_frame_or_their_beginning():
    generator, places, lengths, rows = torch.Generator().manual_seed(0), set(), set(), []
    for _ in range(40):
        masks = mini_video.known(16, generator)
        assert masks.shape == (16, 16) and masks.sum(dim=1).eq(0).sum() == 8
        shown = [mask for mask in masks if mask.any()]
        beginnings = [mask for mask in shown if mask[: int(mask.sum())].all()]
        others = [mask for mask in shown if not mask[: int(mask.sum())].all()]
        assert len(beginnings) == len(others) == 4
        places |= {int(mask.int().argmax()) for mask in others}
        assert all(mask.sum() == 4 and mask[int(mask.int().argmax()) :: 4].all() for mask in others)
        lengths |= {int(mask.sum()) for mask in beginnings}
        rows.append(masks.any(dim=1))
    assert places == {0, 1, 2, 3} and lengths == set(range(1, 9))
    assert torch.stack(rows).any(dim=0).all()  # no row, and so no clip, has always the same task


def test_a_batch_as_small_as_the_recipes_has_each_task():
    count, generator = mini_video.RECIPE.settings["cpu"].batch, torch.Generator().manual_seed(0)
    shown = [mini_video.known(count, generator).sum(dim=1) for _ in range(40)]
    assert all(some.eq(0).sum() == count * mini_video.TASKS["nothing"] for some in shown)
    assert sum(mini_video.TASKS.values()) == 1


def test_in_the_end_hard_motions_take_turns_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr(mini_video, "CHUNK", 120)  # 24 clips have none that moves down
    sampler, generator, seen = Sampler("train", seed=71), torch.Generator().manual_seed(0), []
    for number in range(80):
        mask, given, times = (
            mini_video.known(4, generator),
            torch.arange(4) + 4 * number,
            torch.full((4,), 3),
        )
        rows, t = mini_video.practised(number, given, times, mask, generator)
        for place, (row, moment) in enumerate(zip(rows.tolist(), t.tolist(), strict=True)):
            if mask[place].any() or row == given[place]:
                assert (row, moment) == (given[place], 3)
            else:
                motion = sampler(row).motion
                low, high = mini_video.HARD[motion]
                assert low <= moment < high and mini_video.RATES[row % 6] == 8
                seen.append((motion, row))
    counts = [sum(motion == some for some, _ in seen) for motion in mini_video.HARD]
    assert counts == [40, 40, 40]  # of 160 clips from nothing; as many stay what they were
    of = {motion: {row for some, row in seen if some == motion} for motion in mini_video.HARD}
    assert all(
        rows == set(mini_video._of(motion)) for motion, rows in of.items()
    )  # none is left out


def test_practice_begins_when_it_is_told_to(monkeypatch):
    monkeypatch.setattr(mini_video, "CHUNK", 120)
    options = {"sparse steps": 2, "practice from": 5}
    settings, plain = Settings(steps=9, batch=4, lr=1e-3, options=options), []
    monkeypatch.setattr(
        mini_video, "practised", lambda number, rows, t, *_: plain.append(number) or (rows * 0, t)
    )
    first, then = (clean(mini_video.batches(number, settings)) for number in (4, 5))
    assert plain == [5] and not torch.allclose(first[0], first[1], atol=1e-3)
    torch.testing.assert_close(then, then[:1].expand_as(then), atol=1e-4, rtol=0)


def test_clips_come_round_again_with_other_noise():
    first, later = (mini_video.batches(number, SMALL) for number in (2, 6))
    other = mini_video.batches(14, SMALL)  # 24 clips are 12 batches of two
    assert not torch.equal(first["frame_index"], later["frame_index"]) or not torch.allclose(
        clean(first), clean(later)
    )
    torch.testing.assert_close(clean(first), clean(other), atol=1e-4, rtol=0)
    assert not torch.equal(first["x_t"], other["x_t"])


def test_text_is_read_words_and_all_and_sometimes_forgotten(parts, monkeypatch):
    _, tower = parts
    monkeypatch.setattr(mini_video, "DROPPED", 0.5)
    empty = read(tower, mini_clip.tokenize([""]))[0]
    rows = torch.cat([mini_video.batches(number, SMALL)["text"] for number in range(2)])
    expected = read(tower, mini_video._clips(torch.arange(16)).tokens)
    forgotten = [torch.allclose(row, empty, atol=1e-5) for row in rows]
    for row, wanted, lost in zip(rows, expected, forgotten, strict=True):
        assert lost or torch.allclose(row, wanted, atol=1e-5)
    assert 0 < sum(forgotten) < 16


def test_only_layers_over_time_learn(model):
    batch = mini_video.batches(2, SMALL)
    torch.manual_seed(0)
    unet = build_unet(build_image_unet(widths=(32, 64)))
    mini_video.loss(unet, batch, torch.Generator()).backward()
    assert all(parameter.grad is None for parameter in unet.spatial.parameters())
    assert any(
        parameter.grad is not None and parameter.grad.any()
        for parameter in unet.temporal.parameters()
    )


def test_the_folder_has_the_layers_over_time_and_says_of_which_model(model, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    image, elsewhere = build_image_unet(widths=(32, 64)), tmp_path / "elsewhere"
    image.load_state_dict(model.spatial.half().float().state_dict())
    facts = {"evaluation": {}}
    zoo.store("mini-sd", lambda folder: mini_sd.save(image, folder), facts, "# mini-sd")
    folder = zoo.store(
        "mini-video", lambda folder: mini_video.save(model, folder), facts, "# mini-video"
    )
    assert json.loads((folder / "base.json").read_text())["name"] == "mini-sd"
    assert (
        str(tmp_path) not in (folder / "config.json").read_text()
        and "_name_or_path" not in (folder / "config.json").read_text()
    )
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size < 2.1 * sum(parameter.numel() for parameter in model.temporal.parameters())
    pipeline = zoo.load("mini-video")
    assert isinstance(pipeline, TextToVideoPipeline) and isinstance(pipeline.unet, InflatedUNet)
    assert not pipeline.unet.training and not any(
        p.requires_grad for p in pipeline.unet.parameters()
    )
    trained = mini_video.RECIPE.trained(pipeline)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(
        pipeline.scheduler.alphas_cumprod, mini_video.SCHEDULE.alphas_cumprod
    )
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    # A recipe's result may lie elsewhere; its base is the course's
    zoo.store(
        "mini-video",
        lambda folder: mini_video.save(model, folder),
        facts,
        "# mini-video",
        elsewhere,
    )
    assert isinstance(zoo.load("mini-video", root=elsewhere), TextToVideoPipeline)
    with pytest.raises(
        ValueError, match="part: expected one of unet, vae, in mini-sd; got 'tower'"
    ):
        zoo.write_base(tmp_path, "mini-sd", "tower", image)
    with pytest.raises(ValueError, match="name: expected one of mini-sd, mini-video; got 'sd'"):
        zoo.write_base(tmp_path, "sd", "unet", image)
    # Another image model is not what those layers were made for
    other = build_image_unet(widths=(32, 64))
    with pytest.raises(
        ValueError,
        match="model: expected the weights of mini-sd/unet, on which it is to be built; got",
    ):
        zoo.write_base(tmp_path, "mini-sd", "unet", other)
    zoo.store("mini-sd", lambda folder: mini_sd.save(other, folder), facts, "# mini-sd")
    with pytest.raises(
        ValueError,
        match="checkpoint mini-video: made for another mini-sd than there is; restore that",
    ):
        zoo.load("mini-video")
    shutil.rmtree(tmp_path / "checkpoints" / "mini-sd")
    (tmp_path / "checkpoints" / "SHA256SUMS").write_text(
        "".join(
            line
            for line in (tmp_path / "checkpoints" / "SHA256SUMS")
            .read_text()
            .splitlines(keepends=True)
            if "  mini-sd/" not in line
        )
    )
    with pytest.raises(
        FileNotFoundError, match="checkpoint mini-video: built on mini-sd, which is not there"
    ):
        zoo.load("mini-video")


def test_clips_are_drawn_one_for_each_prompt(model, monkeypatch):
    monkeypatch.setattr(mini_video, "ROWS", 2)
    prompts = ["a tiger spinning on a sea background", "", "an owl moving up on a grass background"]
    clips = mini_video.draw(model, prompts, torch.Generator().manual_seed(0), steps=2, frames=3)
    assert clips.shape == (3, 3, 3, 64, 64) and clips.abs().max() <= 1
    assert not torch.allclose(clips[0], clips[2], atol=1e-2)
    # What a clip is told is its own, whichever batch it is drawn in
    index = torch.arange(3.0).expand(3, -1) * torch.tensor([[1.0], [1.0], [4.0]])
    same, other = (
        mini_video.draw(
            model, prompts, torch.Generator().manual_seed(0), steps=2, frames=3, frame_index=some
        )
        for some in (index[:1].expand(3, -1), index)
    )
    torch.testing.assert_close(same[:2], other[:2])
    assert not torch.allclose(same[2], other[2], atol=1e-3)


def test_every_bar_is_measured(model, monkeypatch):
    """With clips that nobody drew: it is the names that are compared."""
    blank = lambda model, prompts, *_, **__: torch.zeros(len(prompts), 3, 16, 64, 64)  # noqa: E731
    monkeypatch.setattr(mini_video, "draw", blank)
    monkeypatch.setattr(mini_sd, "draw", lambda *_, **__: torch.rand(16, 3, 1, 64, 64))
    found = mini_video.evaluate(model, SMALL)
    assert set(mini_video.RECIPE.bars) <= set(found)
    assert {
        "KVD, guided",
        "KID of single frames",
        "KID of pictures by the image model alone",
        "CLIPSIM",
    } <= set(found)
    assert all(isinstance(value, float | int | list) for value in found.values())
