"""Impostors: foreign where they say so, true everywhere else."""

import pytest
import torch

from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Scene, World, render
from course_lib.world.ood import IMPOSTORS, NONE, UNKNOWN, impostors


@pytest.fixture(scope="module")
def clips():
    return World("test", part="all", frames=4).batch(range(6))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_labels_say_what_is_foreign(clips, kind):
    before = clips.video.clone()
    video, labels = impostors(clips, [kind] * 6, generator())
    again, _ = impostors(clips, [kind] * 6, generator())
    assert video.shape == clips.video.shape and video.abs().max() <= 1 + 1e-5
    assert (
        torch.equal(video, again)
        and torch.equal(clips.video, before)
        and not torch.equal(video, before)
    )
    foreign = {name for name in NONE if (labels[name] == NONE[name]).any()}
    expected = {"elsewhere": {"background"}, "torn": {"background"}, "empty": {"subject", "motion"}}
    everything = {"subject", "motion", "background"}
    expected |= {"static noise": everything, "scramble": {"subject", "motion"}}
    assert foreign == expected.get(kind, {"subject"})
    for name, label in labels.items():
        kept = (label != NONE[name]) & (label != UNKNOWN)
        assert torch.equal(label[kept], clips.labels[name][kept]), name


def test_none_comes_after_the_last_name():
    assert NONE == {
        "subject": len(SUBJECTS),
        "motion": len(MOTIONS),
        "background": len(BACKGROUNDS),
    }


def test_an_empty_scene_is_the_background_and_stays_where_it_was(clips):
    video, _ = impostors(clips, ["empty"] * 6, generator())
    nobody = (clips.alpha == 0).expand_as(video)
    torch.testing.assert_close(video[nobody], clips.video[nobody], atol=1e-5, rtol=0)
    assert (video.diff(dim=2) == 0).all()


def test_elsewhere_keeps_the_subject(clips):
    video, _ = impostors(clips, ["elsewhere"] * 6, generator())
    inside = (clips.alpha == 1).expand_as(video)
    torch.testing.assert_close(video[inside], clips.video[inside], atol=1e-5, rtol=0)
    assert (video - clips.video)[(clips.alpha == 0).expand_as(video)].abs().mean() > 0.1


def test_each_clip_gets_its_own_kind_and_may_be_the_last_of_the_batch(clips):
    kinds = ["empty", "torn", "chimera", "double", "stranger", "elsewhere"]
    video, labels = impostors(clips, kinds, generator())
    assert (labels["subject"] == NONE["subject"]).tolist() == [True, False, True, True, True, False]
    assert all(not torch.equal(a, b) for a, b in zip(video, clips.video, strict=True))


def test_a_mixture_with_its_own_kind_is_no_stranger():
    twins = render(
        [Scene("tiger", "growing", "sea", 0), Scene("tiger", "growing", "sea", 2)], frames=2
    )
    for kind in ("chimera", "double"):
        assert (impostors(twins, [kind] * 2, generator())[1]["subject"] == UNKNOWN).all()
    assert (impostors(twins, ["torn"] * 2, generator())[1]["background"] == UNKNOWN).all()


def test_the_smear_of_a_shape_may_still_be_that_shape():
    shapes = render([Scene("red circle", variant=0), Scene("tiger", variant=0)], frames=1)
    assert impostors(shapes, ["smear"] * 2, generator())[1]["subject"].tolist() == [
        UNKNOWN,
        NONE["subject"],
    ]


@pytest.mark.parametrize("size", [32, 64])
def test_sizes(size):
    small = World("test", part="all", frames=2, size=size).batch(range(9))
    assert impostors(small, list(IMPOSTORS), generator())[0].shape[-1] == size


@pytest.mark.parametrize(
    "count, kinds, message",
    [
        (1, ["empty"], "expected one for each of at least 2 clips, got 1 for 1"),
        (3, ["empty"], "expected one for each of at least 2 clips, got 1 for 3"),
        (2, ["empty", "ghost"], r"kinds: \['ghost'\] are not among empty, chimera"),
    ],
)
def test_bad_requests_are_refused(clips, count, kinds, message):
    with pytest.raises(ValueError, match=message):
        impostors(clips.take(range(count)), kinds, generator())
