"""Lesson 06's exercises 6.2 and 6.3, the autoencoder: every likely mistake gets its own message."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from course_lib.exercises.lesson_06 import (
    EXERCISES,
    decode_latents,
    encode_to_latents,
    sample_posterior,
)
from course_lib.lab.checks import IncorrectAnswer

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


# 6.2


def encoder(
    scale=lambda s: s,
    draw=lambda posterior, generator: posterior.sample(generator),
    before=lambda s: 1,
):
    def encode(vae, images, generator):
        s = vae.config.scaling_factor
        return draw(vae.encode(images * before(s)).latent_dist, generator) * scale(s)

    return encode, decode_latents


def decoder(before=lambda s: 1 / s, after=lambda images, s: images):
    def decode(vae, latents):
        s = vae.config.scaling_factor
        return after(vae.decode(latents * before(s)).sample, s)

    return encode_to_latents, decode


def mode(posterior, generator):
    return posterior.mode()


def stub(*_):
    raise NotImplementedError("Exercise 6.2: your code here")


LATENTS = [
    (encoder(lambda s: 1), "The scaling factor is missing"),
    (encoder(lambda s: 1 / s), "To encode is to multiply"),
    (encoder(lambda s: s * s), "in it twice"),
    (encoder(lambda s: 0.18215), "Every VAE has its own"),
    (encoder(lambda s: 0.4), "before it was 0.4, in this one"),
    (encoder(draw=mode), "the posterior's mean (its mode)"),
    (encoder(lambda s: 1, mode), "not a sample. The scaling factor is missing"),
    (encoder(draw=lambda posterior, _: posterior.sample()), "not with `generator`"),
    (
        encoder(lambda s: 1, lambda posterior, _: posterior.sample()),
        "sample it again. The scaling factor is missing",
    ),
    (
        encoder(draw=lambda p, g: p.mean + p.var * torch.randn(p.mean.shape, generator=g)),
        "multiplied by the variance",
    ),
    (encoder(lambda s: 1, before=lambda s: s), "The images are scaled"),
    (
        (lambda vae, images, generator: vae.encode(images), decode_latents),
        "what vae.encode returns",
    ),
    (
        (lambda vae, images, generator: vae.encode(images).latent_dist, decode_latents),
        "returned a distribution",
    ),
    ((lambda vae, images, generator: None, decode_latents), "Is a `return` missing?"),
    (
        (
            lambda vae, images, generator: encode_to_latents(vae, images, generator)[:1],
            decode_latents,
        ),
        "shape is (1, 2, 4, 4)",
    ),
    (decoder(lambda s: 1), "The latents went in as they are"),
    (decoder(lambda s: s), "You multiply by the scaling factor when decoding too"),
    (decoder(lambda s: 1 / s**2), "divided by the scaling factor twice"),
    (decoder(lambda s: 1, lambda images, s: images / s), "You divide the images"),
    (decoder(lambda s: 1, lambda images, s: images * s), "You scale the images"),
    (decoder(lambda s: 1 / 0.18215), "Stable Diffusion's factor"),
    (decoder(lambda s: 1 / 0.4), "another VAE's factor"),
    (decoder(after=lambda images, s: images / 2 + 0.5), "moved to [0, 1]"),
    (
        (encode_to_latents, lambda vae, latents: vae.decode(latents / vae.config.scaling_factor)),
        "The images are in its .sample",
    ),
    ((encode_to_latents, lambda vae, latents: None), "Is a `return` missing?"),
    ((encode_to_latents, stub), "my_decode is still empty"),
    (encode_to_latents, "your two functions as a pair"),
    ((encode_to_latents, None), "your two functions as a pair"),
]


# 6.3


def vae(std=lambda logvar: (logvar / 2).exp(), variance=lambda std, logvar: std**2, kl=None):
    """A posterior with parts to replace."""

    def posterior(moments, noise):
        mean, logvar = moments.chunk(2, dim=1)
        s = std(logvar)
        cost = kl(mean, logvar) if kl else mean**2 + variance(s, logvar) - 1 - logvar
        return mean + s * noise, 0.5 * cost.sum(dim=(1, 2, 3))

    return posterior


the_bug = vae(torch.exp)


def closed(mean, logvar):
    return mean**2 + logvar.exp() - 1 - logvar


def with_kl(change):
    """The right sample with another KL."""

    def posterior(moments, noise):
        sample, kl = sample_posterior(moments, noise)
        return sample, change(kl, noise)

    return posterior


POSTERIORS = [
    (the_bug, "have a standard deviation of 9, and the KL is 1245; expected 3 and 92.84"),
    (vae(kl=lambda mean, logvar: mean**2 + (2 * logvar).exp() - 1 - logvar),
     "it still squares the old std"),
    (vae(torch.exp, variance=lambda std, logvar: std),
     "The KL is right now; the samples still spread too far"),
    (vae(torch.exp, kl=lambda mean, logvar: mean**2 + (2 * logvar).exp() - 1 - 2 * logvar),
     "Now sample and KL agree"),
    (vae(variance=lambda std, logvar: std), "The KL wants the variance, std². It has std."),
    (vae(lambda logvar: logvar.exp() / 2, kl=closed), "not the exponential of the half"),
    (vae(lambda logvar: logvar / 2), "The exponential of 0 is 1"),
    (vae(lambda logvar: logvar.abs().sqrt()), "The exponential of 0 is 1"),
    (vae(lambda logvar: (-logvar / 2).exp()), "one over std"),
    (vae(lambda logvar: (logvar / 4).exp()), "The root is taken twice"),
    (vae(lambda logvar: (2 * logvar).exp()), "the variance's square"),
    (vae(torch.ones_like), "The log-variance does not enter"),
    (vae(torch.exp, kl=lambda mean, logvar: mean**2 + logvar), "still multiplied by the variance"),
    (vae(kl=lambda mean, logvar: mean**2 + logvar.exp() - logvar), "The -1 is missing"),
    (vae(kl=lambda mean, logvar: mean**2 + logvar.exp() - 1 - logvar / 2),
     "you subtract the logarithm of std"),
    (vae(kl=lambda mean, logvar: mean**2 + logvar.exp() - 1 - 2 * logvar),
     "the log-variance twice"),
    (vae(kl=lambda mean, logvar: mean**2 + logvar.exp() - 1 + logvar),
     "The log-variance has the wrong sign"),
    (vae(kl=lambda mean, logvar: mean**2 + logvar.exp() - 1), "The log-variance is missing"),
    (vae(kl=lambda mean, logvar: -closed(mean, logvar)), "The sign is flipped"),
    (vae(kl=lambda mean, logvar: 2 * closed(mean, logvar)), "Twice too much"),
    (vae(kl=lambda mean, logvar: closed(0, logvar)), "The mean does not enter"),
    (with_kl(lambda kl, noise: kl.mean()),
     "one number for all 2 images"),
    (with_kl(lambda kl, noise: kl / noise[0].numel()),
     "is their sum"),
    (with_kl(lambda kl, noise: kl * 0 + kl.mean()),
     "the mean over the batch"),
    (lambda m, noise: sample_posterior(m, noise)[::-1], "the two are swapped"),
    (lambda m, noise: sample_posterior(torch.cat(m.chunk(2, 1)[::-1], 1), noise),
     "The halves of the moments are swapped"),
    (lambda m, noise: sample_posterior(m, -noise), "The noise is subtracted"),
    (lambda m, noise: sample_posterior(m, 0 * noise), "That is only the mean"),
    (lambda m, noise: sample_posterior(m, noise)[0], "expected (sample, kl), got t"),
    (lambda m, noise: (sample_posterior(m, noise)[0], None), "expected (sample, kl), got t"),
    (lambda m, noise: None, "Is a `return` missing?"),
]  # fmt: skip

MUTANTS = [*(("6.2", *mutant) for mutant in LATENTS), *(("6.3", *mutant) for mutant in POSTERIORS)]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def by_own_noise(vae, images, generator):
    moments = vae.encode(images, return_dict=False)[0].parameters
    mean, logvar = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return vae.config["scaling_factor"] * (mean + (logvar / 2).exp() * noise)


def by_diffusers(moments, noise):
    posterior = DiagonalGaussianDistribution(moments)
    return posterior.mean + posterior.std * noise, posterior.kl()


OTHERS = [
    (
        "6.2",
        (
            by_own_noise,
            lambda vae, z: vae.decode(z / vae.config.scaling_factor, return_dict=False)[0],
        ),
    ),
    ("6.2", list(decoder(after=lambda images, s: images.clamp(-1, 1)))),
    ("6.2", encoder(draw=lambda p, g: p.sample(generator=g).double())),
    ("6.3", by_diffusers),
    ("6.3", lambda m, noise: list(sample_posterior(m.float(), noise.float()))),
    ("6.3", vae(lambda logvar: logvar.exp().sqrt(), kl=closed)),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


def test_the_bug_hides_where_the_log_variance_is_zero_and_makes_the_kl_negative_elsewhere():
    mean, noise = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
    torch.testing.assert_close(the_bug(moments, noise), sample_posterior(moments, noise))
    below = torch.cat([torch.zeros_like(mean), torch.full_like(mean, -0.5)], dim=1)
    assert (the_bug(below, noise)[1] < 0).all() and (sample_posterior(below, noise)[1] > 0).all()


def test_the_shown_solution_of_the_pair_is_the_pair():
    shown = {}
    exec(BY_ID["6.2"].solution, shown)
    assert (
        len(list(BY_ID["6.2"].verify((shown["encode_to_latents"], shown["decode_latents"])))) == 3
    )
