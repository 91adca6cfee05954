"""Denoisers known in closed form: what a perfect network would answer, the oracle of the tests and of lesson 02.

If the data are a mixture of Gaussians, Σ weight_k · N(mean_k, std_k² I), then so is x_t, and its score and E[x0 | x_t]
are known. Standard deviation 0 makes the mixture a finite data set: the network that has learnt it by heart.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix B.
"""

import math

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from course_lib.diffusion.objective import Level, Model, estimate, level_at, prediction_type


class Mixture:
    """A mixture of isotropic Gaussians. Works in float64 on the device of `means`, answers in the dtype of x_t.

    means: (k, …), one datum of any shape per component. stds: (k,), 0 or more; 0 makes a component a point.
    weights: (k,), in any scale; all alike if None. Raises ValueError for other shapes, negative stds or bad weights.
    """

    def __init__(
        self,
        means: Float[Tensor, "k *axes"],
        stds: Float[Tensor, "n"],
        weights: Float[Tensor, "*m"] | None = None,
    ) -> None:
        if stds.shape != means.shape[:1] or not bool((stds >= 0).all()):
            raise ValueError(f"stds: expected {len(means)} numbers, 0 or more, got {stds.tolist()}")
        self.shape, self.dtype = means.shape[1:], means.dtype
        self.means = means.double().reshape(len(means), -1)  # k d
        self.stds = stds.to(self.means)
        if weights is not None and weights.ndim != 1:
            raise ValueError(
                f"weights: expected {len(means)} numbers, got the shape {tuple(weights.shape)}"
            )
        self.weights = self._normal(
            torch.ones_like(self.stds) if weights is None else weights
        )  # 1 k

    def _normal(self, weights: Tensor) -> Float[Tensor, "n k"]:
        """Weights, rows that sum to 1."""
        weights = weights.to(self.means)
        rows = weights[None] if weights.ndim == 1 else weights
        k = len(self.means)
        if rows.shape[1:] != (k,) or not bool((rows >= 0).all() and (rows.sum(dim=1) > 0).all()):
            raise ValueError(
                f"weights: expected rows of {k} numbers, 0 or more and not all 0, got {weights.tolist()}"
            )
        return rows / rows.sum(dim=1, keepdim=True)

    def _components(self, x_t: Tensor, level: Level, weights: Tensor | None) -> tuple[Tensor, ...]:
        """x_t as (b, d), signal (n, 1), variance of x_t in each component (n, k), log(weight · density) (b, k)."""
        if x_t.shape[1:] != self.shape:
            raise ValueError(
                f"x_t: expected (b, {', '.join(map(str, self.shape))}), got {tuple(x_t.shape)}"
            )
        x = x_t.to(self.means.device).double().reshape(len(x_t), -1)
        signal, sigma = level.beside(x)
        variance = (signal * self.stds) ** 2 + sigma**2
        if not bool((variance > 0).all()):
            raise ValueError("level: expected some noise, or components with a std above 0")
        weights = self.weights if weights is None else self._normal(weights)
        if len(weights) not in (1, len(x)):
            raise ValueError(f"weights: expected 1 row or {len(x)}, as x_t has, got {len(weights)}")
        squares = (
            x.square().sum(1, keepdim=True)
            - 2 * signal * (x @ self.means.T)
            + signal**2 * self.means.square().sum(1)
        )
        density = -squares / (2 * variance) - x.shape[1] / 2 * (2 * math.pi * variance).log()
        return x, signal, variance, weights.log() + density

    def denoise(
        self,
        x_t: Float[Tensor, "b *axes"],
        level: Level,
        weights: Float[Tensor, "*n k"] | None = None,
    ) -> Float[Tensor, "b *axes"]:
        """E[x0 | x_t], the estimate of x0 with the least squared error.

        x_t: noisy data. level: its level. weights: instead of the mixture's own, (k,) or one row each, (b, k): which
        components are meant, so that a row with a single 1 is a class and the mixture's own are no prompt.
        Raises ValueError for other shapes or weights, or for points without noise.
        """
        x, signal, variance, joint = self._components(x_t, level, weights)
        posterior = joint.softmax(dim=1)  # b k; subtracts the largest first, so nothing overflows
        gain = (
            signal * self.stds**2 / variance
        )  # n k, of E[x0 | x_t, k] = mean + gain (x_t - signal mean)
        x0 = (posterior * (1 - signal * gain)) @ self.means + (posterior * gain).sum(
            1, keepdim=True
        ) * x
        return x0.reshape(x_t.shape).to(x_t.dtype).to(x_t.device)

    def score(self, x_t: Float[Tensor, "b *axes"], level: Level) -> Float[Tensor, "b *axes"]:
        """∇ log p(x_t) = (signal · E[x0 | x_t] - x_t) / noise², Tweedie's formula. Arguments, raises: as `denoise`.

        level: must have noise, or ValueError is raised.
        """
        if not bool((level.noise > 0).all()):
            raise ValueError("level: expected some noise, since the score divides by it")
        signal, sigma = level.beside(x_t)
        return (signal * self.denoise(x_t, level) - x_t) / sigma**2

    def log_density(self, x_t: Float[Tensor, "b *axes"], level: Level) -> Float[Tensor, "b"]:
        """log p(x_t), in nats, float64. Arguments, raises: as `denoise`."""
        return self._components(x_t, level, None)[-1].logsumexp(dim=1)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count *axes"]:
        """Samples of x0, in the dtype of the means. generator: on their device."""
        chosen = torch.multinomial(self.weights[0], count, replacement=True, generator=generator)
        noise = torch.randn(
            count,
            self.means.shape[1],
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        )
        return (
            (self.means[chosen] + self.stds[chosen, None] * noise)
            .reshape(count, *self.shape)
            .to(self.dtype)
        )


def finite_data(data: Float[Tensor, "n *axes"]) -> Mixture:
    """The distribution of a finite data set: each datum (n, …) as likely as any other, and nothing else."""
    return Mixture(data, torch.zeros(len(data)))


def gaussian(mean: Float[Tensor, "*axes"], std: float | int) -> Mixture:
    """N(mean, std² I). mean: one datum. std: 0 or more. Raises ValueError for a negative std."""
    return Mixture(mean[None], torch.tensor([std], dtype=torch.float64))


def ode_solution(
    mixture: Mixture, x: Float[Tensor, "b *axes"], start: Level, end: Level
) -> Float[Tensor, "b *axes"]:
    """Where the probability flow takes x from level `start` to level `end`, if the data are one Gaussian.

    The flow keeps every marginal, which for Gaussians means: the deviation from the mean grows with the standard
    deviation. DDIM, Euler and DPM-Solver come closer with every step. Song et al. 2021, arXiv 2011.13456, section 4.3.
    Raises ValueError for several components, whose flow has no closed form.
    """
    if len(mixture.means) != 1:
        raise ValueError(f"mixture: expected one Gaussian, got {len(mixture.means)} components")
    mean = mixture.means.reshape(1, *mixture.shape).to(x)
    std = mixture.stds.item()
    (signal, sigma), (end_signal, end_sigma) = start.beside(x), end.beside(x)
    growth = ((end_signal * std) ** 2 + end_sigma**2) / ((signal * std) ** 2 + sigma**2)
    return end_signal * mean + growth.sqrt() * (x - signal * mean)


def optimal_model(mixture: Mixture, scheduler: SchedulerMixin) -> Model:
    """The model that no training can beat: (x, t, conditioning) to what the scheduler's `prediction_type` asks for.

    Its conditioning is `denoise`'s weights, or None. Raises ValueError as `prediction_type` and `denoise` do.
    """
    kind = prediction_type(scheduler)

    def model(x: Tensor, t: Tensor, conditioning: Tensor | None) -> Tensor:
        level = level_at(scheduler, t)
        return estimate("sample", mixture.denoise(x, level, conditioning), x, level).of(kind)

    return model
