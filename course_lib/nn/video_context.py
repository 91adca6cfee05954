"""The state of a video model's forward pass, and hooks that insert temporal layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.utils import fold_frames, unfold_frames


class ForwardState(NamedTuple):
    """What the hooks need to know about one forward pass.

    Args:
        num_frames: frames per clip, images of joint training included.
        num_images: how many of them, the last ones, are independent images.
        scale: factor of what the temporal layers add.
        layer_kwargs: arguments of the temporal layers, of the video frames only.
    """

    num_frames: int
    num_images: int = 0
    scale: float | int = 1.0
    layer_kwargs: Mapping[str, Tensor | None] = {}


class VideoContext:
    """The state of the running forward pass of one model, and the hooks on its image model.

    Without an active state the hooks do nothing, so that the image model called by itself is the
    plain image model. Forward passes may be nested, but not run in several threads at once.

    Args:
        temporal_on_images: whether temporal layers process an image of joint training as a clip of
            one frame, or skip it.
    """

    def __init__(self, temporal_on_images: bool = False):
        self.temporal_on_images = temporal_on_images
        self.state: ForwardState | None = None
        self.residual: Tensor | None = None

    @contextmanager
    def active(self, state: ForwardState | None) -> Iterator[None]:
        """Uses the state inside the `with` block and restores the previous one after it."""
        previous, self.state = self.state, state
        try:
            yield
        finally:
            self.state = previous

    def apply(
        self,
        layer: nn.Module,
        frames: Float[Tensor, "bf c h w"],
        temb: Float[Tensor, "bf d"] | None = None,
    ) -> Float[Tensor, "bf c h w"]:
        """Applies a temporal layer to features of the image model.

        Args:
            layer: temporal layer, called with the clip and keyword arguments.
            frames: features.
            temb: timestep embedding, if the image model's layer takes one.
        """
        if self.state is None or self.state.scale == 0:
            return frames
        num_frames, num_images, scale, layer_kwargs = self.state
        n = num_frames - num_images
        video = unfold_frames(frames, num_frames)  # b c f h w
        if temb is not None:
            temb = temb.unflatten(0, (-1, num_frames))[:, :n]  # b n d
        out = layer(video[:, :, :n], temb=temb, **layer_kwargs)
        if num_images:
            images = video[:, :, n:]
            if self.temporal_on_images:  # these layers take neither timestep nor text
                single = layer(fold_frames(images)[:, :, None])  # (b images) c 1 h w
                images = unfold_frames(single[:, :, 0], num_images)
            out = torch.cat([out, images], dim=2)
        return fold_frames(out if scale == 1 else torch.lerp(video, out, scale))

    def after_layer(
        self, layer: nn.Module, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> Any:
        """Forward hook of a layer of the image model: applies a temporal layer to its output."""
        frames = output[0] if isinstance(output, tuple) else output
        temb = (*args, kwargs.get("temb"))[1] if isinstance(module, ResnetBlock2D) else None
        frames = self.apply(layer, frames, temb)
        return (frames,) if isinstance(output, tuple) else frames

    def save_residual(self, norm: nn.Module, args: tuple) -> None:
        """Pre-hook of the norm before a cross-attention: saves what its output is added to."""
        self.residual = args[0]

    def after_cross_attention(
        self, layer: nn.Module, attn: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> Tensor:
        """Forward hook of a cross-attention: applies a temporal layer to the sum."""
        residual, self.residual = self.residual, None
        tokens = (residual + output).transpose(1, 2)[..., None]  # (b f) c (h w) 1
        return self.apply(layer, tokens)[..., 0].transpose(1, 2) - residual
