"""The check of exercise 3.4, a test for leakage between frames that must not see each other.

A check of a test needs networks for which the result is known: one without leakage, many with.
"""

import math
from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.exercises.lesson_03_time import flags, mask_by_loops
from course_lib.lab.checks import (
    IncorrectAnswer,
    Recorder,
    as_number,
    call_on_copies,
    describe_value,
    randn,
    require,
)
from course_lib.nn.attention import joint_training_mask

_ZERO = 1e-6  # what counts as no change


def _attention(x: Tensor, mask: Tensor) -> Tensor:
    """Temporal attention with fixed scores; every frame attends to those that the mask allows."""
    f = x.shape[2]
    weights = randn(33, f, f).to(x).masked_fill(~mask, -math.inf).softmax(dim=-1)
    return torch.einsum("nij,ncjhw->ncihw", weights, x)


def _two_layers(first: Callable, second: Callable) -> Callable:

    def network(video: Tensor, is_image: Tensor) -> Tensor:
        return _attention(_attention(video, first(is_image)).tanh(), second(is_image))

    return network


def _no_mask(is_image: Tensor) -> Tensor:
    return torch.ones_like(joint_training_mask(is_image))


def _with_key(frame: int) -> Callable[[Tensor], Tensor]:
    """The right mask, but every frame attends to one more."""
    key = torch.arange(4) == frame % 4
    return lambda is_image: joint_training_mask(is_image) | key


def _itself(is_image: Tensor) -> Tensor:
    return torch.eye(is_image.shape[1], dtype=torch.bool)


_sound = _two_layers(joint_training_mask, joint_training_mask)


def _added(change: Callable[[Tensor], Tensor]) -> Callable:
    """The network without leakage, plus something of the video to which all frames attend."""
    return lambda v, is_image: _sound(v, is_image) + _attention(change(v), _no_mask(is_image))


_LEAKY = (
    ("whose first temporal layer did not get the mask; the second did",
     _two_layers(_no_mask, joint_training_mask), ""),
    ("that normalises over all frames together, as a GroupNorm on (b, c, f, h, w) does",
     lambda video, is_image: _sound(F.group_norm(video, 1), is_image),
     "Frames that are only exchanged or flipped leave mean and variance as they are: put in new "
     "numbers."),
    ("in which the video sees the images",
     _two_layers(joint_training_mask, lambda a: ~a[:, :, None] | _itself(a)), ""),
    ("in which the images see the video",
     _two_layers(joint_training_mask, lambda a: ~a[:, None] | _itself(a)), ""),
    ("in which the images see each other",
     _two_layers(lambda a: a[:, :, None] == a[:, None], joint_training_mask), ""),
    ("in which every frame sees the very last frame",
     _two_layers(_with_key(-1), joint_training_mask), ""),
    ("in which every frame sees the very first frame",
     _two_layers(_with_key(0), joint_training_mask), ""),
    ("that subtracts each frame's mean before all see all",
     _added(lambda video: video - video.mean(dim=(3, 4), keepdim=True)),
     "A constant added to a frame is subtracted again: change every pixel by another number."),
    ("that rounds, as a codebook does, before all see all",
     _added(torch.round),
     "A change smaller than its steps is lost: let it be as large as the video's own numbers, or "
     "larger."),
    ("that darkens all frames by the mean square of all numbers",
     lambda video, is_image: _sound(video, is_image) - video.square().mean((1, 2, 3, 4), True),
     "A flipped sign, or exchanged pixels, leave the squares' mean as it is: put in new numbers."),
)  # fmt: skip


def _video() -> Tensor:
    """A video (1, 2, 4, 2, 3) that rounds to the same after a change of less than 0.2."""
    x = randn(34, 1, 2, 4, 2, 3)
    return x.sign() * (0.2 + 0.6 * (x.abs() > 0.6) + 0.05 * randn(35, *x.shape).tanh())


class Network(Recorder):
    """A network under test, which keeps the videos that it was given.

    Attributes:
        video: the original video, (1, c, f, h, w).
        is_image: its mask, (1, f).
    """

    def __init__(self, network: Callable, is_image: Tensor):
        super().__init__("network", network, self._validate)
        self.video, self.is_image = _video(), is_image

    def _validate(self, video: object = None, is_image: object = None) -> None:
        text, shape = "network takes (video, is_image)", self.video.shape
        require(
            isinstance(video, Tensor) and video.ndim == 5 and video.shape[1:] == shape[1:],
            f"{text}, the video {tuple(shape)}: change the numbers of a frame, but leave its "
            f"position. It got {describe_value(video)}.",
        )
        rows = (1, len(video))
        require(
            isinstance(is_image, Tensor) and is_image.ndim == 2 and len(is_image) in rows,
            f"{text}, and is_image is bool (1, f), as you were given it. It got "
            f"{describe_value(is_image)}.",
        )
        require(
            torch.equal(is_image, self.is_image.expand(len(is_image), -1)),
            f"{text}, and `is_image` as you were given it. With another one, other frames may see "
            "each other.",
        )

    def changes(self, video: Tensor) -> Tensor:
        """How far each output frame is from that of the original video, (f,)."""
        out, original = (self.function(x, self.is_image) for x in (video, self.video))
        return (out - original).abs().amax(dim=(0, 1, 3, 4))

    def trials(self) -> list[tuple[list[int], Tensor]]:
        """For each changed video: the frames that were changed, and the changes of the output."""
        videos = [video for args in self.calls for video in args[0].split(1)]
        masks = [(v != self.video.to(v)).any(dim=4).any(dim=3)[0].any(dim=0) for v in videos]
        pairs = zip(masks, videos, strict=True)
        return [(m.nonzero()[:, 0].tolist(), self.changes(v.double())) for m, v in pairs if m.any()]

    def leaking_frames(self) -> list[int]:
        """The input frames from which it leaks."""
        hidden, frames = ~mask_by_loops(self.is_image)[0], []
        for frame in range(self.video.shape[2]):
            video = self.video.clone()
            video[:, :, frame] += 3 * randn(36, *video.shape)[:, :, frame]
            if (self.changes(video) * hidden[:, frame]).max() > _ZERO:
                frames.append(frame)
        return frames


def _ask(attempt: Callable, network: Network) -> float:
    """The number that the student's test returns for a network."""
    result = as_number(
        call_on_copies(attempt, network=network, video=network.video, is_image=network.is_image)
    )
    require(
        isinstance(result, Real) and not isinstance(result, bool),
        f"Expected one number, the largest change. You returned {describe_value(result)}",
    )
    network.require_call()
    require(
        math.isfinite(result),
        f"You returned {result}. A weight of 0 times nan or infinity is nan, so that even a "
        "network without leakage passes it on: change frames by finite numbers.",
    )
    require(
        result >= 0,
        f"You returned {result:.4g}. Changes go both ways: the largest absolute one, .abs(), is 0 "
        "or more.",
    )
    return float(result)


def _frames(frames: list[int]) -> str:
    return f"frame{'s' * (len(frames) > 1)} {' and '.join(map(str, frames))}"


def _explain_false_alarm(network: Network, result: float) -> str:
    trials = network.trials()
    single = [(frames[0], changes) for frames, changes in trials if len(frames) == 1]
    own = [changes[frame].item() for frame, changes in single]
    others = [changes[torch.arange(4) != frame].max().item() for frame, changes in single]
    inputs = [(args[0] - network.video).abs().max().item() for args in network.calls]
    several = next((frames for frames, _ in trials if len(frames) > 1), [])

    def is_among(values: list[float]) -> bool:
        return any(math.isclose(result, value, rel_tol=1e-4) for value in values)

    reasons = [
        (is_among(own), "That is the change of the very frame that you changed. It may see itself: "
                        "leave it out."),
        (is_among(others), "You count frames of the video, which may see each other. Only those "
                           "count from which the changed frame is hidden."),
        (is_among(inputs), "That is the change that you made in the input. Compare outputs."),
        (several, f"You changed {_frames(several)} at once, and some frames may see one of them: "
                  "one at a time."),
        (True, "No output frame changed that must not see the changed one. Compare frame by frame, "
               "with the mask of 3.3."),
    ]  # fmt: skip
    return next(message for holds, message in reasons if holds)


def _explain_miss(network: Network, advice: str) -> str:
    trials, hidden = network.trials(), ~mask_by_loops(network.is_image)[0]
    for frames, changes in trials:
        forbidden = changes * hidden[:, frames].all(dim=1)  # of frames that must see none of them
        if forbidden.max() > _ZERO:
            return (
                f"When you changed {_frames(frames)}, output frame {int(forbidden.argmax())} "
                f"changed, by up to {forbidden.max():.2g}, and must not have: your number does not "
                "contain it. Look at every output frame from which the changed one is hidden, "
                "pixel by pixel, at the absolute change."
            )
    several = next((frames for frames, _ in trials if len(frames) > 1), [])
    unchanged = [i for i in network.leaking_frames() if [i] not in [frames for frames, _ in trials]]
    size = (
        "Change every pixel, by numbers as large as the video's own or larger: a tiny change has a "
        "tiny effect."
    )
    reasons = [
        (several, f"You changed {_frames(several)} at once, and no frame is hidden from all of "
                  "them: one at a time."),
        (unchanged, f"You never changed {_frames(unchanged)}. Each frame has its turn, those of "
                    "the video and images."),
        (True, "You changed each frame, but in a way that this network does not notice. "
               f"{advice or size}"),
    ]  # fmt: skip
    return next(message for holds, message in reasons if holds)


def verify_temporal_leakage(attempt: Callable) -> Iterator[str]:
    """Checks a network without leakage and many with it; then other masks, and no images."""
    for rows in ("FFTT", "TFTF"):
        case = f"is_image = {rows} (T: an image)"
        network = Network(_sound, flags(rows))
        result = _ask(attempt, network)
        require(
            result <= _ZERO,
            f"{case}: you returned {result:.4g} for a network without leakage. "
            f"{_explain_false_alarm(network, result)}",
        )
        require(
            network.trials(),
            f"{case}: network never saw a video other than the one that you were given. Change "
            "frames.",
        )
        yield f"{case}: 0 for a network without leakage"
        for name, function, advice in _LEAKY:
            network = Network(function, flags(rows))
            result = _ask(attempt, network)
            if result <= _ZERO:
                raise IncorrectAnswer(
                    f"{case}: you returned {result:.2g} for a network {name}. "
                    f"{_explain_miss(network, advice)}"
                )
        yield f"{case}: {len(_LEAKY)} networks that leak, each in its own way, are all detected"
    try:
        result = _ask(attempt, Network(_sound, flags("FFFF")))
    except (RuntimeError, ValueError, IndexError) as error:
        raise IncorrectAnswer(
            "A video without images: nothing is hidden, so the result is 0. Yours stopped with "
            f"{type(error).__name__}, {error}. No numbers have no maximum: start from 0.0."
        ) from error
    require(
        result <= _ZERO,
        f"A video without images: nothing is hidden, and you returned {result:.4g}.",
    )
    yield "0 for a video without images, in which nothing is hidden"
