"""The training objective: targets, conversions between predictions, loss weights, noisy batches.

    x_t = alpha · x0 + sigma · eps

A model predicts, by the scheduler's `prediction_type`:

- "epsilon": eps;
- "sample": x0;
- "v_prediction": v = alpha · eps - sigma · x0;
- "flow_prediction": eps - x0, the velocity of flow matching.

Data are videos (b, c, f, h, w), images, latents or vectors: the first axis is the batch. All frames
of a video have the same timestep.

Sources:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
    Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models",
        arXiv 2202.00512 (v).
    Lipman et al. 2023, "Flow Matching for Generative Modeling", arXiv 2210.02747.
    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy",
        arXiv 2303.09556.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Real, Shaped
from torch import Tensor

from course_lib.diffusion.noise import (
    offset_noise,
    sample_noise,
)
from course_lib.diffusion.schedule import (
    PREDICTION_TYPES,
    AlphaSigma,
    alpha_sigma_at,
    append_dims,
    get_prediction_type,
    has_zero_terminal_snr,
    train_timesteps,
)
from course_lib.validation import (
    check_float,
    check_generator,
    check_number,
    check_same_shape,
    require,
)

# Every model: x (b, …), t (b,) and its conditioning to a prediction of the shape of x
Model = Callable[[Tensor, Tensor, Any], Tensor]


def evaluate_model(model: Model, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The model's prediction, which has to be floats of the shape of x; the rest would broadcast.

    Raises:
        ValueError: for anything else.
    """
    pred = model(x, t, cond)
    check_like("model's pred", pred, "x_t", x)
    return pred


def add_noise(
    scheduler: SchedulerMixin,
    x0: Shaped[Tensor, "b *axes"],
    eps: Shaped[Tensor, "*shape"],
    t: Shaped[Tensor, "*n"],
) -> Float[Tensor, "b *axes"]:
    """x_t = alpha · x0 + sigma · eps. Ho et al. 2020, equation 4.

    Args:
        scheduler: as for `alpha_sigma_at`.
        x0: (b, …) clean data.
        eps: noise of unit variance, of the same shape.
        t: (b,) timesteps, or (1,) for all rows.

    Raises:
        ValueError: for integers, two shapes, a timestep outside the schedule, or another number of
            them.
    """
    check_like("eps", eps, "x0", x0)
    alpha, sigma = alpha_sigma_at(scheduler, t).like(x0)
    return alpha * x0 + sigma * eps


def prediction_target(
    scheduler: SchedulerMixin,
    x0: Shaped[Tensor, "b *axes"],
    eps: Shaped[Tensor, "*shape"],
    t: Shaped[Tensor, "*n"],
) -> Float[Tensor, "b *axes"]:
    """What a model should predict for x_t, by the scheduler's prediction type.

    Args:
        scheduler, x0, eps, t: as for `add_noise`.

    Raises:
        ValueError: as `add_noise` and `get_prediction_type`.
    """
    check_like("eps", eps, "x0", x0)
    alpha, sigma = alpha_sigma_at(scheduler, t).like(x0)
    prediction = Prediction(x0, eps, alpha * eps - sigma * x0)
    return prediction.as_type(get_prediction_type(scheduler))


def check_like(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raises ValueError for integers, or another shape than that of a reference (of floats)."""
    check_float(reference_name, reference)
    check_float(name, tensor)
    check_same_shape(name, tensor, reference_name, reference)


class Prediction(NamedTuple):
    """One prediction in three forms: given x_t and its level, each follows from each."""

    x0: Float[Tensor, "b *axes"]
    eps: Float[Tensor, "b *axes"]
    v: Float[Tensor, "b *axes"]

    def as_type(self, prediction_type: str) -> Float[Tensor, "b *axes"]:
        """The form that a scheduler's config calls `prediction_type`.

        Raises:
            ValueError: for an unknown prediction type.
        """
        _check_prediction_type(prediction_type)
        if prediction_type == "flow_prediction":
            return self.eps - self.x0
        return self[("sample", "epsilon", "v_prediction").index(prediction_type)]


def convert_prediction(
    pred: Shaped[Tensor, "*shape"],
    x_t: Shaped[Tensor, "b *axes"],
    level: AlphaSigma,
    prediction_type: str,
) -> Prediction:
    """x0, eps and v from a prediction of any type. Salimans & Ho 2022, section 4 and appendix D.

    Args:
        pred: of the shape of `x_t`.
        x_t: (b, …) noisy data.
        level: noise level of `x_t`, see `alpha_sigma_at`; alpha² + sigma² need not be 1.
        prediction_type: what `pred` is, one of `PREDICTION_TYPES`.

    Raises:
        ValueError: for integers, two shapes, an unknown prediction type, "epsilon" where alpha is
            0, or "sample" where sigma is 0.
    """
    check_like("pred", pred, "x_t", x_t)
    _check_prediction_type(prediction_type)
    alpha, sigma = level.like(x_t)
    if prediction_type == "v_prediction":
        # Summed in float64: exactly 1 in float32 for a variance-preserving schedule
        norm = append_dims(level.alpha**2 + level.sigma**2, x_t)
        return Prediction(
            (alpha * x_t - sigma * pred) / norm, (sigma * x_t + alpha * pred) / norm, pred
        )
    if prediction_type == "flow_prediction":
        x0 = (x_t - sigma * pred) / append_dims(level.alpha + level.sigma, x_t)
        eps = x0 + pred
    elif prediction_type == "epsilon":
        if not level.alpha.all():
            raise ValueError(
                "pred: epsilon-prediction is undefined at zero SNR, where alpha is 0; "
                "expected v_prediction or flow_prediction"
            )
        x0 = (x_t - sigma * pred) / alpha
        eps = pred
    else:
        if not level.sigma.all():
            raise ValueError(
                "pred: a sample-prediction leaves eps undefined where sigma is 0; "
                "expected v_prediction or flow_prediction"
            )
        x0 = pred
        eps = (x_t - alpha * pred) / sigma
    return Prediction(x0, eps, alpha * eps - sigma * x0)


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}; "
            f"got {prediction_type!r}"
        )


def min_snr_weights(
    scheduler: SchedulerMixin, t: Shaped[Tensor, "*b"], snr_gamma: float | int = 5.0
) -> Float[Tensor, "b"]:
    """Min-SNR weights of the squared error, min(SNR, gamma) for x0. Hang et al. 2023, section 3.4.

    The other prediction types get the same loss: an error of x0 is -sigma / alpha times that of eps
    (and similarly for v and eps - x0), and the weight is divided by the square of that ratio.

    Args:
        scheduler: as for `get_prediction_type`.
        t: (b,) timesteps.
        snr_gamma: gamma, positive; 5 in the paper.

    Returns:
        (b,) weights, float64 on the CPU; 0 where the SNR is 0.

    Raises:
        ValueError: for another gamma, and as `get_prediction_type`.
    """
    check_number("snr_gamma", snr_gamma, above=0.0)
    alpha, sigma = alpha_sigma_at(scheduler, t)
    ratio = (alpha / sigma) ** 2
    divisor = {
        "epsilon": ratio,
        "sample": 1,
        "v_prediction": ((alpha**2 + sigma**2) / sigma) ** 2,
        "flow_prediction": ((alpha + sigma) / sigma) ** 2,
    }[get_prediction_type(scheduler)]
    return ratio.clamp(max=snr_gamma) / divisor


class NoisyBatch(NamedTuple):
    """What one training step needs besides the conditioning.

    Attributes:
        x_t: (b, …) noisy data, the model's input.
        t: (b,) timesteps.
        target: (b, …) what the model should predict.
        weight: (b,) of each row's squared error; 1 without min-SNR.
    """

    x_t: Float[Tensor, "b *axes"]
    t: Real[Tensor, "b"]
    target: Float[Tensor, "b *axes"]
    weight: Float[Tensor, "b"]


def make_noisy_batch(
    scheduler: SchedulerMixin,
    x0: Shaped[Tensor, "b *axes"],
    generator: torch.Generator,
    *,
    snr_gamma: float | int | None = None,
    noise_offset: float | int = 0.0,
    frame_correlation: float | int = 0.0,
    timesteps: Shaped[Tensor, "*n"] | None = None,
) -> NoisyBatch:
    """Adds noise at uniformly sampled timesteps, the same for every device and dtype of `x0`.

    Args:
        scheduler: as for `get_prediction_type`.
        x0: (b, …) clean data.
        generator: draws timesteps, noise and offset, in this order.
        snr_gamma: see `min_snr_weights`; None weighs all rows equally.
        noise_offset: see `offset_noise`.
        frame_correlation: see `sample_noise`.
        timesteps: (b,), to override uniform sampling.

    Raises:
        ValueError: as the functions named above, for integer data, another number of timesteps, or
            anything but one generator, and for min-SNR with zero terminal SNR: its weight is 0 at
            the timestep where sampling starts.
    """
    check_float("x0", x0)
    check_generator(generator)
    check_number("noise_offset", noise_offset, at_least=0)
    if timesteps is not None and timesteps.shape != (len(x0),):
        raise ValueError(
            f"timesteps: expected one for each of {len(x0)} rows, got {tuple(timesteps.shape)}"
        )
    if snr_gamma is not None and has_zero_terminal_snr(scheduler):
        raise ValueError(
            "snr_gamma: min-SNR never trains the last timestep of a schedule with zero terminal "
            f"SNR; expected None, got {snr_gamma}"
        )
    if timesteps is None:
        valid = train_timesteps(scheduler)
        timesteps = torch.randint(
            valid[0], valid[-1] + 1, (len(x0),), generator=generator, device=generator.device
        )
    eps = sample_noise(x0.shape, generator, frame_correlation)
    if noise_offset:
        eps = offset_noise(eps, noise_offset, generator)
    eps = eps.to(x0)
    weight = torch.ones(len(x0))
    if snr_gamma is not None:
        weight = min_snr_weights(scheduler, timesteps, snr_gamma)
    return NoisyBatch(
        x_t=add_noise(scheduler, x0, eps, timesteps),
        t=timesteps.to(x0.device),
        target=prediction_target(scheduler, x0, eps, timesteps),
        weight=weight.to(x0.dtype).to(x0.device),
    )


def denoising_loss(pred: Shaped[Tensor, "*shape"], batch: NoisyBatch) -> Float[Tensor, ""]:
    """Mean over rows of the weighted mean squared error. Ho et al. 2020, equation 14.

    Args:
        pred: the model's prediction for (batch.x_t, batch.t, …), of the shape of `batch.x_t`.
        batch: from `make_noisy_batch`.

    Raises:
        ValueError: for integers, or another shape of the prediction or of the weights.
    """
    check_like("pred", pred, "x_t", batch.target)
    expected, shape = f"a weight for each of {len(pred)} rows", tuple(batch.weight.shape)
    require(shape == (len(pred),), "batch", expected, f"weights of shape {shape}")
    # Under autocast the prediction is bfloat16, but the loss is not
    error = (pred.to(batch.target.dtype) - batch.target).square()
    return (batch.weight * error.flatten(1).mean(dim=1)).mean()
