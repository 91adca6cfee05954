"""Small helpers for video networks: folding frames, joint image-video batches, nested modules."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.validation import check_int, require

M = TypeVar("M", bound=nn.Module)


def fold_frames(video: Tensor) -> Float[Tensor, "bf c h w"]:
    """Moves the frames of a video into the batch; frames of one clip stay neighbours.

    Args:
        video: (b, c, f, h, w).

    Raises:
        ValueError: for any other number of axes.
    """
    require(video.ndim == 5, "video", "(b, c, f, h, w)", f"shape {tuple(video.shape)}")
    return video.transpose(1, 2).flatten(0, 1)


def unfold_frames(frames: Float[Tensor, "bf c h w"], num_frames: int) -> Float[Tensor, "b c f h w"]:
    """Reverses `fold_frames`.

    Args:
        frames: images, (b f) c h w.
        num_frames: frames per clip, f.

    Returns:
        The video, as a view.

    Raises:
        ValueError: for any other number of axes, or if the frames are no whole number of clips.
    """
    require(frames.ndim == 4, "frames", "(b f, c, h, w)", f"shape {tuple(frames.shape)}")
    if num_frames < 1 or len(frames) % num_frames:
        raise ValueError(f"num_frames: expected a divisor of {len(frames)}, got {num_frames}")
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def num_trailing_images(is_image: Tensor | None, b: int, f: int) -> int:
    """Counts the images that joint training appended to every clip.

    Args:
        is_image: which frames are independent images, or None for no images.
        b: number of clips.
        f: number of frames per clip, images included.

    Returns:
        The number of trailing images per clip.

    Raises:
        ValueError: if the images are not the last frames, differ in number between clips, or if
            no video frame precedes them; for any other shape or dtype.
    """
    if is_image is None:
        return 0
    require(is_image.dtype == torch.bool, "is_image", "booleans", is_image.dtype)
    num_images = int(is_image[0].sum()) if is_image.shape == (b, f) else -1
    expected = (torch.arange(f) >= f - num_images).expand(b, -1)
    if num_images < 0 or not torch.equal(is_image.cpu(), expected):
        raise ValueError("is_image: must mark the same number of trailing frames in every clip")
    if num_images == f:
        raise ValueError("is_image: expected video frames before the images, got only images")
    return num_images


def check_is_image(is_image: Tensor, b: int, f: int) -> None:
    """Raises ValueError for anything but booleans (b, f): integers would be inverted bit by bit."""
    shape = tuple(is_image.shape)
    is_bool = is_image.dtype == torch.bool
    require(is_bool, "is_image", "booleans", is_image.dtype)
    require(shape == (b, f), "is_image", f"({b}, {f})", shape)


def check_conditioning(name: str, value: Tensor, *shapes: tuple[int, ...]) -> None:
    """Check a timestep, rate or position without reading its values.

    Args:
        name: argument of the caller, for the message.
        value: expected to hold real numbers.
        shapes: the shapes that are allowed; broadcasting would give others to the wrong clips.

    Raises:
        ValueError: if `value` is anything else.
    """
    require(isinstance(value, Tensor), name, "a torch tensor", type(value).__name__)
    is_real = value.dtype != torch.bool and not value.is_complex()
    require(is_real, name, "real numbers", value.dtype)
    shape = tuple(value.shape)
    require(shape in shapes, name, " or ".join(map(str, shapes)), shape)


def check_sizes(**sizes: int | Sequence[int] | None) -> None:
    """Raises ValueError, with its name, for a size that is no integer above 0; None passes."""
    for name, size in sizes.items():
        for number in size if isinstance(size, Sequence) else (size,):
            if number is not None:
                check_int(name, number, 1)


class CheckpointingMixin:
    """Gradient checkpointing by a function that can be pickled; that of diffusers cannot."""

    _supports_gradient_checkpointing = True

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable | None = None
    ) -> None:
        """Recomputes activations in the backward pass.

        Args:
            gradient_checkpointing_func: None means torch's.
        """
        default = partial(checkpoint, use_reentrant=False)
        super().enable_gradient_checkpointing(gradient_checkpointing_func or default)


def insert_module(root: nn.ModuleDict, name: str, module: nn.Module) -> None:
    """Registers a module under a dotted name, in nested ModuleDicts.

    Its tensors are then named like those of the layer it belongs to, e.g. `mid_block.resnets.0`.

    Raises:
        ValueError: if the name is taken.
    """
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root:
            root[parent] = nn.ModuleDict()
        root = root[parent]
    if last in root:
        raise ValueError(f"name: expected one that is not in use, got {name!r}")
    root[last] = module


def zero_module(module: M) -> M:
    """Sets all parameters of a module to zero, weights and biases, and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def strip_private(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a diffusers configuration without its private entries, such as the source folder."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def to_like(model: M, ref: ModelMixin) -> M:
    """Moves a model to the device and dtype of another one, and returns it."""
    # nn.Module's method: that of diffusers warns about float32 layers even if there are none
    return nn.Module.to(model, device=ref.device, dtype=ref.dtype)
