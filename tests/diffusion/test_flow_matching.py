"""Samplers with flow matching, against ideal denoisers whose flow is known in closed form."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from course_lib.diffusion import (
    CLEAN_LEVEL,
    alpha_sigma_at,
    ddim,
    ddpm,
    empirical_distribution,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
    sample,
)

MEAN = torch.tensor([0.2, -0.7, 0.4], dtype=torch.float64)
SHIFTS = [1.0, 3.0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows=5):
    return torch.randn(rows, 3, generator=rng(5), dtype=torch.float64)


def run(sampler, scheduler, std, num_steps, x=None, **options):
    """All steps of a sampler with the ideal denoiser of N(MEAN, std²)."""
    ideal = ideal_denoiser(isotropic_gaussian(MEAN, std), scheduler)
    x = noise() if x is None else x
    options = {"generator": rng(), **options}
    return list(sampler(ideal, scheduler, x, num_inference_steps=num_steps, **options))


def levels(steps, scheduler):
    """The level that each step leads to."""
    timesteps = torch.tensor([step.t for step in steps], dtype=torch.float64)
    level = alpha_sigma_at(scheduler, timesteps[1:])
    pairs = torch.stack(level, dim=1).tolist()
    return [*pairs, (1.0, 0.0)]


# A point: every step lies on the next level


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("sampler", [sample, ddim])
def test_on_a_point_every_step_lies_on_the_next_level(sampler, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    steps = run(sampler, scheduler, 0.0, 8)
    for step, (alpha, sigma) in zip(steps, levels(steps, scheduler), strict=True):
        expected = alpha * MEAN + sigma * noise()
        tolerance = 1e-5 if sampler is sample else 1e-7  # diffusers computes in float32
        torch.testing.assert_close(step.x, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(step.x0, MEAN.expand(5, -1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    ("sampler", "options"), [(ddim, {"eta": 0.7}), (ddim, {"eta": 1}), (ddpm, {})]
)
def test_on_a_point_stochastic_steps_have_the_noise_of_the_next_level(sampler, options, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    steps = run(sampler, scheduler, 0.0, 8, noise(20000), **options)
    for step, (alpha, sigma) in zip(steps, levels(steps, scheduler), strict=True):
        eps = step.x - alpha * MEAN
        assert eps.std().item() == pytest.approx(sigma, rel=0.02, abs=1e-6)
        assert eps.mean(dim=0).abs().max().item() < 5 * sigma / 20000**0.5 + 1e-6


@pytest.mark.parametrize("shift", SHIFTS)
def test_inversion_of_a_point_is_exact(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    down = run(ddim, scheduler, 0.0, 8)
    up = run(ddim, scheduler, 0.0, 8, down[-1].x, inverse=True)
    again = run(ddim, scheduler, 0.0, 8, up[-1].x)
    torch.testing.assert_close(again[-1].x, down[-1].x, rtol=0, atol=1e-9)
    assert [step.t for step in up] == [down[-1].t, *(step.t for step in reversed(down[1:]))]


# A Gaussian: samplers converge to the probability flow


def fitted_order(sampler, scheduler, num_steps, **options):
    """Slope of the error at the data against the number of steps, and the last error."""
    exact = probability_flow_solution(
        isotropic_gaussian(MEAN, 0.6),
        noise(),
        alpha_sigma_at(scheduler, torch.tensor([1000])),
        CLEAN_LEVEL,
    )
    errors = [
        (run(sampler, scheduler, 0.6, n, **options)[-1].x - exact).abs().max().item()
        for n in num_steps
    ]
    return -np.polyfit(np.log(num_steps), np.log(errors), 1)[0], errors[-1]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("sampler", [sample, ddim])
def test_euler_converges_to_the_probability_flow_with_order_1(sampler, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    order, error = fitted_order(sampler, scheduler, (20, 40, 80))
    assert order == pytest.approx(1, abs=0.2) and 1e-3 < error < 0.05


def test_heun_converges_with_order_2():
    scheduler = FlowMatchHeunDiscreteScheduler()
    order, error = fitted_order(sample, scheduler, (12, 24, 48))
    assert order == pytest.approx(2, abs=0.2) and error < 1e-3


@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction_type", ["flow_prediction", "sample"])
def test_multistep_solvers_reach_the_probability_flow(scheduler, prediction_type):
    """They truncate t to an integer, so that the level of the model is off by up to 1 / 1000."""
    scheduler = scheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type=prediction_type)
    _, error = fitted_order(sample, scheduler, (24, 48))
    _, by_euler = fitted_order(ddim, FlowMatchEulerDiscreteScheduler(shift=3.0), (24, 48))
    assert error < min(0.02, by_euler / 4)


@pytest.mark.parametrize("shift", SHIFTS)
def test_inversion_of_a_gaussian_is_of_order_1(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    x, num_steps, errors = 0.6 * noise() + MEAN, (20, 40, 80), []
    for n in num_steps:
        up = run(ddim, scheduler, 0.6, n, x, inverse=True)
        errors.append((run(ddim, scheduler, 0.6, n, up[-1].x)[-1].x - x).abs().max().item())
    assert -np.polyfit(np.log(num_steps), np.log(errors), 1)[0] == pytest.approx(1, abs=0.25)


# One sampler is another


@pytest.mark.parametrize("shift", SHIFTS)
def test_ddim_without_noise_is_flow_match_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    model = lambda x, t, cond: torch.tanh(x * (1 + t.view(-1, 1) / 1000))  # noqa: E731
    options = {"num_inference_steps": 9, "generator": rng()}
    x = noise().float()
    for ours, other in zip(
        ddim(model, scheduler, x, **options), sample(model, scheduler, x, **options), strict=True
    ):
        torch.testing.assert_close(ours.x, other.x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.x0, other.x0, rtol=1e-5, atol=1e-5)
        assert ours.t == other.t


def test_ddpm_is_ddim_with_eta_1():
    """The two formulas for q(x_s | x_t, x0), of Kingma et al. and of Song et al."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    by_ddpm = run(ddpm, scheduler, 0.6, 9)
    by_ddim = run(ddim, scheduler, 0.6, 9, eta=1)
    for step, other in itertools.islice(zip(by_ddpm, by_ddim, strict=True), 8):
        torch.testing.assert_close(step.x, other.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [ddpm, ddim, sample])
def test_samplers_draw_every_datum_equally_often(sampler):
    data = torch.tensor([[-0.8, -0.8], [0.8, -0.6], [0.0, 0.9], [0.1, 0.0]])
    scheduler = FlowMatchEulerDiscreteScheduler()
    ideal = ideal_denoiser(empirical_distribution(data), scheduler)
    x = torch.randn(1200, 2, generator=rng(5))
    *_, last = sampler(ideal, scheduler, x, num_inference_steps=100, generator=rng())
    distances, nearest = torch.cdist(last.x, data).min(dim=1)
    assert distances.max() < 0.05
    counts = torch.bincount(nearest, minlength=4)
    assert ((counts - 300) ** 2 / 300).sum() < 21.1  # chi-squared, 3 degrees of freedom, p = 1e-4
