"""The check of exercise 16.6, a test whether a net depends on the order of a video's frames.

A check of a test needs nets for which the result is known: one invariant, many that are not.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_lib.lab.checks import (
    Recorder,
    as_number,
    call_on_copies,
    describe_value,
    randn,
    require,
)


def _marked_video() -> Tensor:
    """A video (2, 3, 8, 4, 4) that drifts; the first pixel of frame t is t / 8, to identify it."""
    drift = torch.linspace(-0.6, 0.6, 8)[:, None, None]
    video = randn(50, 2, 3, 1, 4, 4) * 0.2 + drift + randn(51, 2, 3, 8, 4, 4) * 0.05
    video = video.clamp(-1, 1).float()
    video[..., 0, 0] = torch.arange(8) / 8
    return video


def _projection() -> Tensor:
    """48 values to 256 features, half of which nearly cancel in the first clip, as usual."""
    weight = randn(52, 48, 256) * 100
    mean = _marked_video()[0].double().mean(dim=1).flatten()
    weight[:, 128:] -= (1 - 1e-5) * mean.outer(mean @ weight[:, 128:]) / mean.square().sum()
    return weight.float()


_PROJECTION = _projection()


def _mean_features(video: Tensor) -> Tensor:
    frames = video.transpose(1, 2).flatten(2)  # (b, f, 48)
    return (frames @ _PROJECTION).mean(dim=1)


def _mean_step(video: Tensor) -> Tensor:
    return video.diff(dim=2).abs().mean(dim=(2, 3, 4))


_DEPENDENT = (
    *((f"features of only frame {k}", lambda video, k=k: video[:, :, k].flatten(1))
      for k in range(8)),
    ("the mean step from frame to frame", _mean_step),
    ("the same steps in tiny units, features of about 1e-7",
     lambda video: 1e-6 * _mean_step(video)),
    ("steps round the ring, from the last frame to the first",
     lambda video: (video - video.roll(1, dims=2)).abs().mean(dim=(2, 3, 4))),
    ("a list of each frame's brightness", lambda video: video.mean(dim=(1, 3, 4))),
    ("a mean over frames, larger by a few per cent where steps are long",
     lambda video: _mean_features(video) * (1 + 0.1 * _mean_step(video).mean(dim=1, keepdim=True))),
)  # fmt: skip


class Net(Recorder):
    """A net under test, which identifies the frames of the videos that it is given."""

    def __init__(self, net: Callable):
        super().__init__("net", net, self._validate)
        self.video = _marked_video()

    def _validate(self, video: object) -> None:
        require(
            isinstance(video, Tensor) and video.shape[1:] == self.video.shape[1:],
            f"net takes videos (b, c, f, h, w), this one {tuple(self.video.shape)}; it got "
            f"{describe_value(video)}",
        )

    def rows(self) -> list[list[int]]:
        """The order of frames in every clip that it was given."""
        self.require_call()
        rows = (self.first_args()[:, 0, :, 0, 0] * 8).round().int().tolist()
        require(
            all(sorted(row) == list(range(8)) for row in rows),
            "net was given frames that the video does not have: only change their order, which is "
            "axis 2.",
        )
        return rows

    def orders(self) -> list[str]:
        """The orders that it was given, such as "76543210", without the original one."""
        return sorted({"".join(map(str, row)) for row in self.rows()} - {"01234567"})

    def largest_change(self) -> float:
        """Largest change of a feature by those orders, relative to the largest feature."""
        clips = self.first_args().float()
        pairs = zip(clips, self.rows(), strict=True)
        ordered = torch.stack([clip[:, torch.tensor(row).argsort()] for clip, row in pairs])
        features = self.function(ordered)
        return ((self.function(clips) - features).abs().max() / features.abs().max()).item()


def _ask(attempt: Callable, net: Net) -> bool:
    result = as_number(call_on_copies(attempt, net=net, video=net.video))
    is_bool = type(result).__name__ in ("bool", "bool_")  # numpy's too
    require(is_bool, f"expected True or False, got {describe_value(result)}")
    return bool(result)


def verify_is_order_invariant(attempt: Callable) -> Iterator[str]:
    """Checks one net that is invariant, then many that are not."""
    net = Net(_mean_features)
    is_invariant, orders = _ask(attempt, net), net.orders()
    require(
        orders,
        "net was never given the frames in another order. They are axis 2 of (b, c, f, h, w).",
    )
    require(
        is_invariant,
        "You returned False for a mean over frames, which does not depend on their order. Its "
        f"features did change, by {net.largest_change():.0e} of the largest: a sum in another "
        "order rounds otherwise. Allow for that, and measure it against the largest feature "
        "(some features are near 0, so a share of each will not do).",
    )
    yield "a mean over frames does not depend on their order, up to rounding"
    for name, function in _DEPENDENT:
        net = Net(function)
        if not _ask(attempt, net):
            continue
        tried = net.orders()
        listed = ", ".join(tried[:3]) + (" …" if len(tried) > 3 else "")
        text = f"You returned True for a net that returns {name}. "
        change = net.largest_change()
        require(
            change <= 1e-3,
            f"{text}In the orders that you tried ({listed}) a feature changed by {change:.1%} of "
            "the largest, and your comparison missed it. Compare feature by feature, with a "
            "tolerance that is a small share of the largest.",
        )
        require(
            False,
            f"{text}You tried the order {listed} of frames 01234567, and that does not change its "
            "features. Others would: try several random ones.",
        )
    yield f"{len(_DEPENDENT)} nets that depend on the order in some way are all detected"
    require(
        len(orders) > 1,
        "You tried one other order only. There are nets that do not react to just that one: try "
        "several.",
    )
    yield "several orders are tried"
