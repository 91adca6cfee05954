"""Lesson 02's exercises 2.3 and 2.4, single sampling steps: mistakes get their own message."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from course_lib.diffusion import ddpm, empirical_distribution, ideal_denoiser
from course_lib.exercises.lesson_02 import EXERCISES, ddim_step, ddpm_step
from course_lib.exercises.lesson_02_steps import SCHEDULER, ddim_mistakes, mean_mistakes
from course_lib.lab.checks import IncorrectAnswer, randn

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def ddim(
    x0=lambda x, e, a: (x - (1 - a) ** 0.5 * e) / a**0.5,
    back=lambda x0, e, a_t, a_s: a_s**0.5 * x0 + (1 - a_s) ** 0.5 * e,
):
    return lambda x, e, a_t, a_s: back(x0(x, e, a_t), e, a_t, a_s)


def ddpm_mean(x, e, a_t, a_s):
    x0, alpha = (x - (1 - a_t) ** 0.5 * e) / a_t**0.5, a_t / a_s
    return (a_s**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - a_s) * x) / (1 - a_t)


def fresh_noise(x0, e, a_t, a_s):
    return a_s**0.5 * x0 + (1 - a_s) ** 0.5 * torch.randn_like(e)


def noise_lost_at_the_end(x, e, a_t, a_s):
    return ddim_step(x, e, a_t, a_s) / (1 - a_s) * (1 - a_s)


def ancestral(
    prev=lambda table, t: table[t - 1] if t > 0 else 1.0,
    std=lambda a_t, a_s, beta: beta**0.5,
    mean=None,
    last=0,
    see=lambda x0: x0,
    fix_beta=lambda beta: beta,
):
    """A mutant of 2.4. last: the highest t whose step adds no noise (-1: all add some)."""

    def my_ddpm_step(x_t, epsilon, t, alphas_cumprod, generator):
        a_t, a_s = alphas_cumprod[t], prev(alphas_cumprod, t)
        x0 = see((x_t - (1 - a_t) ** 0.5 * epsilon) / a_t**0.5)
        beta = fix_beta(1 - a_t / a_s)
        step = (a_s**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x_t) / (1 - a_t)
        if mean and t > 0:
            step = mean(x_t, epsilon, x0, a_t, a_s, beta)
        if t <= last:
            return step
        noise = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
        return step + std(a_t, a_s, beta) * noise

    return my_ddpm_step


def wrapping(table, t):
    return table[t - 1]


def the_bug(x_t, epsilon, t, alphas_cumprod, generator):
    """What the student is given in 2.4."""
    a_t, a_s = alphas_cumprod[t], alphas_cumprod[t - 1]
    x0 = (x_t - (1 - a_t) ** 0.5 * epsilon) / a_t**0.5
    beta = 1 - a_t / a_s
    mean = (a_s**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_s) * x_t) / (1 - a_t)
    return mean + beta**0.5 * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)


def no_generator(x_t, epsilon, t, alphas_cumprod, generator):
    return ddpm_step(x_t, epsilon, t, alphas_cumprod, None)


def posterior(a_t, a_s, beta):
    return ((1 - a_s) / (1 - a_t) * beta) ** 0.5


def nan_gone(*args):
    return the_bug(*args).nan_to_num()


MUTANTS = [
    (
        "2.3",
        lambda x, e, a_t, a_s: ddim_step(x, e, a_s, a_t),
        "alpha_bar_t and alpha_bar_s are swapped",
    ),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_t**0.5 * x0 + (1 - a_t) ** 0.5 * e),
        "You are where you began",
    ),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_s**0.5 * x0 + (1 - a_t) ** 0.5 * e),
        "the noise is of the old one",
    ),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_t**0.5 * x0 + (1 - a_s) ** 0.5 * e),
        "the signal is of the old one",
    ),
    ("2.3", ddim(lambda x, e, a: x - (1 - a) ** 0.5 * e), "you did not divide"),
    ("2.3", ddim(lambda x, e, a: (x - (1 - a) ** 0.5 * e) * a**0.5), "you multiply"),
    ("2.3", ddim(lambda x, e, a: (x - (1 - a) ** 0.5 * e) / a), "you divide by ᾱ_t, its square"),
    ("2.3", ddim(lambda x, e, a: (x + (1 - a) ** 0.5 * e) / a**0.5), "you add it once more"),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_s**0.5 * x0 - (1 - a_s) ** 0.5 * e),
        "you subtract it",
    ),
    ("2.3", lambda x, e, a_t, a_s: ddim_step(x, e, a_t**2, a_s**2), "They are its square"),
    (
        "2.3",
        ddim(
            lambda x, e, a: (x - (1 - a) * e) / a, lambda x0, e, a_t, a_s: a_s * x0 + (1 - a_s) * e
        ),
        "The roots",
    ),
    (
        "2.3",
        ddim(lambda x, e, a: (x - (1 - a) * e) / a**0.5),
        "A root is missing where you take the noise away",
    ),
    ("2.3", ddim(lambda x, e, a: (x - (1 - a) * e) / a), "Roots are missing in the estimate of x0"),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_s * x0 + (1 - a_s) * e),
        "at the new level roots are missing",
    ),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_s**0.5 * x0 + (1 - a_s) * e),
        "A root is missing where you add",
    ),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: a_s * x0 + (1 - a_s) ** 0.5 * e),
        "at the new level's signal",
    ),
    (
        "2.3",
        ddim(
            lambda x, e, a: (x - (1 - a**0.5) * e) / a**0.5,
            lambda x0, e, a_t, a_s: a_s**0.5 * x0 + (1 - a_s**0.5) * e,
        ),
        "Your sigma is 1 - √ᾱ",
    ),
    ("2.3", ddpm_mean, "That is DDPM's mean"),
    (
        "2.3",
        ddim(back=lambda x0, e, a_t, a_s: x0),
        "That is the estimate of x0, and the first one is poor",
    ),
    ("2.3", ddim(back=lambda x0, e, a_t, a_s: a_s**0.5 * x0), "no noise is put back"),
    (
        "2.3",
        lambda x, e, a_t, a_s: (a_s / a_t) ** 0.5 * x - (1 - a_s) ** 0.5 * e,
        "You scale x_t as it is",
    ),
    ("2.3", ddim(back=fresh_noise), "this step samples no noise"),
    ("2.3", noise_lost_at_the_end, "alpha_bar_s = 1, which leaves no noise"),
    ("2.3", lambda x, e, a_t, a_s: None, "Is a `return` missing?"),
    ("2.4", the_bug, "returns NaN, expected the estimate of x0"),
    ("2.4", ancestral(prev=wrapping), "The last step leads back into noise"),
    ("2.4", ancestral(last=-1), "you return x0 with noise on it, of standard deviation 0.2"),
    (
        "2.4",
        ancestral(prev=lambda table, t: table[max(t - 1, 0)]),
        "leaves x_t where it is, with its last bit of noise",
    ),
    (
        "2.4",
        ancestral(prev=wrapping, fix_beta=lambda beta: beta.clamp(min=0)),
        "you cut it off at 0",
    ),
    ("2.4", nan_gone, "Zeros instead of NaN"),
    ("2.4", ancestral(prev=lambda table, t: table[t - 1] if t > 0 else 0.0), "returns NaN"),
    ("2.4", ancestral(last=1), "Only the step from t = 0 goes without"),
    ("2.4", ancestral(last=9), "Only the step from t = 0 goes without"),
    (
        "2.4",
        ancestral(prev=lambda table, t: table[t - 1] if t > 1 else torch.tensor(1.0)),
        "leads straight to x0",
    ),
    (
        "2.4",
        ancestral(prev=lambda table, t: table[t]),
        "Your step from t = 1 leaves x_t where it is",
    ),
    ("2.4", ancestral(std=posterior), "That is the posterior variance"),
    ("2.4", ancestral(std=lambda a_t, a_s, beta: beta), "Now β is the standard deviation"),
    ("2.4", ancestral(std=lambda a_t, a_s, beta: 1), "The factor √β is gone"),
    (
        "2.4",
        ancestral(std=lambda a_t, a_s, beta: (1 - a_s) ** 0.5),
        "the noise level of the next x",
    ),
    ("2.4", ancestral(std=lambda a_t, a_s, beta: (1 - a_t) ** 0.5), "the noise level of x_t"),
    (
        "2.4",
        ancestral(std=lambda a_t, a_s, beta: 3 * beta**0.5),
        "At t > 0 the code you were given was right",
    ),
    ("2.4", ancestral(see=lambda x0: x0.clamp(-1, 1)), "You clip the estimate of x0"),
    (
        "2.4",
        ancestral(mean=lambda x, e, x0, a_t, a_s, beta: a_s**0.5 * x0 + (1 - a_s) ** 0.5 * e),
        "That is DDIM's step",
    ),
    (
        "2.4",
        ancestral(mean=lambda x, e, x0, a_t, a_s, b: (x - b * e) / (1 - b) ** 0.5),
        "ε gets β / √(1 - a_t)",
    ),
    (
        "2.4",
        ancestral(mean=lambda x, e, x0, a_t, a_s, b: x - b / (1 - a_t) ** 0.5 * e),
        "lacks the division",
    ),
    ("2.4", no_generator, "Sample the noise with `generator`"),
    ("2.4", lambda *a: None, "Is a `return` missing?"),
    ("2.4", lambda *a: ddpm_step(*a)[0], "t = 1: expected x at the next level"),
]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    torch.manual_seed(0)
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def test_there_are_five_mistakes_or_more():
    for exercise in ("2.3", "2.4"):
        assert len({message for identifier, _, message in MUTANTS if identifier == exercise}) >= 5


# What the messages rest on: mistakes that lead to clearly different values


def clearly_different(values):
    for (i, a), (j, b) in itertools.combinations(enumerate(values), 2):
        assert not torch.allclose(a, b, rtol=0, atol=5e-3), f"{i} and {j} look alike"


def test_mistakes_of_2_3_differ():
    for x, e, *levels in (
        (torch.tensor(0.76), torch.tensor(0.5), 0.0784, 0.64),
        (randn(1, 9), randn(2, 9), 0.1, 0.5),
    ):
        levels = [torch.tensor(level).double() for level in levels]
        wrong = [values for values, _ in ddim_mistakes(x.double(), e.double(), *levels)]
        clearly_different([ddim_step(x.double(), e.double(), *levels), *wrong])


def test_mistakes_of_2_5_differ():
    x, e = randn(6, 40), randn(7, 40)
    clearly_different([values for values, _ in mean_mistakes(x, e, 5)])


# Right answers in another style

OTHERS = [
    (
        "2.3",
        lambda x, e, a, b: (b / a) ** 0.5 * x + ((1 - b) ** 0.5 - (b / a * (1 - a)) ** 0.5) * e,
    ),
    ("2.3", lambda x, e, a, b: ddim_step(x.float(), e.float(), a.item(), b.item())),
    ("2.3", lambda x, e, a, b: ddim_step(x.numpy(), e.numpy(), float(a), float(b))),
    ("2.4", ancestral(std=lambda a_t, a_s, beta: torch.sqrt(torch.as_tensor(beta)))),
    (
        "2.4",
        ancestral(
            mean=lambda x, e, x0, a_t, a_s, b: (x - b / (1 - a_t) ** 0.5 * e) / (1 - b) ** 0.5
        ),
    ),
    ("2.4", lambda x, e, t, a, generator: ddpm_step(x.float(), e.float(), t, a, generator)),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


# The solutions against the libraries


def test_the_solution_of_2_3_is_that_of_diffusers():
    scheduler, x, e = (
        DDIMScheduler(clip_sample=False),
        randn(50, 2, 3, 4, 4),
        randn(51, 2, 3, 4, 4),
    )
    scheduler.set_timesteps(50)
    table, expected = scheduler.alphas_cumprod.double(), scheduler.step(e, 500, x).prev_sample
    torch.testing.assert_close(
        ddim_step(x, e, table[500], table[480]), expected, rtol=1e-4, atol=1e-6
    )


def test_the_solution_of_2_5_is_ddpm():
    model, x = (
        ideal_denoiser(empirical_distribution(randn(53, 3, 2, 4, 4)), SCHEDULER),
        randn(54, 5, 2, 4, 4),
    )
    table, mine = SCHEDULER.alphas_cumprod.double(), torch.Generator().manual_seed(3)
    theirs = ddpm(
        model, SCHEDULER, x, num_inference_steps=10, generator=torch.Generator().manual_seed(3)
    )
    for t, step in zip(range(9, -1, -1), theirs, strict=True):
        x = ddpm_step(x, model(x, torch.full((5,), t), None), t, table, mine)
        torch.testing.assert_close(x, step.x, rtol=1e-5, atol=1e-5)


def test_the_bug_of_2_5_hides_in_every_step_but_the_last():
    """That makes it a good bug; and a guard on only the noise hides it better."""
    x, e, table = randn(55, 2, 3, 4, 4), randn(56, 2, 3, 4, 4), SCHEDULER.alphas_cumprod.double()
    for t in range(1, 10):
        pair = [
            step(x, e, t, table, torch.Generator().manual_seed(t)) for step in (the_bug, ddpm_step)
        ]
        torch.testing.assert_close(*pair, rtol=0, atol=0)
    assert the_bug(x, e, 0, table, torch.Generator()).isnan().all()
    assert ancestral(prev=wrapping)(x, e, 0, table, torch.Generator()).std() > 10


def test_the_bug_of_2_5_shows_on_a_usual_schedule_too():
    table = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    assert (
        the_bug(randn(1, 1, 1, 2, 2), randn(2, 1, 1, 2, 2), 0, table, torch.Generator())
        .isnan()
        .all()
    )
