"""Evaluation of generated samples: keys of the metrics, and that they measure the right thing."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from course_lib import zoo
from course_lib.evaluation import (
    extract_features,
    frechet_report,
    motion_accuracy,
    predict_logits,
    prompt_accuracy,
    rendering_report,
)
from course_lib.metrics import frechet_distance
from course_lib.world import World


@pytest.fixture(scope="module")
def clips():
    return World("test", num_frames=8, seed=3).batch(range(12))


def images(seed, n=80):
    world = World("test", size=32, num_frames=1, random_time_offset=True, seed=seed)
    return world.batch(range(n)).video


def test_real_clips_show_what_their_captions_name(clips):
    metrics = prompt_accuracy(clips.video, clips.captions)
    names = ("subject_accuracy", "motion_accuracy", "background_accuracy")
    assert set(metrics) == {
        name + suffix
        for name in (*names, "all_attributes_accuracy")
        for suffix in ("", "_interval")
    }
    assert all(metrics[name] > 0.9 for name in names)
    low, high = metrics["subject_accuracy_interval"]
    assert low < metrics["subject_accuracy"] <= high


def test_clips_do_not_show_other_prompts(clips):
    prompts = [*clips.captions[1:], clips.captions[0]]
    assert prompt_accuracy(clips.video, prompts)["all_attributes_accuracy"] == 0


def test_only_attributes_that_prompts_name_are_measured(clips):
    metrics = prompt_accuracy(clips.video[:2], ["a tiger", "a tiger"])
    assert set(metrics) == {
        "subject_accuracy",
        "subject_accuracy_interval",
        "all_attributes_accuracy",
        "all_attributes_accuracy_interval",
    }


def test_motion_accuracy_is_per_motion(clips):
    metrics = motion_accuracy(clips.video, clips)
    motions = {scene.motion.replace(" ", "_") for scene in clips.scenes}
    assert set(metrics) == {f"motion_accuracy/{motion}" for motion in motions}
    assert sum(metrics.values()) / len(metrics) > 0.9


def test_logits_are_those_of_the_model_whatever_the_batch(clips):
    judge = zoo.load("judge")
    logits = predict_logits(judge, clips.video[:2].repeat(40, 1, 1, 1, 1))
    with torch.no_grad():
        expected = judge(clips.video[:2])
    assert set(logits) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(logits[name][-2:], value, atol=1e-4, rtol=1e-4)


def test_the_distance_of_real_images_is_the_floor():
    real, reference = images(1), images(2)
    metrics = frechet_report(reference, real, reference, "copy")
    features = (extract_features("features/image", part) for part in (real, reference))
    assert metrics["fid/copy"] == pytest.approx(frechet_distance(*features))
    assert metrics["fid_over_real_floor/copy"] == pytest.approx(1)


def test_corrupted_clips_are_farther_than_the_floor():
    real = World("test", size=32, num_frames=8, seed=1).batch(range(80)).video
    reference = World("test", size=32, num_frames=8, seed=2).batch(range(80)).video
    metrics = frechet_report(-real, real, reference, "negative")
    assert set(metrics) == {"fvd/negative", "fvd_over_real_floor/negative"}
    assert metrics["fvd_over_real_floor/negative"] > 1


VIDEO = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8, 1, 1).expand(2, 3, 8, 32, 32)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (prompt_accuracy, (VIDEO, ["a tiger"] * 3), "prompts: expected a list of 2 prompts"),
        (prompt_accuracy, (VIDEO, ["a tiger"]), "prompts: expected a list of 2 prompts"),
        (prompt_accuracy, (VIDEO, "a tiger"), "prompts: expected a list of 2 prompts"),
        (prompt_accuracy, (VIDEO[0], ["a tiger"] * 3), "video: expected .* needs a batch axis"),
        (prompt_accuracy, (VIDEO.byte(), ["a tiger"] * 2), "video: expected floating point"),
        (
            motion_accuracy,
            (VIDEO, SimpleNamespace(scenes=[1])),
            "video: expected one for each of 1",
        ),
        (predict_logits, (None, VIDEO[0]), "video: expected .* needs a batch axis"),
        (predict_logits, (None, VIDEO.byte()), "video: expected floating point"),
        (
            extract_features,
            ("judge", VIDEO),
            "name: expected one of features/image, features/video",
        ),
        (extract_features, ("features/image", VIDEO / 0), "video: expected finite values"),
        (frechet_report, (VIDEO[0], VIDEO, VIDEO, "x"), "video: expected .* needs a batch axis"),
        (frechet_report, (VIDEO, VIDEO[:, :, :1], VIDEO, "x"), "real: expected 8 frames, got 1"),
        (frechet_report, (VIDEO, VIDEO, VIDEO[:, :, :1], "x"), "real_reference: expected 8 frames"),
    ],
)
def test_bad_input_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        inspect.unwrap(function)(*arguments)


def test_a_video_in_the_unit_range_is_warned_of():
    video = VIDEO / 2 + 0.5
    with pytest.warns(UserWarning, match=r"video: all values lie in \[0, 1\]"):
        predict_logits(zoo.load("judge"), video)


def test_real_clips_are_their_own_nearest_renderings(clips):
    metrics = rendering_report(clips.video[:, :, :4], clips.captions, max_frames=11)
    names = {"psnr_db", "subject_kept", "path_error_px", "morphing"}
    keys = {f"nearest_rendering/{name}" for name in names}
    assert set(metrics) == keys | {f"{key}_interval" for key in keys}
    assert metrics["nearest_rendering/psnr_db"] > 35
    assert metrics["nearest_rendering/subject_kept"] == 1
    first_two = rendering_report(clips.video[:2, :, :4], clips.captions[:2])  # 8 of 11 frames
    assert metrics == first_two


def test_images_have_neither_a_path_nor_morphing(clips):
    metrics = rendering_report(clips.video[:3, :, :1], clips.image_captions[:3])
    key = "nearest_rendering/psnr_db"
    assert set(metrics) == {key, f"{key}_interval"}


def test_fewer_frames_than_a_clip_has_are_refused(clips):
    with pytest.raises(ValueError, match="max_frames: "):
        rendering_report(clips.video, clips.captions, max_frames=7)
