"""Align your Latents: temporal layers turn a latent image model into a video model.

Only the temporal layers are trained; text to video, frame interpolation and prediction of further
frames are one network with conditioning channels. Sampling is `pipelines.text_to_video`.

Blattmann et al. 2023, "Align your Latents: High-Resolution Video Synthesis with Latent
Diffusion Models", arXiv 2304.08818.
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
"""

from typing import Any

from diffusers import SchedulerMixin, UNet2DConditionModel

from course_lib.diffusion import rescale_to_zero_terminal_snr
from course_lib.nn.inflate import InflatedUNet, inflate


def build_unet(
    image_unet: UNet2DConditionModel,
    *,
    temporal_cross_attention: bool = True,
    frame_conditioning: bool = True,
) -> InflatedUNet:
    """An image U-Net with trainable temporal layers; at first it equals the image U-Net.

    Args:
        image_unet: mini-sd's, or any that `inflate` takes; it is copied.
        temporal_cross_attention: give the temporal layers their own cross-attention to the prompt
            (the paper's text-to-video model), here to text with token embeddings, see
            `TextEncoder`. Without it, motion words reach them only through the frozen image model,
            which ignores them.
        frame_conditioning: add input channels for given frames and their mask (section 3.2).
    """
    style_kwargs: dict[str, Any] = {}
    if temporal_cross_attention:
        style_kwargs["temporal_cross_attention_dim"] = 2 * image_unet.config.cross_attention_dim
    if frame_conditioning:
        style_kwargs["cond_channels"] = image_unet.config.in_channels + 1
    unet = inflate(image_unet, "video-ldm", **style_kwargs)
    unet.spatial.requires_grad_(False)
    return unet


def build_scheduler(image_scheduler: SchedulerMixin) -> SchedulerMixin:
    """The image model's noise levels, rescaled to zero terminal SNR. Lin et al. 2024.

    The image model's schedule keeps some signal at the last timestep. It is the same in all 16
    frames, so a video model learns to exploit it in training, and fails at inference, which starts
    from pure noise. (The paper keeps the image model's schedule.)

    Args:
        image_scheduler: must predict v or x0, see `rescale_to_zero_terminal_snr`.
    """
    return rescale_to_zero_terminal_snr(image_scheduler)
