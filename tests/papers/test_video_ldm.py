"""Align your Latents: which weights are trained, and the schedule."""

import pytest
import torch

from course_lib.diffusion import alpha_sigma_at, has_zero_terminal_snr
from course_lib.papers.video_ldm import build_scheduler, build_unet


@pytest.fixture(scope="module")
def system(untrained_diffusion):
    return untrained_diffusion()


def test_only_temporal_layers_are_trainable(system):
    unet = build_unet(system.unet)
    for name, parameter in unet.named_parameters():
        assert parameter.requires_grad == name.startswith("temporal.")
    assert unet.text_dim == 64 and system.unet.config.cross_attention_dim == 32
    plain = build_unet(system.unet, temporal_cross_attention=False, frame_conditioning=False)
    assert plain.text_dim == 32 and not plain.config.style_kwargs


def test_the_schedule_is_the_image_models_but_for_its_end(system):
    scheduler, image_scheduler = build_scheduler(system.scheduler), system.scheduler
    assert has_zero_terminal_snr(scheduler) and not has_zero_terminal_snr(image_scheduler)
    first, last = torch.tensor([0]), torch.tensor([999])
    assert alpha_sigma_at(scheduler, last).alpha.item() == 0
    expected = alpha_sigma_at(image_scheduler, first).alpha
    torch.testing.assert_close(alpha_sigma_at(scheduler, first).alpha, expected)
    assert scheduler.config.timestep_spacing == "trailing"
