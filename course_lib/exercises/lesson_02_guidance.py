"""Lesson 02's check of 2.5, guidance in one call: its model is a spy that knows every row that it is given."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course_lib.diffusion import guide
from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import as_tensor, judge, normal

Row = tuple[int, bool]  # which clip a row is, and whether with its prompt (else the empty one)


@dataclass
class Spy:
    """A model that answers row by row and remembers which clips and prompts it was asked about."""

    x: Tensor
    t: Tensor
    prompt: Tensor
    empty: Tensor
    calls: list[list[Row]] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        self._refuse_shapes(x, t, conditioning)
        self.calls.append(
            [
                self._known(number, *row)
                for number, row in enumerate(zip(x, t, conditioning, strict=True))
            ]
        )
        self.said.append(self.answer(x, t, conditioning))
        return self.said[-1].clone()

    def __repr__(self) -> str:
        return "a model"

    def answer(self, x: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """What the model says of each row; x (n, c, h, w), t (n,), conditioning (n, …)."""
        k = conditioning.double().reshape(len(x), -1).mean(dim=1)[:, None, None, None]
        return torch.sin(x.double() + k) * (1 + t.double()[:, None, None, None] / 1000) + 0.2 * k

    def both(self) -> tuple[Tensor, Tensor]:
        """What it says with the prompts, and what without."""
        nothing = torch.cat([self.empty] * len(self.x))
        return self.answer(self.x, self.t, self.prompt), self.answer(self.x, self.t, nothing)

    def _refuse_shapes(self, x: object, t: object, conditioning: object) -> None:
        b = len(self.x)
        told = (
            f"model was called with x {brief(x)}, t {brief(t)}, conditioning {brief(conditioning)}"
        )
        parts = (x, t, conditioning)
        if not all(isinstance(part, Tensor) and part.ndim for part in parts):
            raise Wrong(f"{told}. It takes three tensors, with one row each for every clip.")
        if any(
            part.shape[1:] != own.shape[1:]
            for part, own in zip(parts, (self.x, self.t, self.prompt), strict=True)
        ):
            raise Wrong(f"{told}. Only the number of rows may change: join along dim=0.")
        rows = [len(part) for part in parts]
        if rows[2] == b + 1:
            raise Wrong(f"{told}. empty has one row for all {b} clips, so that cat with the prompts makes {b + 1}. "
                        "Expand it first.")  # fmt: skip
        if rows[2] == 1:
            raise Wrong(
                f"{told}. empty has one row for all {b} clips: expand it, so that every clip has its own."
            )
        if rows[0] == rows[2] == 2 * b and rows[1] == b:
            raise Wrong(f"{told}. x and conditioning are doubled, t is not.")
        if len(set(rows)) > 1:
            raise Wrong(
                f"{told}: {rows[0]}, {rows[1]} and {rows[2]} rows. All three are doubled, {2 * b} rows each."
            )

    def _known(self, number: int, x: Tensor, t: Tensor, conditioning: Tensor) -> Row:
        """Which clip this row is; raises Wrong for a row that mixes clips or is none of them."""
        clip, time = _find(x, self.x), _find(t, self.t)
        prompts, nothing = _find(conditioning, self.prompt), _find(conditioning, self.empty)
        if clip is None or time is None or (prompts is None and nothing is None):
            changed = "x" if clip is None else "t" if time is None else "conditioning"
            raise Wrong(f"row {number} of the {changed} that model was called with is none of the rows you were given: "
                        "hand them on as they are.")  # fmt: skip
        other, name = (time, "t") if time != clip else (prompts, "the prompt")
        if other is not None and other != clip:
            raise Wrong(
                f"row {number} of model's batch has the x of clip {clip} and {name} of clip {other}. Double all in one "
                "order: cat([a, a]) counts 0 1 2 0 1 2, repeat_interleave 0 0 1 1 2 2."
            )
        return clip, prompts is not None


def _find(row: Tensor, rows: Tensor) -> int | None:
    for number, known in enumerate(rows):
        if torch.allclose(row.detach().double(), known.double(), rtol=1e-5, atol=1e-5):
            return number
    return None


def _mistakes(spy: Spy, scale: float) -> list[tuple[Tensor, str]]:
    c, u = spy.both()
    found = [
        (c + scale * (u - c), "The halves are swapped: the larger the scale, the further away from the prompt. Which "
         "one had the empty prompt?"),
        (c + scale * (c - u), "That is 1 + scale, the w of Ho & Salimans. Here scale 1 is to give the prompted "
         "prediction: start from the unprompted one."),
        (u - scale * (c - u), "A sign is flipped: away from the empty prompt is prompted minus unprompted."),
        (scale * (c - u), "That is only the difference. It is added to the unprompted prediction."),
        (scale * c, "The scale multiplies the prompted prediction alone. It belongs to the difference: "
         "scale * (prompted - unprompted), brackets included."),
        (u + scale * c, "The scale multiplies the prompted prediction. It belongs to the difference."),
        (scale * c - u, "The scale multiplies the prompted prediction. It belongs to the difference."),
        (scale * u + c - u, "The scale is on the unprompted prediction. It belongs to the difference."),
        (u + (c - u) / scale, "You divide by the scale."),
        (c, "That is the prompted prediction: the scale does nothing."),
        (u, "That is the unprompted prediction: the scale does nothing."),
    ]  # fmt: skip
    if len(spy.said) == 1 and len(spy.said[0]) == 2 * len(spy.x):
        clips, said = [clip for clip, _ in spy.calls[0]], spy.said[0]
        halves, alternate = said.chunk(2), (said[::2], said[1::2])
        split, message = (
            alternate,
            "Your batch holds one half after the other, but you take every second row.",
        )
        if clips[0] == clips[1]:
            split, message = (
                halves,
                "Your batch alternates (each clip twice), but you take its two halves.",
            )
        found += [(guide(a, b, scale), message) for a, b in (split, split[::-1])]
    return found


def _ask(attempt: Callable, spy: Spy, scale: float) -> object:
    """The student's answer; raises Wrong if model was not called, or not about what it takes."""
    got = as_tensor(
        call(
            attempt, spy, spy.x.clone(), spy.t.clone(), spy.prompt.clone(), spy.empty.clone(), scale
        )
    )
    b, rows = len(spy.x), {row for asked in spy.calls for row in asked}
    needed = [(told, told in {known for _, known in rows}) for told in (True, False)]
    if not spy.calls:
        raise Wrong("model was never called.")
    missing = [told for told, there in needed if not there and scale != int(not told)]
    if missing:
        which, instead = (
            ("with its prompt", "the empty one")
            if missing[0]
            else ("with the empty prompt", "its own")
        )
        raise Wrong(
            f"scale = {scale:g}: model was never asked about a clip {which}, only with {instead}."
        )
    if isinstance(got, Tensor) and got.shape == (2 * b, *spy.x.shape[1:]):
        raise Wrong(
            f"You returned {2 * b} rows for {b} clips. Split model's answer, then mix the two parts into one."
        )
    return got


def verify_guided(attempt: Callable) -> Iterator[str]:
    """Classes at a usual scale, then the two scales whose answer is known, then prompts that are texts."""
    x, t = normal(20, 3, 2, 4, 4), torch.tensor([900, 40, 333])
    classes, text = (
        (torch.tensor([3, 7, 1]), torch.tensor([9])),
        (normal(21, 3, 5, 6), normal(22, 1, 5, 6)),
    )
    for kind, (prompt, empty) in (("classes (3,)", classes), ("texts (3, 5, 6)", text)):
        spy = Spy(x, t, prompt, empty)
        got = _ask(attempt, spy, 7.5)
        c, u = spy.both()
        judge(got, guide(c, u, 7.5), _mistakes(spy, 7.5), f"3 images with {kind} at scale 7.5")
        if len(spy.calls) > 1:
            raise Wrong(
                f"The values are right. But model was called {len(spy.calls)} times, and this exercise asks for one "
                "call: twice the rows in one batch, which a GPU does in less time than two calls. Join x, t and the "
                "conditioning with torch.cat, call model, and split its answer."
            )
        yield f"3 images with {kind}, empty {tuple(empty.shape)}: right, and one call of 6 rows"
        for scale, expected, other, name in ((1.0, c, u, "prompted"), (0.0, u, c, "unprompted")):
            swapped = [(other, f"At scale {scale:g} it is to be the {name} prediction.")]
            got = _ask(attempt, Spy(x, t, prompt, empty), scale)
            judge(got, expected, swapped, f"3 images with {kind} at scale {scale:g}")
        if prompt.ndim == 1:
            yield "scale 1 gives the prompted prediction, scale 0 the unprompted one"
