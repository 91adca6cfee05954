"""Lesson 03's check of 3.4, a test that tells whether a network lets frames see what they must not.

A check of a test needs networks of which it is known what the test should say: an honest one, and many that leak.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import call
from course_lib.exercises.lesson_03_time import flags, mask_by_loops, untouched
from course_lib.lab.checks.mistakes import normal
from course_lib.nn.attention import apart

_ZERO = 1e-6  # what counts as no change


def _look(x: Tensor, allowed: Tensor) -> Tensor:
    """A layer of attention over time: fixed scores, so that every frame shares itself among those that it may see."""
    f = x.shape[2]
    weights = normal(33, f, f).to(x).masked_fill(~allowed, -math.inf).softmax(dim=-1)
    return torch.einsum("nij,ncjhw->ncihw", weights, x)


def _all(alone: Tensor) -> Tensor:
    return torch.ones_like(apart(alone))


def _from(frame: int) -> Callable[[Tensor], Tensor]:
    """The right mask, but everybody sees one frame."""

    def mask(alone: Tensor) -> Tensor:
        allowed = apart(alone)
        allowed[:, :, frame] = True
        return allowed

    return mask


def _itself(alone: Tensor) -> Tensor:
    return torch.eye(alone.shape[1], dtype=torch.bool)


def _honest(clip: Tensor, alone: Tensor) -> Tensor:
    return _look(_look(clip, apart(alone)).tanh(), apart(alone))


def _masked(first: Callable, second: Callable) -> Callable:
    """Two layers over time with masks of their own."""
    return lambda clip, alone: _look(_look(clip, first(alone)).tanh(), second(alone))


_LEAKY = (
    ("whose first layer over time did not get the mask; the second did", _masked(_all, apart), ""),
    ("that normalises over all frames together, as a GroupNorm on (b, c, f, h, w) does",
     lambda clip, alone: _honest(F.group_norm(clip, 1), alone),
     "Frames that only trade places, or turn, leave mean and variance as they are: put in new numbers."),
    ("in which the clip sees the pictures", _masked(apart, lambda a: ~a[:, :, None] | _itself(a)), ""),
    ("in which the pictures see the clip", _masked(apart, lambda a: ~a[:, None] | _itself(a)), ""),
    ("in which the pictures see each other", _masked(lambda a: a[:, :, None] == a[:, None], apart), ""),
    ("in which everybody sees the very last frame", _masked(_from(-1), apart), ""),
    ("in which everybody sees the very first frame", _masked(_from(0), apart), ""),
    ("that subtracts each frame's mean before it lets all see all",
     lambda clip, alone: _honest(clip, alone) + _look(clip - clip.mean(dim=(3, 4), keepdim=True), _all(alone)),
     "A constant added to a frame is subtracted again: change every pixel by another number."),
    ("that rounds, as a codebook does, before it lets all see all",
     lambda clip, alone: _honest(clip, alone) + _look(clip.round(), _all(alone)),
     "A change smaller than its steps is lost: let it be as large as the clip's own numbers, or larger."),
    ("that darkens all frames by the mean square of all numbers",
     lambda clip, alone: _honest(clip, alone) - clip.square().mean(dim=(1, 2, 3, 4), keepdim=True),
     "A flipped sign, or pixels that trade places, leave the squares' mean as it is: put in new numbers."),
)  # fmt: skip


def _clip() -> Tensor:
    """A clip (1, 2, 4, 2, 3) whose numbers stay the same when rounded after a change of less than 0.2."""
    numbers = normal(34, 1, 2, 4, 2, 3)
    return numbers.sign() * (
        0.2 + 0.6 * (numbers.abs() > 0.6) + 0.05 * normal(35, *numbers.shape).tanh()
    )


@dataclass
class _Network:
    """A network that remembers the clips that it was given."""

    net: Callable
    clip: Tensor
    alone: Tensor
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, clip: object = None, alone: object = None) -> Tensor:
        told = "network takes (clip, alone)"
        if not isinstance(clip, Tensor) or clip.ndim != 5 or clip.shape[1:] != self.clip.shape[1:]:
            raise Wrong(f"{told}, the clip {tuple(self.clip.shape)}: change the numbers of a frame, but leave its "
                        f"place. It got {brief(clip)}.")  # fmt: skip
        rows = (1, len(clip))
        if not isinstance(alone, Tensor) or alone.ndim != 2 or len(alone) not in rows:
            raise Wrong(
                f"{told}, and alone is bool (1, f), as you were given it. It got {brief(alone)}."
            )
        if alone.dtype != torch.bool or not torch.equal(alone, self.alone.expand(len(alone), -1)):
            raise Wrong(
                f"{told}, and `alone` as you were given it. With another one, other frames may see each other."
            )
        self.given.append(clip.detach().clone())
        return self.net(clip, alone)

    def __repr__(self) -> str:
        return "a network"

    def changes(self, clip: Tensor) -> Tensor:
        """How far each output frame is from that of the clip as it was, (f,)."""
        return (
            (self.net(clip, self.alone) - self.net(self.clip, self.alone))
            .abs()
            .amax(dim=(0, 1, 3, 4))
        )

    def tried(self) -> list[tuple[list[int], Tensor]]:
        """The clips that it was given: which frames were changed, if any, and the changes of the output frames."""
        clips = [clip for given in self.given for clip in given.split(1)]
        frames = [
            (clip != self.clip.to(clip)).any(dim=4).any(dim=3)[0].any(dim=0) for clip in clips
        ]
        found = [
            (changed.nonzero()[:, 0].tolist(), clip)
            for changed, clip in zip(frames, clips, strict=True)
        ]
        return [(changed, self.changes(clip.double())) for changed, clip in found if changed]

    def sources(self) -> list[int]:
        """The frames from which it leaks."""
        found = []
        for frame in range(self.clip.shape[2]):
            clip = self.clip.clone()
            clip[:, :, frame] += 3 * normal(36, *clip.shape)[:, :, frame]
            if self.changes(clip)[~mask_by_loops(self.alone)[0, :, frame]].max() > _ZERO:
                found.append(frame)
        return found


def _answer(attempt: Callable, network: _Network) -> float:
    """The student's number for a network, and nothing but a number."""
    clip, alone = network.clip.clone(), network.alone.clone()
    got = call(attempt, network, clip, alone)
    untouched(clip, network.clip, "clip")
    untouched(alone, network.alone, "alone")
    if isinstance(got, Tensor | np.ndarray) and got.shape in ((), (1,)):
        got = got.item()
    if isinstance(got, bool | np.bool_) or not isinstance(got, Real):
        what = "None: is a `return` missing?" if got is None else brief(got)
        raise Wrong(f"Asked for: one number, the largest change. You returned {what}")
    if not network.given:
        raise Wrong("network was never called: nothing can be known about it without trying.")
    if math.isnan(got) or math.isinf(got):
        raise Wrong(f"You returned {got}. A weight of 0 times nan or infinity is nan, so that even an honest network "
                    "hands it on: change frames by finite numbers.")  # fmt: skip
    if got < 0:
        raise Wrong(
            f"You returned {got:.4g}. Changes go both ways: the largest absolute one, .abs(), is 0 or more."
        )
    return float(got)


def _listed(frames: list[int]) -> str:
    first, last = ", ".join(map(str, frames[:-1])), frames[-1]
    return f"frames {first} and {last}" if first else f"frame {last}"


def _accused(network: _Network, got: float) -> str:
    """Why an honest network was given a number other than 0."""
    tried = network.tried()
    single = [(frames[0], changes) for frames, changes in tried if len(frames) == 1]
    own = [changes[frame].item() for frame, changes in single]
    others = [
        changes[torch.arange(len(changes)) != frame].max().item() for frame, changes in single
    ]
    inputs = [(clip - network.clip).abs().max().item() for clip in network.given]
    if any(math.isclose(got, value, rel_tol=1e-4) for value in own):
        return "That is the change of the very frame that you changed. It may see itself: leave it out."
    if any(math.isclose(got, value, rel_tol=1e-4) for value in others):
        return "You count frames of the clip, which may see each other. Only those count that must not see the change."
    if any(math.isclose(got, value, rel_tol=1e-4) for value in inputs):
        return "That is the change that you made in the input. Compare outputs."
    several = [frames for frames, _ in tried if len(frames) > 1]
    if several:
        return f"You changed {_listed(several[0])} at once, and some frames may see one of them: one at a time."
    return "No output frame changed that must not see the changed one. Compare frame by frame, with the mask of 3.3."


def _missed(network: _Network, why: str) -> str:
    """Why a leak was not found: not counted, never provoked, or provoked in a way that it does not notice."""
    tried, hidden = network.tried(), ~mask_by_loops(network.alone)[0]
    for frames, changes in tried:
        forbidden = hidden[:, frames].all(
            dim=1
        )  # output frames that must see none of the changed ones
        if (changes * forbidden).max() > _ZERO:
            frame = int((changes * forbidden).argmax())
            return (f"When you changed {_listed(frames)}, output frame {frame} changed, by up to {changes[frame]:.2g}, "
                    "and must not have: your number does not contain it. Look at every output frame that must not see "
                    "the changed one, pixel by pixel, at the absolute change.")  # fmt: skip
    several = [frames for frames, _ in tried if len(frames) > 1]
    if several:
        return f"You changed {_listed(several[0])} at once, and no frame is hidden from all of them: one at a time."
    unchanged = [
        frame for frame in network.sources() if [frame] not in [frames for frames, _ in tried]
    ]
    if unchanged:
        return f"You never changed {_listed(unchanged)}. Each frame has its turn, those of the clip and pictures."
    why = (
        why
        or "Change every pixel, by numbers as large as the clip's own or larger: a tiny change has a tiny effect."
    )
    return f"You changed each frame, but in a way that this network does not notice. {why}"


def _without_pictures(attempt: Callable, network: _Network) -> float:
    """The student's number where nothing is hidden; the error of an empty maximum in plain words."""
    try:
        return _answer(attempt, network)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Wrong(
            "A clip without pictures: nothing is hidden, so the answer is 0. Yours stopped with "
            f"{type(error).__name__}, {error}. No numbers have no maximum: start from 0.0."
        ) from error


def verify_leak(attempt: Callable) -> Iterator[str]:
    """An honest network, then many that leak, each in its own way; the pictures last, then elsewhere, then none."""
    for rows in ("FFTT", "TFTF", "FFFF"):
        alone, told = flags(rows), f"alone = {rows} (T: a picture)"
        network = _Network(_honest, _clip(), alone)
        got = _answer(attempt, network) if alone.any() else _without_pictures(attempt, network)
        if got > _ZERO:
            raise Wrong(
                f"{told}: you returned {got:.4g} for an honest network. {_accused(network, got)}"
            )
        if rows == "FFFF":
            continue
        if not network.tried():
            raise Wrong(
                f"{told}: network never saw a clip other than the one that you were given. Change frames."
            )
        if rows == "FFTT":
            yield "0 for an honest network"
        for name, net, why in _LEAKY:
            network = _Network(net, _clip(), alone)
            got = _answer(attempt, network)
            if got <= _ZERO:
                raise Wrong(
                    f"{told}: you returned {got:.2g} for a network {name}. {_missed(network, why)}"
                )
        if rows == "FFTT":
            yield f"{len(_LEAKY)} networks that leak, each in its own way, are all found out"
    yield "also where the pictures stand elsewhere; and 0 for a clip without pictures, in which nothing is hidden"
