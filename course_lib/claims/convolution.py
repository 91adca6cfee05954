"""Lesson 01's claims: what convolving over time is good for, and what it costs.

Motion recognition in the Emoji World: nine motions, eight frames of 32x32 pixels seen by a bad camera (noise), small
residual nets with batch norm, AdamW, a cosine schedule, float32. Test clips come from the world's test split.
"""

import time
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.claims.ledger import Claim, Numbers
from course_lib.nn.profiling import count_flops, count_parameters
from course_lib.nn.video_resnet import VideoResNet, video_resnet
from course_lib.training import fit
from course_lib.world import MOTIONS, Sampler, Scene, World, render

SIZE, FRAMES, FPS = 32, 8, 4
NOISE = 0.5  # standard deviation, pixels being in [-1, 1]: without it every 3D net errs on 1-2 % and none can be better
BATCH, STEPS, LEARNING_RATE = 32, 600, 3e-3
TRAIN_CLIPS, TEST_CLIPS = 4096, 1024
WIDTHS = (8, 16, 32, 64)

Labelled = tuple[Tensor, Tensor]  # videos (n, 3, f, h, w) in half precision, labels (n,)


def left_or_right(split: str, count: int, seed: int) -> Labelled:
    """Clips of frozen sprites that move left (label 0) or right (1), in mirrored pairs.

    Both clips of a pair show the same frames in opposite order, so whatever does not see the order of frames
    must give both the same answer, and is right exactly half of the time.

    Args:
        split: "train" or "test".
        count: number of clips, even.
        seed: of the scenes.

    Raises:
        ValueError: count not even or not positive.
    """
    if count < 2 or count % 2:
        raise ValueError(f"count must be a positive even number, got {count}")
    sampler = Sampler(split, part="all", seed=seed, motions=["standing still"])
    still = [sampler(i) for i in range(count // 2)]
    scenes = [
        Scene(s.subject, f"moving {way}", s.background, s.variant)
        for s in still
        for way in ("left", "right")
    ]
    chunks = [
        render(scenes[i : i + 256], size=SIZE, frames=FRAMES, fps=FPS, frozen=True).video.half()
        for i in range(0, count, 256)
    ]
    return torch.cat(chunks), torch.arange(count) % 2


@lru_cache(maxsize=4)
def all_motions(split: str, count: int, seed: int) -> Labelled:
    """Clips of every subject, motion and background with noise on every pixel, labelled with the motion.

    Args:
        split: "train" or "test".
        count: number of clips.
        seed: of the scenes.
    """
    world = World(split, part="all", seed=seed, size=SIZE, frames=FRAMES, fps=FPS)
    chunks = [world.batch(range(i, min(i + 256, count))) for i in range(0, count, 256)]
    generator = torch.Generator().manual_seed(seed)
    videos = [c.video + NOISE * torch.randn(c.video.shape, generator=generator) for c in chunks]
    return torch.cat([video.half() for video in videos]), torch.cat(
        [c.labels["motion"] for c in chunks]
    )


def build(kind: str, classes: int, seed: int) -> VideoResNet:
    """Make a classifier with weights that depend on the seed only.

    Args:
        kind: as in `video_resnet`.
        classes: number of labels.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    return video_resnet(kind, classes, widths=WIDTHS, frames=FRAMES if kind == "r2d" else None)


def learn(model: VideoResNet, data: Labelled, steps: int, seed: int) -> float:
    """Train a classifier on a fixed set of clips.

    Args:
        model: trained in place.
        data: what `all_motions` or `left_or_right` returns.
        steps: number of updates.
        seed: of the order of clips.

    Returns:
        milliseconds per update.
    """
    videos, labels = data

    def batch(number: int) -> Labelled:
        draw = torch.randint(
            len(labels), (BATCH,), generator=torch.Generator().manual_seed(seed * 100_000 + number)
        )
        return videos[draw].float(), labels[draw]

    def loss(model, batch: Labelled, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    # float32: at these sizes it is as fast as bf16, and no verdict should hang on rounding
    options = {
        "warmup": min(20, steps - 1),
        "mixed_precision": "no",
        "seed": seed,
        "progress": False,
    }
    history = fit(model, batch, loss, steps=steps, lr=LEARNING_RATE, **options)
    return 1000 * history[-1].seconds / steps


@torch.no_grad()
def error_rate(model: VideoResNet, data: Labelled) -> float:
    """Share of clips whose label the model gets wrong.

    Args:
        model: a classifier; put into evaluation mode.
        data: videos and labels.
    """
    model.eval()
    videos, labels = data
    guesses = torch.cat(
        [model(videos[i : i + 128].float()).argmax(1) for i in range(0, len(labels), 128)]
    )
    return (guesses != labels).float().mean().item()


def _order_blind(arm: str, seed: int, scale: float) -> Numbers:
    steps = max(1, round(200 * scale))
    model = build(arm, 2, seed)
    learn(model, left_or_right("train", 2048, seed), steps, seed)
    return {"test accuracy": 1 - error_rate(model, left_or_right("test", TEST_CLIPS, 1000 + seed))}


@cache
def _recognise(arm: str, seed: int, scale: float) -> Numbers:
    start, steps = time.perf_counter(), max(1, round(STEPS * scale))
    train, test = (
        all_motions("train", TRAIN_CLIPS, seed),
        all_motions("test", TEST_CLIPS, 1000 + seed),
    )
    model = build(arm, len(MOTIONS), seed)
    milliseconds = learn(model, train, steps, seed)
    before = time.perf_counter()
    test_error = error_rate(model, test)
    forward = 1000 * (time.perf_counter() - before) / len(test[1])
    some = (train[0][:TEST_CLIPS], train[1][:TEST_CLIPS])
    numbers = {
        "test error": test_error,
        "train error": error_rate(model, some),
        "test accuracy": 1 - test_error,
        "parameters": float(count_parameters(model)),
        "MFLOP a clip": count_flops(model, torch.zeros(1, 3, FRAMES, SIZE, SIZE)) / 1e6,
        "ms a training step": milliseconds,
        "ms a clip, forward": forward,
        "minutes": (time.perf_counter() - start) / 60,  # its own: several claims share one run
    }
    return numbers


_TRAN = "Tran et al. 2018, A Closer Look at Spatiotemporal Convolutions for Action Recognition"
_SETTING = (
    f"nine motions, {FRAMES} frames of {SIZE}x{SIZE} with noise of {NOISE:g}, {TRAIN_CLIPS} training and {TEST_CLIPS} "
    f"test clips (others for every seed; training error on the first {TEST_CLIPS} training clips), widths {WIDTHS}, "
    f"{STEPS} steps of {BATCH} clips, AdamW at {LEARNING_RATE:g}, float32"
)
CLAIMS = (
    Claim(
        id="order-blind",
        lesson="01",
        source="this course; the 2D baseline f-R2D is from " + _TRAN,
        statement="A net that convolves every frame alone cannot tell left from right; a 3D net can.",
        arms=("f-r2d", "r3d"),
        run=_order_blind,
        metric="test accuracy",
        better="r3d",
        worse="f-r2d",
        setting=f"frozen sprites in mirrored pairs, {FRAMES} frames of {SIZE}x{SIZE}, 2048 training and {TEST_CLIPS} "
        f"test clips, widths {WIDTHS}, 200 steps of {BATCH} clips",
    ),
    Claim(
        id="factorised-test-error",
        lesson="01",
        source=_TRAN,
        statement="With as many parameters, R(2+1)D reaches a lower test error than R3D.",
        arms=("r3d", "r2plus1d"),
        run=_recognise,
        metric="test error",
        lower_is_better=True,
        better="r2plus1d",
        worse="r3d",
        setting=_SETTING,
    ),
    Claim(
        id="factorised-train-error",
        lesson="01",
        source=_TRAN,
        statement="With as many parameters, R(2+1)D also reaches a lower training error than R3D: it is easier to fit.",
        arms=("r3d", "r2plus1d"),
        run=_recognise,
        metric="train error",
        lower_is_better=True,
        better="r2plus1d",
        worse="r3d",
        setting=_SETTING,
    ),
    Claim(
        id="where-time-belongs",
        lesson="01",
        source="a hypothesis of " + _TRAN,
        statement="Motion is best modelled in early layers: MC3 (3D early) recognises it better than rMC3 (3D late).",
        arms=("f-r2d", "r2d", "mc3", "rmc3", "r3d", "r2plus1d"),
        run=_recognise,
        metric="test accuracy",
        better="mc3",
        worse="rmc3",
        setting=_SETTING,
    ),
)
