"""Noise levels: alpha and sigma at every timestep of a diffusers scheduler.

Schedules themselves are diffusers schedulers: a paper's own is the `build_scheduler` of its file.

    x_t = alpha · x0 + sigma · eps

Two families of schedulers are supported:

- variance preserving (DDPM, DDIM, Euler, DPM-Solver, …): alpha² = `alphas_cumprod[t]`,
  alpha² + sigma² = 1, timesteps 0 to T - 1;
- flow matching (`FlowMatchEulerDiscreteScheduler` and others, `use_flow_sigmas=True`):
  alpha = 1 - sigma, sigma = t / T, timesteps 0 to T. The scheduler's shift moves the timesteps that
  a sampler visits, not the level of a timestep.

Sources:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
    Lipman et al. 2023, "Flow Matching for Generative Modeling", arXiv 2210.02747.
    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
        arXiv 2305.08891 (zero terminal SNR).
"""

from typing import NamedTuple

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SchedulerMixin,
)
from jaxtyping import Float, Real, Shaped
from torch import Tensor

from course_lib.validation import check_float, require

VP_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # of schedulers with betas
PREDICTION_TYPES = (*VP_PREDICTION_TYPES, "flow_prediction")

_FLOW_MATCHING = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)


class AlphaSigma(NamedTuple):
    """Noise level of x_t = alpha · x0 + sigma · eps, one per row or one for all rows.

    Attributes:
        alpha: (n,) float64 on the CPU, factor of the clean data.
        sigma: (n,) float64 on the CPU, standard deviation of the noise.
    """

    alpha: Float[Tensor, "n"]
    sigma: Float[Tensor, "n"]

    def like(self, x: Shaped[Tensor, "b *axes"]) -> tuple[Tensor, Tensor]:
        """Alpha and sigma that broadcast against `x`, in its dtype and on its device.

        Args:
            x: (b, …), with b equal to n unless n is 1.

        Returns:
            alpha and sigma, each (n, 1, …).

        Raises:
            ValueError: for integers, another number of rows, or a level that is not finite.
        """
        check_float("x", x)
        for part in self:
            if part.ndim != 1 or len(part) not in (1, len(x)):
                raise ValueError(
                    f"t: expected 1 timestep, or one for each of {len(x)} rows, "
                    f"got {len(part) if part.ndim == 1 else tuple(part.shape)}"
                )
            require(part.isfinite().all(), "level", "finite alpha and sigma", part.tolist())
        alpha, sigma = (append_dims(part, x) for part in self)
        return alpha, sigma


CLEAN_LEVEL = AlphaSigma(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def append_dims(values: Real[Tensor, "n"], x: Real[Tensor, "b *axes"]) -> Real[Tensor, "n *ones"]:
    """`values` (n,) as (n, 1, …) with the dtype, the device and the number of axes of `x`."""
    # The dtype comes last: in bfloat16 alphas_cumprod[0] is 1, and its level would have no noise
    return values.to(x.dtype).to(x.device).view(-1, *[1] * (x.ndim - 1))


def is_flow_matching(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler interpolates linearly: alpha = 1 - sigma.

    Raises:
        ValueError: for `invert_sigmas=True` (Mochi), where sigma counts the signal.
    """
    if scheduler.config.get("invert_sigmas"):
        raise ValueError("scheduler: expected invert_sigmas=False, got True")
    return isinstance(scheduler, _FLOW_MATCHING) or bool(scheduler.config.get("use_flow_sigmas"))


def _alphas_cumprod(scheduler: SchedulerMixin) -> Float[Tensor, "n"]:
    """alpha² of every timestep of a variance-preserving schedule, float64 on the CPU."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "scheduler: expected one that has alphas_cumprod or does flow matching, "
            f"got {type(scheduler).__name__}"
        )
    return scheduler.alphas_cumprod.cpu().double()


def train_timesteps(scheduler: SchedulerMixin) -> range:
    """Timesteps that a model is trained on: 0 to T - 1, and with flow matching 1 to T."""
    if is_flow_matching(scheduler):
        return range(1, scheduler.config.num_train_timesteps + 1)
    return range(len(_alphas_cumprod(scheduler)))


def alpha_sigma_at(scheduler: SchedulerMixin, t: Shaped[Tensor, "*n"]) -> AlphaSigma:
    """Noise level of timesteps `t`.

    Between two timesteps of a variance-preserving schedule (Euler's may be fractional)
    sigma / alpha is interpolated linearly, as diffusers does.

    Args:
        scheduler: any diffusers scheduler that has `alphas_cumprod` or does flow matching.
        t: (n,) timesteps, 0 to T - 1, or 0 to T with flow matching.

    Raises:
        ValueError: for another scheduler, no timestep, another rank, or a timestep that is NaN or
            outside the schedule.
    """
    last = train_timesteps(scheduler)[-1]
    is_list = t.dtype != torch.bool and not t.is_complex() and t.ndim == 1 and len(t) > 0
    require(is_list, "t", "(n,) timesteps", f"{t.dtype} of shape {tuple(t.shape)}")
    t = t.cpu().double()
    if not (t.min() >= 0 and t.max() <= last):
        raise ValueError(f"t: expected timesteps from 0 to {last}, got {t.min():g} to {t.max():g}")
    if is_flow_matching(scheduler):
        sigma = t / last
        return AlphaSigma(1 - sigma, sigma)
    alpha_bar = _alphas_cumprod(scheduler)
    below = t.floor().long()
    above = t.ceil().long()
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
    interpolated = 1 / (1 + torch.lerp(ratio[below], ratio[above], t - below) ** 2)
    alpha_bar = torch.where(below == above, alpha_bar[below], interpolated)
    return AlphaSigma(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def snr(scheduler: SchedulerMixin, t: Shaped[Tensor, "*b"]) -> Float[Tensor, "b"]:
    """Signal-to-noise ratio alpha² / sigma², float64 on the CPU.

    Args:
        scheduler: as for `alpha_sigma_at`.
        t: (b,) timesteps.

    Raises:
        ValueError: as `alpha_sigma_at`.
    """
    level = alpha_sigma_at(scheduler, t)
    return (level.alpha / level.sigma) ** 2


def has_zero_terminal_snr(scheduler: SchedulerMixin) -> bool:
    """Whether the last timestep is pure noise, as in every flow-matching schedule."""
    # Euler and DPM-Solver store 2**-24 where DDPM and DDIM store 0, so the config is asked as well
    return (
        is_flow_matching(scheduler)
        or bool(scheduler.config.get("rescale_betas_zero_snr"))
        or _alphas_cumprod(scheduler)[-1].item() == 0
    )


def get_prediction_type(scheduler: SchedulerMixin) -> str:
    """What a model of this scheduler predicts, one of `PREDICTION_TYPES`.

    It is the config's `prediction_type`; flow-matching schedulers without that entry mean
    "flow_prediction".

    Raises:
        ValueError: for another prediction type or scheduler, and for "epsilon" with zero terminal
            SNR: there x_t is the noise, and x0 is 0 / 0 (Lin et al. 2024, section 3.2).
    """
    zero_snr = has_zero_terminal_snr(scheduler)
    default = "flow_prediction" if isinstance(scheduler, _FLOW_MATCHING) else None
    prediction_type = scheduler.config.get("prediction_type", default)
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"scheduler: expected a prediction_type of {', '.join(PREDICTION_TYPES)}; "
            f"got {prediction_type!r}"
        )
    if prediction_type == "epsilon" and zero_snr:
        raise ValueError(
            "scheduler: epsilon-prediction is undefined at zero SNR, where this schedule ends; "
            "expected another prediction_type (v_prediction, sample, or flow_prediction with flow "
            "matching), or rescale_betas_zero_snr=False"
        )
    return prediction_type


def rescale_to_zero_terminal_snr(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A copy of the scheduler whose schedule ends in pure noise and whose samplers start there.

    Alpha is shifted to 0 at the last timestep and scaled to stay the same at the first
    (`rescale_betas_zero_snr`). Spacing becomes "trailing", which starts at the last timestep.
    Lin et al. 2024, sections 3.1 and 3.3.

    Raises:
        ValueError: if the scheduler predicts "epsilon", see `get_prediction_type`, or has no
            `rescale_betas_zero_snr`.
    """
    if "rescale_betas_zero_snr" not in scheduler.config:
        raise ValueError(
            f"scheduler: expected one with rescale_betas_zero_snr, got {type(scheduler).__name__}"
        )
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rescaled = type(scheduler).from_config(scheduler.config, **changes)
    get_prediction_type(rescaled)
    return rescaled
