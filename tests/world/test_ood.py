"""Out-of-distribution clips differ from the world where their labels say so, and only there."""

import pytest
import torch

from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Scene, World, render
from course_lib.world.ood import IGNORE_INDEX, NONE_LABEL, OOD_KINDS, make_ood_clips


@pytest.fixture(scope="module")
def clips():
    return World("test", subset="all", num_frames=4).batch(range(6))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", OOD_KINDS)
def test_labels_are_none_where_a_clip_is_out_of_distribution(clips, kind):
    before = clips.video.clone()
    video, labels = make_ood_clips(clips, [kind] * 6, generator())
    again, _ = make_ood_clips(clips, [kind] * 6, generator())
    assert video.shape == clips.video.shape and video.abs().max() <= 1 + 1e-5
    assert (
        torch.equal(video, again)
        and torch.equal(clips.video, before)
        and not torch.equal(video, before)
    )
    none = {name for name in NONE_LABEL if (labels[name] == NONE_LABEL[name]).any()}
    expected = {name: {"background"} for name in ("unknown_background", "split_background")}
    expected |= {name: {"subject", "motion"} for name in ("background_only", "scramble")}
    everything = {"subject", "motion", "background"}
    expected["static_noise"] = everything
    assert none == expected.get(kind, {"subject"})
    for name, label in labels.items():
        kept = (label != NONE_LABEL[name]) & (label != IGNORE_INDEX)
        assert torch.equal(label[kept], clips.labels[name][kept]), name


def test_none_label_follows_the_last_class():
    assert NONE_LABEL == {
        "subject": len(SUBJECTS),
        "motion": len(MOTIONS),
        "background": len(BACKGROUNDS),
    }


def test_background_only_is_the_static_background(clips):
    video, _ = make_ood_clips(clips, ["background_only"] * 6, generator())
    uncovered = (clips.alpha == 0).expand_as(video)
    torch.testing.assert_close(video[uncovered], clips.video[uncovered], atol=1e-5, rtol=0)
    assert (video.diff(dim=2) == 0).all()


def test_unknown_background_keeps_the_subject(clips):
    video, _ = make_ood_clips(clips, ["unknown_background"] * 6, generator())
    inside = (clips.alpha == 1).expand_as(video)
    torch.testing.assert_close(video[inside], clips.video[inside], atol=1e-5, rtol=0)
    assert (video - clips.video)[(clips.alpha == 0).expand_as(video)].abs().mean() > 0.1


def test_kinds_per_clip(clips):
    kinds = ["background_only", "split_background", "chimera", "double", "unknown_shape"]
    kinds.append("unknown_background")
    video, labels = make_ood_clips(clips, kinds, generator())
    assert (labels["subject"] == NONE_LABEL["subject"]).tolist() == [
        True,
        False,
        True,
        True,
        True,
        False,
    ]
    assert all(not torch.equal(a, b) for a, b in zip(video, clips.video, strict=True))


def test_a_mixture_with_the_same_subject_is_ambiguous():
    twins = render(
        [Scene("tiger", "growing", "sea", 0), Scene("tiger", "growing", "sea", 2)], num_frames=2
    )
    for kind in ("chimera", "double"):
        assert (make_ood_clips(twins, [kind] * 2, generator())[1]["subject"] == IGNORE_INDEX).all()
    assert (
        make_ood_clips(twins, ["split_background"] * 2, generator())[1]["background"]
        == IGNORE_INDEX
    ).all()


def test_the_smear_of_a_shape_is_ambiguous():
    shapes = render([Scene("red circle", variant=0), Scene("tiger", variant=0)], num_frames=1)
    assert make_ood_clips(shapes, ["smear"] * 2, generator())[1]["subject"].tolist() == [
        IGNORE_INDEX,
        NONE_LABEL["subject"],
    ]


@pytest.mark.parametrize("size", [32, 64])
def test_sizes(size):
    small = World("test", subset="all", num_frames=2, size=size).batch(range(9))
    assert make_ood_clips(small, list(OOD_KINDS), generator())[0].shape[-1] == size


@pytest.mark.parametrize(
    "num_clips, kinds, message",
    [
        (1, ["background_only"], "expected one for each of at least 2 clips, got 1 for 1"),
        (3, ["background_only"], "expected one for each of at least 2 clips, got 1 for 3"),
        (
            2,
            ["background_only", "ghost"],
            "kinds: expected background_only, chimera, .*, got ghost",
        ),
    ],
)
def test_bad_arguments_raise(clips, num_clips, kinds, message):
    with pytest.raises(ValueError, match=message):
        make_ood_clips(clips.select(range(num_clips)), kinds, generator())
