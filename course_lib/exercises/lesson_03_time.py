"""The checks of exercises 3.2, rows of frames, and 3.3, the mask of joint training.

Solutions and hints are in `lesson_03.py`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks import (
    CLOSE,
    Mistake,
    Recorder,
    assert_matches,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    randn,
    require,
)

# 3.2 ----------------------------------------------------------------------------------------------


def _mix(tokens: Tensor) -> Tensor:
    """Mixes frames and channels of (rows, f, c), no two in the same way."""
    f, c = tokens.shape[1:]
    weights = randn(30, f, f).to(tokens), randn(31, c, c).to(tokens)
    return torch.einsum("ij,njc,ce->nie", weights[0], tokens, weights[1]).tanh()


def _attend(video: Tensor) -> Recorder:
    """The `attend` of 3.2 for a video: refuses rows of another shape."""
    _, c, f, h, w = video.shape
    messages = {
        (f, c): "",
        (c, f): "channels and frames are swapped. A token is one pixel in one frame, c numbers: "
                "channels last.",
        (h * w, c): f"{h * w} pixels are the sequence, and the frames are rows. That is spatial "
                    "attention.",
        (f * h * w, c): f"all {f * h * w} pixels of all frames are one sequence. In temporal "
                        "attention every pixel is by itself.",
    }  # fmt: skip

    def validate(tokens: object) -> None:
        text = f"attend got {describe_value(tokens)}. It takes (rows, f, c), with f = {f}, c = {c}"
        require(
            isinstance(tokens, Tensor) and tokens.ndim == 3,
            f"{text}: fold clips and pixels into one axis of rows.",
        )
        message = messages.get(
            tuple(tokens.shape[1:]), "the sequence is to be the frames of one pixel."
        )
        require(not message, f"{text}: {message}")

    return Recorder("attend", _mix, validate)


def _columns(video: Tensor) -> Tensor:
    """The frames of every pixel, (b·h·w, f, c)."""
    b, _, _, h, w = video.shape
    return torch.stack([video[clip, :, :, y, x].T for clip, y, x in np.ndindex(b, h, w)])


def _enter_mistakes(video: Tensor) -> list[Mistake]:
    _, c, f, _, _ = video.shape
    reshape = (
        "A reshape (or view) moves no number, it only cuts the row of numbers in memory: the shape "
        "is right, the rows are not. First permute, so that f and c come last."
    )
    permute = "permute to (b, h, w, f, c)."
    return [
        (video.reshape(-1, f, c), reshape),
        (video.transpose(1, 2).reshape(-1, f, c),
         f"{reshape} Swapping c and f does not do it: h and w are still last."),
        (video.permute(0, 2, 3, 4, 1).reshape(-1, f, c),
         "You put the channels last, but f stands before h and w, and the reshape took "
         f"neighbouring pixels for frames. {permute}"),
        (video.permute(0, 3, 4, 1, 2).reshape(-1, f, c),
         f"c stands before f, and the reshape did not swap them. {permute}"),
    ]  # fmt: skip


def _describe_row(row: Tensor, video: Tensor) -> str:
    """Where the tokens of a row come from, by their first channel."""
    origins = []
    for number in row[:, 0]:
        distance = (video - number).abs()
        _, _, f, h, w = (int(i) for i in torch.unravel_index(distance.argmin(), video.shape))
        origins.append(
            f"frame {f} at ({h}, {w})" if distance.min() < CLOSE else "no number of the video"
        )
    return f"{origins[0]}, {len(origins)} times" if len(set(origins)) == 1 else ", ".join(origins)


def _check_rows(attend: Recorder, video: Tensor, case: str) -> None:
    """Checks that the rows given to attend are the frames of all pixels, in any order of pixels."""
    attend.require_call(case)
    rows, columns = attend.first_args(), _columns(video)
    distance = (rows[:, None] - columns).abs().amax(dim=(2, 3))
    foreign = (~(distance.amin(dim=1) < CLOSE)).nonzero()
    if len(foreign):
        messages = (text for wrong, text in _enter_mistakes(video) if is_close(rows, wrong))
        message, row = next(messages, "Follow one pixel through the frames."), int(foreign[0])
        require(
            False,
            f"{case}: a row is to be one pixel, frame after frame. Row {row} that attend got has "
            f"{_describe_row(rows[row], video)}. {message}",
        )
    missing = sorted(set(range(len(columns))) - set(distance.argmin(dim=1).tolist()))
    if missing:
        b, _, _, h, w = video.shape
        clip, y, x = np.unravel_index(missing[0], (b, h, w))
        require(False, f"{case}: attend was never given pixel ({y}, {x}) of clip {clip}.")


def _return_mistakes(out: Tensor, video: Tensor) -> list[Mistake]:
    b, c, f, h, w = video.shape
    split = out.reshape(b, h, w, f, c)
    right = split.permute(0, 4, 3, 1, 2)
    square = (
        "h and w are swapped on one of the two ways. In a square clip, the shape would never tell."
    )
    back = "The way in is right. On the way back, "
    frames = (
        f"{back}you read the rows as frames with pixels in them. They are pixels, (b, h, w), with "
        "f tokens each."
    )
    return [
        (out, f"{back}nothing happens: these are still the rows of attend."),
        (split, f"{back}a permute is missing: this is (b, h, w, f, c)."),
        (out.reshape(video.shape), f"{back}a bare reshape scrambles: first .reshape(b, h, w, f, "
                                   "c), then permute."),
        (out.reshape(b, w, h, f, c).permute(0, 4, 3, 2, 1), square),
        (right.permute(0, 4, 3, 2, 1).reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2), square),
        (out.reshape(b, h, w, c, f).permute(0, 3, 4, 1, 2),
         f"{back}c and f are swapped: its rows are (f, c)."),
        (out.reshape(b, f, h, w, c).permute(0, 4, 1, 2, 3), frames),
        (out.reshape(b, f, c, h, w).transpose(1, 2), frames),
        (out.reshape(h, w, b, f, c).permute(2, 4, 3, 0, 1),
         f"{back}you read the rows as (h, w, b): b comes first."),
        (right + video, "You added the video. A layer does that afterwards (the residual); this "
                        "exercise wants only attend's output."),
        (video, "That is the video as it was: attend's output is not in it."),
    ]  # fmt: skip


def verify_apply_over_frames(attempt: Callable) -> Iterator[str]:
    """Checks a clip of five different sizes, its rows, then the result; then other clips."""
    for shape in ((2, 3, 4, 5, 6), (3, 2, 5, 3, 2), (1, 4, 1, 2, 3)):
        b, _, _, h, w = shape
        video, case = randn(32, *shape), f"a video {shape}"
        attend, expected = _attend(video), torch.empty_like(video)
        for clip, y, x in np.ndindex(b, h, w):
            expected[clip, :, :, y, x] = _mix(video[clip, :, :, y, x].T[None])[0].T
        result = call_on_copies(attempt, video=video, attend=attend)
        _check_rows(attend, video, case)
        yield f"{case}: attend got the frames of each of its {b * h * w} pixels as one row"
        diagnose(result, expected, _return_mistakes(_mix(_columns(video)), video), case)
        yield "and its output is where the pixel was: the same as with a loop over all pixels"


# 3.3 ----------------------------------------------------------------------------------------------


def mask_by_loops(is_image: Tensor) -> Tensor:
    """Which frame may attend to which, (b, f, f), for is_image (b, f)."""
    b, f = is_image.shape
    mask = torch.zeros(b, f, f, dtype=torch.bool)
    for clip, i, j in np.ndindex(b, f, f):
        mask[clip, i, j] = i == j or not (is_image[clip, i] or is_image[clip, j])
    return mask


def _mask_mistakes(is_image: Tensor) -> list[Mistake]:
    query, key = ~is_image[:, :, None], ~is_image[:, None]  # whether each belongs to the video
    itself, right = torch.eye(is_image.shape[1], dtype=torch.bool), mask_by_loops(is_image)
    blind = (
        "An image attends to nothing at all, not even to itself: all its scores are -inf, and the "
        "softmax of such a row is nan. Every frame attends to itself: | torch.eye(f, "
        "dtype=torch.bool)."
    )
    belong = "both, query and key, have to belong to the video."
    to_images = f"Frames of the video attend to images: {belong}"
    to_video = f"Images attend to the video: {belong}"
    both = (
        "Video and images attend to each other: `and`, not `or`. Both have to belong to the video."
    )
    masks = [
        (right, ""),
        (query & key, blind),
        (query == key, "Images attend to each other. They have nothing to do with one another: "
                       "each is independent."),
        (query | itself, to_images),
        (key | itself, to_video),
        (query.expand_as(right), f"{to_images} {blind}"),
        (key.expand_as(right), f"{to_video} And they do not attend to themselves."),
        (query | key | itself, both),
        (query | key, both),
        (itself.expand_as(right), "No frame attends to another. Frames of the video are to "
                                  "attend to each other."),
        (torch.ones_like(right), "Every frame attends to every frame: `is_image` does not enter."),
        (right[:1].expand_as(right), "That is the first clip's mask for all clips. Each has its "
                                     "own row of `is_image`."),
        (right & ~itself, f"No frame attends to itself. {blind}"),
        (query & key & ~itself | itself & ~query,
         "Frames of the video do not attend to themselves."),
    ]  # fmt: skip
    inverted = (
        "Inverted: True is to mean that a frame may attend, as in scaled_dot_product_attention. "
        "(In torch's nn.MultiheadAttention, True hides.)"
    )
    return masks[1:] + [(~mask, f"{inverted} {message}".strip()) for mask, message in masks]


def _bool_mask(result: object, expected: Tensor, case: str) -> Tensor:
    """What the student returned, as a bool tensor of the right shape."""
    try:
        mask = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError):
        assert_matches(result, expected, case)
    b, f, _ = expected.shape
    is_scores = mask.is_floating_point() and mask.isneginf().any()
    numbers = "a mask of numbers would be added to the scores, and ~ turns 1 into -2"
    scores = "0 and -inf are what is added to the scores. That comes later, out of the mask"
    require(
        mask.dtype == torch.bool,
        f"{case}: you returned a {describe_value(mask)}. Expected bool, True where a frame may "
        f"attend; {scores if is_scores else numbers}.",
    )
    require(
        mask.shape != (f, f) or b == 1,
        f"{case}: you returned one mask {(f, f)} for {b} clips. Each has its own: (b, f, f).",
    )
    require(
        mask.shape not in ((b, 1, f, f), (b, f, f, 1), (1, b, f, f)),
        f"{case}: shape {tuple(mask.shape)} has an axis too many. Expected (b, f, f); the axis of "
        "heads comes later.",
    )
    if mask.shape != expected.shape:
        assert_matches(mask, expected, case)
    return mask


def _check_mask(attempt: Callable, is_image: Tensor) -> None:
    expected = mask_by_loops(is_image)
    rows = ["".join("FT"[int(flag)] for flag in row) for row in is_image]
    case = f"is_image = {', '.join(rows)} (T: an image)"
    mask = _bool_mask(call_on_copies(attempt, is_image=is_image), expected, case)
    if not torch.equal(mask, expected):
        clip, i, j = (mask != expected).nonzero()[0].tolist()
        kinds = ["a frame of the video" if flag == "F" else "an image" for flag in rows[clip]]
        key = "itself" if i == j else f"frame {j}, {kinds[j]}"
        may = "may" if mask[clip, i, j] else "may not"
        messages = (text for wrong, text in _mask_mistakes(is_image) if torch.equal(mask, wrong))
        text = (
            f"{case}: by your mask, in clip {clip}, frame {i}, {kinds[i]}, {may} attend to {key}. "
            f"{next(messages, '')}"
        )
        require(False, text.strip())


def flags(*rows: str) -> Tensor:
    """Turns rows such as "FFT" into [False, False, True]."""
    return torch.tensor([[letter == "T" for letter in row] for row in rows])


def verify_joint_attention_mask(attempt: Callable) -> Iterator[str]:
    """Checks clips with images at different positions, without images, and with images only."""
    _check_mask(attempt, flags("FFFTT", "FTFFT"))
    yield (
        "frames of a video attend to each other, images to themselves, at any position and clip by "
        "clip"
    )
    for rows in (("FFFF",), ("TTT", "FTF"), ("F",), ("T",)):
        _check_mask(attempt, flags(*rows))
    yield "clips without images, images only, a single frame"
