"""From noise to data, as generators: they yield after every step, so that a notebook can draw meanwhile.

    noise = initial_noise((4, 3, 16, 32, 32), generator)
    for step in sample(guided(model, empty, 5), scheduler, noise, text, steps=50, generator=generator):
        show(step.x0)

`sample` runs any diffusers scheduler; `ddpm` and `ddim` are the two that a lesson writes by hand. All leave the
scheduler as it was, refuse bad arguments when called, and record no gradients; between steps, the reader may.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
Song et al. 2021, "Denoising Diffusion Implicit Models", arXiv 2010.02502.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from course_lib import runtime
from course_lib.diffusion.guidance import dynamic_threshold
from course_lib.diffusion.objective import (
    CLEAN,
    Level,
    Model,
    ends_without_signal,
    estimate,
    initial_noise,
    level_at,
    prediction_type,
)

_OURS = (
    "model_output",
    "timestep",
    "sample",
    "generator",
    "return_dict",
)  # of a scheduler's step, what we fill in


class Step(NamedTuple):
    """Where sampling stands.

    step: how many are done, from 1; Heun's and some others need more than `steps`. t: the timestep that this one left.
    x: where it led, on the scheduler's own scale (Euler's is x0 + σε and begins at σ = 15 or more). x0: the estimate of
    the clean data that it went by, after the clipping or thresholding of the scheduler's config.
    """

    step: int
    t: int | float
    x: Float[Tensor, "b *axes"]
    x0: Float[Tensor, "b *axes"]


def sample(
    model: Model,
    scheduler: SchedulerMixin,
    x: Float[Tensor, "b *axes"],
    conditioning: Any = None,
    *,
    steps: int,
    generator: torch.Generator,
    **options: Any,
) -> Iterator[Step]:
    """Sample with a diffusers scheduler: DDPM, DDIM, Euler, DPM-Solver++ and others with an ε, x0 or v prediction.

    model: (x, t, conditioning) to a prediction of the scheduler's `prediction_type`; x has the scale of training
    (`scale_model_input`), t is (b,) and may be fractional. x: `initial_noise`, scaled here (`init_noise_sigma`).
    conditioning: handed on to the model. steps: how many, at most those of training (Heun's call the model twice).
    generator: for schedulers that draw, for every frame its own noise (`ddpm` and `ddim` can share it); others leave it
    alone. options: for the scheduler's `step`, such as DDIM's eta. Where DDIM clips x0 its ε follows, as in `ddim`.
    Raises ValueError for steps or options that the scheduler does not take, for one whose steps need more than a
    prediction, as `prediction_type` does, and for eta = 1 with zero terminal SNR: there diffusers takes the root of a
    rounding error below 0 at many a number of steps.
    """
    kind = prediction_type(scheduler)
    scheduler = _set(scheduler, steps, x)
    known = inspect.signature(scheduler.step).parameters
    for name in options:
        if name not in known or name in _OURS:
            raise ValueError(f"{name}: {type(scheduler).__name__}.step takes no such option")
    missing = [
        name
        for name, one in known.items()
        if one.default is one.empty and name not in (*_OURS, *options)
    ]
    if missing or "prev_timestep" in known:  # UnCLIP's, CogVideoX's DPM
        asks = ", ".join(missing) or "prev_timestep"
        raise ValueError(
            f"scheduler: {type(scheduler).__name__}.step asks for {asks}, which `sample` does not know"
        )
    if options.get("eta") == 1 and ends_without_signal(scheduler):
        raise ValueError(
            "eta: with zero terminal SNR expected less than 1, where diffusers gives NaN; or use `ddim`"
        )
    if "generator" in known:
        options["generator"] = generator
    if "use_clipped_model_output" in known and _limits(scheduler.config):
        options.setdefault("use_clipped_model_output", True)  # see `ddim`
    return _sample(model, scheduler, kind, x, conditioning, options)


def _sample(
    model: Model, scheduler: Any, kind: str, x: Tensor, conditioning: Any, options: dict
) -> Iterator[Step]:
    x = x * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            scaled = scheduler.scale_model_input(x, t)
            # Under autocast a model answers in bfloat16; diffusers would draw its noise so, and Euler keep x so
            prediction = model(scaled, t.expand(len(x)), conditioning).to(x.dtype)
            result = scheduler.step(prediction, t, x, **options)
            x, x0 = result.prev_sample, getattr(result, "pred_original_sample", None)
            if x0 is None:  # DPM-Solver does not tell
                x0 = estimate(kind, prediction, scaled, _level(scheduler, number, t)).x0
                x0 = _limited(x0, scheduler.config)
        yield Step(number + 1, t.item(), x, x0)


def _set(scheduler: SchedulerMixin, steps: int, x: Tensor) -> Any:
    """A copy of the scheduler, ready for so many steps. A copy: Euler and DPM-Solver count their steps in themselves.

    Refused are counts for which it visits timesteps that are none: 61 with "trailing" spacing become 62 and end at -1,
    which diffusers reads as the last of the schedule; as many as in training, with an offset, begin at T.
    """
    longest, name = scheduler.config.num_train_timesteps, type(scheduler).__name__
    if not 1 <= steps <= longest:
        raise ValueError(f"steps: expected 1 to {longest}, got {steps}")
    runtime.keep_freed_memory()  # every way of sampling comes through here
    scheduler = copy.deepcopy(scheduler)
    with (
        warnings.catch_warnings()
    ):  # Euler's and DPM-Solver's hand NumPy 2 a tensor in a way it deprecates
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps, device=x.device)
    low, high = scheduler.timesteps.min().item(), scheduler.timesteps.max().item()
    continuous = scheduler.config.get("timestep_type") == "continuous"  # ln σ / 4, may be below 0
    if not continuous and not 0 <= low <= high < longest:
        raise ValueError(
            f"steps: with {steps}, {name} visits timesteps {low:g} to {high:g}, not 0 to {longest - 1}"
        )
    return scheduler


def _level(scheduler: Any, number: int, t: Tensor) -> Level:
    """The level that the scheduler believes x to have: its sigmas are noise / signal and may lie between timesteps."""
    if not hasattr(scheduler, "sigmas"):
        return level_at(scheduler, t[None])
    sigma = scheduler.sigmas[number : number + 1].cpu().double()
    size = (1 + sigma**2).sqrt()
    return Level(1 / size, sigma / size)


def _limits(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler of this config keeps estimates of x0 within a range."""
    return bool(config.get("thresholding") or config.get("clip_sample"))


def _limited(x0: Tensor, config: Mapping[str, Any]) -> Tensor:
    """What a scheduler's config does to an estimate of x0: nothing, or a clamp, or `dynamic_threshold`.

    x0: (b, …). config: that of a scheduler.
    """
    if config.get("thresholding"):
        return dynamic_threshold(
            x0, config["dynamic_thresholding_ratio"], config["sample_max_value"]
        )
    if config.get("clip_sample"):
        return x0.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    return x0


# By hand


def ddpm(
    model: Model,
    scheduler: SchedulerMixin,
    x: Float[Tensor, "b *axes"],
    conditioning: Any = None,
    *,
    steps: int,
    generator: torch.Generator,
    shared: float | int = 0.0,
) -> Iterator[Step]:
    """Ancestral sampling: draw x_s from q(x_s | x_t, x0) with the model's x0. Ho et al. 2020, algorithm 2.

    scheduler: its schedule, spacing, clipping and variance_type ("fixed_small" or "fixed_large") are used. Equals
    DDPMScheduler, but for one thing: the last step, which leads to x0, adds no noise. Diffusers' does unless t = 0,
    so "fixed_large" on other timesteps ("trailing", or an offset) leaves noise in its result.
    shared: correlation of what is drawn between the frames of a clip, see `initial_noise`.
    Other arguments: as for `sample`. Raises ValueError as `sample` and `initial_noise`, for another variance_type or
    fractional timesteps.
    """
    variance_type = scheduler.config.get("variance_type", "fixed_small")
    if variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(
            f"scheduler: expected a variance_type of fixed_small or fixed_large, got {variance_type!r}"
        )
    path, draw = _path(scheduler, steps, x, CLEAN), _drawing(x, generator, shared)
    kind = prediction_type(scheduler)
    return _ddpm(
        model, scheduler.config, kind, x, conditioning, path, variance_type == "fixed_large", draw
    )


def _ddpm(model, config, kind, x, conditioning, path, large, draw) -> Iterator[Step]:
    for number, (t, level, next_level) in enumerate(path, start=1):
        with torch.no_grad():
            prediction = model(x, t.expand(len(x)), conditioning).to(x.dtype)
            x0 = _limited(estimate(kind, prediction, x, level).x0, config)
            a_t, a_s = (
                level.signal.item() ** 2,
                next_level.signal.item() ** 2,
            )  # ᾱ here and where this step leads
            alpha = a_t / a_s
            x = (a_s**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - a_s) * x) / (1 - a_t)  # equation 7
            if number < len(path):
                variance = (1 - alpha) * (1 if large else (1 - a_s) / (1 - a_t))  # section 3.2
                x = x + variance**0.5 * draw()
        yield Step(number, t.item(), x, x0)


def ddim(
    model: Model,
    scheduler: SchedulerMixin,
    x: Float[Tensor, "b *axes"],
    conditioning: Any = None,
    *,
    steps: int,
    eta: float | int = 0.0,
    generator: torch.Generator | None = None,
    shared: float | int = 0.0,
) -> Iterator[Step]:
    """DDIM: the model's x0 and ε, put together again at the next level. Song et al. 2021, equations 12 and 16.

    scheduler: its schedule, spacing and clipping are used, and set_alpha_to_one: the last step leads to x0, or to
    timestep 0. eta: 0 draws nothing, 1 is DDPM; with more than 0, generator is needed.
    Where x0 is clipped, ε is what is then left of x_t, as in Dhariwal & Nichol's code (2021, "Diffusion Models Beat
    GANs"). diffusers keeps the ε of the x0 out of range unless told `use_clipped_model_output`, and x leaves its level:
    under much guidance until nothing can be recognised.
    Each step leads to the next timestep. So do DDIMScheduler's while they are T // steps apart; with "linspace", or
    "trailing" where steps do not divide T, it goes T // steps down and calls the model somewhere else.
    shared: as for `ddpm`. Other arguments: as for `sample`. Raises ValueError as `ddpm`, and for another eta.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    if eta > 0 and generator is None:
        raise ValueError(f"generator: expected one, since eta = {eta} draws noise")
    to_one = scheduler.config.get("set_alpha_to_one", True)
    path = _path(scheduler, steps, x, CLEAN if to_one else level_at(scheduler, torch.zeros(1)))
    draw = _drawing(x, generator, shared)
    return _ddim(
        model, scheduler.config, prediction_type(scheduler), x, conditioning, path, eta, draw
    )


def _ddim(model, config, kind, x, conditioning, path, eta, draw) -> Iterator[Step]:
    for number, (t, level, next_level) in enumerate(path, start=1):
        with torch.no_grad():
            said = estimate(kind, model(x, t.expand(len(x)), conditioning).to(x.dtype), x, level)
            if _limits(config):
                said = estimate("sample", _limited(said.x0, config), x, level)
            x0, noise = said.x0, said.noise
            a_t, a_s = level.signal.item() ** 2, next_level.signal.item() ** 2
            variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)  # equation 16
            direction = (
                max(1 - a_s - variance, 0.0) ** 0.5
            )  # rounding may lead below 0 where a_t is 0
            x = a_s**0.5 * x0 + direction * noise  # equation 12
            if eta > 0:
                x = x + variance**0.5 * draw()
        yield Step(number, t.item(), x, x0)


def _path(
    scheduler: SchedulerMixin, steps: int, x: Tensor, end: Level
) -> list[tuple[Tensor, Level, Level]]:
    """Every timestep with its level and the level that its step leads to."""
    timesteps = _set(scheduler, steps, x).timesteps
    if timesteps.is_floating_point():
        raise ValueError(
            f"scheduler: expected one with integer timesteps, got {type(scheduler).__name__}"
        )
    levels = [level_at(scheduler, t[None]) for t in timesteps]
    return list(zip(timesteps, levels, [*levels[1:], end], strict=True))


def _drawing(
    x: Tensor, generator: torch.Generator | None, shared: float | int
) -> Callable[[], Tensor]:
    """What draws noise for x; refused is now what would be refused then."""
    initial_noise((0, *x.shape[1:]), generator or torch.Generator(), shared)
    return lambda: initial_noise(x.shape, generator, shared, x.dtype).to(x.device)
