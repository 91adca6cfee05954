"""The layers over time that published video models put between the layers of an image model.

Reads top to bottom: attention that takes a clip's text once, convolutions over frames and ModelScope's four of them,
the temporal transformer of ModelScope and AnimateDiff, Align your Latents' layers and their alpha. Each takes clips
(b, c, f, h, w), and is the identity at first: weight *and* bias of its last layer are zero. Where a published model has
a class in diffusers, it is built of that class' own parts, so that weights may travel; `nn/styles.py` says what goes
where.

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
from torch.nn import functional as F

from course_lib.nn.attention import (
    WAVES,
    TemporalAttention,
    TextAttention,
    attend,
    place_waves,
    sinusoids,
)
from course_lib.nn.bf16_conv import convolve


def zero(layer: nn.Module) -> nn.Module:
    """The same layer, saying nothing: weight and bias are zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ClipAttention:
    """A processor for diffusers' `Attention`: rows that share a text may bring it once.

    diffusers repeats a clip's text for every frame, and projects each copy to keys and values. Here frames of a clip
    are one longer row of queries to its one text.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "rows n c"],
        encoder_hidden_states: Float[Tensor, "clips l d"] | None = None,
        attention_mask: Float[Tensor, "rows 1 m"] | None = None,
        **_: object,
    ) -> Float[Tensor, "rows n c"]:
        """encoder_hidden_states: None for attention of rows to themselves; else rows is a multiple of clips.

        attention_mask: added to the scores of each row's queries, -10000 or less where none must look.
        """
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, query = len(hidden_states), attn.to_q(hidden_states)
        if len(seen) != rows:
            query = query.unflatten(0, (len(seen), -1)).flatten(1, 2)  # clips (f n) c
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (query, attn.to_k(seen), attn.to_v(seen))
        )  # rows heads n d
        mask = (
            None
            if attention_mask is None
            else attention_mask[:, None].expand(-1, -1, query.shape[2], -1)
        )
        found = attend(query, key, value, mask).transpose(1, 2).flatten(2)
        found = attn.to_out[0](found.to(hidden_states.dtype))
        return attn.to_out[1](found).reshape(hidden_states.shape)


class ConvOverTime(nn.Conv3d):
    """A convolution over frames alone, kernel (t, 1, 1): the same numbers as a Conv3d's, sooner.

    All pixels of a frame are one row to it, so that it is a convolution over a plane. On two cores, 16 frames: 0.9 of
    1.8 ms (96 channels, 8x8 pixels), 3.1 of 3.9 (192), 1.1 of 1.5 (192, 4x4).
    """

    @classmethod
    def like(cls, conv: nn.Conv3d) -> "ConvOverTime":
        """The same layer, with the same weights. Raises ValueError for a kernel that looks at neighbouring pixels."""
        if conv.kernel_size[1:] != (1, 1):
            raise ValueError(f"conv: expected a kernel (t, 1, 1), got {conv.kernel_size}")
        same = cls(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
        same.load_state_dict(conv.state_dict())
        return same

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f_out h w"]:
        return convolve(self, video)

    def _conv_forward(self, video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if (
            video.shape[2] < self.kernel_size[0]
        ):  # `convolve` knows what is sound of the layer as it was
            return super()._conv_forward(video, weight, bias)
        rows = F.conv2d(
            video.flatten(3), weight[..., 0], bias, padding=self.padding[:2]
        )  # b c f (h w)
        return rows.unflatten(3, video.shape[3:])


class TemporalConv(TemporalConvLayer):
    """ModelScope's: four times norm, SiLU and a convolution over three frames, added to the clip.

    channels: a multiple of groups. groups: of the norm, whose statistics are those of the whole clip.
    """

    def __init__(self, channels: int, groups: int = 32):
        super().__init__(channels, channels, dropout=0.1, norm_num_groups=groups)
        for part in (self.conv1, self.conv2, self.conv3, self.conv4):
            part[-1] = ConvOverTime.like(part[-1])

    def forward(self, video: Float[Tensor, "b c f h w"], **_: object) -> Float[Tensor, "b c f h w"]:
        return video + self.conv4(self.conv3(self.conv2(self.conv1(video))))


class TemporalTransformer(nn.Module):
    """ModelScope's and AnimateDiff's: every pixel's frames through a transformer, twice attention and a feed-forward.

    channels: a multiple of groups. heads, head_width: of the attention. groups: of the norm, whose statistics are those
    of the whole clip. frames: AnimateDiff's, the longest clip that its table of sinusoidal positions has room for; None
    for no positions, and clips of any length. layers: of the transformer.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_width: int,
        groups: int = 32,
        frames: int | None = None,
        layers: int = 1,
    ):
        super().__init__()
        self.frames, inner = frames, heads * head_width
        positions = (
            {"positional_embeddings": "sinusoidal", "num_positional_embeddings": frames}
            if frames
            else {}
        )
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                heads,
                head_width,
                activation_fn="geglu",
                double_self_attention=True,
                **positions,
            )
            for _ in range(layers)
        )
        self.proj_out = zero(nn.Linear(inner, channels))

    def forward(self, video: Float[Tensor, "b c f h w"], **_: object) -> Float[Tensor, "b c f h w"]:
        """Raises ValueError for more frames than there are positions."""
        b, _, f, h, w = video.shape
        if self.frames is not None and f > self.frames:
            raise ValueError(
                f"video: expected at most {self.frames} frames, for which there are positions, got {f}"
            )
        tokens = self.proj_in(self.norm(video).permute(0, 3, 4, 2, 1).flatten(0, 2))  # (b h w) f c
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return video + self.proj_out(tokens).unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


class TemporalResidual(TemporalResnetBlock):
    """Align your Latents' residual block with 3x1x1 convolutions, in the form that Stable Video Diffusion gave it.

    channels: a multiple of 32. embedding: width of the timestep's vector.
    """

    def __init__(self, channels: int, embedding: int):
        super().__init__(channels, channels, temb_channels=embedding, eps=1e-5)
        self.conv1, self.conv2 = ConvOverTime.like(self.conv1), ConvOverTime.like(zero(self.conv2))

    def forward(
        self, video: Float[Tensor, "b c f h w"], embedding: Float[Tensor, "b f d"], **_: object
    ) -> Float[Tensor, "b c f h w"]:
        """embedding: of the timestep, as the image model's residual blocks read it."""
        return super().forward(video, embedding)


class TextBlock(nn.Module):
    """Attention of every pixel to the words of the text, then a feed-forward layer.

    Both are told where the pixel is and when: "left" means another thing at the left border, and late. An image network
    need not say where it is looking, and a frozen one will not learn to. Nothing at first.
    channels: a multiple of head_width. text_width: of the text's vectors.
    """

    def __init__(self, channels: int, text_width: int, head_width: int):
        super().__init__()
        self.embed_place = nn.Linear(4 * len(WAVES), channels)
        self.attention = TextAttention(channels, text_width, head_width)
        zero(self.attention.to_out)
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.GELU("tanh"),
            zero(nn.Linear(2 * channels, channels)),
        )

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        text: Float[Tensor, "b *each l d"],
        frame_index: Real[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """text: of each clip, (b, l, d), or of each frame, (b, f, l, d). frame_index: where frames are in time; None:
        0, 1, 2 ….
        """
        b, channels, f, h, w = video.shape
        index = torch.arange(f).expand(b, -1) if frame_index is None else frame_index
        places = self.embed_place(
            place_waves(h, w, like=video).flatten(2).transpose(1, 2)
        )  # 1 (h w) c
        here = places[:, None] + sinusoids(index, channels, like=video)[:, :, None]  # b f (h w) c
        video = self.attention(video, text, here)
        tokens = video.flatten(3).permute(0, 2, 3, 1)  # b f (h w) c
        tokens = self.feed_forward(self.norm(tokens) + here)
        return video + tokens.permute(0, 3, 1, 2).reshape(video.shape)


class TimeAndText(nn.Module):
    """Attention over the frames of a pixel; then, if it reads text, to the words, see `TextBlock`.

    channels: a multiple of head_width. positions: see `TemporalAttention`. text_width: of the text's vectors; None for
    no text.
    """

    def __init__(
        self,
        channels: int,
        head_width: int,
        positions: str = "sinusoidal",
        text_width: int | None = None,
    ):
        super().__init__()
        self.time = TemporalAttention(channels, head_width, positions)
        self.words = None if text_width is None else TextBlock(channels, text_width, head_width)

    def forward(
        self,
        video: Float[Tensor, "b c f h w"],
        text: Float[Tensor, "b *each l d"] | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
        **_: object,
    ) -> Float[Tensor, "b c f h w"]:
        """text: of each clip, (b, l, d), or of each frame, (b, f, l, d). frame_index: see `TemporalAttention`."""
        video = self.time(video, frame_index=frame_index)
        return video if self.words is None else self.words(video, text, frame_index)


class Beside(nn.Module):
    """What is known of a clip beforehand, added to it by a convolution: given frames, with a mask that says which.

    channels_in: of what is known. channels: of the clip. Blattmann et al. 2023.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv = zero(nn.Conv3d(channels_in, channels, (1, 3, 3), padding=(0, 1, 1)))

    def forward(
        self, video: Float[Tensor, "b c f h w"], extra: Float[Tensor, "b c_in f h w"], **_: object
    ) -> Float[Tensor, "b c f h w"]:
        return video + self.conv(extra)


class Blend(nn.Module):
    """alpha · clip + (1 - alpha) · layer(clip), as in Align your Latents.

    alpha = sigmoid(mix_factor), as in Stable Video Diffusion, begins at a half. The paper's alpha may be 1, which
    leaves the image model alone; but what begins there gives its layer no gradient. Here the layer is the identity at
    first, so that alpha does not matter yet: the layer learns from the first step on, alpha from the second.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.mix_factor = nn.Parameter(torch.zeros(1))

    @property
    def alpha(self) -> Float[Tensor, "1"]:
        """The image model's share."""
        return self.mix_factor.sigmoid()

    def forward(
        self, video: Float[Tensor, "b c f h w"], **told: Tensor | None
    ) -> Float[Tensor, "b c f h w"]:
        return torch.lerp(self.layer(video, **told), video, self.alpha.to(video.dtype))
