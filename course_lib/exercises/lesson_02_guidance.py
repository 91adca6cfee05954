"""The check of exercise 2.5, guidance in one call: its model identifies every row it is given."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_lib.diffusion import classifier_free_guidance
from course_lib.lab.checks import (
    Mistake,
    Recorder,
    as_tensor,
    call_on_copies,
    describe_value,
    diagnose,
    guidance_mistakes,
    randn,
    require,
    row_owners,
)


def predict(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """A prediction that depends on each row's own x (n, c, h, w), t (n,) and cond (n, …)."""
    k = cond.double().reshape(len(x), -1).mean(dim=1)[:, None, None, None]
    return torch.sin(x.double() + k) * (1 + t.double()[:, None, None, None] / 1000) + 0.2 * k


class RecordingModel(Recorder):
    """A model that keeps, for each call, whose clips and prompts its rows are.

    Attributes:
        clips: per call, the index of each row's clip, as a string such as "012012".
        prompts: per call, the index of each row's prompt; ∅ for the empty one.
    """

    def __init__(self, x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor):
        super().__init__("model", predict, self._validate)
        self.x, self.t, self.cond, self.uncond = x, t, cond, uncond
        self.clips: list[str] = []
        self.prompts: list[str] = []

    def predictions(self) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional prediction for all clips."""
        uncond = torch.cat([self.uncond] * len(self.x))
        return predict(self.x, self.t, self.cond), predict(self.x, self.t, uncond)

    def _validate(self, x: object, t: object, cond: object) -> None:
        args, b = (x, t, cond), len(self.x)
        text = (
            f"model was called with x {describe_value(x)}, t {describe_value(t)}, conditioning "
            f"{describe_value(cond)}"
        )
        require(
            all(isinstance(arg, Tensor) and arg.ndim for arg in args),
            f"{text}. It takes three tensors, with one row each for every clip.",
        )
        require(
            [arg.shape[1:] for arg in args]
            == [own.shape[1:] for own in (self.x, self.t, self.cond)],
            f"{text}. Only the number of rows may change: join along dim=0.",
        )
        rows = [len(arg) for arg in args]
        require(
            rows[2] != b + 1,
            f"{text}. uncond has one row for all {b} clips, so that cat with the prompts makes "
            f"{b + 1}. Expand it first.",
        )
        require(
            rows[2] != 1,
            f"{text}. uncond has one row for all {b} clips: expand it, so that every clip has its "
            "own.",
        )
        require(rows != [2 * b, b, 2 * b], f"{text}. x and conditioning are doubled, t is not.")
        require(
            len(set(rows)) == 1,
            f"{text}: {rows[0]}, {rows[1]} and {rows[2]} rows. All three are doubled, {2 * b} "
            "rows each.",
        )
        self._identify(x, t, cond)

    def _identify(self, x: Tensor, t: Tensor, cond: Tensor) -> None:
        clips = row_owners(x, {str(i): row for i, row in enumerate(self.x)})
        times = row_owners(t, {str(i): row for i, row in enumerate(self.t)})
        prompts = {str(i): row for i, row in enumerate(self.cond)} | {"∅": self.uncond[0]}
        prompts = row_owners(cond, prompts)
        for row, owners in enumerate(zip(clips, times, prompts, strict=True)):
            changed = dict(zip(owners, ("x", "t", "conditioning"), strict=True)).get("?")
            require(
                not changed,
                f"row {row} of the {changed} that model was called with is none of the rows you "
                "were given: hand them on as they are.",
            )
            clip, time, prompt = owners
            other, name = (time, "t") if time != clip else (prompt, "the prompt")
            require(
                other in (clip, "∅"),
                f"row {row} of model's batch has the x of clip {clip} and {name} of clip {other}. "
                "Double all in one order: cat([a, a]) counts 0 1 2 0 1 2, repeat_interleave 0 0 "
                "1 1 2 2.",
            )
        self.clips.append(clips)
        self.prompts.append(prompts)


def _split_mistakes(model: RecordingModel, scale: float) -> list[Mistake]:
    """What comes of splitting the prediction of a doubled batch in another order than it has."""
    clips = model.clips[0]
    if len(model.calls) != 1 or len(clips) != 2 * len(model.x):
        return []
    pred = predict(*model.calls[0])
    parts = pred[::2], pred[1::2]
    message = "Your batch has one half after the other, but you take every second row."
    if clips[0] == clips[1]:
        parts = pred.chunk(2)
        message = "Your batch alternates (each clip twice), but you take its two halves."
    return [(classifier_free_guidance(*pair, scale), message) for pair in (parts, parts[::-1])]


def _ask(attempt: Callable, model: RecordingModel, scale: float) -> object:
    """The student's guided prediction, after a look at what the model was called with."""
    inputs = {name: getattr(model, name) for name in ("x", "t", "cond", "uncond")}
    result = as_tensor(call_on_copies(attempt, model=model, **inputs, guidance_scale=scale))
    model.require_call()
    b, prompts = len(model.x), set("".join(model.prompts))
    text = f"scale = {scale:g}: model was never called for a clip"
    require(scale == 0 or prompts != {"∅"}, f"{text} with its prompt, only with the empty one.")
    require(scale == 1 or "∅" in prompts, f"{text} with the empty prompt, only with its own.")
    require(
        not (isinstance(result, Tensor) and result.shape == (2 * b, *model.x.shape[1:])),
        f"You returned {2 * b} rows for {b} clips. Split the prediction, then mix the two parts "
        "into one.",
    )
    return result


def verify_cfg_prediction(attempt: Callable) -> Iterator[str]:
    """Checks class labels, then texts: a usual scale, then the scales with a known result."""
    x, t = randn(20, 3, 2, 4, 4), torch.tensor([900, 40, 333])
    classes = torch.tensor([3, 7, 1]), torch.tensor([9])
    texts = randn(21, 3, 5, 6), randn(22, 1, 5, 6)
    for kind, (cond, uncond) in (("classes (3,)", classes), ("texts (3, 5, 6)", texts)):
        model = RecordingModel(x, t, cond, uncond)
        result = _ask(attempt, model, 7.5)
        c, u = model.predictions()
        expected = classifier_free_guidance(c, u, 7.5)
        mistakes = guidance_mistakes(c, u, 7.5) + _split_mistakes(model, 7.5)
        diagnose(result, expected, mistakes, f"3 images with {kind} at scale 7.5")
        num_calls = len(model.calls)
        require(
            num_calls == 1,
            f"The values are right. But model was called {num_calls} times, and this exercise "
            "asks for one call: twice the rows in one batch, which a GPU does in less time than "
            "two calls. Join x, t and the conditioning with torch.cat, call model, and split its "
            "prediction.",
        )
        yield f"3 images with {kind}, uncond {tuple(uncond.shape)}: right, and one call of 6 rows"
        for scale, right, wrong, name in ((1.0, c, u, "conditional"), (0.0, u, c, "unconditional")):
            diagnose(
                _ask(attempt, RecordingModel(x, t, cond, uncond), scale),
                right,
                [(wrong, f"At scale {scale:g} it is to be the {name} prediction.")],
                f"3 images with {kind} at scale {scale:g}",
            )
    yield "scale 1 gives the conditional prediction, scale 0 the unconditional one"
