"""Positions of frames in time and of pixels in a frame.

Shaw et al. 2018, "Self-Attention with Relative Position Representations", arXiv 1803.02155.
Su et al. 2021, "RoFormer", arXiv 2104.09864 (rotary positions).
Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762 (sinusoidal positions).
Liu et al. 2018, "CoordConv", arXiv 1807.03247; Tancik et al. 2020, "Fourier Features Let Networks
Learn High Frequency Functions", arXiv 2006.10739 (coordinates of pixels).
"""

import math

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from course_lib.nn.utils import check_sizes
from course_lib.validation import check_float, check_int, require

INDEXED_POSITIONS = ("rotary", "sinusoidal")  # these accept a `frame_index`
POSITIONS = ("relative", *INDEXED_POSITIONS, "none")
# Frequencies of `coord_features`, in half periods from the middle of the frame to its border
COORD_FREQUENCIES = (0.5, 1.0, 2.0)


class RelativePositionBias(nn.Module):
    """A learned attention bias for every head and distance in frames; clips may have any length.

    Args:
        num_heads: number of attention heads.
        max_distance: distances beyond it, in either direction, share one entry.
    """

    def __init__(self, num_heads: int, max_distance: int = 32):
        super().__init__()
        check_int("max_distance", max_distance, 0)
        check_sizes(num_heads=num_heads)
        self.max_distance = max_distance
        self.embedding = nn.Parameter(torch.zeros(num_heads, 2 * max_distance + 1))

    def forward(self, num_frames: int) -> Float[Tensor, "heads f f"]:
        """Returns the bias [head, query frame, key frame]."""
        frames = torch.arange(num_frames, device=self.embedding.device)
        distance = frames[None, :] - frames[:, None]  # key minus query
        distance = distance.clamp(-self.max_distance, self.max_distance)
        return self.embedding[:, distance + self.max_distance]


def rotary_angles(
    positions: int | Real[Tensor, "*batch f"], dim: int, ref: Tensor
) -> Float[Tensor, "*batch f half"]:
    """Angles position / 10000^(2 i / dim) for i < dim / 2.

    Args:
        positions: positions of the frames in time, fractions allowed; a number n means 0 … n - 1.
        dim: dimension of the vectors, even.
        ref: tensor whose device the angles take.

    Returns:
        The angles, in float64 if `ref` is float64, else in float32.

    Raises:
        ValueError: for an odd dimension, which has no pairs.
    """
    require(dim % 2 == 0 and dim > 0, "dim", "an even number", dim)
    dtype = torch.float64 if ref.dtype == torch.float64 else torch.float32
    positions = torch.arange(positions) if isinstance(positions, int) else positions
    inv_freq = 10000.0 ** (-torch.arange(0, dim, 2, device=ref.device, dtype=dtype) / dim)
    return positions.to(inv_freq)[..., None] * inv_freq


def apply_rotary_emb(
    x: Float[Tensor, "*batch f d"], positions: Real[Tensor, "*positions f"] | None = None
) -> Float[Tensor, "*batch f d"]:
    """Rotary positions: rotates the pair (x_i, x_{i + d/2}) by the i-th angle.

    Su et al. 2021, equation 34.

    Args:
        x: queries or keys, with time on the axis before the last; d is even.
        positions: positions of the frames in time; None means 0, 1, 2 ….

    Raises:
        ValueError: for integers as `x`, an odd d, or another number of positions than frames.
    """
    check_float("x", x)
    if positions is not None:
        num_frames = x.shape[-2]
        fits = positions.shape[-1] == num_frames
        require(fits, "positions", f"{num_frames} of them", positions.shape[-1])
    theta = rotary_angles(x.shape[-2] if positions is None else positions, x.shape[-1], x)
    cos, sin = theta.cos().to(x.dtype), theta.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sinusoidal_embedding(
    positions: int | Real[Tensor, "*batch f"], dim: int, ref: Tensor
) -> Float[Tensor, "*batch f dim"]:
    """Absolute positions: [sin, cos] of `rotary_angles`, whose arguments it takes.

    Vaswani et al. 2017, section 3.5. The result has the dtype of `ref`.
    """
    theta = rotary_angles(positions, dim, ref)
    return torch.cat([theta.sin(), theta.cos()], dim=-1).to(ref.dtype)


def coord_features(h: int, w: int, ref: Tensor) -> Float[Tensor, "1 features h w"]:
    """Sine and cosine of the position of every pixel, relative to the frame, for any frame size.

    Args:
        h: rows.
        w: columns.
        ref: tensor whose device and dtype the features take.

    Returns:
        Channels (frequency, axis, sin/cos): for each of `COORD_FREQUENCIES`, first the vertical
        and then the horizontal position.

    Raises:
        ValueError: for sizes below 1.
    """
    check_sizes(h=h, w=w)
    vertical = _axis_features(h)[..., None].expand(-1, -1, -1, w)  # frequency 2 h w
    horizontal = _axis_features(w)[..., None, :].expand(-1, -1, h, -1)
    return torch.stack([vertical, horizontal], dim=1).flatten(0, 2)[None].to(ref)


def _axis_features(n: int) -> Float[Tensor, "frequencies two n"]:
    """Sine and cosine of n positions along one axis; on the CPU: not every GPU has float64."""
    coord = torch.arange(n, dtype=torch.float64).add(0.5).mul(2 / n).sub(1)  # -1 … 1
    theta = torch.tensor(COORD_FREQUENCIES, dtype=torch.float64).mul(math.pi)[:, None] * coord
    return torch.stack([theta.sin(), theta.cos()], dim=1)
