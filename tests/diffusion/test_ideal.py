"""The ideal denoiser against quadrature, autograd and torch.distributions; the flow by its ODE."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from course_lib.diffusion import (
    CLEAN_LEVEL,
    PREDICTION_TYPES,
    AlphaSigma,
    GaussianMixture,
    add_noise,
    alpha_sigma_at,
    convert_prediction,
    empirical_distribution,
    get_prediction_type,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
)

MEANS = torch.tensor([[-1.0], [0.4], [2.0]])
STDS = torch.tensor([0.3, 0.05, 0.6])
WEIGHTS = torch.tensor([2.0, 1.0, 1.0])


def level_of(alpha, sigma=None):
    """Noise level; variance preserving unless sigma is given."""
    alpha = torch.tensor([alpha], dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt() if sigma is None else torch.tensor([sigma], dtype=torch.float64)
    return AlphaSigma(alpha, sigma)


def linear_level(sigma):
    """Noise level of flow matching."""
    return level_of(1 - sigma, sigma)


def noisy(rows, d, seed=0):
    return 1.5 * torch.randn(
        rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def plane(seed=0):
    """Three components in the plane, one of them a point."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return GaussianMixture(
        means, torch.tensor([0.5, 0.0, 0.2]), torch.rand(3, generator=generator) + 0.1
    )


levels = st.one_of(
    st.floats(0.02, 0.999).map(level_of),
    st.floats(0.02, 0.999).map(linear_level),
    st.builds(level_of, st.floats(0.02, 2.0), st.floats(0.02, 2.0)),
)


# The denoiser


@given(level=levels, x=st.floats(-4, 4))
def test_the_posterior_mean_is_the_integral_of_bayes(level, x):
    grid = torch.linspace(-6, 7, 40001, dtype=torch.float64)  # x0
    prior = sum(
        w * distributions.Normal(m.double(), s.double()).log_prob(grid).exp()
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    likelihood = -((x - level.alpha * grid) ** 2) / (2 * level.sigma**2)
    posterior = prior * (likelihood - likelihood[prior > 0].max()).exp()
    expected = (posterior * grid).sum() / posterior.sum()
    out = GaussianMixture(MEANS, STDS, WEIGHTS).denoise(torch.tensor([[x]]).double(), level)
    assert out.item() == pytest.approx(expected.item(), abs=1e-6)


@given(level=levels, seed=st.integers(0, 1000))
def test_the_score_is_the_gradient_of_the_density(level, seed):
    mixture, x = plane(seed), noisy(5, 2, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    score = mixture.score(x, level)
    torch.testing.assert_close(score, gradient, rtol=1e-7, atol=1e-7 * gradient.abs().max().item())


@given(level=levels)
def test_the_density_is_that_of_torch(level):
    std = ((level.alpha * STDS.double()) ** 2 + level.sigma**2).sqrt()
    components = distributions.Normal(level.alpha * MEANS.double()[:, 0], std)
    weights = distributions.Categorical(WEIGHTS.double())
    reference = distributions.MixtureSameFamily(weights, components)
    x = noisy(20, 1)
    out = GaussianMixture(MEANS, STDS, WEIGHTS).log_density(x, level)
    torch.testing.assert_close(out, reference.log_prob(x[:, 0]), rtol=1e-9, atol=1e-9)


@given(level=levels, seed=st.integers(0, 1000))
def test_empirical_distribution_by_the_softmax_written_out(level, seed):
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(7, 3, 2, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    x = level.alpha * data[:2] + level.sigma * eps
    distances = (x[:, None] - level.alpha * data[None]).square().flatten(2).sum(2)
    posterior = torch.softmax(-distances / (2 * level.sigma**2), dim=1)
    expected = torch.einsum("bn,nchfw->bchfw", posterior, data)
    out = empirical_distribution(data).denoise(x, level)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)


def test_where_exponentials_would_overflow_the_nearest_datum_wins():
    data = torch.rand(50, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mixture = empirical_distribution(data)
    level = level_of(0.99995)  # sigma = 0.01, exponents of about -10**7
    x = 0.99995 * data[:5] + 0.01 * torch.randn(5, 3, 4, 16, 16)
    out = mixture.denoise(x, level)
    assert out.dtype == torch.float32 and torch.equal(out, data[:5])
    far = mixture.denoise(100 * data[5:6], level)
    assert torch.equal(far, data[5:6])
    without_signal = mixture.denoise(data[:2], level_of(0.0))
    torch.testing.assert_close(without_signal, data.mean(0).expand(2, -1, -1, -1, -1))


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_rows_are_independent_and_the_order_of_the_data_does_not_matter(scheduler):
    mixture, x = plane(), noisy(4, 2)
    levels = alpha_sigma_at(scheduler, torch.tensor([1, 200, 500, 999]))
    batch = mixture.denoise(x, levels)
    for i in range(4):
        row = mixture.denoise(x[i : i + 1], AlphaSigma(*(part[i : i + 1] for part in levels)))
        torch.testing.assert_close(batch[i : i + 1], row, rtol=1e-12, atol=1e-12)
    reordered = GaussianMixture(MEANS.flip(0), STDS.flip(0), WEIGHTS.flip(0))
    y = noisy(4, 1)
    expected = GaussianMixture(MEANS, STDS, WEIGHTS).denoise(y, levels)
    torch.testing.assert_close(reordered.denoise(y, levels), expected)


def test_weights_choose_components():
    mixture, x, level = GaussianMixture(MEANS, STDS, WEIGHTS), noisy(3, 1), level_of(0.6)
    out = mixture.denoise(x, level, torch.eye(3))
    for i in range(3):
        component = isotropic_gaussian(MEANS[i], STDS[i].item())
        row = component.denoise(x[i : i + 1], level)
        torch.testing.assert_close(out[i : i + 1], row, rtol=1e-6, atol=1e-6)
    scaled = mixture.denoise(x, level, 10 * WEIGHTS)
    torch.testing.assert_close(scaled, mixture.denoise(x, level), rtol=1e-12, atol=1e-12)


def test_samples_have_the_moments_of_the_mixture():
    mixture = GaussianMixture(MEANS, STDS, WEIGHTS)
    x = mixture.sample(20000, torch.Generator().manual_seed(0))
    assert x.shape == (20000, 1) and x.dtype == torch.float32
    share = WEIGHTS / WEIGHTS.sum()
    mean = (share * MEANS[:, 0]).sum()
    variance = (share * (STDS**2 + MEANS[:, 0] ** 2)).sum() - mean**2
    assert x.mean().item() == pytest.approx(mean.item(), abs=5 * math.sqrt(variance / 20000))
    assert x.var().item() == pytest.approx(variance.item(), rel=0.04)


# The flow

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)


def test_the_flow_satisfies_its_ode_and_can_be_split():
    """With x = alpha · u, s = sigma / alpha: du/ds = (u - E[x0 | x]) / s. Karras et al., eq. 1."""
    mixture, x = isotropic_gaussian(MEAN, 0.4), noisy(5, 2)

    def at(s):
        norm = (1 + s**2) ** 0.5
        return level_of(1 / norm, s / norm)

    start, h = at(3.0), 1e-4
    middle = probability_flow_solution(mixture, x, start, at(1.0))
    before, after = (
        probability_flow_solution(mixture, x, start, at(s)) / at(s).alpha for s in (1 - h, 1 + h)
    )
    slope = middle / at(1.0).alpha - mixture.denoise(middle, at(1.0))
    torch.testing.assert_close((after - before) / (2 * h), slope, rtol=1e-6, atol=1e-6)
    in_two = probability_flow_solution(mixture, middle, at(1.0), CLEAN_LEVEL)
    in_one = probability_flow_solution(mixture, x, start, CLEAN_LEVEL)
    torch.testing.assert_close(in_two, in_one, rtol=1e-12, atol=1e-12)
    # from pure noise, it ends in the distribution of the data
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = probability_flow_solution(mixture, noise, level_of(0.0), CLEAN_LEVEL)
    torch.testing.assert_close(end, MEAN + 0.4 * noise, rtol=1e-7, atol=1e-7)


@given(sigma=st.floats(0.05, 0.95))
def test_the_flow_of_flow_matching_satisfies_its_ode(sigma):
    """dx / dsigma = E[eps - x0 | x]. Lipman et al. 2023."""
    mixture, x, h = isotropic_gaussian(MEAN, 0.4), noisy(5, 2), 1e-5
    start, level = linear_level(1.0), linear_level(sigma)
    before, at, after = (
        probability_flow_solution(mixture, x, start, linear_level(sigma + step))
        for step in (-h, 0, h)
    )
    x0 = mixture.denoise(at, level)
    velocity = convert_prediction(x0, at, level, "sample").as_type("flow_prediction")
    torch.testing.assert_close((after - before) / (2 * h), velocity, rtol=1e-6, atol=1e-6)
    back = probability_flow_solution(mixture, at, level, start)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "scheduler",
    [
        *(DDPMScheduler(prediction_type=prediction_type) for prediction_type in PREDICTION_TYPES),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=[*PREDICTION_TYPES, "flow matching"],
)
def test_the_ideal_denoiser_predicts_what_the_scheduler_asks_for(scheduler):
    mixture, t = plane(), torch.tensor([3, 300, 998])
    x = add_noise(scheduler, mixture.sample(3, torch.Generator().manual_seed(1)), noisy(3, 2), t)
    level = alpha_sigma_at(scheduler, t)
    for weights in (None, torch.eye(3)):
        pred = ideal_denoiser(mixture, scheduler)(x, t, weights)
        out = convert_prediction(pred, x, level, get_prediction_type(scheduler))
        expected = mixture.denoise(x, level, weights)
        torch.testing.assert_close(out.x0, expected, rtol=1e-9, atol=1e-9)


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GaussianMixture(MEANS, STDS[:2]),
            r"stds: expected 3 numbers, 0 or more, got \[0.3",
        ),
        (
            lambda: isotropic_gaussian(MEANS[0], -1),
            "std: expected a finite number at least 0, got -1",
        ),
        (
            lambda: GaussianMixture(MEANS, STDS, -WEIGHTS),
            "weights: expected rows of 3 numbers, 0 or more and not all 0",
        ),
        (lambda: GaussianMixture(MEANS, STDS, WEIGHTS[:2]), "weights: expected rows of 3 numbers"),
        (
            lambda: plane().denoise(noisy(4, 2), level_of(0.5), torch.zeros(4, 3)),
            "weights: expected rows of 3 numbers",
        ),
        (
            lambda: GaussianMixture(MEANS, STDS, WEIGHTS[None]),
            r"weights: expected 3 numbers, got the shape \(1, 3\)",
        ),
        (
            lambda: plane().denoise(noisy(4, 2), level_of(0.5), torch.ones(3, 3)),
            "weights: expected 1 row or 4, .* got 3",
        ),
        (
            lambda: plane().score(noisy(4, 2), CLEAN_LEVEL),
            "level: expected sigma > 0, since the score divides by it",
        ),
        (
            lambda: plane().sample(0, torch.Generator()),
            "num_samples: expected an integer of at least 1, got 0",
        ),
        (
            lambda: plane().denoise(noisy(4, 3), level_of(0.5)),
            r"x_t: expected \(b, 2\), got \(4, 3\)",
        ),
        (
            lambda: empirical_distribution(MEANS).denoise(noisy(4, 1), CLEAN_LEVEL),
            "level: expected sigma > 0",
        ),
        (
            lambda: probability_flow_solution(plane(), noisy(4, 2), level_of(0.5), CLEAN_LEVEL),
            "expected one Gaussian, got 3 components",
        ),
        (
            lambda: ideal_denoiser(plane(), DDPMScheduler(rescale_betas_zero_snr=True)),
            "epsilon-prediction is undefined at zero SNR",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
