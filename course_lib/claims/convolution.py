"""Lesson 01: what convolutions over time contribute, and what they cost.

Motion recognition in the Emoji World: nine motions, eight noisy frames of 32x32 pixels, small
residual networks with batch norm, AdamW with a cosine schedule, float32. Test clips come from the
world's test split.
"""

import time
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.claims.common import Training, seconds_per_step, shared_run, train_model
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.nn.profiling import count_flops, count_parameters
from course_lib.nn.video_resnet import VideoResNet, video_resnet
from course_lib.training import TrainStep
from course_lib.world import MOTIONS, Sampler, Scene, World, render

SIZE = 32
NUM_FRAMES = 8
FPS = 4
# Standard deviation of pixel noise; without it all 3D networks err on 1-2 % and cannot be compared
NOISE_STD = 0.5
# float32 is as fast as bfloat16 at these sizes, and keeps rounding out of the verdicts
TRAINING = Training(4096, batch_size=32, num_steps=600, lr=3e-3, warmup=20, mixed_precision="no")
LEFT_RIGHT_TRAINING = replace(TRAINING, num_examples=2048, num_steps=200)
NUM_TEST = 1024
CHANNELS = (8, 16, 32, 64)
RENDER_BATCH = 256

# Videos (n, 3, f, h, w) in half precision, labels (n,)
LabelledClips = tuple[Tensor, Tensor]

# Ids are kinds of `nn.video_resnet`
ARMS = {
    kind: Arm(kind, label)
    for kind, label in {
        "f-r2d": "f-R2D",
        "r2d": "R2D",
        "mc3": "MC3",
        "rmc3": "rMC3",
        "r3d": "R3D",
        "r2plus1d": "R(2+1)D",
    }.items()
}


def left_or_right(split: str, num_clips: int, seed: int) -> LabelledClips:
    """Clips of rigid sprites that move left (label 0) or right (label 1), in mirrored pairs.

    Both clips of a pair have the same frames in opposite order. A model that ignores the order of
    frames gives both the same answer and is correct exactly half of the time.

    Args:
        split: "train" or "test".
        num_clips: even number of clips.
        seed: of the scenes.

    Raises:
        ValueError: `num_clips` is not even or not positive.
    """
    if num_clips < 2 or num_clips % 2:
        raise ValueError(f"num_clips: expected a positive even number, got {num_clips}")
    sampler = Sampler(split, subset="all", seed=seed, motions=["standing still"])
    scenes = [
        Scene(scene.subject, f"moving {direction}", scene.background, scene.variant)
        for scene in map(sampler, range(num_clips // 2))
        for direction in ("left", "right")
    ]
    chunks = [
        render(
            scenes[start : start + RENDER_BATCH],
            size=SIZE,
            num_frames=NUM_FRAMES,
            fps=FPS,
            static_sprites=True,
        ).video.half()
        for start in range(0, num_clips, RENDER_BATCH)
    ]
    return torch.cat(chunks), torch.arange(num_clips) % 2


@lru_cache(maxsize=4)
def noisy_motion_clips(split: str, num_clips: int, seed: int) -> LabelledClips:
    """Clips of every subject, motion and background with pixel noise, labelled with the motion.

    Args:
        split: "train" or "test".
        num_clips: number of clips.
        seed: of the scenes and of the noise.
    """
    world = World(split, subset="all", seed=seed, size=SIZE, num_frames=NUM_FRAMES, fps=FPS)
    starts = range(0, num_clips, RENDER_BATCH)
    chunks = [world.batch(range(i, min(i + RENDER_BATCH, num_clips))) for i in starts]
    generator = torch.Generator().manual_seed(seed)
    videos = [
        (chunk.video + NOISE_STD * torch.randn(chunk.video.shape, generator=generator)).half()
        for chunk in chunks
    ]
    return torch.cat(videos), torch.cat([chunk.labels["motion"] for chunk in chunks])


def build_classifier(kind: str, num_classes: int, seed: int) -> VideoResNet:
    """A classifier with weights that depend on the seed only.

    Args:
        kind: see `nn.video_resnet.video_resnet`.
        num_classes: number of labels.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    num_frames = NUM_FRAMES if kind == "r2d" else None
    return video_resnet(kind, num_classes, channels=CHANNELS, num_frames=num_frames)


def train_classifier(
    model: VideoResNet, data: LabelledClips, training: Training, seed: int, scale: float = 1.0
) -> list[TrainStep]:
    """Train a classifier in place on a fixed set of clips.

    Args:
        model: the classifier.
        data: what `noisy_motion_clips` or `left_or_right` returns.
        training: hyperparameters.
        seed: of the order of clips.
        scale: fraction of the steps.
    """
    videos, labels = data

    def make_batch(generator: torch.Generator) -> LabelledClips:
        rows = torch.randint(len(labels), (training.batch_size,), generator=generator)
        return videos[rows].float(), labels[rows]

    def loss_fn(net: nn.Module, batch: LabelledClips, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return train_model(model, make_batch, loss_fn, training, seed=seed, scale=scale)


@torch.no_grad()
def error_rate(model: VideoResNet, data: LabelledClips) -> float:
    """Fraction of clips that the model labels wrongly.

    Args:
        model: a classifier; put into evaluation mode.
        data: videos and labels.
    """
    model.eval()
    videos, labels = data
    predicted = torch.cat([model(chunk.float()).argmax(1) for chunk in videos.split(128)])
    return (predicted != labels).float().mean().item()


def _run_order_blind(arm: Arm, seed: int, scale: float) -> Metrics:
    model = build_classifier(arm.id, 2, seed)
    train = left_or_right("train", LEFT_RIGHT_TRAINING.num_examples, seed)
    train_classifier(model, train, LEFT_RIGHT_TRAINING, seed, scale)
    return {"test_accuracy": 1 - error_rate(model, left_or_right("test", NUM_TEST, 1000 + seed))}


@shared_run
def _run_recognition(arm: Arm, seed: int, scale: float) -> Metrics:
    train = noisy_motion_clips("train", TRAINING.num_examples, seed)
    test = noisy_motion_clips("test", NUM_TEST, 1000 + seed)
    model = build_classifier(arm.id, len(MOTIONS), seed)
    num_parameters = count_parameters(model)
    history = train_classifier(model, train, TRAINING, seed, scale)
    start = time.perf_counter()
    test_error = error_rate(model, test)
    test_seconds = time.perf_counter() - start
    return {
        "test_error": test_error,
        "train_error": error_rate(model, (train[0][:NUM_TEST], train[1][:NUM_TEST])),
        "test_accuracy": 1 - test_error,
        "num_parameters": float(num_parameters),
        "mflops_per_clip": count_flops(model, torch.zeros(1, 3, NUM_FRAMES, SIZE, SIZE)) / 1e6,
        "ms_per_training_step": 1000 * seconds_per_step(history),
        "ms_per_clip_forward": 1000 * test_seconds / len(test[1]),
    }


_TRAN = "Tran et al. 2018, A Closer Look at Spatiotemporal Convolutions for Action Recognition"
_SETUP = (
    f"recognition of nine motions in {NUM_FRAMES} frames of {SIZE}x{SIZE} pixels with noise of "
    f"standard deviation {NOISE_STD:g}; {TRAINING.num_examples} training and {NUM_TEST} test "
    f"clips, other ones for every seed; training error on the first {NUM_TEST} training clips; "
    f"channels {CHANNELS}, {TRAINING.num_steps} steps of {TRAINING.batch_size} clips, AdamW with "
    f"learning rate {TRAINING.lr:g}, float32"
)
CLAIMS = (
    Claim(
        id="order-blind",
        lesson="01",
        source="this course; the 2D baseline f-R2D is from " + _TRAN,
        statement="R3D, a 3D network, can tell a motion to the left from one to the right; f-R2D, "
        "a 2D network that is applied to every frame separately, cannot.",
        arms=(ARMS["f-r2d"], ARMS["r3d"]),
        run=_run_order_blind,
        metric="test_accuracy",
        metric_label="test accuracy",
        unit="%",
        chance=0.5,
        better="r3d",
        worse="f-r2d",
        setup=f"rigid sprites in mirrored pairs, {NUM_FRAMES} frames of {SIZE}x{SIZE} pixels; "
        f"{LEFT_RIGHT_TRAINING.num_examples} training and {NUM_TEST} test clips, channels "
        f"{CHANNELS}, {LEFT_RIGHT_TRAINING.num_steps} steps of {LEFT_RIGHT_TRAINING.batch_size} "
        "clips",
    ),
    Claim(
        id="factorised-test-error",
        lesson="01",
        source=_TRAN,
        statement="R(2+1)D has a lower test error than R3D with the same number of parameters.",
        arms=(ARMS["r3d"], ARMS["r2plus1d"]),
        run=_run_recognition,
        metric="test_error",
        metric_label="test error",
        unit="%",
        lower_is_better=True,
        better="r2plus1d",
        worse="r3d",
        setup=_SETUP,
    ),
    Claim(
        id="factorised-train-error",
        lesson="01",
        source=_TRAN,
        statement="R(2+1)D has a lower training error than R3D with the same number of "
        "parameters, so it is easier to optimise.",
        arms=(ARMS["r3d"], ARMS["r2plus1d"]),
        run=_run_recognition,
        metric="train_error",
        metric_label="training error",
        unit="%",
        lower_is_better=True,
        better="r2plus1d",
        worse="r3d",
        setup=_SETUP,
    ),
    Claim(
        id="early-temporal-convolutions",
        lesson="01",
        source="a hypothesis of " + _TRAN,
        statement="MC3, with 3D convolutions in the early layers, recognises motion better than "
        "rMC3, with 3D convolutions in the late layers.",
        arms=tuple(ARMS.values()),
        run=_run_recognition,
        metric="test_accuracy",
        metric_label="test accuracy",
        unit="%",
        chance=1 / len(MOTIONS),
        better="mc3",
        worse="rmc3",
        setup=_SETUP,
    ),
)
