"""Classifier-free guidance: away from what the model says of nothing, towards what it says of the prompt.

A guided model is a model: it takes (x, t, conditioning) and predicts, so every sampler takes it. Guidance may mix ε, x0
or v: at a given x_t they are affine in one another, so the result is the same, as long as nothing is rescaled.
Reads top to bottom: what training needs, the formula, a model under guidance, two models that take turns, a cure for
what guidance saturates.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models" (Imagen), arXiv 2205.11487 (dynamic thresholding).
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891 (rescale).
Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models", arXiv 2404.07724.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from course_lib.diffusion.objective import Model


def drop_conditioning(
    conditioning: Shaped[Tensor, "b *axes"],
    empty: Shaped[Tensor, "*row"],
    probability: float | int,
    generator: torch.Generator,
) -> Shaped[Tensor, "b *axes"]:
    """Give some rows, each by its own chance, the empty prompt instead: what guidance needs a model to have learnt.

    conditioning: one row per clip: text (b, l, d), or classes (b,). empty: that row for no prompt, such as (l, d) or
    (1, l, d).
    probability: of losing a row's conditioning, 0 to 1; 0.1 is usual. generator: draws b numbers whatever it is.
    Ho & Salimans 2022, algorithm 1. Raises ValueError for another shape of `empty` or another probability.
    """
    row = conditioning.shape[1:]
    if empty.shape not in (row, (1, *row)):
        raise ValueError(
            f"empty: expected one row of conditioning, {tuple(row)}, got {tuple(empty.shape)}"
        )
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: expected 0 to 1, got {probability}")
    dropped = (
        torch.rand(len(conditioning), generator=generator, device=generator.device) < probability
    )
    dropped = dropped.to(conditioning.device).view(-1, *[1] * len(row))
    return torch.where(dropped, empty.to(conditioning), conditioning)


def guide(
    conditional: Float[Tensor, "b *axes"],
    unconditional: Float[Tensor, "b *axes"],
    scale: float | int,
    rescale: float | int = 0.0,
) -> Float[Tensor, "b *axes"]:
    """unconditional + scale · (conditional - unconditional), then brought `rescale` of the way to conditional's spread.

    conditional, unconditional: two predictions at the same x_t. scale: 0 ignores the prompt, 1 is no guidance; it is
    1 + w of Ho & Salimans 2022 (equation 6) and w of most code and later papers.
    rescale: φ, 0 to 1, against over-exposure; 0.7 in the paper. Standard deviations are taken over each clip as a
    whole, so that one frame's changes all others. Lin et al. 2024, section 3.4.
    Raises ValueError for a negative scale or another rescale.
    """
    _refuse(scale, rescale)
    prediction = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return prediction
    axes = tuple(range(1, prediction.ndim))
    ratio = conditional.std(dim=axes, keepdim=True) / prediction.std(dim=axes, keepdim=True)
    return rescale * prediction * ratio + (1 - rescale) * prediction  # equations 15, 16


def _refuse(scale: float | int, rescale: float | int) -> None:
    if scale < 0:
        raise ValueError(f"scale: expected 0 or more, got {scale}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale: expected 0 to 1, got {rescale}")


def guided(
    model: Model,
    empty: Tensor | Mapping[str, Tensor],
    scale: float | int,
    rescale: float | int = 0.0,
) -> Model:
    """The model under guidance: one forward pass of twice the rows; at scale 1 the model itself, at its own cost.

    model: trained with `drop_conditioning`. empty: conditioning without a prompt, or with a negative one: one row for
    all or a row for each; a tensor or a mapping of tensors, as the conditioning is. The empty half comes first.
    scale, rescale: see `guide`. Raises ValueError as `guide`; when called, where `empty` and conditioning do not match.
    """
    _refuse(scale, rescale)
    if scale == 1:
        return model

    def both(x: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        prediction = model(
            torch.cat([x, x]), torch.cat([t, t]), _joined(empty, conditioning, len(x))
        )
        unconditional, conditional = prediction.chunk(2)
        return guide(conditional, unconditional, scale, rescale)

    return both


def _joined(empty: Any, conditioning: Any, rows: int) -> Any:
    """Both halves of the batch, tensor by tensor."""
    if (
        isinstance(conditioning, Mapping)
        and isinstance(empty, Mapping)
        and conditioning.keys() == empty.keys()
    ):
        return {name: _joined(empty[name], conditioning[name], rows) for name in conditioning}
    if not isinstance(conditioning, Tensor) or not isinstance(empty, Tensor):
        raise ValueError(
            f"conditioning: expected what `empty` is, {_described(empty)}, got {_described(conditioning)}"
        )
    if (
        len(conditioning) != rows
        or len(empty) not in (1, rows)
        or empty.shape[1:] != conditioning.shape[1:]
    ):
        shapes = f"{tuple(empty.shape)} and {tuple(conditioning.shape)}"
        raise ValueError(
            f"empty, conditioning: expected equal rows, 1 or {rows} and {rows} of them, got {shapes}"
        )
    return torch.cat([empty.to(conditioning).expand_as(conditioning), conditioning])


def _described(conditioning: Any) -> str:
    if isinstance(conditioning, Mapping):
        return f"a mapping of {', '.join(sorted(conditioning)) or 'nothing'}"
    return "a tensor" if isinstance(conditioning, Tensor) else str(type(conditioning).__name__)


def in_turn(early: Model, late: Model, timestep: float | int) -> Model:
    """One model under much noise and another under little, such as one network under two kinds of guidance.

    early: answers from the last timestep down to `timestep`, 0 to T - 1; late: below it. All rows of a call have to be
    on one side. Kynkäänniemi et al. 2024 limit guidance to an interval in this way.
    Raises ValueError, when called, for rows on both sides.
    """

    def one(x: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        is_early = t >= timestep
        if is_early.any() and not is_early.all():
            raise ValueError(
                f"t: expected all rows at {timestep} or more, or all below, got {t.tolist()}"
            )
        return (early if is_early.all() else late)(x, t, conditioning)

    return one


def dynamic_threshold(
    x0: Float[Tensor, "b *axes"], ratio: float = 0.995, largest: float | int = math.inf
) -> Float[Tensor, "b *axes"]:
    """Clip each row where `ratio` of its values end, if that is beyond 1, and divide by it: what guidance saturates.

    x0: estimate of the clean data. ratio: share of the absolute values that stay, 0 to 1.
    largest: upper bound of the threshold, at least 1. It is 1 by default in diffusers: a plain clip to [-1, 1].
    Saharia et al. 2022, section 2.3. Raises ValueError for another ratio or bound.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 to 1, got {ratio}")
    if largest < 1:
        raise ValueError(f"largest: expected at least 1, got {largest}")
    sizes = x0.abs().flatten(1)
    rank = ratio * (
        sizes.shape[1] - 1
    )  # torch.quantile takes at most 2**24 values, fewer than a clip may have
    below, above = (
        sizes.kthvalue(1 + place, dim=1).values.double()
        for place in (math.floor(rank), math.ceil(rank))
    )
    limit = (
        torch.lerp(below, above, rank % 1)
        .clamp(1, largest)
        .to(x0.dtype)
        .view(-1, *[1] * (x0.ndim - 1))
    )
    return x0.clamp(-limit, limit) / limit
