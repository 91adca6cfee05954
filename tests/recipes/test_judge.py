"""The judge's recipe: labels stay true under every augmentation, and calibration works."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.nn.classifier import VideoClassifier
from course_lib.recipes import judge
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import MOTIONS, World
from course_lib.world.ood import IGNORE_INDEX, NONE_LABEL, OOD_KINDS

SMALL = TrainConfig(num_steps=3, batch_size=6, lr=1e-3, eval_samples=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_batch_is_a_pure_function_of_its_number():
    batch, again, other = (judge.make_batch(number, SMALL) for number in (3, 3, 4))
    assert torch.equal(batch["video"], again["video"])
    assert torch.equal(batch["image"], again["image"])
    assert batch["video"].shape == (6, 3, 16, 64, 64) and other["video"].shape == (6, 3, 8, 64, 64)
    assert not torch.equal(batch["image"], other["image"])
    assert judge.make_batch(2, SMALL)["video"].shape == (6, 3, 8, 32, 32)
    assert set(batch["labels"]) == set(judge.HEADS)
    for name, label in batch["labels"].items():
        is_class = (label >= 0) & (label < judge.HEADS[name])
        assert ((label == IGNORE_INDEX) | is_class).all()
    assert batch["video"].abs().max() <= 1 + 1e-5


def test_temporal_augmentation_gives_the_label_of_the_visible_motion():
    """Static sprites: a reversed clip labelled "moving left" moves left pixel by pixel."""
    clips = World("train", subset="all", num_frames=8, static_sprites=True).batch(range(64))
    video = clips.video.clone()
    labels = judge.temporal_augment(video, clips.labels, generator())
    assert torch.equal(labels["subject"], clips.labels["subject"])
    kinds = set()
    for i, (before, after) in enumerate(zip(clips.video, video, strict=True)):
        old = clips.labels["motion"][i].item()
        new, order = labels["motion"][i].item(), labels["order"][i].item()
        if old == judge.STANDING_STILL:
            assert new == judge.STANDING_STILL and order == IGNORE_INDEX
        elif torch.equal(after, before):
            assert (new, order) == (old, 0)
        elif torch.equal(after, before.flip(1)):
            assert new == judge.TIME_REVERSED_LABEL[old] and order == 0
        elif torch.equal(after, before.roll(4, dims=1)):
            seamless = old in judge.PERIODIC_MOTIONS
            assert (new, order) == (IGNORE_INDEX, IGNORE_INDEX if seamless else 2)
        else:
            assert (new, order) == (NONE_LABEL["motion"], 1)
        kinds.add((new == old, order))
    assert {(True, 0), (False, 0), (False, 1), (False, 2)} <= kinds


def test_time_reversal_is_its_own_inverse_and_turns_left_into_right():
    reversed_label = judge.TIME_REVERSED_LABEL
    assert torch.equal(reversed_label[reversed_label], torch.arange(len(MOTIONS) + 1))
    assert reversed_label[MOTIONS.index("moving left")] == MOTIONS.index("moving right")


def test_photometric_augmentation_keeps_every_image_recognisable():
    video = World("train", subset="all", num_frames=2).batch(range(40)).video
    augmented = judge.photometric_augment(video, generator())
    change = (augmented - video).abs().mean((1, 2, 3, 4))
    assert 1 < (change == 0).sum() < 20 and change.max() < 0.35
    assert augmented.abs().max() <= 1 + 1e-5
    for a, b in zip(augmented, video, strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.5


def test_the_loss_ignores_ambiguous_labels():
    class Uniform(torch.nn.Module):
        def forward(self, video):
            return {name: torch.zeros(len(video), size) for name, size in judge.HEADS.items()}

    ignored = {name: torch.full((4,), IGNORE_INDEX) for name in judge.HEADS}
    video = torch.zeros(4, 3, 1, 8, 8)
    batch = {
        "video": video,
        "labels": ignored,
        "image": video[:, None],
        "image_labels": {name: label[:, None] for name, label in ignored.items()},
    }
    assert judge.loss_fn(Uniform(), batch, generator()) == 0
    order = torch.tensor([0, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX])
    batch["labels"] = ignored | {"order": order}
    expected = torch.tensor(3.0).log().item()
    assert judge.loss_fn(Uniform(), batch, generator()) == pytest.approx(expected)


def test_calibration_lowers_confidence_without_changing_a_prediction():
    torch.manual_seed(0)
    model = VideoClassifier(heads=judge.HEADS, channels=(8, 8, 8, 8)).eval()
    with torch.no_grad():
        for layer in model.head_layers.values():
            layer.weight.mul_(400)  # an untrained net that is very confident
        video = World("test", subset="all", num_frames=4).batch(range(16)).video
        before = model(video)
        judge.calibrate(model, SMALL)
        after = model(video)
    assert (model.temperatures > 2).all()
    for name in judge.HEADS:
        assert torch.equal(before[name].argmax(1), after[name].argmax(1))
        assert F.softmax(after[name], 1).amax(1).mean() < F.softmax(before[name], 1).amax(1).mean()


def test_unseen_kinds_are_not_among_those_of_training():
    kinds = judge.unseen_ood_clips(8)
    assert not set(kinds) & set(OOD_KINDS)
    assert all(video.shape[1:] == (3, 16, 64, 64) for video in kinds.values())
    tiles = World("test", subset="all", size=32, seed=9).batch(range(4)).video
    mosaic = kinds["mosaic"][0]
    assert torch.equal(mosaic[:, :, :32, 32:], tiles[1])
    assert torch.equal(mosaic[:, :, 32:, :32], tiles[2])
