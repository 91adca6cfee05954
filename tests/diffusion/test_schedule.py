"""Noise levels and prediction types, against diffusers and by their definitions."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from course_lib.diffusion import (
    CLEAN_LEVEL,
    add_noise,
    alpha_sigma_at,
    convert_prediction,
    get_prediction_type,
    has_zero_terminal_snr,
    is_flow_matching,
    make_noisy_batch,
    min_snr_weights,
    prediction_target,
    rescale_to_zero_terminal_snr,
    snr,
)

# Euler's set_timesteps hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
FLOW = {
    "euler": FlowMatchEulerDiscreteScheduler(),
    "euler shifted": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": FlowMatchHeunDiscreteScheduler(shift=2.0),
    "unipc": UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
    "dpm-solver": DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction"
    ),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Variance preserving


def test_levels_are_the_table_of_the_scheduler():
    scheduler = DDPMScheduler()
    level = alpha_sigma_at(scheduler, torch.arange(1000))
    torch.testing.assert_close(level.alpha**2, scheduler.alphas_cumprod.double())
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(1000).double())
    assert not is_flow_matching(scheduler) and not has_zero_terminal_snr(scheduler)


@pytest.mark.parametrize("num_steps", [7, 10, 30])
def test_levels_of_fractional_timesteps_are_eulers(num_steps):
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    assert (scheduler.timesteps % 1 != 0).any() or num_steps == 10
    level = alpha_sigma_at(scheduler, scheduler.timesteps)
    ratio = (level.sigma / level.alpha).float()
    torch.testing.assert_close(ratio, scheduler.sigmas[:-1], rtol=1e-5, atol=0)


def test_levels_broadcast_per_row_in_the_dtype_of_x():
    level = alpha_sigma_at(DDPMScheduler(), torch.tensor([0, 500]))
    alpha, sigma = level.like(torch.zeros(2, 3, 4, 8, 8).bfloat16())
    assert alpha.shape == sigma.shape == (2, 1, 1, 1, 1) and alpha.dtype == torch.bfloat16
    assert sigma[0].item() == pytest.approx(0.01, rel=0.01)  # rounded last
    alpha, sigma = CLEAN_LEVEL.like(torch.zeros(5, 2))
    assert alpha.tolist() == [[1.0]] and sigma.tolist() == [[0.0]]


# Flow matching


@pytest.mark.parametrize("scheduler", FLOW.values(), ids=FLOW)
def test_flow_matching_is_linear_in_t_whatever_the_shift(scheduler):
    t = torch.tensor([0.0, 1.0, 250.0, 333.3, 1000.0])
    level = alpha_sigma_at(scheduler, t)
    torch.testing.assert_close(level.sigma, t.double() / 1000)
    torch.testing.assert_close(level.alpha, 1 - t.double() / 1000)
    assert is_flow_matching(scheduler) and has_zero_terminal_snr(scheduler)
    assert get_prediction_type(scheduler) == "flow_prediction"
    assert snr(scheduler, torch.tensor([500.0])).item() == pytest.approx(1)
    assert snr(scheduler, torch.tensor([1000.0])).item() == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_levels_are_those_of_diffusers(shift):
    """At every timestep that a shifted sampler visits, the level is the scheduler's own sigma."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    level = alpha_sigma_at(scheduler, scheduler.timesteps)
    torch.testing.assert_close(level.sigma.float(), scheduler.sigmas[:-1], rtol=1e-6, atol=0)
    x0, eps = (torch.randn(9, 3, 2, generator=rng(seed)) for seed in (0, 1))
    expected = scheduler.scale_noise(x0, scheduler.timesteps, eps)
    torch.testing.assert_close(add_noise(scheduler, x0, eps, scheduler.timesteps), expected)


# Zero terminal SNR


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_shifts_and_scales_alpha(schedule, prediction_type):
    before = DDIMScheduler(**schedule, prediction_type=prediction_type)
    after = rescale_to_zero_terminal_snr(before)
    assert has_zero_terminal_snr(after) and not has_zero_terminal_snr(before)
    old, new = before.alphas_cumprod.double().sqrt(), after.alphas_cumprod.double().sqrt()
    assert new[-1] == 0 and new[0] == pytest.approx(old[0].item(), abs=1e-6)
    expected = (old - old[-1]) * old[0] / (old[0] - old[-1])
    torch.testing.assert_close(new, expected, rtol=0, atol=2e-5)
    assert after.config.timestep_spacing == "trailing"
    assert after.config.prediction_type == prediction_type
    # the last timestep is noise, and the prediction there is about x0 alone
    x0, eps = (torch.randn(4, 3, 2, generator=rng(seed)).double() for seed in (0, 1))
    last = torch.full((4,), 999)
    torch.testing.assert_close(add_noise(after, x0, eps, last), eps)
    target = prediction_target(after, x0, eps, last)
    torch.testing.assert_close(target, x0 if prediction_type == "sample" else -x0)
    out = convert_prediction(target, eps, alpha_sigma_at(after, last), prediction_type)
    torch.testing.assert_close(out.x0, x0)


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_epsilon_is_refused_at_zero_snr(scheduler):
    message = "epsilon-prediction is undefined at zero SNR"
    with pytest.raises(ValueError, match=message):
        rescale_to_zero_terminal_snr(scheduler())
    # Euler and DPM-Solver have 2**-24 there, and no NaN to warn
    rescaled = scheduler(rescale_betas_zero_snr=True)
    for call in (
        lambda: get_prediction_type(rescaled),
        lambda: make_noisy_batch(rescaled, torch.zeros(1, 3, 1, 4, 4), rng()),
        lambda: min_snr_weights(rescaled, torch.tensor([5])),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Refusals

T = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: alpha_sigma_at(DDPMScheduler(), torch.tensor([3, 1000])),
            "t: expected timesteps from 0 to 999, got 3 to 1000",
        ),
        (
            lambda: alpha_sigma_at(DDPMScheduler(), torch.tensor([-1])),
            "t: expected timesteps from 0 to 999, got -1 to -1",
        ),
        (
            lambda: alpha_sigma_at(FLOW["euler"], torch.tensor([1000.5])),
            "t: expected timesteps from 0 to 1000, got 1000.5 to 1000.5",
        ),
        (
            lambda: alpha_sigma_at(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), T),
            "scheduler: expected invert_sigmas=False, got True",
        ),
        (
            lambda: get_prediction_type(EDMEulerScheduler()),
            "scheduler: expected one that has alphas_cumprod or does flow matching, got EDMEuler",
        ),
        (
            lambda: get_prediction_type(DDPMScheduler(prediction_type="flow")),
            "of epsilon, sample, v_prediction, flow_prediction; got 'flow'",
        ),
        (
            lambda: get_prediction_type(UniPCMultistepScheduler(use_flow_sigmas=True)),
            "epsilon-prediction is undefined at zero SNR",
        ),
        (
            lambda: rescale_to_zero_terminal_snr(PNDMScheduler()),
            "expected one with rescale_betas_zero_snr, got PNDMScheduler",
        ),
        (
            lambda: alpha_sigma_at(DDPMScheduler(), T).like(torch.zeros(3, 2)),
            "t: expected 1 timestep, or one for each of 3 rows, got 2",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
