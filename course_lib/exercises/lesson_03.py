"""Exercises of lesson 03, Video Diffusion Models: their checks, hints and reference solutions.

The oracles are loops and closed forms. A mistake is known by the numbers it leads to on the check's own input. The
checks of 3.2 and 3.3 are in `lesson_03_time.py`, that of 3.4 in `lesson_03_leak.py`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import Exercise, call
from course_lib.exercises.lesson_03_leak import verify_leak
from course_lib.exercises.lesson_03_time import untouched, verify_may_look, verify_over_time
from course_lib.lab.checks.mistakes import CLOSE, as_tensor, judge, normal

# 3.1 ------------------------------------------------------------------------------------------------------------------


def each_frame(embedding, f):
    """To each of the f frames of every clip the clip's own vector: (b, d) to (b·f, d), clip after clip."""
    return embedding.repeat_interleave(f, dim=0)


def _owners(rows: Tensor, embedding: Tensor) -> str:
    """Whose vector each row is, by the clip's number; ? for nobody's."""
    distance = (rows[:, None] - embedding).abs().amax(dim=2)
    return "".join(str(int(to.argmin())) if to.min() < CLOSE else "?" for to in distance)


def _order_message(found: str, b: int, f: int) -> str:
    clips = "".join(map(str, range(b)))
    known = {
        clips
        * f: "That is `repeat`, which tiles: 0 1 0 1. The shape is right, so nothing complains, and clips get "
        "each other's timesteps and texts. repeat_interleave puts equal ones side by side: 0 0 1 1.",
        "0"
        * b
        * f: "Every frame got the first clip's vector, which is right only where there is one clip.",
        clips[-1] * b * f: "Every frame got the last clip's vector.",
        "".join(clip * f for clip in reversed(clips)): "The clips run backwards.",
    }
    return known.get(found, "First all frames of clip 0, then all of clip 1.")


def _shape_mistakes(e: Tensor, f: int) -> list[tuple[Tensor, str]]:
    """What has another shape than (b·f, d), or numbers that are no vector's."""
    b, longer = len(e), "You repeated along axis 1, so every vector grew longer. Clips are axis 0."
    within = "You repeated the numbers within each vector, along axis 1, and cut the result into rows. Repeat whole rows."
    return [
        (e[:, None].expand(-1, f, -1), "That is (b, f, d): the right vectors, with an axis of their own for the "
         "frames. Here the frames are in the batch: .flatten(0, 1)."),
        (e.expand(f, -1, -1), "That is (f, b, d), with the frames outside. Here they are in the batch, clip after "
         "clip: (b·f, d)."),
        (e.repeat(1, f), longer),
        (e.repeat_interleave(f, dim=1), longer),
        (e.repeat_interleave(f), "Without dim, repeat_interleave flattens the table first: dim=0."),
        (e, "That is still one vector for each clip: f does not enter."),
        (e.repeat_interleave(b, dim=0), "You repeat b times, the number of clips. A clip has f frames."),
        (e.repeat(b, 1), "You repeat b times, the number of clips. A clip has f frames."),
        (e.repeat_interleave(f, dim=1).reshape(b * f, -1), within),
        (e.repeat_interleave(f).reshape(f, -1).T.reshape(b * f, -1), within),
        (e.mean(0).expand(b * f, -1), "That is the mean over the clips, for everybody."),
    ]  # fmt: skip


def _verify_each_frame(attempt):
    for b, f in ((2, 3), (3, 5), (1, 4), (4, 1)):
        embedding = normal(10 + b, b, 6)
        given, expected = (
            embedding.clone(),
            torch.stack([row for row in embedding for _ in range(f)]),
        )
        got = call(attempt, given, f)
        mine, told = as_tensor(got), f"{b} clip{'s' * (b > 1)} of {f} frame{'s' * (f > 1)}"
        if isinstance(mine, Tensor) and mine.shape == expected.shape:
            found, right = (_owners(rows, embedding) for rows in (mine, expected))
            if found != right and "?" not in found:
                row = next(k for k in range(b * f) if found[k] != right[k])
                raise Wrong(
                    f"{told}: whose vector, row by row: {found}, expected {right}. Row {row} is frame {row % f} of "
                    f"clip {row // f}, and it got the vector of clip {found[row]}. {_order_message(found, b, f)}"
                )
        judge(got, expected, _shape_mistakes(embedding, f), told)
        untouched(given, embedding, "embedding")
        if (b, f) == (3, 5):
            yield "2 clips of 3 frames, 3 of 5: every frame has the vector of its own clip"
    yield "also one clip alone, and clips of a single frame"


# 3.2 ------------------------------------------------------------------------------------------------------------------


def over_time(video, attend):
    """Every pixel's frames as one row of `attend`, (b·h·w, f, c), and its answer back in place, (b, c, f, h, w)."""
    b, c, f, h, w = video.shape
    tokens = video.permute(0, 3, 4, 2, 1).reshape(b * h * w, f, c)
    return attend(tokens).reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2)


# 3.3 ------------------------------------------------------------------------------------------------------------------


def may_look(alone):
    """Who may look at whom, (b, f, f): frames of the clip at each other, a picture at itself. alone: (b, f)."""
    clip = ~alone
    together = clip[:, :, None] & clip[:, None, :]  # both belong to the clip
    itself = torch.eye(alone.shape[1], dtype=torch.bool, device=alone.device)
    return together | itself


# 3.4 ------------------------------------------------------------------------------------------------------------------


def leak(network, clip, alone):
    """The largest change of any output frame by an input frame that it must not see; clip (1, c, f, h, w)."""
    before = network(clip, alone)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)).to(clip)
    worst = 0.0
    for frame in range(clip.shape[2]):
        changed = clip.clone()
        changed[:, :, frame] += 3 * noise[:, :, frame]  # strong, and different in every pixel
        change = (
            (network(changed, alone) - before).abs().amax(dim=(0, 1, 3, 4))
        )  # of each output frame
        hidden = alone[0] | alone[0, frame]  # if either is a picture, they must not see each other
        hidden[frame] = False  # but each frame sees itself
        worst = max(worst, (change * hidden).max().item())
    return worst


# 3.5 ------------------------------------------------------------------------------------------------------------------


def guided_estimate(denoise, x, known, mask, signal, weight):
    """The estimate of x0: known frames as they are known, the others moved until the estimate agrees with them.

    Ho et al. 2022, equation 7. mask: (f,), which frames are known.
    """
    with torch.enable_grad():  # samplers record nothing
        x = x.detach().requires_grad_()
        x0 = denoise(x)
        error = (known - x0)[:, :, mask].square().sum()
        (gradient,) = torch.autograd.grad(error, x)
    moved = x0.detach() - weight * signal / 2 * gradient
    return torch.where(mask[:, None, None], known, moved)


@dataclass
class _Denoiser:
    """A denoiser that mixes frames, with a gradient known in closed form; remembers whether autograd recorded it.

    gain: (f, f), from frame to frame. bent: whether a tanh goes before, so that the gradient depends on x.
    """

    gain: Tensor
    bent: bool
    shape: torch.Size
    recorded: list[bool] = field(default_factory=list)  # of each call

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.shape != self.shape:
            raise Wrong(f"denoise takes the whole of x, {tuple(self.shape)}; it got {brief(x)}.")
        self.recorded.append(torch.is_grad_enabled())
        return torch.einsum("fg,bcghw->bcfhw", self.gain.to(x), x.tanh() if self.bent else x)

    def __repr__(self) -> str:
        return "a denoiser"

    def back(self, x: Tensor, change: Tensor) -> Tensor:
        """`change` of the estimate, through the transposed Jacobian at x."""
        slope = 1 - x.tanh().square() if self.bent else 1
        return slope * torch.einsum("fg,bcfhw->bcghw", self.gain, change)


def _moves(
    denoise: _Denoiser, x: Tensor, known: Tensor, mask: Tensor, signal: float, weight: float
) -> list[tuple[Tensor, str]]:
    """The estimate, moved: the right way first, then by what plausible mistakes make of the gradient."""
    x0 = denoise(x)
    off, shown = known - x0, mask[:, None, None]
    error, k, b = off * shown, weight * signal / 2, len(x)
    gradient = denoise.back(x, -2 * error)
    size, rows = error.norm(), error.flatten(1).norm(dim=1)[:, None, None, None, None]
    means = [
        error[:, :, mask].numel(),
        error.numel(),
        error[0, :, mask].numel(),
        error[0].numel(),
        b,
    ]
    mean = ("The error is a mean; asked for is the sum of squares. With a mean, the pull shrinks as clips grow, and "
            "rows of a batch weaken each other.")  # fmt: skip
    factors = [
        (
            -k,
            "The sign is flipped: you move away from what is known. Downhill is minus the gradient.",
        ),
        (2 * k, "Twice too far: the half is missing."),
        (
            k / 2,
            "Half as far as asked: the gradient of a square has a factor of 2 of its own; autograd counts it.",
        ),
        (weight / 2, "The signal is missing: weight · signal / 2."),
        (weight, "The signal and the half are missing: weight · signal / 2."),
        (k / signal**2, "You divide by the signal: weight · signal / 2."),
        (k * signal, "The signal is in it squared. `signal` is α_t itself."),
        (
            weight / 2 * (1 - signal**2) ** 0.5,
            "You take the noise, √(1 - signal²). Equation 7 has the signal.",
        ),
        (signal / 2, "The weight is missing."),
        (signal, "The weight and the half are missing: weight · signal / 2."),
        (k * weight, "The weight is in it twice."),
        *((k / max(count, 1), mean) for count in means),
        *((2 * k / max(count, 1), f"{mean} The half is missing too.") for count in means),
    ]
    root = "That is the gradient of the norm. Equation 7 has the squared norm, which pulls the harder the further off."
    return [
        (x0 - k * gradient, ""),
        (x0, "The frames that are not known are as denoise left them: no gradient has reached them. By x0 it is zero "
         "there, and so it is everywhere if the known frames are replaced before the error is taken. Take it by x, "
         "through denoise, where all frames meet."),
        (x0 + 2 * k * error, "The gradient is by x0, and does not reach the other frames. Take it by x."),
        *((x0 - factor * gradient, say) for factor, say in factors),
        (x0 - k * denoise.back(x, -2 * off), "The error is over all frames. Where mask is False, `known` holds nothing "
         "that is known."),
        (x0 - k * denoise.back(x, -2 * off * ~shown), "The error is over the frames that are not known: by ~mask, "
         "or since the known ones were replaced before it was taken."),
        (x0 - k * gradient / (2 * size), root),
        (x0 - k * gradient / (2 * rows), root),
        (x - k * gradient, "You moved x, which is noisy. The estimate of x0 is what moves."),
        (denoise(x - k * gradient), "You moved x and denoised it once more. Equation 7 moves the estimate itself."),
    ]  # fmt: skip


def _ask(
    attempt,
    denoise: _Denoiser,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    signal: float,
    weight: float,
):
    """What the student's function returns under no_grad, as in a sampler; autograd's complaints in plain words."""
    denoise.recorded.clear()
    try:
        with torch.no_grad():
            return call(attempt, denoise, x, known, mask, signal, weight)
    except RuntimeError as error:
        if "not have been used in the graph" in str(error):
            raise Wrong(
                "The x by which you take the gradient is not the one that went into denoise."
            ) from error
        if "does not require grad" not in str(error):
            raise
        if not any(denoise.recorded):
            raise Wrong("Nothing was recorded to take a gradient of. Samplers run under torch.no_grad(), and so does "
                        "this check: call denoise inside `with torch.enable_grad():`.") from error  # fmt: skip
        raise Wrong("No gradient by x was recorded: x = x.detach().requires_grad_() before it goes into denoise, and "
                    "no detach between x and the error.") from error  # fmt: skip


def _as_far(got: object, x0: Tensor, step: Tensor, elsewhere: Tensor) -> list[tuple[Tensor, str]]:
    """A step in the right direction, of whatever length: as a mistake with its message; none if there is no step."""
    mine, size = as_tensor(got), (step.square() * elsewhere).sum()
    if (
        not isinstance(mine, Tensor)
        or mine.shape != x0.shape
        or not mine.isfinite().all()
        or size == 0
    ):
        return []
    share = ((x0 - mine) * step * elsewhere).sum() / size
    return [
        (
            x0 - share * step,
            f"The direction is right, but you go {share:.4g} times as far as weight · signal / 2.",
        )
    ]


def _judge_guided(
    attempt, denoise: _Denoiser, mask: Tensor, signal: float, weight: float, told: str
) -> None:
    x, known = normal(20, *denoise.shape), normal(21, *denoise.shape)
    given = x.clone(), known.clone(), mask.clone()
    got = _ask(attempt, denoise, *given, signal, weight)
    shown, moves = mask[:, None, None], _moves(denoise, x, known, mask, signal, weight)
    ends = [
        (lambda moved: torch.where(shown, known, moved), ""),
        (lambda moved: moved, "The known frames are not replaced: only moved towards what is known of them."),
        (lambda moved: torch.where(shown, moved, known), "You replaced the other frames. Where mask is True, `known` "
         "is what is known."),
    ]  # fmt: skip
    right, plain = moves[0][0], moves[1][0]
    moves += _as_far(got, plain, plain - right, ~shown)
    mistakes = [
        (end(moved), f"{say} {more}".strip())
        for moved, say in moves
        for end, more in ends
        if say or more
    ]
    judge(got, torch.where(shown, known, right), mistakes, told)
    for before, after, name in zip((x, known, mask), given, ("x", "known", "mask"), strict=True):
        untouched(after, before, name)
    if isinstance(got, Tensor) and got.requires_grad:
        raise Wrong(f"{told}: the values are right, but they still carry the graph, and with every step of a sampler "
                    "it would grow: .detach().")  # fmt: skip
    if given[0].requires_grad:
        raise Wrong(f"{told}: the values are right, but now the sampler's own x requires a gradient: "
                    "x = x.detach().requires_grad_() makes another tensor of the same numbers.")  # fmt: skip


def _verify_guided_estimate(attempt):
    first = torch.tensor([True, True, False, False])
    straight = _Denoiser(0.5 * normal(22, 4, 4), False, torch.Size([3, 2, 4, 2, 5]))
    told = "a linear denoiser, the first 2 of 4 frames known, signal 0.6, weight 2.5"
    _judge_guided(attempt, straight, first, 0.6, 2.5, told)
    yield "a linear denoiser: equation 7 in closed form, under torch.no_grad()"
    some = torch.tensor([False, True, False, True, False])
    bent = _Denoiser(0.5 * normal(23, 5, 5), True, torch.Size([2, 3, 5, 3, 2]))
    _judge_guided(
        attempt,
        bent,
        some,
        0.9,
        1.5,
        "a denoiser that is not linear, every other frame known, 2 clips",
    )
    yield "one that is not linear, with known frames in between; clips of a batch do not lead each other"
    _judge_guided(attempt, bent, some, 0.9, 0.0, "weight 0, which leaves the replacement")
    _judge_guided(
        attempt, bent, torch.zeros_like(some), 0.9, 1.5, "nothing known, which leaves the estimate"
    )
    yield "weight 0 is the replacement method; where nothing is known, the estimate itself is left"


EXERCISES = (
    Exercise(
        "3.1", "Frames in the batch", 5, 1, _verify_each_frame,
        ("Write down whose frame stands in each row, for two clips of three frames: 0 0 0 1 1 1.",
         "x.repeat(3, 1) gives the rows 0 1 0 1 0 1. Which function gives 0 0 0 1 1 1?",
         "embedding.repeat_interleave(f, dim=…): along the clips."),
        each_frame,
    ),
    Exercise(
        "3.2", "Pixels in the batch, frames as the sequence", 10, 2, verify_over_time,
        ("reshape never moves a number, it only cuts the row of numbers elsewhere. So first put the axes in order, "
         "with permute: what becomes the batch in front, then f, then c.",
         "In: video.permute(0, 3, 4, 2, 1) is (b, h, w, f, c). Now .reshape(b * h * w, f, c) is what attend takes.",
         "Back, in reverse: first .reshape(b, h, w, f, c), then a permute to (b, c, f, h, w). In it stands, place by "
         "place, where each axis was: b was 0, c was 4, f was 3 …"),
        over_time,
    ),
    Exercise(
        "3.3", "Who may look at whom", 10, 2, verify_may_look,
        ("Draw the table for two frames and two pictures, rows who looks, columns at whom: a block of 2 x 2, and two "
         "single cells.",
         "The block: both belong to the clip. clip[:, :, None] is (b, f, 1), who looks; clip[:, None, :] is (b, 1, f), "
         "at whom; & makes (b, f, f) of them.",
         "The single cells lie on the diagonal: | torch.eye(f, dtype=torch.bool)."),
        may_look,
    ),
    Exercise(
        "3.4", "The leak test", 15, 3, verify_leak,
        ("Run the network on the clip as it is. Then for every frame: clone the clip, change that frame alone, run "
         "again, and compare the outputs frame by frame.",
         "(after - before).abs().amax(dim=(0, 1, 3, 4)) is one number for each output frame. Which of them count? "
         "Those that must not see the changed one: not itself, and not frames of one clip.",
         "How to change a frame: a constant is removed by a layer that subtracts the mean, a tiny step by one that "
         "rounds. Add noise as strong as the clip itself, or stronger.",
         "A clip without pictures hides nothing, and the maximum of no numbers is an error: start from 0.0, or "
         "multiply the changes by the mask instead of picking some."),
        leak,
    ),
    Exercise(
        "3.5", "Reconstruction guidance", 15, 4, _verify_guided_estimate,
        ("Four steps: the estimate of x0; how far it is from the known frames, one number; the gradient of that "
         "number by x; move, then replace.",
         "Samplers run under torch.no_grad(). with torch.enable_grad(): x = x.detach().requires_grad_(), and denoise "
         "in there.",
         "error = (known - x0)[:, :, mask].square().sum(), and (gradient,) = torch.autograd.grad(error, x).",
         "moved = x0.detach() - weight * signal / 2 * gradient. mask[:, None, None] broadcasts over (b, c, f, h, w) in "
         "torch.where."),
        guided_estimate,
    ),
)  # fmt: skip
