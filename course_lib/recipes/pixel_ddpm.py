"""pixel-ddpm: one of 24 subjects in 32 x 32 pixels on any background; the model of lesson 02.

Trained on the base subset only: it has no class for the 12 novel emoji or a held-out shape. A
larger task (107 subjects in all motions) missed its target by far, see docs/decisions.md.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor

from course_lib.diffusion import cfg_model, sample, sample_noise
from course_lib.evaluation import frechet_report, prompt_accuracy, rendering_report
from course_lib.papers.ddpm import (
    build_scheduler,
    build_unet,
    null_class,
    training_batch,
    unet_denoiser,
)
from course_lib.recipes.diffusion_recipe import (
    batch_generator,
    batch_rows,
    generate_in_chunks,
    noisy_batch_loss,
    save_unet,
)
from course_lib.recipes.recipe import Recipe, TrainConfig
from course_lib.world import SUBJECTS_24, Clips, Sampler, World, render

SEED = 31
SIZE = 32
WORLD_KWARGS = {"subjects": SUBJECTS_24, "motions": ("standing still",)}
GUIDANCE_SCALE = 2.0
NUM_INFERENCE_STEPS = 25

loss_fn = noisy_batch_loss(unet_denoiser, "classes")


@cache
def scheduler() -> SchedulerMixin:
    """The noise schedule of training and sampling."""
    return build_scheduler()


def build_model() -> UNet2DModel:
    """The untrained U-Net."""
    return build_unet(len(SUBJECTS_24), SIZE)


def make_batch(number: int, config: TrainConfig) -> dict[str, Tensor]:
    """One global batch: the fields of `NoisyBatch`, images (b, 3, 32, 32), and "classes" (b,)."""
    sampler = Sampler("train", seed=SEED, **WORLD_KWARGS)
    scenes = [sampler(row) for row in batch_rows(number, config.batch_size)]
    clips = render(scenes, size=SIZE, num_frames=1, random_time_offset=True)
    classes = torch.tensor([SUBJECTS_24.index(scene.subject) for scene in scenes])
    noisy, classes = training_batch(
        scheduler(),
        clips.video[:, :, 0],
        classes,
        torch.tensor([len(SUBJECTS_24)]),
        batch_generator(SEED, number),
    )
    return {**noisy._asdict(), "classes": classes}


def generate(
    model: UNet2DModel,
    classes: Tensor,
    generator: torch.Generator,
    *,
    scheduler: SchedulerMixin | None = None,
    num_inference_steps: int = NUM_INFERENCE_STEPS,
    guidance_scale: float | int = GUIDANCE_SCALE,
) -> Tensor:
    """Images of classes, (b, 3, 1, 32, 32) in [-1, 1] on the CPU.

    Args:
        model: the U-Net.
        classes: (b,), indices into `SUBJECTS_24`; 24 is the null class.
        generator: on the CPU. It draws all initial noise first, so that samplers which draw more
            on their way start from equal noise.
        scheduler: of sampling; None is the recipe's DDIM.
        num_inference_steps, guidance_scale: of sampling.

    Raises:
        ValueError: as `diffusion.sample`.
    """
    scheduler = build_scheduler() if scheduler is None else scheduler
    guided = cfg_model(unet_denoiser(model), null_class(model), guidance_scale)

    def generate_chunk(classes: Tensor, latents: Tensor) -> Tensor:
        *_, last = sample(
            guided,
            scheduler,
            latents.to(model.device),
            classes.to(model.device),
            num_inference_steps=num_inference_steps,
            generator=generator,
        )
        return last.x.clamp(-1, 1)

    noise = sample_noise((len(classes), 3, SIZE, SIZE), generator)
    images = generate_in_chunks(
        generate_chunk, classes, chunk_size=64, device=model.device, latents=noise
    )
    return images[:, :, None]


def _real_images(num_samples: int, seed: int) -> Clips:
    kwargs = {"size": SIZE, "num_frames": 1, "random_time_offset": True, **WORLD_KWARGS}
    return World("test", seed=seed, **kwargs).batch(range(num_samples))


def evaluate(model: UNet2DModel, config: TrainConfig) -> Mapping[str, Any]:
    """Accuracy with every class equally often; distance with the class frequencies of the world."""
    num_samples = config.eval_samples
    classes = torch.arange(num_samples) % len(SUBJECTS_24)
    images = generate(model, classes, torch.Generator().manual_seed(0))
    prompts = [f"a {SUBJECTS_24[index]}" for index in classes]
    metrics = prompt_accuracy(images, prompts) | rendering_report(images, prompts)
    reference, real = (_real_images(num_samples, seed) for seed in (1, 2))
    classes = torch.tensor([SUBJECTS_24.index(scene.subject) for scene in reference.scenes])
    guided = generate(model, classes, torch.Generator().manual_seed(1))
    null_classes = null_class(model).cpu().expand(num_samples)
    unguided = generate(model, null_classes, torch.Generator().manual_seed(2), guidance_scale=1.0)
    for images, label in ((guided, "guided"), (unguided, "unconditional")):
        metrics |= frechet_report(images, real.video, reference.video, label)
    return metrics


RECIPE = Recipe(
    name="pixel-ddpm",
    summary="Class-conditional diffusion on pixels: one of 24 subjects in 32 x 32 pixels.",
    build_model=build_model,
    make_batch=make_batch,
    loss_fn=loss_fn,
    save=lambda model, folder: save_unet(model, scheduler(), folder),
    evaluate=evaluate,
    configs={
        "cpu": TrainConfig(12000, batch_size=32, lr=2e-3, warmup=300, ema_decay=0.999),
        "gpu": TrainConfig(8000, batch_size=128, lr=2e-3, warmup=300, ema_decay=0.999),
        "ci": TrainConfig(3, batch_size=4, lr=1e-3, eval_samples=80),
    },
    targets={"subject_accuracy": (">=", 0.9)},
    hub_metadata={
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
    },
    notes="""
A `diffusers.UNet2DModel` with v-prediction on the cosine schedule (`scheduler/`, a DDIMScheduler).
Class labels follow `course_lib.world.SUBJECTS_24`; the last one, 24, is the null class of
classifier-free guidance. The model chooses the background itself; its subjects stand still, at any
size and position. The U-Net works on patches of 2 x 2 pixels, which
`course_lib.papers.ddpm.unet_denoiser` makes and undoes. The card's numbers are measured with
`course_lib.diffusion.sample`, whose DDIM computes the noise again after clipping x0; diffusers'
`DDIMScheduler.step` does the same with `use_clipped_model_output=True`.
""",
)
