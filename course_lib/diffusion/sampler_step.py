"""What all samplers share: the state they yield, the hook, the scheduler's timesteps, clipping."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from course_lib import runtime
from course_lib.diffusion.guidance import dynamic_thresholding
from course_lib.diffusion.objective import check_like
from course_lib.diffusion.schedule import train_timesteps
from course_lib.validation import check_float, check_int, check_number


class SamplerStep(NamedTuple):
    """State after one sampler step.

    Attributes:
        index: number of steps done, from 1. Heun's and some other schedulers take more steps than
            num_inference_steps.
        t: the timestep at which the model was evaluated.
        x: (b, …) sample after the step, on the scheduler's own scale (that of Euler is
            x0 + sigma · eps, with sigma = 15 or more at the start).
        x0: (b, …) estimate of the clean data that the step used, after clipping or thresholding.
    """

    index: int
    t: int | float
    x: Float[Tensor, "b *axes"]
    x0: Float[Tensor, "b *axes"]


OnStep = Callable[[SamplerStep], Tensor | None]


def apply_hook(step: SamplerStep, on_step: OnStep | None) -> SamplerStep:
    """The step, with its sample replaced by what the hook returns."""
    replacement = None if on_step is None else on_step(step)
    if replacement is None:
        return step
    check_like("on_step", replacement, "x", step.x)
    return step._replace(x=replacement.detach().to(step.x))


def prepare_scheduler(scheduler: SchedulerMixin, num_inference_steps: Any, x: Tensor) -> Any:
    """A copy of the scheduler with its timesteps set (schedulers count their steps in themselves).

    Raises:
        ValueError: unless x has floats and num_inference_steps is an integer of 1 to T; for a
            config whose clipping has no valid bounds; and for numbers that make diffusers produce
            invalid timesteps: 61 with "trailing" spacing yields 62 timesteps, the last one -1.
    """
    check_float("x", x)
    _check_clipping(scheduler.config)
    check_int("num_inference_steps", num_inference_steps, 1, scheduler.config.num_train_timesteps)
    runtime.tune_glibc_malloc()  # all samplers pass here
    scheduler = copy.deepcopy(scheduler)
    with warnings.catch_warnings():
        # Euler and DPM-Solver pass NumPy 2 a tensor in a deprecated way
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(num_inference_steps, device=x.device)
    low, high = (bound.item() for bound in scheduler.timesteps.aminmax())
    last = train_timesteps(scheduler)[-1]
    is_continuous = scheduler.config.get("timestep_type") == "continuous"  # ln σ / 4, may be < 0
    if not is_continuous and not 0 <= low <= high <= last:
        raise ValueError(
            f"num_inference_steps: with {num_inference_steps}, {type(scheduler).__name__} visits "
            f"timesteps {low:g} to {high:g}, not 0 to {last}"
        )
    return scheduler


def _check_clipping(config: Mapping[str, Any]) -> None:
    """Refuses bounds of a scheduler's config that no x0 can be clipped to."""
    if config.get("thresholding"):
        check_number(
            "dynamic_thresholding_ratio",
            config["dynamic_thresholding_ratio"],
            at_least=0.0,
            at_most=1.0,
        )
        if config["sample_max_value"] != math.inf:
            check_number("sample_max_value", config["sample_max_value"], above=0.0)
    elif config.get("clip_sample"):
        check_number("clip_sample_range", config["clip_sample_range"], above=0.0)


def clips_x0(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler of this config clips or thresholds its estimates of x0."""
    return bool(config.get("thresholding") or config.get("clip_sample"))


def clip_x0(x0: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The estimate of x0 after the clipping or thresholding of a scheduler's config."""
    if config.get("thresholding"):
        return dynamic_thresholding(
            x0, config["dynamic_thresholding_ratio"], config["sample_max_value"]
        )
    if config.get("clip_sample"):
        return x0.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    return x0
