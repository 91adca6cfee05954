"""What a denoiser learns: noise levels, targets and the ways between them, weights, and the noise itself.

Reads top to bottom: levels, targets, conversions, weights, noise, one training example.

    x_t = signal · x0 + noise · ε        signal² + noise² = 1

with signal² the `alphas_cumprod[t]` of a diffusers scheduler, whose config also says what is predicted
(`prediction_type`): "epsilon" is ε, "sample" is x0, "v_prediction" is v = signal · ε - noise · x0. Data may be videos
(b, c, f, h, w), images, latents or vectors: the first axis is the batch. A clip has one timestep for all its frames.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512 (v).
Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556.
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891 (zero terminal SNR).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int, Real
from torch import Tensor

# The contract of every model: x (b, …), t (b,) and whatever conditions it, to a prediction of the shape of x.
Model = Callable[[Tensor, Tensor, Any], Tensor]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class Level(NamedTuple):
    """How much signal and how much noise x_t holds; float64 on the CPU, one number per row or one for all rows."""

    signal: Float[Tensor, "n"]
    noise: Float[Tensor, "n"]

    def beside(self, x: Float[Tensor, "b *axes"]) -> tuple[Tensor, Tensor]:
        """Signal and noise as factors of `x`: in its dtype, on its device, with an axis for each of its axes.

        Rounded last: in bfloat16 `alphas_cumprod[0]` is 1, and its level would have no noise.
        Raises ValueError unless there is one level for all rows, or one for each.
        """
        if len(self.signal) not in (1, len(x)):
            raise ValueError(
                f"t: expected 1 timestep, or one for each of {len(x)} rows, got {len(self.signal)}"
            )
        shape = (-1,) + (1,) * (x.ndim - 1)
        signal, noise = (part.to(x.dtype).to(x.device).view(shape) for part in self)
        return signal, noise


CLEAN = Level(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def _squared_signal(scheduler: SchedulerMixin) -> Float[Tensor, "n"]:
    """signal² of every timestep, float64 on the CPU."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"scheduler: expected one that has alphas_cumprod, got {type(scheduler).__name__}"
        )
    return scheduler.alphas_cumprod.cpu().double()


def level_at(scheduler: SchedulerMixin, t: Real[Tensor, "n"]) -> Level:
    """The level of timesteps `t`.

    scheduler: any of diffusers' that has `alphas_cumprod`.
    t: from 0 to T - 1. Between two timesteps (Euler's may be fractional), noise / signal runs linearly, as it does
    in diffusers. Raises ValueError for another scheduler, or a timestep outside.
    """
    squared = _squared_signal(scheduler)
    t = t.cpu().double()
    if t.min() < 0 or t.max() > len(squared) - 1:
        raise ValueError(
            f"t: expected timesteps from 0 to {len(squared) - 1}, got {t.min():g} to {t.max():g}"
        )
    below, above = t.floor().long(), t.ceil().long()
    ratio = ((1 - squared) / squared).sqrt()
    between = 1 / (1 + torch.lerp(ratio[below], ratio[above], t - below) ** 2)
    squared = torch.where(below == above, squared[below], between)
    return Level(squared.sqrt(), (1 - squared).sqrt())


def ends_without_signal(scheduler: SchedulerMixin) -> bool:
    """Whether the last timestep is pure noise (zero terminal SNR).

    Euler and DPM-Solver put 2**-24 where DDPM and DDIM have 0, so that their config has to be asked as well.
    """
    return (
        bool(scheduler.config.get("rescale_betas_zero_snr"))
        or _squared_signal(scheduler)[-1].item() == 0
    )


def prediction_type(scheduler: SchedulerMixin) -> str:
    """What the scheduler's config says that a model predicts: "epsilon", "sample" or "v_prediction".

    Raises ValueError for another, and for "epsilon" with zero terminal SNR: at the last timestep x_t is the noise,
    which then says nothing about x0, and sampling, which begins there, divides 0 by 0. Lin et al. 2024, section 3.2.
    """
    kind = scheduler.config.get("prediction_type")
    _squared_signal(scheduler)
    if kind not in PREDICTION_TYPES:
        raise ValueError(
            f"scheduler: expected a prediction_type of {', '.join(PREDICTION_TYPES)}; got {kind!r}"
        )
    if kind == "epsilon" and ends_without_signal(scheduler):
        raise ValueError(
            "scheduler: 'epsilon' says nothing about x0 where the SNR is 0, which is where this schedule ends; "
            "expected 'v_prediction' or 'sample', or rescale_betas_zero_snr=False"
        )
    return kind


def zero_terminal_snr(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A scheduler like this one whose schedule ends in pure noise and whose samplers begin there.

    signal is shifted to 0 at the last timestep and scaled to stay at the first (`rescale_betas_zero_snr`); spacing
    becomes "trailing", which begins at the last timestep. Lin et al. 2024, sections 3.1 and 3.3.
    Raises ValueError if the scheduler predicts "epsilon", see `prediction_type`, or cannot rescale.
    """
    if "rescale_betas_zero_snr" not in scheduler.config:
        raise ValueError(
            f"scheduler: expected one with rescale_betas_zero_snr, got {type(scheduler).__name__}"
        )
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rescaled = type(scheduler).from_config(scheduler.config, **changes)
    prediction_type(rescaled)
    return rescaled


# Targets and conversions


def add_noise(
    scheduler: SchedulerMixin,
    x0: Float[Tensor, "b *axes"],
    noise: Float[Tensor, "*shape"],
    t: Int[Tensor, "n"],
) -> Float[Tensor, "b *axes"]:
    """x_t = signal · x0 + noise · ε. Ho et al. 2020, equation 4.

    x0: data. noise: ε, of the same shape and unit variance. t: timesteps, (b,), or (1,) for all rows.
    Raises ValueError for two shapes, timesteps outside the schedule, or another number of them.
    """
    _same_shape("noise", noise, "x0", x0)
    signal, sigma = level_at(scheduler, t).beside(x0)
    return signal * x0 + sigma * noise


def target(
    scheduler: SchedulerMixin,
    x0: Float[Tensor, "b *axes"],
    noise: Float[Tensor, "*shape"],
    t: Int[Tensor, "n"],
) -> Float[Tensor, "b *axes"]:
    """What the model should answer to x_t: ε, x0 or v, as the scheduler's `prediction_type` says.

    x0, noise, t: as for `add_noise`. Raises what `add_noise` and `prediction_type` raise.
    """
    _same_shape("noise", noise, "x0", x0)
    signal, sigma = level_at(scheduler, t).beside(x0)
    return Estimate(x0, noise, signal * noise - sigma * x0).of(prediction_type(scheduler))


class Estimate(NamedTuple):
    """The same knowledge in three forms: given x_t and its level, each follows from each."""

    x0: Float[Tensor, "b *axes"]
    noise: Float[Tensor, "b *axes"]
    velocity: Float[Tensor, "b *axes"]

    def of(self, kind: str) -> Float[Tensor, "b *axes"]:
        """The form that is called `kind` in a scheduler's config. Raises ValueError for an unknown one."""
        return self[("sample", "epsilon", "v_prediction").index(_known(kind))]


def estimate(
    kind: str, prediction: Float[Tensor, "*shape"], x_t: Float[Tensor, "b *axes"], level: Level
) -> Estimate:
    """x0, ε and v from any one of them. Salimans & Ho 2022, section 4 and appendix D.

    kind: what the prediction is, see `prediction_type`. prediction: of the shape of x_t. level: of x_t, see `level_at`.
    Raises ValueError for two shapes, an unknown kind, or a level that leaves nothing to conclude: "epsilon" without
    signal, "sample" without noise.
    """
    _same_shape("prediction", prediction, "x_t", x_t)
    signal, sigma = level.beside(x_t)
    if _known(kind) == "v_prediction":
        return Estimate(
            signal * x_t - sigma * prediction, sigma * x_t + signal * prediction, prediction
        )
    if kind == "epsilon":
        if not level.signal.all():
            raise ValueError(
                "prediction: 'epsilon' says nothing about x0 where the SNR is 0; expected 'v_prediction'"
            )
        x0, noise = (x_t - sigma * prediction) / signal, prediction
    else:
        if not level.noise.all():
            raise ValueError(
                "prediction: 'sample' says nothing about ε where x_t has no noise; expected 'v_prediction'"
            )
        x0, noise = prediction, (x_t - signal * prediction) / sigma
    return Estimate(x0, noise, signal * noise - sigma * x0)


def _known(kind: str) -> str:
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"kind: expected one of {', '.join(PREDICTION_TYPES)}; got {kind!r}")
    return kind


def _same_shape(name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    # Without this, what broadcasts would pass: an image's noise on every frame
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name}: expected the shape of {other}, {tuple(like.shape)}, got {tuple(tensor.shape)}"
        )


# Weights


def snr(scheduler: SchedulerMixin, t: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Signal-to-noise ratio signal² / noise², float64 on the CPU. t, raises: as for `level_at`."""
    level = level_at(scheduler, t)
    return (level.signal / level.noise) ** 2


def min_snr_weights(
    scheduler: SchedulerMixin, t: Int[Tensor, "b"], gamma: float | int = 5.0
) -> Float[Tensor, "b"]:
    """What to weigh each row's squared error with: min(SNR, γ) on x0, so over SNR on ε and over SNR + 1 on v.

    The three give one and the same loss. Float64 on the CPU; 0 where the SNR is 0. Hang et al. 2023.
    t: timesteps. gamma: γ, positive; 5 in the paper. Raises ValueError for another gamma and as `prediction_type`.
    """
    if gamma <= 0:
        raise ValueError(f"gamma: expected a positive number, got {gamma}")
    ratio = snr(scheduler, t)
    divisor = {"epsilon": ratio, "sample": 1, "v_prediction": ratio + 1}[prediction_type(scheduler)]
    return ratio.clamp(max=gamma) / divisor


# Noise


def initial_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    shared: float | int = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *axes"]:
    """Normal noise of unit variance; the frames of a clip may have part of it in common. For training and sampling.

    shape: (b, c, f, h, w), or any other while nothing is shared. generator: the noise is made on its device.
    shared: correlation between any two frames of a clip: 0 independent, 1 all the same. Their own part is the same for
    every `shared`. Ge et al. 2023, "Preserve Your Own Correlation", arXiv 2305.10474 (mixed noise).
    Raises ValueError for `shared` outside [0, 1], or with a shape that has no frames.
    """
    if not 0 <= shared <= 1:
        raise ValueError(f"shared: expected a correlation from 0 to 1, got {shared}")
    own = torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=dtype)
    if shared == 0:
        return own
    if len(shape) != 5:
        raise ValueError(
            f"shape: expected (b, c, f, h, w) to share noise between frames, got {tuple(shape)}"
        )
    b, c, _, h, w = shape
    common = torch.randn(b, c, 1, h, w, generator=generator, device=generator.device, dtype=dtype)
    return shared**0.5 * common + (1 - shared) ** 0.5 * own


def offset_noise(
    noise: Float[Tensor, "b c *axes"], strength: float | int, generator: torch.Generator
) -> Float[Tensor, "b c *axes"]:
    """Noise with a random shift per clip and channel, so that a model learns to change the brightness of the whole.

    noise: of unit variance. strength: standard deviation of the shift, 0 or more; 0.1 is usual. The variance becomes
    1 + strength², which sampling does not know of: zero terminal SNR is the cure without that flaw.
    Guttenberg 2023, "Diffusion with Offset Noise" (an essay by Cross Labs). Raises ValueError for a negative strength.
    """
    if strength < 0:
        raise ValueError(f"strength: expected 0 or more, got {strength}")
    shape = noise.shape[:2] + (1,) * (noise.ndim - 2)
    return noise + strength * torch.randn(shape, generator=generator, device=generator.device).to(
        noise
    )


# One training example


class Example(NamedTuple):
    """What one training step needs besides conditioning, row by row; `weight` is 1 unless min-SNR weighs."""

    x_t: Float[Tensor, "b *axes"]
    t: Int[Tensor, "b"]
    target: Float[Tensor, "b *axes"]
    weight: Float[Tensor, "b"]


def training_example(
    scheduler: SchedulerMixin,
    x0: Float[Tensor, "b *axes"],
    generator: torch.Generator,
    *,
    gamma: float | int | None = None,
    offset: float | int = 0.0,
    shared: float | int = 0.0,
    t: Int[Tensor, "n"] | None = None,
) -> Example:
    """Draw a timestep for every row, uniformly, and noise; the same numbers for every device and dtype of x0.

    x0: data. generator: draws timesteps, noise, offset, in this order.
    gamma: see `min_snr_weights`; None weighs all alike. offset: see `offset_noise`. shared: see `initial_noise`.
    t: timesteps drawn elsewhere, one for each row, for whoever does not want all equally likely.
    Raises ValueError as these do, for another number of timesteps, and for gamma with zero terminal SNR: the timestep
    that sampling begins with would have weight 0 and never be learnt.
    """
    if t is not None and t.shape != (len(x0),):
        raise ValueError(
            f"t: expected one timestep for each of {len(x0)} rows, got {tuple(t.shape)}"
        )
    if gamma is not None and ends_without_signal(scheduler):
        raise ValueError(
            f"gamma: min-SNR never trains the last timestep of zero terminal SNR; expected None, got {gamma}"
        )
    if t is None:
        t = torch.randint(
            len(scheduler.alphas_cumprod), (len(x0),), generator=generator, device=generator.device
        )
    noise = initial_noise(x0.shape, generator, shared)
    if offset:
        noise = offset_noise(noise, offset, generator)
    noise = noise.to(x0)
    weight = torch.ones(len(x0)) if gamma is None else min_snr_weights(scheduler, t, gamma)
    x_t, wanted = add_noise(scheduler, x0, noise, t), target(scheduler, x0, noise, t)
    return Example(x_t, t.to(x0.device), wanted, weight.to(x0.dtype).to(x0.device))


def denoising_loss(prediction: Float[Tensor, "*shape"], example: Example) -> Float[Tensor, ""]:
    """Mean over rows of the weighted mean squared error. Ho et al. 2020, equation 14, if nothing is weighed.

    prediction: the model's answer to (example.x_t, example.t, …). Raises ValueError for another shape.
    """
    _same_shape("prediction", prediction, "x_t", example.target)
    error = (
        prediction.to(example.target.dtype) - example.target
    ).square()  # under autocast, not in bfloat16
    return (example.weight * error.flatten(1).mean(dim=1)).mean()
