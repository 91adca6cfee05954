"""Lesson 16: what published metrics measure, and what they miss.

All claims compare clips of the world's test split with other clips of it, unchanged or corrupted,
through the shipped feature networks and mini-clip. Nothing is trained; the seed decides which clips
are used.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from course_lib import zoo
from course_lib.claims.common import fold_images, frame_fid, fvd, load_clips, scaled
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.evaluation import extract_features, predict_logits
from course_lib.metrics import (
    ClipEncoder,
    FrameConsistency,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from course_lib.world import Clips
from course_lib.world.corruption import elastic_distortion, freeze, noise, shuffle

NUM_CLIPS = 256
MIN_CLIPS = 96  # at any scale; with fewer, a Fréchet distance means nothing
DISPLACEMENT_PX = 1.0  # of elastic_distortion
SAMPLE_SIZES = (128, 256, 512)
NUM_DRAWS = 16


def features(name: str, video: Tensor) -> Tensor:
    """Features (n, d) of clips (n, c, f, h, w), float64; features/image: the mean over frames."""
    if name == "features/video":
        return extract_features(name, video)
    return extract_features(name, fold_images(video)).unflatten(0, (len(video), -1)).mean(1)


def real_images(num_images: int, seed: int) -> Clips:
    """Images of the test split, clips of one frame at a random time."""
    return load_clips("test", num_images, seed, subset="all", num_frames=1, random_time_offset=True)


def real_videos(seed: int, scale: float) -> tuple[Tensor, Tensor]:
    """Two sets of videos of the test split."""
    num_clips = scaled(NUM_CLIPS, scale, MIN_CLIPS)
    first, second = (
        load_clips("test", num_clips, start + seed, subset="all") for start in (200, 300)
    )
    return first.video, second.video


# value: distance of two samples of features
BIAS_ARMS = (
    Arm("frechet", "Fréchet distance", frechet_distance),
    Arm("kid", "KID", kernel_distance),
)


@cache
def _distances_by_size(seed: int) -> dict[str, np.ndarray]:
    """Distances between two samples of one distribution, (sizes, draws), for every arm."""
    pool = features("features/image", real_images(4 * SAMPLE_SIZES[-1], 100 + seed).video)
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        [
            pool[torch.randperm(len(pool), generator=generator)[: 2 * n]].split(n)
            for _ in range(NUM_DRAWS)
        ]
        for n in SAMPLE_SIZES
    ]
    return {
        arm.id: np.array([[arm.value(*pair) for pair in draws] for draws in pairs])
        for arm in BIAS_ARMS
    }


def _run_bias(arm: Arm, seed: int, scale: float) -> Metrics:
    distances = _distances_by_size(seed)[arm.id]
    means = distances.mean(axis=1)
    metrics = {f"mean_n{n}": float(mean) for n, mean in zip(SAMPLE_SIZES, means, strict=True)}
    return metrics | {"bias_in_std": abs(float(means[0] / np.std(distances[0], ddof=1)))}


# value: exponent of n
BIAS_LAW_ARMS = (Arm("inverse_n", "1/n", -1.0), Arm("inverse_sqrt_n", "1/√n", -0.5))


def _run_bias_law(arm: Arm, seed: int, scale: float) -> Metrics:
    means = _distances_by_size(seed)["frechet"].mean(axis=1)
    exponent = float(np.polyfit(np.log(SAMPLE_SIZES), np.log(means), 1)[0])
    return {"exponent_error": abs(exponent - arm.value), "exponent": exponent}


# value: name of the feature network
FEATURES_ARMS = (
    Arm("frame_features", "averaged frame features", "features/image"),
    Arm("video_features", "video features", "features/video"),
)


def _run_shuffle(arm: Arm, seed: int, scale: float) -> Metrics:
    clips, others = real_videos(seed, scale)
    shuffled = shuffle(others, torch.Generator().manual_seed(seed))
    base = features(arm.value, clips)
    floor = frechet_distance(base, features(arm.value, others))
    distance = frechet_distance(base, features(arm.value, shuffled))
    return {"ratio_to_floor": distance / floor, "floor": floor, "shuffled": distance}


# value: whether all frames are distorted alike, displacement in pixels
DISTORTION_ARMS = (
    Arm("undistorted", "undistorted", (True, 0.0)),
    Arm("consistent", "consistent distortion", (True, DISPLACEMENT_PX)),
    Arm("flickering", "flickering distortion", (False, DISPLACEMENT_PX)),
    Arm(
        "consistent_double", "consistent distortion of twice the size", (True, 2 * DISPLACEMENT_PX)
    ),
)


def _run_distortion(arm: Arm, seed: int, scale: float) -> Metrics:
    consistent, displacement_px = arm.value
    clips, others = real_videos(seed, scale)
    generator = torch.Generator().manual_seed(seed)
    distorted = elastic_distortion(others, displacement_px, generator, consistent=consistent)
    diff_ratio = distorted.diff(dim=2).abs().mean() / others.diff(dim=2).abs().mean()
    return {
        "fvd": fvd(distorted, clips),
        # Every fourth frame is a sample of its own; neighbouring frames are nearly the same
        "frame_fid": frame_fid(distorted[:, :, ::4], clips[:, :, ::4]),
        "frame_diff_ratio": diff_ratio.item(),
    }


CONSISTENCY_ARMS = (Arm("frozen", "frozen video"), Arm("real", "real video"))


def _run_consistency(arm: Arm, seed: int, scale: float) -> Metrics:
    video, _ = real_videos(seed, scale)
    metric = FrameConsistency(ClipEncoder.from_pretrained(zoo.path("mini-clip")).image, "mini-clip")
    for chunk in (freeze(video) if arm.id == "frozen" else video).split(32):
        metric.update(chunk)
    return {name: score.value for name, score in metric.compute().items()}


def _inception_scores(image_sets: list[Tensor], real: Tensor) -> list[float]:
    net = zoo.load("features/image")
    logits = [predict_logits(net, images)["subject"].double() for images in image_sets]
    return [inception_score(subject).item() for subject in logits]


def _recalls(image_sets: list[Tensor], real: Tensor) -> list[float]:
    base = features("features/image", real)
    return [precision_recall(base, features("features/image", images))[1] for images in image_sets]


# value: scores of sets of images, given real ones
COLLAPSE_ARMS = (
    Arm("inception_score", "Inception Score", _inception_scores),
    Arm("recall", "recall", _recalls),
)


def _run_collapse(arm: Arm, seed: int, scale: float) -> Metrics:
    """Relative loss of a score if every subject keeps its share but has only one image.

    All images get weak noise. Between exact copies the distance to the third neighbour would be
    zero, and recall would fall for that reason.
    """
    num_images = 4 * scaled(NUM_CLIPS, scale, MIN_CLIPS)
    clips = real_images(num_images, 200 + seed)
    subjects = clips.labels["subject"].tolist()
    collapsed_images = clips.video[[subjects.index(subject) for subject in subjects]]
    generator = torch.Generator().manual_seed(seed)
    image_sets = [noise(images, 0.05, generator) for images in (clips.video, collapsed_images)]
    diverse, collapsed = arm.value(image_sets, real_images(num_images, 300 + seed).video)
    return {"share_lost": 1 - collapsed / diverse, "diverse": diverse, "collapsed": collapsed}


_CHONG = "Chong & Forsyth 2020, Effectively Unbiased FID and Inception Score"
_BIAS_SETUP = (
    f"features/image, images of the test split against other ones, {NUM_DRAWS} draws at each of n "
    f"= {SAMPLE_SIZES}"
)
CLAIMS = (
    Claim(
        id="fid-bias",
        lesson="16",
        source=f"{_CHONG}; Bińkowski et al. 2018, Demystifying MMD GANs",
        statement="Between two samples of one distribution, KID is close to zero, and the Fréchet "
        "distance is far above zero.",
        arms=BIAS_ARMS,
        run=_run_bias,
        metric="bias_in_std",
        metric_label="bias in standard deviations",
        lower_is_better=True,
        better="kid",
        worse="frechet",
        setup=f"{_BIAS_SETUP}; the bias is the mean at n = {SAMPLE_SIZES[0]} divided by the "
        "standard deviation over draws",
    ),
    Claim(
        id="fid-falls-as-1-over-n",
        lesson="16",
        source=_CHONG,
        statement="The Fréchet distance between two samples of one distribution falls as 1/n, not "
        "as 1/√n.",
        arms=BIAS_LAW_ARMS,
        run=_run_bias_law,
        metric="exponent_error",
        metric_label="error of the exponent of n",
        lower_is_better=True,
        better="inverse_n",
        worse="inverse_sqrt_n",
        setup=f"{_BIAS_SETUP}; the exponent of n is the slope on logarithmic axes",
    ),
    Claim(
        id="order-blind-features",
        lesson="16",
        source="this course",
        statement="A Fréchet distance on video features detects shuffled frames; one on averaged "
        "frame features cannot.",
        arms=FEATURES_ARMS,
        run=_run_shuffle,
        metric="ratio_to_floor",
        metric_label="distance over real floor",
        better="video_features",
        worse="frame_features",
        setup=f"{NUM_CLIPS} clips of 16 frames against {NUM_CLIPS} others with shuffled frames; "
        "the floor is the distance to the same others in order",
    ),
    Claim(
        id="content-bias",
        lesson="16",
        source="Ge et al. 2024, On the Content Bias in Fréchet Video Distance",
        statement="FVD weighs frames more than motion: it is higher for a consistent distortion "
        "than for a flickering one of half the size.",
        arms=DISTORTION_ARMS,
        run=_run_distortion,
        metric="fvd",
        metric_label="FVD",
        better="consistent_double",
        worse="flickering",
        setup="features/video (trained to classify subject, background and motion of clean clips; "
        f"nine of its 73 features describe the texture of single frames); {NUM_CLIPS} clips of 16 "
        f"frames against {NUM_CLIPS} others with an elastic distortion of {DISPLACEMENT_PX:g} or "
        f"{2 * DISPLACEMENT_PX:g} pixels; FID of every fourth frame for comparison",
    ),
    Claim(
        id="frozen-video-is-consistent",
        lesson="16",
        source="this course; the definition is Gen-1's (Esser et al. 2023)",
        statement="A frozen video has a higher frame consistency than a real one.",
        arms=CONSISTENCY_ARMS,
        run=_run_consistency,
        metric="consecutive",
        metric_label="frame consistency",
        better="frozen",
        worse="real",
        setup=f"mini-clip, {NUM_CLIPS} clips of 16 frames, cosine similarity of consecutive frames",
    ),
    Claim(
        id="collapse-within-classes",
        lesson="16",
        source="Barratt & Sharma 2018, A Note on the Inception Score",
        statement="If every subject always has the same image, recall collapses and the Inception "
        "Score does not.",
        arms=COLLAPSE_ARMS,
        run=_run_collapse,
        metric="share_lost",
        metric_label="fraction of the score that is lost",
        unit="%",
        better="recall",
        worse="inception_score",
        setup=f"features/image, {4 * NUM_CLIPS} images of the test split, one split for the "
        "Inception Score; recall (k = 3) against equally many other images",
    ),
)
