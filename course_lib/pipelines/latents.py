"""Images and videos to latents of about unit variance, and back, through diffusers' AutoencoderKL.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, section 3.1.
"""

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from course_lib.nn.temporal_decoder import TemporalAutoencoder
from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.validation import check_float, check_images, check_video


def encode(
    vae: AutoencoderKL,
    images: Float[Tensor, "b 3 h w"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c y x"]:
    """Images to latents.

    Args:
        vae: the autoencoder; its `scaling_factor` brings latents to unit variance.
        images: in [-1, 1].
        generator: samples the posterior, as training does; None takes its mean.

    Raises:
        ValueError: as `validation.check_images`.
    """
    check_images("images", images)
    return _encode(vae, images, generator)


def _encode(vae: AutoencoderKL, images: Tensor, generator: torch.Generator | None) -> Tensor:
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return latents * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
    """Latents to images, clamped to [-1, 1].

    Raises:
        ValueError: for anything but floats (b, c, y, x).
    """
    check_float("latents", latents, "(b, c, y, x)")
    return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.clamp(-1, 1)


def encode_video(
    vae: AutoencoderKL | TemporalAutoencoder,
    video: Float[Tensor, "b 3 f h w"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c f y x"]:
    """Videos to latents, every frame as an image of its own. Arguments: as `encode`.

    Raises:
        ValueError: as `validation.check_video`, which warns if values seem to be in [0, 1].
    """
    check_video("video", video)
    image_vae = vae.spatial if isinstance(vae, TemporalAutoencoder) else vae
    latents = _encode(image_vae, fold_frames(video).to(image_vae.device), generator)
    return unfold_frames(latents, video.shape[2])


def decode_video(
    vae: AutoencoderKL | TemporalAutoencoder, latents: Float[Tensor, "b c f y x"]
) -> Float[Tensor, "b 3 f h w"]:
    """Latents to videos, clamped to [-1, 1].

    A TemporalAutoencoder decodes the frames of a video jointly, an AutoencoderKL one by one.

    Raises:
        ValueError: for anything but floats (b, c, f, y, x).
    """
    check_float("latents", latents, "(b, c, f, y, x)")
    if isinstance(vae, TemporalAutoencoder):
        return vae.decode(latents).clamp(-1, 1)
    return unfold_frames(decode(vae, fold_frames(latents)), latents.shape[2])
