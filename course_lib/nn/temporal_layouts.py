"""Where published video models insert their temporal layers into an image U-Net.

Reads top to bottom: insertion points, one function per style, the table of styles. A new style is
one more function.

Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818.
Wang et al. 2023, "ModelScope Text-to-Video Technical Report", arXiv 2308.06571.
Guo et al. 2023, "AnimateDiff", arXiv 2307.04725.
Wang et al. 2023, "LaVie", arXiv 2309.15103.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from course_lib.nn.temporal import (
    AlphaBlend,
    FrameConditioningConv,
    TemporalConvBlock,
    TemporalResBlock,
    TemporalTextBlock,
    TemporalTransformer,
)
from course_lib.nn.utils import check_sizes
from course_lib.validation import check_int

SUPPORTED_BLOCKS = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
)


@dataclass(frozen=True)
class InsertionPoint:
    """A layer of an image U-Net after which a temporal layer may be inserted.

    Args:
        name: name of the layer, as in the state_dict.
        kind: "conv_in", "resnet", "attention" (after a whole transformer) or "block" (inside a
            transformer block, between cross-attention and feed-forward).
        channels: channels of the features.
        head_dim: channels per head of the layer's attention, else of the U-Net's first attention.
        without_attention: whether it is a residual block on a level without attention.
        norm_groups: number of GroupNorm groups of the U-Net.
        temb_channels: dimension of the timestep embedding.
    """

    name: str
    kind: str
    channels: int
    head_dim: int
    without_attention: bool
    norm_groups: int
    temb_channels: int


def insertion_points(unet: UNet2DConditionModel) -> Iterator[InsertionPoint]:
    """Yields all insertion points, in the order of the forward pass.

    Except for transformers, which come after the blocks inside them.

    Args:
        unet: image U-Net made of `SUPPORTED_BLOCKS`.

    Raises:
        ValueError: for any other block, naming it.
    """
    blocks = {f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)}
    blocks |= {"mid_block": unet.mid_block} if unet.mid_block is not None else {}
    blocks |= {f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)}
    head_dims = []
    for name, block in blocks.items():
        if type(block).__name__ not in SUPPORTED_BLOCKS:
            raise ValueError(
                f"unet: expected blocks {', '.join(SUPPORTED_BLOCKS)}; "
                f"{name} is a {type(block).__name__}"
            )
        for k, attn in enumerate(_attentions(block)):
            if not isinstance(attn, Transformer2DModel):
                raise ValueError(
                    "unet: expected Transformer2DModel, "
                    f"{name}.attentions.{k} is a {type(attn).__name__}"
                )
            head_dims.append(attn.config.attention_head_dim)
    start = InsertionPoint(
        "conv_in",
        "conv_in",
        unet.conv_in.out_channels,
        head_dims[0] if head_dims else 0,
        without_attention=False,
        norm_groups=unet.config.norm_num_groups,
        temb_channels=unet.time_embedding.linear_2.out_features,
    )
    yield start
    for name, block in blocks.items():
        resnet_point = replace(start, kind="resnet", without_attention=not _attentions(block))
        for k, resnet in enumerate(block.resnets):
            yield replace(resnet_point, name=f"{name}.resnets.{k}", channels=resnet.out_channels)
        for k, attn in enumerate(_attentions(block)):
            attn_name = f"{name}.attentions.{k}"
            attn_point = replace(start, head_dim=attn.config.attention_head_dim)
            for j, inner in enumerate(attn.transformer_blocks):
                inner_name = f"{attn_name}.transformer_blocks.{j}"
                yield replace(attn_point, name=inner_name, kind="block", channels=inner.dim)
            channels = attn.in_channels
            yield replace(attn_point, name=attn_name, kind="attention", channels=channels)


def _attentions(block: nn.Module) -> list[nn.Module]:
    return list(getattr(block, "attentions", ()))


# One function per style: insertion point -> temporal layer, or None to insert nothing there


def video_ldm(
    point: InsertionPoint,
    head_dim: int = 32,
    temporal_cross_attention_dim: int | None = None,
    cond_channels: int = 0,
) -> nn.Module | None:
    """Align your Latents: a residual block after each one, attention after each transformer.

    Args:
        point: insertion point.
        head_dim: channels per head of the temporal attention.
        temporal_cross_attention_dim: dimension of the text embeddings that the temporal layers
            attend to, as in the paper's text-to-video model; None for no text.
        cond_channels: channels of given frames and their mask; 0 for none.

    Raises:
        ValueError: for sizes that no layer has.
    """
    check_int("cond_channels", cond_channels, 0)
    check_sizes(temporal_cross_attention_dim=temporal_cross_attention_dim)
    if point.kind == "conv_in" and cond_channels:
        return FrameConditioningConv(cond_channels, point.channels)
    if point.kind == "resnet":
        return AlphaBlend(TemporalResBlock(point.channels, point.temb_channels))
    if point.kind == "attention":
        return AlphaBlend(
            TemporalTextBlock(
                point.channels, head_dim, cross_attention_dim=temporal_cross_attention_dim
            )
        )
    return None


def modelscope(point: InsertionPoint, head_dim: int | None = None) -> nn.Module | None:
    """ModelScope: convolutions after residual blocks, transformers after transformers and conv_in.

    Args:
        point: insertion point.
        head_dim: channels per head of the temporal attention; None for the image model's.

    Raises:
        ValueError: for a `head_dim` from which no head can be made.
    """
    if point.kind == "resnet":
        return TemporalConvBlock(point.channels, point.norm_groups)
    if point.kind == "block":
        return None
    head_dim = point.head_dim if head_dim is None else head_dim
    check_sizes(head_dim=head_dim)
    num_heads = 8 if point.kind == "conv_in" else point.channels // head_dim
    return TemporalTransformer(point.channels, num_heads, head_dim, point.norm_groups)


def animatediff(
    point: InsertionPoint,
    num_heads: int = 8,
    num_frames: int = 32,
    use_mid_block: bool = True,
    num_layers: int = 1,
) -> nn.Module | None:
    """AnimateDiff: a motion module after each residual block and its transformer, if it has one.

    Args:
        point: insertion point.
        num_heads: number of attention heads.
        num_frames: length of the longest clip.
        use_mid_block: whether the middle block has a motion module (second version).
        num_layers: transformer blocks per motion module.

    Raises:
        ValueError: for numbers of which no layer can be made.
    """
    check_int("num_heads", num_heads, 1, point.channels)
    check_sizes(num_frames=num_frames)
    is_last = point.kind == "attention" or (point.kind == "resnet" and point.without_attention)
    if not is_last or (point.name.startswith("mid_block") and not use_mid_block):
        return None
    head_dim = point.channels // num_heads
    return TemporalTransformer(point.channels, num_heads, head_dim, 32, num_frames, num_layers)


def lavie(point: InsertionPoint) -> nn.Module | None:
    """LaVie: temporal attention with rotary positions inside each transformer block.

    The original has a relative position bias as well; one of the two suffices.
    """
    if point.kind != "block":
        return None
    return TemporalTextBlock(point.channels, point.head_dim, "rotary")


TEMPORAL_LAYOUTS: dict[str, Callable[..., nn.Module | None]] = {
    "video-ldm": video_ldm,
    "modelscope": modelscope,
    "animatediff": animatediff,
    "lavie": lavie,
}
# Styles that process an image of joint training as a clip of one frame; the others skip it
TEMPORAL_ON_IMAGES = frozenset({"modelscope"})
