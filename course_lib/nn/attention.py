"""Factorised attention for video: over the pixels of a frame, the text tokens, the frames.

Reads top to bottom: attention itself, masks, the three layers. Each layer is residual, applies
LayerNorm to every token, and takes video (b, c, f, h, w). The temporal layer is initialised as the
identity.

Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762.
Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 3 (first space, then time).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.nn import kernels
from course_lib.nn.positions import (
    INDEXED_POSITIONS,
    POSITIONS,
    RelativePositionBias,
    apply_rotary_emb,
    sinusoidal_embedding,
)
from course_lib.nn.utils import check_conditioning, check_sizes, zero_module
from course_lib.validation import check_float, require


def attention(
    query: Float[Tensor, "b *batch heads n d"],
    key: Float[Tensor, "b *batch heads m d"],
    value: Float[Tensor, "b *batch heads m d"],
    bias: Tensor | None = None,
) -> Float[Tensor, "b *batch heads n d"]:
    """softmax(query · keyᵀ / √d + bias) · value (Vaswani et al. 2017, equation 1).

    Args:
        query: n queries.
        key: m keys.
        value: m values.
        bias: added to the scores, -inf where attention is masked; broadcasts.

    Raises:
        ValueError: for other axes, integers, or a mask in place of a bias, see `mask_to_bias`.
    """
    _check_axes(query, key, bias)
    check_float("value", value)
    require(value.shape[:-1] == key.shape[:-1], "value", "a row for each key", tuple(value.shape))
    if bias is not None:
        check_float("bias", bias)
    if kernels.unfused_is_faster(query, key):
        return attention_weights(query, key, bias).to(value.dtype) @ value
    return kernels.fused_attention(query, key, value, bias)


def attention_weights(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    bias: Float[Tensor, "*masked n m"] | None = None,
) -> Float[Tensor, "*batch n m"]:
    """softmax(query · keyᵀ / √d + bias): the attention of every query; each row sums to 1.

    Raises:
        ValueError: for queries and keys that differ in another axis than n and m.
    """
    _check_axes(query, key, bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def _check_axes(query: Tensor, key: Tensor, bias: Tensor | None) -> None:
    """Refuses what would broadcast: the keys of one clip, or of one head, for all of them."""
    shapes = query.shape, key.shape
    others = [(*shape[:-2], shape[-1]) for shape in shapes]
    require(others[0] == others[1], "query, key", "the same axes", f"{shapes[0]}, {shapes[1]}")
    if bias is not None:
        n, m = query.shape[-2], key.shape[-2]
        fits = bias.shape[-2] in (1, n) and bias.shape[-1] in (1, m)
        require(fits, "bias", f"(…, {n}, {m})", tuple(bias.shape))


def joint_training_mask(is_image: Tensor) -> Bool[Tensor, "b f f"]:
    """Temporal attention mask of joint image-video training: an image attends only to itself.

    Ho et al. 2022, section 3.3.

    Args:
        is_image: booleans (b, f), which frames are independent images.

    Returns:
        The mask [clip, query frame, key frame], True where attention is allowed.

    Raises:
        ValueError: for another dtype or number of axes.
    """
    is_mask = is_image.dtype == torch.bool and is_image.ndim == 2
    got = f"{is_image.dtype} of shape {tuple(is_image.shape)}"
    require(is_mask, "is_image", "booleans (b, f)", got)
    both_video = ~is_image[:, :, None] & ~is_image[:, None, :]
    return both_video | torch.eye(is_image.shape[1], dtype=torch.bool, device=is_image.device)


def mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask as an attention bias: 0 where it is True, -inf elsewhere.

    Raises:
        ValueError: for a mask that is not boolean.
    """
    require(mask.dtype == torch.bool, "mask", "booleans", mask.dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


def _num_heads(channels: int, head_dim: int) -> int:
    check_sizes(head_dim=head_dim, channels=channels)
    if channels % head_dim:
        raise ValueError(f"channels: expected a multiple of head_dim {head_dim}, got {channels}")
    return channels // head_dim


def _split_heads(x: Float[Tensor, "*batch n c"], heads: int) -> Float[Tensor, "*batch heads n d"]:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _merge_heads(x: Float[Tensor, "*batch heads n d"]) -> Float[Tensor, "*batch n c"]:
    return x.transpose(-3, -2).flatten(-2)


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of each frame, as in an image network.

    Args:
        channels: channels of the video, a multiple of `head_dim`.
        head_dim: channels per attention head.

    Raises:
        ValueError: if `head_dim` does not divide `channels`.
    """

    def __init__(self, channels: int, head_dim: int = 32):
        super().__init__()
        self.num_heads = _num_heads(channels, head_dim)
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, video: Tensor) -> Float[Tensor, "b c f h w"]:
        """Takes a video (b, c, f, h, w); raises ValueError for another number of axes."""
        check_float("video", video, "(b, c, f, h, w)")
        tokens = self.norm(video.flatten(3).permute(0, 2, 3, 1))  # b f (h w) c
        qkv = self.to_qkv(tokens).chunk(3, dim=-1)
        query, key, value = (_split_heads(x, self.num_heads) for x in qkv)
        out = self.to_out(_merge_heads(attention(query, key, value)))  # b f (h w) c
        return video + out.permute(0, 3, 1, 2).reshape(video.shape)


class CrossAttention(nn.Module):
    """Attention of every pixel to the text tokens.

    Args:
        channels: channels of the video, a multiple of `head_dim`.
        cross_attention_dim: dimension of the text embeddings.
        head_dim: channels per attention head.

    Raises:
        ValueError: if `head_dim` does not divide `channels`.
    """

    def __init__(self, channels: int, cross_attention_dim: int, head_dim: int = 32):
        super().__init__()
        self.num_heads = _num_heads(channels, head_dim)
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(cross_attention_dim, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        query_pos: Float[Tensor, "b f n c"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Returns the video with the attended text added.

        Args:
            video: the queries, (b, c, f, h, w).
            text: text embeddings, (b, l, d) for a text per clip, (b, f, l, d) for one per frame.
            query_pos: position embeddings of the queries, n = h w.

        Raises:
            ValueError: for other axes, and texts that do not match the clips.
        """
        check_float("video", video, "(b, c, f, h, w)")
        check_float("text", text)
        b, _, f, _, _ = video.shape
        fits = tuple(text.shape[:-2]) in ((b,), (b, f))
        require(fits, "text", f"({b}, l, d) or ({b}, {f}, l, d)", tuple(text.shape))
        tokens = self.norm(video.flatten(3).permute(0, 2, 3, 1))  # b f (h w) c
        tokens = tokens if query_pos is None else tokens + query_pos
        tokens = tokens.flatten(1, 2) if text.ndim == 3 else tokens  # b (f h w) c
        query = _split_heads(self.to_q(tokens), self.num_heads)
        key, value = (_split_heads(x, self.num_heads) for x in self.to_kv(text).chunk(2, dim=-1))
        out = self.to_out(_merge_heads(attention(query, key, value)))
        out = out.unflatten(1, (video.shape[2], -1)) if text.ndim == 3 else out  # b f (h w) c
        return video + out.permute(0, 3, 1, 2).reshape(video.shape)


class TemporalAttention(nn.Module):
    """Self-attention over the frames of each pixel; initialised as the identity.

    Args:
        channels: channels of the video, a multiple of `head_dim`.
        head_dim: channels per attention head.
        positions: how frames are distinguished: "relative" and "rotary" depend on distances,
            "sinusoidal" on absolute positions. With "none" the layer is permutation-equivariant.
        max_distance: see `RelativePositionBias`.

    Raises:
        ValueError: if `head_dim` does not divide `channels`, or for unknown positions.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int = 32,
        positions: str = "relative",
        max_distance: int = 32,
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(
                f"positions: expected one of {', '.join(POSITIONS)}; got {positions!r}"
            )
        self.num_heads = _num_heads(channels, head_dim)
        size, name = (head_dim, "head_dim") if positions == "rotary" else (channels, "channels")
        if positions in INDEXED_POSITIONS:
            require(size % 2 == 0, name, f"an even number for {positions} positions", size)
        self.positions = positions
        self.norm = nn.LayerNorm(channels)
        self.rel_pos_bias = (
            RelativePositionBias(self.num_heads, max_distance) if positions == "relative" else None
        )
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        # Weight and bias: a random bias would shift every frame
        self.to_out = zero_module(nn.Linear(channels, channels))

    def forward(
        self,
        video: Tensor,
        mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Returns the video with the attended frames added.

        Args:
            video: queries, keys and values, (b, c, f, h, w).
            mask: booleans [clip, query frame, key frame], True where attention is allowed; None
                allows all.
            frame_index: (b, f) positions of the frames in time, for "sinusoidal" and "rotary"
                positions; None means 0, 1, 2 ….

        Raises:
            ValueError: if `frame_index` is given with other positions; for other axes and dtypes.
        """
        query, key, value, bias = self._project(video, mask, frame_index)
        out = self.to_out(_merge_heads(attention(query, key, value, bias)))  # b (h w) f c
        return video + out.permute(0, 3, 2, 1).reshape(video.shape)

    def weights(
        self,
        video: Tensor,
        mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> Float[Tensor, "b heads h w f f"]:
        """Attention weights [clip, head, row, column, query frame, key frame] of `forward`."""
        query, key, _, bias = self._project(video, mask, frame_index)
        weights = attention_weights(query, key, bias)  # b (h w) heads f f
        return weights.transpose(1, 2).unflatten(2, video.shape[3:])

    def _project(
        self, video: Tensor, mask: Tensor | None, frame_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns queries, keys and values, (b, h w, heads, f, d) each, and the bias."""
        check_float("video", video, "(b, c, f, h, w)")
        b, _, num_frames, _, _ = video.shape
        if frame_index is not None:
            if self.positions not in INDEXED_POSITIONS:
                raise ValueError(f"frame_index: not supported with {self.positions!r} positions")
            check_conditioning("frame_index", frame_index, (b, num_frames))
        if mask is not None:
            shape = (b, num_frames, num_frames)
            require(mask.shape == shape, "mask", f"{shape}", tuple(mask.shape))
        tokens = self.norm(video.flatten(3).permute(0, 3, 2, 1))  # b (h w) f c
        if self.positions == "sinusoidal":
            pos = num_frames if frame_index is None else frame_index[:, None]  # b 1 f
            tokens = tokens + sinusoidal_embedding(pos, tokens.shape[-1], tokens)
        qkv = self.to_qkv(tokens).chunk(3, dim=-1)
        query, key, value = (_split_heads(x, self.num_heads) for x in qkv)
        if self.positions == "rotary":
            pos = None if frame_index is None else frame_index[:, None, None]  # b 1 1 f
            query, key = apply_rotary_emb(query, pos), apply_rotary_emb(key, pos)
        bias = self.rel_pos_bias and self.rel_pos_bias(num_frames).to(query.dtype)  # heads f f
        if mask is not None:
            mask_bias = mask_to_bias(mask, query.dtype)[:, None, None]  # b 1 1 f f
            bias = mask_bias if bias is None else bias + mask_bias
        return query, key, value, bias
