"""Classifier-free guidance: extrapolate from the unconditional prediction to the conditional one.

A guided model is itself a model (x, t, cond), so every sampler takes it. Guidance may be applied to
eps, x0 or v: given x_t they are affine in one another, so the result is the same unless it is
rescaled.

Sources:
    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
    Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models" (Imagen),
        arXiv 2205.11487 (dynamic thresholding).
    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
        arXiv 2305.08891 (rescale).
    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
        Distribution Quality in Diffusion Models", arXiv 2404.07724.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Real, Shaped
from torch import Tensor

from course_lib.diffusion.objective import Model, check_like, evaluate_model
from course_lib.validation import check_float, check_generator, check_number, require


def drop_conditioning(
    cond: Shaped[Tensor, "b *axes"],
    uncond: Shaped[Tensor, "*row"],
    drop_prob: float | int,
    generator: torch.Generator,
) -> Shaped[Tensor, "b *axes"]:
    """Replaces random rows of the conditioning by the unconditional one, for training with CFG.

    Ho & Salimans 2022, algorithm 1.

    Args:
        cond: (b, …), one row per sample: text (b, l, d) or classes (b,).
        uncond: the row for no prompt, (…) or (1, …).
        drop_prob: probability that a row is replaced, 0 to 1; 0.1 is usual.
        generator: draws b numbers, whatever the probability.

    Raises:
        ValueError: for another shape of `uncond`, embeddings for integers or the reverse, another
            probability, or anything but one generator.
    """
    row = cond.shape[1:]
    if uncond.shape not in (row, (1, *row)):
        raise ValueError(
            f"uncond: expected one row of cond, {tuple(row)}, got {tuple(uncond.shape)}"
        )
    _check_like_cond(uncond, cond)
    check_number("drop_prob", drop_prob, at_least=0.0, at_most=1.0)
    check_generator(generator)
    dropped = torch.rand(len(cond), generator=generator, device=generator.device) < drop_prob
    dropped = dropped.to(cond.device).view(-1, *[1] * len(row))
    return torch.where(dropped, uncond.to(cond), cond)


def _check_like_cond(uncond: Tensor, cond: Tensor) -> None:
    """Refuses floats for integers (classes, tokens), to which they would be rounded."""
    is_alike = uncond.is_floating_point() == cond.is_floating_point()
    require(is_alike, "uncond", f"the dtype of cond, {cond.dtype}", uncond.dtype)


def classifier_free_guidance(
    cond_pred: Shaped[Tensor, "b *axes"],
    uncond_pred: Shaped[Tensor, "*shape"],
    guidance_scale: float | int | Real[Tensor, "*scale"],
    guidance_rescale: float | int = 0.0,
) -> Float[Tensor, "b *axes"]:
    """uncond_pred + guidance_scale · (cond_pred - uncond_pred), optionally rescaled.

    Args:
        cond_pred, uncond_pred: (b, …) two predictions for the same x_t.
        guidance_scale: 0 ignores the prompt, 1 is no guidance; 1 + w in Ho & Salimans 2022
            (equation 6), w in most code and later papers. A number; or a tensor (b,), one per row;
            or a tensor that broadcasts to the predictions, such as (f, 1, 1), one per frame.
        guidance_rescale: phi, 0 to 1, moves the standard deviation of each sample (over all its
            axes) towards that of `cond_pred`, against over-exposure; 0.7 in Lin et al. 2024,
            section 3.4.

    Raises:
        ValueError: for integers, two shapes, a scale that is negative, not finite or does not
            broadcast, another rescale, or rescaling rows of one value, which have no deviation.
    """
    _check_scales(guidance_scale, guidance_rescale)
    check_like("uncond_pred", uncond_pred, "cond_pred", cond_pred)
    scale = _expand_scale(guidance_scale, cond_pred)
    pred = uncond_pred + scale * (cond_pred - uncond_pred)
    if guidance_rescale == 0:
        return pred
    require(pred[:1].numel() > 1, "guidance_rescale", "0 for rows of one value", guidance_rescale)
    axes = tuple(range(1, pred.ndim))
    ratio = cond_pred.std(dim=axes, keepdim=True) / pred.std(dim=axes, keepdim=True)
    return guidance_rescale * pred * ratio + (1 - guidance_rescale) * pred  # equations 15, 16


def _check_scales(guidance_scale: float | int | Tensor, guidance_rescale: float | int) -> None:
    if isinstance(guidance_scale, Tensor):
        is_valid = ((guidance_scale >= 0) & guidance_scale.isfinite()).all()
        require(is_valid, "guidance_scale", "finite numbers of at least 0", guidance_scale)
    else:
        check_number("guidance_scale", guidance_scale, at_least=0.0)
    check_number("guidance_rescale", guidance_rescale, at_least=0.0, at_most=1.0)


def _expand_scale(guidance_scale: float | int | Tensor, pred: Tensor) -> float | int | Tensor:
    """A tensor of scales that broadcasts against `pred`; (b,) becomes (b, 1, …)."""
    if not isinstance(guidance_scale, Tensor):
        return guidance_scale
    scale = guidance_scale.to(pred)
    if scale.ndim == 1:
        scale = scale.view(-1, *[1] * (pred.ndim - 1))
    sizes = zip(reversed(scale.shape), reversed(pred.shape), strict=False)
    if scale.ndim > pred.ndim or any(size not in (1, expected) for size, expected in sizes):
        raise ValueError(
            f"guidance_scale: expected a number, ({len(pred)},) or a shape that broadcasts to "
            f"{tuple(pred.shape)}, got {tuple(guidance_scale.shape)}"
        )
    return scale


def cfg_model(
    model: Model,
    uncond: Tensor | Mapping[str, Tensor],
    guidance_scale: float | int | Real[Tensor, "*scale"],
    guidance_rescale: float | int = 0.0,
) -> Model:
    """The model under classifier-free guidance, in one forward pass of 2 b rows.

    Args:
        model: trained with `drop_conditioning`.
        uncond: conditioning without a prompt, or with a negative prompt; one row for all or one for
            each; a tensor or a mapping of tensors, like `cond`. Its rows come first in the batch.
        guidance_scale, guidance_rescale: see `classifier_free_guidance`.

    Returns:
        A model (x, t, cond). With the number 1 as the scale it is `model` itself, at half the cost.

    Raises:
        ValueError: as `classifier_free_guidance`; when called, if `uncond` does not match `cond`,
            or the prediction does not match x.
    """
    _check_scales(guidance_scale, guidance_rescale)
    if not isinstance(guidance_scale, Tensor) and guidance_scale == 1:
        return model

    def cfg_forward(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        both = _cat_cond(uncond, cond, len(x))
        pred = evaluate_model(model, torch.cat([x, x]), torch.cat([t, t]), both)
        uncond_pred, cond_pred = pred.chunk(2)
        return classifier_free_guidance(cond_pred, uncond_pred, guidance_scale, guidance_rescale)

    return cfg_forward


def _cat_cond(uncond: Any, cond: Any, num_rows: int) -> Any:
    """Both halves of the batch, tensor by tensor."""
    are_mappings = isinstance(cond, Mapping) and isinstance(uncond, Mapping)
    if are_mappings and cond.keys() == uncond.keys():
        return {name: _cat_cond(uncond[name], cond[name], num_rows) for name in cond}
    if not isinstance(cond, Tensor) or not isinstance(uncond, Tensor):
        raise ValueError(f"cond: expected {_describe(uncond)} like uncond, got {_describe(cond)}")
    rows_fit = len(cond) == num_rows and len(uncond) in (1, num_rows)
    if not rows_fit or uncond.shape[1:] != cond.shape[1:]:
        raise ValueError(
            f"uncond, cond: expected rows of one shape, 1 or {num_rows} and {num_rows} of them, "
            f"got {tuple(uncond.shape)} and {tuple(cond.shape)}"
        )
    _check_like_cond(uncond, cond)
    return torch.cat([uncond.to(cond).expand_as(cond), cond])


def _describe(cond: Any) -> str:
    """The type of a conditioning, for an error message."""
    if isinstance(cond, Mapping):
        return f"a mapping of {', '.join(sorted(cond)) or 'nothing'}"
    return "a tensor" if isinstance(cond, Tensor) else str(type(cond).__name__)


def switch_at(
    high_noise_model: Model, low_noise_model: Model, boundary_timestep: float | int
) -> Model:
    """One model at high noise levels and another at low ones.

    The two may be one network under two kinds of guidance: Kynkäänniemi et al. 2024 limit guidance
    to an interval in this way.

    Args:
        high_noise_model: used at timesteps t >= boundary_timestep.
        low_noise_model: used below.
        boundary_timestep: 0 to T.

    Returns:
        A model (x, t, cond). It raises ValueError for rows on both sides of the boundary.

    Raises:
        ValueError: for a boundary that is negative or not finite.
    """
    check_number("boundary_timestep", boundary_timestep, at_least=0.0)

    def switched(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        is_high = t >= boundary_timestep
        if is_high.any() and not is_high.all():
            raise ValueError(
                f"t: expected all rows at {boundary_timestep} or more, or all below, "
                f"got {t.tolist()}"
            )
        return (high_noise_model if is_high.all() else low_noise_model)(x, t, cond)

    return switched


def dynamic_thresholding(
    x0: Shaped[Tensor, "b *axes"],
    percentile: float | int = 0.995,
    max_value: float | int = math.inf,
) -> Float[Tensor, "b *axes"]:
    """Clips each sample at its `percentile` of |x0|, 1 to `max_value`, then rescales to [-1, 1].

    It undoes the saturation that guidance causes. Saharia et al. 2022, section 2.3.

    Args:
        x0: (b, …) estimate of the clean data.
        percentile: share of the absolute values that are kept, 0 to 1.
        max_value: upper bound of the threshold, above 0. In diffusers it is 1 by default, which
            makes this a plain clip to [-1, 1]. Below 1 it is the threshold of every sample, as in
            diffusers, and smaller values grow.

    Raises:
        ValueError: for integers, or another percentile or bound.
    """
    check_float("x0", x0)
    check_number("percentile", percentile, at_least=0.0, at_most=1.0)
    if max_value != math.inf:
        check_number("max_value", max_value, above=0.0)
    magnitudes = x0.abs().reshape(len(x0), -1)
    # torch.quantile takes at most 2**24 values, fewer than a video may have
    rank = percentile * (magnitudes.shape[1] - 1)
    lower, upper = (
        magnitudes.kthvalue(1 + index, dim=1).values.double()
        for index in (math.floor(rank), math.ceil(rank))
    )
    threshold = torch.lerp(lower, upper, rank % 1).clamp(1, max_value).to(x0.dtype)
    threshold = threshold.view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-threshold, threshold) / threshold
