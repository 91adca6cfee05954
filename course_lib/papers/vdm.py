"""VDM: a space-time factorised U-Net denoises whole videos, trained jointly on videos and images.

Reads top to bottom: network, noise schedule, joint training, longer videos. Given frames
(replacement method, reconstruction guidance, section 3.1) are in `pipelines.frame_condition`, since
later systems use them too.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458.
Hoogeboom et al. 2023, "simple diffusion", arXiv 2301.11093 (shifted schedules, patches).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.diffusion import Model, sample, sample_noise
from course_lib.diffusion.schedule import VP_PREDICTION_TYPES
from course_lib.nn.unet import VideoUNet
from course_lib.pipelines import frame_condition
from course_lib.pipelines.frame_condition import FrameCondition, condition_on_frames
from course_lib.validation import check_choice, check_float, check_int, check_number, require


def build_unet(
    cross_attention_dim: int | None = 256,
    block_out_channels: Sequence[int] = (128, 128),
    patch_size: int = 4,
) -> VideoUNet:
    """An untrained U-Net for RGB videos; space, text and time have attention on every level.

    Args:
        cross_attention_dim: width of the text embeddings; None is a U-Net without text.
        block_out_channels: channels per level, multiples of 32.
        patch_size: side of a patch, in pixels; above 1 the network gets a full-resolution
            refinement head. With 4, videos of 32x32 cost little more than latents of 8x8.
    """
    return VideoUNet(
        block_out_channels=tuple(block_out_channels),
        attention_levels=(True,) * len(block_out_channels),
        cross_attention_dim=cross_attention_dim,
        patch_size=patch_size,
        refiner_channels=32 if patch_size > 1 else None,
        frame_embedding=True,
        coord_embedding=True,
        fps_embedding=True,
    )


def build_scheduler(
    prediction_type: str = "v_prediction",
    snr_shift: float | int = 4.0,
    num_train_timesteps: int = 1000,
) -> SchedulerMixin:
    """The cosine schedule shifted to more noise; x0 is clipped to [-1, 1] while sampling.

    Frames are redundant: averaging 16 of them cuts the noise std by 4, and at a given SNR a video
    reveals its layout far earlier than an image. The shift gives the model timesteps at which
    layout and motion are still undecided. Hoogeboom et al. 2023, section 2.2, shift by the number
    of pixels for the same reason.

    Args:
        prediction_type: "epsilon", "sample" or "v_prediction".
        snr_shift: alpha / sigma is divided by it at every timestep; 1 is the paper's schedule.
        num_train_timesteps: T.

    Raises:
        ValueError: an unknown type, `snr_shift` not positive and finite, or T no integer above 0.
    """
    check_choice("prediction_type", prediction_type, VP_PREDICTION_TYPES)
    check_number("snr_shift", snr_shift, above=0.0)
    check_int("num_train_timesteps", num_train_timesteps, 1)
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    angle = (time + 0.008) / 1.008 * math.pi / 2
    ratio = 1 / (angle.tan() * snr_shift)  # alpha / sigma
    alphas_cumprod = ratio**2 / (1 + ratio**2)
    betas = (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    return DDIMScheduler(
        trained_betas=betas.tolist(),
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def append_images(
    video: Float[Tensor, "b c f h w"],
    text: Float[Tensor, "b l d"],
    images: Float[Tensor, "b n c h w"],
    captions: Float[Tensor, "b n l d"],
) -> tuple[
    Float[Tensor, "b c frames h w"],
    dict[str, Float[Tensor, "b frames l d"] | Bool[Tensor, "b frames"]],
]:
    """Videos with n images appended as extra frames, for joint training. Section 3.3.

    Args:
        video: the videos.
        text: their text embeddings.
        images: of anything, best of other videos.
        captions: text embeddings of the images.

    Returns:
        Videos of f + n frames, and conditioning: "text" for each frame, and "is_image".

    Raises:
        ValueError: for integers, or another number of axes, images or captions.
    """
    check_float("video", video, "(b, c, f, h, w)")
    check_float("text", text, "(b, l, d)")
    check_float("images", images, "(b, n, c, h, w)")
    check_float("captions", captions, "(b, n, l, d)")
    rows, expected = len(video), tuple(images.shape[:2])
    require(len(text) == rows, "text", f"{rows} rows, as video has", len(text))
    require(len(images) == rows, "images", f"{rows} rows, as video has", len(images))
    got = tuple(captions.shape[:2])
    require(got == expected, "captions", f"one for each of the {expected} images", got)
    b, _, f, _, _ = video.shape
    n = images.shape[1]
    frames = torch.cat([video, images.transpose(1, 2)], dim=2)  # b c (f + n) h w
    texts = torch.cat([text[:, None].expand(-1, f, -1, -1), captions], dim=1)  # b (f + n) l d
    is_image = torch.arange(f + n, device=video.device) >= f
    return frames, {"text": texts, "is_image": is_image.expand(b, -1)}


def extend_autoregressively(
    model: Model,
    scheduler: SchedulerMixin,
    video: Float[Tensor, "b c f h w"],
    cond: Any,
    *,
    num_frames: int,
    num_cond_frames: int = 8,
    reconstruction_weight: float | int | None = 2.0,
    num_inference_steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "b c num_frames h w"]:
    """A longer video, block by block, under reconstruction guidance. Section 3.1.

    Args:
        model: (x, t, cond) to a prediction of the scheduler's type.
        scheduler: samples every block.
        video: the beginning, as many frames as the network makes at once.
        cond: conditioning of every block.
        num_frames, num_cond_frames: see `frame_condition.extend_autoregressively`.
        reconstruction_weight: w_r of reconstruction guidance; None is the replacement method only.
        num_inference_steps: steps of each block.
        generator: draws the noise of each block.

    Raises:
        ValueError: as `frame_condition.extend_autoregressively` and `diffusion.sample`.
    """

    def sample_block(condition: FrameCondition) -> Tensor:
        conditioned = condition_on_frames(model, scheduler, condition, reconstruction_weight)
        x = sample_noise(condition.frames.shape, generator).to(video)
        *_, last = sample(
            conditioned,
            scheduler,
            x,
            cond,
            num_inference_steps=num_inference_steps,
            generator=generator,
        )
        return last.x

    return frame_condition.extend_autoregressively(
        sample_block, video, num_frames=num_frames, num_cond_frames=num_cond_frames
    )
