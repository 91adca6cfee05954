"""The state of a video model's forward pass, and hooks that insert temporal layers.

Every thread has a state of its own, and gradient checkpointing restores it, since the backward pass
may run later and in another thread. Nothing is a closure: models can be copied and pickled.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.validation import require


class ForwardState(NamedTuple):
    """What the hooks need to know about one forward pass.

    Args:
        num_frames: frames per clip, images of joint training included.
        num_images: how many of them, the last ones, are independent images.
        scale: factor of what the temporal layers add.
        layer_kwargs: arguments of the temporal layers, of the video frames only.
        adapter_scale: factor of what adapters (LoRA) add.
    """

    num_frames: int
    num_images: int = 0
    scale: float | int = 1.0
    layer_kwargs: Mapping[str, Tensor | None] = {}
    adapter_scale: float | int = 1.0


class VideoContext(threading.local):
    """The state of the running forward pass of one model, and the hooks on its image model.

    Without an active state the hooks do nothing, so that the image model called by itself is the
    plain image model. Forward passes may be nested, and run in several threads at once.

    Args:
        temporal_on_images: whether temporal layers process an image of joint training as a clip of
            one frame, or skip it.
    """

    def __init__(self, temporal_on_images: bool = False):
        self.temporal_on_images = temporal_on_images
        self.state: ForwardState | None = None
        self.residual: Tensor | None = None

    def __reduce__(self) -> tuple:
        """A copy has no forward pass that is running."""
        return type(self), (self.temporal_on_images,)

    @contextmanager
    def active(self, state: ForwardState | None) -> Iterator[None]:
        """Uses the state inside the `with` block and restores the previous one after it."""
        previous, self.state = (self.state, self.residual), state
        try:
            yield
        finally:
            self.state, self.residual = previous

    def call(self, state: ForwardState | None, function: Callable, *args: Any) -> Any:
        """Calls a function with the state."""
        with self.active(state):
            return function(*args)

    def keep_in_recomputation(self, modules: Iterable[nn.Module]) -> None:
        """Makes gradient checkpointing of these modules recompute with the state of their call."""
        for module in modules:
            if module.gradient_checkpointing:
                function = module._gradient_checkpointing_func
                if getattr(function, "context", None) is not self:
                    module._gradient_checkpointing_func = StatefulCheckpoint(self, function)

    def scale_adapters(self, model: nn.Module) -> None:
        """Makes the adapters of a model follow `adapter_scale`; no value of theirs is changed.

        Raises:
            ValueError: for adapters that are merged into the weights, which have no scale.
        """
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                require(not layer.merged, "cross_attention_kwargs", "no scale", "fused adapters")
                scaling = getattr(layer, "scaling", None)
                if scaling is not None and getattr(scaling, "context", None) is not self:
                    layer.scaling = StatefulScaling(self, scaling)

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
        num_frames, num_images, scale, layer_kwargs, _ = self.state
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
        self.residual = args[0] if self.state is not None else None

    def after_cross_attention(
        self, layer: nn.Module, attn: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> Tensor | None:
        """Forward hook of a cross-attention: applies a temporal layer to the sum."""
        if self.state is None:
            return None
        residual, self.residual = self.residual, None
        tokens = (residual + output).transpose(1, 2)[..., None]  # (b f) c (h w) 1
        return self.apply(layer, tokens)[..., 0].transpose(1, 2) - residual


class StatefulCheckpoint:
    """A gradient checkpointing function that recomputes with the state of the first computation.

    Args:
        context: of the model.
        checkpoint_fn: from a function and its arguments to its result, such as torch's.
    """

    def __init__(self, context: VideoContext, checkpoint_fn: Callable):
        self.context = context
        self.checkpoint_fn = checkpoint_fn

    def __call__(self, function: Callable, x: Tensor, *args: Any) -> Any:
        keywords = getattr(self.checkpoint_fn, "keywords", {})
        if keywords.get("use_reentrant") is not False and not _requires_grad(x, *args):
            # Otherwise the temporal layers of a frozen image model would get no gradient
            x = x.detach().requires_grad_()
        call = partial(self.context.call, self.context.state, function)
        return self.checkpoint_fn(call, x, *args)


def _requires_grad(*args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in args)


class StatefulScaling(dict):
    """peft's scaling of a layer's adapters, times the scale of the running forward pass.

    peft reads it at every call. Changed numbers would also act in other threads, and not in the
    recomputation of gradient checkpointing.

    Args:
        context: of the model.
        scaling: from an adapter's name to its scaling.
    """

    def __init__(self, context: VideoContext, scaling: Mapping[str, float]):
        super().__init__(scaling)
        self.context = context

    def __getitem__(self, name: str) -> float:
        scaling, state = super().__getitem__(name), self.context.state
        return scaling if state is None else scaling * state.adapter_scale
