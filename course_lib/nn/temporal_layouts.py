"""Where published video models put their layers over time: places of an image U-Net, and styles that fill them.

Reads top to bottom: places, one function for each style, their table. `nn/inflate.py` hangs there what a style says; a
new style is one function more.

Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818.
Wang et al. 2023, "ModelScope Text-to-Video Technical Report", arXiv 2308.06571.
Guo et al. 2023, "AnimateDiff", arXiv 2307.04725.
Wang et al. 2023, "LaVie", arXiv 2309.15103.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from course_lib.nn.temporal import (
    Beside,
    Blend,
    TemporalConv,
    TemporalResidual,
    TemporalTransformer,
    TimeAndText,
)

BLOCKS = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
)


@dataclass(frozen=True)
class Place:
    """A layer of an image U-Net behind which one over time may hang.

    name: of the layer, as in the state_dict. kind: "conv_in", "resnet", "attention" (behind all of a transformer) or
    "block" (inside one of its blocks, between text and feed-forward). channels: there. head_width: of the image model's
    attention, there or, where it has none, of its first. bare: a residual block on a level without attention. groups:
    of its norms. embedding: width of the timestep's vector.
    """

    name: str
    kind: str
    channels: int
    head_width: int
    bare: bool
    groups: int
    embedding: int


def places(unet: UNet2DConditionModel) -> Iterator[Place]:
    """All of them, in the order of the forward pass but for the blocks of a transformer, which come before it.

    unet: of residual blocks and transformers, see `BLOCKS`. Raises ValueError for any other block, naming it.
    """
    blocks = {f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)}
    blocks |= {"mid_block": unet.mid_block} if unet.mid_block is not None else {}
    blocks |= {f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)}
    for name, block in blocks.items():
        if type(block).__name__ not in BLOCKS:
            raise ValueError(
                f"unet: expected blocks {', '.join(BLOCKS)}; {name} is a {type(block).__name__}"
            )
        for k, part in enumerate(_attentions(block)):
            if not isinstance(part, Transformer2DModel):
                raise ValueError(
                    f"unet: expected Transformer2DModel, {name}.attentions.{k} is a {type(part).__name__}"
                )
    widths = [
        part.config.attention_head_dim for block in blocks.values() for part in _attentions(block)
    ]
    first, rest = (
        widths[0] if widths else 0,
        (unet.config.norm_num_groups, unet.time_embedding.linear_2.out_features),
    )
    yield Place("conv_in", "conv_in", unet.conv_in.out_channels, first, False, *rest)
    for name, block in blocks.items():
        bare = not _attentions(block)
        for k, resnet in enumerate(block.resnets):
            yield Place(f"{name}.resnets.{k}", "resnet", resnet.out_channels, first, bare, *rest)
        for k, attention in enumerate(_attentions(block)):
            at, width = f"{name}.attentions.{k}", attention.config.attention_head_dim
            for depth, inside in enumerate(attention.transformer_blocks):
                yield Place(
                    f"{at}.transformer_blocks.{depth}", "block", inside.dim, width, False, *rest
                )
            yield Place(at, "attention", attention.in_channels, width, False, *rest)


def _attentions(block: nn.Module) -> list[nn.Module]:
    return list(getattr(block, "attentions", ()))


# What hangs there: from a place to a layer, or None


def video_ldm(
    place: Place, head_width: int = 32, text_width: int | None = None, extra_channels: int = 0
) -> nn.Module | None:
    """Align your Latents: a residual block over time behind each one, attention over time behind each transformer.

    head_width: of that attention. text_width: None, or the width of a text that it reads too, as in the paper's
    text-to-video model. extra_channels: of what is known beforehand; see `InflatedUNet.forward` for both.
    """
    if place.kind == "conv_in" and extra_channels:
        return Beside(extra_channels, place.channels)
    if place.kind == "resnet":
        return Blend(TemporalResidual(place.channels, place.embedding))
    return (
        Blend(TimeAndText(place.channels, head_width, text_width=text_width))
        if place.kind == "attention"
        else None
    )


def modelscope(place: Place, head_width: int | None = None) -> nn.Module | None:
    """ModelScope: convolutions over time behind each residual block, a transformer behind each, and one at the start.

    head_width: of all of them; None for that of the image model.
    """
    if place.kind == "resnet":
        return TemporalConv(place.channels, place.groups)
    width = head_width or place.head_width
    if place.kind in ("conv_in", "attention"):
        heads = 8 if place.kind == "conv_in" else place.channels // width
        return TemporalTransformer(place.channels, heads, width, place.groups)
    return None


def animatediff(
    place: Place, heads: int = 8, frames: int = 32, middle: bool = True, layers: int = 1
) -> nn.Module | None:
    """AnimateDiff: a motion module behind each residual block, and the transformer after it, if there is one.

    heads, layers: of a motion module. frames: the longest clip. middle: whether there is one in the middle (the second
    version's).
    """
    in_middle = place.name.startswith("mid_block")
    if not (place.kind == "attention" or (place.kind == "resnet" and place.bare)) or (
        in_middle and not middle
    ):
        return None
    return TemporalTransformer(place.channels, heads, place.channels // heads, 32, frames, layers)


def lavie(place: Place) -> nn.Module | None:
    """LaVie: attention over time with rotary positions inside each transformer block, before the feed-forward.

    The original adds a bias by distance as well; one of the two is enough.
    """
    if place.kind != "block":
        return None
    return TimeAndText(place.channels, place.head_width, "rotary")


@dataclass(frozen=True)
class Style:
    """layer: from a place to what hangs there. picture_is_clip: whether layers over time see a picture of joint
    training as a clip of one frame, as ModelScope's do, or leave it alone.
    """

    layer: Callable[..., nn.Module | None]
    picture_is_clip: bool = False


STYLES = {
    "video-ldm": Style(video_ldm),
    "modelscope": Style(modelscope, picture_is_clip=True),
    "animatediff": Style(animatediff),
    "lavie": Style(lavie),
}
