"""Samplers against flows and data that are known: how fast their errors fall, and what they draw how often."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from course_lib.diffusion import (
    PREDICTION_TYPES,
    ddim,
    ddpm,
    finite_data,
    gaussian,
    level_at,
    ode_solution,
    optimal_model,
    sample,
)

# The set_timesteps of Euler and DPM-Solver hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def even_schedule(scheduler, **config):
    """Log-SNR falls evenly over 961 timesteps, from 8 to -8: any divisor of 960 makes even steps."""
    squared = 1 / (1 + np.exp(-np.linspace(8, -8, 961)))
    betas = 1 - squared / np.concatenate([[1.0], squared[:-1]])
    return scheduler(
        trained_betas=betas.tolist(), num_train_timesteps=961, timestep_spacing="linspace", **config
    )


def errors(scheduler, run, counts):
    """Largest error at timestep 0 against the closed form, for each number of steps."""
    data = gaussian(torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64), 0.6)
    start, end = level_at(scheduler, torch.tensor([960])), level_at(scheduler, torch.tensor([0]))
    x = torch.randn(6, 3, generator=rng(5), dtype=torch.float64)
    exact = ode_solution(data, x, start, end)
    return [
        (run(optimal_model(data, scheduler), x, steps) - exact).abs().max().item()
        for steps in counts
    ]


def order(found):
    """By how much, in powers of two, halving the steps lowered the error."""
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


def run_ddim(scheduler):
    def run(oracle, x, steps):
        *_, last = ddim(oracle, scheduler, x, steps=steps + 1)  # both ends are visited
        return last.x

    return run


def run_euler(scheduler):
    def run(oracle, x, steps):
        start, end = (level_at(scheduler, torch.tensor([t])) for t in (960, 0))
        scaled = (
            x / start.signal / (start.noise / start.signal)
        )  # sample multiplies by σ at the start
        *_, last = sample(oracle, scheduler, scaled.float(), steps=steps + 1, generator=rng())
        return last.x.double() * end.signal

    return run


def run_solver(scheduler):
    def run(oracle, x, steps):
        *_, last = sample(oracle, scheduler, x.float(), steps=steps, generator=rng())
        return last.x.double()

    return run


SOLVER = {"final_sigmas_type": "sigma_min", "lower_order_final": False}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_sampler_has_its_order_of_convergence(kind):
    """On one Gaussian, whose flow is known: DDIM and Euler are of first order, DPM-Solver++ 2M is of second."""
    counts = (12, 24, 48, 96)
    typed = {"prediction_type": kind}
    scheduler = even_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **typed)
    by_ddim = errors(scheduler, run_ddim(scheduler), counts)
    assert order(by_ddim) == pytest.approx([1, 1, 1], abs=0.25) and by_ddim[-1] > 1e-3
    scheduler = even_schedule(EulerDiscreteScheduler, final_sigmas_type="sigma_min", **typed)
    by_euler = errors(scheduler, run_euler(scheduler), counts)
    assert by_euler == pytest.approx(by_ddim, rel=1e-2)  # in x / signal, DDIM is Euler's method
    scheduler = even_schedule(DPMSolverMultistepScheduler, solver_order=1, **SOLVER, **typed)
    assert errors(scheduler, run_solver(scheduler), counts) == pytest.approx(by_ddim, rel=1e-2)
    scheduler = even_schedule(DPMSolverMultistepScheduler, solver_order=2, **SOLVER, **typed)
    by_solver = errors(scheduler, run_solver(scheduler), counts)
    assert (
        order(by_solver) == pytest.approx([2, 2, 2], abs=0.35) and by_solver[-1] < by_ddim[-1] / 20
    )


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_draws_every_datum_as_often(variance):
    data = torch.tensor([[-0.8, -0.8], [0.8, -0.6], [0.0, 0.9], [0.1, 0.0]])
    scheduler = DDPMScheduler(variance_type=variance, prediction_type="v_prediction")
    oracle = optimal_model(finite_data(data), scheduler)
    *_, last = ddpm(
        oracle, scheduler, torch.randn(1200, 2, generator=rng(5)), steps=100, generator=rng()
    )
    distances, nearest = torch.cdist(last.x, data).min(dim=1)
    assert distances.max() < 0.05
    counts = torch.bincount(nearest, minlength=4)
    assert ((counts - 300) ** 2 / 300).sum() < 21.1  # chi-squared, 3 degrees of freedom, p = 1e-4
