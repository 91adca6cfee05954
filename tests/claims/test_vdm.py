"""Lesson 03's experiments: that arms see the same clips, what a shuffle is, and where a clip's seams are."""

from dataclasses import replace

import pytest
import torch

from course_lib.claims import vdm
from course_lib.diffusion import estimate, level_at
from course_lib.world import World, part_of, render

pytestmark = pytest.mark.usefixtures("tiny")


def clean(batch):
    level = level_at(vdm.SCHEDULE, batch["t"])
    return estimate("v_prediction", batch["target"], batch["x_t"], level).x0


def test_pictures_are_added_and_nothing_else_changes(monkeypatch):
    """Equal clips, levels and noise in every arm; what is appended are frames of the same clips."""
    seen, real_fit = {}, vdm.fit

    def fit(model, batch, loss, **options):
        seen[len(seen)] = [batch(number) for number in range(3)]
        return real_fit(model, batch, loss, **options)

    monkeypatch.setattr(vdm, "fit", fit)
    for pictures in (0, 3):
        vdm.learned("relative", pictures, 0, 2)
    frames = vdm._data(0).transpose(1, 2).flatten(0, 1)
    for plain, joint in zip(seen[0], seen[1], strict=True):
        assert torch.equal(plain["t"], joint["t"]) and "alone" not in plain
        assert torch.equal(plain["x_t"], joint["x_t"][:, :, :8])
        assert torch.equal(plain["target"], joint["target"][:, :, :8])
        assert joint["alone"].tolist() == [[False] * 8 + [True] * 3] * 2
        for picture in clean(joint)[:, :, 8:].transpose(1, 2).flatten(0, 1):
            assert (frames - picture).abs().amax(dim=(1, 2, 3)).min() < 1e-2


def test_it_is_tested_on_clips_that_it_has_not_seen():
    scenes = [
        World(split, seed=seed, **vdm.HOW).sampler for split, seed in (("train", 0), ("test", 1000))
    ]
    train, test = ([sampler(index) for index in range(200)] for sampler in scenes)
    assert not set(train) & set(test)
    assert all(part_of(scene.subject, scene.motion) == "seen" for scene in train + test)


class Watches(torch.nn.Module):
    """A network that explains a clip the better, the more alike neighbouring frames are; or one that does not care."""

    device = torch.device("cpu")

    def __init__(self, order_matters):
        super().__init__()
        self.order_matters = order_matters

    def forward(self, x, t):
        level = level_at(vdm.SCHEDULE, t[:1])
        wrong = (
            x.diff(dim=2).abs().mean(dim=(1, 2, 3, 4), keepdim=True) if self.order_matters else 0.1
        )
        x0 = torch.zeros_like(x) + wrong
        said = estimate("sample", x0, x, level).velocity
        return type("Output", (), {"sample": said})


def test_who_knows_the_order_tells_a_clip_from_its_shuffle(monkeypatch):
    smooth = torch.linspace(0, 1, 8)[None, None, :, None, None] * torch.ones(40, 3, 8, 4, 4)
    monkeypatch.setattr(vdm, "initial_noise", lambda shape, generator: torch.zeros(shape))
    # both guess the same for all frames: a brighter guess is worse for dark clips
    told = [
        vdm.told_apart(Watches(matters), -smooth, torch.Generator().manual_seed(0))
        for matters in (True, False)
    ]
    assert told[0]["share told apart"] == 1 and told[1]["share told apart"] == 0.5
    assert told[1]["error of the shuffle over that of the clip"] == pytest.approx(1, abs=1e-5)


def test_without_positions_the_two_are_one():
    """A real network: the same up to rounding, even with temporal layers that do something."""
    for positions, same in (("none", True), ("relative", False)):
        torch.manual_seed(0)
        model = vdm.build(positions).eval()
        for name, parameter in model.named_parameters():
            if "temporal" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        found = vdm.told_apart(
            model, vdm._real(7, 0), torch.Generator().manual_seed(0)
        )  # seven: no half of them
        assert (found["share told apart"] == 0.5) == same
        assert (abs(found["error of the shuffle over that of the clip"] - 1) < 1e-5) == same


def test_every_arm_is_measured():
    for arm in vdm.PICTURES:
        found = vdm._drawn(arm, 0, 0.002)
        assert found["FVD"] > 0 and found["FID of frames"] > 0
    for arm in ("relative", "none"):
        assert 0 <= vdm._shuffled(arm, 0, 0.002)["share told apart"] <= 1


def test_one_training_serves_two_claims():
    assert vdm.learned("relative", 0, 0, 2)[0] is vdm.learned("relative", 0, 0, 2)[0]
    assert vdm.learned("relative", 0, 0, 2)[0] is not vdm.learned("none", 0, 0, 2)[0]


def test_hard_motions_are_drawn_from_equal_noise_under_two_guides(monkeypatch):
    """A model that draws what is asked for, but under text alone everything stands still."""
    asked, hard = [], {"spinning", "bouncing"}

    def draw(model, prompts, generator, coherence):
        asked.append((prompts, generator.initial_seed()))
        world = World("test", seed=1003, size=32, **vdm.vdm.SCENES).batch(range(320))
        scenes = [scene for scene in world.scenes if scene.motion in hard][: len(prompts)]
        still = [replace(scene, motion="standing still") for scene in scenes]
        return render(still if coherence is None else scenes, size=32).video

    monkeypatch.setattr(vdm.vdm, "draw", draw)
    monkeypatch.setattr(vdm, "_vdm", lambda: None)
    by_text, then_away = (vdm._led(arm, 3, 0.5) for arm in vdm.GUIDES)
    assert asked[0] == asked[1] and len(asked[0][0]) == 32 and asked[0][1] == 3
    assert all(" spinning " in prompt or " bouncing " in prompt for prompt in asked[0][0])
    assert by_text["motion right"] < 0.1 and then_away["motion right"] > 0.9
    assert min(by_text["subject right"], then_away["subject right"]) > 0.9


@pytest.mark.parametrize("arm", vdm.WAYS)
def test_a_seam_is_where_a_block_begins(arm, monkeypatch):
    """A clip that jumps by 3 where blocks of eight meet, and by 1 where an emoji's picture changes within a block."""
    asked = {}

    def draw(model, prompts, generator, **how):
        asked.update(how)
        steps = torch.tensor(
            [3.0 if k in (15, 27) else 1.0 if k % 4 == 3 else 0.0 for k in range(39)]
        )
        line = torch.cat([torch.zeros(1), steps.cumsum(0)])
        return line.view(1, 1, 40, 1, 1).expand(len(prompts), 3, 40, 32, 32) / 100

    monkeypatch.setattr(vdm.vdm, "draw", draw)
    monkeypatch.setattr(vdm, "_vdm", lambda: None)
    monkeypatch.setattr(vdm, "CONTINUED", 4)
    found = vdm._continued(arm, 0, 1.0)
    assert found["change at a seam over change elsewhere"] == pytest.approx(3)
    assert asked == {"frame_rate": 32, "frames": 40, "weight": vdm.WAYS[arm]}


def test_real_clips_have_no_seams():
    """At 32 frames a second an emoji's picture changes with every fourth frame, at seams and between them alike."""
    video = (
        World("test", size=32, frames=64, fps=32, seed=1, **vdm.vdm.SCENES).batch(range(24)).video
    )
    assert vdm.seams(video) == pytest.approx(1, abs=0.1)
    changes = video.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))[15:]
    assert changes[4::12].mean() > 1.5 * changes[1::4].mean()
