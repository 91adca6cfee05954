"""The judge: says what a clip or a picture shows, even a bad one, and when it shows nothing it knows.

It grades every later model, so it must forgive what generators do slightly wrong (blur, noise, compression, colours a
little off) and nothing else: halves of two animals are "none of these", and so is the motion of a shuffled clip.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.metrics.prompt_accuracy import auroc, expected_calibration_error
from course_lib.nn.classifier import VideoClassifier
from course_lib.recipes.recipe import Recipe, Settings
from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Clips, World, films, load_film
from course_lib.world.corruption import blur, codec, jpeg, noise, shuffle, swap_halves, wobble
from course_lib.world.ood import IMPOSTORS, NONE, UNKNOWN, impostors
from course_lib.world.motions import MOTION_INDEX, REVERSED

ORDERS = ("in order", "shuffled", "halves swapped")
HEADS = {
    "subject": len(SUBJECTS) + 1,  # the last class of each is "none of these"
    "motion": len(MOTIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
    "order": len(ORDERS),
}
FOREIGN, DISTURBED, BAD_CAMERA = (
    0.25,
    0.35,
    0.7,
)  # shares of clips: impostors, time disturbed, picture spoilt
STILL = MOTION_INDEX["standing still"]
# With their halves swapped these may go on as if nothing had happened
PERIODIC = torch.tensor([MOTION_INDEX["bouncing"], MOTION_INDEX["spinning"]])
STILLS = 3  # single pictures for every clip: they are cheap, and there are many subjects
BACKWARDS = torch.tensor(
    [MOTION_INDEX[REVERSED.get(name, name)] for name in MOTIONS] + [len(MOTIONS)]
)


def build() -> VideoClassifier:
    """The untrained judge: a 3D stem with steps of four pixels, then (2+1)D blocks."""
    return VideoClassifier(
        "lean", HEADS, widths=(32, 64, 128, 256), stem_kernel=7, stem_stride=(1, 4)
    )


def disturb_time(
    video: Tensor, labels: dict[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Reverse, shuffle or swap the halves of some clips (b, c, f, h, w), in place; returns labels (b,) with "order".

    A reversed clip is in order and its motion the opposite; a shuffled one has none that is known. A clip that stands
    still keeps its motion whatever its order, and nobody can tell that order.
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
            seam = known and not torch.isin(motion[i], PERIODIC)
            video[i] = swap_halves(video[i : i + 1])[0]
            motion[i], order[i] = (UNKNOWN if known else motion[i]), (2 if seam else UNKNOWN)
    order = torch.where(motion == NONE["motion"], torch.where(order == 1, 1, UNKNOWN), order)
    return labels | {"motion": motion, "order": order}


def bad_camera(video: Tensor, generator: torch.Generator) -> Tensor:
    """What generators and codecs do to a picture without changing what it shows, a different mixture per clip.

    video: (b, 3, f, h, w) in [-1, 1]; stays as it is. BAD_CAMERA of the clips get, each with some probability, a blur
    of up to 2.2 pixels of 64, noise of up to 0.25, a JPEG of quality 15 to 75, a change of exposure and colour.
    """
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
    """From clean clips, videos (b, 3, f, h, w) in [-1, 1] and labels (b,) by head, for training.

    Some are impostors, some disturbed in time, most under a bad camera.
    """
    names = list(IMPOSTORS)
    foreign = torch.rand(len(clips), generator=generator) < FOREIGN
    which = torch.randint(len(names), (len(clips),), generator=generator)
    video, labels = clips.video.clone(), clips.labels
    where = foreign.nonzero()[:, 0].tolist()
    if len(where) > 1:
        changed, true = impostors(clips.take(where), [names[which[i]] for i in where], generator)
        video[where] = changed
        labels = {
            name: label.index_put((torch.tensor(where),), true[name])
            for name, label in labels.items()
        }
    if video.shape[2] > 2:
        labels = disturb_time(video, labels, generator)
    else:
        unknown = torch.full((len(clips),), UNKNOWN)
        labels = labels | {"motion": unknown, "order": unknown}
    return bad_camera(video, generator), labels


def batches(number: int, settings: Settings) -> dict[str, Any]:
    """One global batch: "video" (b, 3, f, h, w) and "image" (b, STILLS, 3, 1, h, w) in [-1, 1], and their labels.

    By turns 8 or 16 frames, 64x64 or 32x32 pixels.
    """
    generator = torch.Generator().manual_seed(number)
    frames, size = (16 if number % 4 == 3 else 8), (32 if number % 3 == 2 else 64)
    count = settings.batch
    first = number * count
    clips = World("train", part="all", seed=1, frames=frames, size=size).batch(
        range(first, first + count)
    )
    stills = World("train", part="all", seed=2, frames=1, size=size, anytime=True)
    video, labels = spoil(clips, generator)
    image, image_labels = spoil(
        stills.batch(range(STILLS * first, STILLS * (first + count))), generator
    )
    # a row for every clip, so that processes share pictures as they share clips
    image_labels = {name: label.view(count, STILLS) for name, label in image_labels.items()}
    return {
        "video": video,
        "labels": labels,
        "image": image.unflatten(0, (count, STILLS)),
        "image_labels": image_labels,
    }


def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Cross-entropy of every head that has an answer, on clips and on pictures."""
    total = batch["video"].new_zeros(())
    image_labels = {name: label.flatten() for name, label in batch["image_labels"].items()}
    for picture, labels in (
        (batch["video"], batch["labels"]),
        (batch["image"].flatten(0, 1), image_labels),
    ):
        for name, logits in model(picture).items():
            known = labels[name] != UNKNOWN
            if known.any():
                total = total + F.cross_entropy(logits[known].float(), labels[name][known])
    return total


# After training


@torch.no_grad()
def answers(model: nn.Module, video: Tensor) -> dict[str, Tensor]:
    """Logits by head on the CPU, a few clips at a time."""
    parts = [model(some.to(model.device)) for some in video.split(64)]
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}


def calibrate(model: VideoClassifier, settings: Settings) -> None:
    """Fit one temperature per head, so that "90 % sure" is right nine times in ten (Guo et al. 2017, section 4.2).

    On clips of the training split that training did not see: half of them as they are, half treated as in training,
    impostors and all, so that "none of these" is calibrated too.
    """
    clean = World("train", part="all", seed=3).batch(range(count_for(settings)))
    video, labels = spoil(
        World("train", part="all", seed=4).batch(range(len(clean))),
        torch.Generator().manual_seed(3),
    )
    moving = clean.labels["motion"] != STILL
    known = clean.labels | {"order": torch.where(moving, 0, UNKNOWN)}
    logits = [answers(model, some) for some in (clean.video, video)]
    for name in model.config.heads:
        target = torch.cat([known[name], labels[name]])
        rows = torch.cat([some[name] for some in logits])[target != UNKNOWN]
        grid = torch.linspace(-2, 2, 401).exp()
        losses = torch.stack(
            [F.cross_entropy(rows / heat, target[target != UNKNOWN]) for heat in grid]
        )
        model.temperature(name).mul_(grid[losses.argmin()].to(model.device))


def count_for(settings: Settings) -> int:
    """Clips to evaluate with: a thousand, or a few where the training was only for show."""
    return 32 if settings.steps < 100 else 1024


def evaluate(model: VideoClassifier, settings: Settings) -> Mapping[str, Any]:
    """What the card prints: accuracy by size and length, under a bad camera, calibration, order, refusal."""
    found: dict[str, Any] = {}
    for size in (64, 32):
        for frames in (16, 8, 1):
            clips = World("test", part="all", size=size, frames=frames, anytime=frames == 1)
            clips, what = clips.batch(range(count_for(settings))), f"{frames} x {size} x {size}"
            found |= _accuracy(model, clips, clips.video, what, with_error=frames == 16)
    clips = World("test", part="all").batch(range(count_for(settings)))
    spoilt = bad_camera(clips.video, torch.Generator().manual_seed(4))
    found |= _accuracy(model, clips, spoilt, "bad camera", with_error=True)
    found |= _accuracy(
        model, clips, codec(clips.video, 36), "H.264 at crf 36 (never trained on)", with_error=False
    )
    return found | _order(model, clips) | _refusal(model, clips, spoilt)


def _accuracy(
    model: nn.Module, clips: Clips, video: Tensor, what: str, *, with_error: bool
) -> dict[str, float]:
    logits, found = answers(model, video), {}
    for name, label in clips.labels.items():
        if name != "motion" or video.shape[2] > 1:
            found[f"{name} accuracy, {what}"] = (
                (logits[name].argmax(1) == label).double().mean().item()
            )
            if with_error:
                found[f"{name} ECE, {what}"] = expected_calibration_error(
                    logits[name].softmax(1), label
                ).value
    return found


def _order(model: nn.Module, clips: Clips) -> dict[str, float]:
    motion, generator = clips.labels["motion"], torch.Generator().manual_seed(5)
    moving, seamed = motion != STILL, (motion != STILL) & ~torch.isin(motion, PERIODIC)
    cases = (
        clips.video[moving],
        shuffle(clips.video[moving], generator),
        swap_halves(clips.video[seamed]),
    )
    logits = [answers(model, video) for video in cases]
    right = [(some["order"].argmax(1) == number).double() for number, some in enumerate(logits)]
    doubt = [refusal(some, "motion") for some in logits]
    return {
        "order accuracy": torch.cat(right).mean().item(),
        "none AUROC, motion: shuffled against moving": _auroc(doubt[1], doubt[0]),
    }


def _refusal(model: nn.Module, clips: Clips, spoilt: Tensor) -> dict[str, float]:
    """AUROC of "none of these": impostors against real clips, half of these under a bad camera."""
    generator, few = torch.Generator().manual_seed(6), len(clips) // 2
    real = answers(model, torch.cat([clips.video[:few], spoilt[few:]]))
    found, strange = {}, {"known": [], "never trained on": []}

    def ask(kind: str, video: Tensor, head: str, group: str) -> None:
        doubt = refusal(answers(model, video), head)
        found[f"none AUROC, {kind} ({group}, n = {len(doubt)})"] = _auroc(
            doubt, refusal(real, head)
        )
        if head == "subject":
            strange[group].append(doubt[: few // 2])

    for kind in IMPOSTORS:  # one at a time: all of them would fill 7 GB
        video, labels = impostors(clips.take(range(few)), [kind] * few, generator)
        head = "background" if kind in ("elsewhere", "torn") else "subject"
        ask(kind, video[labels[head] == NONE[head]], head, "known")
    for kind, video in unseen_impostors(few).items():
        ask(kind, video, "subject", "never trained on")
    doubts = {
        group: _auroc(torch.cat(values), refusal(real, "subject"))
        for group, values in strange.items()
    }
    return {f"none AUROC, {group}": value for group, value in doubts.items()} | found


def refusal(logits: Mapping[str, Tensor], head: str) -> Tensor:
    """How sure the judge is that there is none of what it knows: the probability of a head's last class."""
    return logits[head].softmax(1)[:, -1]


def _auroc(strange: Tensor, real: Tensor) -> float:
    positive = torch.cat([torch.ones_like(strange), torch.zeros_like(real)]).bool()
    return auroc(torch.cat([strange, real]), positive).value


def unseen_impostors(count: int) -> dict[str, Tensor]:
    """Kinds of strangers that training has not shown: real film, mosaics of four scenes, scenes kneaded beyond repair.

    Returns clips (n, 3, 16, 64, 64) by kind; film has only as many as the shipped reels hold.
    """
    reels = [load_film(name, size=64, fps=8) for name in films()]
    film = [
        reel[:, start : start + 16] for reel in reels for start in range(0, reel.shape[1] - 15, 16)
    ]
    small = World("test", part="all", size=32, seed=9).batch(range(4 * (count // 4)))
    four = small.video.unflatten(0, (-1, 2, 2))  # b rows columns c f h w
    mosaic = four.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)
    whole = World("test", part="all", seed=10).batch(range(count)).video
    kneaded = wobble(whole, 16, torch.Generator().manual_seed(7), steady=True)
    return {"real film": torch.stack(film), "mosaic": mosaic, "kneaded": kneaded}


TEMPERED = ("16 x 64 x 64", "16 x 32 x 32", "bad camera")

RECIPE = Recipe(
    name="judge",
    about="Says which subject, motion and background a clip or picture shows, or that it shows none of them.",
    build=build,
    batches=batches,
    loss=loss,
    finish=calibrate,
    evaluate=evaluate,
    settings={
        "cpu": Settings(steps=8000, batch=32, lr=1e-3, warmup=200, ema=0.998),
        "gpu": Settings(steps=8000, batch=128, lr=1e-3, warmup=200, ema=0.998),
        "ci": Settings(steps=3, batch=4, lr=1e-3),
    },
    bars={
        **{
            f"{name} accuracy, {frames} x {size} x {size}": (">=", 0.98)
            for size in (64, 32)
            for frames in (16, 8)
            for name in ("subject", "motion", "background")
        },
        **{
            f"{name} ECE, {what}": ("<=", 0.03)
            for what in TEMPERED
            for name in ("subject", "motion", "background")
        },
        **{
            f"{name} accuracy, bad camera": (">=", 0.95)
            for name in ("subject", "motion", "background")
        },
        "none AUROC, known": (">=", 0.95),
        "none AUROC, never trained on": (">=", 0.95),
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
