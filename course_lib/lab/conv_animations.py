"""A kernel at work, one position after the other: animations computed from the real convolution.

Left or above stands what goes in, with the kernel's window drawn on it; right or below grows what comes out,
blue where the kernel answers with a positive number, orange where with a negative one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from torch import Tensor

from course_lib.lab import canvas, encode, style
from course_lib.lab.show import Picture

BLUE, ORANGE = (
    np.array([round(255 * c) for c in to_rgb(name)]) for name in (style.BLUE, style.VERMILION)
)
OUTLINE = np.array([204, 50, 140])


def slide_over_frame(
    image: Float[Tensor, "1 h w"], kernel: Float[Tensor, "k k"], stride: int = 2
) -> None:
    """Show a 2D kernel visiting every position of an image.

    Args:
        image: grey values in [-1, 1], about 16 pixels wide: each is drawn large.
        kernel: odd or even, no larger than the image.
        stride: pixels from one position to the next, at least 1.

    Raises:
        ValueError: a kernel larger than the image, or a stride below 1.
    """
    _check(image.shape[1:], kernel.shape, stride)
    answer = F.conv2d(image[None], kernel[None, None], stride=stride)[
        0, 0
    ].detach()  # (h_out, w_out)
    k, cell, out_cell = len(kernel), 13, 13 * stride
    steps = [(y, x) for y in range(answer.shape[0]) for x in range(answer.shape[1])]
    left, colours = _enlarge(_grey(image[0]), cell), _signed(answer)
    top, right = 24, left.shape[1] + 2 * canvas.GAP
    sheet = canvas.page(right + answer.shape[1] * out_cell + 3, top + left.shape[0] + 3)
    canvas.write(
        sheet,
        [(0, 2, f"{k}x{k} kernel on a frame", 15, False), (right, 2, "what comes out", 15, False)],
    )
    sheet[top : top + left.shape[0], : left.shape[1]] = left
    frames = []
    for y, x in steps:
        box = (top + y * out_cell, right + x * out_cell, out_cell, out_cell)
        sheet[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = colours[y, x]
        frame = sheet.copy()
        _outline(frame, top + y * stride * cell, x * stride * cell, k * cell, k * cell)
        _outline(frame, *box)
        frames.append(frame)
    frames = [frames[-1], *frames] + [
        frames[-1]
    ] * 8  # the finished map first: where nothing moves, it is what is seen
    sentence = f"animation: a {k}x{k} kernel slides over a frame; its answers fill a {tuple(answer.shape)} map"
    display(Picture(encode.encode_apng(np.stack(frames), 12), sentence))


def slide_over_clip(
    clip: Float[Tensor, "1 f h w"], kernel: Float[Tensor, "t k k"], stride: int = 2
) -> None:
    """Show a 3D kernel visiting a clip: at each moment it looks at t frames at once.

    Args:
        clip: grey values in [-1, 1], about 8 frames of 16 pixels.
        kernel: t frames of k x k pixels.
        stride: pixels from one position to the next, at least 1; in time it is 1. To keep the film short, every
            picture adds three answers, of which the window shows the first.

    Raises:
        ValueError: a kernel larger than the clip, or a stride below 1.
    """
    _check(clip.shape[1:], kernel.shape, stride)
    answer = F.conv3d(clip[None], kernel[None, None], stride=(1, stride, stride)).detach()[
        0, 0
    ]  # (f_out, h_out, w_out)
    (t, k, _), (f, h, w), cell = kernel.shape, clip.shape[1:], 5
    tile, colours = w * cell + 6, _signed(answer)
    top, below = 24, 24 + h * cell + 34
    sheet = canvas.page(f * tile, below + answer.shape[1] * stride * cell + 4)
    words = f"a kernel of {t} frames: each answer below comes from {t} frames above"
    canvas.write(sheet, [(0, 2, f"{f} frames go in", 15, False), (0, below - 24, words, 15, False)])
    for i in range(f):
        sheet[top : top + h * cell, i * tile : i * tile + w * cell] = _enlarge(
            _grey(clip[0, i]), cell
        )
    frames = []
    for time in range(answer.shape[0]):
        start = (time + t // 2) * tile  # an answer belongs to the middle of its window
        for y in range(answer.shape[1]):
            for x in range(0, answer.shape[2], 3):
                done = _enlarge(colours[time, y, : x + 3], stride * cell, rows_only=True)
                row = below + y * stride * cell
                sheet[row : row + stride * cell, start : start + done.shape[1]] = done
                frame = sheet.copy()
                for i in range(time, time + t):
                    _outline(
                        frame,
                        top + y * stride * cell,
                        i * tile + x * stride * cell,
                        k * cell,
                        k * cell,
                    )
                frames.append(frame)
    frames = [frames[-1], *frames] + [frames[-1]] * 8
    sentence = f"animation: a {t}x{k}x{k} kernel slides over {f} frames and leaves {len(answer)} frames of answers"
    display(Picture(encode.encode_apng(np.stack(frames), 14), sentence))


def _check(size: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> None:
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if any(k > n for k, n in zip(kernel, size, strict=True)):
        raise ValueError(f"kernel must fit into {tuple(size)}, got {tuple(kernel)}")


def signed_colours(
    values: Float[Tensor, "b 1 f h w"], gain: float | int = 4
) -> Float[Tensor, "b 3 f h w"]:
    """Colour positive values blue, negative ones orange and zero white, for `show.show_video`.

    Args:
        values: any range; the largest magnitude in the batch sets the scale.
        gain: how many times too bright: above 1, weak values show and the strongest saturate.

    Returns:
        red, green, blue in [-1, 1].
    """
    share = gain * values / values.abs().max().clamp(min=1e-8)
    return (
        torch.from_numpy(_signed(share.clamp(-1, 1)[:, 0].cpu(), 1.0))
        .movedim(-1, 1)
        .float()
        .div(127.5)
        .sub(1)
    )


def _grey(image: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    levels = ((image + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return levels[..., None].repeat(3, -1)


def _signed(values: Float[Tensor, "*n"], largest: float | None = None) -> UInt8[np.ndarray, "*n 3"]:
    """White at zero, blue for the largest positive answer, orange for the largest negative one."""
    scale = largest if largest is not None else max(float(values.abs().max()), 1e-8)
    share = (values / scale).numpy()[..., None]
    return (
        (255 + share.clip(0, 1) * (BLUE - 255) - share.clip(-1, 0) * (ORANGE - 255))
        .round()
        .astype(np.uint8)
    )


def _enlarge(pixels: np.ndarray, scale: int, rows_only: bool = False) -> np.ndarray:
    if rows_only:  # one row of pixels (w, 3) becomes a band
        return pixels[None].repeat(scale, 0).repeat(scale, 1)
    return pixels.repeat(scale, 0).repeat(scale, 1)


def _outline(sheet: np.ndarray, y: int, x: int, h: int, w: int, thick: int = 2) -> None:
    sheet[y : y + thick, x : x + w] = sheet[y + h - thick : y + h, x : x + w] = OUTLINE
    sheet[y : y + h, x : x + thick] = sheet[y : y + h, x + w - thick : x + w] = OUTLINE
