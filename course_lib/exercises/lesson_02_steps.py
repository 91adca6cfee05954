"""The checks of exercises 2.3 and 2.4, single sampling steps. Solutions are in `lesson_02.py`."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from course_lib.diffusion import (
    CLEAN_LEVEL,
    alpha_sigma_at,
    empirical_distribution,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
)
from course_lib.lab.checks import (
    Mistake,
    as_tensor,
    call,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    randn,
    require,
)

# 2.3 ----------------------------------------------------------------------------------------------


def ddim_mistakes(
    x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor
) -> list[Mistake]:
    """What likely mistakes in 2.3 return for one step of DDIM; the arguments are those of 2.3."""
    x, e, a_t, a_s = x_t, eps, alpha_bar_t, alpha_bar_s
    (s_t, n_t), (s_s, n_s) = ((a**0.5, (1 - a) ** 0.5) for a in (a_t, a_s))
    x0, beta = (x - n_t * e) / s_t, 1 - a_t / a_s
    divide = "To get x0, divide what is left of x_t by alpha, √ᾱ_t: "
    roots = "alpha and sigma are √ᾱ and √(1 - ᾱ)."
    backward = s_t * (x - n_s * e) / s_s + n_t * e
    squared = a_s * (x - (1 - a_t**2) ** 0.5 * e) / a_t + (1 - a_s**2) ** 0.5 * e
    posterior = (s_s * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x) / (1 - a_t)
    return [
        (backward, "alpha_bar_t and alpha_bar_s are swapped: your step leads back to where it "
                   "should have come from."),
        (x, "You are where you began, at x_t: put x0 and ε together at the new level, "
            "alpha_bar_s."),
        (s_s * x0 + n_t * e, "The signal is of the new level, but the noise is of the old one: ε "
                             "gets √(1 - ᾱ_s)."),
        (s_t * x0 + n_s * e, "The noise is of the new level, but the signal is of the old one: "
                             "x0 gets √ᾱ_s."),
        (s_s * (x - n_t * e) + n_s * e, f"{divide}you did not divide."),
        (s_s * (x - n_t * e) * s_t + n_s * e, f"{divide}you multiply."),
        (s_s * (x - n_t * e) / a_t + n_s * e, f"{divide}you divide by ᾱ_t, its square."),
        (s_s * (x + n_t * e) / s_t + n_s * e,
         "To get x0, take the noise away from x_t: you add it once more."),
        (s_s * x0 - n_s * e, "At the new level the noise is added to the signal: you subtract it."),
        (a_s * (x - (1 - a_t) * e) / a_t + (1 - a_s) * e, f"The roots are missing: {roots}"),
        (s_s * (x - (1 - a_t) * e) / s_t + n_s * e,
         f"A root is missing where you take the noise away: {roots}"),
        (s_s * (x - (1 - a_t) * e) / a_t + n_s * e,
         f"Roots are missing in the estimate of x0: {roots}"),
        (a_s * x0 + (1 - a_s) * e, "The estimate of x0 is right, but at the new level roots are "
                                   f"missing: {roots}"),
        (s_s * x0 + (1 - a_s) * e, f"A root is missing where you add the noise: {roots}"),
        (a_s * x0 + n_s * e, f"A root is missing at the new level's signal: {roots}"),
        (s_s * (x - (1 - s_t) * e) / s_t + (1 - s_s) * e, "Your sigma is 1 - √ᾱ; it is √(1 - ᾱ)."),
        (squared, "You take alpha_bar_t and alpha_bar_s for alpha. They are its square."),
        (posterior, "That is DDPM's mean, which counts on fresh noise to follow. DDIM samples "
                    "none: it puts back as much of the same ε as the new level has."),
        (x0, "That is the estimate of x0, and the first one is poor: go to the new level, √ᾱ_s · "
             "x0 + √(1 - ᾱ_s) · ε."),
        (s_s * x0, "The signal has the new level, but no noise is put back: + √(1 - ᾱ_s) · ε."),
        (s_s / s_t * x - n_s * e, "You scale x_t as it is, with its noise: take the noise out "
                                  "first."),
    ]  # fmt: skip


def verify_ddim_step(attempt: Callable) -> Iterator[str]:
    """Checks one pixel, images at several levels, the end, and a path whose end is known."""
    pixel, (x, e) = torch.ones(1, 1, 1, 1).double(), (randn(1, 2, 3, 4, 5), randn(2, 2, 3, 4, 5))
    images = "images (2, 3, 4, 5) from ᾱ_t = {} to ᾱ_s = {}"
    for case, x_t, eps, *levels in (
        ("x_t = 0.76 with ε = 0.5, from ᾱ_t = 0.0784 to ᾱ_s = 0.64 (so x0 = 1)",
         0.76 * pixel, 0.5 * pixel, 0.0784, 0.64),
        (images.format(0.1, 0.5), x, e, 0.1, 0.5),
        (images.format(0.3, 0.35), x, e, 0.3, 0.35),
        (images.format(0.9, 0.2) + " (more noise: DDIM inversion, lesson 13)", x, e, 0.9, 0.2),
        ("alpha_bar_s = 1, which leaves no noise and should give the estimate of x0",
         x, e, 0.4, 1.0),
    ):  # fmt: skip
        a_t, a_s = torch.tensor(levels).double()
        inputs = {"x_t": x_t, "eps": eps, "alpha_bar_t": a_t, "alpha_bar_s": a_s}
        result, second = (as_tensor(call_on_copies(attempt, **inputs)) for _ in range(2))
        require(
            not isinstance(result, Tensor) or is_close(second, result),
            "Two calls with the same arguments differ: this step samples no noise. The ε that it "
            "puts back is the ε that it was given.",
        )
        x0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
        expected = a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps
        diagnose(result, expected, ddim_mistakes(x_t, eps, a_t, a_s), case)
        yield f"right for {case}"
    yield _check_gaussian_path(attempt)


def _check_gaussian_path(attempt: Callable) -> str:
    """Compares the end of the student's path with the exact one, for few steps and for many."""
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    mixture = isotropic_gaussian(torch.tensor([[[2.0, -1.0]]]).double(), 0.3)  # images (1, 1, 2)
    model, noise = ideal_denoiser(mixture, scheduler), randn(3, 4, 1, 1, 2)
    exact, errors = (
        probability_flow_solution(
            mixture, noise, alpha_sigma_at(scheduler, torch.tensor([980])), CLEAN_LEVEL
        ),
        [],
    )
    for num_steps in (5, 20, 80):
        x, path = noise, torch.linspace(980, 0, num_steps + 1).round().long()[:-1]
        levels = [*scheduler.alphas_cumprod.double()[path], torch.ones(()).double()]
        for i, t in enumerate(path):
            eps = model(x, t.expand(len(x)), None)
            x = as_tensor(call(attempt, x, eps, levels[i], levels[i + 1]))
        errors.append((x - exact).abs().max().item())
    few, more, many = (f"{error:.2g}" for error in errors)
    text = (
        f"with the exact ε of a Gaussian, 5, 20 and 80 steps end {few}, {more} and {many} away "
        "from the exact solution"
    )
    require(
        errors[0] > errors[1] > errors[2] and errors[2] < 0.1,
        f"{text}: more steps should come closer.",
    )
    return text


# 2.4 ----------------------------------------------------------------------------------------------

# Ten timesteps. "fixed_large" is the variance β; what it means at the last step is what 2.4 teaches
SCHEDULER = DDPMScheduler(
    num_train_timesteps=10,
    trained_betas=np.linspace(0.04, 0.6, 10),
    variance_type="fixed_large",
    clip_sample=False,
)


def ddpm_parts(
    attempt: Callable, x_t: Tensor, eps: Tensor, t: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of 2.4 from t, its mean and its noise.

    The noise is what the same generator gives for x_t = ε = 0.

    Raises:
        IncorrectAnswer: unless it is a tensor shaped like x_t, and the same for equal generators.
    """
    table, results = SCHEDULER.alphas_cumprod.double(), []
    for scale in (1, 1, 0):
        inputs = {"x_t": scale * x_t, "eps": scale * eps, "t": t, "alphas_cumprod": table}
        generator = torch.Generator().manual_seed(5)
        result = as_tensor(call_on_copies(attempt, **inputs, generator=generator))
        require(
            isinstance(result, Tensor) and result.shape == x_t.shape,
            f"t = {t}: expected x at the next level, {describe_value(x_t)}; got "
            f"{describe_value(result)}.",
        )
        results.append(result)
    first, second, noise = results
    require(
        is_close(first, second),
        f"t = {t}: two calls with equal generators differ. Sample the noise with `generator`.",
    )
    return first, first - noise, noise


def mean_mistakes(x_t: Tensor, eps: Tensor, t: int) -> list[Mistake]:
    """What likely mistakes make of the mean of DDPM's step from t ≥ 1."""
    x, e, table = x_t, eps, SCHEDULER.alphas_cumprod.double()
    a_t, a_s = table[t], table[t - 1]
    x0, beta = (x - (1 - a_t) ** 0.5 * e) / a_t**0.5, 1 - a_t / a_s
    alpha = 1 - beta
    clipped = (a_s**0.5 * beta * x0.clamp(-1, 1) + alpha**0.5 * (1 - a_s) * x) / (1 - a_t)
    was_right = "What you were given was right."
    return [
        (x0, f"Your step from t = {t} leads straight to x0, as only the very last one does, from "
             "t = 0."),
        (x, f"Your step from t = {t} leaves x_t where it is. It leads to t - 1 = {t - 1}."),
        (clipped, "You clip the estimate of x0. Many samplers do, but this one was not meant to."),
        (a_s**0.5 * x0 + (1 - a_s) ** 0.5 * e,
         "That is DDIM's step. The mean that you were given was right."),
        ((x - beta * e) / alpha**0.5, f"In the mean, ε gets β / √(1 - a_t). {was_right}"),
        (x - beta / (1 - a_t) ** 0.5 * e, f"The mean lacks the division by √(1 - β). {was_right}"),
    ]  # fmt: skip


def _check_std(noise: Tensor, t: int) -> None:
    table = SCHEDULER.alphas_cumprod.double()
    a_t, a_s = table[t], table[t - 1]
    beta, std = 1 - a_t / a_s, noise.std().item()
    if abs(std - beta**0.5) < 0.04 * beta**0.5:
        return
    mistakes = [
        (0, "Only the step from t = 0 goes without: from every other one DDPM samples noise."),
        (((1 - a_s) / (1 - a_t) * beta) ** 0.5,
         "That is the posterior variance, the paper's other choice and a good one, whose noise "
         "at t = 0 vanishes by itself. But the β given in the exercise was no mistake: keep it."),
        (beta, "Now β is the standard deviation. It is the variance: keep the root."),
        (1, "The factor √β is gone."),
        ((1 - a_s) ** 0.5, "That is the noise level of the next x. The step adds only part of "
                           "it, √β."),
        ((1 - a_t) ** 0.5, "That is the noise level of x_t. The step adds only part of it, √β."),
    ]  # fmt: skip
    text = (
        f"t = {t}: the noise that your step adds has the standard deviation {std:.3f}, expected √β "
        f"= {beta**0.5:.3f}."
    )
    for wrong, message in mistakes:
        require(abs(std - float(wrong)) > 0.04 * float(wrong), f"{text} {message}")
    require(False, f"{text} At t > 0 the code you were given was right.")


def verify_ddpm_step(attempt: Callable) -> Iterator[str]:
    """Checks the steps that were right, then the one from t = 0, then a complete chain."""
    x_t, eps = randn(6, 2, 3, 32, 32), randn(7, 2, 3, 32, 32)
    for t in (1, 5, 9):
        _, mean, noise = ddpm_parts(attempt, x_t, eps, t)
        _, expected, _ = ddpm_parts(
            lambda x, e, t, _, g: SCHEDULER.step(e, t, x, generator=g).prev_sample, x_t, eps, t
        )
        diagnose(mean, expected, mean_mistakes(x_t, eps, t), f"the mean of the step from t = {t}")
        _check_std(noise, t)
    yield "the steps from t = 1, 5 and 9 agree with diffusers' DDPMScheduler"
    _check_last_step(attempt, x_t, eps)
    yield "the step from t = 0 returns the estimate of x0, and adds nothing to it"
    yield _check_chain(attempt)


def _check_last_step(attempt: Callable, x: Tensor, e: Tensor) -> None:
    a, last = SCHEDULER.alphas_cumprod.double()[[0, -1]]
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    result, mean, noise = ddpm_parts(attempt, x, e, 0)
    require(
        not result.isnan().any(),
        "t = 0: the step that gives the clean image returns NaN, expected the estimate of x0. All "
        "steps before it are right. What is different when t is 0?",
    )
    std = noise.std().item()
    require(
        not (is_close(mean, x0) and std > 0.01),
        f"t = 0: you return x0 with noise on it, of standard deviation {std:.2f}. No step comes "
        "after this one to take it away: the image stays grainy.",
    )
    ratio = a / last
    wrapped = (last**0.5 * (1 - ratio) * x0 + ratio**0.5 * (1 - last) * x) / (1 - a)
    times = ratio**0.5 * (1 - last) / (1 - a) ** 0.5
    which = "which level does this step believe that it leads to?"
    mistakes = [
        (wrapped, f"The last step leads back into noise: {last**0.5:.2f} of x0 is left, and ε is "
                  f"in it {times:.0f} times. The random noise is gone, which is right. But "
                  f"{which}"),
        (x, "Your last step leaves x_t where it is, with its last bit of noise: the level that "
            "it leads to is not that of t = 0, where x_t is already. It is beyond the table: the "
            "clean image."),
        ((1 - last) / (1 - a) * x, "β came out below 0, and you cut it off at 0. That hides the "
                                   f"NaN, not its cause: {which}"),
        (torch.zeros_like(x), "Zeros instead of NaN: no warning any more, but no image either. "
                              "Where did the NaN come from?"),
        (x0.clamp(-1, 1), "You clip the estimate of x0. Many samplers do, but this one was not "
                          "meant to."),
    ]  # fmt: skip
    diagnose(
        mean if std > 0.01 else result,
        x0,
        mistakes,
        "t = 0, the last step, should return the estimate of x0",
    )


def _check_chain(attempt: Callable) -> str:
    """Checks that a complete chain ends on the data, with the ideal denoiser of two images."""
    mixture = empirical_distribution(randn(8, 2, 1, 4, 4))
    model, x = ideal_denoiser(mixture, SCHEDULER), randn(9, 6, 1, 4, 4)
    generator, table = torch.Generator().manual_seed(10), SCHEDULER.alphas_cumprod.double()
    for t in range(9, -1, -1):
        eps = model(x, torch.full((len(x),), t), None)
        x = as_tensor(call(attempt, x, eps, t, table, generator))
    distance = torch.cdist(x.flatten(1), mixture.means).min(dim=1).values.max().item()
    require(
        distance < 0.01,
        f"All ten steps, with the ideal denoiser of two images, end {distance:.2g} away from both.",
    )
    return "ten steps with the ideal denoiser of two images end on one of them"
