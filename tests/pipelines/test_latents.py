"""Latents: the autoencoder's own numbers in units of its scaling factor; videos frame by frame."""

import inspect

import pytest
import torch
from torch import nn

from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.pipelines.latents import decode, decode_video, encode, encode_video


@pytest.fixture(scope="module")
def vae(untrained_diffusion):
    return untrained_diffusion().vae


def images(b=2, h=64, w=64):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_encode_and_decode_use_the_scaling_factor(vae):
    posterior = vae.encode(images()).latent_dist
    torch.testing.assert_close(encode(vae, images()), posterior.mean * 0.4)
    sampled = encode(vae, images(), torch.Generator().manual_seed(3))
    torch.testing.assert_close(sampled, posterior.sample(torch.Generator().manual_seed(3)) * 0.4)
    assert sampled.shape == (2, 4, 8, 8)
    expected = vae.decode(posterior.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(decode(vae, posterior.mean * 0.4), expected)


def test_any_size_that_the_factor_divides(vae):
    latents = encode(vae, torch.zeros(1, 3, 40, 96))
    assert latents.shape == (1, 4, 5, 12) and decode(vae, latents).shape == (1, 3, 40, 96)


@pytest.mark.parametrize("temporal", [False, True])
def test_videos_are_their_frames(vae, temporal):
    """At initialisation a temporal decoder decodes frame by frame too."""
    video = torch.stack([images(), images().flip(0), images().flip(-1)], dim=2)
    model = inflate_decoder(vae) if temporal else vae
    latents = encode_video(model, video)
    decoded = decode_video(model, latents)
    for k in range(3):
        torch.testing.assert_close(latents[:, :, k], encode(vae, video[:, :, k]))
        expected = decode(vae, latents[:, :, k])
        torch.testing.assert_close(decoded[:, :, k], expected, atol=1e-6, rtol=0)


def test_a_temporal_decoder_sees_other_frames(vae):
    model = inflate_decoder(vae)
    for parameter in model.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    changed = latents.clone()
    changed[:, :, 2] += 1
    frames = [decode_video(model, part)[:, :, 1] for part in (latents, changed)]
    assert not torch.allclose(*frames, atol=1e-3)
    assert decode_video(model, latents * 100).abs().max() <= 1


def test_bad_pixels_and_latents_are_refused(vae):
    cases = (
        (encode, images()[0], "images: expected .* needs a batch axis"),
        (encode, (images() * 127.5 + 127.5).byte(), "images: expected floating point"),
        (encode, images() * 127.5 + 127.5, "images: expected values in .*/ 127.5 - 1"),
        (encode, images() / 0, "images: expected finite values"),
        (encode_video, images()[0, :, None], "video: expected .* needs a batch axis"),
        (encode_video, images()[:, :, None] * 100, "video: expected values in"),
        (decode, torch.zeros(4, 8, 8), "latents: expected .* needs a batch axis"),
        (decode, torch.zeros(1, 4, 8, 8).int(), "latents: expected floating point"),
        (decode_video, torch.zeros(4, 3, 8, 8), "latents: expected .* needs a batch axis"),
    )
    for function, tensor, message in cases:
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(function)(vae, tensor)


def test_a_video_in_the_unit_range_is_warned_of(vae):
    with pytest.warns(UserWarning, match=r"video: all values lie in \[0, 1\]"):
        encode_video(vae, images()[:, :, None] / 2 + 0.5)
