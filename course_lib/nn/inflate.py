"""Inflation: turns an image U-Net of diffusers into a video U-Net, initially the same per frame.

    unet = inflate(pipeline.unet, style="video-ldm")
    unet(sample, timestep, encoder_hidden_states).sample  # (b, c, f, h, w)

The image model stays a UNet2DConditionModel, `unet.spatial`, which treats frames as a batch of
images. Temporal layers, `unet.temporal`, are inserted after its layers: `nn/temporal_layouts.py`
says where, `nn/temporal.py` has the layers. With `unet.spatial.requires_grad_(False)` the image
model is frozen, and the part before the first temporal layer needs no backward pass.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.nn.temporal import SharedTextAttnProcessor, TemporalTextBlock
from course_lib.nn.temporal_layouts import (
    TEMPORAL_LAYOUTS,
    TEMPORAL_ON_IMAGES,
    InsertionPoint,
    insertion_points,
)
from course_lib.nn.utils import (
    fold_frames,
    insert_module,
    num_trailing_images,
    strip_private,
    to_like,
    unfold_frames,
)
from course_lib.nn.video_context import ForwardState, VideoContext


class InflatedUNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
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

    _supports_gradient_checkpointing = True

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
        min_dim = self.spatial.config.cross_attention_dim
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
        self.set_attn_processor(SharedTextAttnProcessor())

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
        sample: Float[Tensor, "b c f h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "b *frames l d"],
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        is_image: Bool[Tensor, "b f"] | None = None,
        cond_channels: Float[Tensor, "b c_cond f h w"] | None = None,
        frame_index: Real[Tensor, "b positions"] | None = None,
        temporal_scale: float | int = 1.0,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """Predicts; arguments not listed here are those of diffusers' UNet3DConditionModel.

        Args:
            timestep: one for all clips, or (b,).
            encoder_hidden_states: text embeddings per clip, (b, l, text_dim), or per frame,
                (b, f, l, text_dim).
            down_block_additional_residuals: of a ControlNet, (b f) c h w; like
                `mid_block_additional_residual`.
            added_cond_kwargs: SDXL's conditioning, per clip, like `class_labels`.
            is_image: frames that are independent images (joint training): the last ones, equally
                many in each clip.
            cond_channels: channels without noise, such as given frames and their mask.
            time of each frame (b, f), in the unit of training; fractions are
                allowed, None means 0, 1, 2 ….
            temporal_scale: factor of what the temporal layers add; 0 gives the image model.

        Raises:
            ValueError: for shapes that do not match, or arguments without effect (see `accepts`).
        """
        self._check(sample, encoder_hidden_states, cond_channels, frame_index)
        b, _, f, _, _ = sample.shape
        per_frame = partial(_repeat, num_frames=f)
        num_images = num_trailing_images(is_image, b, f)
        text, n = encoder_hidden_states, f - num_images
        layer_kwargs = {
            "text": text if text.ndim == 3 else text[:, :n],
            "cond_channels": None if cond_channels is None else cond_channels[:, :, :n],
            "frame_index": None if frame_index is None else frame_index[:, :n],
        }
        with self._context.active(ForwardState(f, num_images, temporal_scale, layer_kwargs)):
            out = self.spatial(
                fold_frames(sample),
                per_frame(torch.as_tensor(timestep, device=sample.device).expand(b)),
                self._spatial_text(text, f),
                class_labels=per_frame(class_labels),
                timestep_cond=per_frame(timestep_cond),
                attention_mask=attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
                added_cond_kwargs=per_frame(added_cond_kwargs),
                down_block_additional_residuals=down_block_additional_residuals,
                mid_block_additional_residual=mid_block_additional_residual,
            ).sample
        out = unfold_frames(out, f)
        return UNet3DConditionOutput(sample=out) if return_dict else (out,)

    def _spatial_text(self, text: Tensor, num_frames: int) -> Float[Tensor, "rows l d"]:
        """Text of the image model: per clip if all its processors can share it, else per frame."""
        text = text[..., : self.spatial.config.cross_attention_dim]
        if text.ndim == 4:
            return text.flatten(0, 1)
        processors = (attn.processor for attn in self._cross_attention)
        if all(isinstance(processor, SharedTextAttnProcessor) for processor in processors):
            return text
        return _repeat(text, num_frames)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable | None = None
    ) -> None:
        """Recomputes activations in the backward pass.

        Args:
            gradient_checkpointing_func: None means torch's.
        """
        checkpoint_fn = gradient_checkpointing_func or partial(checkpoint, use_reentrant=False)

        def checkpoint_with_context(function: Callable, *args: Any) -> Any:
            state = self._context.state  # another forward pass may run before the backward pass

            def recompute(*args: Any) -> Any:
                with self._context.active(state):
                    return function(*args)

            return checkpoint_fn(recompute, *args)

        super().enable_gradient_checkpointing(checkpoint_with_context)

    def _check(
        self, sample: Tensor, text: Tensor, cond_channels: Tensor | None, frame_index: Tensor | None
    ) -> None:
        b, channels, f, h, w = sample.shape
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
        if frame_index is not None and "frame_index" not in self.accepts:
            raise ValueError(f"frame_index: not supported by style {self.config.style!r}")
        if frame_index is not None and frame_index.shape != (b, f):
            raise ValueError(f"frame_index: expected ({b}, {f}), got {tuple(frame_index.shape)}")


def _repeat(value: Any, num_frames: int) -> Any:
    """Repeats a tensor, or each of a mapping, for all frames of a clip, which are neighbours."""
    if isinstance(value, Mapping):
        return {name: _repeat(tensor, num_frames) for name, tensor in value.items()}
    return None if value is None else value.repeat_interleave(num_frames, dim=0)


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
