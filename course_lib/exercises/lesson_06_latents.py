"""Lesson 06's checks of the autoencoder: 6.2, its latents' unit, and 6.3, its posterior.

Solutions and hints are in `lesson_06.py`. A mistake is known by the numbers it leads to on the check's own input.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from course_lib.lab.checks.compare import Wrong, brief, same
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import as_tensor, judge, judge_number, normal

# 6.2 ------------------------------------------------------------------------------------------------------------------

_STABLE_DIFFUSION = 0.18215


@cache
def tiny_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL, the same every time, with 2 latent channels and a scaling factor of 0.4.

    Like a trained one's, its posterior is narrow beside the spread of all latents, which is not 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vae = AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, mid_block_add_attention=False,
            scaling_factor=0.4,
        )  # fmt: skip
    vae.requires_grad_(False).eval()
    vae.quant_conv.weight[:2] *= 28  # of the mean
    vae.decoder.conv_out.weight.mul_(
        0.4
    )  # images well within [-1, 1], where a clamp changes nothing
    return vae


def _with_scale(vae: AutoencoderKL, scale: float) -> AutoencoderKL:
    other = copy.deepcopy(vae)
    other.register_to_config(scaling_factor=scale)
    return other


def verify_latents(attempt: object) -> Iterator[str]:
    """A pair of functions, images to latents and back, with two scaling factors."""
    if (
        not isinstance(attempt, list | tuple)
        or len(attempt) != 2
        or not all(map(callable, attempt))
    ):
        parts = attempt if isinstance(attempt, list | tuple) else [attempt]
        given = ", ".join(getattr(part, "__name__", brief(part)) for part in parts) or "nothing"
        raise Wrong(
            f"the check takes your two functions as a pair, (my_encode, my_decode); it got {given}"
        )
    encode, decode = attempt
    vae, images = tiny_vae(), normal(60, 2, 3, 8, 8).float().clamp(-1, 1)
    _judge_encode(encode, vae, images)
    yield "my_encode draws from the posterior with your generator, and multiplies by the scaling factor"
    spread = 1 / _draw(vae, images).std().item()
    latents = _encoded(encode, _with_scale(vae, spread), images)
    told = f"the same VAE with scaling_factor={spread:.3g}, one over its latents' spread: the spread of your latents"
    message = f"The scaling factor is this VAE's own, vae.config.scaling_factor: before it was 0.4, here {spread:.3g}."
    judge_number(latents.std().item(), 1.0, [(0.4 / spread, message)], told)
    yield "with one over the latents' spread as scaling factor, their spread is 1: the unit that the noise has"
    for scale in (0.4, spread):
        try:
            _judge_decode(decode, _with_scale(vae, scale), normal(61, 2, 2, 4, 4).float(), scale)
        except NotImplementedError as error:
            if str(error).startswith("Exercise "):
                raise Wrong("my_encode is right. my_decode is still empty.") from error
            raise
    yield "my_decode divides by the scaling factor before it decodes"


def _draw(vae: AutoencoderKL, images: Tensor) -> Tensor:
    return vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(3))


def _encoded(encode: Callable, vae: AutoencoderKL, images: Tensor) -> Tensor:
    """What the student's function returns, as a tensor. Wrong if it is still wrapped in diffusers' classes."""
    got = call(encode, vae, images.clone(), torch.Generator().manual_seed(3))
    if hasattr(got, "latent_dist"):
        raise Wrong(
            "my_encode returned what vae.encode returns: its .latent_dist is the posterior to sample from"
        )
    if isinstance(got, DiagonalGaussianDistribution):
        raise Wrong(
            "my_encode returned a distribution, the posterior. Asked for: latents, one .sample of it, scaled"
        )
    mine = as_tensor(got)
    if not isinstance(mine, Tensor):
        same(got, _draw(vae, images), "what my_encode returned")
    return mine


def _judge_encode(encode: Callable, vae: AutoencoderKL, images: Tensor) -> None:
    s, posterior = vae.config.scaling_factor, vae.encode(images).latent_dist
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        own = posterior.sample()
        torch.manual_seed(77)
        got = _encoded(encode, vae, images)
    drawn = _draw(vae, images)
    noise = (drawn - posterior.mean) / posterior.std
    bases = [
        (drawn, ""),
        (posterior.mode(), "These latents are the posterior's mean (its mode). Asked for: a sample."),
        (own, "You drew a sample, but not with `generator`: pass it to .sample, or nobody can draw it again."),
        (posterior.mean + posterior.var * noise, "The noise is multiplied by the variance. Its size is std."),
    ]  # fmt: skip
    scales = [
        (s, ""),
        (1, "The scaling factor is missing: these are the VAE's own numbers, of any spread."),
        (
            1 / s,
            "You divide by the scaling factor. To encode is to multiply, to decode is to divide.",
        ),
        (s * s, "The scaling factor is in it twice."),
        (
            _STABLE_DIFFUSION,
            "0.18215 is Stable Diffusion's factor. Every VAE has its own: vae.config.scaling_factor.",
        ),
    ]
    mistakes = [
        (base * k, f"{say} {more}".strip())
        for base, say in bases
        for k, more in scales
        if say or more
    ]
    scaled_first = vae.encode(images * s).latent_dist.sample(torch.Generator().manual_seed(3))
    mistakes.append(
        (scaled_first, "The pictures are scaled. Encode first, then multiply the latents.")
    )
    judge(got, drawn * s, mistakes, "my_encode of 2 images, with a scaling factor of 0.4")


def _judge_decode(decode: Callable, vae: AutoencoderKL, latents: Tensor, s: float) -> None:
    got = call(decode, vae, latents.clone())
    if hasattr(got, "sample"):
        raise Wrong("my_decode returned what vae.decode returns. The images are in its .sample")

    def decoded(scaled: Tensor) -> Tensor:
        return vae.decode(scaled).sample

    expected = decoded(latents / s)
    mistakes = [
        (decoded(latents), "The latents went in as they are. The decoder expects the VAE's own numbers: divide by "
         "the scaling factor."),
        (decoded(latents * s), "You multiply by the scaling factor here too. What encoding multiplied, decoding "
         "divides."),
        (decoded(latents / s**2), "The latents are divided by the scaling factor twice."),
        (decoded(latents) / s, "You divide the images. Divide the latents, before vae.decode."),
        (decoded(latents) * s, "You scale the images. Divide the latents, before vae.decode."),
        (decoded(latents / _STABLE_DIFFUSION), "0.18215 is Stable Diffusion's factor: vae.config.scaling_factor."),
        (decoded(latents / 0.4), "You divide by 0.4, another VAE's factor: vae.config.scaling_factor."),
        (expected / 2 + 0.5, "Right, and then moved to [0, 1]. The course's images stay in [-1, 1]."),
    ]  # fmt: skip
    judge(
        got,
        expected,
        mistakes,
        f"my_decode of 2 latents (2, 4, 4), with a scaling factor of {s:.3g}",
    )


# 6.3 ------------------------------------------------------------------------------------------------------------------

_NINE = math.log(9)
_PIXELS = 2 * 4 * 4  # of the latents of one image, channels counted


def verify_posterior(attempt: Callable) -> Iterator[str]:
    """Log-variance 0, where the bug hides; a variance of 9, by closed form; then moments as diffusers reads them."""
    mean, noise = normal(62, 2, 2, 4, 4), normal(63, 2, 2, 4, 4)
    _judge_both(
        attempt,
        torch.cat([mean, torch.zeros_like(mean)], dim=1),
        noise,
        "log-variance 0 everywhere",
    )
    yield "right where the log-variance is 0"
    _judge_variance_nine(attempt, (noise - noise.mean()) / noise.std(correction=0))
    yield "a variance of 9 spreads the samples by 3, and costs what the closed form says"
    for seed, centre, told in (
        (64, 0.0, "log-variances of either sign"),
        (66, -10.0, "log-variances near -10"),
    ):
        moments = torch.cat(
            [normal(seed, 3, 2, 4, 4), centre + normal(seed + 1, 3, 2, 4, 4)], dim=1
        )
        _judge_both(attempt, moments, normal(seed + 2, 3, 2, 4, 4), told)
    yield "sample and KL are those of diffusers' own posterior, for small and large variances"


def _both(attempt: Callable, moments: Tensor, noise: Tensor, told: str) -> tuple[Tensor, Tensor]:
    """The student's sample and KL, of the right shapes."""
    got = call(attempt, moments.clone(), noise.clone())
    if not isinstance(got, list | tuple) or len(got) != 2:
        raise Wrong(f"{told}: expected two tensors, (sample, kl); got {brief(got)}")
    sample, kl = map(as_tensor, got)
    if not isinstance(sample, Tensor) or not isinstance(kl, Tensor):
        raise Wrong(f"{told}: expected two tensors, (sample, kl); got {brief(got)}")
    images = len(noise)
    if kl.shape == noise.shape and sample.shape == (images,):
        raise Wrong(f"{told}: the two are swapped. Asked for: sample, kl.")
    if kl.ndim == 0:
        raise Wrong(
            f"{told}: your KL is one number for all {images} images. Asked for: one an image, ({images},)."
        )
    if sample.shape != noise.shape:
        same(sample, torch.empty_like(noise), "the sample")
    if kl.shape != (images,):
        same(kl, noise.new_empty(images), "the KL")
    return sample, kl


def _judge_both(attempt: Callable, moments: Tensor, noise: Tensor, told: str) -> None:
    sample, kl = _both(attempt, moments, noise, told)
    posterior = DiagonalGaussianDistribution(moments)
    true, cost, (mean, logvar) = (
        posterior.mean + posterior.std * noise,
        posterior.kl(),
        moments.chunk(2, dim=1),
    )
    samples = [
        (mean, "That is the mean alone, as if std were 0. The exponential of 0 is 1."),
        (
            mean + noise / 2,
            "The noise is halved. Half of the exponential is not the exponential of the half.",
        ),
        (
            logvar + (mean / 2).exp() * noise,
            "The halves of the moments are swapped: the mean comes first.",
        ),
        (mean - posterior.std * noise, "The noise is subtracted: mean + std · noise."),
    ]
    costs = [
        (
            cost / _PIXELS,
            "That is the mean over an image's latents. The KL of independent numbers is their sum.",
        ),
        (cost.mean().expand_as(cost), "That is the mean over the batch: every image has its own."),
        (-cost, "The sign is flipped: a KL divergence is never negative."),
        (2 * cost, "Twice too much: the half in front is missing."),
        (cost + _PIXELS / 2, "The -1 is missing: a standard normal posterior must cost 0."),
        (cost - mean.square().sum(dim=(1, 2, 3)) / 2, "The mean does not enter."),
    ]
    judge(sample, true, samples, f"the sample, {told}")
    judge(kl, cost, costs, f"the KL, {told}")


def _judge_variance_nine(attempt: Callable, noise: Tensor) -> None:
    """`noise` has a standard deviation of exactly 1, so that the sample's is the posterior's."""
    told = "mean 0 and log-variance 2.197, a variance of 9"
    moments = torch.cat([torch.zeros_like(noise), torch.full_like(noise, _NINE)], dim=1)
    sample, kl = _both(attempt, moments, noise, told)
    spread, cost = sample.std(correction=0).item(), kl[0].item()
    true = _PIXELS * kl_divergence(Normal(0.0, 3.0), Normal(0.0, 1.0)).item()

    def half(variance: float | int, log: float | int = _NINE) -> float:
        return _PIXELS * (variance - 1 - log) / 2

    def are(expected_spread: float | int, expected_cost: float) -> bool:
        return math.isclose(spread, expected_spread, rel_tol=1e-4) and math.isclose(
            cost, expected_cost, rel_tol=1e-4
        )

    found = f"{told}: your samples spread with a standard deviation of {spread:.4g}, and the KL is {cost:.4g}"
    if are(9, half(81)):
        raise Wrong(
            f"{found}; expected 3 and {true:.4g}. With a log-variance of 0 both were right."
        )
    if are(3, half(81)):
        raise Wrong(
            f"{found}. The samples are right now; the KL should be {true:.4g}: it still squares the old std."
        )
    if are(9, true):
        raise Wrong(f"{found}. The KL is right now; the samples still spread too far, expected 3.")
    if are(9, half(81, 2 * _NINE)):
        raise Wrong(
            f"{found}. Now sample and KL agree: both take the second half of the moments for the logarithm of std. "
            "But AutoencoderKL means the logarithm of the variance, and its weights were trained so. Change `std`."
        )
    spreads = [
        (9, "The noise is still multiplied by the variance."),
        (1 / 3, "A sign is flipped: one over std."),
        (math.sqrt(3), "The root is taken twice."),
        (81, "Twice the log-variance is the logarithm of the variance's square. You want its root."),
        (1, "The log-variance does not enter."),
    ]  # fmt: skip
    costs = [
        (half(3), "The KL wants the variance, std². It has std."),
        (half(81), "The KL wants the variance. It has the variance squared."),
        (
            half(9, _NINE / 2),
            "mean² + variance - 1 - log-variance: you subtract the logarithm of std.",
        ),
        (
            half(9, 2 * _NINE),
            "mean² + variance - 1 - log-variance: you subtract the log-variance twice.",
        ),
        (
            half(9, -_NINE),
            "The log-variance has the wrong sign: a KL divergence grows when the variance goes to 0.",
        ),
        (half(9, 0), "The log-variance is missing."),
        (half(math.sqrt(3)), "The KL wants the variance, std². It has the root of std."),
    ]
    judge_number(spread, 3.0, spreads, f"{told}: the standard deviation of your samples")
    judge_number(cost, true, costs, f"{told}: the KL")
