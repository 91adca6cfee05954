"""The temporal layers that published video models insert between the layers of an image model.

Reads top to bottom: a text attention processor, the layers of ModelScope and AnimateDiff, those of
Align your Latents. Each layer takes video (b, c, f, h, w) and is initialised as the identity:
weight *and* bias of its last layer are zero. Where diffusers has a class for a published layer,
this one is built of its parts, so that weights can be exchanged. `nn/temporal_layouts.py` says
which layer goes where.

Wang et al. 2023, "ModelScope Text-to-Video Technical Report", arXiv 2308.06571.
Guo et al. 2023, "AnimateDiff", arXiv 2307.04725.
Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import TemporalConvLayer, TemporalResnetBlock
from jaxtyping import Float, Real
from torch import Tensor, nn

from course_lib.nn.attention import CrossAttention, TemporalAttention, attention
from course_lib.nn.kernels import TemporalConv1d
from course_lib.nn.positions import COORD_FREQUENCIES, coord_features, sinusoidal_embedding
from course_lib.nn.utils import check_conditioning, check_sizes, zero_module


class SharedTextAttnProcessor:
    """Attention whose rows may share a text: frames of a clip become one longer row of queries.

    Other processors need the text repeated for every frame, and project each copy.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "rows n c"],
        encoder_hidden_states: Float[Tensor, "clips l d"] | None = None,
        attention_mask: Float[Tensor, "rows 1 m"] | None = None,
        **_: object,
    ) -> Float[Tensor, "rows n c"]:
        """Returns the output of the attention layer.

        Args:
            attn: attention layer.
            hidden_states: queries.
            encoder_hidden_states: text, or None for self-attention; rows is a multiple of clips.
            attention_mask: added to the scores, -10000 or less where attention is masked.
        """
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.to_q(hidden_states)
        if len(context) != len(hidden_states):
            query = query.unflatten(0, (len(context), -1)).flatten(1, 2)  # clips (f n) c
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (query, attn.to_k(context), attn.to_v(context))
        )  # rows heads n d
        bias = attention_mask
        if bias is not None:
            bias = bias[:, None].expand(-1, -1, query.shape[2], -1)
        out = attention(query, key, value, bias).transpose(1, 2).flatten(2)
        out = attn.to_out[0](out.to(hidden_states.dtype))
        return attn.to_out[1](out).reshape(hidden_states.shape)


class TemporalConvBlock(TemporalConvLayer):
    """ModelScope's block: four times GroupNorm, SiLU and a convolution over three frames.

    Args:
        channels: channels of the video, a multiple of `norm_groups`.
        norm_groups: number of GroupNorm groups, with statistics over the whole clip.
    """

    def __init__(self, channels: int, norm_groups: int = 32):
        super().__init__(channels, channels, dropout=0.1, norm_num_groups=norm_groups)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            conv[-1] = TemporalConv1d.from_conv3d(conv[-1])

    def forward(self, video: Float[Tensor, "b c f h w"], **_: object) -> Float[Tensor, "b c f h w"]:
        return video + self.conv4(self.conv3(self.conv2(self.conv1(video))))


class TemporalTransformer(nn.Module):
    """ModelScope's and AnimateDiff's transformer over the frames of each pixel.

    Args:
        channels: channels of the video, a multiple of `norm_groups`.
        num_heads: number of attention heads.
        head_dim: channels per attention head.
        norm_groups: number of GroupNorm groups, with statistics over the whole clip.
        max_frames: length of AnimateDiff's table of sinusoidal positions; None for no positions
            and clips of any length.
        num_layers: number of transformer blocks, each with two self-attentions.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        head_dim: int,
        norm_groups: int = 32,
        max_frames: int | None = None,
        num_layers: int = 1,
    ):
        super().__init__()
        check_sizes(num_heads=num_heads, head_dim=head_dim, num_layers=num_layers)
        check_sizes(max_frames=max_frames)
        self.max_frames = max_frames
        dim = num_heads * head_dim
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, dim)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                dim,
                num_heads,
                head_dim,
                activation_fn="geglu",
                double_self_attention=True,
                positional_embeddings="sinusoidal" if max_frames else None,
                num_positional_embeddings=max_frames,
            )
            for _ in range(num_layers)
        )
        self.proj_out = zero_module(nn.Linear(dim, channels))

    def forward(self, video: Float[Tensor, "b c f h w"], **_: object) -> Float[Tensor, "b c f h w"]:
        """Raises ValueError for more than `max_frames` frames."""
        b, _, f, h, w = video.shape
        if self.max_frames is not None and f > self.max_frames:
            raise ValueError(f"video: expected at most {self.max_frames} frames, got {f}")
        tokens = self.norm(video).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (b h w) f c
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return video + self.proj_out(tokens).unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


class TemporalResBlock(TemporalResnetBlock):
    """Align your Latents' residual block with 3x1x1 convolutions, as in Stable Video Diffusion.

    Args:
        channels: channels of the video, a multiple of 32.
        temb_channels: dimension of the timestep embedding.
    """

    def __init__(self, channels: int, temb_channels: int):
        super().__init__(channels, channels, temb_channels=temb_channels, eps=1e-5)
        self.conv1 = TemporalConv1d.from_conv3d(self.conv1)
        self.conv2 = TemporalConv1d.from_conv3d(zero_module(self.conv2))

    def forward(
        self, video: Float[Tensor, "b c f h w"], temb: Float[Tensor, "b f d"], **_: object
    ) -> Float[Tensor, "b c f h w"]:
        check_conditioning("temb", temb, (video.shape[0], video.shape[2], temb.shape[-1]))
        return super().forward(video, temb)


class TextCrossAttentionBlock(nn.Module):
    """Cross-attention of every pixel to the text, then a feed-forward layer.

    Queries carry a spatial and a temporal position embedding, because a frozen image U-Net provides
    neither.

    Args:
        channels: channels of the video, a multiple of `head_dim`.
        cross_attention_dim: dimension of the text embeddings.
        head_dim: channels per attention head.
    """

    def __init__(self, channels: int, cross_attention_dim: int, head_dim: int):
        super().__init__()
        self.pos_embed = nn.Linear(4 * len(COORD_FREQUENCIES), channels)
        self.attn = CrossAttention(channels, cross_attention_dim, head_dim)
        zero_module(self.attn.to_out)
        self.norm = nn.LayerNorm(channels)
        self.ff = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.GELU("tanh"),
            zero_module(nn.Linear(2 * channels, channels)),
        )

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        text: Float[Tensor, "b *frames l d"],
        frame_index: Real[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Returns the video with the attended text added.

        Args:
            video: features.
            text: text embeddings per clip, (b, l, d), or per frame, (b, f, l, d).
            frame_index: positions of the frames in time; None means 0, 1, 2 ….

        Raises:
            ValueError: for another number of positions.
        """
        b, channels, f, h, w = video.shape
        if frame_index is not None:
            check_conditioning("frame_index", frame_index, (b, f))
        coords = coord_features(h, w, video).flatten(2).transpose(1, 2)  # 1 (h w) features
        times = torch.arange(f).expand(b, -1) if frame_index is None else frame_index
        temporal_pos = sinusoidal_embedding(times, channels, video)  # b f c
        query_pos = self.pos_embed(coords)[:, None] + temporal_pos[:, :, None]  # b f (h w) c
        video = self.attn(video, text, query_pos)
        tokens = video.flatten(3).permute(0, 2, 3, 1)  # b f (h w) c
        tokens = self.ff(self.norm(tokens) + query_pos)
        return video + tokens.permute(0, 3, 1, 2).reshape(video.shape)


class TemporalTextBlock(nn.Module):
    """Temporal attention and, optionally, a `TextCrossAttentionBlock`.

    Args:
        channels: channels of the video, a multiple of `head_dim`.
        head_dim: channels per attention head.
        positions: see `TemporalAttention`.
        cross_attention_dim: dimension of the text embeddings; None for no text.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        positions: str = "sinusoidal",
        cross_attention_dim: int | None = None,
    ):
        super().__init__()
        self.temporal_attn = TemporalAttention(channels, head_dim, positions)
        self.text_block = None
        if cross_attention_dim is not None:
            self.text_block = TextCrossAttentionBlock(channels, cross_attention_dim, head_dim)

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        text: Float[Tensor, "b *frames l d"] | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
        **_: object,
    ) -> Float[Tensor, "b c f h w"]:
        """Takes the arguments of `TextCrossAttentionBlock.forward`."""
        video = self.temporal_attn(video, frame_index=frame_index)
        return video if self.text_block is None else self.text_block(video, text, frame_index)


class FrameConditioningConv(nn.Module):
    """A zero-initialised convolution that adds given frames and their mask to the features.

    Blattmann et al. 2023, section 3.2.

    Args:
        cond_channels: channels of the condition.
        channels: channels of the video.
    """

    def __init__(self, cond_channels: int, channels: int):
        super().__init__()
        self.conv = zero_module(nn.Conv3d(cond_channels, channels, (1, 3, 3), padding=(0, 1, 1)))

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        cond_channels: Float[Tensor, "b c_cond f h w"],
        **_: object,
    ) -> Float[Tensor, "b c f h w"]:
        shape = (video.shape[0], self.conv.in_channels, *video.shape[2:])
        check_conditioning("cond_channels", cond_channels, shape)
        return video + self.conv(cond_channels)


class AlphaBlend(nn.Module):
    """alpha · video + (1 - alpha) · layer(video), as in Align your Latents.

    With alpha = 1 (the paper) the layer gets no gradient. Here the layer is the identity at first
    and alpha = sigmoid(mix_factor) starts at 0.5 (as in Stable Video Diffusion): the same function,
    with a gradient.

    Args:
        layer: temporal layer, initially the identity.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.mix_factor = nn.Parameter(torch.zeros(1))

    @property
    def alpha(self) -> Float[Tensor, "1"]:
        """The weight of the image model's features."""
        return self.mix_factor.sigmoid()

    def forward(
        self, video: Float[Tensor, "b c f h w"], **layer_kwargs: Tensor | None
    ) -> Float[Tensor, "b c f h w"]:
        return torch.lerp(self.layer(video, **layer_kwargs), video, self.alpha.to(video.dtype))
