"""Lesson 16's claims: what the published metrics see, and what they are blind to.

All of them compare clips of the world's test split with other clips of it, whole or broken on purpose, through the
shipped feature nets and mini-clip. Nothing is trained: a seed decides which clips are drawn.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from course_lib import zoo
from course_lib.claims.ledger import Claim, Numbers
from course_lib.metrics import (
    ClipEncoder,
    FrameConsistency,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from course_lib.nn.classifier import VideoClassifier
from course_lib.world import Clips, World
from course_lib.world.corruption import freeze, noise, shuffle, wobble

CLIPS = 256  # real clips, and as many to compare with them
LEAST = 96  # of them, at any scale: a Fréchet distance on fewer says nothing
BEND = 1.0  # pixels by which `wobble` displaces
COUNTS = (128, 256, 512)  # samples, for the bias
DRAWS = 16
LAWS = {"1/n": -1.0, "1/√n": -0.5}


@cache
def net(name: str) -> VideoClassifier:
    """A shipped feature net, loaded once."""
    return zoo.load(name)


@torch.no_grad()
def features(name: str, video: Tensor) -> Tensor:
    """Features of clips (n, c, f, h, w) by the net of that name, float64; the image net gives the mean over frames."""
    if name == "features/video":
        return torch.cat([net(name).features(some) for some in video.split(32)]).double()
    return frames(video, "features").mean(1)


@torch.no_grad()
def frames(video: Tensor, what: str) -> Tensor:
    """Features, or logits of a head, of every frame by the image net: (n, f, d)."""
    pictures = video.transpose(1, 2).flatten(0, 1)[:, :, None]  # (n f) c 1 h w
    model = net("features/image")
    parts = [
        model.features(some) if what == "features" else model(some)[what]
        for some in pictures.split(256)
    ]
    return torch.cat(parts).double().unflatten(0, video.shape[:1] + video.shape[2:3])


@cache
def real(count: int, seed: int, frames_: int = 16) -> Clips:
    """Clips of the test split; other seeds, other clips."""
    return World("test", part="all", seed=seed, frames=frames_, anytime=frames_ == 1).batch(
        range(count)
    )


def _count(scale: float) -> int:
    return max(LEAST, round(CLIPS * scale))


@cache
def _bias(seed: int, scale: float) -> dict[str, Numbers]:
    """Fréchet distance and KID between two halves of one world, at several n, each drawn many times."""
    pool = features("features/image", real(4 * COUNTS[-1], 100 + seed, 1).video)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[list[float]]] = {"Fréchet": [], "KID": []}
    for n in COUNTS:
        pairs = [
            pool[torch.randperm(len(pool), generator=generator)[: 2 * n]].split(n)
            for _ in range(DRAWS)
        ]
        found["Fréchet"].append([frechet_distance(*pair) for pair in pairs])
        found["KID"].append([kernel_distance(*pair) for pair in pairs])
    out = {}
    for name, values in found.items():
        means = np.mean(values, axis=1)
        out[name] = {f"mean, n = {n}": mean for n, mean in zip(COUNTS, means.tolist(), strict=True)}
        out[name]["bias in standard deviations"] = abs(float(means[0] / np.std(values[0], ddof=1)))
    return out


def _power(arm: str, seed: int, scale: float) -> Numbers:
    """How far the measured power of n is from that of a law."""
    means = [_bias(seed, scale)["Fréchet"][f"mean, n = {n}"] for n in COUNTS]
    power = float(np.polyfit(np.log(COUNTS), np.log(means), 1)[0])
    return {"distance from the law": abs(power - LAWS[arm]), "power of n": power}


def _shuffled(arm: str, seed: int, scale: float) -> Numbers:
    name = {"frames, averaged": "features/image", "clips": "features/video"}[arm]
    clips, others = (real(_count(scale), start + seed).video for start in (200, 300))
    base = features(name, clips)
    floor = frechet_distance(base, features(name, others))
    spoilt = frechet_distance(
        base, features(name, shuffle(others, torch.Generator().manual_seed(seed)))
    )
    return {"times the floor": spoilt / floor, "floor": floor, "shuffled": spoilt}


def _content(arm: str, seed: int, scale: float) -> Numbers:
    steady, reach = {
        "whole": (True, 0.0),
        "steady": (True, BEND),
        "flickering": (False, BEND),
        "steady, twice as bent": (True, 2 * BEND),
    }[arm]
    clips, others = (real(_count(scale), start + seed).video for start in (200, 300))
    bent = wobble(others, reach, torch.Generator().manual_seed(seed), steady=steady)
    every = slice(
        None, None, 4
    )  # of the frames, each a sample of its own: neighbours say little new
    pictures = [frames(video[:, :, every], "features").flatten(0, 1) for video in (clips, bent)]
    return {
        "FVD": frechet_distance(
            features("features/video", clips), features("features/video", bent)
        ),
        "FID of frames": frechet_distance(*pictures),
        "change from frame to frame, times the real": (
            bent.diff(dim=2).abs().mean() / others.diff(dim=2).abs().mean()
        ).item(),
    }


def _frozen(arm: str, seed: int, scale: float) -> Numbers:
    clips = real(_count(scale), 200 + seed).video
    metric = FrameConsistency(ClipEncoder.from_pretrained(zoo.path("mini-clip")).image, "mini-clip")
    for some in (freeze(clips) if arm == "frozen" else clips).split(32):
        metric.update(some)
    return {name: score.value for name, score in metric.compute().items()}


def _collapse(arm: str, seed: int, scale: float) -> Numbers:
    """What Inception Score and recall lose when every subject keeps its share, but has one picture only.

    All pictures get a breath of noise, so that a repeated one is no exact copy: between copies the distance to the
    third neighbour is zero, and recall would fall for that reason alone.
    """
    clips = real(4 * _count(scale), 200 + seed, 1)
    video, subject = clips.video, clips.labels["subject"]
    first = {int(s): i for i, s in reversed(list(enumerate(subject.tolist())))}
    same = video[[first[int(s)] for s in subject]]
    generator = torch.Generator().manual_seed(seed)
    sets = [noise(pictures, 0.05, generator) for pictures in (video, same)]
    if arm == "Inception Score":
        whole, collapsed = (
            inception_score(frames(pictures, "subject")[:, 0]).item() for pictures in sets
        )
    else:
        base = features("features/image", real(len(video), 300 + seed, 1).video)
        whole, collapsed = (
            precision_recall(base, features("features/image", pictures))[1] for pictures in sets
        )
    return {"share lost": 1 - collapsed / whole, "whole": whole, "collapsed": collapsed}


_CHONG = "Chong & Forsyth 2020, Effectively Unbiased FID and Inception Score"
_GE = "Ge et al. 2024, On the Content Bias in Fréchet Video Distance"
CLAIMS = (
    Claim(
        id="fid-bias",
        lesson="16",
        source=f"{_CHONG}; Bińkowski et al. 2018, Demystifying MMD GANs",
        statement="Between two samples of one distribution FID is far above zero, and KID is around zero.",
        arms=("Fréchet", "KID"),
        run=lambda arm, seed, scale: _bias(seed, scale)[arm],
        metric="bias in standard deviations",
        lower_is_better=True,
        better="KID",
        worse="Fréchet",
        setting=f"features/image, pictures of the test split against others, {DRAWS} draws at n = {COUNTS}; the bias "
        f"is the mean at n = {COUNTS[0]} over the standard deviation of a draw",
    ),
    Claim(
        id="fid-falls-as-1-over-n",
        lesson="16",
        source=_CHONG,
        statement="The Fréchet distance between two samples of one distribution falls as 1/n, not as 1/√n.",
        arms=tuple(LAWS),
        run=_power,
        metric="distance from the law",
        lower_is_better=True,
        better="1/n",
        worse="1/√n",
        setting=f"features/image, pictures of the test split against others, {DRAWS} draws at n = {COUNTS}; the power "
        "of n is the slope on logarithmic axes",
    ),
    Claim(
        id="order-blind-features",
        lesson="16",
        source="this course",
        statement="A distance on features of single frames cannot see a shuffle; one on features of clips can.",
        arms=("frames, averaged", "clips"),
        run=_shuffled,
        metric="times the floor",
        better="clips",
        worse="frames, averaged",
        setting=f"{CLIPS} clips of 16 frames against {CLIPS} others, shuffled; over the distance to the others whole",
    ),
    Claim(
        id="content-bias",
        lesson="16",
        source=_GE,
        statement="FVD prefers good frames to good motion: twice the bend, held steady, is worse to it than a bend "
        "that flickers in every frame.",
        arms=("whole", "steady", "flickering", "steady, twice as bent"),
        run=_content,
        metric="FVD",
        better="steady, twice as bent",
        worse="flickering",
        setting="features/video (trained to name subject, background and motion of clean clips; nine of its 73 "
        f"features are the texture of single frames), {CLIPS} clips of 16 frames against {CLIPS} others through wavy "
        f"glass that displaces by {BEND:g} or {2 * BEND:g} pixels; FID of every fourth frame beside it",
    ),
    Claim(
        id="frozen-is-consistent",
        lesson="16",
        source="this course; the definition is Gen-1's (Esser et al. 2023)",
        statement="A frozen video has a better frame consistency than a real one.",
        arms=("frozen", "real"),
        run=_frozen,
        metric="consecutive",
        better="frozen",
        worse="real",
        setting=f"mini-clip, {CLIPS} clips of 16 frames",
    ),
    Claim(
        id="collapse-within-classes",
        lesson="16",
        source="Barratt & Sharma 2018, A Note on the Inception Score",
        statement="If every subject is always the same picture, recall collapses and the Inception Score does not.",
        arms=("Inception Score", "recall"),
        run=_collapse,
        metric="share lost",
        better="recall",
        worse="Inception Score",
        setting=f"features/image, {4 * CLIPS} pictures of the test split; one split; recall (k = 3) against as many",
    ),
)
