"""Ideal denoisers in closed form: what a perfect network would predict, the oracle of the tests.

If the data are a mixture of Gaussians, sum of weight_k · N(mean_k, std_k² I), then so is x_t, and
its score and E[x0 | x_t] are known. With all stds 0 the mixture is a finite data set, and its
denoiser the network that has memorised it.

Sources:
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
        arXiv 2206.00364, appendix B.
    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations",
        arXiv 2011.13456.
"""

import math

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Shaped
from torch import Tensor

from course_lib.diffusion.objective import Model, convert_prediction
from course_lib.diffusion.schedule import AlphaSigma, alpha_sigma_at, get_prediction_type
from course_lib.validation import (
    check_float,
    check_generator,
    check_int,
    check_number,
    check_tensor,
    require,
)


class GaussianMixture:
    """A mixture of isotropic Gaussians, computed in float64 on the device of `means`.

    Args:
        means: (k, …), one datum of any shape per component.
        stds: (k,), 0 or more; 0 makes a component a point.
        weights: (k,) in any scale; None makes all components equally likely.

    Raises:
        ValueError: for integers, no component, values that are not finite, other shapes, negative
            stds, or weights that are negative or all 0.
    """

    def __init__(
        self,
        means: Shaped[Tensor, "k *axes"],
        stds: Shaped[Tensor, "*n"],
        weights: Shaped[Tensor, "*m"] | None = None,
    ) -> None:
        _check_values("means", means)
        _check_values("stds", stds)
        if stds.shape != means.shape[:1] or not bool((stds >= 0).all()):
            raise ValueError(f"stds: expected {len(means)} numbers, 0 or more, got {stds.tolist()}")
        self.shape = means.shape[1:]
        self.dtype = means.dtype
        self.means = means.double().reshape(len(means), -1)  # k d
        self.stds = stds.to(self.means)
        if weights is not None and weights.ndim != 1:
            raise ValueError(
                f"weights: expected {len(means)} numbers, got the shape {tuple(weights.shape)}"
            )
        weights = torch.ones_like(self.stds) if weights is None else weights
        self.weights = self._normalize_weights(weights)  # 1 k

    def _normalize_weights(self, weights: Tensor) -> Float[Tensor, "n k"]:
        """Weights (k,) or (n, k) as rows that sum to 1."""
        _check_values("weights", weights)
        weights = weights.to(self.means)
        rows = weights[None] if weights.ndim == 1 else weights
        k = len(self.means)
        if rows.shape[1:] != (k,) or not bool((rows >= 0).all() and (rows.sum(dim=1) > 0).all()):
            raise ValueError(
                f"weights: expected rows of {k} numbers, 0 or more and not all 0, "
                f"got {weights.tolist()}"
            )
        return rows / rows.sum(dim=1, keepdim=True)

    def _log_joint(
        self, x_t: Tensor, level: AlphaSigma, weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        """x_t (b, d), alpha (n, 1), variances of x_t (n, k), log(weight · density) (b, k)."""
        check_float("x_t", x_t)
        if x_t.ndim == 0 or x_t.shape[1:] != self.shape:
            raise ValueError(
                f"x_t: expected (b, {', '.join(map(str, self.shape))}), got {tuple(x_t.shape)}"
            )
        x = x_t.to(self.means.device).double().reshape(len(x_t), -1)
        alpha, sigma = level.like(x)
        variance = (alpha * self.stds) ** 2 + sigma**2
        if not bool((variance > 0).all()):
            raise ValueError("level: expected sigma > 0, or components with a std above 0")
        weights = self.weights if weights is None else self._normalize_weights(weights)
        if len(weights) not in (1, len(x)):
            raise ValueError(f"weights: expected 1 row or {len(x)}, as x_t has, got {len(weights)}")
        distances = (
            x.square().sum(1, keepdim=True)
            - 2 * alpha * (x @ self.means.T)
            + alpha**2 * self.means.square().sum(1)
        )
        log_density = -distances / (2 * variance) - x.shape[1] / 2 * (2 * math.pi * variance).log()
        return x, alpha, variance, weights.log() + log_density

    def denoise(
        self,
        x_t: Shaped[Tensor, "b *axes"],
        level: AlphaSigma,
        weights: Shaped[Tensor, "*n k"] | None = None,
    ) -> Float[Tensor, "b *axes"]:
        """E[x0 | x_t], the estimate of x0 with the least squared error.

        Args:
            x_t: (b, …) noisy data.
            level: its noise level.
            weights: (k,), or (b, k) with one row each, in place of the mixture's own. A row with a
                single 1 acts as a class, the mixture's own weights as no prompt.

        Raises:
            ValueError: for integers, other shapes or weights, a level that is not finite, or points
                without noise.
        """
        x, alpha, variance, log_joint = self._log_joint(x_t, level, weights)
        posterior = log_joint.softmax(dim=1)  # b k
        gain = alpha * self.stds**2 / variance  # n k: E[x0 | x_t, k] = mean + gain (x_t - α mean)
        from_means = (posterior * (1 - alpha * gain)) @ self.means
        x0 = from_means + (posterior * gain).sum(1, keepdim=True) * x
        return x0.reshape(x_t.shape).to(x_t.dtype).to(x_t.device)

    def score(self, x_t: Shaped[Tensor, "b *axes"], level: AlphaSigma) -> Float[Tensor, "b *axes"]:
        """Gradient of log p(x_t): (alpha · E[x0 | x_t] - x_t) / sigma², Tweedie's formula.

        Args:
            x_t, level: as for `denoise`; sigma must be above 0.

        Raises:
            ValueError: as `denoise`, and where sigma is 0.
        """
        if not bool((level.sigma > 0).all()):
            raise ValueError("level: expected sigma > 0, since the score divides by it")
        alpha, sigma = level.like(x_t)
        return (alpha * self.denoise(x_t, level) - x_t) / sigma**2

    def log_density(self, x_t: Shaped[Tensor, "b *axes"], level: AlphaSigma) -> Float[Tensor, "b"]:
        """log p(x_t) in nats, float64.

        Args:
            x_t, level: as for `denoise`.

        Raises:
            ValueError: as `denoise`.
        """
        return self._log_joint(x_t, level, None)[-1].logsumexp(dim=1)

    def sample(
        self, num_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "num_samples *axes"]:
        """Samples of x0.

        Args:
            num_samples: at least 1.
            generator: on the device of the means.

        Returns:
            (num_samples, …) in the dtype of the means.

        Raises:
            ValueError: for another number of samples, or anything but one generator.
        """
        check_int("num_samples", num_samples, 1)
        check_generator(generator)
        index = torch.multinomial(
            self.weights[0], num_samples, replacement=True, generator=generator
        )
        noise = torch.randn(
            num_samples,
            self.means.shape[1],
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        )
        x0 = self.means[index] + self.stds[index, None] * noise
        return x0.reshape(num_samples, *self.shape).to(self.dtype)


def empirical_distribution(data: Shaped[Tensor, "n *axes"]) -> GaussianMixture:
    """The distribution of a finite data set (n, …): each datum equally likely, and nothing else.

    Raises:
        ValueError: for integers, no data, or values that are not finite.
    """
    _check_values("data", data)
    return GaussianMixture(data, torch.zeros(len(data)))


def isotropic_gaussian(mean: Shaped[Tensor, "*axes"], std: float | int) -> GaussianMixture:
    """N(mean, std² I).

    Args:
        mean: one datum.
        std: 0 or more.

    Raises:
        ValueError: for a mean of integers, values that are not finite, or a negative std.
    """
    _check_values("mean", mean)
    check_number("std", std, at_least=0.0)
    return GaussianMixture(mean[None], torch.tensor([std], dtype=torch.float64))


def _check_values(name: str, values: Tensor) -> None:
    """Refuses integers, empty tensors and values that are not finite, whatever the shape."""
    check_float(name, values)
    check_tensor(name, values.flatten(), "(n)")


def probability_flow_solution(
    mixture: GaussianMixture, x: Shaped[Tensor, "b *axes"], start: AlphaSigma, end: AlphaSigma
) -> Float[Tensor, "b *axes"]:
    """Solution of the probability-flow ODE from one noise level to another, for Gaussian data.

    The flow keeps every marginal. For a Gaussian, the deviation from the mean therefore grows with
    the standard deviation. This holds for every schedule, flow matching included.
    Song et al. 2021, section 4.3.

    Args:
        mixture: with one component.
        x: (b, …) at level `start`.
        start: noise level of `x`.
        end: noise level of the result; it may be lower or higher.

    Raises:
        ValueError: for several components, whose flow has no closed form, for integers or another
            shape of x, and for a point without noise at the start.
    """
    if len(mixture.means) != 1:
        raise ValueError(f"mixture: expected one Gaussian, got {len(mixture.means)} components")
    expected = f"(b, {', '.join(map(str, mixture.shape))})"
    require(x.ndim > 0 and x.shape[1:] == mixture.shape, "x", expected, tuple(x.shape))
    mean = mixture.means.reshape(1, *mixture.shape).to(x)
    std = mixture.stds.item()
    alpha, sigma = start.like(x)
    end_alpha, end_sigma = end.like(x)
    variance = (alpha * std) ** 2 + sigma**2
    require((variance > 0).all(), "start", "sigma > 0, or a mixture with a std above 0", "a point")
    growth = ((end_alpha * std) ** 2 + end_sigma**2) / variance
    return end_alpha * mean + growth.sqrt() * (x - alpha * mean)


def ideal_denoiser(mixture: GaussianMixture, scheduler: SchedulerMixin) -> Model:
    """The model with the least loss: (x, t, weights) to the scheduler's prediction type.

    Args:
        mixture: distribution of the data.
        scheduler: gives the noise levels and the prediction type.

    Returns:
        A model whose conditioning is the `weights` of `GaussianMixture.denoise`, or None.

    Raises:
        ValueError: as `get_prediction_type`, and when called as `GaussianMixture.denoise`.
    """
    prediction_type = get_prediction_type(scheduler)

    def model(x: Tensor, t: Tensor, weights: Tensor | None) -> Tensor:
        level = alpha_sigma_at(scheduler, t)
        x0 = mixture.denoise(x, level, weights)
        return convert_prediction(x0, x, level, "sample").as_type(prediction_type)

    return model
