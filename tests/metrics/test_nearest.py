"""Renderings of the world are found again, also when blurred and compressed; wrong subjects fit
worse."""

import math
from functools import cache

import pytest
import torch
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.functional import gaussian_blur

from course_lib.metrics import nearest_renderings
from course_lib.validation import to_uint8
from course_lib.world import BASE_EMOJI, SUBJECTS, Scene, World, render

# Degrees of rotation after which a shape looks the same
SYMMETRY = {"square": 90, "star": 72, "ring": 0, "circle": 0}


@cache
def images():
    """One frame each of 48 clips, of all subjects, motions and backgrounds."""
    world = World("test", subset="all", seed=21, num_frames=1, random_time_offset=True)
    return world.batch(range(48))


def blurred(video):
    return gaussian_blur(video[:, :, 0], 5, 0.8)[:, :, None]


def compressed(video):
    pixels = to_uint8(video[:, :, 0])
    decoded = torch.stack([decode_jpeg(encode_jpeg(image, quality=80)) for image in pixels])
    return decoded[:, :, None].float() / 127.5 - 1


def pose_errors(nearest, clips):
    """Distance in pixels, ratio of sizes minus 1, and degrees, modulo the subject's symmetry."""
    pose, truth = nearest.pose[:, 0], clips.path[:, 0]
    distance = (pose - truth)[:, :2].norm(dim=1) * 32
    size = (pose[:, 2] / truth[:, 2] - 1).abs()
    degrees = (pose[:, 3] - truth[:, 3]) * 180 / math.pi
    periods = [SYMMETRY.get(scene.subject.split(" ")[-1], 360) for scene in clips.scenes]
    for row, period in enumerate(periods):
        degrees[row] = (degrees[row] + period / 2) % period - period / 2 if period else 0
        if 0 < period < 360:  # a star's centre is not that of its sprite, so it moves with the turn
            distance[row] = 0 if distance[row] < 3 else distance[row]
    return distance, size, degrees.abs()


@pytest.mark.parametrize(
    ("change", "min_found", "min_psnr"),
    [(lambda video: video, 0.95, 40), (blurred, 0.9, 24), (compressed, 0.9, 24)],
    ids=["as rendered", "blurred", "compressed"],
)
def test_pictures_of_the_world_are_found_again(change, min_found, min_psnr):
    nearest = nearest_renderings(change(images().video), images().image_captions)
    distance, size, degrees = pose_errors(nearest, images())
    found = (distance < 0.5) & (size < 0.03) & (degrees < 3)
    assert found.float().mean() >= min_found
    assert nearest.psnr.median() >= min_psnr


def test_the_animation_frame_is_found():
    scenes = [Scene(name, "moving left", "mint", i) for i, name in enumerate(BASE_EMOJI[:8])]
    clips = render(scenes, num_frames=3)
    nearest = nearest_renderings(clips.video, clips.captions)
    # animations run to and fro, one sprite frame per frame of the clip
    assert (nearest.animation_frame.diff(dim=1).abs() <= 1).all()
    assert (nearest.psnr > 40).all()


def test_a_wrong_subject_fits_worse():
    clips = images()
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, len(SUBJECTS), (len(clips),), generator=generator).tolist()
    wrong = [
        SUBJECTS[(SUBJECTS.index(scene.subject) + step) % len(SUBJECTS)]
        for scene, step in zip(clips.scenes, steps, strict=True)
    ]
    prompts = [
        f"a {subject} on a {scene.background} background"
        for subject, scene in zip(wrong, clips.scenes, strict=True)
    ]
    video = blurred(clips.video)
    right = nearest_renderings(video, clips.image_captions).psnr
    assert (right > nearest_renderings(video, prompts).psnr).float().mean() >= 0.98


def test_small_frames_and_prompts_without_a_background():
    world = World("test", seed=3, size=32, num_frames=1, subjects=BASE_EMOJI[:6])
    clips = world.batch(range(6))
    nearest = nearest_renderings(clips.video, [scene.subject for scene in clips.scenes])
    assert nearest.video.shape == clips.video.shape and nearest.alpha.shape == (6, 1, 1, 32, 32)
    assert (pose_errors(nearest, clips)[0] < 1).float().mean() >= 0.8
    assert nearest.psnr.median() > 30


def test_the_alpha_is_that_of_the_renderer():
    clips = render([Scene("tiger", "growing", "mint", 5)], num_frames=2)
    nearest = nearest_renderings(clips.video, clips.captions)
    assert (nearest.alpha - clips.alpha).abs().max() < 0.05
    assert (nearest.video - clips.video).abs().max() < 0.1


def test_rows_do_not_depend_on_each_other():
    video, prompts = images().video[:6], images().image_captions[:6]
    together = nearest_renderings(video, prompts)
    backwards = nearest_renderings(video.flip(0), prompts[::-1])
    assert torch.allclose(together.psnr, backwards.psnr.flip(0), atol=1e-3)
    assert torch.allclose(together.pose, backwards.pose.flip(0), atol=1e-3)


def test_only_prompts_that_may_spin_are_searched_at_all_angles():
    scene = next(
        Scene("poodle", "spinning", "mint", variant)
        for variant in range(50)
        if 1
        < render([Scene("poodle", "spinning", "mint", variant)], num_frames=1).path[0, 0, 3]
        < 5
    )
    video = render([scene], num_frames=1).video
    prompts = [f"a poodle {m} on a mint background" for m in ("spinning", "moving left")]
    turned, upright = (nearest_renderings(video, [prompt]) for prompt in prompts)
    assert upright.pose[0, 0, 3] == 0 and turned.psnr > 40 > 20 > upright.psnr


@pytest.mark.parametrize(
    ("video", "prompts", "match"),
    [
        (torch.zeros(1, 3, 1, 48, 48), ["a tiger"], "video: .*64 or 32"),
        (torch.zeros(1, 1, 1, 64, 64), ["a tiger"], "video: "),
        (torch.zeros(1, 3, 1, 64, 64), ["on a mint background"], "prompts: .*subject"),
        (torch.zeros(1, 3, 1, 64, 64), ["a tiger", "a fox"], "prompts: "),
    ],
)
def test_bad_input_is_refused(video, prompts, match):
    with pytest.raises(ValueError, match=match):
        nearest_renderings(video, prompts)
