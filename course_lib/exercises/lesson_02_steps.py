"""Lesson 02's checks of single sampling steps, 2.3 and 2.4.

Solutions and hints are in `lesson_02.py`. A mistake is known by the values it leads to on the check's own input.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from course_lib.diffusion import CLEAN, finite_data, gaussian, level_at, ode_solution, optimal_model
from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import as_tensor, judge, near, normal

# 2.3 ------------------------------------------------------------------------------------------------------------------


def ddim_mistakes(x: Tensor, e: Tensor, a_t: Tensor, a_s: Tensor) -> list[tuple[Tensor, str]]:
    """What plausible mistakes make of x_t = x and ε = e in one step of DDIM, and what to say. a_t, a_s: ᾱ."""
    (s_t, n_t), (s_s, n_s) = ((a**0.5, (1 - a) ** 0.5) for a in (a_t, a_s))
    x0, beta = (x - n_t * e) / s_t, 1 - a_t / a_s
    signal = "To get x0, divide what is left of x_t by the signal, √a_t: "
    roots = "signal and noise are √a and √(1 - a)."
    backward = s_t * (x - n_s * e) / s_s + n_t * e
    squared = a_s * (x - (1 - a_t**2) ** 0.5 * e) / a_t + (1 - a_s**2) ** 0.5 * e
    posterior = (s_s * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x) / (1 - a_t)
    return [
        (backward, "a_t and a_s are swapped: your step leads back to where it should have come from."),
        (x, "You are where you began, at x_t: put x0 and ε together at the new level, a_s."),
        (s_s * x0 + n_t * e, "The signal is of the new level, but the noise is of the old one: ε gets √(1 - a_s)."),
        (s_t * x0 + n_s * e, "The noise is of the new level, but the signal is of the old one: x0 gets √a_s."),
        (s_s * (x - n_t * e) + n_s * e, f"{signal}you did not divide."),
        (s_s * (x - n_t * e) * s_t + n_s * e, f"{signal}you multiply."),
        (s_s * (x - n_t * e) / a_t + n_s * e, f"{signal}you divide by a_t, its square."),
        (s_s * (x + n_t * e) / s_t + n_s * e, "To get x0, take the noise away from x_t: you add it once more."),
        (s_s * x0 - n_s * e, "At the new level the noise is added to the signal: you subtract it."),
        (a_s * (x - (1 - a_t) * e) / a_t + (1 - a_s) * e, f"The roots are missing: {roots}"),
        (s_s * (x - (1 - a_t) * e) / s_t + n_s * e, f"A root is missing where you take the noise away: {roots}"),
        (s_s * (x - (1 - a_t) * e) / a_t + n_s * e, f"Roots are missing in the estimate of x0: {roots}"),
        (a_s * x0 + (1 - a_s) * e, f"The estimate of x0 is right, but at the new level roots are missing: {roots}"),
        (s_s * x0 + (1 - a_s) * e, f"A root is missing where you add the noise: {roots}"),
        (a_s * x0 + n_s * e, f"A root is missing at the new level's signal: {roots}"),
        (s_s * (x - (1 - s_t) * e) / s_t + (1 - s_s) * e, "Your noise level is 1 - √a; it is √(1 - a)."),
        (squared, "You take a_t and a_s for the signal. They are the signal's square."),
        (posterior, "That is DDPM's mean, which counts on fresh noise to follow. DDIM draws none: it puts back as much "
         "of the same ε as the new level has."),
        (x0, "That is the estimate of x0. One guess is not the way: go to the new level, √a_s · x0 + √(1 - a_s) · ε."),
        (s_s * x0, "The signal has the new level, but no noise is put back: + √(1 - a_s) · ε."),
        (s_s / s_t * x - n_s * e, "You scale x_t as a whole, with its noise: take the noise out first."),
    ]  # fmt: skip


def verify_ddim_step(attempt: Callable) -> Iterator[str]:
    """One pixel, images between several levels, the end of the schedule, and a whole path with a known end."""
    a_t, a_s = (
        torch.tensor(0.0784).double(),
        torch.tensor(0.64).double(),
    )  # signal 0.28 and 0.8, noise 0.96 and 0.6
    x0, e = torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 1, 1), 0.5).double()
    x = 0.28 * x0 + 0.96 * e
    told = "x_t = 0.76 with ε = 0.5, from a_t = 0.0784 to a_s = 0.64 (so x0 = 1)"
    first, again = (as_tensor(call(attempt, x.clone(), e.clone(), a_t, a_s)) for _ in range(2))
    if isinstance(first, Tensor) and not near(again, first):
        raise Wrong("Two calls with the same arguments differ: this step draws no noise. The ε that it puts back is "
                    "the ε that it was given.")  # fmt: skip
    judge(first, 0.8 * x0 + 0.6 * e, ddim_mistakes(x, e, a_t, a_s), told)
    yield "one pixel: its noise taken away, then both put together at the new level"
    x, e = normal(1, 2, 3, 4, 5), normal(2, 2, 3, 4, 5)
    for level_t, level_s in ((0.1, 0.5), (0.3, 0.35), (0.9, 0.2)):
        a_t, a_s = (torch.tensor(level).double() for level in (level_t, level_s))
        expected = a_s.sqrt() * (x - (1 - a_t).sqrt() * e) / a_t.sqrt() + (1 - a_s).sqrt() * e
        told = f"images (2, 3, 4, 5) from a_t = {level_t} to a_s = {level_s}"
        judge(
            call(attempt, x.clone(), e.clone(), a_t, a_s),
            expected,
            ddim_mistakes(x, e, a_t, a_s),
            told,
        )
    yield "images, in short steps and long ones, and upwards in noise too (that is DDIM inversion, lesson 13)"
    a_t, a_s = torch.tensor(0.4).double(), torch.ones(()).double()
    expected = (x - 0.6**0.5 * e) / 0.4**0.5
    judge(
        call(attempt, x.clone(), e.clone(), a_t, a_s),
        expected,
        [],
        "a_s = 1, which leaves no noise and should give the estimate of x0",
    )
    yield "with a_s = 1 it returns the estimate of x0"
    yield _gaussian_path(attempt)


def _gaussian_path(attempt: Callable) -> str:
    """How far the student's steps end from the exact solution, for few steps and for many."""
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    mixture = gaussian(torch.tensor([[[2.0, -1.0]]]).double(), 0.3)  # images (1, 1, 2)
    model, noise = optimal_model(mixture, scheduler), normal(3, 4, 1, 1, 2)
    begin = torch.tensor([980])
    exact, errors = ode_solution(mixture, noise, level_at(scheduler, begin), CLEAN), []
    for steps in (5, 20, 80):
        x, path = noise, torch.linspace(980, 0, steps + 1).round().long()[:-1]
        levels = [*scheduler.alphas_cumprod.double()[path], torch.ones(()).double()]
        for number, t in enumerate(path):
            epsilon = model(x, t.expand(len(x)), None)
            x = as_tensor(call(attempt, x, epsilon, levels[number], levels[number + 1]))
        errors.append((x - exact).abs().max().item())
    if not errors[0] > errors[1] > errors[2] or not errors[2] < 0.1:
        raise Wrong(f"With the exact ε of a Gaussian, 5, 20 and 80 of your steps end {_listed(errors)} away from the "
                    "exact solution: more steps should come closer.")  # fmt: skip
    return f"with the exact ε of a Gaussian, 5, 20 and 80 steps end {_listed(errors)} away from the exact solution"


def _listed(errors: list[float]) -> str:
    first, second, third = (f"{error:.2g}" for error in errors)
    return f"{first}, {second} and {third}"


# 2.4 ------------------------------------------------------------------------------------------------------------------

SCHEDULE = DDPMScheduler(
    num_train_timesteps=10,
    trained_betas=np.linspace(0.04, 0.6, 10),
    variance_type="fixed_large",
    clip_sample=False,
)
"""Ten timesteps; "fixed_large" is the variance β, and what β means at the last step is what 2.4 is about."""


def ddpm_parts(attempt: Callable, x: Tensor, e: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """The student's step from t, its mean and its noise: equal generators with x_t = ε = 0 leave the noise alone.

    Raises Wrong for anything but a tensor of the shape of x_t, or if equal generators lead to two results.
    """
    table = SCHEDULE.alphas_cumprod.double()
    results = []
    for inputs in ((x, e), (x, e), (torch.zeros_like(x), torch.zeros_like(e))):
        given = [part.clone() for part in inputs]
        got = call(attempt, *given, t, table.clone(), torch.Generator().manual_seed(5))
        results.append(as_tensor(got))
        if not isinstance(results[-1], Tensor) or results[-1].shape != x.shape:
            raise Wrong(f"t = {t}: expected x at the next level, {brief(x)}; got {brief(got)}.")
    first, again, noise = results
    if not near(first, again):
        raise Wrong(
            f"t = {t}: two calls with equal generators differ. Draw the noise with `generator`."
        )
    return first, first - noise, noise


def _step_of_diffusers(
    x: Tensor, e: Tensor, t: int, table: Tensor, generator: torch.Generator
) -> Tensor:
    return SCHEDULE.step(e, t, x, generator=generator).prev_sample


def mean_mistakes(x: Tensor, e: Tensor, t: int) -> list[tuple[Tensor, str]]:
    """What plausible mistakes make of the mean of DDPM's step from t ≥ 1, and what to say."""
    table = SCHEDULE.alphas_cumprod.double()
    a_t, a_s = table[t], table[t - 1]
    x0, beta = (x - (1 - a_t) ** 0.5 * e) / a_t**0.5, 1 - a_t / a_s
    alpha = 1 - beta
    clipped = (a_s**0.5 * beta * x0.clamp(-1, 1) + alpha**0.5 * (1 - a_s) * x) / (1 - a_t)
    return [
        (
            x0,
            f"Your step from t = {t} leads straight to x0, as only the very last one does. Here t counts down to 0.",
        ),
        (x, f"Your step from t = {t} leaves x_t where it is. It leads to t - 1 = {t - 1}."),
        (clipped, "You clip the estimate of x0. Many samplers do, but this one was not meant to."),
        (
            a_s**0.5 * x0 + (1 - a_s) ** 0.5 * e,
            "That is DDIM's step. The mean that you were given was right.",
        ),
        (
            (x - beta * e) / alpha**0.5,
            "In the mean, ε gets β / √(1 - a_t). What you were given was right.",
        ),
        (
            x - beta / (1 - a_t) ** 0.5 * e,
            "The mean lacks the division by √(1 - β). What you were given was right.",
        ),
    ]


def _judge_std(noise: Tensor, t: int) -> None:
    """Raise Wrong unless the noise that a step from t ≥ 1 added has the variance β."""
    table = SCHEDULE.alphas_cumprod.double()
    a_t, a_s = table[t], table[t - 1]
    beta, found = 1 - a_t / a_s, noise.std().item()
    if abs(found - beta**0.5) < 0.04 * beta**0.5:
        return
    mistakes = [
        (0, "Only the step from t = 0 goes without: from every other one DDPM draws noise."),
        (((1 - a_s) / (1 - a_t) * beta) ** 0.5, "That is the posterior variance, the paper's other choice and a good "
         "one, whose noise at t = 0 vanishes by itself. But the β given here was no mistake: keep it."),
        (beta, "Now β is the standard deviation. It is the variance: keep the root."),
        (1, "The factor √β is gone."),
        ((1 - a_s) ** 0.5, "That is the noise level of the next x. The step adds only part of it, √β."),
        ((1 - a_t) ** 0.5, "That is the noise level of x_t. The step adds only part of it, √β."),
    ]  # fmt: skip
    told = f"t = {t}: the noise that your step adds has the standard deviation {found:.3f}, expected √β = {beta**0.5:.3f}."
    for wrong, message in mistakes:
        if abs(found - float(wrong)) <= 0.04 * float(wrong):
            raise Wrong(f"{told} {message}")
    raise Wrong(f"{told} At t > 0 the code you were given was right.")


def verify_ddpm_step(attempt: Callable) -> Iterator[str]:
    """The steps that were right must stay so; then the one from t = 0; then a whole chain whose end is known."""
    x, e = normal(6, 2, 3, 32, 32), normal(7, 2, 3, 32, 32)
    for t in (1, 5, 9):
        _, mean, noise = ddpm_parts(attempt, x, e, t)
        _, expected, _ = ddpm_parts(_step_of_diffusers, x, e, t)
        judge(mean, expected, mean_mistakes(x, e, t), f"the mean of the step from t = {t}")
        _judge_std(noise, t)
    yield "the steps from t = 1, 5 and 9 agree with diffusers' DDPMScheduler"
    _judge_last_step(attempt, x, e)
    yield "the step from t = 0 returns the estimate of x0, and adds nothing to it"
    yield _two_pictures(attempt)


def _judge_last_step(attempt: Callable, x: Tensor, e: Tensor) -> None:
    table = SCHEDULE.alphas_cumprod.double()
    a, last = table[0], table[-1]
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    got, mean, noise = ddpm_parts(attempt, x, e, 0)
    if got.isnan().any():
        raise Wrong("t = 0: the step that hands over the finished picture returns NaN, expected the estimate of x0. "
                    "All steps before it are right. What is different when t is 0?")  # fmt: skip
    std = noise.std().item()
    if near(mean, x0) and std > 0.01:
        raise Wrong(f"t = 0: you return x0 with noise on it, of standard deviation {std:.2f}. No step comes after this "
                    "one to take it away: the finished picture stays grainy.")  # fmt: skip
    ratio = a / last
    wrapped = (last**0.5 * (1 - ratio) * x0 + ratio**0.5 * (1 - last) * x) / (1 - a)
    mistakes = [
        (wrapped, f"The last step leads back into noise: {last**0.5:.2f} of x0 is left, and ε is in it "
         f"{ratio**0.5 * (1 - last) / (1 - a) ** 0.5:.0f} times. The noise drawn is gone, which is right. Which level "
         "does this step believe that it leads to?"),
        (x, "Your last step leaves x_t where it is, with its last bit of noise: the level that it leads to is not that "
         "of t = 0, where x_t is already. It is beyond the table: the clean picture."),
        ((1 - last) / (1 - a) * x, "β came out below 0, and you cut it off there. That hides the NaN, not its cause: "
         "which level does this step believe that it leads to?"),
        (torch.zeros_like(x), "Zeros instead of NaN: no warning any more, but no picture either. Where did the NaN "
         "come from?"),
        (x0.clamp(-1, 1), "You clip the estimate of x0. Many samplers do, but this one was not meant to."),
    ]  # fmt: skip
    judge(
        mean if std > 0.01 else got,
        x0,
        mistakes,
        "t = 0, the last step, should return the estimate of x0",
    )


def _two_pictures(attempt: Callable) -> str:
    """Whether a whole chain ends on the data, if the denoiser knows them by heart."""
    mixture = finite_data(normal(8, 2, 1, 4, 4))
    model, x = optimal_model(mixture, SCHEDULE), normal(9, 6, 1, 4, 4)
    generator, table = torch.Generator().manual_seed(10), SCHEDULE.alphas_cumprod.double()
    for t in range(9, -1, -1):
        epsilon = model(x, torch.full((len(x),), t), None)
        x = as_tensor(call(attempt, x, epsilon, t, table, generator))
    distance = torch.cdist(x.flatten(1), mixture.means).min(dim=1).values.max().item()
    if not distance < 0.01:
        raise Wrong(
            f"All ten steps, with a denoiser that knows two pictures by heart, end {distance:.2g} away from both."
        )
    return "ten steps with a denoiser that knows two pictures by heart end on one of them"
