"""Small helpers for video networks: folding frames, joint image-video batches, nested modules."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def fold_frames(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "bf c h w"]:
    """Moves the frames of a video into the batch; frames of one clip stay neighbours."""
    return video.transpose(1, 2).flatten(0, 1)


def unfold_frames(frames: Float[Tensor, "bf c h w"], num_frames: int) -> Float[Tensor, "b c f h w"]:
    """Reverses `fold_frames`.

    Args:
        frames: images, (b f) c h w.
        num_frames: frames per clip, f.

    Returns:
        The video, as a view.
    """
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def num_trailing_images(is_image: Bool[Tensor, "b f"] | None, b: int, f: int) -> int:
    """Counts the images that joint training appended to every clip.

    Args:
        is_image: which frames are independent images, or None for no images.
        b: number of clips.
        f: number of frames per clip, images included.

    Returns:
        The number of trailing images per clip.

    Raises:
        ValueError: if the images are not the last frames, differ in number between clips, or if
            no video frame precedes them.
    """
    if is_image is None:
        return 0
    num_images = int(is_image[0].sum())
    expected = (torch.arange(f) >= f - num_images).expand(b, -1)
    if is_image.shape != (b, f) or not torch.equal(is_image.cpu(), expected):
        raise ValueError("is_image: must mark the same number of trailing frames in every clip")
    if num_images == f:
        raise ValueError("is_image: expected video frames before the images, got only images")
    return num_images


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
