"""Lesson 03's checks of who sees whom in time: 3.2, rows of frames, and 3.3, the mask of joint training.

Solutions and hints are in `lesson_03.py`. A mistake is known by the numbers it leads to on the check's own input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, brief, same
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import CLOSE, judge, near, normal


def untouched(given: Tensor, before: Tensor, name: str) -> None:
    """Raise Wrong if the student's function has changed what it was given."""
    if not torch.equal(given, before):
        raise Wrong(
            f"Your function has changed `{name}` itself, which whoever calls it still needs. Work on {name}.clone(), "
            "and beware of +=, of assignments to a part and of functions that end in _."
        )


# 3.2 ------------------------------------------------------------------------------------------------------------------


@dataclass
class _Attend:
    """Mixes frames, no two alike, and channels; remembers the rows that it was given."""

    video: Tensor
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, tokens: Tensor) -> Tensor:
        self._refuse_shapes(tokens)
        self.given.append(tokens.detach().clone())
        return self.answer(tokens)

    def __repr__(self) -> str:
        return "attend"

    def answer(self, tokens: Tensor) -> Tensor:
        f, c = tokens.shape[1:]
        return torch.einsum(
            "ij,njc,ce->nie", normal(30, f, f).to(tokens), tokens, normal(31, c, c).to(tokens)
        ).tanh()

    def _refuse_shapes(self, tokens: object) -> None:
        _, c, f, h, w = self.video.shape
        told = f"attend got {brief(tokens)}. It takes (rows, f, c), here (rows, {f}, {c})"
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            raise Wrong(f"{told}: fold clips and pixels into one axis of rows.")
        messages = {
            (f, c): "",
            (
                c,
                f,
            ): "channels and frames are swapped. A token is one pixel in one frame, c numbers: channels last.",
            (
                h * w,
                c,
            ): f"{h * w} pixels are the sequence, and the frames are rows. That is attention over space.",
            (
                f * h * w,
                c,
            ): f"all {f * h * w} pixels of all frames are one sequence. Here every pixel is by itself.",
        }
        message = messages.get(
            tuple(tokens.shape[1:]), "the sequence is to be the frames of one pixel."
        )
        if message:
            raise Wrong(f"{told}: {message}")


def _columns(video: Tensor) -> Tensor:
    """Every pixel's frames, (b·h·w, f, c)."""
    return torch.stack(
        [
            clip[:, :, y, x].T
            for clip in video
            for y in range(clip.shape[2])
            for x in range(clip.shape[3])
        ]
    )


def _ways_in(video: Tensor) -> list[tuple[Tensor, str]]:
    """Rows of the right shape that plausible mistakes make."""
    _, c, f, _, _ = video.shape
    bare = ("A reshape (or view) moves no number, it only cuts the row of numbers elsewhere: the shape is right, the "
            "rows are not. First permute, so that f and c come last.")  # fmt: skip
    return [
        (video.reshape(-1, f, c), bare),
        (video.transpose(1, 2).reshape(-1, f, c), f"{bare} Swapping c and f does not do it: h and w are still last."),
        (video.permute(0, 2, 3, 4, 1).reshape(-1, f, c), "You put the channels last, but f stands before h and w, and "
         "the reshape took neighbouring pixels for frames. permute to (b, h, w, f, c)."),
        (video.permute(0, 3, 4, 1, 2).reshape(-1, f, c), "c stands before f, and the reshape did not swap them. "
         "permute to (b, h, w, f, c)."),
    ]  # fmt: skip


def _whence(row: Tensor, video: Tensor) -> str:
    """Where the tokens of a row come from, by their first channel."""
    places = []
    for number in row[:, 0]:
        distance = (video - number).abs()
        _, _, f, h, w = torch.unravel_index(distance.argmin(), video.shape)
        near_enough = distance.min() < CLOSE
        places.append(
            f"frame {int(f)} at ({int(h)}, {int(w)})" if near_enough else "no number of the video"
        )
    return ", ".join(places) if len(set(places)) > 1 else f"{places[0]}, {len(places)} times"


def _judge_rows(attend: _Attend, told: str) -> None:
    """Raise Wrong unless the rows that attend was given are every pixel's frames, in any order of the pixels."""
    if not attend.given:
        raise Wrong(f"{told}: attend was never called.")
    rows, columns = torch.cat(attend.given).double(), _columns(attend.video)
    distance = (rows[:, None] - columns).abs().amax(dim=(2, 3))
    strange = (~(distance.amin(dim=1) < CLOSE)).nonzero()
    if len(strange):
        message = next(
            (say for wrong, say in _ways_in(attend.video) if near(rows, wrong)),
            "Follow one pixel through the frames.",
        )
        row = int(strange[0])
        raise Wrong(f"{told}: a row is to be one pixel, frame after frame. Row {row} that attend got holds "
                    f"{_whence(rows[row], attend.video)}. {message}")  # fmt: skip
    missing = sorted(set(range(len(columns))) - set(distance.argmin(dim=1).tolist()))
    if missing:
        _, _, _, h, w = attend.video.shape
        clip, place = divmod(missing[0], h * w)
        raise Wrong(f"{told}: attend was never given pixel {divmod(place, w)} of clip {clip}.")


def _ways_back(out: Tensor, video: Tensor) -> list[tuple[Tensor, str]]:
    """What plausible mistakes make of attend's answer `out` (b·h·w, f, c) to the right rows."""
    b, c, f, h, w = video.shape
    split = out.reshape(b, h, w, f, c)
    right = split.permute(0, 4, 3, 1, 2)
    square = (
        "h and w are swapped on one of the two ways. In a square clip, the shape would never tell."
    )
    fine = "The way in is right. On the way back, "
    frames = f"{fine}you read the rows as frames with pixels in them. They are pixels, (b, h, w), with f tokens each."
    return [
        (out, f"{fine}nothing happens: these are still the rows of attend."),
        (split, f"{fine}a permute is missing: this is (b, h, w, f, c)."),
        (out.reshape(video.shape), f"{fine}a bare reshape scrambles: first .reshape(b, h, w, f, c), then permute."),
        (out.reshape(b, w, h, f, c).permute(0, 4, 3, 2, 1), square),
        (right.permute(0, 4, 3, 2, 1).reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2), square),
        (out.reshape(b, h, w, c, f).permute(0, 3, 4, 1, 2), f"{fine}c and f are swapped: its rows are (f, c)."),
        (out.reshape(b, f, h, w, c).permute(0, 4, 1, 2, 3), frames),
        (out.reshape(b, f, c, h, w).transpose(1, 2), frames),
        (out.reshape(h, w, b, f, c).permute(2, 4, 3, 0, 1), f"{fine}you read the rows as (h, w, b): b comes first."),
        (right + video, "You added the video. A layer does that afterwards (the residual); here attend's answer alone "
         "is asked for."),
        (video, "That is the video as it was: attend's answer is not in it."),
    ]  # fmt: skip


def verify_over_time(attempt: Callable) -> Iterator[str]:
    """A clip of five different sizes, first the rows and then what is returned; then other clips."""
    for b, c, f, h, w in ((2, 3, 4, 5, 6), (3, 2, 5, 3, 2), (1, 4, 1, 2, 3)):
        video, told = normal(32, b, c, f, h, w), f"a video {(b, c, f, h, w)}"
        attend, given, expected = _Attend(video), video.clone(), torch.empty_like(video)
        for clip, y, x in np.ndindex(b, h, w):
            expected[clip, :, :, y, x] = attend.answer(video[clip, :, :, y, x].T[None])[0].T
        got = call(attempt, given, attend)
        _judge_rows(attend, told)
        if b == 2:
            yield f"{told}: attend got the frames of each of its {b * h * w} pixels as one row"
        judge(got, expected, _ways_back(attend.answer(_columns(video)), video), told)
        untouched(given, video, "video")
        if b == 2:
            yield "and its answer is where the pixel was: the same as with a loop over all pixels"
    yield "other clips too, and a single frame"


# 3.3 ------------------------------------------------------------------------------------------------------------------


def mask_by_loops(alone: Tensor) -> Tensor:
    """Who may look at whom, (b, f, f), for alone (b, f)."""
    b, f = alone.shape
    mask = torch.zeros(b, f, f, dtype=torch.bool)
    for clip, i, j in np.ndindex(b, f, f):
        mask[clip, i, j] = i == j or not (alone[clip, i] or alone[clip, j])
    return mask


def _mask_mistakes(alone: Tensor) -> list[tuple[Tensor, str]]:
    looks, seen = (
        ~alone[:, :, None],
        ~alone[:, None],
    )  # whether who looks, and who is seen, belongs to the clip
    itself, right = torch.eye(alone.shape[1], dtype=torch.bool), mask_by_loops(alone)
    blind = ("A picture sees nothing at all, not even itself: all its scores are -inf, and the softmax of such a row "
             "is nan. Every frame sees itself: | torch.eye(f, dtype=torch.bool).")  # fmt: skip
    out = "Frames of the clip look at pictures: both, who looks and who is seen, have to belong to the clip."
    into = "Pictures look at the clip: both, who looks and who is seen, have to belong to the clip."
    both = "Clip and pictures see each other: `and`, not `or`. Both have to belong to the clip."
    masks = [
        (right, ""),
        (looks & seen, blind),
        (looks == seen, "Pictures see each other. They have nothing to do with one another: each is of its own clip."),
        (looks | itself, out),
        (seen | itself, into),
        (looks.expand_as(right), f"{out} {blind}"),
        (seen.expand_as(right), f"{into} And they do not see themselves."),
        (looks | seen | itself, both),
        (looks | seen, both),
        (itself.expand_as(right), "Nobody sees anybody else. Frames of the clip are to look at each other."),
        (torch.ones_like(right), "Everybody sees everybody: `alone` does not enter."),
        (right[:1].expand_as(right), "That is the first clip's mask for all clips. Each has its own row of `alone`."),
        (right & ~itself, f"No frame sees itself. {blind}"),
        (looks & seen & ~itself | itself & ~looks, "Frames of the clip do not see themselves."),
    ]  # fmt: skip
    turned = ("Inverted: True is to mean that a frame may look, as in scaled_dot_product_attention. (In torch's "
              "nn.MultiheadAttention, True hides.)")  # fmt: skip
    return masks[1:] + [(~mask, f"{turned} {say}".strip()) for mask, say in masks]


def _as_mask(got: object, alone: Tensor, told: str) -> Tensor:
    """What the student returned, as a bool tensor of the right shape."""
    expected = mask_by_loops(alone)
    b, f = alone.shape
    try:
        mine = torch.as_tensor(got)
    except (TypeError, ValueError, RuntimeError):
        mine = None
    if mine is None:
        same(got, expected, told)
    if mine.dtype != torch.bool:
        scores = mine.is_floating_point() and bool(mine.isneginf().any())
        why = ("0 and -inf are what is added to the scores. That comes later, out of the mask" if scores else
               "a mask of numbers would be added to the scores, and ~ turns 1 into -2")  # fmt: skip
        raise Wrong(
            f"{told}: you returned a {brief(mine)}. Asked for: bool, True where a frame may look; {why}."
        )
    if mine.shape == (f, f) and b > 1:
        raise Wrong(
            f"{told}: you returned one mask {(f, f)} for {b} clips. Each has its own: (b, f, f)."
        )
    if mine.shape in ((b, 1, f, f), (b, f, f, 1), (1, b, f, f)):
        raise Wrong(f"{told}: shape {tuple(mine.shape)} has an axis too many. Asked for: (b, f, f); the axis of heads "
                    "comes later.")  # fmt: skip
    if mine.shape != expected.shape:
        same(mine, expected, told)
    return mine


def _judge_mask(attempt: Callable, alone: Tensor) -> None:
    given, expected = alone.clone(), mask_by_loops(alone)
    rows = ["".join("FT"[int(one)] for one in row) for row in alone]
    told = f"alone = {', '.join(rows)} (T: a picture)"
    mine = _as_mask(call(attempt, given), alone, told)
    if not torch.equal(mine, expected):
        clip, i, j = (mine != expected).nonzero()[0].tolist()
        kinds = ["a frame of the clip", "a picture"]
        who, whom = (f"frame {k}, {kinds[int(alone[clip, k])]}," for k in (i, j))
        may = "may" if mine[clip, i, j] else "may not"
        say = next((say for wrong, say in _mask_mistakes(alone) if torch.equal(mine, wrong)), "")
        shown = f"{who} {may} look at {'itself' if i == j else whom.rstrip(',')}"
        raise Wrong(f"{told}: by your mask, in clip {clip}, {shown}. {say}".strip())
    untouched(given, alone, "alone")


def flags(*rows: str) -> Tensor:
    """ "FFT" to [False, False, True], one row for each."""
    return torch.tensor([[letter == "T" for letter in row] for row in rows])


def verify_may_look(attempt: Callable) -> Iterator[str]:
    """Two clips with their pictures in different places, then clips without pictures, pictures only, one frame."""
    _judge_mask(attempt, flags("FFFTT", "FTFFT"))
    yield "frames of a clip look at each other, pictures at themselves, wherever they stand and clip by clip"
    for rows in (("FFFF",), ("TTT", "FTF"), ("F",), ("T",)):
        _judge_mask(attempt, flags(*rows))
    yield "clips without pictures, pictures alone, a single frame"
