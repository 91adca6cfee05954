"""The judge's recipe: labels stay true whatever is done to a clip, and calibration does what it is for."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.classifier import VideoClassifier
from course_lib.recipes import judge
from course_lib.recipes.recipe import Settings
from course_lib.world import MOTIONS, World
from course_lib.world.ood import NONE, UNKNOWN

SMALL = Settings(steps=3, batch=6, lr=1e-3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_batch_is_a_pure_function_of_its_number():
    one, again, other = (judge.batches(number, SMALL) for number in (3, 3, 4))
    assert torch.equal(one["video"], again["video"]) and torch.equal(one["image"], again["image"])
    assert one["video"].shape == (6, 3, 16, 64, 64) and other["video"].shape == (6, 3, 8, 64, 64)
    assert not torch.equal(one["image"], other["image"])
    assert judge.batches(2, SMALL)["video"].shape == (6, 3, 8, 32, 32)
    assert set(one["labels"]) == set(judge.HEADS)
    for name, label in one["labels"].items():
        assert ((label == UNKNOWN) | ((label >= 0) & (label < judge.HEADS[name]))).all()
    assert one["video"].abs().max() <= 1 + 1e-5


def test_disturbed_clips_carry_the_motion_that_they_show():
    """Frozen sprites: what is called moving left after a reversal is, pixel by pixel, a clip that moves left."""
    clips = World("train", part="all", frames=8, frozen=True).batch(range(64))
    video = clips.video.clone()
    labels = judge.disturb_time(video, clips.labels, generator())
    assert torch.equal(labels["subject"], clips.labels["subject"])
    kinds = set()
    for i, (before, after) in enumerate(zip(clips.video, video, strict=True)):
        old, new, order = (
            clips.labels["motion"][i].item(),
            labels["motion"][i].item(),
            labels["order"][i].item(),
        )
        if old == judge.STILL:
            assert new == judge.STILL and order == UNKNOWN
        elif torch.equal(after, before):
            assert (new, order) == (old, 0)
        elif torch.equal(after, before.flip(1)):
            assert new == judge.BACKWARDS[old] and order == 0
        elif torch.equal(after, before.roll(4, dims=1)):
            assert (new, order) == (UNKNOWN, UNKNOWN if old in judge.PERIODIC else 2)
        else:
            assert (new, order) == (NONE["motion"], 1)
        kinds.add((new == old, order))
    assert {(True, 0), (False, 0), (False, 1), (False, 2)} <= kinds


def test_backwards_is_its_own_inverse_and_turns_left_into_right():
    assert torch.equal(judge.BACKWARDS[judge.BACKWARDS], torch.arange(len(MOTIONS) + 1))
    assert judge.BACKWARDS[MOTIONS.index("moving left")] == MOTIONS.index("moving right")


def test_a_bad_camera_leaves_some_alone_and_keeps_every_picture_recognisable():
    video = World("train", part="all", frames=2).batch(range(40)).video
    spoilt = judge.bad_camera(video, generator())
    change = (spoilt - video).abs().mean((1, 2, 3, 4))
    assert 1 < (change == 0).sum() < 20 and change.max() < 0.35
    assert spoilt.abs().max() <= 1 + 1e-5
    correlation = torch.stack(
        [
            torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
            for a, b in zip(spoilt, video, strict=True)
        ]
    )
    assert correlation.min() > 0.5


def test_the_loss_leaves_out_what_nobody_can_tell():
    class Sure(torch.nn.Module):
        def forward(self, video):
            return {name: torch.zeros(len(video), count) for name, count in judge.HEADS.items()}

    unknown = {name: torch.full((4,), UNKNOWN) for name in judge.HEADS}
    video = torch.zeros(4, 3, 1, 8, 8)
    batch = {"video": video, "labels": unknown, "image": video, "image_labels": unknown}
    assert judge.loss(Sure(), batch, generator()) == 0
    batch["labels"] = unknown | {"order": torch.tensor([0, UNKNOWN, UNKNOWN, UNKNOWN])}
    assert judge.loss(Sure(), batch, generator()) == pytest.approx(torch.tensor(3.0).log().item())


def test_calibration_tempers_confidence_without_changing_an_answer():
    torch.manual_seed(0)
    model = VideoClassifier(heads=judge.HEADS, widths=(8, 8, 8, 8)).eval()
    with torch.no_grad():
        for head in model.classify.values():
            head.weight.mul_(400)  # an untrained net that is very sure of itself
        video = World("test", part="all", frames=4).batch(range(16)).video
        before = model(video)
        judge.calibrate(model, SMALL)
        after = model(video)
    assert (model.temperatures > 2).all()
    for name in judge.HEADS:
        assert torch.equal(before[name].argmax(1), after[name].argmax(1))
        assert F.softmax(after[name], 1).amax(1).mean() < F.softmax(before[name], 1).amax(1).mean()


def test_strangers_for_the_test_are_not_among_those_of_training():
    from course_lib.world.ood import IMPOSTORS

    kinds = judge.unseen_impostors(8)
    assert not set(kinds) & set(IMPOSTORS)
    assert all(video.shape[1:] == (3, 16, 64, 64) for video in kinds.values())
    four = World("test", part="all", size=32, seed=9).batch(range(4)).video
    assert torch.equal(kinds["mosaic"][0, :, :, :32, 32:], four[1]) and torch.equal(
        kinds["mosaic"][0, :, :, 32:, :32], four[2]
    )
