"""Targets, conversions and weights, against diffusers and against identities."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from course_lib.diffusion import (
    CLEAN_LEVEL,
    PREDICTION_TYPES,
    AlphaSigma,
    add_noise,
    alpha_sigma_at,
    convert_prediction,
    denoising_loss,
    ideal_denoiser,
    isotropic_gaussian,
    make_noisy_batch,
    min_snr_weights,
    offset_noise,
    prediction_target,
    sample_noise,
    snr,
)

SHAPE = (4, 3, 2, 5, 5)
SCHEDULES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
schedules = st.sampled_from(list(SCHEDULES.values()))
prediction_types = st.sampled_from(PREDICTION_TYPES)


def draws(seed=0, shape=SHAPE, num_tensors=2):
    generator = rng(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(num_tensors)
    ]


def timesteps(seed=0, rows=4, last=999):
    return torch.randint(last + 1, (rows,), generator=rng(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def flow_scheduler(prediction_type):
    """A flow-matching scheduler of any prediction type."""
    return UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type=prediction_type)


# Against diffusers


@given(schedule=schedules, zero_snr=st.booleans(), seed=st.integers(0, 1000))
def test_noising_and_velocity_are_diffusers(schedule, zero_snr, seed):
    scheduler = DDPMScheduler(
        **schedule, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    )
    (x0, eps), t = draws(seed), timesteps(seed)
    t[0] = 999  # where a rescaled schedule has alpha = 0
    x_t = add_noise(scheduler, x0, eps, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, t), rtol=0, atol=0)
    target = prediction_target(scheduler, x0, eps, t)
    torch.testing.assert_close(target, scheduler.get_velocity(x0, eps, t), rtol=0, atol=0)


def test_the_prediction_type_chooses_the_target():
    (x0, eps), t = draws(), timesteps()
    assert prediction_target(DDPMScheduler(), x0, eps, t) is eps
    assert prediction_target(DDIMScheduler(prediction_type="sample"), x0, eps, t) is x0
    flow = prediction_target(FlowMatchEulerDiscreteScheduler(), x0, eps, t)
    assert torch.equal(flow, eps - x0)


def test_bfloat16_keeps_the_noise_of_early_timesteps():
    x0, eps = torch.zeros(1, 3, 8, 8).bfloat16(), torch.ones(1, 3, 8, 8).bfloat16()
    t = torch.zeros(1, dtype=torch.long)
    # diffusers rounds alphas_cumprod[0] = 0.9999 first
    assert DDPMScheduler().add_noise(x0, eps, t).abs().max() == 0
    assert add_noise(DDPMScheduler(), x0, eps, t).mean().item() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_scripts(prediction_type):
    scheduler, t = DDPMScheduler(prediction_type=prediction_type), torch.arange(0, 1000, 7)
    ratio = compute_snr(scheduler, t)
    torch.testing.assert_close(snr(scheduler, t).float(), ratio, rtol=1e-4, atol=0)
    divisor = {"epsilon": ratio, "sample": torch.ones_like(ratio), "v_prediction": ratio + 1}
    expected = torch.stack([ratio, 5 * torch.ones_like(ratio)], dim=1).min(dim=1)[0]
    expected = expected / divisor[prediction_type]
    torch.testing.assert_close(min_snr_weights(scheduler, t).float(), expected, rtol=1e-4, atol=0)


# Identities


def check_conversion(scheduler, prediction_type, seed):
    # later the cosine schedule loses more digits
    (x0, eps), t = draws(seed), timesteps(seed, last=950).clamp(min=1)
    level, x_t = alpha_sigma_at(scheduler, t), add_noise(scheduler, x0, eps, t)
    target = prediction_target(scheduler, x0, eps, t)
    out = convert_prediction(target, x_t, level, prediction_type)
    torch.testing.assert_close(out.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.eps, eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.as_type(prediction_type), target, rtol=1e-12, atol=1e-9)
    alpha, sigma = level.like(x0)
    torch.testing.assert_close(out.v, alpha * eps - sigma * x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.as_type("flow_prediction"), eps - x0, rtol=1e-9, atol=1e-9)
    return x0, eps, x_t, out


@given(schedule=schedules, prediction_type=prediction_types, seed=st.integers(0, 1000))
def test_each_type_gives_the_others(schedule, prediction_type, seed):
    scheduler = DDPMScheduler(**schedule, prediction_type=prediction_type)
    x0, eps, x_t, out = check_conversion(scheduler, prediction_type, seed)
    # on a variance-preserving schedule (x_t, v) is (x0, eps) rotated
    lengths = x_t.square() + out.v.square() - x0.square() - eps.square()
    assert lengths.abs().max() < 1e-9 * (x0.square() + eps.square()).max()


@given(
    prediction_type=st.sampled_from(["sample", "v_prediction", "flow_prediction"]),
    seed=st.integers(0, 1000),
)
def test_each_type_gives_the_others_with_flow_matching(prediction_type, seed):
    check_conversion(flow_scheduler(prediction_type), prediction_type, seed)


def test_epsilon_converts_at_any_level_with_signal():
    """No schedule needed: alpha² + sigma² is 0.34 here."""
    x0, eps = draws()
    level = AlphaSigma(torch.tensor([0.3]).double(), torch.tensor([0.5]).double())
    out = convert_prediction(eps, 0.3 * x0 + 0.5 * eps, level, "epsilon")
    torch.testing.assert_close(out.x0, x0)
    torch.testing.assert_close(out.v, 0.3 * eps - 0.5 * x0)


def test_conversion_in_float32_is_the_formula_of_a_variance_preserving_schedule():
    """The norm alpha² + sigma² is exactly 1: no rounding is added to it."""
    x, v = (tensor.float() for tensor in draws())
    level = alpha_sigma_at(DDPMScheduler(), timesteps())
    alpha, sigma = level.like(x)
    out = convert_prediction(v, x, level, "v_prediction")
    assert torch.equal(out.x0, alpha * x - sigma * v)
    assert torch.equal(out.eps, sigma * x + alpha * v)


def check_min_snr(schedulers, seed, snr_gamma):
    """A guess at x0 as any type, weighted, has the error min(SNR, gamma) · |x0 - guess|²."""
    (x0, eps, guess), t = draws(seed, num_tensors=3), timesteps(seed, last=950).clamp(min=1)
    for prediction_type, scheduler in schedulers.items():
        level, x_t = alpha_sigma_at(scheduler, t), add_noise(scheduler, x0, eps, t)
        pred = convert_prediction(guess, x_t, level, "sample").as_type(prediction_type)
        target = prediction_target(scheduler, x0, eps, t)
        error = (pred - target).square().flatten(1).mean(1)
        expected = snr(scheduler, t).clamp(max=snr_gamma)
        expected = expected * (x0 - guess).square().flatten(1).mean(1)
        weights = min_snr_weights(scheduler, t, snr_gamma)
        torch.testing.assert_close(weights * error, expected, rtol=1e-8, atol=0)


@given(schedule=schedules, seed=st.integers(0, 1000), snr_gamma=st.floats(0.1, 50))
def test_min_snr_gives_every_type_one_loss(schedule, seed, snr_gamma):
    types = PREDICTION_TYPES
    schedulers = {kind: DDPMScheduler(**schedule, prediction_type=kind) for kind in types}
    check_min_snr(schedulers, seed, snr_gamma)


@given(seed=st.integers(0, 1000), snr_gamma=st.floats(0.1, 50))
def test_min_snr_gives_every_type_one_loss_with_flow_matching(seed, snr_gamma):
    types = ["sample", "v_prediction", "flow_prediction"]
    check_min_snr({kind: flow_scheduler(kind) for kind in types}, seed, snr_gamma)


# Noisy batches


@pytest.mark.parametrize("snr_gamma", [None, 5])
def test_a_noisy_batch_is_the_recipe_of_diffusers(snr_gamma):
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    (x0,) = draws(num_tensors=1)
    options = {"noise_offset": 0.1, "frame_correlation": 0.5}
    batch = make_noisy_batch(scheduler, x0, rng(7), snr_gamma=snr_gamma, **options)
    generator = rng(7)
    t = torch.randint(1000, (4,), generator=generator)
    eps = offset_noise(sample_noise(SHAPE, generator, 0.5), 0.1, generator).double()
    assert torch.equal(batch.t, t)
    assert torch.equal(batch.x_t, scheduler.add_noise(x0, eps, t))
    assert torch.equal(batch.target, scheduler.get_velocity(x0, eps, t))
    pred = torch.zeros_like(x0)
    weight = torch.ones(4) if snr_gamma is None else min_snr_weights(scheduler, t, snr_gamma)
    expected = (weight * batch.target.square().flatten(1).mean(1)).mean()
    assert denoising_loss(pred, batch).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_flow_matching_batch_interpolates_and_reaches_pure_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=4, shift=3.0)
    x0 = torch.randn(400, 3, generator=rng(1), dtype=torch.float64)
    batch = make_noisy_batch(scheduler, x0, rng(3))
    generator = rng(3)
    assert torch.equal(batch.t, torch.randint(1, 5, (400,), generator=generator))
    assert torch.bincount(batch.t).tolist()[0] == 0 and len(batch.t.unique()) == 4
    eps = sample_noise(x0.shape, generator).double()
    sigma = batch.t[:, None] / 4
    torch.testing.assert_close(batch.x_t, torch.lerp(x0, eps, sigma.double()))
    torch.testing.assert_close(batch.target, eps - x0)
    fractional = torch.full((400,), 1.5)  # in place of uniform integers
    batch = make_noisy_batch(scheduler, x0, rng(3), timesteps=fractional)
    eps = sample_noise(x0.shape, rng(3)).double()
    torch.testing.assert_close(batch.x_t, 0.625 * x0 + 0.375 * eps)


def test_timesteps_may_be_given():
    x0, t = torch.randn(4, 3, generator=rng(1)), torch.tensor([0, 999, 5, 5])
    batch = make_noisy_batch(DDPMScheduler(), x0, rng(3), timesteps=t)
    eps = sample_noise(x0.shape, rng(3))
    assert torch.equal(batch.t, t)
    assert torch.equal(batch.x_t, add_noise(DDPMScheduler(), x0, eps, t))
    assert torch.equal(batch.target, eps)


def test_a_noisy_batch_does_not_depend_on_the_dtype():
    (x0,) = draws(num_tensors=1)
    double, single, half = (
        make_noisy_batch(DDPMScheduler(), x, rng(1))
        for x in (x0.float().double(), x0.float(), x0.bfloat16())
    )
    assert torch.equal(double.t, half.t)
    assert half.x_t.dtype == half.weight.dtype == torch.bfloat16
    torch.testing.assert_close(double.x_t, single.x_t.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(double.x_t, half.x_t.double(), rtol=0.02, atol=0.02)


def least_error_of_x0(scheduler, t, std):
    """For N(0, s²) the least mean squared error of x0 is s²σ² / (α²s² + σ²)."""
    alpha, sigma = alpha_sigma_at(scheduler, t)
    return alpha, sigma, (std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)


def check_ideal_loss(scheduler, ratio):
    """`ratio` (alpha, sigma): the error of a prediction over that of x0."""
    std = 0.5
    model = ideal_denoiser(isotropic_gaussian(torch.zeros(16), std), scheduler)
    x0 = std * torch.randn(6000, 16, generator=rng(), dtype=torch.float64)
    batch = make_noisy_batch(scheduler, x0, rng(1))
    pred = model(batch.x_t, batch.t, None)
    alpha, sigma, least = least_error_of_x0(scheduler, batch.t, std)
    least = (least * ratio(alpha, sigma) ** 2).mean().item()
    assert denoising_loss(pred, batch).item() == pytest.approx(least, rel=0.02)
    for factor in (0.9, 1.1):
        assert denoising_loss(factor * pred, batch) > denoising_loss(pred, batch)


@pytest.mark.parametrize(
    ("prediction_type", "ratio"),
    [
        ("epsilon", lambda alpha, sigma: alpha / sigma),
        ("sample", lambda alpha, sigma: 1),
        ("v_prediction", lambda alpha, sigma: 1 / sigma),
        ("flow_prediction", lambda alpha, sigma: 1 + alpha / sigma),
    ],
)
def test_no_model_beats_the_ideal_one_whose_loss_is_known(prediction_type, ratio):
    scheduler = DDPMScheduler(**SCHEDULES["scaled"], prediction_type=prediction_type)
    check_ideal_loss(scheduler, ratio)


def test_no_model_beats_the_ideal_flow():
    scheduler = FlowMatchEulerDiscreteScheduler()
    check_ideal_loss(scheduler, lambda alpha, sigma: 1 / sigma)  # alpha + sigma is 1


# Refusals

VIDEO = torch.zeros(2, 3, 4, 8, 8)
T = torch.tensor([1, 2])
LEVEL = AlphaSigma(torch.ones(1).double() * 0.6, torch.ones(1).double() * 0.8)
NOISE_LEVEL = AlphaSigma(torch.zeros(1).double(), torch.ones(1).double())
ZERO_V = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
FLOW = FlowMatchEulerDiscreteScheduler()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: add_noise(DDPMScheduler(), VIDEO, VIDEO[:, :, 0], T),
            r"eps: expected the shape of x0, \(2, 3, 4, 8",
        ),
        (
            lambda: prediction_target(DDPMScheduler(), VIDEO, VIDEO[:1], T),
            r"eps: expected the shape of x0, .*, got \(1, 3, 4, 8",
        ),
        (
            lambda: add_noise(DDPMScheduler(), VIDEO, VIDEO, torch.arange(4)),
            "t: expected 1 timestep, or one for each of 2",
        ),
        (
            lambda: convert_prediction(VIDEO, VIDEO, LEVEL, "eps"),
            "prediction_type: expected one of epsilon, sample, v_prediction, flow_.*; got 'eps'",
        ),
        (
            lambda: convert_prediction(VIDEO[:, :, :1], VIDEO, LEVEL, "sample"),
            "pred: expected the shape of x_t",
        ),
        (
            lambda: convert_prediction(VIDEO, VIDEO, NOISE_LEVEL, "epsilon"),
            "epsilon-prediction is undefined at zero SNR",
        ),
        (
            lambda: convert_prediction(VIDEO, VIDEO, CLEAN_LEVEL, "sample"),
            "a sample-prediction leaves eps undefined where sigma is 0",
        ),
        (
            lambda: convert_prediction(VIDEO, VIDEO, LEVEL, "sample").as_type("x0"),
            "prediction_type: expected one of .*; got 'x0'",
        ),
        (
            lambda: min_snr_weights(DDPMScheduler(), T, 0),
            "snr_gamma: expected a finite number above 0, got 0",
        ),
        (
            lambda: make_noisy_batch(ZERO_V, VIDEO, rng(), snr_gamma=5),
            "snr_gamma: min-SNR never trains the last timestep",
        ),
        (
            lambda: make_noisy_batch(FLOW, VIDEO, rng(), snr_gamma=5),
            "snr_gamma: min-SNR never trains the last timestep",
        ),
        (
            lambda: make_noisy_batch(ZERO_V, VIDEO, rng(), timesteps=torch.tensor([5])),
            r"timesteps: expected one for each of 2 rows, got \(1,\)",
        ),
        (
            lambda: denoising_loss(
                VIDEO[:, :, :1], make_noisy_batch(DDPMScheduler(), VIDEO, rng())
            ),
            r"pred: expected the shape of x_t, \(2, 3, 4, 8, 8\), got \(2, 3, 1, 8, 8\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
