"""The optimal denoiser against quadrature, autograd and torch.distributions; the flow against its own equation."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from course_lib.diffusion import (
    CLEAN,
    PREDICTION_TYPES,
    Level,
    Mixture,
    add_noise,
    estimate,
    finite_data,
    gaussian,
    level_at,
    ode_solution,
    optimal_model,
)

MEANS, STDS, WEIGHTS = (
    torch.tensor([[-1.0], [0.4], [2.0]]),
    torch.tensor([0.3, 0.05, 0.6]),
    torch.tensor([2.0, 1.0, 1.0]),
)


def level(signal):
    signal = torch.tensor([signal], dtype=torch.float64)
    return Level(signal, (1 - signal**2).sqrt())


def noisy(rows, d, seed=0):
    return 1.5 * torch.randn(
        rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def plane(seed=0):
    """Three components in the plane, one of them a point."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return Mixture(means, torch.tensor([0.5, 0.0, 0.2]), torch.rand(3, generator=generator) + 0.1)


signals = st.floats(0.02, 0.999)


# The denoiser


@given(signal=signals, x=st.floats(-4, 4))
def test_the_posterior_mean_is_the_integral_of_bayes(signal, x):
    grid = torch.linspace(-6, 7, 40001, dtype=torch.float64)  # x0
    prior = sum(
        w * distributions.Normal(m.double(), s.double()).log_prob(grid).exp()
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    here = level(signal)
    likelihood = -((x - signal * grid) ** 2) / (2 * here.noise**2)
    posterior = prior * (likelihood - likelihood[prior > 0].max()).exp()
    expected = (posterior * grid).sum() / posterior.sum()
    found = Mixture(MEANS, STDS, WEIGHTS).denoise(torch.tensor([[x]]).double(), here)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


@given(signal=signals, seed=st.integers(0, 1000))
def test_the_score_is_the_gradient_of_the_density(signal, seed):
    mixture, x = plane(seed), noisy(5, 2, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, level(signal)).sum(), x)
    score = mixture.score(x, level(signal))
    torch.testing.assert_close(score, gradient, rtol=1e-7, atol=1e-7 * gradient.abs().max().item())


def test_the_density_is_that_of_torch():
    here = level(0.7)
    std = ((0.7 * STDS.double()) ** 2 + here.noise**2).sqrt()
    components = distributions.Normal(0.7 * MEANS.double()[:, 0], std)
    known = distributions.MixtureSameFamily(distributions.Categorical(WEIGHTS.double()), components)
    x = noisy(20, 1)
    found = Mixture(MEANS, STDS, WEIGHTS).log_density(x, here)
    torch.testing.assert_close(found, known.log_prob(x[:, 0]), rtol=1e-12, atol=1e-12)


@given(signal=signals, seed=st.integers(0, 1000))
def test_finite_data_by_the_softmax_written_out(signal, seed):
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(7, 3, 2, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    here = level(signal)
    x = signal * data[:2] + here.noise * torch.randn(
        2, 3, 2, 4, 4, generator=generator, dtype=torch.float64
    )
    distances = (x[:, None] - signal * data[None]).square().flatten(2).sum(2)
    expected = torch.einsum(
        "bn,nchfw->bchfw", torch.softmax(-distances / (2 * here.noise**2), dim=1), data
    )
    torch.testing.assert_close(finite_data(data).denoise(x, here), expected, rtol=1e-8, atol=1e-8)


def test_where_exponentials_would_overflow_the_nearest_datum_answers():
    data = torch.rand(50, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mixture, here = finite_data(data), level(0.99995)  # σ = 0.01, exponents of some -10**7
    found = mixture.denoise(0.99995 * data[:5] + 0.01 * torch.randn(5, 3, 4, 16, 16), here)
    assert found.dtype == torch.float32 and torch.equal(found, data[:5])
    far = mixture.denoise(100 * data[5:6], here)
    assert torch.equal(far, data[5:6])
    without_signal = mixture.denoise(data[:2], level(0.0))
    torch.testing.assert_close(without_signal, data.mean(0).expand(2, -1, -1, -1, -1))


def test_each_row_has_its_own_level_and_the_order_of_the_data_does_not_matter():
    mixture, x = plane(), noisy(4, 2)
    levels = level_at(DDPMScheduler(), torch.tensor([0, 200, 500, 999]))
    together = mixture.denoise(x, levels)
    for row in range(4):
        alone = mixture.denoise(x[row : row + 1], Level(*(part[row : row + 1] for part in levels)))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)
    turned = Mixture(MEANS.flip(0), STDS.flip(0), WEIGHTS.flip(0))
    y = noisy(4, 1)
    torch.testing.assert_close(
        turned.denoise(y, levels), Mixture(MEANS, STDS, WEIGHTS).denoise(y, levels)
    )


def test_weights_choose_components():
    mixture, x, here = Mixture(MEANS, STDS, WEIGHTS), noisy(3, 1), level(0.6)
    found = mixture.denoise(x, here, torch.eye(3))
    for row in range(3):
        alone = gaussian(MEANS[row], STDS[row].item()).denoise(x[row : row + 1], here)
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        mixture.denoise(x, here, 10 * WEIGHTS), mixture.denoise(x, here), rtol=1e-12, atol=1e-12
    )


def test_samples_have_the_moments_of_the_mixture():
    mixture = Mixture(MEANS, STDS, WEIGHTS)
    x = mixture.draw(20000, torch.Generator().manual_seed(0))
    assert x.shape == (20000, 1) and x.dtype == torch.float32
    share = WEIGHTS / WEIGHTS.sum()
    mean = (share * MEANS[:, 0]).sum()
    variance = (share * (STDS**2 + MEANS[:, 0] ** 2)).sum() - mean**2
    assert x.mean().item() == pytest.approx(mean.item(), abs=5 * math.sqrt(variance / 20000))
    assert x.var().item() == pytest.approx(variance.item(), rel=0.04)


# The flow


def test_the_flow_follows_its_equation_and_can_be_interrupted():
    """With x = signal · u and s = noise / signal: du/ds = (u - E[x0 | x]) / s. Karras et al. 2022, equation 1."""
    mixture, x = gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.4), noisy(5, 2)

    def at(s):
        size = torch.tensor([1 + s**2], dtype=torch.float64).sqrt()
        return Level(1 / size, s / size)

    start, h = at(3.0), 1e-4
    here = ode_solution(mixture, x, start, at(1.0))
    before, after = (ode_solution(mixture, x, start, at(s)) / at(s).signal for s in (1 - h, 1 + h))
    slope = here / at(1.0).signal - mixture.denoise(here, at(1.0))
    torch.testing.assert_close((after - before) / (2 * h), slope, rtol=1e-6, atol=1e-6)
    on_the_way = ode_solution(mixture, here, at(1.0), CLEAN)
    torch.testing.assert_close(
        on_the_way, ode_solution(mixture, x, start, CLEAN), rtol=1e-12, atol=1e-12
    )
    # from pure noise, at its end it has the distribution of the data
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = ode_solution(mixture, noise, level(0.0), CLEAN)
    torch.testing.assert_close(
        end, torch.tensor([0.3, -0.2]).double() + 0.4 * noise, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_optimal_model_answers_in_the_schedulers_form(kind):
    scheduler, mixture = DDPMScheduler(prediction_type=kind), plane()
    t = torch.tensor([3, 300, 998])
    x = add_noise(scheduler, mixture.draw(3, torch.Generator().manual_seed(1)), noisy(3, 2), t)
    weights = torch.eye(3)
    for conditioning in (None, weights):
        said = estimate(
            kind, optimal_model(mixture, scheduler)(x, t, conditioning), x, level_at(scheduler, t)
        )
        expected = mixture.denoise(x, level_at(scheduler, t), conditioning)
        torch.testing.assert_close(said.x0, expected, rtol=1e-9, atol=1e-9)


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mixture(MEANS, STDS[:2]), r"stds: expected 3 numbers, 0 or more, got \[0.3"),
        (lambda: gaussian(MEANS[0], -1), r"stds: expected 1 numbers, 0 or more, got \[-1.0\]"),
        (
            lambda: Mixture(MEANS, STDS, -WEIGHTS),
            "weights: expected rows of 3 numbers, 0 or more and not all 0",
        ),
        (lambda: Mixture(MEANS, STDS, WEIGHTS[:2]), "weights: expected rows of 3 numbers"),
        (
            lambda: plane().denoise(noisy(4, 2), level(0.5), torch.zeros(4, 3)),
            "weights: expected rows of 3 numbers",
        ),
        (
            lambda: Mixture(MEANS, STDS, WEIGHTS[None]),
            r"weights: expected 3 numbers, got the shape \(1, 3\)",
        ),
        (
            lambda: plane().denoise(noisy(4, 2), level(0.5), torch.ones(3, 3)),
            "weights: expected 1 row or 4, .* got 3",
        ),
        (
            lambda: plane().score(noisy(4, 2), CLEAN),
            "level: expected some noise, since the score divides by it",
        ),
        (lambda: plane().denoise(noisy(4, 3), level(0.5)), r"x_t: expected \(b, 2\), got \(4, 3\)"),
        (lambda: finite_data(MEANS).denoise(noisy(4, 1), CLEAN), "level: expected some noise"),
        (
            lambda: ode_solution(plane(), noisy(4, 2), level(0.5), CLEAN),
            "expected one Gaussian, got 3 components",
        ),
        (
            lambda: optimal_model(plane(), DDPMScheduler(rescale_betas_zero_snr=True)),
            "'epsilon' says nothing about x0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
