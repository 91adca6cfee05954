"""A convolution's kernel at work, one position after the other, computed by the real convolution.

The input is on the left or at the top, with the kernel's window drawn on it. The output grows on
the right or at the bottom, blue for positive numbers and orange for negative ones.
"""

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from torch import Tensor

from course_lib.lab import encode, page_layout, style
from course_lib.lab.show import PngImage
from course_lib.validation import check_int, check_number, check_tensor, require, to_uint8

BLUE, ORANGE = (
    np.array([round(255 * c) for c in to_rgb(name)]) for name in (style.BLUE, style.VERMILION)
)
OUTLINE = np.array([204, 50, 140])
OUTLINE_WIDTH = 2
FONT_SIZE = 15
TOP = 24  # pixels for the heading
FRAME_CELL, CLIP_CELL = 13, 5  # pixels per input value
NUM_FINAL_FRAMES = 8  # repetitions of the finished output at the end


def slide_over_frame(
    image: Float[Tensor, "1 h w"], kernel: Float[Tensor, "k k"], stride: int = 2
) -> None:
    """Show a 2D kernel at every position of an image.

    Args:
        image: grey values in [-1, 1], about 16 pixels wide: each is drawn large.
        kernel: odd or even size, no larger than the image.
        stride: pixels between positions, at least 1.

    Raises:
        ValueError: a kernel larger than the image, or a stride below 1.
    """
    _check_fit(image.shape[1:], kernel.shape, stride)
    out = F.conv2d(image[None], kernel[None, None], stride=stride)[0, 0].detach()  # (h_out, w_out)
    k = len(kernel)
    cell = FRAME_CELL
    out_cell = cell * stride
    pixels = _enlarge(_grey(image[0]), cell)
    colours = _signed_rgb(out)
    right = pixels.shape[1] + 2 * page_layout.GAP
    sheet = page_layout.blank_page(right + out.shape[1] * out_cell + 3, TOP + len(pixels) + 3)
    headings = [(0, f"{k}x{k} kernel on a frame"), (right, "output")]
    page_layout.draw_text(sheet, [(x, 2, text, FONT_SIZE, False) for x, text in headings])
    sheet[TOP : TOP + len(pixels), : pixels.shape[1]] = pixels
    frames = []
    for y, x in np.ndindex(*out.shape):
        top = TOP + y * out_cell
        left = right + x * out_cell
        sheet[top : top + out_cell, left : left + out_cell] = colours[y, x]
        frame = sheet.copy()
        _outline(frame, TOP + y * out_cell, x * out_cell, k * cell)
        _outline(frame, top, left, out_cell)
        frames.append(frame)
    alt = f"a {k}x{k} kernel slides over a frame; its outputs fill a {tuple(out.shape)} map"
    _show_animation(frames, fps=12, alt=alt)


def slide_over_clip(
    clip: Float[Tensor, "1 f h w"], kernel: Float[Tensor, "t k k"], stride: int = 2
) -> None:
    """Show a 3D kernel on a clip: at each moment its window covers t frames.

    Args:
        clip: grey values in [-1, 1], about 8 frames of 16 pixels.
        kernel: t frames of k x k pixels.
        stride: pixels between positions, at least 1; in time it is 1. For a short animation every
            frame adds three outputs, and the window is that of the first.

    Raises:
        ValueError: a kernel larger than the clip, or a stride below 1.
    """
    _check_fit(clip.shape[1:], kernel.shape, stride)
    out = F.conv3d(clip[None], kernel[None, None], stride=(1, stride, stride))[0, 0].detach()
    t, k, _ = kernel.shape
    _, f, h, w = clip.shape
    cell = CLIP_CELL
    tile = w * cell + 6
    colours = _signed_rgb(out)  # (f_out, h_out, w_out, 3)
    out_top = TOP + h * cell + 34
    sheet = page_layout.blank_page(f * tile, out_top + out.shape[1] * stride * cell + 4)
    text = f"a kernel of {t} frames: each output below comes from {t} frames above"
    headings = [(2, f"{f} input frames"), (out_top - 24, text)]
    page_layout.draw_text(sheet, [(0, y, text, FONT_SIZE, False) for y, text in headings])
    for i in range(f):
        pixels = _enlarge(_grey(clip[0, i]), cell)
        sheet[TOP : TOP + h * cell, i * tile : i * tile + w * cell] = pixels
    frames = []
    for time, y in np.ndindex(*out.shape[:2]):
        left = (time + t // 2) * tile  # below the middle frame of its window
        row = out_top + y * stride * cell
        for x in range(0, out.shape[2], 3):
            band = _enlarge(colours[time, y : y + 1, : x + 3], stride * cell)
            sheet[row : row + len(band), left : left + band.shape[1]] = band
            frame = sheet.copy()
            for i in range(time, time + t):
                _outline(frame, TOP + y * stride * cell, i * tile + x * stride * cell, k * cell)
            frames.append(frame)
    alt = f"a {t}x{k}x{k} kernel slides over {f} frames and leaves {len(out)} frames of outputs"
    _show_animation(frames, fps=14, alt=alt)


def _show_animation(frames: list[np.ndarray], fps: int, alt: str) -> None:
    """The finished output first: it is what a page without animation shows."""
    last = frames[-1]
    sequence = np.stack([last, *frames] + [last] * NUM_FINAL_FRAMES)
    display(PngImage(encode.encode_apng(sequence, fps), f"animation: {alt}"))


def _check_fit(size: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> None:
    check_int("stride", stride, 1)
    fits = all(k <= n for k, n in zip(kernel, size, strict=True))
    require(fits, "kernel", f"at most shape {tuple(size)}", tuple(kernel))


def signed_colours(
    values: Float[Tensor, "b 1 f h w"], gain: float | int = 4
) -> Float[Tensor, "b 3 f h w"]:
    """Colour positive values blue, negative ones orange and zero white, for `show.show_video`.

    Args:
        values: any range; the largest magnitude in the batch sets the scale.
        gain: brightness factor: above 1, weak values show and the strongest saturate.

    Returns:
        Red, green, blue in [-1, 1].

    Raises:
        ValueError: values that are not (b, 1, f, h, w) finite floats, or a gain not above 0.
    """
    check_tensor("values", values, "(b, 1, f, h, w)")
    require(values.shape[1] == 1, "values", "one channel", values.shape[1])
    check_number("gain", gain, above=0)
    scaled = gain * values / values.abs().max().clamp(min=1e-8)
    rgb = _signed_rgb(scaled.clamp(-1, 1)[:, 0].cpu(), max_value=1.0)
    return torch.from_numpy(rgb).movedim(-1, 1).float().div(127.5).sub(1)


def _grey(image: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return to_uint8(image).numpy()[..., None].repeat(3, -1)


def _signed_rgb(
    values: Float[Tensor, "*n"], max_value: float | None = None
) -> UInt8[np.ndarray, "*n 3"]:
    """White at zero, blue at the largest positive value, orange at the largest negative one."""
    scale = max(float(values.abs().max()), 1e-8) if max_value is None else max_value
    share = (values / scale).numpy()[..., None]
    rgb = 255 + share.clip(0, 1) * (BLUE - 255) - share.clip(-1, 0) * (ORANGE - 255)
    return rgb.round().astype(np.uint8)


def _enlarge(pixels: UInt8[np.ndarray, "h w 3"], scale: int) -> UInt8[np.ndarray, "H W 3"]:
    return pixels.repeat(scale, 0).repeat(scale, 1)


def _outline(sheet: np.ndarray, y: int, x: int, size: int) -> None:
    inside = slice(OUTLINE_WIDTH, -OUTLINE_WIDTH)
    square = sheet[y : y + size, x : x + size]
    interior = square[inside, inside].copy()
    square[:] = OUTLINE
    square[inside, inside] = interior
