"""Inflation: turns an image U-Net of diffusers into a video U-Net, initially the same per frame.

    unet = inflate(pipeline.unet, style="video-ldm")
    unet(sample, timestep, encoder_hidden_states).sample  # (b, c, f, h, w)

The image model stays a UNet2DConditionModel, `unet.spatial`, which treats frames as a batch of
images. Temporal layers, `unet.temporal`, are inserted after its layers: `nn/temporal_layouts.py`
says where, `nn/temporal.py` has the layers. With `unet.spatial.requires_grad_(False)` the image
model is frozen, and the part before the first temporal layer needs no backward pass.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.nn.convolution import output_length
from course_lib.nn.kernels import guard_convolutions
from course_lib.nn.temporal import SharedTextAttnProcessor, TemporalTextBlock
from course_lib.nn.temporal_layouts import (
    TEMPORAL_LAYOUTS,
    TEMPORAL_ON_IMAGES,
    InsertionPoint,
    insertion_points,
)
from course_lib.nn.utils import (
    CheckpointingMixin,
    check_conditioning,
    fold_frames,
    insert_module,
    num_trailing_images,
    strip_private,
    to_like,
    unfold_frames,
)
from course_lib.nn.video_context import ForwardState, VideoContext
from course_lib.validation import check_float, check_number, require


class InflatedUNet(CheckpointingMixin, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A video U-Net made of an image U-Net; `inflate` makes one with trained weights.

    Attributes:
        spatial: the image U-Net.
        temporal: the temporal layers, named like the layers they follow.
        text_dim: dimension of the text embeddings. If the temporal layers take larger ones than
            the image model, the image model takes the first features.
        accepts: the video-specific arguments of `forward` that have an effect.

    Attention processors are set as in diffusers: `set_attn_processor` for all layers, that of
    `spatial` for the image model's. The default processor projects the text once per clip; for
    others it is repeated per frame.

    Args:
        spatial_config: configuration of the UNet2DConditionModel.
        style: one of `temporal_layouts.TEMPORAL_LAYOUTS`.
        style_kwargs: arguments of the style's function.

    Raises:
        ValueError: for an unknown style, unsupported blocks (see `insertion_points`), or temporal
            layers with a smaller text dimension than the image model.
    """

    @register_to_config
    def __init__(
        self,
        spatial_config: dict[str, Any],
        style: str = "video-ldm",
        style_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        if style not in TEMPORAL_LAYOUTS:
            raise ValueError(f"style: expected one of {', '.join(TEMPORAL_LAYOUTS)}; got {style!r}")
        style_kwargs = style_kwargs or {}
        self.spatial = UNet2DConditionModel.from_config(spatial_config)
        min_dim = self._image_text_dim()
        self.text_dim = style_kwargs.get("temporal_cross_attention_dim") or min_dim
        if self.text_dim < min_dim:
            raise ValueError(
                "temporal_cross_attention_dim: expected at least the image model's "
                f"{min_dim}, got {self.text_dim}"
            )
        self.temporal = nn.ModuleDict()
        self._context = VideoContext(temporal_on_images=style in TEMPORAL_ON_IMAGES)
        self._layer_names = []
        for point in insertion_points(self.spatial):
            layer = TEMPORAL_LAYOUTS[style](point, **style_kwargs)
            if layer is not None:
                insert_module(self.temporal, point.name, layer)
                self._layer_names.append(point.name)
                self._attach(point, layer)
        self.accepts = frozenset({"is_image", "temporal_scale"})
        if any(isinstance(layer, TemporalTextBlock) for layer in self.temporal.modules()):
            self.accepts |= {"frame_index"}
        if style_kwargs.get("cond_channels"):
            self.accepts |= {"cond_channels"}
        self._cross_attention = [
            module
            for module in self.spatial.modules()
            if isinstance(module, Attention) and module.is_cross_attention
        ]
        self._checkpointed = [
            module for module in self.spatial.modules() if hasattr(module, "gradient_checkpointing")
        ]
        self.set_attn_processor(SharedTextAttnProcessor())
        guard_convolutions(self)

    def _attach(self, point: InsertionPoint, layer: nn.Module) -> None:
        module = self.spatial.get_submodule(point.name)
        if point.kind == "block":
            module.norm2.register_forward_pre_hook(self._context.save_residual)
            hook = partial(self._context.after_cross_attention, layer)
            module.attn2.register_forward_hook(hook, with_kwargs=True)
        else:
            hook = partial(self._context.after_layer, layer)
            module.register_forward_hook(hook, with_kwargs=True)

    @property
    def temporal_layers(self) -> dict[str, nn.Module]:
        """The temporal layers by the names of the image layers that they follow."""
        return {name: self.temporal.get_submodule(name) for name in self._layer_names}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        is_image: Tensor | None = None,
        cond_channels: Tensor | None = None,
        frame_index: Tensor | None = None,
        temporal_scale: float | int = 1.0,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """Predicts; arguments not listed here are those of diffusers' UNet3DConditionModel.

        Args:
            sample: noisy video, (b, c, f, h, w).
            timestep: one for all clips, or (b,).
            encoder_hidden_states: text embeddings per clip, (b, l, text_dim), or per frame,
                (b, f, l, text_dim).
            cross_attention_kwargs: "scale" is the factor of what adapters (LoRA) add to all layers,
                temporal ones included; the rest is for the image model's processors.
            down_block_additional_residuals: of a ControlNet, (b f) c h w; like
                `mid_block_additional_residual`. A missing one counts as zeros.
            added_cond_kwargs: SDXL's conditioning, per clip, like `class_labels`.
            is_image: (b, f), frames that are independent images (joint training): the last ones,
                equally many in each clip.
            cond_channels: (b, c_cond, f, h, w), channels without noise, such as given frames and
                their mask.
            frame_index: time of each frame (b, f), in the unit of training; fractions are
                allowed, None means 0, 1, 2 ….
            temporal_scale: factor of what the temporal layers add; 0 gives the image model.

        Raises:
            ValueError: for shapes that do not match, or arguments without effect (see `accepts`).
        """
        self._check(sample, encoder_hidden_states, cond_channels, frame_index)
        b, _, f, _, _ = sample.shape
        per_frame = partial(_repeat, b=b, num_frames=f)
        down, mid = self._residuals(
            sample, down_block_additional_residuals, mid_block_additional_residual
        )
        num_images = num_trailing_images(is_image, b, f)
        text, n = encoder_hidden_states, f - num_images
        layer_kwargs = {
            "text": text if text.ndim == 3 else text[:, :n],
            "cond_channels": None if cond_channels is None else cond_channels[:, :, :n],
            "frame_index": None if frame_index is None else frame_index[:, :n],
        }
        processor_kwargs = dict(cross_attention_kwargs or {})
        adapter_scale = processor_kwargs.pop("scale", 1.0)
        if not torch.compiler.is_compiling():  # it would trace a changing number as a symbol
            check_number("temporal_scale", temporal_scale)
            check_number("cross_attention_kwargs['scale']", adapter_scale)
        if adapter_scale != 1:
            self._context.scale_adapters(self)
        if torch.is_grad_enabled():
            self._context.keep_in_recomputation(self._checkpointed)
        state = ForwardState(f, num_images, temporal_scale, layer_kwargs, adapter_scale)
        with self._context.active(state):
            out = self.spatial(
                fold_frames(sample),
                per_frame("timestep", _expand_timestep(timestep, b, sample.device)),
                self._spatial_text(text, f),
                class_labels=per_frame("class_labels", class_labels),
                timestep_cond=per_frame("timestep_cond", timestep_cond),
                attention_mask=attention_mask,
                cross_attention_kwargs=processor_kwargs or None,
                added_cond_kwargs=per_frame("added_cond_kwargs", added_cond_kwargs),
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        out = unfold_frames(out, f)
        return UNet3DConditionOutput(sample=out) if return_dict else (out,)

    def _spatial_text(self, text: Tensor, num_frames: int) -> Float[Tensor, "rows l d"]:
        """Text of the image model: per clip if all its processors can share it, else per frame."""
        text = text[..., : self._image_text_dim()]
        if text.ndim == 4:
            return text.flatten(0, 1)
        processors = (attn.processor for attn in self._cross_attention)
        if all(isinstance(processor, SharedTextAttnProcessor) for processor in processors):
            return text
        return text.repeat_interleave(num_frames, dim=0)

    def _image_text_dim(self) -> int:
        dims = self.spatial.config.cross_attention_dim  # one, or one per level
        return dims if isinstance(dims, int) else max(dims)

    def _residuals(
        self, sample: Tensor, down: Sequence[Tensor] | None, mid: Tensor | None
    ) -> tuple[Sequence[Tensor | int] | None, Tensor | int | None]:
        """Checks a ControlNet's residuals; 0 for a missing part, which diffusers would misread."""
        if down is None and mid is None:
            return None, None
        shapes = self._residual_shapes(sample)
        names = [f"down_block_additional_residuals[{k}]" for k in range(len(shapes))]
        down = (0,) * len(shapes) if down is None else tuple(down)
        if len(down) != len(shapes):
            raise ValueError(
                f"down_block_additional_residuals: expected {len(shapes)}, got {len(down)}"
            )
        mid = 0 if mid is None else mid
        checked = (*zip(names, down, shapes, strict=True),)
        for name, value, shape in (*checked, ("mid_block_additional_residual", mid, shapes[-1])):
            if not isinstance(value, int):
                check_float(name, value)
                require(value.shape == shape, name, f"{shape}, (b f) c h w", tuple(value.shape))
        return down, mid

    def _residual_shapes(self, sample: Tensor) -> list[tuple[int, ...]]:
        """Shapes of the features that the way up takes; the last one is the middle block's."""
        b, _, f, h, w = sample.shape
        shapes = [(b * f, self.spatial.conv_in.out_channels, h, w)]
        for block in self.spatial.down_blocks:
            shapes += [(b * f, resnet.out_channels, h, w) for resnet in block.resnets]
            for layer in block.downsamplers or ():
                extra = layer.padding == 0  # then diffusers pads one pixel on one side
                h, w = (output_length(n + extra, 3, 2, layer.padding) for n in (h, w))
                shapes.append((b * f, layer.out_channels, h, w))
        return shapes

    def _check(
        self, sample: Tensor, text: Tensor, cond_channels: Tensor | None, frame_index: Tensor | None
    ) -> None:
        check_float("sample", sample, "(b, c, f, h, w)")
        check_float("encoder_hidden_states", text)
        b, channels, f, h, w = sample.shape
        require(min(sample.shape) > 0, "sample", "no empty axis", f"shape {tuple(sample.shape)}")
        if channels != self.spatial.config.in_channels:
            raise ValueError(
                f"sample: expected (b, {self.spatial.config.in_channels}, f, h, w), "
                f"got {tuple(sample.shape)}"
            )
        if text.shape[:-2] not in ((b,), (b, f)) or text.shape[-1] != self.text_dim:
            raise ValueError(
                f"encoder_hidden_states: expected ({b}, l, {self.text_dim}) or "
                f"({b}, {f}, l, {self.text_dim}), got {tuple(text.shape)}"
            )
        num_channels = (self.config.style_kwargs or {}).get("cond_channels")
        expected = (b, num_channels, f, h, w) if num_channels else None
        shape = None if cond_channels is None else tuple(cond_channels.shape)
        if shape != expected:
            raise ValueError(f"cond_channels: expected {expected}, got {shape}")
        if cond_channels is not None:
            check_float("cond_channels", cond_channels)
        if frame_index is not None and "frame_index" not in self.accepts:
            raise ValueError(f"frame_index: not supported by style {self.config.style!r}")
        if frame_index is not None:
            check_conditioning("frame_index", frame_index, (b, f))


def _expand_timestep(
    timestep: Tensor | float | int, b: int, device: torch.device
) -> Float[Tensor, "b"] | Int[Tensor, "b"]:
    if isinstance(timestep, Tensor):
        check_conditioning("timestep", timestep, (), (1,), (b,))
    elif not torch.compiler.is_compiling():
        check_number("timestep", timestep)
    return torch.as_tensor(timestep, device=device).expand(b)


def _repeat(name: str, value: Any, b: int, num_frames: int) -> Any:
    """Repeats a tensor, or each of a mapping, for all frames of a clip, which are neighbours."""
    if isinstance(value, Mapping):
        return {key: _repeat(f"{name}[{key!r}]", x, b, num_frames) for key, x in value.items()}
    if value is None:
        return None
    require(value.shape[:1] == (b,), name, f"{b} rows, one per clip", f"{tuple(value.shape)}")
    return value.repeat_interleave(num_frames, dim=0)


def inflate(
    unet: UNet2DConditionModel, style: str = "video-ldm", **style_kwargs: Any
) -> InflatedUNet:
    """Makes a video U-Net that initially gives the image U-Net's result for every frame.

    Args:
        unet: image U-Net made of `temporal_layouts.SUPPORTED_BLOCKS`; it is copied.
        style: one of `temporal_layouts.TEMPORAL_LAYOUTS`.
        style_kwargs: arguments of the style's function, e.g. `temporal_layouts.video_ldm`.

    Raises:
        ValueError: see `InflatedUNet`.
    """
    inflated = to_like(InflatedUNet(strip_private(unet.config), style, style_kwargs), unet)
    inflated.spatial.load_state_dict(unet.state_dict())
    return inflated.train(unet.training)
