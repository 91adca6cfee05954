"""Samplers: generators that yield after every step, so that a caller can show the intermediate x0.

    noise = sample_noise((4, 3, 16, 32, 32), generator)
    guided = cfg_model(model, uncond, 5)
    for step in sample(guided, scheduler, noise, text, num_inference_steps=50, generator=generator):
        show(step.x0)

`sample` runs any diffusers scheduler; `ancestral` has DDPM and DDIM by hand. All samplers work on a
copy of the scheduler, check their arguments when they are called (not at the first step), and
record no gradients.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from jaxtyping import Shaped
from torch import Tensor

from course_lib.diffusion.ancestral import ddim
from course_lib.diffusion.noise import Generators, check_noise_args
from course_lib.diffusion.objective import (
    Model,
    check_like,
    convert_prediction,
    evaluate_model,
)
from course_lib.diffusion.sampler_step import (
    OnStep,
    SamplerStep,
    apply_hook,
    clip_x0,
    clips_x0,
    prepare_scheduler,
)
from course_lib.diffusion.schedule import (
    AlphaSigma,
    alpha_sigma_at,
    get_prediction_type,
    has_zero_terminal_snr,
    is_flow_matching,
)
from course_lib.validation import check_number

# Arguments of a scheduler's step that `sample` fills in
_RESERVED_STEP_ARGS = ("model_output", "timestep", "sample", "generator", "return_dict")

# Their step leads T // num_inference_steps down (or up), wherever the next timestep is
_DDIM_SCHEDULERS = (DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler)
_FIXED_STRIDE_SCHEDULERS = (*_DDIM_SCHEDULERS, DDIMInverseScheduler, PNDMScheduler)


def sample(
    model: Model,
    scheduler: SchedulerMixin,
    x: Shaped[Tensor, "b *axes"],
    cond: Any = None,
    *,
    num_inference_steps: int,
    generator: Generators,
    on_step: OnStep | None = None,
    **step_kwargs: Any,
) -> Iterator[SamplerStep]:
    """Samples with a diffusers scheduler: DDPM, DDIM, Euler, DPM-Solver++, flow matching, others.

    DDIMScheduler.step goes T // num_inference_steps down. Where that misses the next timestep of
    the list ("linspace" spacing, or "trailing" with a number that does not divide T) or, after the
    last one, the clean data (`steps_offset` of a stride or more), the steps are those of `ddim`,
    which leads there. PNDMScheduler and DDIMInverseScheduler are refused in these cases.

    Args:
        model: (x, t, cond) to a prediction of the scheduler's prediction type. Its x has the scale
            of training (`scale_model_input`); its t is (b,) and may be fractional.
        scheduler: is copied.
        x: (b, …) noise, see `sample_noise`; it is scaled here (`init_noise_sigma`).
        cond: conditioning, passed to the model.
        num_inference_steps: 1 to the number of training timesteps.
        generator: one, or a list with one for each row; used by schedulers that draw noise, which
            is independent in every frame (`ddpm` and `ddim` can correlate it).
        on_step: called after every step, without gradients; a tensor that it returns replaces x.
            Schedulers of higher order (Heun, UniPC) keep earlier samples, which are not replaced.
        **step_kwargs: for the scheduler's `step`, such as the eta of DDIM. If DDIM clips x0,
            `use_clipped_model_output` is True unless given, see `ddim`.

    Yields:
        The state after every step.

    Raises:
        ValueError: for x, num_inference_steps, generators or step_kwargs that do not fit; for a
            scheduler whose `step` needs more than a prediction, lacks the prediction type or misses
            its timesteps; for eta = 1 with zero terminal SNR, where diffusers may give NaN; and as
            `get_prediction_type`. At a step, for a prediction or a replacement of another shape.
    """
    prediction_type = get_prediction_type(scheduler)
    _check_step_supports(scheduler, prediction_type)
    step_params = inspect.signature(scheduler.step).parameters
    _check_step_kwargs(scheduler, step_params, step_kwargs, x)
    prepared = prepare_scheduler(scheduler, num_inference_steps, x)
    check_noise_args(x.shape, generator, 0.0)
    if _misses_next_timestep(prepared):
        return ddim(
            model,
            scheduler,
            x,
            cond,
            num_inference_steps=num_inference_steps,
            generator=generator,
            on_step=on_step,
            **_ddim_kwargs(step_kwargs),
        )
    if "generator" in step_params:
        step_kwargs["generator"] = generator
    if "use_clipped_model_output" in step_params and clips_x0(prepared.config):
        step_kwargs.setdefault("use_clipped_model_output", True)
    _try_step(prepared, x, step_kwargs)
    return _sample(model, prepared, prediction_type, x, cond, on_step, step_kwargs)


def _sample(
    model: Model,
    scheduler: Any,
    prediction_type: str,
    x: Tensor,
    cond: Any,
    on_step: OnStep | None,
    step_kwargs: dict[str, Any],
) -> Iterator[SamplerStep]:
    """The loop of `sample`."""
    # Flow-matching schedulers have neither of the two
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    scale_model_input = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            scaled = scale_model_input(x, t)
            # Under autocast the prediction is bfloat16; x and the noise keep their dtype
            pred = evaluate_model(model, scaled, t.expand(len(x)), cond).to(x.dtype)
            result = scheduler.step(pred, t, x, **step_kwargs)
            x0 = getattr(result, "pred_original_sample", None)
            if x0 is None:
                level = _alpha_sigma_of_step(scheduler, i, t)
                x0 = convert_prediction(pred, scaled, level, prediction_type).x0
                x0 = clip_x0(x0, scheduler.config)
            # Euler's x0 is float32 where x is not
            prev, x0 = result.prev_sample.to(x.dtype), x0.to(x.dtype)
            step = apply_hook(SamplerStep(i + 1, t.item(), prev, x0), on_step)
        x = step.x
        yield step


def _check_step_supports(scheduler: SchedulerMixin, prediction_type: str) -> None:
    """Refuses prediction types that diffusers converts by the formulas of the other schedule."""
    is_flow = is_flow_matching(scheduler)
    if prediction_type == ("v_prediction" if is_flow else "flow_prediction"):
        family = "a flow-matching" if is_flow else "a variance-preserving"
        raise ValueError(
            f"scheduler: {type(scheduler).__name__}.step does not support {prediction_type!r} on "
            f"{family} schedule; expected another prediction_type, or use `ddim`"
        )


def _misses_next_timestep(scheduler: Any) -> bool:
    """Whether DDIM's step leads elsewhere than to the next timestep of the list, or to clean data.

    Raises:
        ValueError: where it does in a scheduler for which `ddim` is no replacement.
    """
    if not isinstance(scheduler, _FIXED_STRIDE_SCHEDULERS):
        return False
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    # PNDM visits timesteps twice, and halves of a stride in its Runge-Kutta steps
    strides = torch.tensor([stride, stride // 2, stride - stride // 2])
    visited = scheduler.timesteps.unique().cpu()
    misses = bool(visited[0] >= stride or not torch.isin(visited.diff(), strides).all())
    if misses and not isinstance(scheduler, _DDIM_SCHEDULERS):
        raise ValueError(
            f"scheduler: {type(scheduler).__name__}.step goes by {stride} timesteps, but its list "
            "does not; expected timestep_spacing='leading', a num_inference_steps that divides "
            f"{scheduler.config.num_train_timesteps} with 'trailing', or `ddim`"
        )
    return misses


def _try_step(scheduler: Any, x: Tensor, step_kwargs: Mapping[str, Any]) -> None:
    """Refuses now what the first step of the scheduler would refuse after a forward pass.

    That is a prediction type which it lacks, or a generator of another device; and settings that
    give NaN. The step is taken with few values by a copy, with copies of the generators.
    """
    name = type(scheduler).__name__
    scheduler, step_kwargs = copy.deepcopy((scheduler, dict(step_kwargs)))
    zeros = x.new_zeros(len(x), *[1] * (x.ndim - 1))
    t = scheduler.timesteps[0]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            getattr(scheduler, "scale_model_input", lambda x, t: x)(zeros, t)
            out = scheduler.step(zeros, t, zeros, **step_kwargs).prev_sample
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"scheduler: {name}.step refuses its arguments: {error}") from error
    if not out.isfinite().all():
        raise ValueError(f"scheduler: {name}.step gives NaN with these settings at timestep {t:g}")


def _ddim_kwargs(step_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of DDIMScheduler.step that `ddim` has; it always recomputes eps of a clipped x0."""
    for key, value in step_kwargs.items():
        if key != "eta" and (key, value) != ("use_clipped_model_output", True):
            raise ValueError(f"{key}: expected none where `ddim` takes the steps, got {value}")
    return {"eta": step_kwargs.get("eta", 0.0)}


def _check_step_kwargs(
    scheduler: Any,
    step_params: Mapping[str, inspect.Parameter],
    step_kwargs: dict[str, Any],
    x: Tensor,
) -> None:
    """Refuses bad arguments of the scheduler's step, and schedulers that need more of them."""
    name = type(scheduler).__name__
    for key, value in step_kwargs.items():
        if key not in step_params or key in _RESERVED_STEP_ARGS:
            raise ValueError(f"{key}: {name}.step takes no such argument")
        if key == "eta":
            check_number("eta", value, at_least=0.0, at_most=1.0)
        elif isinstance(value, float | int) and not value >= 0:  # s_tmax may be infinite
            raise ValueError(f"{key}: expected a number of at least 0, got {value}")
        elif isinstance(value, Tensor):
            check_like(key, value, "x", x)
    unsupported = [
        key
        for key, param in step_params.items()
        if param.default is param.empty and key not in (*_RESERVED_STEP_ARGS, *step_kwargs)
    ]
    if unsupported or "prev_timestep" in step_params:  # UnCLIP, CogVideoX's DPM
        required = ", ".join(unsupported) or "prev_timestep"
        raise ValueError(
            f"scheduler: {name}.step requires {required}, which `sample` does not provide"
        )
    if step_kwargs.get("eta") == 1 and has_zero_terminal_snr(scheduler):
        # The root of a rounding error below 0
        raise ValueError(
            "eta: eta=1 with a zero-terminal-SNR schedule gives NaN in diffusers; expected less "
            "than 1, or use course_lib.diffusion.ddim"
        )


def _alpha_sigma_of_step(scheduler: Any, i: int, t: Tensor) -> AlphaSigma:
    """Noise level of x at step i, from the scheduler's sigmas, which may lie between timesteps."""
    if not hasattr(scheduler, "sigmas"):
        return alpha_sigma_at(scheduler, t[None])
    sigma = scheduler.sigmas[i : i + 1].cpu().double()
    if is_flow_matching(scheduler):
        return AlphaSigma(1 - sigma, sigma)
    norm = (1 + sigma**2).sqrt()  # sigma is sigma / alpha here
    return AlphaSigma(1 / norm, sigma / norm)
