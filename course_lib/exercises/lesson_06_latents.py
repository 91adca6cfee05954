"""The checks of exercises 6.2, the scaling factor of latents, and 6.3, the VAE's posterior.

Solutions and hints are in `lesson_06.py`.
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

from course_lib.lab.checks import (
    IncorrectAnswer,
    as_tensor,
    assert_matches,
    call_on_copies,
    describe_value,
    diagnose,
    diagnose_number,
    is_close,
    randn,
    require,
    split_result,
)

# 6.2 ----------------------------------------------------------------------------------------------

_STABLE_DIFFUSION = 0.18215
_SCALE = 0.4


@cache
def tiny_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL, the same every time, with 2 latent channels.

    As in a trained one, its posterior is narrow in comparison with the std of all latents, which
    is not 1. The scaling factor is 0.4.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vae = AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=2,
            mid_block_add_attention=False, scaling_factor=_SCALE,
        )  # fmt: skip
    vae.requires_grad_(False).eval()
    vae.quant_conv.weight[:2] *= 28  # of the mean
    vae.decoder.conv_out.weight.mul_(0.4)  # keeps images well within [-1, 1]
    return vae


def _with_scale(vae: AutoencoderKL, scale: float) -> AutoencoderKL:
    other = copy.deepcopy(vae)
    other.register_to_config(scaling_factor=scale)
    return other


def verify_latents(attempt: object) -> Iterator[str]:
    """Checks a pair of functions, images to latents and back, with two scaling factors."""
    parts = attempt if isinstance(attempt, list | tuple) else [attempt]
    given = ", ".join(getattr(part, "__name__", describe_value(part)) for part in parts)
    require(
        len(parts) == 2 and all(map(callable, parts)),
        "the check takes your two functions as a pair, (my_encode, my_decode); it got "
        f"{given or 'nothing'}",
    )
    encode, decode = parts
    vae, images = tiny_vae(), randn(60, 2, 3, 8, 8).float().clamp(-1, 1)
    _check_encode(encode, vae, images)
    yield (
        "my_encode samples from the posterior with your generator, and multiplies by the scaling "
        "factor"
    )
    scale = 1 / _sample(vae, images).std().item()
    diagnose_number(
        _encode(encode, _with_scale(vae, scale), images).std().item(),
        1.0,
        [
            (
                _SCALE / scale,
                "The scaling factor is this VAE's own, vae.config.scaling_factor: before it was "
                f"{_SCALE}, in this one it is {scale:.3g}.",
            )
        ],
        f"the same VAE with scaling_factor={scale:.3g}, one over its latents' std: the std of your "
        "latents",
    )
    yield "with one over the latents' std as scaling factor, their std is 1, like that of the noise"
    for factor in (_SCALE, scale):
        try:
            _check_decode(decode, _with_scale(vae, factor), randn(61, 2, 2, 4, 4).float(), factor)
        except NotImplementedError as error:
            if not str(error).startswith("Exercise "):
                raise
            raise IncorrectAnswer("my_encode is right. my_decode is still empty.") from error
    yield "my_decode divides by the scaling factor before it decodes"


def _sample(vae: AutoencoderKL, images: Tensor) -> Tensor:
    return vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(3))


def _encode(encode: Callable, vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The student's latents as a tensor; explains results that are diffusers' classes."""
    result = call_on_copies(
        encode, vae=vae, images=images, generator=torch.Generator().manual_seed(3)
    )
    require(
        not hasattr(result, "latent_dist"),
        "my_encode returned what vae.encode returns: its .latent_dist is the posterior to sample "
        "from",
    )
    require(
        not isinstance(result, DiagonalGaussianDistribution),
        "my_encode returned a distribution, the posterior. Latents are one .sample of it, scaled",
    )
    latents = as_tensor(result)
    if not isinstance(latents, Tensor):
        assert_matches(result, _sample(vae, images), "what my_encode returned")
    return latents


def _check_encode(encode: Callable, vae: AutoencoderKL, images: Tensor) -> None:
    posterior = vae.encode(images).latent_dist
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        unseeded = posterior.sample()
        torch.manual_seed(77)
        latents = _encode(encode, vae, images)
    sample = _sample(vae, images)
    noise = (sample - posterior.mean) / posterior.std
    scaled_images = vae.encode(images * _SCALE).latent_dist.sample(torch.Generator().manual_seed(3))
    mistakes = [
        (base * factor, f"{message} {more}".strip())
        for base, message in (
            (sample, ""),
            (posterior.mode(), "These latents are the posterior's mean (its mode), not a sample."),
            (unseeded, "You sampled, but not with `generator`: pass it to .sample, or nobody can "
                       "sample it again."),
            (posterior.mean + posterior.var * noise,
             "The noise is multiplied by the variance. Its size is std."),
        )
        for factor, more in (
            (_SCALE, ""),
            (1, "The scaling factor is missing: these are the VAE's own numbers, of any std."),
            (1 / _SCALE, "You divide by the scaling factor. To encode is to multiply, to decode "
                         "is to divide."),
            (_SCALE**2, "The scaling factor is in it twice."),
            (_STABLE_DIFFUSION, "0.18215 is Stable Diffusion's factor. Every VAE has its own: "
                                "vae.config.scaling_factor."),
        )
        if message or more
    ]  # fmt: skip
    message = "The images are scaled. Encode first, then multiply the latents."
    diagnose(
        latents,
        sample * _SCALE,
        [*mistakes, (scaled_images, message)],
        "my_encode of 2 images, with a scaling factor of 0.4",
    )


def _check_decode(decode: Callable, vae: AutoencoderKL, latents: Tensor, scale: float) -> None:
    result = call_on_copies(decode, vae=vae, latents=latents)
    require(
        not hasattr(result, "sample"),
        "my_decode returned what vae.decode returns. The images are in its .sample",
    )

    def decoded(factor: float | int) -> Tensor:
        return vae.decode(latents * factor).sample

    expected = decoded(1 / scale)
    factor = "factor: vae.config.scaling_factor."
    mistakes = [
        (decoded(1), "The latents went in as they are. The decoder expects the VAE's own "
                     "numbers: divide by the scaling factor."),
        (decoded(scale), "You multiply by the scaling factor when decoding too. What encoding "
                         "multiplied, decoding divides."),
        (decoded(1 / scale**2), "The latents are divided by the scaling factor twice."),
        (decoded(1) / scale, "You divide the images. Divide the latents, before vae.decode."),
        (decoded(1) * scale, "You scale the images. Divide the latents, before vae.decode."),
        (decoded(1 / _STABLE_DIFFUSION), f"0.18215 is Stable Diffusion's {factor}"),
        (decoded(1 / _SCALE), f"You divide by 0.4, another VAE's {factor}"),
        (expected / 2 + 0.5, "Right, and then moved to [0, 1]. The course's images stay in [-1, "
                             "1]."),
    ]  # fmt: skip
    diagnose(
        result,
        expected,
        mistakes,
        f"my_decode of 2 latents (2, 4, 4), with a scaling factor of {scale:.3g}",
    )


# 6.3 ----------------------------------------------------------------------------------------------

_LOG_9 = math.log(9)
_NUM_LATENTS = 2 * 4 * 4  # of one image, channels counted


def verify_sample_posterior(attempt: Callable) -> Iterator[str]:
    """Checks log-variance 0, where the bug hides; a variance of 9; then moments as in diffusers."""
    mean, noise = randn(62, 2, 2, 4, 4), randn(63, 2, 2, 4, 4)
    moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
    _check_posterior(attempt, moments, noise, "log-variance 0 everywhere")
    yield "right where the log-variance is 0"
    _check_variance_nine(attempt, (noise - noise.mean()) / noise.std(correction=0))
    yield "a variance of 9 gives samples with a std of 3, and costs what the closed form says"
    for seed, centre, case in (
        (64, 0.0, "log-variances of either sign"),
        (66, -10.0, "log-variances near -10"),
    ):
        mean, logvar, noise = (randn(seed + i, 3, 2, 4, 4) for i in range(3))
        _check_posterior(attempt, torch.cat([mean, centre + logvar], dim=1), noise, case)
    yield "sample and KL are those of diffusers' own posterior, for small and large variances"


def _ask(attempt: Callable, moments: Tensor, noise: Tensor, case: str) -> tuple[Tensor, Tensor]:
    """The student's sample and KL, of the right shapes."""
    result, b = call_on_copies(attempt, moments=moments, noise=noise), len(noise)
    sample, kl = split_result(result, "sample, kl", case)
    require(
        not (kl.shape == noise.shape and sample.shape == (b,)),
        f"{case}: the two are swapped. The order is sample, kl.",
    )
    require(
        kl.ndim,
        f"{case}: your KL is one number for all {b} images. It is one per image, ({b},).",
    )
    for value, like, name in ((sample, noise, "sample"), (kl, noise[:, 0, 0, 0], "KL")):
        if value.shape != like.shape:
            assert_matches(value, torch.zeros_like(like), f"the {name}")
    return sample, kl


def _check_posterior(attempt: Callable, moments: Tensor, noise: Tensor, case: str) -> None:
    sample, kl = _ask(attempt, moments, noise, case)
    posterior, (mean, logvar) = DiagonalGaussianDistribution(moments), moments.chunk(2, dim=1)
    std, true_kl = posterior.std, posterior.kl()
    sample_mistakes = [
        (mean, "That is only the mean, as if std were 0. The exponential of 0 is 1."),
        (mean + noise / 2, "The noise is halved. Half of the exponential is not the exponential "
                           "of the half."),
        (logvar + (mean / 2).exp() * noise, "The halves of the moments are swapped: the mean "
                                            "comes first."),
        (mean - std * noise, "The noise is subtracted: mean + std · noise."),
    ]  # fmt: skip
    kl_mistakes = [
        (true_kl / _NUM_LATENTS, "That is the mean over an image's latents. The KL of "
                                 "independent numbers is their sum."),
        (true_kl.mean().expand_as(true_kl), "That is the mean over the batch: every image has "
                                            "its own."),
        (-true_kl, "The sign is flipped: a KL divergence is never negative."),
        (2 * true_kl, "Twice too much: the half in front is missing."),
        (true_kl + _NUM_LATENTS / 2, "The -1 is missing: a standard normal posterior must cost 0."),
        (true_kl - mean.square().sum(dim=(1, 2, 3)) / 2, "The mean does not enter."),
    ]  # fmt: skip
    diagnose(sample, mean + std * noise, sample_mistakes, f"the sample, {case}")
    diagnose(kl, true_kl, kl_mistakes, f"the KL, {case}")


def _check_variance_nine(attempt: Callable, noise: Tensor) -> None:
    """Checks a variance of 9 with noise of a std of exactly 1: the sample has the posterior's."""
    case = "mean 0 and log-variance 2.197, a variance of 9"
    moments = torch.cat([torch.zeros_like(noise), torch.full_like(noise, _LOG_9)], dim=1)
    sample, kl = _ask(attempt, moments, noise, case)
    got = torch.stack([sample.std(correction=0), kl[0]])
    true = _NUM_LATENTS * kl_divergence(Normal(0.0, 3.0), Normal(0.0, 1.0)).item()

    def cost(variance: float | int, logvar: float | int = _LOG_9) -> float:
        return _NUM_LATENTS * (variance - 1 - logvar) / 2

    text = (
        f"{case}: your samples have a standard deviation of {got[0]:.4g}, and the KL is "
        f"{got[1]:.4g}"
    )
    for std, wrong, message in (
        (9, cost(81), f"; expected 3 and {true:.4g}. With a log-variance of 0 both were right."),
        (3, cost(81), f". The samples are right now; the KL should be {true:.4g}: it still "
                      "squares the old std."),
        (9, true, ". The KL is right now; the samples still spread too far, expected 3."),
        (9, cost(81, 2 * _LOG_9), ". Now sample and KL agree: both take the second half of the "
                                  "moments for the logarithm of std. But AutoencoderKL means the "
                                  "logarithm of the variance, and its weights were trained so. "
                                  "Change `std`."),
    ):  # fmt: skip
        require(not is_close(got, torch.tensor([std, wrong]).double()), text + message)
    std_mistakes = [
        (9, "The noise is still multiplied by the variance."),
        (1 / 3, "A sign is flipped: one over std."),
        (math.sqrt(3), "The root is taken twice."),
        (
            81,
            "Twice the log-variance is the logarithm of the variance's square. You want its root.",
        ),
        (1, "The log-variance does not enter."),
    ]
    terms = "mean² + variance - 1 - log-variance"
    kl_mistakes = [
        (cost(3), "The KL wants the variance, std². It has std."),
        (cost(81), "The KL wants the variance. It has the variance squared."),
        (cost(9, _LOG_9 / 2), f"{terms}: you subtract the logarithm of std."),
        (cost(9, 2 * _LOG_9), f"{terms}: you subtract the log-variance twice."),
        (cost(9, -_LOG_9), "The log-variance has the wrong sign: a KL divergence grows when the "
                           "variance goes to 0."),
        (cost(9, 0), "The log-variance is missing."),
        (cost(math.sqrt(3)), "The KL wants the variance, std². It has the root of std."),
    ]  # fmt: skip
    std_case = f"{case}: the standard deviation of your samples"
    diagnose_number(got[0].item(), 3.0, std_mistakes, std_case)
    diagnose_number(got[1].item(), true, kl_mistakes, f"{case}: the KL")
