"""pixel-ddpm: draws one of 24 subjects in 32 x 32 pixels, on any background; the model of lesson 02.

It never sees the 12 novel emoji or a held-out colour and shape: it has no class for them. A first one, narrower, on
single pixels, for 107 subjects in all their motions, missed its bar by far after 10,000 steps: the judge recognised
19 %. So this one knows fewer, which stand still.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor, nn

from course_lib import runtime
from course_lib.diffusion import Example, denoising_loss, guided, initial_noise, sample
from course_lib.papers.ddpm import as_model, build_schedule, build_unet, learn_from, null_class
from course_lib.evaluation import compared, judged
from course_lib.recipes.recipe import Recipe, Settings, save_half
from course_lib.world import Sampler, World, render
from course_lib.world.hashing import mix

SIZE = 32
ANIMALS = (
    "tiger lion owl octopus frog penguin elephant poodle pig butterfly giraffe flamingo".split()
)
THINGS = "rocket bus helicopter sailboat".split()
SHAPES = "red heart, pink heart, blue star, yellow star, green circle, purple circle, orange square, blue triangle"
CLASSES = (*ANIMALS, *THINGS, *SHAPES.split(", "))
SCENES = {"subjects": CLASSES, "motions": ("standing still",)}  # of its world, see `world.Sampler`
SCHEDULE = build_schedule()
GUIDANCE, STEPS = 2.0, 25  # of the evaluation


def build() -> UNet2DModel:
    """The untrained U-Net."""
    return build_unet(len(CLASSES), SIZE)


def batches(number: int, settings: Settings) -> dict[str, Any]:
    """One global batch: noisy pictures and what they hide, see `diffusion.Example`, and "classes" (b,)."""
    sampler = Sampler("train", seed=31, **SCENES)
    rows = range(number * settings.batch, (number + 1) * settings.batch)
    clips = render([sampler(row) for row in rows], size=SIZE, frames=1, anytime=True)
    classes = torch.tensor([CLASSES.index(scene.subject) for scene in clips.scenes])
    generator = torch.Generator().manual_seed(int(mix(31, number)[0] >> np.uint64(1)))
    example, told = learn_from(
        SCHEDULE, clips.video[:, :, 0], classes, torch.tensor([len(CLASSES)]), generator
    )
    return {**example._asdict(), "classes": told}


def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """The squared error of one batch."""
    example = Example(*(batch[name] for name in Example._fields))
    return denoising_loss(as_model(model)(example.x_t, example.t, batch["classes"]), example)


def save(model: UNet2DModel, folder: Path) -> None:
    """Write the U-Net, and beside it its noise schedule."""
    save_half(model, folder)
    SCHEDULE.save_pretrained(folder / "scheduler")


def draw(
    model: UNet2DModel,
    classes: Tensor,
    generator: torch.Generator,
    *,
    scheduler: SchedulerMixin = SCHEDULE,
    steps: int = STEPS,
    scale: float | int = GUIDANCE,
) -> Tensor:
    """Images of these classes, (b, 3, 1, 32, 32) in [-1, 1] on the CPU.

    classes: (b,), indices into `CLASSES`; the one after the last is any. generator: on the CPU; draws all initial noise
    first. scheduler: by which to sample, DDIM unless told otherwise. steps: how many. scale: see `diffusion.guide`.
    Raises ValueError as `diffusion.sample` does.
    """
    known, parts = guided(as_model(model), null_class(model), scale), []
    # All of it first: two samplers begin with equal noise, however much they draw on their way
    noise = initial_noise((len(classes), 3, SIZE, SIZE), generator).to(model.device)
    for some, x in zip(classes.split(64), noise.split(64), strict=True):
        with runtime.autocast(model.device):
            *_, last = sample(
                known, scheduler, x, some.to(model.device), steps=steps, generator=generator
            )
        parts.append(last.x.float().cpu().clamp(-1, 1))
    return torch.cat(parts)[:, :, None]


def evaluate(model: UNet2DModel, settings: Settings) -> Mapping[str, Any]:
    """The judge's view of a thousand pictures, every class equally often; and the distance from real ones, of pictures
    with the world's own shares of the classes.
    """
    count = 80 if settings.steps < 100 else 1024
    asked = torch.arange(count) % len(CLASSES)
    pictures = draw(model, asked, torch.Generator().manual_seed(0))
    found = judged(pictures, [f"a {CLASSES[number]}" for number in asked])
    real, other = (
        World("test", size=SIZE, frames=1, anytime=True, seed=seed, **SCENES).batch(range(count))
        for seed in (1, 2)
    )
    shares = torch.tensor([CLASSES.index(scene.subject) for scene in real.scenes])
    likewise = draw(model, shares, torch.Generator().manual_seed(1))
    free = draw(
        model, null_class(model).cpu().expand(count), torch.Generator().manual_seed(2), scale=1.0
    )
    found |= compared(likewise, other.video, real.video, name="guided")
    return found | compared(free, other.video, real.video, name="without a class")


RECIPE = Recipe(
    name="pixel-ddpm",
    about="Draws one of 24 subjects in 32 x 32 pixels: diffusion at its plainest.",
    build=build,
    batches=batches,
    loss=loss,
    save=save,
    evaluate=evaluate,
    settings={
        "cpu": Settings(steps=12000, batch=32, lr=2e-3, warmup=300, ema=0.999),
        "gpu": Settings(steps=8000, batch=128, lr=2e-3, warmup=300, ema=0.999),
        "ci": Settings(steps=3, batch=4, lr=1e-3),
    },
    bars={"subject, judge": (">=", 0.9)},
    notes="""
A `diffusers.UNet2DModel`, v-prediction on the cosine schedule (`scheduler/`, a DDIMScheduler). Class labels follow
`course_lib.recipes.pixel_ddpm.CLASSES`; the last, 24, means "anything" and serves classifier-free guidance. It
chooses the background itself; its subjects stand still, larger or smaller, here or there. It sees patches of 2 x 2
pixels, which `course_lib.papers.ddpm.as_model` makes and undoes. Measured with `course_lib.diffusion.sample`, which
has DDIM work ε out anew where x0 was clipped; plain `DDIMScheduler.step` does so if told `use_clipped_model_output`.
""",
)
