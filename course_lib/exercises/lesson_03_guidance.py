"""The check of exercise 3.5, reconstruction guidance: denoisers whose gradient is known."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_lib.lab.checks import (
    IncorrectAnswer,
    Mistake,
    Recorder,
    as_tensor,
    call_on_copies,
    describe_value,
    diagnose,
    randn,
    require,
)


class Denoiser(Recorder):
    """Mixes frames linearly, optionally after a tanh, so that the gradient depends on x_t.

    Attributes:
        gain: (f, f), from frame to frame.
        is_linear: whether there is no tanh.
        shape: of x_t, (b, c, f, h, w).
        grad_enabled: per call, whether autograd recorded it.
    """

    def __init__(self, gain: Tensor, is_linear: bool, shape: tuple[int, ...]):
        super().__init__("denoise", self.estimate, self._validate)
        self.gain, self.is_linear, self.shape = gain, is_linear, shape
        self.grad_enabled: list[bool] = []

    def estimate(self, x_t: Tensor) -> Tensor:
        """The estimate of x0."""
        x_t = x_t if self.is_linear else x_t.tanh()
        return torch.einsum("fg,bcghw->bcfhw", self.gain.to(x_t), x_t)

    def backpropagate(self, x_t: Tensor, gradient: Tensor) -> Tensor:
        """A gradient by the estimate, turned into one by x_t."""
        slope = 1 if self.is_linear else 1 - x_t.tanh().square()
        return slope * torch.einsum("fg,bcfhw->bcghw", self.gain, gradient)

    def _validate(self, x_t: object) -> None:
        require(
            isinstance(x_t, Tensor) and x_t.shape == self.shape,
            f"denoise takes all of x_t, {self.shape}; it got {describe_value(x_t)}.",
        )
        self.grad_enabled.append(torch.is_grad_enabled())


def _factor_mistakes(k: float, alpha: float, weight: float, counts: list[int]) -> list[Mistake]:
    """Wrong factors of the gradient in place of k = weight · alpha / 2."""
    mean = (
        "The error is a mean; the formula has the sum of squares. With a mean, the pull shrinks as "
        "videos grow, and rows of a batch weaken each other."
    )
    formula = "reconstruction_weight · alpha / 2"
    return [
        (-k, "The sign is flipped: you move away from the given frames. Downhill is minus the "
             "gradient."),
        (2 * k, "Twice too far: the half is missing."),
        (k / 2, "Half as far as needed: the gradient of a square has a factor of 2 of its own; "
                "autograd counts it."),
        (weight / 2, f"Alpha is missing: {formula}."),
        (weight, f"Alpha and the half are missing: {formula}."),
        (k / alpha**2, f"You divide by alpha: {formula}."),
        (k * alpha, "Alpha is in it squared. `alpha` is α_t itself."),
        (weight / 2 * (1 - alpha**2) ** 0.5,
         "You take sigma, √(1 - alpha²). Equation 7 has alpha."),
        (alpha / 2, "The weight is missing."),
        (alpha, f"The weight and the half are missing: {formula}."),
        (k * weight, "The weight is in it twice."),
        *((k / max(count, 1), mean) for count in counts),
        *((2 * k / max(count, 1), f"{mean} The half is missing too.") for count in counts),
    ]  # fmt: skip


def _moved_estimates(
    denoise: Denoiser, x: Tensor, frames: Tensor, mask: Tensor, alpha: float, weight: float
) -> list[Mistake]:
    """The moved estimate: the right one first, then what likely mistakes in the gradient give."""
    x0 = denoise.estimate(x)
    off, is_given = frames - x0, mask[:, None, None]
    error, k = off * is_given, weight * alpha / 2
    gradient = denoise.backpropagate(x, -2 * error)
    norms = error.norm(), error.flatten(1).norm(dim=1)[:, None, None, None, None]
    given = error[:, :, mask]
    counts = [given.numel(), error.numel(), given[0].numel(), error[0].numel(), len(x)]
    root = (
        "That is the gradient of the norm. Equation 7 has the squared norm, which pulls the harder "
        "the further off."
    )
    return [
        (x0 - k * gradient, ""),
        (x0, "The other frames are as denoise left them: no gradient has reached them. By x0 it "
             "is zero there, and so it is everywhere if the given frames are replaced before the "
             "error is taken. Take it by x_t, through denoise, where all frames meet."),
        (x0 + 2 * k * error, "The gradient is by x0, and does not reach the other frames. Take "
                             "it by x_t."),
        *((x0 - factor * gradient, text)
          for factor, text in _factor_mistakes(k, alpha, weight, counts)),
        (x0 - k * denoise.backpropagate(x, -2 * off),
         "The error is over all frames. Where cond_mask is False, `cond_frames` means nothing."),
        (x0 - k * denoise.backpropagate(x, -2 * off * ~is_given),
         "The error is over the frames that are not given: by ~cond_mask, or since the given "
         "ones were replaced before it was taken."),
        *((x0 - k * gradient / (2 * norm), root) for norm in norms),
        (x - k * gradient, "You moved x_t, which is noisy. The estimate of x0 is what moves."),
        (denoise.estimate(x - k * gradient),
         "You moved x_t and denoised it once more. Equation 7 moves the estimate itself."),
    ]  # fmt: skip


def _step_length(result: object, x0: Tensor, step: Tensor, is_free: Tensor) -> list[Mistake]:
    """A step in the right direction of any length, as a mistake; none if there is no such step."""
    result, size = as_tensor(result), (step.square() * is_free).sum()
    if not isinstance(result, Tensor) or result.shape != x0.shape or size == 0:
        return []
    share = ((x0 - result) * step * is_free).sum() / size
    return [
        (
            x0 - share * step,
            f"The direction is right, but you go {share:.4g} times as far as "
            "reconstruction_weight · alpha / 2.",
        )
    ]


def _ask(attempt: Callable, denoise: Denoiser, **inputs) -> object:
    """The student's estimate, under no_grad as in a sampler, with autograd's errors explained."""
    denoise.grad_enabled.clear()
    try:
        with torch.no_grad():
            return call_on_copies(attempt, denoise=denoise, **inputs)
    except RuntimeError as error:
        if "not have been used in the graph" in str(error):
            message = (
                "The x_t by which you take the gradient is not the one that went into denoise."
            )
        elif "does not require grad" not in str(error):
            raise
        elif any(denoise.grad_enabled):
            message = (
                "No gradient by x_t was recorded: x_t = x_t.detach().requires_grad_() before it "
                "goes into denoise, and no detach between x_t and the error."
            )
        else:
            message = (
                "Nothing was recorded to take a gradient of. Samplers run under torch.no_grad(), "
                "and so does this check: call denoise inside `with torch.enable_grad():`."
            )
        raise IncorrectAnswer(message) from error


def _check_estimate(
    attempt: Callable, denoise: Denoiser, mask: Tensor, alpha: float, weight: float, case: str
) -> None:
    x_t, frames = randn(20, *denoise.shape), randn(21, *denoise.shape)
    result = _ask(
        attempt,
        denoise,
        x_t=x_t,
        cond_frames=frames,
        cond_mask=mask,
        alpha=alpha,
        reconstruction_weight=weight,
    )
    moves = _moved_estimates(denoise, x_t, frames, mask, alpha, weight)
    is_given, right, x0 = mask[:, None, None], moves[0][0], moves[1][0]
    moves += _step_length(result, x0, x0 - right, ~is_given)
    not_replaced = "The given frames are not replaced: only moved towards their values."
    others = "You replaced the other frames. Where cond_mask is True, `cond_frames` is given."
    mistakes = [
        (values, f"{message} {more}".strip())
        for moved, message in moves
        for values, more in (
            (torch.where(is_given, frames, moved), ""),
            (moved, not_replaced),
            (torch.where(is_given, moved, frames), others),
        )
        if message or more
    ]
    diagnose(result, torch.where(is_given, frames, right), mistakes, case)
    require(
        not (isinstance(result, Tensor) and result.requires_grad),
        f"{case}: the values are right, but they still carry the graph, and with every step of a "
        "sampler it would grow: .detach().",
    )


def verify_reconstruction_guided_x0(attempt: Callable) -> Iterator[str]:
    """Checks a linear denoiser, one with a tanh, then a weight of 0 and no given frames."""
    linear = Denoiser(0.5 * randn(22, 4, 4), True, (3, 2, 4, 2, 5))
    curved = Denoiser(0.5 * randn(23, 5, 5), False, (2, 3, 5, 3, 2))
    first, alternate = torch.arange(4) < 2, torch.arange(5) % 2 == 1
    none = torch.zeros_like(alternate)
    for denoise, mask, alpha, weight, case in (
        (linear, first, 0.6, 2.5, "a linear denoiser, the first 2 of 4 frames given, alpha 0.6, "
                                  "reconstruction_weight 2.5"),
        (curved, alternate, 0.9, 1.5, "a denoiser that is not linear, every other frame given"),
        (curved, alternate, 0.9, 0.0, "reconstruction_weight 0, which leaves the replacement"),
        (curved, none, 0.9, 1.5, "no given frames, which leaves the estimate"),
    ):  # fmt: skip
        _check_estimate(attempt, denoise, mask, alpha, weight, case)
        yield f"{case}: equation 7 in closed form"
