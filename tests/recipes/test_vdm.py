"""vdm's recipe: its batches, what it may not see, its clips, and what is measured."""

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib.diffusion import level_at
from course_lib.nn.unet import VideoUNet
from course_lib.papers.vdm import build_unet, read
from course_lib.recipes import vdm
from course_lib.recipes.mini_clip import tokenize
from course_lib.recipes.mini_sd import text_tower
from course_lib.recipes.recipe import Settings
from course_lib.world import Sampler, World, part_of, render

SMALL = Settings(
    steps=3, batch=2, lr=1e-3, options={"picture steps": 2, "pictures a step": 3, "sparse steps": 2}
)


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    """Enough for these tests: two chunks of twelve clips."""
    monkeypatch.setattr(vdm, "CHUNK", 12)
    monkeypatch.setattr(vdm, "CHUNKS", 2)
    for function in (vdm.chunk, vdm._of):
        function.cache_clear()
    yield
    for function in (vdm.chunk, vdm._of):
        function.cache_clear()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_unet(widths=(32, 32)).eval().requires_grad_(False)


def clean(batch):
    """x0 = signal x_t - noise v."""
    signal, noise = level_at(vdm.SCHEDULE, batch["t"]).beside(batch["x_t"])
    return signal * batch["x_t"] - noise * batch["target"]


def test_a_chunk_holds_its_scenes_at_their_rates_with_their_captions():
    video, rates, tokens, image_tokens = vdm.chunk(1)
    sampler = Sampler("train", seed=61, **vdm.SCENES)
    assert video.shape == (12, 3, 16, 32, 32) and video.dtype == torch.uint8
    for row in (0, 4, 5, 11):
        rate = vdm.RATES[row % 6]
        clip = render([sampler(12 + row)], size=32, fps=rate, anytime=True)
        assert rates[row] == rate
        assert (vdm._unpacked(video[row]) - clip.video[0]).abs().max() <= 1 / 127
        assert torch.equal(tokens[row], tokenize(clip.paraphrases)[0])
        assert torch.equal(image_tokens[row], tokenize(clip.image_paraphrases)[0])


def test_it_learns_only_from_what_generators_may_see():
    sampler = Sampler("train", seed=61, **vdm.SCENES)
    scenes = [sampler(index) for index in range(200)]
    assert all(
        part_of(scene.subject, scene.motion) == "seen" and scene.subject in vdm.CLASSES
        for scene in scenes
    )
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_first_come_pictures_then_sparse_clips_then_clips_with_pictures():
    first, sparse, then = (vdm.batches(number, SMALL) for number in (1, 3, 4))
    assert first["x_t"].shape == (3, 3, 1, 32, 32) and first["text"].shape == (3, 32, 256)
    assert set(first) == {"x_t", "t", "target", "weight", "text"}
    assert then["x_t"].shape == (2, 3, 20, 32, 32) and then["text"].shape == (2, 20, 32, 256)
    assert then["alone"].tolist() == [[False] * 16 + [True] * 4] * 2
    assert sparse["x_t"].shape == (8, 3, 4, 32, 32) and sparse["text"].shape == (8, 32, 256)
    assert sparse["frame_rate"].tolist() == [8] * 8
    # under the noise there is what the chunk holds
    video = vdm._unpacked(vdm.chunk(0)[0])
    index = sparse["frame_index"][0]
    assert index.diff().tolist() == [4, 4, 4] and (sparse["frame_index"] == index).all()
    films = [row for row in range(24) if row % 6 < 4][
        8:
    ]  # the second batch of whole films: those of 8 frames a second
    both = torch.cat([video, vdm._unpacked(vdm.chunk(1)[0])])
    torch.testing.assert_close(clean(sparse), both[films][:, :, index], atol=2e-3, rtol=0)
    spinning = next(
        row
        for row in range(24)
        if Sampler("train", seed=61, **vdm.SCENES)(row).motion == "spinning"
    )
    torch.testing.assert_close(clean(then)[:, :, :16], both[[spinning, 0]], atol=1e-3, rtol=0)
    assert then["frame_rate"].tolist() == [vdm.RATES[spinning % 6], 8]
    frames = (
        torch.cat([vdm._unpacked(vdm.chunk(k)[0]) for k in range(2)]).transpose(1, 2).flatten(0, 1)
    )
    for picture in clean(then)[:, :, 16:].transpose(1, 2).flatten(0, 1):
        assert (frames - picture).abs().amax(dim=(1, 2, 3)).min() < 1e-3
    for row, picture in enumerate(clean(first)[:, :, 0]):
        assert (video[3 + row].transpose(0, 1) - picture).abs().amax(dim=(1, 2, 3)).min() < 1e-3


def test_sparse_clips_are_noisy_and_every_second_other_one_is_not():
    generator = torch.Generator().manual_seed(0)
    noisy, mixed = (
        vdm._timesteps(20_000, generator, noisiest) / 1000 for noisiest in (True, False)
    )
    for some, mean, std in (
        (noisy, 3 / 4, 0.194),
        (mixed[::2], 1 / 2, 0.289),
        (mixed[1::2], 1 / 4, 0.194),
    ):
        assert some.mean().item() == pytest.approx(
            mean, abs=0.01
        ) and some.std().item() == pytest.approx(std, abs=0.01)


def test_pictures_and_whole_clips_meet_low_noise_and_sparse_clips_high(monkeypatch):
    asked, real = [], vdm._timesteps

    def timesteps(count, generator, noisiest=False):
        asked.append((count, noisiest))
        return real(count, generator, noisiest)

    monkeypatch.setattr(vdm, "_timesteps", timesteps)
    for number in (1, 2, 4):
        vdm.batches(number, SMALL)
    assert asked == [(3, False), (8, True), (1, False)]  # of two whole clips one is practised


def test_what_is_hard_is_met_more_often_and_where_it_is_decided(monkeypatch):
    monkeypatch.setattr(vdm, "CHUNK", 60)  # 24 clips have none that bounces
    sampler = Sampler("train", seed=61, **vdm.SCENES)
    generator = torch.Generator().manual_seed(0)
    seen = [vdm._practice(number, 16, generator) for number in range(200)]
    motions = [[sampler(row).motion for row in rows.tolist()] for rows, _ in seen]
    for some in motions:
        assert some[:5] == ["spinning"] * 5 and some[5:9] == ["bouncing"] * 4
    t = torch.stack([t for _, t in seen])
    for part, low, high in ((t[:, :5], 50, 600), (t[:, 5:9], 650, 1000), (t[:, 9:], 0, 1000)):
        assert low <= part.min() < low + 0.02 * 1000 and high - 0.02 * 1000 < part.max() + 1 <= high
    rest = torch.cat([rows[9:] for rows, _ in seen])
    assert torch.equal(rest, torch.arange(len(rest)) % 120)  # every clip in its turn


def test_batches_are_pure():
    for number in (0, 2, 5):
        one, again, other = (vdm.batches(n, SMALL) for n in (number, number, number + 1))
        assert all(torch.equal(one[key], again[key]) for key in one)
        assert not torch.equal(one["t"], other["t"]) or not torch.equal(
            one["x_t"][:, :, :1], other["x_t"][:, :, :1]
        )


def test_some_texts_are_forgotten_each_by_itself():
    tokens = tokenize(["a tiger on a sea background"]).expand(400, -1)
    text = vdm._read(tokens, torch.Generator().manual_seed(0))
    empty = vdm._read(tokenize([""]), torch.Generator().manual_seed(1))
    forgotten = (text == empty).all(dim=(1, 2)).float().mean()
    assert 0.05 < forgotten < 0.16


def test_the_loss_of_every_kind_of_batch_is_that_of_the_target_at_first(model):
    for number in (0, 2, 4):
        batch = vdm.batches(number, SMALL)
        loss = vdm.loss(model, batch, torch.Generator())
        assert 0.7 * batch["target"].square().mean() < loss < 2 * batch["target"].square().mean()


def test_draw_obeys_its_generator_and_does_not_depend_on_how_many_are_drawn_at_once(
    model, monkeypatch
):
    prompts = [
        "a tiger moving left on a sea background",
        "a pig spinning on a white background",
        "",
    ]
    how = {"steps": 2}
    clips = vdm.draw(model, prompts, torch.Generator().manual_seed(0), **how)
    assert clips.shape == (3, 3, 16, 32, 32) and clips.abs().max() <= 1
    assert not torch.equal(clips, vdm.draw(model, prompts, torch.Generator().manual_seed(1), **how))
    monkeypatch.setattr(vdm, "ROWS", 2)
    apart = vdm.draw(model, prompts, torch.Generator().manual_seed(0), **how)
    assert (clips - apart).abs().mean() < 0.02  # the arithmetic is bfloat16's on some machines


def test_draw_is_led_by_text_first_and_then_away_from_frames_alone(model):
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, told: seen.append((args, told)), with_kwargs=True
    )
    prompt = ["a tiger moving left on a sea background"]
    vdm.draw(model, prompt, torch.Generator().manual_seed(0), steps=4)
    assert [args[1].tolist() for args, _ in seen] == [[999] * 2, [749] * 2, [499] * 2, [249] * 2]
    empty, own = (vdm.told(texts)["text"][0] for texts in ([""], prompt))
    for args, told in seen[:2]:
        assert "alone" not in told and torch.equal(args[2], torch.stack([empty, own]))
    for args, told in seen[2:]:
        assert told["alone"].tolist() == [[True] * 16, [False] * 16] and torch.equal(
            args[2], torch.stack([own, own])
        )
    seen.clear()
    vdm.draw(model, prompt, torch.Generator().manual_seed(0), steps=4, scale=1, coherence=None)
    assert [len(args[0]) for args, _ in seen] == [1] * 4 and not any(
        "alone" in told for _, told in seen
    )


def test_what_is_told_is_text_and_rate():
    told = vdm.told(["a tiger", ""], 16)
    assert told["frame_rate"].tolist() == [16, 16]
    torch.testing.assert_close(told["text"], read(text_tower(), tokenize(["a tiger", ""])))


def test_what_is_read_says_which_motion_and_the_tower_alone_hardly_does():
    """Share of its variance that a word has left when only it is exchanged."""
    kinds = {
        "motion": [
            f"a tiger moving {way} on a grass background" for way in ("left", "right", "up", "down")
        ],
        "subject": [
            f"a {name} moving left on a grass background"
            for name in ("tiger", "rocket", "penguin", "owl")
        ],
    }
    spread = {}
    for kind, prompts in kinds.items():
        text = vdm.told(prompts)["text"]
        spread[kind] = [
            part.var(dim=0).sum().item() for part in text.chunk(2, dim=-1)
        ]  # of the tower, of the words
    tower, words = zip(*spread.values(), strict=True)
    assert tower[0] < 0.03 * tower[1] and words[0] > 0.3 * words[1]


def test_a_longer_clip_is_drawn_from_the_same_beginning(model):
    prompt = ["a tiger moving left on a sea background"]
    short, long = (
        vdm.draw(model, prompt, torch.Generator().manual_seed(0), steps=2, frames=frames)
        for frames in (16, 20)
    )
    assert long.shape[2] == 20 and torch.equal(long[:, :, :16], short)


def test_blocks_of_a_longer_clip_are_shown_its_last_frames(model, monkeypatch):
    shown = []

    def extend(model, scheduler, clip, conditioning, *, frames, past, **how):
        shown.append((tuple(clip.shape[1:3]), frames, past))
        return torch.zeros(*clip.shape[:2], frames, *clip.shape[3:])

    monkeypatch.setattr(vdm, "extend", extend)
    assert vdm.draw(model, [""], torch.Generator(), steps=1, frames=40).shape[2] == 40
    assert shown == [((3, 16), 40, vdm.PAST)]


def test_what_is_measured_has_every_bar(model, monkeypatch):
    asked = []

    def blank(model, prompts, generator, scale=3.0, coherence=2.0, frame_rate=8, frames=16):
        asked.append((list(prompts), scale, coherence, frame_rate, frames))
        return torch.rand(len(prompts), 3, frames, 32, 32, generator=generator) * 2 - 1

    monkeypatch.setattr(vdm, "draw", blank)
    found = vdm.evaluate(model, SMALL)
    assert set(vdm.RECIPE.bars) <= set(found)
    own = [
        scene.motion
        for scene in World("test", size=8, frames=1, seed=1, **vdm.SCENES).batch(range(16)).scenes
    ]
    assert {f"{motion}, judge" for motion in own} <= set(found)
    assert sum(found[f"{motion}, judge"] for motion in own) / 16 == pytest.approx(
        found["motion, judge"]
    )
    (_, *told), (free, *how), (some, *longer) = asked
    assert told == [3.0, 2.0, 8, 16] and longer == [3.0, 2.0, 32, 64]
    assert set(free) == {""} and how == [1, None, 8, 16]
    # noise flickers alike at both ends
    assert found["64 frames: flicker, last over first"] == pytest.approx(1, abs=0.02)


def test_the_folder_holds_network_and_schedule(tmp_path):
    vdm.save(vdm.build_unet(widths=(32, 32)), tmp_path)
    assert VideoUNet.from_pretrained(tmp_path).config.text_width == 256
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(scheduler.alphas_cumprod, vdm.SCHEDULE.alphas_cumprod)
