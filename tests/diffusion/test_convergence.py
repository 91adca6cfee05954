"""Samplers against flows in closed form: orders of convergence, and frequencies of the samples."""

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
    alpha_sigma_at,
    ddim,
    ddpm,
    empirical_distribution,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
    sample,
)

# The set_timesteps of Euler and DPM-Solver hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_STEPS = (12, 24, 48, 96)
TYPES = ("epsilon", "sample", "v_prediction")  # those of diffusers for these schedules
DATA = isotropic_gaussian(torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64), 0.6)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def even_schedule(scheduler, **config):
    """Log-SNR falls evenly over 961 timesteps from 8 to -8; divisors of 960 make even steps."""
    alpha_bar = 1 / (1 + np.exp(-np.linspace(8, -8, 961)))
    betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    config = {"trained_betas": betas.tolist(), "num_train_timesteps": 961, **config}
    return scheduler(timestep_spacing="linspace", **config)


def errors(scheduler, run):
    """Largest error at timestep 0 against the closed form, for each number of steps."""
    start, end = (alpha_sigma_at(scheduler, torch.tensor([t])) for t in (960, 0))
    x = torch.randn(6, 3, generator=rng(5), dtype=torch.float64)
    exact = probability_flow_solution(DATA, x, start, end)
    ideal = ideal_denoiser(DATA, scheduler)
    return [(run(ideal, x, n) - exact).abs().max().item() for n in NUM_STEPS]


def orders(found_errors):
    """By how much, in powers of two, halving the steps lowered the error."""
    return [math.log2(a / b) for a, b in itertools.pairwise(found_errors)]


def run_ddim(scheduler, **options):
    def run(ideal, x, num_steps):
        # both ends are visited
        *_, last = ddim(ideal, scheduler, x, num_inference_steps=num_steps + 1, **options)
        return last.x

    return run


def run_euler(scheduler):
    def run(ideal, x, num_steps):
        start, end = (alpha_sigma_at(scheduler, torch.tensor([t])) for t in (960, 0))
        scaled = (x / start.sigma).float()  # sample multiplies by sigma / alpha, the data by alpha
        options = {"num_inference_steps": num_steps + 1, "generator": rng()}
        *_, last = sample(ideal, scheduler, scaled, **options)
        return last.x.double() * end.alpha

    return run


def run_solver(scheduler):
    def run(ideal, x, num_steps):
        options = {"num_inference_steps": num_steps, "generator": rng()}
        *_, last = sample(ideal, scheduler, x.float(), **options)
        return last.x.double()

    return run


@pytest.mark.parametrize("prediction_type", TYPES)
def test_every_sampler_has_its_order_of_convergence(prediction_type):
    """On a Gaussian, DDIM and Euler are of first order and DPM-Solver++ 2M of second."""
    config = {"prediction_type": prediction_type}
    scheduler = even_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **config)
    by_ddim = errors(scheduler, run_ddim(scheduler))
    assert orders(by_ddim) == pytest.approx([1, 1, 1], abs=0.25) and by_ddim[-1] > 1e-3
    scheduler = even_schedule(EulerDiscreteScheduler, final_sigmas_type="sigma_min", **config)
    by_euler = errors(scheduler, run_euler(scheduler))
    assert by_euler == pytest.approx(by_ddim, rel=1e-2)  # in x / alpha, DDIM is Euler's method
    config = {"final_sigmas_type": "sigma_min", "lower_order_final": False, **config}
    scheduler = even_schedule(DPMSolverMultistepScheduler, solver_order=1, **config)
    assert errors(scheduler, run_solver(scheduler)) == pytest.approx(by_ddim, rel=1e-2)
    scheduler = even_schedule(DPMSolverMultistepScheduler, solver_order=2, **config)
    by_solver = errors(scheduler, run_solver(scheduler))
    assert orders(by_solver) == pytest.approx([2, 2, 2], abs=0.35)
    assert by_solver[-1] < by_ddim[-1] / 20


@pytest.mark.parametrize("prediction_type", TYPES)
def test_ddim_inversion_is_of_first_order(prediction_type):
    """Up from data it converges to the probability flow, and back down to the data."""
    config = {"prediction_type": prediction_type, "clip_sample": False}
    scheduler = even_schedule(DDIMScheduler, set_alpha_to_one=False, **config)
    top, bottom = (alpha_sigma_at(scheduler, torch.tensor([t])) for t in (960, 0))
    x = torch.randn(6, 3, generator=rng(5), dtype=torch.float64)
    exact = probability_flow_solution(DATA, x, bottom, top)
    ideal = ideal_denoiser(DATA, scheduler)
    up_errors, round_trip_errors = [], []
    for num_steps in NUM_STEPS:
        up = run_ddim(scheduler, inverse=True)(ideal, x, num_steps)
        down = run_ddim(scheduler)(ideal, up, num_steps)
        up_errors.append((up - exact).abs().max().item())
        round_trip_errors.append((down - x).abs().max().item())
    for each in (up_errors, round_trip_errors):
        slope = -np.polyfit(np.log(NUM_STEPS), np.log(each), 1)[0]
        assert slope == pytest.approx(1, abs=0.25)


def test_inversion_from_clean_data_is_of_first_order_too():
    """With set_alpha_to_one the path starts at CLEAN_LEVEL, below the lowest timestep."""
    scheduler = even_schedule(DDIMScheduler, clip_sample=False)
    x = torch.randn(6, 3, generator=rng(5), dtype=torch.float64)
    ideal = ideal_denoiser(DATA, scheduler)
    round_trip_errors = []
    for num_steps in NUM_STEPS:
        up = run_ddim(scheduler, inverse=True)(ideal, x, num_steps)
        down = run_ddim(scheduler)(ideal, up, num_steps)
        round_trip_errors.append((down - x).abs().max().item())
    slope = -np.polyfit(np.log(NUM_STEPS), np.log(round_trip_errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_draws_every_datum_equally_often(variance):
    data = torch.tensor([[-0.8, -0.8], [0.8, -0.6], [0.0, 0.9], [0.1, 0.0]])
    scheduler = DDPMScheduler(variance_type=variance, prediction_type="v_prediction")
    ideal = ideal_denoiser(empirical_distribution(data), scheduler)
    noise = torch.randn(1200, 2, generator=rng(5))
    *_, last = ddpm(ideal, scheduler, noise, num_inference_steps=100, generator=rng())
    distances, nearest = torch.cdist(last.x, data).min(dim=1)
    assert distances.max() < 0.05
    counts = torch.bincount(nearest, minlength=4)
    assert ((counts - 300) ** 2 / 300).sum() < 21.1  # chi-squared, 3 degrees of freedom, p = 1e-4
