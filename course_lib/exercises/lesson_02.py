"""Exercises of lesson 02, diffusion from first principles: their checks, hints and reference solutions.

The oracle is `course_lib.diffusion`, and diffusers. A mistake is known by the values it leads to on the check's own
input. The checks of 2.3 and 2.4 are in `lesson_02_steps.py`, that of 2.5 in `lesson_02_guidance.py`.
"""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from course_lib.diffusion import Level, add_noise, estimate
from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import Exercise, call
from course_lib.exercises.lesson_02_guidance import verify_guided
from course_lib.exercises.lesson_02_steps import verify_ddim_step, verify_ddpm_step
from course_lib.lab.checks.mistakes import as_tensor, judge, near, normal

# 2.1 ------------------------------------------------------------------------------------------------------------------


def noised(x0, noise, t, alphas_cumprod):
    """x_t at once: √ᾱ of the image and √(1 - ᾱ) of the noise, for every row its own ᾱ."""
    squared = alphas_cumprod[t].view(-1, 1, 1, 1)  # (b,) to (b, 1, 1, 1): one number for each image
    return squared.sqrt() * x0 + (1 - squared).sqrt() * noise


def noise_mistakes(x0: Tensor, e: Tensor, t: Tensor, table: Tensor) -> list[tuple[Tensor, str]]:
    """What plausible mistakes make of x0 and ε = e, and what to say."""

    def mixed(squared: Tensor) -> Tensor:
        return squared.sqrt() * x0 + (1 - squared).sqrt() * e

    def rows(numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1, 1)

    a = rows(table[t])
    s, n = a.sqrt(), (1 - a).sqrt()
    before = torch.cat([torch.ones(1).to(table), table[:-1]])
    return [
        (n * x0 + s * e, "Signal and noise are swapped. alphas_cumprod is what is left of the signal's variance, near "
         "1 at t = 0 (a β is a share of noise, this is not)."),
        (a * x0 + (1 - a) * e, "The roots are missing: ᾱ and 1 - ᾱ are variances, so that √ᾱ and √(1 - ᾱ) are the "
         "factors."),
        (s * x0 + (1 - a) * e, "The noise lacks its root: √(1 - ᾱ)."),
        (a * x0 + n * e, "The signal lacks its root: √ᾱ."),
        (s * x0 + (1 - s) * e, "Your noise has the factor 1 - √ᾱ. It is √(1 - ᾱ): the squares add up to 1."),
        (a * x0 + (1 - a**2).sqrt() * e, "You take ᾱ for the signal. It is the signal's square."),
        (s * x0 - n * e, "The noise is added, not subtracted."),
        (s * e - n * x0, "That is v, the velocity."),
        (s * x0 + e, "The noise comes whole: times √(1 - ᾱ)."),
        (x0 + n * e, "The image stays whole: times √ᾱ, so that the variance does not grow."),
        (x0 + n / s * e, "That is x_t divided by the signal, the scale of Euler samplers. Here the image shrinks too."),
        (mixed(rows(table[t - 1])), "You are one timestep too early: the entry of t is alphas_cumprod[t]."),
        (mixed(rows(table[(t + 1).clamp(max=len(table) - 1)])), "You are one timestep too late: the entry of t is "
         "alphas_cumprod[t]."),
        (mixed(rows(table.cumprod(0)[t])), "alphas_cumprod is a product already: no cumprod."),
        (mixed(rows((1 - table).cumprod(0)[t])), "You take alphas_cumprod for betas. The product is in it already."),
        (mixed(a / rows(before[t])), "That is one step's worth of noise, as from x_(t-1) to x_t. alphas_cumprod[t] "
         "leads from x_0."),
        *(_row_mistakes(mixed, table[t]) if len(t) > 1 and len(set(x0.shape)) == 1 else []),
    ]  # fmt: skip


def _row_mistakes(mixed, squared: Tensor) -> list[tuple[Tensor, str]]:
    """Mistakes that a batch shows: which image gets which number. Where b = c = h = w, (b,) fits along any axis."""
    one = "All images got the same noise level, that of {}. t has one timestep for each."
    axis = ("alphas_cumprod[t] has the shape (b,), one number for each image, and yours became one for each {0}: "
            "broadcasting starts at the last axis. It went through only because b equals {1} here. Make it "
            "(b, 1, 1, 1).")  # fmt: skip
    return [
        (mixed(squared), axis.format("column", "w")),
        (mixed(squared[:, None]), axis.format("line", "h")),
        (mixed(squared[:, None, None]), axis.format("channel", "c")),
        (mixed(squared[0]), one.format("t[0]")),
        (mixed(squared[-1]), one.format("t[-1]")),
        (mixed(squared.mean()), one.format("the mean ᾱ")),
    ]


def _verify_add_noise(attempt):
    table = torch.tensor([0.98, 0.85, 0.64, 0.4, 0.2, 0.03]).double()
    cases = [
        (
            "x0 = 1, ε = 3, t = 2, alphas_cumprod = [0.98, 0.85, 0.64, 0.4, 0.2, 0.03]",
            torch.ones(1, 1, 1, 1).double(),
            torch.tensor([2]),
        ),
        ("3 images (3, 3, 3) at t = 4, 0, 2", normal(30, 3, 3, 3, 3), torch.tensor([4, 0, 2])),
        ("2 images (3, 4, 5) at t = 5, 1", normal(31, 2, 3, 4, 5), torch.tensor([5, 1])),
    ]
    for told, x0, t in cases:
        e = 3 * x0 if x0.numel() == 1 else normal(32, *x0.shape)
        a = table[t][:, None, None, None]
        got = call(attempt, x0.clone(), e.clone(), t.clone(), table.clone())
        judge(got, a.sqrt() * x0 + (1 - a).sqrt() * e, noise_mistakes(x0, e, t, table), told)
        if x0.numel() == 1:
            yield "one pixel: √ᾱ of the image and √(1 - ᾱ) of the noise"
    yield "in a batch, every image has its own timestep"
    scheduler, t = DDPMScheduler(beta_schedule="squaredcos_cap_v2"), torch.tensor([0, 1, 500, 999])
    x0, e = normal(33, 4, 3, 6, 6), normal(34, 4, 3, 6, 6)
    table = scheduler.alphas_cumprod.double()
    got = call(attempt, x0.clone(), e.clone(), t.clone(), table.clone())
    judge(
        got,
        add_noise(scheduler, x0, e, t),
        noise_mistakes(x0, e, t, table),
        "a cosine schedule at t = 0, 1, 500, 999",
    )
    yield "from the first to the last of a thousand timesteps as in course_lib.diffusion"


# 2.2 ------------------------------------------------------------------------------------------------------------------


def from_velocity(v, x_t, signal, noise):
    """(x_t, v) is (x0, ε) turned by an angle whose cosine is the signal; turning it back divides by nothing."""
    x0 = signal * x_t - noise * v
    epsilon = noise * x_t + signal * v
    return x0, epsilon


def velocity_mistakes(v: Tensor, x: Tensor, s: Tensor, n: Tensor) -> tuple[list, list]:
    """What plausible mistakes make of x0 and of ε, and what to say; levels without signal or noise give NaN or inf."""
    x0, e = s * x - n * v, n * x + s * v
    factors = "The two factors are swapped: "
    one = "You divide once too often: what stands before {} is signal² + noise², and that is 1."
    squares = "The factors are signal and noise themselves, not their squares."
    roots = "signal and noise are √ᾱ and √(1 - ᾱ) already: no more roots."
    convention = (
        "A sign is flipped, as if v were noise · x0 - signal · ε. It is signal · ε - noise · x0."
    )
    return [
        (s * x + n * v, convention),
        (n * x - s * v, factors + "x_t holds signal · x0, so signal · x_t is what brings x0 back."),
        (-x0, "All signs are flipped."),
        (e, "That is ε."),
        ((x - n * v) / s, "You treat v as if it were ε."),
        (v, "That is v itself."), (x0 / s, one.format("x0")), (x0 / s**2, one.format("x0")),
        (x0 / (s + n), "signal + noise is not 1: their squares add up to 1, and then there is nothing to divide by."),
        (s**2 * x - n**2 * v, squares), (s.sqrt() * x - n.sqrt() * v, roots),
    ], [
        (n * x - s * v, convention),
        (s * x + n * v, factors + "x_t holds noise · ε, so noise · x_t is what brings ε back."),
        (-e, "All signs are flipped."),
        (s * v - n * x, "noise · x_t is added, not subtracted: that is where ε sits with a plus."),
        (x0, "That is x0."),
        ((x - s * v) / n, "You treat v as if it were x0."),
        (v, "That is v itself."), (v / s, "v holds - noise · x0 too: that has to be taken out."),
        (e / n, one.format("ε")), (e / n**2, one.format("ε")), (e / s, one.format("ε")),
        (e / (s + n), "signal + noise is not 1: their squares add up to 1, and then there is nothing to divide by."),
        (n**2 * x + s**2 * v, squares), (n.sqrt() * x + s.sqrt() * v, roots),
    ]  # fmt: skip


def _pair(got: object, told: str) -> tuple[object, object]:
    if isinstance(got, Tensor) and got.ndim == 5 and len(got) == 2:
        got = tuple(got)
    if not isinstance(got, list | tuple) or len(got) != 2:
        raise Wrong(f"{told}: expected two tensors, (x0, epsilon); got {brief(got)}")
    return as_tensor(got[0]), as_tensor(got[1])


def _verify_from_velocity(attempt):
    pixel = torch.ones(1, 1, 1, 1).double()
    cases = [
        ("x0 = 1, ε = 3, signal = 0.8, noise = 0.6", pixel, 3 * pixel, [0.64]),
        (
            "3 images at three levels",
            normal(40, 3, 2, 4, 5),
            normal(41, 3, 2, 4, 5),
            [0.9, 0.64, 0.1],
        ),
    ]
    for told, x0, e, squares in cases:
        squared = torch.tensor(squares).double()[:, None, None, None]
        s, n = squared.sqrt(), (1 - squared).sqrt()
        v, x = s * e - n * x0, s * x0 + n * e
        got = _pair(call(attempt, v.clone(), x.clone(), s.clone(), n.clone()), told)
        if near(got[0], e) and near(got[1], x0):
            raise Wrong(f"{told}: the two are swapped. Asked for: x0 first, then epsilon.")
        for part, true, mistakes, name in zip(
            got, (x0, e), velocity_mistakes(v, x, s, n), ("x0", "ε"), strict=True
        ):
            judge(part, true, mistakes, f"{told}: your {name}")
        yield f"x0 and ε are right for {told}"
    x0, e = normal(42, 3, 2, 4, 5), normal(43, 3, 2, 4, 5)
    level = Level(torch.tensor([0.0, 1.0, 0.6]).double(), torch.tensor([1.0, 0.0, 0.8]).double())
    s, n = level.beside(x0)
    v, x = s * e - n * x0, s * x0 + n * e
    told = "rows with signal 0, 1 and 0.6"
    got = _pair(call(attempt, v.clone(), x.clone(), s.clone(), n.clone()), told)
    true = estimate("v_prediction", v, x, level)
    for part, expected, name in zip(got, (true.x0, true.noise), ("x0", "ε"), strict=True):
        if not near(part, expected):
            raise Wrong(
                f"{told}: your {name} is right where both signal and noise are there, but not where one of them is 0. "
                "Somewhere you divide by it, and 0 / 0 says nothing (a small constant beside it says something wrong). "
                "It goes without: multiply x_t and v by signal and noise, and add."
            )
    yield "pure noise and the clean image too, as in course_lib.diffusion: nothing is divided by"


# 2.3 ------------------------------------------------------------------------------------------------------------------


def ddim_step(x_t, epsilon, a_t, a_s):
    """Take the noise away, then put x0 and the same ε together at the new level."""
    x0 = (x_t - (1 - a_t) ** 0.5 * epsilon) / a_t**0.5
    return a_s**0.5 * x0 + (1 - a_s) ** 0.5 * epsilon


# 2.4 ------------------------------------------------------------------------------------------------------------------


def ddpm_step(x_t, epsilon, t, alphas_cumprod, generator):
    """Draw x_(t-1). From t = 0 the step leads to the clean picture: ᾱ is 1 there, and no noise is added."""
    a_t = alphas_cumprod[t]
    a_s = (
        alphas_cumprod[t - 1] if t > 0 else 1.0
    )  # alphas_cumprod[-1] is the last entry, the noisiest level of all
    x0 = (x_t - (1 - a_t) ** 0.5 * epsilon) / a_t**0.5
    beta = 1 - a_t / a_s
    mean = (a_s**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x_t) / (1 - a_t)
    if t == 0:
        return mean
    return mean + beta**0.5 * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)


# 2.5 ------------------------------------------------------------------------------------------------------------------


def guided_prediction(model, x, t, prompt, empty, scale):
    """One call of twice the rows, without and with the prompt; then away from the first, towards the second."""
    conditioning = torch.cat([empty.expand_as(prompt), prompt])
    unprompted, prompted = model(torch.cat([x, x]), torch.cat([t, t]), conditioning).chunk(2)
    return unprompted + scale * (prompted - unprompted)


EXERCISES = (
    Exercise(
        "2.1", "Noise in one step", 10, 2, _verify_add_noise,
        ("alphas_cumprod[t] is ᾱ, the variance that is left of the signal; the noise has the rest, 1 - ᾱ. Images are "
         "multiplied by standard deviations.",
         "alphas_cumprod[t] picks b numbers, (b,). Times (b, c, h, w) they would go along w. Which shape goes along b?",
         "squared = alphas_cumprod[t].view(-1, 1, 1, 1)",
         "squared.sqrt() * x0 + (1 - squared).sqrt() * noise"),
        noised,
    ),
    Exercise(
        "2.2", "Three ways to say the same thing", 10, 2, _verify_from_velocity,
        ("Two equations, two unknowns: x_t = signal · x0 + noise · ε and v = signal · ε - noise · x0.",
         "Multiply the first by signal and the second by noise. Which combination of the two has no ε left?",
         "signal · x_t - noise · v = (signal² + noise²) · x0, and the bracket is 1. For ε take noise and signal."),
        from_velocity,
    ),
    Exercise(
        "2.3", "One step of DDIM", 10, 2, verify_ddim_step,
        ("Two lines: the estimate of x0 from x_t and ε, then x at the new level from that x0 and the same ε.",
         "x_t = √a_t · x0 + √(1 - a_t) · ε. Solve it for x0.",
         "The second line is the formula of 2.1 with a_s, and with epsilon where the noise was.",
         "x0 = (x_t - (1 - a_t) ** 0.5 * epsilon) / a_t ** 0.5"),
        ddim_step,
    ),
    Exercise(
        "2.4", "Find the bug", 15, 3, verify_ddpm_step,
        ("Call it for t = 5, 1 and 0 and print a_t, a_s and beta each time. What can a variance not be?",
         "What is alphas_cumprod[-1] in Python? And what should it be here: how much signal has a clean picture?",
         "A step adds noise because later ones take it away again. Which step has no later one?",
         "a_s = alphas_cumprod[t - 1] if t > 0 else 1.0, and for t = 0 return the mean."),
        ddpm_step,
    ),
    Exercise(
        "2.5", "Guidance in one call", 10, 3, verify_guided,
        ("Join first, call once, split, mix. All three of x, t and the conditioning get twice the rows.",
         "torch.cat([x, x]) and torch.cat([t, t]); for the conditioning, empty first needs as many rows as prompt has.",
         "torch.cat([empty.expand_as(prompt), prompt]); the answer's chunk(2) are then unprompted, prompted.",
         "unprompted + scale * (prompted - unprompted)"),
        guided_prediction,
    ),
)  # fmt: skip
