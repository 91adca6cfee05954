"""Lesson 16's experiments: what holds by construction, whatever the networks have learnt."""

import pytest
import torch

from course_lib.claims import metrics
from course_lib.recipes import features

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Untrained feature networks: the tests may not depend on weights."""
    torch.manual_seed(0)
    nets = {
        "features/image": features.build_image().eval(),
        "features/video": features.build_video().eval(),
    }
    monkeypatch.setattr(metrics.zoo, "load", nets.__getitem__)
    return nets


def by_id(arms):
    return {arm.id: arm for arm in arms}


def test_averaged_frame_features_cannot_detect_a_shuffle_and_video_features_can():
    blind, sensitive = (metrics._run_shuffle(arm, 0, 0.01) for arm in metrics.FEATURES_ARMS)
    assert blind["ratio_to_floor"] == pytest.approx(1, abs=1e-4)
    assert abs(sensitive["ratio_to_floor"] - 1) > 1e-3


@torch.no_grad()
def test_features_of_the_image_net_are_the_mean_over_frames(untrained):
    video = metrics.load_clips("test", 3, 0, subset="all").video
    net = untrained["features/image"]
    expected = torch.stack([net.features(video[:, :, [f]]) for f in range(16)]).mean(0).double()
    out = metrics.features("features/image", video)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_arms_get_the_same_images_and_another_seed_gets_others():
    arm = metrics.BIAS_ARMS[0]
    first, second = (metrics._run_bias(arm, seed, 0.01) for seed in (0, 1))
    assert first.keys() == second.keys() and first != second
    metrics._distances_by_size.cache_clear()
    metrics.load_clips.cache_clear()
    assert metrics._run_bias(arm, 0, 0.01) == first


def test_the_exponent_is_one_measurement_for_both_laws():
    one, root = (metrics._run_bias_law(arm, 0, 0.01) for arm in metrics.BIAS_LAW_ARMS)
    assert one["exponent"] == root["exponent"] < -0.5
    assert one["exponent_error"] == pytest.approx(abs(one["exponent"] + 1))
    assert root["exponent_error"] == pytest.approx(abs(one["exponent"] + 0.5))


def test_no_displacement_changes_nothing_and_flicker_changes_frame_differences():
    arms = by_id(metrics.DISTORTION_ARMS)
    undistorted, consistent, flickering = (
        metrics._run_distortion(arms[id], 0, 0.01)
        for id in ("undistorted", "consistent", "flickering")
    )
    key = "frame_diff_ratio"
    assert undistorted[key] == pytest.approx(1)
    assert consistent[key] < 1.2 < flickering[key]
    assert undistorted["fvd"] != consistent["fvd"] != flickering["fvd"]


def test_collapsed_images_keep_their_subjects(monkeypatch):
    """Every collapsed image shows its own subject: a net that only knew the subject is blind."""
    image_sets = []
    monkeypatch.setattr(
        metrics, "noise", lambda images, std, generator: image_sets.append(images) or images
    )
    metrics._run_collapse(by_id(metrics.COLLAPSE_ARMS)["recall"], 0, 0.01)
    clips = metrics.real_images(4 * metrics.MIN_CLIPS, 200)
    subjects = clips.labels["subject"]
    diverse, collapsed = image_sets
    assert torch.equal(diverse, clips.video)
    for image, subject in zip(collapsed, subjects, strict=True):
        copies = (clips.video == image).flatten(1).all(1)
        assert (subjects[copies] == subject).all() and copies.any()
    distinct = {tuple(image.flatten()[::97].tolist()) for image in collapsed}
    assert len(distinct) == len(subjects.unique())
