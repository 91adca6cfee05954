"""Lesson 16's check of 16.6: a test that tells whether a net minds the order of a video's frames.

A check of a test needs nets of which it is known what the test should say: one blind net and many that see.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import normal


def _marked_clip() -> Tensor:
    """A clip (2, 3, 8, 4, 4) that drifts; the first pixel of frame t is t / 8, to know the frame by."""
    drift = torch.linspace(-0.6, 0.6, 8)[:, None, None]
    video = (
        (normal(50, 2, 3, 1, 4, 4) * 0.2 + drift + normal(51, 2, 3, 8, 4, 4) * 0.05)
        .clamp(-1, 1)
        .float()
    )
    video[..., 0, 0] = torch.arange(8) / 8
    return video


def _projection() -> Tensor:
    """48 pixels and channels to 256 features, half of which nearly cancel in the first clip, as some always do."""
    weight = normal(52, 48, 256) * 100
    mean = _marked_clip()[0].double().mean(dim=1).flatten()
    weight[:, 128:] -= (1 - 1e-5) * mean.outer(mean @ weight[:, 128:]) / mean.square().sum()
    return weight.float()


_PROJECTION = _projection()


def _pictures(video: Tensor) -> Tensor:
    frames = video.transpose(1, 2).flatten(2)  # (b, f, 48)
    return (frames @ _PROJECTION).mean(dim=1)


def _steps(video: Tensor) -> Tensor:
    return video.diff(dim=2).abs().mean(dim=(2, 3, 4))


_SEEING = (
    *((f"features of frame {k} alone", lambda video, k=k: video[:, :, k].flatten(1)) for k in range(8)),
    ("the mean step from frame to frame", _steps),
    ("the same steps in tiny units, features of about 1e-7", lambda video: 1e-6 * _steps(video)),
    ("steps round the ring, the last frame beside the first",
     lambda video: (video - video.roll(1, dims=2)).abs().mean(dim=(2, 3, 4))),
    ("a list of each frame's brightness", lambda video: video.mean(dim=(1, 3, 4))),
    ("a mean over frames, larger by a few per cent where steps are long",
     lambda video: _pictures(video) * (1 + 0.1 * _steps(video).mean(dim=1, keepdim=True))),
)  # fmt: skip


@dataclass
class _Spy:
    """A net that remembers the videos that it was given."""

    net: Callable
    video: Tensor
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, video: Tensor) -> Tensor:
        if not isinstance(video, Tensor) or video.shape[1:] != self.video.shape[1:]:
            raise Wrong(
                f"net takes videos (b, c, f, h, w), here {tuple(self.video.shape)}; it got {brief(video)}"
            )
        self.given.append(video)
        return self.net(video)

    def __repr__(self) -> str:
        return "a net"

    def rows(self) -> list[list[int]]:
        """Of every clip that it saw, the order of frames; raises Wrong where they are no frames of the video."""
        if not self.given:
            raise Wrong("net was never called: nothing can be known about it without trying.")
        rows = (torch.cat(self.given)[:, 0, :, 0, 0] * 8).round().int().tolist()
        if any(sorted(row) != list(range(8)) for row in rows):
            raise Wrong(
                "net was given frames that the video has not: only change their order, which is axis 2."
            )
        return rows

    def orders(self) -> list[tuple[int, ...]]:
        """The orders that it saw, other than the first one."""
        return sorted({tuple(row) for row in self.rows()} - {tuple(range(8))})

    def change(self) -> float:
        """Largest change of a feature by those orders, as a share of the largest feature."""
        clips = torch.cat(self.given)
        sorted_clips = [
            clip[:, torch.tensor(row).argsort()]
            for clip, row in zip(clips, self.rows(), strict=True)
        ]
        features = self.net(torch.stack(sorted_clips))
        return ((self.net(clips) - features).abs().max() / features.abs().max()).item()


def verify_order_blind(attempt: Callable) -> Iterator[str]:
    """One net that is blind to order, many that are not, each in its own way; all of them remember what they saw."""
    blind = _Spy(_pictures, _marked_clip())
    answer, orders = _answer(attempt, blind), blind.orders()
    if not orders:
        raise Wrong(
            "net was never given the frames in another order. They are axis 2 of (b, c, f, h, w)."
        )
    if not answer:
        raise Wrong(
            "You returned False for a mean over frames, which knows no order. Its features did change, by "
            f"{blind.change():.0e} of the largest: a sum in another order rounds otherwise. Allow for that, and "
            "measure it against the largest feature (some features are near 0, so a share of each will not do)."
        )
    yield "a mean over frames is blind to their order, up to rounding"
    for name, net in _SEEING:
        spy = _Spy(net, _marked_clip())
        if not _answer(attempt, spy):
            continue
        tried = spy.orders()
        shown = ", ".join("".join(map(str, order)) for order in tried[:3]) + (
            " …" if len(tried) > 3 else ""
        )
        if spy.change() > 1e-3:
            raise Wrong(
                f"You returned True for a net whose answer is {name}. In the orders that you tried ({shown}) a feature "
                f"changed by {spy.change():.1%} of the largest, and your comparison missed it. Compare feature by "
                "feature, with a tolerance that is a small share of the largest."
            )
        raise Wrong(
            f"You returned True for a net whose answer is {name}. You tried the order {shown} of frames 01234567, and "
            "that does not change its answer. Others would: try several, drawn by chance."
        )
    yield f"{len(_SEEING)} nets that see the order in some way are all found out"
    if len(orders) < 2:
        raise Wrong(
            "You tried one other order only. There are nets that do not mind just that one: try several."
        )
    yield "several orders are tried"


def _answer(attempt: Callable, spy: _Spy) -> bool:
    got = call(attempt, spy, spy.video.clone())
    if isinstance(got, Tensor | np.ndarray) and got.shape == ():
        got = got.item()
    if not isinstance(got, bool | np.bool_):
        raise Wrong(f"expected True or False, got {brief(got)}")
    return bool(got)
