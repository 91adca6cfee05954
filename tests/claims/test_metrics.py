"""Lesson 16's experiments: what they must find whatever the nets have learned, because it holds by construction."""

import pytest
import torch

from course_lib.claims import metrics
from course_lib.recipes import features

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Nets that have learned nothing: what follows may not depend on their weights."""
    torch.manual_seed(0)
    nets = {
        "features/image": features.build_image().eval(),
        "features/video": features.build_video().eval(),
    }
    monkeypatch.setattr(metrics, "net", nets.__getitem__)


def test_averaged_frames_cannot_see_a_shuffle_and_clips_can():
    blind, watching = (metrics._shuffled(arm, 0, 0.01) for arm in ("frames, averaged", "clips"))
    assert blind["times the floor"] == pytest.approx(1, abs=1e-4)
    assert abs(watching["times the floor"] - 1) > 1e-3


def test_features_of_the_image_net_are_the_mean_over_frames():
    video = metrics.real(3, 0).video
    net = metrics.net("features/image")
    with torch.no_grad():
        expected = torch.stack([net.features(video[:, :, [f]]) for f in range(16)]).mean(0).double()
    torch.testing.assert_close(
        metrics.features("features/image", video), expected, rtol=1e-4, atol=1e-5
    )


def test_the_same_pictures_are_drawn_for_both_arms_and_others_for_another_seed():
    first, second = (metrics._bias(seed, 0.01)["Fréchet"] for seed in (0, 1))
    assert first.keys() == second.keys() and first != second
    metrics._bias.cache_clear()
    metrics.real.cache_clear()
    assert metrics._bias(0, 0.01)["Fréchet"] == first


def test_the_power_of_n_is_one_measurement_held_against_two_laws():
    one, root = (metrics._power(law, 0, 0.01) for law in ("1/n", "1/√n"))
    assert one["power of n"] == root["power of n"] < -0.5
    assert one["distance from the law"] == pytest.approx(abs(one["power of n"] + 1))
    assert root["distance from the law"] == pytest.approx(abs(one["power of n"] + 0.5))


def test_glass_that_bends_nothing_changes_nothing_and_flicker_is_change():
    whole, steady, flickering = (
        metrics._content(arm, 0, 0.01) for arm in ("whole", "steady", "flickering")
    )
    change = "change from frame to frame, times the real"
    assert whole[change] == pytest.approx(1)
    assert steady[change] < 1.2 < flickering[change]
    assert whole["FVD"] != steady["FVD"] != flickering["FVD"]


def test_collapsed_pictures_keep_their_subjects(monkeypatch):
    """Every collapsed picture is one of its own subject: a net that only knew the subject would notice nothing."""
    seen = []
    monkeypatch.setattr(
        metrics, "noise", lambda pictures, std, generator: seen.append(pictures) or pictures
    )
    metrics._collapse("recall", 0, 0.01)
    clips = metrics.real(4 * metrics.LEAST, 200, 1)
    whole, collapsed = seen
    assert torch.equal(whole, clips.video)
    for picture, subject in zip(collapsed, clips.labels["subject"], strict=True):
        twins = (clips.video == picture).flatten(1).all(1)
        assert (clips.labels["subject"][twins] == subject).all() and twins.any()
    assert len({tuple(p.flatten()[::97].tolist()) for p in collapsed}) == len(
        clips.labels["subject"].unique()
    )
