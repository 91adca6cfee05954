"""What diffusers' pipelines return, as pixels: PIL images, arrays and tensors in [0, 1].

The course's own tensors are (b, c, f, h, w) in [-1, 1]. A pipeline's output differs from them: it
has `frames` or `images`, holds PIL images, or is a NumPy array whose last axis has the 3 colours.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from course_lib.validation import Array, clips_to_uint8, images_to_uint8, require, to_uint8


def videos_to_rgb(value: Any, name: str) -> tuple[UInt8[np.ndarray, "b f h w 3"], bool]:
    """Videos in any form that `show_video` takes as one row.

    Args:
        value: one clip or clips, see `show_video`.
        name: argument of the caller, for the message.

    Returns:
        RGB levels 0 … 255, and whether `value` had a batch axis.

    Raises:
        ValueError: for anything else.
    """
    is_output = hasattr(value, "frames")
    value = _pil_to_array(value.frames if is_output else value, name)
    if is_channels_last(value, ranks=(4, 5)):
        clips = _array_to_rgb(value, name)
        return (clips, True) if clips.ndim == 5 else (clips[None], False)
    is_tensor = is_output and isinstance(value, Tensor) and value.ndim == 5
    if is_tensor and value.shape[2] == 3 and (value >= 0).all():
        value = value.transpose(1, 2) * 2 - 1  # output_type="pt": (b, f, 3, h, w) in [0, 1]
    return clips_to_uint8(value, name), value.ndim == 5


def images_to_rgb(value: Any, name: str) -> UInt8[np.ndarray, "b h w 3"]:
    """Images in any form that `show_images` takes.

    Args:
        value: images, see `show_images`.
        name: argument of the caller, for the message.

    Raises:
        ValueError: for anything else.
    """
    is_output = hasattr(value, "images")
    value = _pil_to_array(value.images if is_output else value, name)
    if is_channels_last(value, ranks=(4,)):
        return _array_to_rgb(value, name)
    if is_output and isinstance(value, Tensor) and (value >= 0).all():
        value = value * 2 - 1
    return images_to_uint8(value, name)


def is_clip_of_images(value: Any) -> bool:
    """Whether a value is a list of PIL images."""
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(item, Image.Image) for item in value)


def is_channels_last(value: Any, ranks: tuple[int, ...]) -> bool:
    """Whether a NumPy array is (…, h, w, 3); a video of the course is wider than 3 pixels."""
    is_array = isinstance(value, np.ndarray) and value.ndim in ranks
    return is_array and value.shape[-1] == 3 and value.shape[-2] > 3


def _pil_to_array(value: Any, name: str) -> Array:
    """A list of PIL images, or of such lists, as an array of levels; arrays unchanged."""
    if is_clip_of_images(value):
        sizes = {image.size for image in value}
        require(len(sizes) == 1, name, "images of one size", f"sizes {sorted(sizes)}")
        return np.stack([np.asarray(image.convert("RGB")) for image in value])
    if isinstance(value, list | tuple) and value and all(map(is_clip_of_images, value)):
        clips = [_pil_to_array(clip, name) for clip in value]
        shapes = {clip.shape for clip in clips}
        require(len(shapes) == 1, name, "clips of one shape", f"shapes {sorted(shapes)}")
        return np.stack(clips)
    is_array = isinstance(value, Array)
    require(is_array, name, "a torch tensor, a NumPy array or PIL images", type(value).__name__)
    return value


def _array_to_rgb(array: np.ndarray, name: str) -> UInt8[np.ndarray, "*n h w 3"]:
    require(array.size > 0, name, "no empty axis", f"shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    is_float = np.issubdtype(array.dtype, np.floating)
    require(is_float, name, "floats in [0, 1], or levels as uint8", array.dtype)
    low, high = float(array.min()), float(array.max())  # of NaN: NaN, which fails both comparisons
    require(
        low >= 0 and high <= 1,
        name,
        "values in [0, 1] in an array (…, h, w, 3)",
        f"{low:.4g} to {high:.4g}; videos in [-1, 1] are (b, c, f, h, w)",
    )
    return to_uint8(torch.from_numpy(array.astype(np.float32)) * 2 - 1).numpy()
