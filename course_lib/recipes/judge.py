"""The judge: says what a clip or a picture shows, even a bad one, and when it shows nothing it knows.

It grades every later model, so it must forgive what generators do slightly wrong (blur, noise, compression, colours a
little off) and nothing else: halves of two animals are "none of these", and so is a motion that jumps.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.metrics.judge import auroc, expected_calibration_error
from course_lib.nn.classifier import VideoClassifier
from course_lib.recipes.recipe import Recipe, Settings
from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Clips, World, films, load_film
from course_lib.world.corruption import blur, jpeg, noise, shuffle, swap_halves
from course_lib.world.impostors import IMPOSTORS, NONE, UNKNOWN, impostors
from course_lib.world.motions import MOTION_INDEX, REVERSED

ORDERS = ("in order", "shuffled", "halves swapped")
HEADS = {
    "subject": len(SUBJECTS) + 1,  # the last class of each is "none of these"
    "motion": len(MOTIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
    "order": len(ORDERS),
}
FOREIGN, DISTURBED, BAD_CAMERA = 0.25, 0.35, 0.7  # shares of clips: impostors, time disturbed, picture spoilt
STILL = MOTION_INDEX["standing still"]
BACKWARDS = torch.tensor([MOTION_INDEX[REVERSED.get(name, name)] for name in MOTIONS] + [len(MOTIONS)])


def build() -> VideoClassifier:
    """The untrained judge: a 3D stem with steps of four pixels, then (2+1)D blocks."""
    return VideoClassifier("lean", HEADS, widths=(32, 64, 128, 256), stem_kernel=7, stem_stride=(1, 4))


def disturb_time(video: Tensor, labels: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Reverse, shuffle, halve or unsettle the order of some clips' frames, in place; returns labels with "order".

    A clip that stands still keeps its motion whatever its order, and nobody can tell that order.
    """
    b, _, f = video.shape[:3]
    still = labels["motion"] == STILL
    order = torch.where(still | (labels["motion"] == UNKNOWN), UNKNOWN, 0)
    motion = labels["motion"].clone()
    choice = torch.rand(b, generator=generator) / DISTURBED * 3
    for i in range(b):
        known = motion[i] != UNKNOWN and motion[i] != NONE["motion"] and not still[i]
        if choice[i] < 1:
            video[i] = video[i].flip(1)
            motion[i] = BACKWARDS[motion[i]] if motion[i] != UNKNOWN else UNKNOWN
        elif choice[i] < 2:
            video[i] = shuffle(video[i : i + 1], generator)[0]
            motion[i], order[i] = (NONE["motion"], 1) if known else (motion[i], UNKNOWN)
        elif choice[i] < 3:
            video[i] = swap_halves(video[i : i + 1])[0]
            motion[i], order[i] = (UNKNOWN, 2) if known else (motion[i], UNKNOWN)
    order = torch.where(motion == NONE["motion"], torch.where(order == 1, 1, UNKNOWN), order)
    return labels | {"motion": motion, "order": order}


def bad_camera(video: Tensor, generator: torch.Generator) -> Tensor:
    """What generators and codecs do to a picture without changing what it shows, a different mixture per clip."""
    size, spoilt = video.shape[-1], video.clone()
    dice = torch.rand(len(video), 8, generator=generator)
    for i, (camera, soft, sigma, grain, std, pack, quality, colour) in enumerate(dice.tolist()):
        if camera > BAD_CAMERA:
            continue
        clip = video[i : i + 1]
        if soft < 0.5:
            clip = blur(clip, (0.3 + 1.9 * sigma) * size / 64)
        if grain < 0.5:
            clip = noise(clip, 0.25 * std, generator)
        if pack < 0.3:
            clip = jpeg(clip, round(15 + 60 * quality))
        if colour < 0.5:
            clip = _tint(clip, generator)
        spoilt[i] = clip[0]
    return spoilt


def _tint(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, contrast, saturation and white balance, each by less than would change a colour's name."""
    draws = torch.rand(6, generator=generator) * 2 - 1
    grey = clip.mean(1, keepdim=True)
    clip = grey + (clip - grey) * (1 + 0.25 * draws[0])
    clip = clip * (1 + 0.15 * draws[1]) + 0.12 * draws[2] + 0.06 * draws[3:].view(1, 3, 1, 1, 1)
    return clip.clamp(-1, 1)


def spoil(clips: Clips, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """One training batch from clean clips: some impostors, some disturbed in time, most under a bad camera."""
    names = list(IMPOSTORS)
    foreign = torch.rand(len(clips), generator=generator) < FOREIGN
    which = torch.randint(len(names), (len(clips),), generator=generator)
    video, labels = clips.video.clone(), clips.labels
    where = foreign.nonzero()[:, 0].tolist()
    if len(where) > 1:
        # rendered once for the whole batch would be nine times too much work: only the chosen ones
        changed, true = impostors(clips.take(where), [names[which[i]] for i in where], generator)
        video[where] = changed
        labels = {name: label.index_put((torch.tensor(where),), true[name]) for name, label in labels.items()}
    if video.shape[2] > 2:
        labels = disturb_time(video, labels, generator)
    else:
        unknown = torch.full((len(clips),), UNKNOWN)
        labels = labels | {"motion": unknown, "order": unknown}
    return bad_camera(video, generator), labels


def batches(number: int, settings: Settings) -> dict[str, Any]:
    """Clips and pictures of one update: 8 or 16 frames, 64x64 or 32x32 pixels by turns."""
    generator = torch.Generator().manual_seed(number)
    frames, size = (16 if number % 4 == 3 else 8), (32 if number % 3 == 2 else 64)
    count = settings.batch
    first = number * count
    clips = World("train", part="all", seed=1, frames=frames, size=size).batch(range(first, first + count))
    stills = World("train", part="all", seed=2, frames=1, size=size, anytime=True).batch(range(first, first + count))
    video, labels = spoil(clips, generator)
    image, image_labels = spoil(stills, generator)
    return {"video": video, "labels": labels, "image": image, "image_labels": image_labels}


def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Cross-entropy of every head that has an answer, on clips and on pictures."""
    total = batch["video"].new_zeros(())
    for picture, labels in ((batch["video"], batch["labels"]), (batch["image"], batch["image_labels"])):
        for name, logits in model(picture).items():
            known = labels[name] != UNKNOWN
            if known.any():
                total = total + F.cross_entropy(logits[known].float(), labels[name][known])
    return total


# After training


@torch.no_grad()
def answers(model: nn.Module, video: Tensor) -> dict[str, Tensor]:
    """Logits by head, a few clips at a time."""
    parts = [model(some) for some in video.split(64)]
    return {name: torch.cat([part[name].float() for part in parts]) for name in parts[0]}


def calibrate(model: VideoClassifier, settings: Settings) -> None:
    """Fit one temperature per head, so that "90 % sure" is right nine times in ten (Guo et al. 2017, section 4.2).

    On clips of the training split that training did not see, half of them under a bad camera.
    """
    count = 64 if settings.steps < 100 else 1024
    clips = World("train", part="all", seed=3).batch(range(count))
    video = clips.video.clone()
    video[::2] = bad_camera(video[::2], torch.Generator().manual_seed(3))
    logits = answers(model, video)
    for name in model.config.heads:
        target = clips.labels.get(name, torch.zeros(count, dtype=torch.int64))  # all are in order
        known = target >= 0 if name != "order" else clips.labels["motion"] != STILL
        rows, right = logits[name][known], target[known]
        grid = torch.linspace(-2, 2, 401).exp()
        losses = torch.stack([F.cross_entropy(rows / heat, right) for heat in grid])
        model.temperature(name).mul_(grid[losses.argmin()])


def evaluate(model: VideoClassifier, settings: Settings) -> Mapping[str, Any]:
    """What the card prints: accuracy by size and length, under a bad camera, calibration, refusal."""
    count = 64 if settings.steps < 100 else 1024
    found: dict[str, Any] = {}
    for size in (64, 32):
        for frames in (16, 8, 1):
            clips = World("test", part="all", size=size, frames=frames, anytime=frames == 1).batch(range(count))
            logits = answers(model, clips.video)
            for name in ("subject", "background") + ("motion",) * (frames > 1):
                accuracy = (logits[name].argmax(1) == clips.labels[name]).double().mean().item()
                found[f"{name} accuracy, {frames} x {size} x {size}"] = accuracy
                if frames == 16:
                    error = expected_calibration_error(logits[name].softmax(1), clips.labels[name]).value
                    found[f"{name} ECE, {frames} x {size} x {size}"] = error
    clips = World("test", part="all").batch(range(count))
    found |= _under_a_bad_camera(model, clips) | _order(model, clips) | _refusal(model, clips)
    return found


def _under_a_bad_camera(model: nn.Module, clips: Clips) -> dict[str, float]:
    logits = answers(model, bad_camera(clips.video, torch.Generator().manual_seed(4)))
    return {
        f"{name} accuracy, bad camera": (logits[name].argmax(1) == label).double().mean().item()
        for name, label in clips.labels.items()
    }


def _order(model: nn.Module, clips: Clips) -> dict[str, float]:
    moving = clips.video[clips.labels["motion"] != STILL]
    generator = torch.Generator().manual_seed(5)
    cases = (moving, shuffle(moving, generator), swap_halves(moving))
    right = [(answers(model, video)["order"].argmax(1) == number) for number, video in enumerate(cases)]
    return {"order accuracy": torch.cat(right).double().mean().item()}


def _refusal(model: nn.Module, clips: Clips) -> dict[str, float]:
    """AUROC of "none of these" for impostors of each kind against real clips of the same number."""
    generator = torch.Generator().manual_seed(6)
    heads = {kind: "background" if kind in ("elsewhere", "torn") else "subject" for kind in IMPOSTORS}
    doubt = {name: refusal(answers(model, clips.video), name) for name in ("subject", "background")}
    found, values = {}, []
    foreign = {kind: impostors(clips, [kind] * len(clips), generator) for kind in IMPOSTORS}
    for kind, (video, labels) in foreign.items():
        head = heads[kind]
        sure = labels[head] == NONE[head]
        strange = refusal(answers(model, video[sure]), head)
        found[f"none AUROC, {kind}"] = _auroc(strange, doubt[head])
        values.append(strange[: len(clips) // len(foreign)])
    for kind, video in unseen_impostors(len(clips)).items():
        strange = refusal(answers(model, video), "subject")
        found[f"none AUROC, {kind} (never trained on)"] = _auroc(strange, doubt["subject"])
        values.append(strange[: len(clips) // len(foreign)])
    return {"none AUROC": _auroc(torch.cat(values), torch.cat(list(doubt.values())))} | found


def refusal(logits: Mapping[str, Tensor], head: str) -> Tensor:
    """How sure the judge is that there is none of what it knows: the probability of a head's last class."""
    return logits[head].softmax(1)[:, -1]


def _auroc(strange: Tensor, real: Tensor) -> float:
    positive = torch.cat([torch.ones_like(strange), torch.zeros_like(real)]).bool()
    return auroc(torch.cat([strange, real]), positive).value


def unseen_impostors(count: int) -> dict[str, Tensor]:
    """Kinds of strangers that training has not shown: real film, and mosaics of four scenes.

    Returns clips (n, 3, 16, 64, 64) by kind; film has as many as the shipped reels hold.
    """
    reels = [load_film(name, size=64, fps=8) for name in films()]
    film = [reel[:, start : start + 16] for reel in reels for start in range(0, reel.shape[1] - 15, 8)]
    small = World("test", part="all", size=32, seed=9).batch(range(4 * (count // 4)))
    four = small.video.unflatten(0, (-1, 2, 2))  # b rows columns c f h w
    mosaic = four.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)
    return {"real film": torch.stack(film), "mosaic": mosaic}


RECIPE = Recipe(
    name="judge",
    about="Says which subject, motion and background a clip or picture shows, or that it shows none of them.",
    build=build,
    batches=batches,
    loss=loss,
    finish=calibrate,
    evaluate=evaluate,
    settings={
        "cpu": Settings(steps=4000, batch=32, lr=7e-4, warmup=100, ema=0.998),
        "gpu": Settings(steps=4000, batch=128, lr=1e-3, warmup=100, ema=0.998),
        "ci": Settings(steps=3, batch=4, lr=7e-4),
    },
    bars={
        **{
            f"{name} accuracy, {frames} x {size} x {size}": (">=", 0.98)
            for size in (64, 32)
            for frames in (16, 8)
            for name in ("subject", "motion", "background")
        },
        **{
            f"{name} ECE, 16 x {size} x {size}": ("<=", 0.03)
            for size in (64, 32)
            for name in ("subject", "motion", "background")
        },
        "none AUROC": (">=", 0.95),
    },
    notes="""
It answers for the world's 76 emoji and 48 coloured shapes, all of which it has seen, novel and held-out ones too.
Each of `subject`, `motion` and `background` has one class more than the world has names: "none of these". `order`
tells whether frames come in order, shuffled, or second half first; a reversed clip is in order, and its motion is
the opposite one. Clips of another size are resized to 64 x 64; a picture is a clip of one frame.

It forgives blur, noise, JPEG artefacts and small changes of exposure and colour. So it cannot measure them: that is
what `features` are for. The stem is 3D, not (2+1)D: with it, motion was learned in a third of the steps.
""",
)
