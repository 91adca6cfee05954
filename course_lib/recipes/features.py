"""The feature nets behind the course's FID, FVD and Inception Score: one for pictures, one for clips.

They learn to classify clean clips and nothing else. A net that is trained to ignore blur cannot measure it; the judge
is such a net, and these are not. But a classifier is also free to forget what it does not need: in the video net's 64
learned features a blur of 1.5 pixels moves nothing (1.0 times the distance between real clips). So nine numbers that
describe texture stand beside them, with a weight that is a choice: a twentieth of the features' variance. At a fifth,
a softness that nobody would mind (a blur of half a pixel) already doubles the distance of pictures. 73 features keep
a Fréchet distance meaningful with a few hundred samples.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.metrics.frechet import frechet_distance
from course_lib.nn.classifier import VideoClassifier
from course_lib.nn.texture import texture
from course_lib.recipes.judge import answers
from course_lib.recipes.recipe import Recipe, Settings
from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Clips, World
from course_lib.world.corruption import CORRUPTIONS, wobble

HEADS = {"subject": len(SUBJECTS), "background": len(BACKGROUNDS), "motion": len(MOTIONS)}
SHARE = 0.05  # of the variance of the features over real clips that is texture's
PICTURE = ("blur", "noise", "colour", "compression")  # what the image net can notice


def build_image() -> VideoClassifier:
    """The untrained image net: 2D, and blind to motion."""
    heads = {name: count for name, count in HEADS.items() if name != "motion"}
    return VideoClassifier("f-r2d", heads, widths=(32, 64, 128, 64))


def build_video() -> VideoClassifier:
    """The untrained video net: 3D throughout."""
    return VideoClassifier(
        "r3d", HEADS, widths=(32, 64, 128, 64), stem_kernel=7, stem_stride=(1, 4)
    )


def batches(number: int, settings: Settings, frames: int) -> dict[str, Any]:
    """One global batch of clean clips of every subject: "video" (b, 3, f, 64, 64) in [-1, 1] and "labels" (b,)."""
    world = World("train", part="all", seed=21, frames=frames, anytime=frames == 1)
    clips = world.batch(range(number * settings.batch, (number + 1) * settings.batch))
    return {"video": clips.video, "labels": clips.labels}


def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Cross-entropy, summed over the heads."""
    heads = model(batch["video"]).items()
    return torch.stack(
        [F.cross_entropy(logits.float(), batch["labels"][name]) for name, logits in heads]
    ).sum()


def weigh_texture(model: VideoClassifier, settings: Settings, frames: int) -> None:
    """Give the texture its share of the variance, measured on clips of the training split that training did not see."""
    clips = World("train", part="all", seed=22, frames=frames, anytime=frames == 1).batch(
        range(count_for(settings))
    )
    model.register_to_config(texture=0.0)
    learned, fine = (
        some.var(0).sum() for some in (vectors(model, clips.video), texture(clips.video))
    )
    weight = (SHARE / (1 - SHARE) * learned / fine).sqrt().item()
    model.register_to_config(texture=float(f"{weight:.3g}"))


@torch.no_grad()
def vectors(model: VideoClassifier, video: Tensor) -> Tensor:
    """Features, a few clips at a time, in float64 on the CPU."""
    return torch.cat(
        [model.features(some.to(model.device)).cpu() for some in video.split(64)]
    ).double()


def count_for(settings: Settings) -> int:
    """Clips to measure with: a thousand, or a few more than features where the training was only for show."""
    return 80 if settings.steps < 100 else 1024


def evaluate(model: VideoClassifier, settings: Settings, frames: int) -> Mapping[str, Any]:
    """Accuracy on the test split; the Fréchet floor between real clips; how far above it every corruption lies.

    "times the floor" depends on n, since the floor is mostly bias; "deviations above" says whether it is noticed: the
    floor's own standard deviation between different sets of real clips is its unit.
    """
    count = count_for(settings)

    def draw(seed: int) -> Clips:
        return World("test", part="all", seed=seed, frames=frames, anytime=frames == 1).batch(
            range(count)
        )

    clips = draw(0)
    logits = answers(model, clips.video)
    found: dict[str, Any] = {
        f"{name} accuracy": (logits[name].argmax(1) == clips.labels[name]).double().mean().item()
        for name in logits
    }
    real = [
        vectors(model, draw(seed).video) for seed in range(1, 5)
    ]  # one at a time: a set of clips fills 1 GB
    whole = vectors(model, clips.video)
    floors = torch.tensor([frechet_distance(whole, some) for some in real], dtype=torch.float64)
    floor, spread = floors.mean().item(), floors.std().item()
    found[f"Fréchet distance, real to real, n = {count}"] = floor
    generator = torch.Generator().manual_seed(0)
    broken = {name: CORRUPTIONS[name] for name in (PICTURE if frames == 1 else CORRUPTIONS)}
    broken["bent"] = lambda video, generator: wobble(video, 2, generator, steady=True)
    for name, corrupt in broken.items():
        distance = frechet_distance(real[0], vectors(model, corrupt(clips.video, generator)))
        found[f"{name}, times the floor"] = distance / floor
        found[f"{name}, deviations above the floor"] = (distance - floor) / spread
    return found


def _recipe(
    name: str, about: str, build, frames: int, steps: int, batch: int, lr: float, bars, notes: str
) -> Recipe:
    return Recipe(
        name=name,
        about=about,
        build=build,
        batches=partial(batches, frames=frames),
        loss=loss,
        finish=partial(weigh_texture, frames=frames),
        evaluate=partial(evaluate, frames=frames),
        settings={
            "cpu": Settings(steps=steps, batch=batch, lr=lr, warmup=100, ema=0.995),
            "gpu": Settings(steps=steps, batch=4 * batch, lr=lr, warmup=100, ema=0.995),
            "ci": Settings(steps=3, batch=4, lr=lr),
        },
        bars=bars,
        notes=notes,
    )


NOTES = """
`model.features(video)` gives 73 numbers per {what}: 64 that were learned by naming what clean clips show, and nine
that describe texture (the spread of three Laplacian bands of each colour), with a weight that gives them a twentieth
of the variance. The Fréchet distance between two sets of them is the course's {short}. Distances are comparable among
themselves at equal n, and with no number of any paper, whose nets are others.
"""

IMAGE = _recipe(
    "features/image",
    "Image features for the course's FID and Inception Score: sensitive to blur, blind to time.",
    build_image,
    frames=1,
    steps=2400,
    batch=64,
    lr=1e-3,
    bars={"subject accuracy": (">=", 0.9), "blur, times the floor": (">=", 3.0)},
    notes=NOTES.format(what="picture (a clip of one frame)", short="FID"),
)
VIDEO = _recipe(
    "features/video",
    "Video features for the course's FVD: sensitive to blur and to motion.",
    build_video,
    frames=16,
    steps=3000,
    batch=24,
    lr=7e-4,
    bars={
        "motion accuracy": (">=", 0.9),
        "blur, times the floor": (">=", 3.0),
        "shuffle, times the floor": (">=", 3.0),
    },
    notes=NOTES.format(what="clip", short="FVD"),
)
RECIPES = (IMAGE, VIDEO)
