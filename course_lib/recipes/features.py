"""The feature nets of the course's FID, FVD and Inception Score: one for images, one for clips.

They are classifiers of clean clips, without augmentation: a net trained to ignore blur, such as the
judge, cannot measure it. A classifier may still discard what it does not need: a blur of 1.5 pixels
does not change the video net's 64 learned features. So nine texture statistics are appended, scaled
to 5 % of the features' variance (docs/decisions.md). With 73 features a Fréchet distance needs only
a few hundred samples.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.evaluation import predict_logits
from course_lib.metrics import frechet_distance
from course_lib.nn.classifier import VideoClassifier
from course_lib.nn.texture import laplacian_band_std
from course_lib.recipes.diffusion_recipe import batch_rows
from course_lib.recipes.recipe import Recipe, TrainConfig
from course_lib.world import BACKGROUNDS, MOTIONS, SUBJECTS, Clips, World
from course_lib.world.corruption import CORRUPTIONS, elastic_distortion

HEADS = {"subject": len(SUBJECTS), "background": len(BACKGROUNDS), "motion": len(MOTIONS)}
TEXTURE_VARIANCE_SHARE = 0.05
IMAGE_CORRUPTIONS = ("blur", "noise", "colour", "compression")  # those an image can show


def build_image() -> VideoClassifier:
    """The untrained image net: 2D convolutions, without the motion head."""
    heads = {name: size for name, size in HEADS.items() if name != "motion"}
    return VideoClassifier("f-r2d", heads, channels=(32, 64, 128, 64))


def build_video() -> VideoClassifier:
    """The untrained video net: 3D convolutions throughout."""
    return VideoClassifier(
        "r3d", HEADS, channels=(32, 64, 128, 64), stem_kernel=7, stem_stride=(1, 4)
    )


def _clips(split: str, seed: int, indices: range, num_frames: int) -> Clips:
    """Clips of all subjects; images are taken at random times."""
    still = {"num_frames": num_frames, "random_time_offset": num_frames == 1}
    return World(split, subset="all", seed=seed, **still).batch(indices)


def make_batch(number: int, config: TrainConfig, num_frames: int) -> dict[str, Any]:
    """One global batch of clean clips: "video" (b, 3, f, 64, 64) in [-1, 1] and "labels" (b,)."""
    clips = _clips("train", 21, batch_rows(number, config.batch_size), num_frames)
    return {"video": clips.video, "labels": clips.labels}


def loss_fn(model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Cross-entropy, summed over the heads."""
    losses = [
        F.cross_entropy(logits.float(), batch["labels"][name])
        for name, logits in model(batch["video"]).items()
    ]
    return torch.stack(losses).sum()


def fit_texture_weight(model: VideoClassifier, config: TrainConfig, num_frames: int) -> None:
    """Give texture its share of the variance, measured on unused clips of the training split."""
    video = _clips("train", 22, range(config.eval_samples), num_frames).video
    model.register_to_config(texture_weight=0.0)
    variance = extract_features(model, video).var(0).sum()
    texture_variance = laplacian_band_std(video).var(0).sum()
    share = TEXTURE_VARIANCE_SHARE
    weight = (share / (1 - share) * variance / texture_variance).sqrt()
    model.register_to_config(texture_weight=float(f"{weight.item():.3g}"))


@torch.no_grad()
def extract_features(model: VideoClassifier, video: Tensor) -> Tensor:
    """Features of a feature net, a batch at a time, float64 on the CPU."""
    features = [model.features(batch.to(model.device)).cpu() for batch in video.split(64)]
    return torch.cat(features).double()


def evaluate(model: VideoClassifier, config: TrainConfig, num_frames: int) -> Mapping[str, Any]:
    """Accuracy on the test split, and Fréchet distances of corrupted clips.

    "frechet_over_real_floor" depends on the number of samples, since the floor is mostly bias;
    "frechet_z_score" does not: its unit is the floor's standard deviation between sets of real
    clips.
    """
    indices = range(config.eval_samples)
    clips = _clips("test", 0, indices, num_frames)
    logits = predict_logits(model, clips.video)
    metrics: dict[str, Any] = {
        f"{name}_accuracy": (logits[name].argmax(1) == clips.labels[name]).double().mean().item()
        for name in logits
    }
    # One set at a time: it fills 1 GB
    real = [
        extract_features(model, _clips("test", seed, indices, num_frames).video)
        for seed in range(1, 5)
    ]
    features = extract_features(model, clips.video)
    floors = [frechet_distance(features, reference) for reference in real]
    floors = torch.tensor(floors, dtype=torch.float64)
    floor, std = floors.mean().item(), floors.std().item()
    metrics["frechet_real_floor"] = floor
    generator = torch.Generator().manual_seed(0)
    corruptions = {
        **{
            name: CORRUPTIONS[name]
            for name in (IMAGE_CORRUPTIONS if num_frames == 1 else CORRUPTIONS)
        },
        "elastic": partial(elastic_distortion, rms_px=2, consistent=True),
    }
    for name, corrupt in corruptions.items():
        corrupted = extract_features(model, corrupt(clips.video, generator=generator))
        distance = frechet_distance(real[0], corrupted)
        metrics[f"frechet_over_real_floor/{name}"] = distance / floor
        metrics[f"frechet_z_score/{name}"] = (distance - floor) / std
    return metrics


NOTES = """
`model.features(video)` returns 73 features per {item}: 64 learned by classifying clean clips, and
nine texture statistics (the standard deviation of three Laplacian bands of each colour channel),
weighted to 5 % of the total variance. The Fréchet distance of these features is the course's
{metric}. Distances are comparable with each other at equal sample size, and not with published
numbers, which use other nets.

`frechet_real_floor` is the distance between two sets of real samples. For corrupted real samples,
`frechet_over_real_floor/…` is the distance divided by the floor, and `frechet_z_score/…` its excess
in standard deviations of the floor.
"""


def _recipe(
    build_model: Callable[[], VideoClassifier],
    num_frames: int,
    num_steps: int,
    batch_size: int,
    lr: float,
    **fields: Any,
) -> Recipe:
    trained = {"lr": lr, "warmup": 100, "ema_decay": 0.995}
    return Recipe(
        build_model=build_model,
        make_batch=partial(make_batch, num_frames=num_frames),
        loss_fn=loss_fn,
        post_train=partial(fit_texture_weight, num_frames=num_frames),
        evaluate=partial(evaluate, num_frames=num_frames),
        configs={
            "cpu": TrainConfig(num_steps, batch_size, **trained),
            "gpu": TrainConfig(num_steps, 4 * batch_size, **trained),
            "ci": TrainConfig(3, 4, lr=lr, eval_samples=80),
        },
        **fields,
    )


IMAGE = _recipe(
    build_image,
    num_frames=1,
    num_steps=2400,
    batch_size=64,
    lr=1e-3,
    name="features/image",
    summary="Image features of the course's FID and Inception Score; sensitive to blur.",
    targets={"subject_accuracy": (">=", 0.9), "frechet_over_real_floor/blur": (">=", 3.0)},
    notes=NOTES.format(item="image (a clip of one frame)", metric="FID"),
    hub_metadata={"library_name": "diffusers", "pipeline_tag": "image-feature-extraction"},
)
VIDEO = _recipe(
    build_video,
    num_frames=16,
    num_steps=3000,
    batch_size=24,
    lr=7e-4,
    name="features/video",
    summary="Video features of the course's FVD; sensitive to blur and to motion.",
    targets={
        "motion_accuracy": (">=", 0.9),
        "frechet_over_real_floor/blur": (">=", 3.0),
        "frechet_over_real_floor/shuffle": (">=", 3.0),
    },
    notes=NOTES.format(item="clip", metric="FVD"),
    hub_metadata={"library_name": "diffusers", "pipeline_tag": "feature-extraction"},
)
RECIPES = (IMAGE, VIDEO)
