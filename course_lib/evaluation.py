"""What a model card says about pictures and clips that a model has drawn: the judge's verdict, and the distance."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib import zoo
from course_lib.metrics import PromptAccuracy, extract, frechet_distance
from course_lib.world import MOTIONS, Clips


def judged(video: Float[Tensor, "b c f h w"], prompts: Sequence[str]) -> dict[str, Any]:
    """Share of videos that show what was asked for, by attribute named, with 95 % intervals.

    video: in [-1, 1]; one frame for pictures. prompts: one each. Raises ValueError as `PromptAccuracy` does.
    """
    accuracy = PromptAccuracy(zoo.load("judge"), "judge")
    for some in torch.arange(len(video)).split(64):
        accuracy.update(video[some], [prompts[row] for row in some])
    scores = {
        ("everything named" if key == "all" else key): score
        for key, score in accuracy.compute().items()
    }
    found: dict[str, Any] = {f"{key}, judge": score.value for key, score in scores.items()}
    return found | {
        f"{key}, judge, 95 % interval": list(score.interval) for key, score in scores.items()
    }


def judged_by_motion(video: Float[Tensor, "b c f h w"], clips: Clips) -> dict[str, float]:
    """Share of videos that move as asked for, motion by motion. Arguments: video as for `judged`, drawn from the
    captions of the clips.
    """
    found = {}
    for motion in MOTIONS:
        rows = [row for row, scene in enumerate(clips.scenes) if scene.motion == motion]
        if rows:
            found[f"{motion}, judge"] = judged(video[rows], [clips.captions[row] for row in rows])[
                "motion, judge"
            ]
    return found


def features(net: str, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d"]:
    """What one of the course's feature nets says of videos in [-1, 1], float64. net: "features/image" or "/video"."""
    extractor = zoo.load(net).features
    return torch.cat([extract(extractor, some) for some in video.split(64)])


def compared(video: Tensor, real: Tensor, other: Tensor, name: str) -> dict[str, float]:
    """The Fréchet distance from real videos on the course's features, and as a multiple of that between real ones.

    video, real, other: (b, c, f, h, w) in [-1, 1]; one frame for pictures. name: of what was drawn, for the keys.
    """
    net = "features/image" if video.shape[2] == 1 else "features/video"
    drawn, first, second = (features(net, part) for part in (video, real, other))
    short = "FID" if video.shape[2] == 1 else "FVD"
    distance, floor = frechet_distance(first, drawn), frechet_distance(first, second)
    return {
        f"{short}, n = {len(video)}, {name}": distance,
        f"{short}, {name}, times the floor": distance / floor,
    }
