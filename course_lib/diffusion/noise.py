"""Gaussian noise for training and sampling: shared between frames, or offset per video.

Sources:
    Ge et al. 2023, "Preserve Your Own Correlation", arXiv 2305.10474 (mixed noise).
    Guttenberg 2023, "Diffusion with Offset Noise", Cross Labs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from course_lib.validation import check_float, check_generator, check_number

# One generator for the whole batch, or a list with one for each row
Generators = torch.Generator | list[torch.Generator]


def sample_noise(
    shape: Sequence[int],
    generator: Generators,
    frame_correlation: float | int = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *axes"]:
    """Normal noise of unit variance, with an optional correlation between the frames of a video.

    Args:
        shape: (b, c, f, h, w), or any other with `frame_correlation=0`.
        generator: one for the batch, or a list of b: row i is then what generator i draws for
            the shape (1, …). The noise is made on the generator's device.
        frame_correlation: correlation of any two frames of a video, 0 (independent) to 1 (equal).
            The independent part is the same noise for every value. Ge et al. 2023, section 4.1.
        dtype: of the noise.

    Raises:
        ValueError: as `check_noise_args`.
    """
    check_noise_args(shape, generator, frame_correlation)
    if isinstance(generator, list):
        row_shape = (1, *shape[1:])
        rows = [sample_noise(row_shape, one, frame_correlation, dtype) for one in generator]
        return torch.cat(rows)
    options = {"generator": generator, "device": generator.device, "dtype": dtype}
    independent = torch.randn(tuple(shape), **options)
    if frame_correlation == 0:
        return independent
    b, c, _, h, w = shape
    shared = torch.randn(b, c, 1, h, w, **options)
    return frame_correlation**0.5 * shared + (1 - frame_correlation) ** 0.5 * independent


def check_noise_args(
    shape: Sequence[int],
    generator: Generators | None,
    frame_correlation: float | int,
    *,
    is_optional: bool = False,
) -> None:
    """Checks the arguments of `sample_noise` without drawing anything.

    Args:
        shape, generator, frame_correlation: as for `sample_noise`.
        is_optional: whether the generator may be None, since nothing will be drawn.

    Raises:
        ValueError: for a correlation outside [0, 1], a correlation above 0 with a shape without
            frames, anything but generators, or a list of them whose length is not the number of
            rows.
    """
    check_number("frame_correlation", frame_correlation, at_least=0.0, at_most=1.0)
    if frame_correlation and len(shape) != 5:
        raise ValueError(
            f"shape: expected (b, c, f, h, w) to correlate the noise of frames, got {tuple(shape)}"
        )
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(
            f"generator: expected one, or a list of {shape[0]}, one for each row; "
            f"got a list of {len(generator)}"
        )
    if generator is None and is_optional:
        return
    for one in generator if isinstance(generator, list) else [generator]:
        check_generator(one)


def offset_noise(
    noise: Shaped[Tensor, "b c *axes"], noise_offset: float | int, generator: torch.Generator
) -> Float[Tensor, "b c *axes"]:
    """Adds a random constant per video and channel, so that a model learns to change brightness.

    The variance becomes 1 + noise_offset², which samplers do not account for. Zero terminal SNR
    solves the same problem without that flaw. Guttenberg 2023.

    Args:
        noise: (b, c, …) of unit variance.
        noise_offset: standard deviation of the constants, 0 or more; 0.1 is usual.
        generator: draws (b, c) numbers.

    Raises:
        ValueError: for integer noise, a `noise_offset` that is negative or not finite, or anything
            but one generator.
    """
    check_float("noise", noise)
    check_number("noise_offset", noise_offset, at_least=0.0)
    check_generator(generator)
    shape = noise.shape[:2] + (1,) * (noise.ndim - 2)
    offset = torch.randn(shape, generator=generator, device=generator.device)
    return noise + noise_offset * offset.to(noise)
