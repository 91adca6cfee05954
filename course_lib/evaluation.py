"""Evaluation of generated images and videos: accuracy by the judge, distance from real samples.

The metrics of model cards and experiments; an image is a video of one frame.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib import zoo
from course_lib.metrics import PromptAccuracy, RenderingDistance, frechet_distance
from course_lib.metrics import extract_features as extract_with_net
from course_lib.validation import check_choice, check_int, check_prompts, check_video, require
from course_lib.world import MOTIONS, Clips

BATCH_SIZE = 64
FEATURE_NETS = ("features/image", "features/video")


def prompt_accuracy(video: Float[Tensor, "b c f h w"], prompts: Sequence[str]) -> dict[str, Any]:
    """Share of videos in which the judge sees what the prompt names, by attribute.

    Args:
        video: in [-1, 1].
        prompts: one for each video.

    Returns:
        "subject_accuracy", "motion_accuracy" and "background_accuracy", as far as prompts name
        them, "all_attributes_accuracy", and for each its 95 % interval, "…_accuracy_interval".

    Raises:
        ValueError: for bad videos, another number of prompts, and as `PromptAccuracy`.
    """
    check_video("video", video)
    check_prompts("prompts", prompts, len(video))
    accuracy = PromptAccuracy(zoo.load("judge"), "judge")
    for rows in torch.arange(len(video)).split(BATCH_SIZE):
        accuracy.update(video[rows], [prompts[row] for row in rows])
    scores = {
        f"{'all_attributes' if attribute == 'all' else attribute}_accuracy": score
        for attribute, score in accuracy.compute().items()
    }
    metrics: dict[str, Any] = {name: score.value for name, score in scores.items()}
    return metrics | {f"{name}_interval": list(score.interval) for name, score in scores.items()}


def motion_accuracy(video: Float[Tensor, "b c f h w"], clips: Clips) -> dict[str, float]:
    """Motion accuracy of each motion, as "motion_accuracy/moving_left".

    Args:
        video: in [-1, 1], generated from the captions of the clips.
        clips: one for each video.

    Raises:
        ValueError: for bad videos, or another number of them.
    """
    check_video("video", video)
    num_clips = len(clips.scenes)
    require(len(video) == num_clips, "video", f"one for each of {num_clips} clips", len(video))
    metrics = {}
    for motion in MOTIONS:
        rows = [row for row, scene in enumerate(clips.scenes) if scene.motion == motion]
        if rows:
            accuracy = prompt_accuracy(video[rows], [clips.captions[row] for row in rows])
            metrics[f"motion_accuracy/{motion.replace(' ', '_')}"] = accuracy["motion_accuracy"]
    return metrics


@torch.no_grad()
def predict_logits(model: nn.Module, video: Float[Tensor, "b c f h w"]) -> dict[str, Tensor]:
    """Logits of a VideoClassifier by head, on the CPU, a batch at a time.

    Raises:
        ValueError: for bad videos.
    """
    check_video("video", video)
    parts = [model(batch.to(model.device)) for batch in video.split(BATCH_SIZE)]
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}


def extract_features(name: str, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d"]:
    """Features of videos by a feature net of the course, float64.

    Args:
        name: "features/image" or "features/video".
        video: in [-1, 1].

    Raises:
        ValueError: for another name, or bad videos.
    """
    check_choice("name", name, FEATURE_NETS)
    check_video("video", video)
    net = zoo.load(name).features
    return torch.cat([extract_with_net(net, batch) for batch in video.split(BATCH_SIZE)])


def frechet_report(
    video: Float[Tensor, "b c f h w"],
    real: Float[Tensor, "b_real c f h w"],
    real_reference: Float[Tensor, "b_ref c f h w"],
    label: str,
) -> dict[str, float]:
    """Fréchet distance from real videos, and its ratio to that between two sets of real videos.

    Args:
        video: generated, in [-1, 1].
        real: the real videos of the distance.
        real_reference: other real videos; their distance from `real` is the floor.
        label: of the generated videos, for the keys.

    Returns:
        "fvd/label" and "fvd_over_real_floor/label"; "fid…" for images.

    Raises:
        ValueError: for bad videos, or real ones of another length.
    """
    for name, part in (("video", video), ("real", real), ("real_reference", real_reference)):
        check_video(name, part)
        num_frames = video.shape[2]
        require(part.shape[2] == num_frames, name, f"{num_frames} frames", part.shape[2])
    metric, net = ("fid", FEATURE_NETS[0]) if video.shape[2] == 1 else ("fvd", FEATURE_NETS[1])
    generated, first, second = (
        extract_features(net, part) for part in (video, real, real_reference)
    )
    distance = frechet_distance(first, generated)
    floor = frechet_distance(first, second)
    return {
        f"{metric}/{label}": distance,
        f"{metric}_over_real_floor/{label}": distance / floor,
    }


def rendering_report(
    video: Float[Tensor, "b c f h w"], prompts: Sequence[str], max_frames: int = 2048
) -> dict[str, Any]:
    """Distance from the nearest renderings of the prompts, see `metrics.RenderingDistance`.

    Args:
        video: in [-1, 1], with 64 x 64 or 32 x 32 pixels.
        prompts: one for each video.
        max_frames: only the first videos are searched, so many that they have no more frames.

    Returns:
        "nearest_rendering/psnr_db", for several frames "…/subject_kept", "…/path_error_px" and
        "…/morphing", and for each its 95 % interval, "…_interval".

    Raises:
        ValueError: for bad videos or prompts.
    """
    check_video("video", video)
    check_prompts("prompts", prompts, len(video))
    num_frames = video.shape[2]
    check_int("max_frames", max_frames, num_frames)
    count = max_frames // num_frames
    distance = RenderingDistance()
    distance.update(video[:count], prompts[:count])
    scores = distance.compute()
    names = {"psnr": "psnr_db"}
    if num_frames > 1:
        names |= {"subject_kept": "subject_kept", "path_error": "path_error_px"}
        names |= {"morphing": "morphing"}
    metrics: dict[str, Any] = {}
    for key, name in names.items():
        if scores[key].n > 0:  # without a motion in the prompts there is no path
            metrics[f"nearest_rendering/{name}"] = scores[key].value
            interval = scores[key].interval
            if interval is not None:
                metrics[f"nearest_rendering/{name}_interval"] = list(interval)
    return metrics
