"""Text to image against diffusers' pipeline, and every sampler against a plain loop.

This benchmark takes minutes: torch.compile needs one for each batch size.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from course_lib import runtime, zoo
from course_lib.bench.timing import BenchmarkRow, compare, compile_seconds, timed_with_results
from course_lib.diffusion import Model, SamplerStep, ddim, ddpm, sample, sample_noise
from course_lib.papers.ddpm import PATCH_SIZE, build_scheduler, unet_denoiser
from course_lib.papers.latent_diffusion import LatentDiffusion
from course_lib.world import World

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 5.0  # of text to image; the other cases have none
# Batch size to seconds per image in bfloat16; float32 may take twice as long
TARGET_SECONDS = {1: 0.5, 16: 0.15}
PIXEL_BATCH = 16
SECONDS_PER_CASE = 30
PIPELINE = "diffusers float32"
LOOP = "DDIMScheduler.step in a loop"
COMPILED = "course bfloat16, compiled"

Generate = Callable[[], Tensor]


def _row(
    times: Mapping[str, Sequence[float]],
    name: str,
    peer: str,
    case: str,
    note: str,
    num_images: int,
) -> BenchmarkRow:
    """A row in seconds per image."""
    row = compare(times, name, peer, benchmark="sampling", case=case, note=note)
    return replace(row, value=row.value / 1000 / num_images, unit="s/image")


def mean_abs_diff_note(a: Tensor, b: Tensor) -> str:
    """The mean difference of images in [-1, 1], in the 255 levels of a screen."""
    return f"mean difference {(a - b).abs().mean().item() * 255 / 2:.2f} of 255 levels"


# Text to image


def course_fn(parts: LatentDiffusion, prompts: list[str], noise: Tensor) -> Generate:
    """Generates images in [-1, 1] on the CPU."""
    return lambda: parts.generate(
        prompts,
        generator=torch.Generator(),  # unused: the noise is given, and DDIM adds none
        latents=noise,
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
    )


def diffusers_fn(parts: LatentDiffusion, prompts: list[str], noise: Tensor) -> Generate:
    """The same with StableDiffusionPipeline, whose images are in [0, 1]."""
    pipeline = parts.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    kwargs = {"latents": noise.to(parts.unet.dtype), "guidance_scale": GUIDANCE_SCALE}
    kwargs |= {"num_inference_steps": NUM_INFERENCE_STEPS, "output_type": "pt"}
    return lambda: pipeline(prompts, **kwargs).images.float().cpu() * 2 - 1


def text_to_image_rows(
    fp32: LatentDiffusion, bf16: LatentDiffusion, compiled: LatentDiffusion, batch_size: int
) -> list[BenchmarkRow]:
    """The course and diffusers' pipeline on the same prompts and noise.

    Args:
        fp32: the model in float32.
        bf16: the model in bfloat16.
        compiled: the same, compiled.
        batch_size: images per call.
    """
    world = World("test", num_frames=1, random_time_offset=True)
    prompts = world.batch(range(batch_size)).image_captions
    size = fp32.unet.config.sample_size
    shape = (batch_size, fp32.unet.config.in_channels, size, size)
    noise = sample_noise(shape, torch.Generator().manual_seed(0))
    functions = {
        PIPELINE: diffusers_fn(fp32, prompts, noise),
        "course float32": course_fn(fp32, prompts, noise),
        "diffusers bfloat16": diffusers_fn(bf16, prompts, noise),
        "course bfloat16": course_fn(bf16, prompts, noise),
        COMPILED: course_fn(compiled, prompts, noise),
    }
    target = TARGET_SECONDS[batch_size]
    notes = dict.fromkeys(functions, "")
    notes["course float32"] = f"target {2 * target:g} s; "
    notes["course bfloat16"] = f"target {target:g} s; "
    first = compile_seconds(functions[COMPILED], COMPILED)
    if first is None:
        del functions[COMPILED]
    else:
        notes[COMPILED] = f"target {target:g} s; first call after {first:.0f} s; "
    times, images = timed_with_results(functions, 9, SECONDS_PER_CASE)
    case = f"mini-sd, {NUM_INFERENCE_STEPS} steps of DDIM with guidance, batch of {batch_size}"
    for name in functions:
        if name != PIPELINE:
            notes[name] += mean_abs_diff_note(images[name], images[PIPELINE])
    return [_row(times, name, PIPELINE, case, notes[name], batch_size) for name in functions]


# Samplers


def plain_loop(model: Model, scheduler: SchedulerMixin, x: Tensor, cond: object) -> Tensor:
    """DDIM as in a pipeline of diffusers: `sample` without its checks and its generator."""
    scheduler.set_timesteps(NUM_INFERENCE_STEPS, device=x.device)
    with torch.no_grad():
        for t in scheduler.timesteps:
            pred = model(x, t.expand(len(x)), cond)
            x = scheduler.step(pred, t, x, use_clipped_model_output=True).prev_sample
    return x


def last_sample(sampler: Callable[..., Iterator[SamplerStep]], *args: object) -> Tensor:
    """The result of a sampler."""
    generator = torch.Generator().manual_seed(0)
    *_, last = sampler(*args, num_inference_steps=NUM_INFERENCE_STEPS, generator=generator)
    return last.x


def samplers(model: Model, x: Tensor, cond: object) -> dict[str, Generate]:
    """Every sampler, from the noise x; the plain loop first."""
    scheduler = build_scheduler()
    loop_scheduler = DDIMScheduler.from_config(scheduler.config)  # the loop sets its timesteps
    functions: dict[str, Generate] = {LOOP: lambda: plain_loop(model, loop_scheduler, x, cond)}
    for sampler in (ddpm, ddim):
        functions[sampler.__name__] = lambda sampler=sampler: last_sample(
            sampler, model, scheduler, x, cond
        )
    for kind in (DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        other = kind.from_config(scheduler.config)
        functions[f"sample, {kind.__name__}"] = lambda other=other: last_sample(
            sample, model, other, x, cond
        )
    return functions


def sampler_rows() -> list[BenchmarkRow]:
    """Seconds per image of pixel-ddpm; for samplers equal to the loop also how far they differ."""
    unet = zoo.load("pixel-ddpm", device=runtime.device())
    x = pixel_noise(unet.config.sample_size * PATCH_SIZE).to(unet.device)
    classes = torch.arange(PIXEL_BATCH, device=unet.device) % unet.config.num_class_embeds
    functions = samplers(unet_denoiser(unet), x, classes)
    times, images = timed_with_results(functions, 9, SECONDS_PER_CASE)
    case = f"pixel-ddpm, {NUM_INFERENCE_STEPS} steps, batch of {PIXEL_BATCH}"
    notes = dict.fromkeys(functions, "") | {
        name: mean_abs_diff_note(images[name], images[LOOP])
        for name in ("ddim", "sample, DDIMScheduler")
    }
    return [_row(times, name, LOOP, case, notes[name], PIXEL_BATCH) for name in functions]


def overhead_rows() -> list[BenchmarkRow]:
    """Microseconds per step of the samplers themselves, with an identity model."""
    x = pixel_noise(32).to(runtime.device())
    functions = samplers(lambda x, t, cond: x, x, x)
    times, _ = timed_with_results(functions, 60, SECONDS_PER_CASE)
    case = f"identity model, {NUM_INFERENCE_STEPS} steps, {PIXEL_BATCH}x3x32x32"
    rows = []
    for name in functions:
        pairs = zip(times[name], times[LOOP], strict=True)
        overhead = statistics.median(seconds - loop for seconds, loop in pairs)
        note = f"{1e6 * overhead / NUM_INFERENCE_STEPS:+.0f} µs per step" if name != LOOP else ""
        row = compare(times, name, LOOP, benchmark="sampling", case=case, note=note)
        rows.append(replace(row, value=1000 * row.value / NUM_INFERENCE_STEPS, unit="µs/step"))
    return rows


def pixel_noise(size: int) -> Tensor:
    """Noise for images of `size` pixels, on the CPU."""
    return sample_noise((PIXEL_BATCH, 3, size, size), torch.Generator().manual_seed(0))


def bench_sampling() -> list[BenchmarkRow]:
    """Seconds per image for two batch sizes, then the samplers; about 4 minutes."""
    fp32, bf16 = (
        LatentDiffusion.from_pipeline(zoo.load("mini-sd", dtype=dtype, device=runtime.device()))
        for dtype in (torch.float32, torch.bfloat16)
    )
    compiled = bf16.compile()
    rows = []
    for batch_size in TARGET_SECONDS:
        rows += text_to_image_rows(fp32, bf16, compiled, batch_size)
    return rows + sampler_rows() + overhead_rows()
