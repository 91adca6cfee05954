"""Attention for video, factorised: over the pixels of a frame, over the words of a text, over the frames of a pixel.

Reads top to bottom: attention itself, masks, positions in time, the three layers. Each layer is residual, normalises
every token by itself and takes video (b, c, f, h, w). The temporal one begins as the identity.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 3 (space, then time, with relative positions).
Shaw et al. 2018, "Self-Attention with Relative Position Representations", arXiv 1803.02155.
Su et al. 2021, "RoFormer", arXiv 2104.09864 (rotary positions).
"""

import math

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PLACED = ("rotary", "sinusoidal")  # frames may be told where in time they are
POSITIONS = ("relative", *PLACED, "none")
WAVES = (
    0.5,
    1.0,
    2.0,
)  # by which places are told, in half waves from the middle of the frame to its border
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
# Scores of one head up to which plain products beat torch's fused attention on a CPU, gradients included. On two cores,
# 16 frames of 1,024 pixels, bfloat16, forward and backward: 20 against 23 ms; 256 pixels of 32 frames: 15 against 34;
# 1,024 pixels of 32 frames: 431 against 313. In float32 fused is nine times as fast forward already at 256 x 256.
PLAIN = {torch.bfloat16: 512 * 512, torch.float32: 64 * 64}


def attend(
    query: Float[Tensor, "b *batch heads n d"],
    key: Float[Tensor, "b *batch heads m d"],
    value: Float[Tensor, "b *batch heads m d"],
    bias: Float[Tensor, "*masked n m"] | None = None,
) -> Float[Tensor, "b *batch heads n d"]:
    """softmax(query · keyᵀ / √d + bias) · value, by whichever way is the faster one here.

    bias: added to the scores, -inf where a query must not look; broadcasts. Vaswani et al. 2017, equation 1.
    """
    scores = query.shape[-2] * key.shape[-2]
    if query.device.type == "cpu" and scores <= PLAIN.get(query.dtype, 0):
        return attention_weights(query, key, bias).to(value.dtype) @ value
    batch, rows = (
        query.shape[:-3],
        (x.flatten(0, -4) for x in (query, key, value)),
    )  # fused kernels take four axes
    if bias is not None and bias.ndim > 3:
        bias = bias.expand(*batch, *bias.shape[-3:]).flatten(0, -4)
    with sdpa_kernel(BACKENDS):  # whatever the training loop has chosen for short sequences
        return F.scaled_dot_product_attention(*rows, attn_mask=bias).unflatten(0, batch)


def attention_weights(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    bias: Float[Tensor, "*masked n m"] | None = None,
) -> Float[Tensor, "*batch n m"]:
    """softmax(query · keyᵀ / √d + bias): where every query looks; each row sums to 1."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def apart(alone: Bool[Tensor, "b f"]) -> Bool[Tensor, "b f f"]:
    """Who may look at whom when some frames of a clip are pictures of their own: they see and are seen by nobody else.

    alone: which frames. Returns [clip, who looks, at whom]. Ho et al. 2022, section 3.3 (joint training).
    """
    together = ~alone[:, :, None] & ~alone[:, None, :]
    return together | torch.eye(alone.shape[1], dtype=torch.bool, device=alone.device)


def as_bias(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask as what is added to scores: 0 where it is True, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, -math.inf
    )


# Positions in time


class RelativeBias(nn.Module):
    """A learned number for every head and distance in frames, added to the scores; so clips may have any length.

    heads: how many. reach: the largest distance with a number of its own, either way; beyond it all are alike.
    """

    def __init__(self, heads: int, reach: int = 32):
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, frames: int) -> Float[Tensor, "heads f f"]:
        places = torch.arange(frames, device=self.table.device)
        distance = (places[None, :] - places[:, None]).clamp(
            -self.reach, self.reach
        )  # of whom is seen from who looks
        return self.table[:, distance + self.reach]


def angles(
    places: int | Real[Tensor, "*batch f"], width: int, like: Tensor
) -> Float[Tensor, "*batch f half"]:
    """place / 10000^(2 i / width): how far the i-th pair of numbers has turned at each frame.

    places: of frames in time, which may lie between whole numbers; a number of frames is 0, 1, 2 …. width: even.
    like: the angles come on its device, in float64 if it has that, else in float32.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    places = torch.arange(places) if isinstance(places, int) else places
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=dtype) / width)
    return places.to(rates)[..., None] * rates


def rotate(
    x: Float[Tensor, "*batch f d"], places: Real[Tensor, "*some f"] | None = None
) -> Float[Tensor, "*batch f d"]:
    """Rotary positions: the i-th pair, numbers i and i + d/2, turned by `angles`. Su et al. 2021, equation 34.

    x: queries or keys, never values; the axis before the last is time. d: even. places: of frames, see `angles`;
    None: 0, 1, 2 ….
    """
    turned = angles(x.shape[-2] if places is None else places, x.shape[-1], x)
    cos, sin = turned.cos().to(x.dtype), turned.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sinusoids(
    places: int | Real[Tensor, "*batch f"], width: int, like: Tensor
) -> Float[Tensor, "*batch f width"]:
    """Sine and cosine of `angles`, side by side: absolute positions. Vaswani et al. 2017, section 3.5."""
    turned = angles(places, width, like)
    return torch.cat([turned.sin(), turned.cos()], dim=-1).to(like.dtype)


def place_waves(h: int, w: int, like: Tensor) -> Float[Tensor, "1 waves h w"]:
    """Sine and cosine of where each place is, down and across, in parts of the frame, so that any size will do.

    h, w: of the frame, in patches. like: the waves come in its dtype, on its device. Channels: for each of `WAVES` sine
    and cosine down, then across. Liu et al. 2018, "CoordConv", arXiv 1807.03247; Tancik et al. 2020, "Fourier Features
    Let Networks Learn High Frequency Functions", arXiv 2006.10739.
    """
    down, across = (
        _waves(h)[..., None].expand(-1, -1, -1, w),
        _waves(w)[..., None, :].expand(-1, -1, h, -1),
    )
    return (
        torch.stack([down, across], dim=1).flatten(0, 2)[None].to(like)
    )  # 1 (rates side sin-cos) h w


def _waves(n: int) -> Float[Tensor, "rates two n"]:
    """Sine and cosine of the n places of one side; on the CPU, since not every GPU has float64."""
    side = torch.arange(n, dtype=torch.float64).add(0.5).mul(2 / n).sub(1)
    turned = torch.tensor(WAVES, dtype=torch.float64).mul(math.pi)[:, None] * side
    return torch.stack([turned.sin(), turned.cos()], dim=1)


# The layers


def _heads(channels: int, head_width: int) -> int:
    if channels % head_width:
        raise ValueError(
            f"channels: expected a multiple of the head width {head_width}, got {channels}"
        )
    return channels // head_width


def _split(x: Float[Tensor, "*batch n c"], heads: int) -> Float[Tensor, "*batch heads n d"]:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _join(x: Float[Tensor, "*batch heads n d"]) -> Float[Tensor, "*batch n c"]:
    return x.transpose(-3, -2).flatten(-2)


class SpatialAttention(nn.Module):
    """Every pixel looks at all pixels of its own frame: frames are rows of the batch, as in an image network.

    channels: a multiple of head_width. Raises ValueError otherwise.
    """

    def __init__(self, channels: int, head_width: int = 32):
        super().__init__()
        self.heads = _heads(channels, head_width)
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        tokens = video.flatten(3).permute(0, 2, 3, 1)  # b f (h w) c
        query, key, value = (
            _split(part, self.heads) for part in self.to_qkv(self.norm(tokens)).chunk(3, dim=-1)
        )
        found = self.to_out(_join(attend(query, key, value)))  # b f (h w) c
        return video + found.permute(0, 3, 1, 2).reshape(video.shape)


class TextAttention(nn.Module):
    """Every pixel looks at the words of its text.

    channels: a multiple of head_width, or ValueError. text_width: of the text's vectors.
    """

    def __init__(self, channels: int, text_width: int, head_width: int = 32):
        super().__init__()
        self.heads = _heads(channels, head_width)
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(text_width, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        text: Float[Tensor, "b *each l d"],
        here: Float[Tensor, "b f n c"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """text: (b, l, d), one for all frames of a clip, or (b, f, l, d), one for each. here: what pixels are told of
        themselves before they ask; n = h w.
        """
        tokens = self.norm(video.flatten(3).permute(0, 2, 3, 1))  # b f (h w) c
        tokens = tokens if here is None else tokens + here
        tokens = tokens.flatten(1, 2) if text.ndim == 3 else tokens  # b (f h w) c
        key, value = (_split(part, self.heads) for part in self.to_kv(text).chunk(2, dim=-1))
        query = _split(self.to_q(tokens), self.heads)
        found = self.to_out(_join(attend(query, key, value)))
        found = found.unflatten(1, (video.shape[2], -1)) if text.ndim == 3 else found  # b f (h w) c
        return video + found.permute(0, 3, 1, 2).reshape(video.shape)


class TemporalAttention(nn.Module):
    """Every pixel looks at itself in all frames: pixels are rows of the batch, frames the sequence.

    Its output is zero at first, weight and bias, so that a network begins as one that knows no time.
    channels: a multiple of head_width. positions: what tells frames apart; "relative" and "rotary" know distances,
    "sinusoidal" places, "none" nothing: then a shuffled clip gives the same result, shuffled. reach: see
    `RelativeBias`.
    Raises ValueError for channels that do not divide, or unknown positions.
    """

    def __init__(
        self, channels: int, head_width: int = 32, positions: str = "relative", reach: int = 32
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(
                f"positions: expected one of {', '.join(POSITIONS)}; got {positions!r}"
            )
        self.heads, self.positions = _heads(channels, head_width), positions
        self.norm = nn.LayerNorm(channels)
        self.bias = RelativeBias(self.heads, reach) if positions == "relative" else None
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(
            self.to_out.bias
        )  # the weight alone is not enough: a random bias shifts every frame

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        mask: Bool[Tensor, "b f f"] | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """mask: which frame may look at which, see `apart`; None: all at all. frame_index: where frames are in time,
        for positions "sinusoidal" and "rotary"; None: 0, 1, 2 …. Raises ValueError for it with other positions.
        """
        query, key, value, bias = self._project(video, mask, frame_index)
        found = self.to_out(_join(attend(query, key, value, bias)))  # b (h w) f c
        return video + found.permute(0, 3, 2, 1).reshape(video.shape)

    def weights(
        self,
        video: Float[Tensor, "b c f h w"],
        mask: Bool[Tensor, "b f f"] | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "b heads h w f f"]:
        """Where every pixel of every frame looks in time: [clip, head, row, column, frame that looks, frame seen]."""
        query, key, _, bias = self._project(video, mask, frame_index)
        found = attention_weights(query, key, bias)  # b (h w) heads f f
        return found.transpose(1, 2).unflatten(2, video.shape[3:])

    def _project(
        self, video: Tensor, mask: Tensor | None, frame_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values, (b, h w, heads, f, d) each, and what is added to their scores."""
        if frame_index is not None and self.positions not in PLACED:
            raise ValueError(
                f"frame_index: expected none with {self.positions!r} positions, got some"
            )
        frames = video.shape[2]
        places = frames if frame_index is None else frame_index[:, None]  # b 1 f
        tokens = self.norm(video.flatten(3).permute(0, 3, 2, 1))  # b (h w) f c
        if self.positions == "sinusoidal":
            tokens = tokens + sinusoids(places, tokens.shape[-1], tokens)
        query, key, value = (
            _split(part, self.heads) for part in self.to_qkv(tokens).chunk(3, dim=-1)
        )
        if self.positions == "rotary":
            turning = None if frame_index is None else frame_index[:, None, None]  # b 1 1 f
            query, key = rotate(query, turning), rotate(key, turning)
        bias = None if self.bias is None else self.bias(frames).to(query.dtype)  # heads f f
        if mask is not None:
            hidden = as_bias(mask, query.dtype)[:, None, None]  # b 1 1 f f
            bias = hidden if bias is None else bias + hidden
        return query, key, value, bias
