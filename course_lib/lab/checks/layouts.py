"""Mistakes about the order of rows and axes: frames in the batch, repeated rows, guided batches."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from course_lib.lab.checks.compare import require
from course_lib.lab.checks.mistakes import CLOSE, Mistake
from course_lib.nn.utils import fold_frames, unfold_frames

# Frames in the batch


def fold_mistakes(video: Tensor) -> list[Mistake]:
    """Images (b*f, c, h, w) that wrong ways of folding a video (b, c, f, h, w) give."""
    b, c, f, h, w = video.shape
    return [
        (video.reshape(b * f, c, h, w), "On the way in, reshape moves no number: it only cuts "
                                        "the row of numbers in memory, so an image gets channels "
                                        "of several frames. First bring f next to b: "
                                        "transpose(1, 2)."),
        (video.permute(2, 0, 1, 3, 4).flatten(0, 1),
         "On the way in, the images come in the order (f b), first frames first. The course "
         "folds as (b f): image 1 is frame 1 of clip 0."),
    ]  # fmt: skip


def unfold_mistakes(images: Tensor, num_frames: int) -> list[Mistake]:
    """What wrong ways of unfolding images (b*f, c, h, w), folded the right way, give.

    Args:
        images: (b*f, c, h, w), the frames of a clip side by side.
        num_frames: frames per clip, f.
    """
    n, c, h, w = images.shape
    b, f = n // num_frames, num_frames
    return [
        (images.reshape(b, c, f, h, w), "The way in is right. On the way back, reshape cuts the "
                                        "axes in the wrong places: first .unflatten(0, (b, f)), "
                                        "then transpose(1, 2)."),
        (images.unflatten(0, (f, b)).permute(1, 2, 0, 3, 4),
         "On the way back you read the images as (f, b). Frames of a clip stand side by side: "
         "(b, f)."),
        (images.unflatten(0, (b, f)), "That is (b, f, c, h, w): the last transpose is missing."),
        (images, "The frames are still in the batch: .unflatten(0, (b, f)), then transpose(1, 2)."),
    ]  # fmt: skip


def per_frame_mistakes(function: Callable[[Tensor], Tensor], video: Tensor) -> list[Mistake]:
    """What wrong folding or unfolding around a function of images returns for a video.

    Args:
        function: images (n, c, h, w) to images of the same shape.
        video: (b, c, f, h, w).
    """
    f = video.shape[2]
    mistakes = unfold_mistakes(function(fold_frames(video)), f)
    for images, message in fold_mistakes(video):
        out = function(images)
        mistakes += [
            (unfold_frames(out, f), message),
            (out.reshape(video.shape), message),
        ]
    return mistakes


# Rows in order


def row_owners(rows: Tensor, items: Mapping[str, Tensor]) -> str:
    """The letter of the item that each row equals, "?" for a row that equals none."""
    letters, values = "".join(items), torch.stack(list(items.values()))
    rows, values = (x[:, None].flatten(1).double() for x in (rows, values))  # (n, d), (items, d)
    distances = (rows[:, None] - values).abs().amax(dim=2)  # (n, items)
    nearest = distances.min(dim=1)
    return "".join(
        letters[i] if distance < CLOSE else "?"
        for distance, i in zip(nearest.values, nearest.indices, strict=True)
    )


def diagnose_order(
    rows: Tensor,
    items: Mapping[str, Tensor],
    expected: str,
    mistakes: Mapping[str, str],
    case: str,
    foreign: str = "",
) -> None:
    """Checks which item stands in each row.

    Args:
        rows: what the student returned, (n, …).
        items: the tensors that may stand in a row, by a letter each.
        expected: the letters of the right rows.
        mistakes: the message for each likely wrong order; under "" the one for any other.
        case: the input, described for the message.
        foreign: the message for a row that is none of the items; if empty, such rows pass.

    Raises:
        IncorrectAnswer: if the order is wrong.
    """
    order = row_owners(rows, items)
    if "?" in order:
        require(not foreign, f"{case}: row {order.index('?')} is {foreign}")
        return
    message = mistakes.get(order, mistakes[""])
    require(order == expected, f"{case}: row by row you returned {order or 'nothing'}, expected "
            f"{expected}. {message}")  # fmt: skip


TILED = "That is `repeat`, which tiles: 0 1 0 1. Equal rows stand together: repeat_interleave."


def cfg_order_mistakes(uncond: str, cond: str, repeats: int) -> dict[str, str]:
    """Messages for wrong orders of a guided batch, by the letters of its rows.

    The right order is the unconditional half, then the conditional one, each row repeated.

    Args:
        uncond: a letter for each unconditional row.
        cond: as many letters for the conditional rows.
        repeats: how often each row is repeated.
    """

    def each(letters: str) -> str:
        return "".join(letter * repeats for letter in letters)

    def alternate(first: str, second: str) -> str:
        return "".join(u + c for u, c in zip(first, second, strict=True))

    pairs = alternate(uncond, cond)
    halves = "The batch has two halves: first all the unconditional rows, then all the conditional."
    swapped = (
        "The halves are swapped: guidance takes the first half for the unconditional one, and "
        "would lead away from the prompt."
    )
    return {
        uncond * repeats + cond * repeats: TILED,
        (uncond + cond) * repeats: f"You repeated the finished batch. {halves}",
        each(cond) + each(uncond): swapped,
        cond * repeats + uncond * repeats: f"{swapped} And the rows are tiled: repeat_interleave.",
        each(pairs): f"Each prompt's two kinds of rows stand together. {halves}",
        pairs * repeats: f"Unconditional and conditional rows take turns. {halves}",
        alternate(each(uncond), each(cond)):
            f"Before every conditional row stands an unconditional one. {halves}",
        each(cond): "The unconditional half is missing.",
        cond * repeats: "The unconditional half is missing, and the prompts are tiled: "
                        "repeat_interleave.",
        "": halves,
    }  # fmt: skip
