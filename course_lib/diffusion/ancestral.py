"""Ancestral sampling (DDPM) and DDIM by hand, for every noise schedule alpha, sigma.

Sources:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
    Song et al. 2021, "Denoising Diffusion Implicit Models", arXiv 2010.02502.
    Kingma et al. 2021, "Variational Diffusion Models", arXiv 2107.00630 (general alpha, sigma).
    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Shaped
from torch import Tensor

from course_lib.diffusion.noise import Generators, check_noise_args, sample_noise
from course_lib.diffusion.objective import Model, convert_prediction, evaluate_model
from course_lib.diffusion.sampler_step import (
    OnStep,
    SamplerStep,
    apply_hook,
    clip_x0,
    clips_x0,
    prepare_scheduler,
)
from course_lib.diffusion.schedule import (
    CLEAN_LEVEL,
    AlphaSigma,
    alpha_sigma_at,
    get_prediction_type,
    is_flow_matching,
)
from course_lib.validation import check_number


class _Transition(NamedTuple):
    """A step from timestep t to the next level s of a sampler's path."""

    t: Tensor
    level: AlphaSigma
    next_level: AlphaSigma

    def forward(self) -> tuple[float, float]:
        """alpha_ts and sigma_ts² of q(x_t | x_s). Kingma et al. 2021, appendix A.1."""
        alpha_s, sigma_s = (part.item() for part in self.next_level)
        alpha_ts = self.level.alpha.item() / alpha_s
        return alpha_ts, self.level.sigma.item() ** 2 - (alpha_ts * sigma_s) ** 2


def ddpm(
    model: Model,
    scheduler: SchedulerMixin,
    x: Shaped[Tensor, "b *axes"],
    cond: Any = None,
    *,
    num_inference_steps: int,
    generator: Generators,
    frame_correlation: float | int = 0.0,
    on_step: OnStep | None = None,
) -> Iterator[SamplerStep]:
    """Ancestral sampling from q(x_s | x_t, x0) with the model's x0. Ho et al. 2020, algorithm 2.

    Equals DDPMScheduler, except that the last step adds no noise. In diffusers it does unless
    t = 0, so "fixed_large" with "trailing" spacing or an offset leaves noise in the result.

    Args:
        scheduler: its schedule, spacing, clipping and variance_type ("fixed_small" or
            "fixed_large") are used.
        frame_correlation: of the noise that is drawn, see `sample_noise`.
        model, x, cond, num_inference_steps, generator, on_step: as for `sample`.

    Yields:
        The state after every step.

    Raises:
        ValueError: for arguments that do not fit, for another variance_type, and for fractional
            timesteps without flow matching.
    """
    variance_type = scheduler.config.get("variance_type", "fixed_small")
    if variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(
            "scheduler: expected a variance_type of fixed_small or fixed_large, "
            f"got {variance_type!r}"
        )
    prediction_type = get_prediction_type(scheduler)
    path = _denoising_path(scheduler, num_inference_steps, x, CLEAN_LEVEL)
    draw = _noise_source(x, generator, frame_correlation)
    is_large = variance_type == "fixed_large"

    def update(transition: _Transition, x: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
        level = transition.level
        x0 = clip_x0(convert_prediction(pred, x, level, prediction_type).x0, scheduler.config)
        alpha_s, sigma_s = (part.item() for part in transition.next_level)
        alpha_ts, variance_ts = transition.forward()
        variance_t = level.sigma.item() ** 2
        # Equation 7
        x = (alpha_s * variance_ts * x0 + alpha_ts * sigma_s**2 * x) / variance_t
        if transition is not path[-1]:
            variance = variance_ts * (1 if is_large else sigma_s**2 / variance_t)  # section 3.2
            x = x + variance**0.5 * draw()
        return x, x0

    return _walk(model, x, cond, path, update, on_step)


def ddim(
    model: Model,
    scheduler: SchedulerMixin,
    x: Shaped[Tensor, "b *axes"],
    cond: Any = None,
    *,
    num_inference_steps: int,
    eta: float | int = 0.0,
    generator: Generators | None = None,
    frame_correlation: float | int = 0.0,
    inverse: bool = False,
    on_step: OnStep | None = None,
) -> Iterator[SamplerStep]:
    """DDIM: x_s = alpha_s · x0 + sigma_s · eps. Song et al. 2021, equations 12 and 16.

    Each step leads to the next timestep of the list. DDIMScheduler goes T // num_inference_steps
    down instead, which differs with "linspace" spacing, or with "trailing" where
    num_inference_steps does not divide T. With flow matching and eta = 0 this is
    FlowMatchEulerDiscreteScheduler.

    Where x0 is clipped, eps is recomputed from it (Dhariwal & Nichol 2021). Diffusers keeps the eps
    of the unclipped x0 unless `use_clipped_model_output` is set, so that x leaves its noise level.

    With `inverse`, the same path is walked from the data to the noise (DDIM inversion): the model
    is evaluated at the timestep that a step leaves, and SamplerStep.t is that timestep. Data at
    `CLEAN_LEVEL`, which has no timestep, are passed to the model at the lowest one, and their x0 is
    x itself.

    Args:
        scheduler: its schedule, spacing, clipping and set_alpha_to_one are used. The lower end of
            the path is `CLEAN_LEVEL`, or timestep 0 if set_alpha_to_one is False.
        x: (b, …) noise, or with `inverse` data.
        eta: 0 is deterministic, 1 is DDPM. Above 0 it needs a generator.
        frame_correlation: of the noise that is drawn, see `sample_noise`.
        inverse: whether to walk from data to noise; needs eta = 0.
        model, cond, num_inference_steps, generator, on_step: as for `sample`.

    Yields:
        The state after every step.

    Raises:
        ValueError: for arguments that do not fit, and for fractional timesteps without flow
            matching.
    """
    check_number("eta", eta, at_least=0.0, at_most=1.0)
    if eta > 0 and inverse:
        raise ValueError(f"eta: expected 0 with inverse=True, got {eta}")
    if eta > 0 and generator is None:
        raise ValueError(f"generator: expected one, since eta={eta} draws noise")
    prediction_type = get_prediction_type(scheduler)
    ends_clean = scheduler.config.get("set_alpha_to_one", True)
    end = CLEAN_LEVEL if ends_clean else alpha_sigma_at(scheduler, torch.zeros(1))
    path = _denoising_path(scheduler, num_inference_steps, x, end)
    if inverse:
        path = _inverse_path(path, ends_clean)
    draw = _noise_source(x, generator, frame_correlation, is_optional=eta == 0)

    def update(transition: _Transition, x: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
        level = transition.level
        out = convert_prediction(pred, x, level, prediction_type)
        if clips_x0(scheduler.config):
            out = convert_prediction(clip_x0(out.x0, scheduler.config), x, level, "sample")
        x0 = x if inverse and ends_clean and transition is path[0] else out.x0
        alpha_s, sigma_s = (part.item() for part in transition.next_level)
        if eta == 0:
            return alpha_s * x0 + sigma_s * out.eps, x0
        _, variance_ts = transition.forward()
        variance = eta**2 * sigma_s**2 / level.sigma.item() ** 2 * variance_ts  # equation 16
        # Rounding may lead below 0 where alpha_t is 0
        direction = max(sigma_s**2 - variance, 0.0) ** 0.5
        return alpha_s * x0 + direction * out.eps + variance**0.5 * draw(), x0  # equation 12

    return _walk(model, x, cond, path, update, on_step)


def _walk(
    model: Model,
    x: Tensor,
    cond: Any,
    path: list[_Transition],
    update: Callable[[_Transition, Tensor, Tensor], tuple[Tensor, Tensor]],
    on_step: OnStep | None,
) -> Iterator[SamplerStep]:
    """Evaluates the model at every timestep of the path; `update` makes x_s and x0 of it."""
    for index, transition in enumerate(path, start=1):
        with torch.no_grad():
            # Under autocast the prediction is bfloat16; x keeps its dtype
            pred = evaluate_model(model, x, transition.t.expand(len(x)), cond).to(x.dtype)
            x, x0 = update(transition, x, pred)
            step = apply_hook(SamplerStep(index, transition.t.item(), x, x0), on_step)
        x = step.x
        yield step


def _denoising_path(
    scheduler: SchedulerMixin, num_inference_steps: Any, x: Tensor, end: AlphaSigma
) -> list[_Transition]:
    """From the highest timestep to the level `end`."""
    timesteps = prepare_scheduler(scheduler, num_inference_steps, x).timesteps
    if timesteps.is_floating_point() and not is_flow_matching(scheduler):
        raise ValueError(
            "scheduler: expected one with integer timesteps or flow matching, "
            f"got {type(scheduler).__name__}"
        )
    alpha, sigma = alpha_sigma_at(scheduler, timesteps)
    levels = [AlphaSigma(*pair) for pair in zip(alpha.split(1), sigma.split(1), strict=True)]
    steps = zip(timesteps, levels, [*levels[1:], end], strict=True)
    return [_Transition(*step) for step in steps]


def _inverse_path(path: list[_Transition], starts_clean: bool) -> list[_Transition]:
    """From the data to the highest timestep, by as many steps."""
    lowest = path[-1]
    if not starts_clean:
        lowest = _Transition(torch.zeros_like(lowest.t), lowest.next_level, lowest.level)
    departures = [lowest, *reversed(path[1:])]
    return [
        _Transition(start.t, start.level, arrival.level)
        for start, arrival in zip(departures, reversed(path), strict=True)
    ]


def _noise_source(
    x: Tensor,
    generator: Generators | None,
    frame_correlation: float | int,
    is_optional: bool = False,
) -> Callable[[], Tensor]:
    """A function that draws noise for x. Bad arguments are refused now, not at the first draw."""
    check_noise_args(x.shape, generator, frame_correlation, is_optional=is_optional)
    return lambda: sample_noise(x.shape, generator, frame_correlation, x.dtype).to(x.device)
