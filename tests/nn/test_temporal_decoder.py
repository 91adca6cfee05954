"""The temporal decoder: initially frame by frame, then joint; the encoder never changes."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from course_lib.nn.temporal_decoder import TemporalAutoencoder, inflate_decoder


def image_vae(groups=1, seed=0):
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=groups,
        sample_size=16,
        scaling_factor=0.7,
    )
    return vae.double().eval()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize_temporal(inflated):
    torch.manual_seed(1)
    for parameter in inflated.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    return inflated


@pytest.mark.parametrize("groups", [1, 4])
def test_initially_it_is_the_image_autoencoder(groups):
    vae = image_vae(groups)
    inflated, video = inflate_decoder(vae), randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        latents = inflated.encode(video)
        decoded = inflated.decode(latents)
        for k in range(4):
            frame = vae.encode(video[:, :, k]).latent_dist.mode() * 0.7
            torch.testing.assert_close(latents[:, :, k], frame, rtol=0, atol=1e-12)
            expected = vae.decode(frame / 0.7).sample
            torch.testing.assert_close(decoded[:, :, k], expected, rtol=0, atol=1e-12)


def test_trained_it_depends_on_neighbouring_frames_and_can_be_switched_off():
    vae = image_vae()
    inflated, latents = randomize_temporal(inflate_decoder(vae)), randn(2, 4, 5, 8, 8)
    changed = latents.clone()
    changed[0, :, 2] += 1
    with torch.no_grad():
        change = (inflated.decode(changed) - inflated.decode(latents)).abs().amax(dim=(1, 3, 4))
        assert change[0].min() > 1e-6 and change[1].max() == 0
        expected = torch.stack([vae.decode(latents[:, :, k] / 0.7).sample for k in range(5)], dim=2)
        frames = inflated.decode(latents, temporal_scale=0)
        torch.testing.assert_close(frames, expected, rtol=0, atol=1e-12)


def test_all_temporal_layers_learn_and_nothing_else():
    inflated, latents = inflate_decoder(image_vae()), randn(2, 4, 3, 8, 8)
    inflated.spatial.requires_grad_(False)
    before = {name: value.clone() for name, value in inflated.state_dict().items()}
    optimizer = torch.optim.SGD(inflated.temporal.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        inflated.decode(latents).square().mean().backward()
        optimizer.step()
    after = inflated.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    moved = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-13}
    assert moved == {f"temporal.{name}" for name, _ in inflated.temporal.named_parameters()}


def test_temporal_tensors_are_named_like_the_layers_they_follow():
    inflated = inflate_decoder(image_vae())
    for name, _ in inflated.temporal.named_parameters():
        resnet = ".".join(name.split(".")[: 3 if name.startswith("mid_block") else 4])
        inflated.spatial.decoder.get_submodule(resnet)


def test_saving_and_loading(tmp_path):
    inflated, latents = randomize_temporal(inflate_decoder(image_vae())), randn(1, 4, 3, 8, 8)
    inflated.save_pretrained(tmp_path)
    loaded = TemporalAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.float64)
    with torch.no_grad():
        expected = inflated.decode(latents)
        torch.testing.assert_close(loaded.decode(latents), expected, rtol=0, atol=1e-12)
