"""Blocks of the video U-Net: residual block with factorised attention, text pooling, refiner."""

import math

import torch
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.attention import CrossAttention, SpatialAttention, TemporalAttention
from course_lib.nn.utils import fold_frames, unfold_frames, zero_module
from course_lib.validation import require

NORM_GROUPS = 8  # of every GroupNorm, with statistics over one frame


class UNetBlock(nn.Module):
    """A residual block of 1x3x3 convolutions, then spatial, text and temporal attention.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        temb_channels: dimension of the conditioning embedding.
        has_attention: whether the block has attention.
        cross_attention_dim: dimension of the text embeddings; None for no text.
        head_dim: channels per attention head.
        temporal_positions: see `TemporalAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        temb_channels: int,
        has_attention: bool,
        cross_attention_dim: int | None,
        head_dim: int,
        temporal_positions: str,
    ):
        super().__init__()
        self.resnet = ResnetBlock2D(
            in_channels=in_channels,
            out_channels=channels,
            temb_channels=temb_channels,
            time_embedding_norm="scale_shift",
            groups=math.gcd(NORM_GROUPS, in_channels),
            groups_out=math.gcd(NORM_GROUPS, channels),
        )
        self.spatial_attn = self.cross_attn = self.temporal_attn = None
        if has_attention:
            self.spatial_attn = SpatialAttention(channels, head_dim)
            if cross_attention_dim:
                self.cross_attn = CrossAttention(channels, cross_attention_dim, head_dim)
            self.temporal_attn = TemporalAttention(channels, head_dim, temporal_positions)
        self.gradient_checkpointing = False  # diffusers' enable_gradient_checkpointing sets it

    def forward(
        self,
        frames: Float[Tensor, "bf c_in h w"],
        num_frames: int,
        temb: Float[Tensor, "bf d_temb"],
        text: Float[Tensor, "b *frames l d"] | None = None,
        mask: Bool[Tensor, "b f f"] | None = None,
    ) -> Float[Tensor, "bf c h w"]:
        """Returns the features of all frames.

        Args:
            frames: features.
            num_frames: frames per clip, f.
            temb: conditioning embedding of each frame.
            text: text embeddings per clip or per frame.
            mask: temporal attention mask, see `TemporalAttention`.
        """
        args = (frames, num_frames, temb, text, mask)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._forward, *args)
        return self._forward(*args)

    def _forward(
        self,
        frames: Tensor,
        num_frames: int,
        temb: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        frames = self.resnet(frames, temb)
        if self.temporal_attn is None:
            return frames
        video = self.spatial_attn(unfold_frames(frames, num_frames))
        if self.cross_attn is not None:
            video = self.cross_attn(video, text)
        return fold_frames(self.temporal_attn(video, mask))


class AttentionPool(nn.Module):
    """Pools the text into one vector: learned queries attend to its tokens. Initially zero.

    Args:
        input_dim: dimension of the text embeddings.
        output_dim: dimension of the vector.
        head_dim: dimension of each query, a divisor of `output_dim`.

    Raises:
        ValueError: if it is no divisor.
    """

    def __init__(self, input_dim: int, output_dim: int, head_dim: int):
        super().__init__()
        require(output_dim % head_dim == 0, "head_dim", f"a divisor of {output_dim}", head_dim)
        self.query = nn.Parameter(torch.randn(output_dim // head_dim, 1, head_dim))  # heads 1 d
        self.norm = nn.LayerNorm(input_dim)
        self.to_kv = nn.Linear(input_dim, 2 * output_dim, bias=False)
        self.to_out = zero_module(nn.Linear(output_dim, output_dim))

    def forward(self, text: Float[Tensor, "n l d"]) -> Float[Tensor, "n d_out"]:
        heads, _, head_dim = self.query.shape
        kv = self.to_kv(self.norm(text)).unflatten(-1, (2, heads, head_dim))  # n l 2 heads d
        key, value = kv.permute(2, 0, 3, 1, 4)  # n heads l d
        query = self.query.to(key).expand(len(text), -1, -1, -1)
        return self.to_out(F.scaled_dot_product_attention(query, key, value).flatten(1))


class PixelRefiner(nn.Module):
    """Full-resolution refinement for patchified networks; initially the identity.

    Predicting 48 noise values per 4x4 patch forces every pixel through the bottleneck; a small
    convolutional head on the raw input corrects the prediction (measured: docs/decisions.md). It
    is modulated by scale and shift (Perez et al. 2018, "FiLM", arXiv 1709.07871).

    Args:
        in_channels: channels of the network's input.
        channels: hidden channels, at least 1.
        out_channels: channels of the network's output.
        temb_channels: dimension of the conditioning embedding.

    Raises:
        ValueError: for no hidden channels.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, temb_channels: int):
        super().__init__()
        if channels < 1:
            raise ValueError(f"refiner_channels: expected at least 1 or None, got {channels}")
        self.conv_in = nn.Conv2d(in_channels + out_channels, channels, 3, padding=1)
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.to_scale_shift = nn.Linear(temb_channels, 4 * channels)
        self.conv_out = zero_module(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(
        self,
        frames: Float[Tensor, "bf c_in h w"],
        pred: Float[Tensor, "bf c_out h w"],
        temb: Float[Tensor, "bf d"],
    ) -> Float[Tensor, "bf c_out h w"]:
        """Returns the corrected prediction.

        Args:
            frames: the network's input.
            pred: the network's prediction.
            temb: conditioning embedding.
        """
        modulation = self.to_scale_shift(F.silu(temb))[..., None, None]
        scale_1, shift_1, scale_2, shift_2 = modulation.chunk(4, dim=1)
        x = self.conv_in(torch.cat([frames, pred], dim=1))
        x = F.silu(x * (1 + scale_1) + shift_1)
        x = F.silu(self.conv_mid(x) * (1 + scale_2) + shift_2)
        return pred + self.conv_out(x)
