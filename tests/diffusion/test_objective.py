"""Levels, targets, conversions and weights against diffusers and against identities; the noise against its moments."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from course_lib.diffusion import (
    CLEAN,
    PREDICTION_TYPES,
    Level,
    add_noise,
    denoising_loss,
    ends_without_signal,
    estimate,
    gaussian,
    initial_noise,
    level_at,
    min_snr_weights,
    offset_noise,
    optimal_model,
    prediction_type,
    snr,
    target,
    training_example,
    zero_terminal_snr,
)

# Euler's set_timesteps hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (4, 3, 2, 5, 5)
SCHEDULES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
schedules = st.sampled_from(list(SCHEDULES.values()))
kinds = st.sampled_from(PREDICTION_TYPES)


def draws(seed=0, shape=SHAPE, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def timesteps(seed=0, rows=4, last=999):
    return torch.randint(last + 1, (rows,), generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Against diffusers


@given(schedule=schedules, zero=st.booleans(), seed=st.integers(0, 1000))
def test_noising_and_velocity_are_diffusers(schedule, zero, seed):
    scheduler = DDPMScheduler(
        **schedule, prediction_type="v_prediction", rescale_betas_zero_snr=zero
    )
    (x0, noise), t = draws(seed), timesteps(seed)
    t[0] = 999  # where a rescaled schedule has no signal
    torch.testing.assert_close(
        add_noise(scheduler, x0, noise, t), scheduler.add_noise(x0, noise, t), rtol=0, atol=0
    )
    torch.testing.assert_close(
        target(scheduler, x0, noise, t), scheduler.get_velocity(x0, noise, t), rtol=0, atol=0
    )


def test_the_prediction_type_chooses_the_target():
    (x0, noise), t = draws(), timesteps()
    assert target(DDPMScheduler(), x0, noise, t) is noise
    assert target(DDIMScheduler(prediction_type="sample"), x0, noise, t) is x0


def test_bfloat16_keeps_the_noise_of_early_timesteps():
    x0, noise = torch.zeros(1, 3, 8, 8).bfloat16(), torch.ones(1, 3, 8, 8).bfloat16()
    t = torch.zeros(1, dtype=torch.long)
    assert (
        DDPMScheduler().add_noise(x0, noise, t).abs().max() == 0
    )  # alphas_cumprod[0] = 0.9999 is rounded first
    assert add_noise(DDPMScheduler(), x0, noise, t).mean().item() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("steps", [7, 10, 30])
def test_levels_between_timesteps_are_eulers(steps):
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    assert (scheduler.timesteps % 1 != 0).any() or steps == 10
    level = level_at(scheduler, scheduler.timesteps)
    torch.testing.assert_close(
        (level.noise / level.signal).float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_min_snr_weights_are_those_of_diffusers_scripts(kind):
    scheduler, t = DDPMScheduler(prediction_type=kind), torch.arange(0, 1000, 7)
    ratio = compute_snr(scheduler, t)
    torch.testing.assert_close(snr(scheduler, t).float(), ratio, rtol=1e-4, atol=0)
    divisor = {"epsilon": ratio, "sample": torch.ones_like(ratio), "v_prediction": ratio + 1}[kind]
    expected = torch.stack([ratio, 5 * torch.ones_like(ratio)], dim=1).min(dim=1)[0] / divisor
    torch.testing.assert_close(min_snr_weights(scheduler, t).float(), expected, rtol=1e-4, atol=0)


# Identities


@given(schedule=schedules, kind=kinds, seed=st.integers(0, 1000))
def test_each_form_gives_the_other_two(schedule, kind, seed):
    scheduler = DDPMScheduler(**schedule, prediction_type=kind)
    (x0, noise), t = (
        draws(seed),
        timesteps(seed, last=950),
    )  # later the cosine schedule loses more digits
    level, x_t = level_at(scheduler, t), add_noise(scheduler, x0, noise, t)
    said = target(scheduler, x0, noise, t)
    found = estimate(kind, said, x_t, level)
    torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.noise, noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.of(kind), said, rtol=0, atol=0)
    # (x_t, v) is (x0, ε) turned by an angle
    lengths = x_t.square() + found.velocity.square() - x0.square() - noise.square()
    assert lengths.abs().max() < 1e-9 * (x0.square() + noise.square()).max()


@given(schedule=schedules, seed=st.integers(0, 1000), gamma=st.floats(0.1, 50))
def test_min_snr_makes_one_loss_of_three(schedule, seed, gamma):
    """Any guess at x0, put in the three forms and weighed, has the squared error min(SNR, gamma) |x0 - guess|²."""
    (x0, noise, guess), t = draws(seed, count=3), timesteps(seed, last=950)
    expected = None
    for kind in PREDICTION_TYPES:
        scheduler = DDPMScheduler(**schedule, prediction_type=kind)
        level, x_t = level_at(scheduler, t), add_noise(scheduler, x0, noise, t)
        said = estimate("sample", guess, x_t, level).of(kind)
        error = (said - target(scheduler, x0, noise, t)).square().flatten(1).mean(1)
        if expected is None:
            expected = snr(scheduler, t).clamp(max=gamma) * (x0 - guess).square().flatten(1).mean(1)
        torch.testing.assert_close(
            min_snr_weights(scheduler, t, gamma) * error, expected, rtol=1e-8, atol=0
        )


# Zero terminal SNR


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr_shifts_and_scales_the_signal(schedule, kind):
    before = DDIMScheduler(**schedule, prediction_type=kind)
    after = zero_terminal_snr(before)
    assert ends_without_signal(after) and not ends_without_signal(before)
    old, new = before.alphas_cumprod.double().sqrt(), after.alphas_cumprod.double().sqrt()
    assert new[-1] == 0 and new[0] == pytest.approx(old[0].item(), abs=1e-6)
    torch.testing.assert_close(
        new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=0, atol=2e-5
    )
    assert after.config.timestep_spacing == "trailing" and after.config.prediction_type == kind
    # the last timestep is noise, and the prediction there is about x0 alone
    (x0, noise), last = draws(), torch.full((4,), 999)
    torch.testing.assert_close(add_noise(after, x0, noise, last), noise)
    said = target(after, x0, noise, last)
    torch.testing.assert_close(said, x0 if kind == "sample" else -x0)
    torch.testing.assert_close(estimate(kind, said, noise, level_at(after, last)).x0, x0)


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_epsilon_is_refused_where_nothing_is_left(scheduler):
    with pytest.raises(ValueError, match="'epsilon' says nothing about x0 where the SNR is 0"):
        zero_terminal_snr(scheduler())
    rescaled = scheduler(
        rescale_betas_zero_snr=True
    )  # Euler and DPM-Solver have 2**-24 there, and no NaN to warn
    for call in (
        lambda: prediction_type(rescaled),
        lambda: training_example(rescaled, torch.zeros(1, 3, 1, 4, 4), rng()),
        lambda: min_snr_weights(rescaled, torch.tensor([5])),
    ):
        with pytest.raises(ValueError, match="'epsilon' says nothing about x0 where the SNR is 0"):
            call()


# Noise


def test_independent_noise_is_plain_noise():
    assert torch.equal(initial_noise(SHAPE, rng(3)), torch.randn(SHAPE, generator=rng(3)))
    assert initial_noise((2, 5), rng()).shape == (2, 5)
    assert initial_noise(SHAPE, rng(), 0.5, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8, 1])
def test_shared_noise_has_unit_variance_and_that_correlation(shared):
    noise = initial_noise((6, 3, 4, 64, 64), rng(), shared)
    frames = noise.transpose(0, 2).flatten(1)  # f n
    n = frames.shape[1]
    expected = torch.full((4, 4), float(shared)).fill_diagonal_(1)
    assert (frames @ frames.T / n - expected).abs().max() < 5 * math.sqrt(2 / n)
    assert abs(frames.mean()) < 5 / math.sqrt(n)
    # clips and channels share nothing
    rows = noise.transpose(1, 2)[:, 0].flatten(0, 1).flatten(1)  # (b c) n
    others = rows @ rows.T / rows.shape[1] - torch.eye(18)
    assert others.abs().max() < 5 * math.sqrt(2 / rows.shape[1])


def test_all_noise_can_be_shared():
    noise = initial_noise(SHAPE, rng(), 1)
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))


@pytest.mark.parametrize("strength", [0, 0.1, 2.0])
def test_offset_noise_shifts_whole_clips_by_channel(strength):
    noise = initial_noise((400, 3, 2, 4, 4), rng())
    shift = offset_noise(noise, strength, rng(1)) - noise
    assert (shift - shift[:, :, :1, :1, :1]).abs().max() < 1e-6
    shifts = shift[:, :, 0, 0, 0].flatten()
    assert shifts.std().item() == pytest.approx(strength, rel=0.1)
    assert len(shifts.unique()) == (1200 if strength else 1)


# One training example


@pytest.mark.parametrize("gamma", [None, 5])
def test_a_training_example_is_the_recipe_of_diffusers(gamma):
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    (x0,) = draws(count=1)
    example = training_example(scheduler, x0, rng(7), gamma=gamma, offset=0.1, shared=0.5)
    generator = rng(7)
    t = torch.randint(1000, (4,), generator=generator)
    noise = offset_noise(initial_noise(SHAPE, generator, 0.5), 0.1, generator).double()
    assert torch.equal(example.t, t)
    assert torch.equal(example.x_t, scheduler.add_noise(x0, noise, t))
    assert torch.equal(example.target, scheduler.get_velocity(x0, noise, t))
    prediction = torch.zeros_like(x0)
    weight = torch.ones(4) if gamma is None else min_snr_weights(scheduler, t, gamma)
    expected = (weight * example.target.square().flatten(1).mean(1)).mean()
    assert denoising_loss(prediction, example).item() == pytest.approx(expected.item(), rel=1e-12)


def test_timesteps_may_be_drawn_elsewhere():
    x0, t = torch.randn(4, 3, generator=rng(1)), torch.tensor([0, 999, 5, 5])
    given = training_example(DDPMScheduler(), x0, rng(3), t=t)
    noise = initial_noise(x0.shape, rng(3))
    assert torch.equal(given.t, t) and torch.equal(
        given.x_t, add_noise(DDPMScheduler(), x0, noise, t)
    )
    assert torch.equal(given.target, noise)


def test_an_example_does_not_depend_on_the_dtype():
    (x0,) = draws(count=1)
    one, other = (training_example(DDPMScheduler(), x.to(x0), rng(1)) for x in (x0, x0.float()))
    half = training_example(DDPMScheduler(), x0.bfloat16(), rng(1))
    assert torch.equal(one.t, half.t) and half.x_t.dtype == half.weight.dtype == torch.bfloat16
    torch.testing.assert_close(one.x_t, other.x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.x_t, half.x_t.double(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_no_model_beats_the_optimal_one_whose_loss_is_known(kind):
    """For N(0, s²) the least error of x0 is s²σ² / (α²s² + σ²); the other forms follow by their divisors."""
    scheduler, std = DDPMScheduler(**SCHEDULES["scaled"], prediction_type=kind), 0.5
    model = optimal_model(gaussian(torch.zeros(16), std), scheduler)
    x0 = std * torch.randn(6000, 16, generator=rng(), dtype=torch.float64)
    example = training_example(scheduler, x0, rng(1))
    said = model(example.x_t, example.t, None)
    level = level_at(scheduler, example.t)
    alpha, sigma = level.signal**2, level.noise**2
    least = std**2 * sigma / (alpha * std**2 + sigma)
    least = least * {"epsilon": alpha / sigma, "sample": 1, "v_prediction": 1 / sigma}[kind]
    assert denoising_loss(said, example).item() == pytest.approx(least.mean().item(), rel=0.02)
    for factor in (0.9, 1.1):
        assert denoising_loss(factor * said, example) > denoising_loss(said, example)


# Refusals

VIDEO = torch.zeros(2, 3, 4, 8, 8)
T = torch.tensor([1, 2])
ONE = Level(torch.ones(1).double() * 0.6, torch.ones(1).double() * 0.8)
EMPTY = Level(torch.zeros(1).double(), torch.ones(1).double())
ZERO_V = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: add_noise(DDPMScheduler(), VIDEO, VIDEO[:, :, 0], T),
            r"noise: expected the shape of x0, \(2, 3, 4, 8",
        ),
        (
            lambda: target(DDPMScheduler(), VIDEO, VIDEO[:1], T),
            r"noise: expected the shape of x0, .*, got \(1, 3, 4, 8",
        ),
        (
            lambda: add_noise(DDPMScheduler(), VIDEO, VIDEO, torch.arange(4)),
            "t: expected 1 timestep, or one for each of 2",
        ),
        (
            lambda: level_at(DDPMScheduler(), torch.tensor([3, 1000])),
            "t: expected timesteps from 0 to 999, got 3 to 1000",
        ),
        (
            lambda: level_at(DDPMScheduler(), torch.tensor([-1])),
            "t: expected timesteps from 0 to 999, got -1 to -1",
        ),
        (
            lambda: level_at(FlowMatchEulerDiscreteScheduler(), T),
            "alphas_cumprod, got FlowMatchEulerDiscreteScheduler",
        ),
        (
            lambda: prediction_type(EDMEulerScheduler()),
            "scheduler: expected one that has alphas_cumprod, got EDMEuler",
        ),
        (
            lambda: prediction_type(DDPMScheduler(prediction_type="flow")),
            "of epsilon, sample, v_prediction; got 'flow'",
        ),
        (
            lambda: estimate("eps", VIDEO, VIDEO, ONE),
            "kind: expected one of epsilon, sample, v_prediction; got 'eps'",
        ),
        (
            lambda: estimate("sample", VIDEO[:, :, :1], VIDEO, ONE),
            "prediction: expected the shape of x_t",
        ),
        (
            lambda: estimate("epsilon", VIDEO, VIDEO, EMPTY),
            "'epsilon' says nothing about x0 where the SNR is 0",
        ),
        (
            lambda: estimate("sample", VIDEO, VIDEO, CLEAN),
            "'sample' says nothing about ε where x_t has no noise",
        ),
        (
            lambda: estimate("sample", VIDEO, VIDEO, ONE).of("x0"),
            "kind: expected one of .*; got 'x0'",
        ),
        (
            lambda: zero_terminal_snr(PNDMScheduler()),
            "expected one with rescale_betas_zero_snr, got PNDMScheduler",
        ),
        (
            lambda: min_snr_weights(DDPMScheduler(), T, 0),
            "gamma: expected a positive number, got 0",
        ),
        (
            lambda: training_example(ZERO_V, VIDEO, rng(), gamma=5),
            "gamma: min-SNR never trains the last timestep",
        ),
        (
            lambda: training_example(ZERO_V, VIDEO, rng(), t=torch.tensor([5])),
            r"t: expected one timestep for each of 2 rows, got \(1,\)",
        ),
        (
            lambda: initial_noise(SHAPE, rng(), 1.1),
            "shared: expected a correlation from 0 to 1, got 1.1",
        ),
        (
            lambda: initial_noise((2, 3, 8, 8), rng(), 0.5),
            r"shape: expected \(b, c, f, h, w\) .*, got \(2, 3, 8, 8\)",
        ),
        (lambda: offset_noise(VIDEO, -0.1, rng()), "strength: expected 0 or more, got -0.1"),
        (
            lambda: denoising_loss(
                VIDEO[:, :, :1], training_example(DDPMScheduler(), VIDEO, rng())
            ),
            r"prediction: expected the shape of x_t, \(2, 3, 4, 8, 8\), got \(2, 3, 1, 8, 8\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
