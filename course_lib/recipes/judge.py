"""The judge: classifies subject, motion and background of a clip, or answers "none of these".

It evaluates every later model. So it must be robust to what generators do slightly wrong (blur,
noise, compression, colours a little off) and to nothing else: a chimera of two animals is "none of
these", and so is the motion of a shuffled clip.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.evaluation import predict_logits
from course_lib.metrics.prompt_accuracy import auroc, expected_calibration_error
from course_lib.nn.classifier import VideoClassifier
from course_lib.recipes.diffusion_recipe import batch_rows
from course_lib.recipes.recipe import Recipe, TrainConfig
from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Clips, World, list_videos, load_video
from course_lib.world.corruption import (
    blur,
    elastic_distortion,
    h264,
    jpeg,
    noise,
    shuffle,
    swap_halves,
)
from course_lib.world.motions import MOTION_INDEX, TIME_REVERSED
from course_lib.world.ood import IGNORE_INDEX, NONE_LABEL, OOD_KINDS, make_ood_clips

ORDERS = ("in order", "shuffled", "halves swapped")
HEADS = {
    "subject": len(SUBJECTS) + 1,  # the last class of these three is "none of these"
    "motion": len(MOTIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
    "order": len(ORDERS),
}
# Probabilities of the augmentations of a clip
P_OOD = 0.25
P_TEMPORAL = 0.35
P_PHOTOMETRIC = 0.7
STANDING_STILL = MOTION_INDEX["standing still"]
# With their halves swapped these may look intact
PERIODIC_MOTIONS = torch.tensor([MOTION_INDEX["bouncing"], MOTION_INDEX["spinning"]])
IMAGES_PER_CLIP = 3
TIME_REVERSED_LABEL = torch.tensor(
    [MOTION_INDEX[TIME_REVERSED.get(name, name)] for name in MOTIONS] + [len(MOTIONS)]
)


def build_model() -> VideoClassifier:
    """The untrained judge: a 3D stem with spatial stride 4, then (2+1)D blocks."""
    return VideoClassifier(
        "r2plus1d_narrow", HEADS, channels=(32, 64, 128, 256), stem_kernel=7, stem_stride=(1, 4)
    )


def temporal_augment(
    video: Tensor, labels: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Reverse some clips, shuffle others, swap the halves of others; adds the label "order".

    A reversed clip is in order and has the opposite motion; a shuffled one has none of the known
    motions. A clip that stands still keeps its motion, and its order is undefined.

    Args:
        video: (b, c, f, h, w), changed in place.
        labels: (b,) by head.
        generator: draws what happens to each clip.

    Returns:
        The new labels.
    """
    none = NONE_LABEL["motion"]
    motion = labels["motion"].clone()
    is_still = motion == STANDING_STILL
    order = torch.where(is_still | (motion == IGNORE_INDEX), IGNORE_INDEX, 0)
    choice = torch.rand(len(video), generator=generator) / P_TEMPORAL * 3
    for i in range(len(video)):
        is_moving = motion[i] != IGNORE_INDEX and motion[i] != none and not is_still[i]
        if choice[i] < 1:
            video[i] = video[i].flip(1)
            if motion[i] != IGNORE_INDEX:
                motion[i] = TIME_REVERSED_LABEL[motion[i]]
        elif choice[i] < 2:
            video[i] = shuffle(video[i : i + 1], generator)[0]
            motion[i], order[i] = (none, 1) if is_moving else (motion[i], IGNORE_INDEX)
        elif choice[i] < 3:
            video[i] = swap_halves(video[i : i + 1])[0]
            has_seam = is_moving and not torch.isin(motion[i], PERIODIC_MOTIONS)
            order[i] = 2 if has_seam else IGNORE_INDEX
            motion[i] = IGNORE_INDEX if is_moving else motion[i]
    order = torch.where((motion == none) & (order != 1), IGNORE_INDEX, order)
    return dict(labels) | {"motion": motion, "order": order}


def photometric_augment(video: Tensor, generator: torch.Generator) -> Tensor:
    """Artefacts of generators and codecs that leave the content as it is, different for every clip.

    `P_PHOTOMETRIC` of the clips get, each with some probability, a blur of up to 2.2 pixels of 64,
    noise of up to 0.25, JPEG of quality 15 to 75, and a change of exposure and colour.

    Args:
        video: (b, 3, f, h, w) in [-1, 1]; it is not changed.
        generator: draws all choices and the noise.
    """
    size = video.shape[-1]
    augmented = video.clone()
    choices = torch.rand(len(video), 8, generator=generator).tolist()
    for i, (any_change, p_blur, sigma, p_noise, std, p_jpeg, quality, p_colour) in enumerate(
        choices
    ):
        if any_change > P_PHOTOMETRIC:
            continue
        clip = video[i : i + 1]
        if p_blur < 0.5:
            clip = blur(clip, (0.3 + 1.9 * sigma) * size / 64)
        if p_noise < 0.5:
            clip = noise(clip, 0.25 * std, generator)
        if p_jpeg < 0.3:
            clip = jpeg(clip, round(15 + 60 * quality))
        if p_colour < 0.5:
            clip = _color_jitter(clip, generator)
        augmented[i] = clip[0]
    return augmented


def _color_jitter(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, contrast, saturation and white balance; too little to change a colour's name."""
    amounts = torch.rand(6, generator=generator) * 2 - 1
    grey = clip.mean(1, keepdim=True)
    clip = grey + (clip - grey) * (1 + 0.25 * amounts[0])
    white_balance = 0.06 * amounts[3:].view(1, 3, 1, 1, 1)
    clip = clip * (1 + 0.15 * amounts[1]) + 0.12 * amounts[2] + white_balance
    return clip.clamp(-1, 1)


def augment(clips: Clips, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Training examples from clean clips: some out of distribution, some with augmentations.

    Returns:
        Videos (b, 3, f, h, w) in [-1, 1], and labels (b,) by head.
    """
    kinds = list(OOD_KINDS)
    is_ood = torch.rand(len(clips), generator=generator) < P_OOD
    kind_index = torch.randint(len(kinds), (len(clips),), generator=generator)
    video = clips.video.clone()
    labels = dict(clips.labels)
    rows = is_ood.nonzero()[:, 0]
    if len(rows) > 1:  # some kinds mix two clips
        names = [kinds[index] for index in kind_index[rows]]
        video[rows], ood_labels = make_ood_clips(clips.select(rows.tolist()), names, generator)
        labels = {
            name: label.index_put((rows,), ood_labels[name]) for name, label in labels.items()
        }
    if video.shape[2] > 2:
        labels = temporal_augment(video, labels, generator)
    else:
        ignored = torch.full((len(clips),), IGNORE_INDEX)
        labels |= {"motion": ignored, "order": ignored}
    return photometric_augment(video, generator), labels


def make_batch(number: int, config: TrainConfig) -> dict[str, Any]:
    """One global batch: clips of 8 or 16 frames, 64x64 or 32x32 pixels, and images.

    "video" (b, 3, f, h, w) and "image" (b, 3, 3, 1, h, w) in [-1, 1], "labels" and "image_labels".
    Images have a row for each clip, so that processes share them in the same way.
    """
    generator = torch.Generator().manual_seed(number)
    num_frames = 16 if number % 4 == 3 else 8
    size = 32 if number % 3 == 2 else 64
    worlds = (
        World("train", subset="all", seed=1, num_frames=num_frames, size=size),
        World("train", subset="all", seed=2, num_frames=1, size=size, random_time_offset=True),
    )
    per_clip = (config.batch_size, IMAGES_PER_CLIP)
    rows = batch_rows(number, per_clip[0]), batch_rows(number, math.prod(per_clip))
    video, labels = augment(worlds[0].batch(rows[0]), generator)
    image, image_labels = augment(worlds[1].batch(rows[1]), generator)
    return {
        "video": video,
        "labels": labels,
        "image": image.unflatten(0, per_clip),
        "image_labels": {name: label.view(per_clip) for name, label in image_labels.items()},
    }


def loss_fn(model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Cross-entropy of every head that has a label, on clips and on images."""
    total = batch["video"].new_zeros(())
    image_labels = {name: label.flatten() for name, label in batch["image_labels"].items()}
    images = batch["image"].flatten(0, 1)  # (b n) 3 1 h w
    for video, labels in ((batch["video"], batch["labels"]), (images, image_labels)):
        for name, logits in model(video).items():
            labelled = labels[name] != IGNORE_INDEX
            if labelled.any():
                total = total + F.cross_entropy(logits[labelled].float(), labels[name][labelled])
    return total


def calibrate(model: VideoClassifier, config: TrainConfig) -> None:
    """Fit one temperature per head. Guo et al. 2017, "On Calibration of Modern Neural Networks".

    On unused clips of the training split: half of them clean, half treated as in training, so that
    "none of these" is calibrated, too.
    """
    indices = range(config.eval_samples)
    clean = World("train", subset="all", seed=3).batch(indices)
    generator = torch.Generator().manual_seed(3)
    video, labels = augment(World("train", subset="all", seed=4).batch(indices), generator)
    is_moving = clean.labels["motion"] != STANDING_STILL
    clean_labels = clean.labels | {"order": torch.where(is_moving, 0, IGNORE_INDEX)}
    logits = [predict_logits(model, part) for part in (clean.video, video)]
    temperatures = torch.linspace(-2, 2, 401).exp()
    for name in model.config.heads:
        target = torch.cat([clean_labels[name], labels[name]])
        labelled = target != IGNORE_INDEX
        rows = torch.cat([part[name] for part in logits])[labelled]
        losses = [F.cross_entropy(rows / value, target[labelled]) for value in temperatures]
        model.temperature(name).mul_(temperatures[torch.stack(losses).argmin()].to(model.device))


def evaluate(model: VideoClassifier, config: TrainConfig) -> Mapping[str, Any]:
    """Accuracy and calibration by size and length and under corruptions; order; "none of these"."""
    metrics: dict[str, Any] = {}
    indices = range(config.eval_samples)
    for size, num_frames in itertools.product((64, 32), (16, 8, 1)):
        kwargs = {"num_frames": num_frames, "random_time_offset": num_frames == 1}
        clips = World("test", subset="all", size=size, **kwargs).batch(indices)
        label = f"{num_frames}x{size}x{size}"
        metrics |= _accuracy(model, clips, clips.video, label, with_ece=num_frames == 16)
    clips = World("test", subset="all").batch(indices)
    photometric = photometric_augment(clips.video, torch.Generator().manual_seed(4))
    metrics |= _accuracy(model, clips, photometric, "photometric", with_ece=True)
    metrics |= _accuracy(model, clips, h264(clips.video, 36), "h264_crf36", with_ece=False)
    return metrics | _order_metrics(model, clips) | _ood_metrics(model, clips, photometric)


def _accuracy(
    model: nn.Module, clips: Clips, video: Tensor, label: str, *, with_ece: bool
) -> dict[str, float]:
    logits = predict_logits(model, video)
    metrics = {}
    for name, target in clips.labels.items():
        if name == "motion" and video.shape[2] == 1:
            continue
        correct = logits[name].argmax(1) == target
        metrics[f"{name}_accuracy/{label}"] = correct.double().mean().item()
        if with_ece:
            ece = expected_calibration_error(logits[name].softmax(1), target)
            metrics[f"{name}_ece/{label}"] = ece.value
    return metrics


def _order_metrics(model: nn.Module, clips: Clips) -> dict[str, float]:
    motion = clips.labels["motion"]
    moving = motion != STANDING_STILL
    with_seam = moving & ~torch.isin(motion, PERIODIC_MOTIONS)
    videos = (
        clips.video[moving],
        shuffle(clips.video[moving], torch.Generator().manual_seed(5)),
        swap_halves(clips.video[with_seam]),
    )
    logits = [predict_logits(model, video) for video in videos]
    correct = [(part["order"].argmax(1) == order).double() for order, part in enumerate(logits)]
    in_order, shuffled, _ = (none_probability(part, "motion") for part in logits)
    return {
        "order_accuracy": torch.cat(correct).mean().item(),
        "none_auroc/shuffled_motion": _auroc(shuffled, in_order),
    }


def _ood_metrics(model: nn.Module, clips: Clips, photometric: Tensor) -> dict[str, float]:
    """AUROC of "none of these" for every kind of out-of-distribution clips.

    The real clips: half of them clean, half with photometric augmentation.
    """
    half = len(clips) // 2
    generator = torch.Generator().manual_seed(6)
    real = predict_logits(model, torch.cat([clips.video[:half], photometric[half:]]))
    metrics = {}
    pooled = {"trained_kinds": [], "untrained_kinds": []}

    def measure(kind: str, video: Tensor, head: str, group: str) -> None:
        probability = none_probability(predict_logits(model, video), head)
        metrics[f"none_auroc/{kind}"] = _auroc(probability, none_probability(real, head))
        if head == "subject":
            pooled[group].append(probability[: half // 2])

    for kind in OOD_KINDS:  # one at a time: all of them would fill 7 GB
        video, labels = make_ood_clips(clips.select(range(half)), [kind] * half, generator)
        head = "background" if kind in ("unknown_background", "split_background") else "subject"
        measure(kind, video[labels[head] == NONE_LABEL[head]], head, "trained_kinds")
    for kind, video in unseen_ood_clips(half).items():
        measure(kind, video, "subject", "untrained_kinds")
    real_probability = none_probability(real, "subject")
    return {
        f"none_auroc/{group}": _auroc(torch.cat(probabilities), real_probability)
        for group, probabilities in pooled.items()
    } | metrics


def none_probability(logits: Mapping[str, Tensor], head: str) -> Tensor:
    """Probability of "none of these", a head's last class."""
    return logits[head].softmax(1)[:, -1]


def _auroc(ood: Tensor, real: Tensor) -> float:
    is_ood = torch.cat([torch.ones_like(ood), torch.zeros_like(real)]).bool()
    return auroc(torch.cat([ood, real]), is_ood).value


def unseen_ood_clips(num_clips: int) -> dict[str, Tensor]:
    """Kinds of clips (n, 3, 16, 64, 64) that training does not contain.

    "real_film" from the shipped videos, only as many as they hold; "mosaic" of four clips;
    "kneaded", clips distorted beyond recognition.
    """
    videos = [load_video(name, size=64, fps=8) for name in list_videos()]
    film = [
        video[:, start : start + 16]
        for video in videos
        for start in range(0, video.shape[1] - 15, 16)
    ]
    small = World("test", subset="all", size=32, seed=9).batch(range(num_clips // 4 * 4))
    tiles = small.video.unflatten(0, (-1, 2, 2))  # b rows columns c f h w
    mosaic = tiles.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)  # b c f 2h 2w
    clips = World("test", subset="all", seed=10).batch(range(num_clips)).video
    kneaded = elastic_distortion(clips, 16, torch.Generator().manual_seed(7), consistent=True)
    return {"real_film": torch.stack(film), "mosaic": mosaic, "kneaded": kneaded}


ATTRIBUTES = ("subject", "motion", "background")
ECE_CASES = ("16x64x64", "16x32x32", "photometric")
ACCURACY_CASES = ("16x64x64", "8x64x64", "16x32x32", "8x32x32")

RECIPE = Recipe(
    name="judge",
    summary='Classifies subject, motion and background of a clip or image, or "none of these".',
    build_model=build_model,
    make_batch=make_batch,
    loss_fn=loss_fn,
    post_train=calibrate,
    evaluate=evaluate,
    configs={
        "cpu": TrainConfig(8000, batch_size=32, lr=1e-3, warmup=200, ema_decay=0.998),
        "gpu": TrainConfig(8000, batch_size=128, lr=1e-3, warmup=200, ema_decay=0.998),
        "ci": TrainConfig(3, batch_size=4, lr=1e-3, eval_samples=32),
    },
    targets={
        **{f"{n}_accuracy/{case}": (">=", 0.98) for case in ACCURACY_CASES for n in ATTRIBUTES},
        **{f"{n}_ece/{case}": ("<=", 0.03) for case in ECE_CASES for n in ATTRIBUTES},
        **{f"{n}_accuracy/photometric": (">=", 0.95) for n in ATTRIBUTES},
        "none_auroc/trained_kinds": (">=", 0.95),
        "none_auroc/untrained_kinds": (">=", 0.95),
    },
    hub_metadata={"library_name": "diffusers", "pipeline_tag": "video-classification"},
    notes="""
The judge knows the world's 76 emoji and 48 coloured shapes, novel and held-out ones included; it
was trained on all of them. Each of `subject`, `motion` and `background` has one class more than the
world has names: "none of these". `order` classifies the frames as in order, shuffled, or with
swapped halves; a reversed clip is in order and has the opposite motion. Clips of another size are
resized to 64 x 64; an image is a clip of one frame.

It is robust to blur, noise, JPEG artefacts and small changes of exposure and colour, so it cannot
measure them; the feature nets do. `…/16x64x64` are accuracies (and `ece` expected calibration
errors) for 16 frames of 64 x 64 pixels; `photometric` clips have these artefacts, `h264_crf36`
clips another one that training does not contain. `none_auroc/…` is the AUROC of the probability of
"none of these", out-of-distribution against real clips, over the kinds that training contains, over
those it does not (`real_film`, which has 14 clips only, `mosaic` and `kneaded`), and for each kind.
""",
)
