"""Exercises of lesson 02, diffusion from first principles: checks, hints and solutions.

The references are `course_lib.diffusion` and diffusers. The checks of 2.3 and 2.4 are in
`lesson_02_steps.py`, that of 2.5 in `lesson_02_guidance.py`, those of 2.6 and 2.7 in
`lesson_02_unet.py`.
"""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from course_lib import diffusion
from course_lib.exercises.lesson_02_guidance import verify_cfg_prediction
from course_lib.exercises.lesson_02_steps import verify_ddim_step, verify_ddpm_step
from course_lib.exercises.lesson_02_unet import verify_timestep_embedding, verify_unet_forward
from course_lib.lab.checks import (
    Exercise,
    Mistake,
    call_on_copies,
    diagnose,
    is_close,
    randn,
    require,
    split_result,
)

# 2.1 ----------------------------------------------------------------------------------------------


def add_noise(x0, eps, t, alphas_cumprod):
    """x_t at once: √ᾱ of the image and √(1 - ᾱ) of the noise, with its own ᾱ for every image."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)  # (b,) to (b, 1, 1, 1): one number per image
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def add_noise_mistakes(x0: Tensor, eps: Tensor, t: Tensor, table: Tensor) -> list[Mistake]:
    """What likely mistakes in 2.1 return.

    Args:
        x0: images, (b, c, h, w).
        eps: noise, of the same shape.
        t: timesteps, (b,).
        table: ᾱ of every timestep.
    """

    def mix(alpha_bar: Tensor) -> Tensor:
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def at(table: Tensor, t: Tensor) -> Tensor:
        return table[t].view(-1, 1, 1, 1)

    a, e = at(table, t), eps
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    previous = torch.cat([torch.ones(1).to(table), table[:-1]])
    return [
        (sigma * x0 + alpha * e, "Signal and noise are swapped. alphas_cumprod is what is left "
                                 "of the signal's variance, near 1 at t = 0 (a β is a share of "
                                 "noise, this is not)."),
        (a * x0 + (1 - a) * e, "The roots are missing: ᾱ and 1 - ᾱ are variances, so that √ᾱ and "
                               "√(1 - ᾱ) are the factors."),
        (alpha * x0 + (1 - a) * e, "The noise lacks its root: √(1 - ᾱ)."),
        (a * x0 + sigma * e, "The signal lacks its root: √ᾱ."),
        (alpha * x0 + (1 - alpha) * e, "Your noise has the factor 1 - √ᾱ. It is √(1 - ᾱ): the "
                                       "squares add up to 1."),
        (a * x0 + (1 - a**2).sqrt() * e, "You take ᾱ for alpha. It is alpha's square."),
        (alpha * x0 - sigma * e, "The noise is added, not subtracted."),
        (alpha * e - sigma * x0, "That is v, the velocity."),
        (alpha * x0 + e, "The noise has no factor: times √(1 - ᾱ)."),
        (x0 + sigma * e, "The image has no factor: times √ᾱ, so that the variance does not grow."),
        (x0 + sigma / alpha * e, "That is x_t divided by alpha, the scale of Euler samplers. "
                                 "Here the image shrinks too."),
        (mix(at(table, t - 1)), "You are one timestep too early: the entry of t is "
                                "alphas_cumprod[t]."),
        (mix(at(table, (t + 1).clamp(max=len(table) - 1))),
         "You are one timestep too late: the entry of t is alphas_cumprod[t]."),
        (mix(at(table.cumprod(0), t)), "alphas_cumprod is a product already: no cumprod."),
        (mix(at((1 - table).cumprod(0), t)),
         "You take alphas_cumprod for betas. The product is in it already."),
        (mix(a / at(previous, t)), "That is one step's worth of noise, as from x_(t-1) to x_t. "
                                   "alphas_cumprod[t] leads from x_0."),
        *(_broadcast_mistakes(mix, table[t]) if len(t) > 1 and len(set(x0.shape)) == 1 else []),
    ]  # fmt: skip


def _broadcast_mistakes(mix, alpha_bar: Tensor) -> list[Mistake]:
    """Which image gets which number. Where b = c = h = w, (b,) fits along any axis."""
    level = "All images got the same noise level, that of {}. t has one timestep for each."
    axis = (
        "alphas_cumprod[t] has the shape (b,), one number for each image, and yours became one for "
        "each {}: broadcasting starts at the last axis. It went through only because b equals {} "
        "here. Make it (b, 1, 1, 1)."
    )
    return [
        (mix(alpha_bar), axis.format("column", "w")),
        (mix(alpha_bar[:, None]), axis.format("line", "h")),
        (mix(alpha_bar[:, None, None]), axis.format("channel", "c")),
        (mix(alpha_bar[0]), level.format("t[0]")),
        (mix(alpha_bar[-1]), level.format("t[-1]")),
        (mix(alpha_bar.mean()), level.format("the mean ᾱ")),
    ]


def _verify_add_noise(attempt):
    small, cosine = DDPMScheduler(6), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    small.alphas_cumprod = torch.tensor([0.98, 0.85, 0.64, 0.4, 0.2, 0.03]).double()
    pixel, table = torch.ones(1, 1, 1, 1).double(), "[0.98, 0.85, 0.64, 0.4, 0.2, 0.03]"
    cases = (
        (f"x0 = 1, ε = 3, t = 2, alphas_cumprod = {table}", small, [2], pixel, 3 * pixel),
        ("3 images at t = 4, 0, 2", small, [4, 0, 2], randn(30, 3, 3, 3, 3), randn(32, 3, 3, 3, 3)),
        ("2 images at t = 5, 1", small, [5, 1], randn(31, 2, 3, 4, 5), randn(32, 2, 3, 4, 5)),
        ("a cosine schedule of 1000 steps at t = 0, 1, 500, 999", cosine, [0, 1, 500, 999],
         randn(33, 4, 3, 6, 6), randn(34, 4, 3, 6, 6)),
    )  # fmt: skip
    for case, scheduler, t, x0, eps in cases:
        t, table = torch.tensor(t), scheduler.alphas_cumprod.double()
        diagnose(
            call_on_copies(attempt, x0=x0, eps=eps, t=t, alphas_cumprod=table),
            diffusion.add_noise(scheduler, x0, eps, t),
            add_noise_mistakes(x0, eps, t, table),
            case,
        )
        yield f"{case}: as in course_lib.diffusion"


# 2.2 ----------------------------------------------------------------------------------------------


def x0_eps_from_v(v, x_t, alpha, sigma):
    """(x_t, v) is (x0, ε) rotated; rotating it back divides by nothing."""
    x0 = alpha * x_t - sigma * v
    eps = sigma * x_t + alpha * v
    return x0, eps


def v_mistakes(v: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[list, list]:
    """What likely mistakes in 2.2 return: those in x0, those in ε."""
    x, a, s = x_t, alpha, sigma
    x0, e = a * x - s * v, s * x + a * v
    factors = "The two factors are swapped: "
    once = "You divide once too often: what stands before {} is alpha² + sigma², and that is 1."
    squares = "The factors are alpha and sigma themselves, not their squares."
    roots = "alpha and sigma are √ᾱ and √(1 - ᾱ) already: no more roots."
    total = (
        "alpha + sigma is not 1: their squares add up to 1, and then there is nothing to divide by."
    )
    sign = "A sign is flipped, as if v were sigma · x0 - alpha · ε. It is alpha · ε - sigma · x0."
    return [
        (a * x + s * v, sign),
        (s * x - a * v, factors + "x_t contains alpha · x0, so alpha · x_t is what brings x0 "
                                  "back."),
        (-x0, "All signs are flipped."),
        (e, "That is ε."),
        ((x - s * v) / a, "You treat v as if it were ε."),
        (v, "That is v itself."),
        (x0 / a, once.format("x0")),
        (x0 / a**2, once.format("x0")),
        (x0 / (a + s), total),
        (a**2 * x - s**2 * v, squares),
        (a.sqrt() * x - s.sqrt() * v, roots),
    ], [
        (s * x - a * v, sign),
        (a * x + s * v, factors + "x_t contains sigma · ε, so sigma · x_t is what brings ε back."),
        (-e, "All signs are flipped."),
        (a * v - s * x, "sigma · x_t is added, not subtracted: that is where ε sits with a plus."),
        (x0, "That is x0."),
        ((x - a * v) / s, "You treat v as if it were x0."),
        (v, "That is v itself."),
        (v / a, "v contains - sigma · x0 too: that has to be taken out."),
        (e / s, once.format("ε")),
        (e / s**2, once.format("ε")),
        (e / a, once.format("ε")),
        (e / (a + s), total),
        (s**2 * x + a**2 * v, squares),
        (s.sqrt() * x + a.sqrt() * v, roots),
    ]  # fmt: skip


def _verify_x0_eps_from_v(attempt):
    pixel = torch.ones(1, 1, 1, 1).double()
    cases = (
        ("x0 = 1, ε = 3, alpha = 0.8, sigma = 0.6", [0.64], pixel, 3 * pixel),
        ("3 images at three levels", [0.9, 0.64, 0.1], *randn(40, 2, 3, 2, 4, 5)),
        ("rows with alpha = 0, 1 and 0.6", [0.0, 1.0, 0.36], *randn(42, 2, 3, 2, 4, 5)),
    )
    for case, alpha_bar, x0, eps in cases:
        alpha_bar = torch.tensor(alpha_bar).double()[:, None, None, None]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        result = call_on_copies(attempt, v=v, x_t=x_t, alpha=alpha, sigma=sigma)
        if isinstance(result, Tensor) and result.ndim == 5:
            result = tuple(result)
        got = split_result(result, "x0, eps", case)
        require(
            not (is_close(got[0], eps) and is_close(got[1], x0)),
            f"{case}: the two are swapped. The order is x0, then eps.",
        )
        mistakes = v_mistakes(v, x_t, alpha, sigma)
        for part, true, wrong, name in zip(got, (x0, eps), mistakes, ("x0", "ε"), strict=True):
            require(
                alpha.all() or is_close(part, true),
                f"{case}: your {name} is right where both alpha and sigma are there, but not where "
                "one of them is 0. Somewhere you divide by it, and 0 / 0 is undefined (with a "
                "small constant added, it is wrong). It goes without: multiply x_t and v by alpha "
                "and sigma, and add.",
            )
            diagnose(part, true, wrong, f"{case}: your {name}")
        yield f"x0 and ε are right for {case}"


# 2.3 ----------------------------------------------------------------------------------------------


def ddim_step(x_t, eps, alpha_bar_t, alpha_bar_s):
    """Take the noise away, then put x0 and the same ε together at the new level."""
    x0 = (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5
    return alpha_bar_s**0.5 * x0 + (1 - alpha_bar_s) ** 0.5 * eps


# 2.4 ----------------------------------------------------------------------------------------------


def ddpm_step(x_t, eps, t, alphas_cumprod, generator):
    """Sample x_(t-1). The step from t = 0 leads to the clean image: ᾱ is 1 there, with no noise."""
    a_t = alphas_cumprod[t]
    a_s = alphas_cumprod[t - 1] if t > 0 else 1.0  # alphas_cumprod[-1] is the noisiest level of all
    x0 = (x_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    beta = 1 - a_t / a_s
    mean = (a_s**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x_t) / (1 - a_t)
    if t == 0:
        return mean
    return mean + beta**0.5 * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)


# 2.5 ----------------------------------------------------------------------------------------------


def cfg_prediction(model, x, t, cond, uncond, guidance_scale):
    """One call with twice the rows, unconditional half first; then extrapolate between the two."""
    both = torch.cat([uncond.expand_as(cond), cond])
    uncond_pred, cond_pred = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    return uncond_pred + guidance_scale * (cond_pred - uncond_pred)


# 2.6 ----------------------------------------------------------------------------------------------


def ddpm_timestep_embedding(t, dim):
    """Sines, then cosines, whose frequencies fall geometrically from 1 to 1/10,000 exactly."""
    half = dim // 2
    k = torch.arange(half, device=t.device)
    frequencies = torch.exp(-math.log(10000) * k / (half - 1))  # the last k is half - 1
    angles = t[:, None] * frequencies  # (b, 1) times (half,) is (b, half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# 2.7 ----------------------------------------------------------------------------------------------


def unet_forward(x, down, middle, up):
    """Every layer on the way down leaves a skip; the way up takes the last one first."""
    skips = []
    for layer in down:
        x = layer(x)
        skips.append(x)
    x = middle(x)
    for layer in up:
        x = layer(torch.cat([x, skips.pop()], dim=1))
    return x


EXERCISES = (
    Exercise(
        "2.1", "Noise in one step", 10, 2, _verify_add_noise,
        ("alphas_cumprod[t] is ᾱ, the variance that is left of the signal; the noise has the "
         "rest, 1 - ᾱ. Images are multiplied by standard deviations.",
         "alphas_cumprod[t] picks b numbers, (b,). Times (b, c, h, w) they would go along w. "
         "Which shape goes along b?",
         "alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)",
         "alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps"),
        add_noise,
    ),
    Exercise(
        "2.2", "From v to x0 and ε", 10, 2, _verify_x0_eps_from_v,
        ("Two equations, two unknowns: x_t = alpha · x0 + sigma · ε and v = alpha · ε - sigma · "
         "x0.",
         "Multiply the first by alpha and the second by sigma. Which combination of the two has "
         "no ε left?",
         "alpha · x_t - sigma · v = (alpha² + sigma²) · x0, and the bracket is 1. For ε take "
         "sigma and alpha."),
        x0_eps_from_v,
    ),
    Exercise(
        "2.3", "One step of DDIM", 10, 2, verify_ddim_step,
        ("Two lines: the estimate of x0 from x_t and ε, then x at the new level from that x0 and "
         "the same ε.",
         "x_t = √ᾱ_t · x0 + √(1 - ᾱ_t) · ε. Solve it for x0.",
         "The second line is the formula of 2.1 with alpha_bar_s.",
         "x0 = (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t ** 0.5"),
        ddim_step,
    ),
    Exercise(
        "2.4", "Find the bug", 15, 3, verify_ddpm_step,
        ("Call it for t = 5, 1 and 0 and print a_t, a_s and beta each time. What can a variance "
         "not be?",
         "What is alphas_cumprod[-1] in Python? And what should it be: how much signal does a "
         "clean image have?",
         "A step adds noise because later ones take it away again. Which step has no later one?",
         "a_s = alphas_cumprod[t - 1] if t > 0 else 1.0, and for t = 0 return the mean."),
        ddpm_step,
    ),
    Exercise(
        "2.5", "Guidance in one call", 10, 3, verify_cfg_prediction,
        ("Join first, call once, split, mix. All three of x, t and the conditioning get twice the "
         "rows.",
         "torch.cat([x, x]) and torch.cat([t, t]); for the conditioning, uncond first needs as "
         "many rows as cond has.",
         "torch.cat([uncond.expand_as(cond), cond]); the prediction's chunk(2) are then "
         "uncond_pred, cond_pred.",
         "uncond_pred + guidance_scale * (cond_pred - uncond_pred)"),
        cfg_prediction,
    ),
    Exercise(
        "2.6", "The timestep embedding of DDPM", 10, 2, verify_timestep_embedding,
        ("Three steps: half of dim frequencies, the angles t times frequency, then their sines and "
         "cosines.",
         "k = torch.arange(half) runs from 0 to half - 1. By what must it be divided to run from 0 "
         "to 1?",
         "frequencies = 10000 ** (-k / (half - 1)); angles = t[:, None] * frequencies",
         "torch.cat([angles.sin(), angles.cos()], dim=1)"),
        ddpm_timestep_embedding,
    ),
    Exercise(
        "2.7", "The skip connections", 10, 2, verify_unet_forward,
        ("Keep a list. Every layer on the way down appends what it returns.",
         "On the way up the resolution grows again, so the first skip needed is the one stored "
         "last: skips.pop().",
         "layer(torch.cat([x, skip], dim=1)): what comes from below, then the skip."),
        unet_forward,
    ),
)  # fmt: skip
