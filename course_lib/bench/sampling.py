"""Seconds a picture: the text-to-image model beside diffusers' own pipeline, and every sampler beside a plain loop.

Unlike other benchmarks this one takes minutes: torch.compile works for one of them on each number of pictures.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
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
from course_lib.bench.timing import Row, alternate, compare, compile_seconds
from course_lib.diffusion import Model, Step, ddim, ddpm, initial_noise, sample
from course_lib.papers.ddpm import PATCH, as_model, build_schedule
from course_lib.papers.latent_diffusion import LatentDiffusion
from course_lib.world import World

STEPS = 25
GUIDANCE = 5.0  # of text to image; the other cases have none
BARS = {
    1: 0.5,
    16: 0.15,
}  # pictures at once: seconds a picture in bfloat16; float32 may take twice as long
PIXEL_PICTURES = 16
REPEATS, SHORT_REPEATS = 9, 60
SECONDS_A_CASE = 30
PIPELINE = "diffusers float32"
LOOP = "DDIMScheduler.step in a loop"
COMPILED = "ours bfloat16, compiled"

Draw = Callable[[], Tensor]


def remembered(
    functions: Mapping[str, Draw], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of every call, see `timing.alternate`, and what the last one gave."""
    results: dict[str, Tensor] = {}

    def remembering(name: str) -> Callable[[], None]:
        return lambda: results.update({name: functions[name]()})

    times = alternate(
        {name: remembering(name) for name in functions}, repeats, budget_s=SECONDS_A_CASE
    )
    return times, results


def per_picture(row: Row, pictures: int) -> Row:
    """The row in seconds a picture instead of milliseconds a call."""
    return replace(row, value=row.value / 1000 / pictures, unit="s/picture")


def apart(a: Tensor, b: Tensor) -> str:
    """A note on the mean distance of pictures in [-1, 1], in the 255 levels of a screen."""
    return f"{(a - b).abs().mean().item() * 255 / 2:.2f} of 255 levels apart"


# Text to image


def by_us(parts: LatentDiffusion, prompts: list[str], noise: Tensor) -> Draw:
    """Draws the prompts from the noise, in [-1, 1] on the CPU."""
    # The generator draws nothing: the noise is given, and DDIM adds none
    return lambda: parts.draw(
        prompts, generator=torch.Generator(), latents=noise, steps=STEPS, scale=GUIDANCE
    )


def by_diffusers(parts: LatentDiffusion, prompts: list[str], noise: Tensor) -> Draw:
    """The same parts as a StableDiffusionPipeline, which gives pictures in [0, 1]."""
    pipeline, noise = parts.pipeline(), noise.to(parts.unet.dtype)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    return lambda: pipeline(prompts, latents=noise, **options).images.float().cpu() * 2 - 1


def text_to_image_rows(
    full: LatentDiffusion, half: LatentDiffusion, compiled: LatentDiffusion, count: int
) -> list[Row]:
    """Ours and diffusers' pipeline on the same prompts and noise, `count` pictures at once.

    full, half, compiled: the model in float32, in bfloat16, and that one compiled.
    """
    prompts = World("test", frames=1, anytime=True).batch(range(count)).image_captions
    size, channels = full.unet.config.sample_size, full.unet.config.in_channels
    noise = initial_noise((count, channels, size, size), torch.Generator().manual_seed(0))
    functions = {
        PIPELINE: by_diffusers(full, prompts, noise),
        "ours float32": by_us(full, prompts, noise),
        "diffusers bfloat16": by_diffusers(half, prompts, noise),
        "ours bfloat16": by_us(half, prompts, noise),
        COMPILED: by_us(compiled, prompts, noise),
    }
    bar = BARS[count]
    notes = {"ours float32": f"bar {2 * bar:g} s; ", "ours bfloat16": f"bar {bar:g} s; "}
    first = compile_seconds(functions[COMPILED], COMPILED)
    if first is None:
        del functions[COMPILED]
    else:
        notes[COMPILED] = f"bar {bar:g} s; the first after {first:.0f} s; "
    times, pictures = remembered(functions, REPEATS)
    case = f"mini-sd, {STEPS} steps of DDIM with guidance, {count} at once"
    rows = []
    for name in functions:
        note = (
            notes.get(name, "") + apart(pictures[name], pictures[PIPELINE])
            if name != PIPELINE
            else ""
        )
        row = compare(times, name, PIPELINE, benchmark="sampling", case=case, note=note)
        rows.append(per_picture(row, count))
    return rows


# Every sampler


def plain_loop(model: Model, scheduler: SchedulerMixin, x: Tensor, conditioning: Tensor) -> Tensor:
    """DDIM as a pipeline of diffusers has it: what `sample` does, without what it checks and yields."""
    scheduler.set_timesteps(STEPS, device=x.device)
    with torch.no_grad():
        for t in scheduler.timesteps:
            prediction = model(x, t.expand(len(x)), conditioning)
            x = scheduler.step(prediction, t, x, use_clipped_model_output=True).prev_sample
    return x


def last(sampler: Callable[..., Iterator[Step]], *arguments: object) -> Tensor:
    """Where a sampler arrives after all its steps."""
    *_, end = sampler(*arguments, steps=STEPS, generator=torch.Generator().manual_seed(0))
    return end.x


def samplers(model: Model, x: Tensor, conditioning: Tensor) -> dict[str, Draw]:
    """Every way from the noise `x` to data, the plain loop first."""
    schedule = build_schedule()
    own = DDIMScheduler.from_config(schedule.config)  # the loop sets the steps of its scheduler
    found: dict[str, Draw] = {LOOP: lambda: plain_loop(model, own, x, conditioning)}
    for by_hand in (ddpm, ddim):
        found[by_hand.__name__] = lambda by_hand=by_hand: last(
            by_hand, model, schedule, x, conditioning
        )
    for kind in (DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        scheduler = kind.from_config(schedule.config)
        found[f"sample, {kind.__name__}"] = lambda some=scheduler: last(
            sample, model, some, x, conditioning
        )
    return found


def sampler_rows() -> list[Row]:
    """Seconds a picture of pixel-ddpm by every sampler; of those that should draw what the loop draws, how far off."""
    unet = zoo.load("pixel-ddpm", device=runtime.device())
    x = pixel_noise(unet.config.sample_size * PATCH).to(unet.device)
    classes = torch.arange(PIXEL_PICTURES, device=unet.device) % unet.config.num_class_embeds
    times, pictures = remembered(samplers(as_model(unet), x, classes), REPEATS)
    case = f"pixel-ddpm, {STEPS} steps, {PIXEL_PICTURES} at once"
    rows = []
    for name in times:
        same = name in ("ddim", "sample, DDIMScheduler")
        note = apart(pictures[name], pictures[LOOP]) if same else ""
        rows.append(
            per_picture(
                compare(times, name, LOOP, benchmark="sampling", case=case, note=note),
                PIXEL_PICTURES,
            )
        )
    return rows


def overhead_rows() -> list[Row]:
    """What the samplers themselves cost: microseconds a step with a model that does nothing, set-up included."""
    x = pixel_noise(32).to(runtime.device())
    functions = samplers(lambda x, t, conditioning: x, x, x)
    times, _ = remembered(functions, SHORT_REPEATS)
    case = f"a model that does nothing, {STEPS} steps, {PIXEL_PICTURES}x3x32x32"
    rows = []
    for name in functions:
        more = statistics.median(
            ours - loop for ours, loop in zip(times[name], times[LOOP], strict=True)
        )
        note = f"{1e6 * more / STEPS:+.0f} µs a step" if name != LOOP else ""
        row = compare(times, name, LOOP, benchmark="sampling", case=case, note=note)
        rows.append(replace(row, value=1000 * row.value / STEPS, unit="µs/step"))
    return rows


def pixel_noise(size: int) -> Tensor:
    """Noise for pictures of so many pixels, on the CPU."""
    return initial_noise((PIXEL_PICTURES, 3, size, size), torch.Generator().manual_seed(0))


def bench_sampling() -> list[Row]:
    """Seconds a picture, alone and in a batch, and what a sampler costs; about 4 minutes, most of them compiling."""
    full, half = (
        LatentDiffusion.of(zoo.load("mini-sd", dtype=dtype, device=runtime.device()))
        for dtype in (torch.float32, torch.bfloat16)
    )
    compiled = half.compiled()
    rows = [row for count in BARS for row in text_to_image_rows(full, half, compiled, count)]
    return rows + sampler_rows() + overhead_rows()
