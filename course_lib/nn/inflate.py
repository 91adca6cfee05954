"""Inflation: any image U-Net of diffusers made a video U-Net, which at first is the image U-Net, frame by frame.

    unet = inflate(pipeline.unet, style="video-ldm")
    unet(sample, timestep, encoder_hidden_states).sample  # (b, c, f, h, w)

The image model stays what it is, `unet.spatial`, a UNet2DConditionModel to which frames are pictures of a batch. Layers
over time, `unet.temporal`, hang behind its layers: `nn/styles.py` says which where, `nn/temporal.py` has the layers.
`unet.spatial.requires_grad_(False)` freezes the image model; what lies before the first layer over time then costs no
backward pass at all. `nn/exchange.py` knows the same weights under diffusers' names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.nn.temporal_layouts import STYLES, Place, places
from course_lib.nn.temporal import ClipAttention, TimeAndText

M = TypeVar("M", bound=nn.Module)


@dataclass
class Call:
    """What layers over time have to know of the call they are in; frames are (b f) c h w to the image model.

    Outside of a call they add nothing: who calls the image model itself, gets that. picture_is_clip: see `Style`. The
    others are `open`'s.
    """

    picture_is_clip: bool = False
    clips: int = 0
    frames: int = 0
    pictures: int = 0
    text: Tensor | None = None
    extra: Tensor | None = None
    frame_index: Tensor | None = None
    scale: float | int = 0.0

    def open(
        self,
        clips: int,
        frames: int,
        pictures: int = 0,
        text: Tensor | None = None,
        extra: Tensor | None = None,
        frame_index: Tensor | None = None,
        scale: float | int = 1.0,
    ) -> None:
        """A call begins. clips: how many. frames: of each. pictures: how many of these, the last, are no part of the
        clip. text, extra, frame_index: for layers that read them. scale: how much of what the layers add is added.
        """
        self.clips, self.frames, self.pictures, self.scale = clips, frames, pictures, scale
        self.text, self.extra, self.frame_index = text, extra, frame_index

    def close(self) -> None:
        """The call is over: nothing of it is kept alive."""
        self.text = self.extra = self.frame_index = None
        self.scale = 0.0

    def through(
        self,
        layer: nn.Module,
        frames: Float[Tensor, "bf c h w"],
        embedding: Float[Tensor, "bf d"] | None,
    ) -> Float[Tensor, "bf c h w"]:
        """Frames as the layer over time leaves them. embedding: of the timestep, if the image model told it here."""
        if self.scale == 0:
            return frames
        video = frames.unflatten(0, (self.clips, self.frames)).transpose(1, 2)  # b c f h w
        moving = self.frames - self.pictures
        clip, pictures = video.split([moving, self.pictures], dim=2)
        if embedding is not None:
            embedding = embedding.unflatten(0, (self.clips, self.frames))[:, :moving]  # b f d
        text = self.text if self.text is None or self.text.ndim == 3 else self.text[:, :moving]
        extra = None if self.extra is None else self.extra[:, :, :moving]
        index = None if self.frame_index is None else self.frame_index[:, :moving]
        changed = layer(clip, embedding=embedding, text=text, extra=extra, frame_index=index)
        if self.pictures:
            if self.picture_is_clip:  # those layers read neither timestep nor text
                single = layer(pictures.transpose(1, 2).flatten(0, 1)[:, :, None])  # (b n) c 1 h w
                pictures = single[:, :, 0].unflatten(0, (self.clips, -1)).transpose(1, 2)
            changed = torch.cat([changed, pictures], dim=2)
        if self.scale != 1:
            changed = torch.lerp(video, changed, self.scale)
        return changed.transpose(1, 2).flatten(0, 1)


class Behind:
    """A hook: a layer of the image model is followed by one over time."""

    def __init__(self, layer: nn.Module, call: Call):
        self.layer, self.call = layer, call

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        frames = output[0] if isinstance(output, tuple) else output
        embedding = (*args, kwargs.get("temb"))[1] if isinstance(module, ResnetBlock2D) else None
        frames = self.call.through(self.layer, frames, embedding)
        return (frames,) if isinstance(output, tuple) else frames


class _Inside:
    """Two hooks: in a transformer block, what attention to the text adds is followed by what a layer over time adds.

    Both see pixels in a row, (b f) (h w) c; the first keeps what the block will add the text's share to.
    """

    def __init__(self, layer: nn.Module, call: Call):
        self.layer, self.call, self.before = layer, call, None

    def keep(self, norm: nn.Module, args: tuple) -> None:
        self.before = args[0]

    def add(self, attention: nn.Module, args: tuple, kwargs: dict, said: Tensor) -> Tensor:
        before, self.before = self.before, None
        tokens = (before + said).transpose(1, 2)[..., None]  # (b f) c (h w) 1
        return self.call.through(self.layer, tokens, None)[..., 0].transpose(1, 2) - before


class InflatedUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A video U-Net made of an image U-Net; `inflate` makes one with trained weights.

    spatial_config: of the UNet2DConditionModel. style: one of `styles.STYLES`. options: of the style's function.
    Raises ValueError for an unknown style, for blocks that are not known, see `styles.places`, and for layers over time
    that would read a narrower text than the image model.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        spatial_config: dict[str, Any],
        style: str = "video-ldm",
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        if style not in STYLES:
            raise ValueError(f"style: expected one of {', '.join(STYLES)}; got {style!r}")
        self.spatial = UNet2DConditionModel.from_config(spatial_config)
        # Of the text: the image model's numbers come first, see `forward`
        self.text_width = (options or {}).get(
            "text_width"
        ) or self.spatial.config.cross_attention_dim
        if self.text_width < self.spatial.config.cross_attention_dim:
            least = self.spatial.config.cross_attention_dim
            raise ValueError(
                f"text_width: expected at least the image model's {least}, got {self.text_width}"
            )
        self.temporal = nn.ModuleDict()
        self._call = Call(picture_is_clip=STYLES[style].picture_is_clip)
        for place in places(self.spatial):
            layer = STYLES[style].layer(place, **(options or {}))
            if layer is not None:
                self.temporal[key_of(place.name)] = layer
                self._hang(place, layer)
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_processor(ClipAttention())

    def _hang(self, place: Place, layer: nn.Module) -> None:
        module = self.spatial.get_submodule(place.name)
        if place.kind == "block":
            hooks = _Inside(layer, self._call)
            module.norm2.register_forward_pre_hook(hooks.keep)
            module.attn2.register_forward_hook(hooks.add, with_kwargs=True)
        else:
            module.register_forward_hook(Behind(layer, self._call), with_kwargs=True)

    def forward(
        self,
        sample: Float[Tensor, "b c f h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "b *each l d"],
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        alone: Bool[Tensor, "b f"] | None = None,
        extra: Float[Tensor, "b c_extra f h w"] | None = None,
        frame_index: Real[Tensor, "b numbers"] | None = None,
        temporal_scale: float | int = 1.0,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """diffusers' UNet3DConditionModel's, and five arguments more. Returns an output with `sample`, as the input's.

        timestep: one for all or for each clip. encoder_hidden_states: the text of each clip, (b, l, d), or of each
        frame, (b, f, l, d). d is the image model's, or the style's text_width: then its first numbers are the image
        model's, and all are the layers' over time. class_labels, timestep_cond, added_cond_kwargs (SDXL): of each clip.
        down_block_additional_residuals, mid_block_additional_residual (ControlNet): of frames, (b f) c h w.
        alone: which frames are pictures of their own, as in joint training; the last ones, as many in each clip.
        extra: clean channels beside the noisy ones, such as given frames with their mask, for a network made with
        extra_channels. frame_index: where in time each frame is, (b, f), for styles whose attention can be told; None:
        0, 1, 2 …. temporal_scale: how much of what the layers over time add is added; at 0 this is the image model.
        Raises ValueError for shapes that do not match, pictures elsewhere, or an index that no layer reads.
        """
        self._check(sample, encoder_hidden_states, extra, frame_index)
        b, _, f, _, _ = sample.shape
        text = encoder_hidden_states

        def each(vectors: Tensor | None) -> Tensor | None:
            return (
                None if vectors is None else vectors.repeat_interleave(f, dim=0)
            )  # frames of a clip are neighbours

        timestep = torch.as_tensor(timestep, device=sample.device).expand(b)
        told = {"timestep_cond": each(timestep_cond), "class_labels": each(class_labels)}
        if added_cond_kwargs is not None:
            told["added_cond_kwargs"] = {
                name: each(vectors) for name, vectors in added_cond_kwargs.items()
            }
        seen = text[..., : self.spatial.config.cross_attention_dim]
        self._call.open(b, f, _pictures(alone, b, f), text, extra, frame_index, temporal_scale)
        try:
            answer = self.spatial(
                sample.transpose(1, 2).flatten(0, 1),  # (b f) c h w
                each(timestep),
                seen if seen.ndim == 3 else seen.flatten(0, 1),
                attention_mask=attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
                down_block_additional_residuals=down_block_additional_residuals,
                mid_block_additional_residual=mid_block_additional_residual,
                **told,
            ).sample
        finally:
            self._call.close()
        answer = answer.unflatten(0, (b, f)).transpose(1, 2)  # b c f h w
        return UNet3DConditionOutput(sample=answer) if return_dict else (answer,)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable | None = None
    ) -> None:
        """Keep less for the backward pass and compute it again there. gradient_checkpointing_func: None is torch's."""
        keep = gradient_checkpointing_func or partial(checkpoint, use_reentrant=False)

        def remembering(function: Callable, *args: Any) -> Any:
            told = dict(
                vars(self._call)
            )  # by the time of the backward pass another call may have been

            def again(*args: Any) -> Any:
                now = dict(vars(self._call))
                vars(self._call).update(told)
                try:
                    return function(*args)
                finally:
                    vars(self._call).update(now)

            return keep(again, *args)

        super().enable_gradient_checkpointing(remembering)

    def _check(
        self, sample: Tensor, text: Tensor, extra: Tensor | None, frame_index: Tensor | None
    ) -> None:
        b, channels, f, h, w = sample.shape
        if channels != self.spatial.config.in_channels:
            wanted = f"(b, {self.spatial.config.in_channels}, f, h, w)"
            raise ValueError(f"sample: expected {wanted}, got {tuple(sample.shape)}")
        if text.shape[:-2] not in ((b,), (b, f)) or text.shape[-1] != self.text_width:
            wanted = f"({b}, l, {self.text_width}) or ({b}, {f}, l, {self.text_width})"
            raise ValueError(f"encoder_hidden_states: expected {wanted}, got {tuple(text.shape)}")
        count = (self.config.options or {}).get("extra_channels", 0)
        wanted, got = (
            (b, count, f, h, w) if count else None,
            None if extra is None else tuple(extra.shape),
        )
        if got != wanted:
            raise ValueError(f"extra: expected {wanted or 'none'}, got {got or 'none'}")
        if frame_index is not None:
            if not any(isinstance(layer, TimeAndText) for layer in self.temporal.modules()):
                raise ValueError(
                    f"frame_index: expected none, no layer of {self.config.style!r} reads it; got some"
                )
            if frame_index.shape != (b, f):
                raise ValueError(
                    f"frame_index: expected ({b}, {f}), got {tuple(frame_index.shape)}"
                )


def key_of(name: str) -> str:
    """A layer's name as a key of `InflatedUNet.temporal`: torch allows no dots in it."""
    return name.replace(".", "-")


def _pictures(alone: Bool[Tensor, "b f"] | None, b: int, f: int) -> int:
    """How many of the last frames are pictures."""
    if alone is None:
        return 0
    count = int(alone[0].sum())
    if alone.shape != (b, f) or not torch.equal(
        alone.cpu(), (torch.arange(f) >= f - count).expand(b, -1)
    ):
        raise ValueError(
            "alone: expected the last frames of every clip, as many in each; got others"
        )
    if count == f:
        raise ValueError("alone: expected frames of a clip before the pictures, got pictures alone")
    return count


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without what it notes for itself, such as the folder whence it came."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def placed_as(model: M, other: ModelMixin) -> M:
    """The model on another's device and in its dtype. diffusers' own `to` warns, told a dtype, of layers that ought to
    stay in float32, and then names none.
    """
    return nn.Module.to(model, device=other.device, dtype=other.dtype)


def inflate(unet: UNet2DConditionModel, style: str = "video-ldm", **options: Any) -> InflatedUNet:
    """An image U-Net as a video U-Net, which gives every frame what the image U-Net would, until its layers over time
    have learnt something.

    unet: any of diffusers' that is made of `styles.BLOCKS`; it is copied. style: one of `styles.STYLES`. options: of
    the style's function there, such as `styles.video_ldm`. Raises ValueError as `InflatedUNet` does.
    """
    inflated = placed_as(InflatedUNet(public(unet.config), style, options), unet)
    inflated.spatial.load_state_dict(unet.state_dict())
    return inflated.train(unet.training)
