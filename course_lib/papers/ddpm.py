"""DDPM: a class-conditional U-Net that removes noise from pixels, the first system of the course.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239.
Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672
(cosine schedule).
Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv 2207.12598 (the null class).
Hoogeboom et al. 2023, "simple diffusion", arXiv 2301.11093 (patches instead of full-resolution
layers).
"""

import torch
from diffusers import DDIMScheduler, SchedulerMixin, UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.diffusion import Model, NoisyBatch, drop_conditioning, make_noisy_batch
from course_lib.diffusion.schedule import VP_PREDICTION_TYPES
from course_lib.validation import check_choice, check_float, check_int, check_number, require

PATCH_SIZE = 2  # 2 x 2 RGB pixels become 12 channels: a quarter of the work


def build_unet(
    num_classes: int, sample_size: int = 32, block_out_channels: tuple[int, ...] = (64, 64, 64)
) -> UNet2DModel:
    """An untrained U-Net for RGB images in patches, with attention on every level but the finest.

    Args:
        num_classes: number of classes; the U-Net gets one more, the last, as the null class.
        sample_size: height and width of the images, in pixels.
        block_out_channels: channels per level, the finest a multiple of 8, the others of 32;
            every level but the last halves the resolution.

    Raises:
        ValueError: numbers that are no integers above 0, or `sample_size` is not a multiple of
            `PATCH_SIZE`.
    """
    check_int("num_classes", num_classes, 1)
    check_int("sample_size", sample_size, 1)
    if sample_size % PATCH_SIZE:
        raise ValueError(f"sample_size: expected a multiple of {PATCH_SIZE}, got {sample_size}")
    num_attn_levels = len(block_out_channels) - 1
    return UNet2DModel(
        sample_size=sample_size // PATCH_SIZE,
        in_channels=3 * PATCH_SIZE**2,
        out_channels=3 * PATCH_SIZE**2,
        block_out_channels=block_out_channels,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * num_attn_levels),
        up_block_types=(*["AttnUpBlock2D"] * num_attn_levels, "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=num_classes + 1,
    )


def build_scheduler(prediction_type: str = "v_prediction") -> SchedulerMixin:
    """The cosine schedule with 1,000 timesteps; x0 is clipped to [-1, 1] while sampling.

    Args:
        prediction_type: "epsilon", "sample" or "v_prediction"; ValueError for others.
    """
    check_choice("prediction_type", prediction_type, VP_PREDICTION_TYPES)
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )


def null_class(unet: UNet2DModel) -> Int[Tensor, "1"]:
    """The class that stands for "any": `uncond` of `cfg_model` and of `drop_conditioning`."""
    return torch.tensor([unet.config.num_class_embeds - 1], device=unet.device)


def unet_denoiser(unet: nn.Module) -> Model:
    """The U-Net as a model: (x (b, 3, h, w), t (b,), classes (b,)) to a prediction of x's shape.

    Only the U-Net sees patches; reordering pixels does not change the statistics of the noise.
    """

    def model(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, PATCH_SIZE)  # b 12 h/2 w/2
        return F.pixel_shuffle(unet(patches, t, class_labels=classes).sample, PATCH_SIZE)

    return model


def training_batch(
    scheduler: SchedulerMixin,
    images: Float[Tensor, "b c h w"],
    classes: Int[Tensor, "b"],
    null_class: Int[Tensor, "1"],
    generator: torch.Generator,
    cond_drop_prob: float | int = 0.1,
) -> tuple[NoisyBatch, Int[Tensor, "b"]]:
    """Noisy images and their classes, some replaced by the null class.

    Ho & Salimans 2022, algorithm 1.

    Args:
        scheduler: its noise levels and prediction type.
        images: in [-1, 1].
        classes: one for each image.
        null_class: see `null_class`.
        generator: draws timesteps, noise and which classes are dropped, in this order.
        cond_drop_prob: probability of dropping a class, 0 to 1.

    Raises:
        ValueError: for images that are not floats, classes that are not integers, one for each
            image, or beyond the null class, and another probability.
    """
    check_float("images", images, "(b, c, h, w)")
    check_number("cond_drop_prob", cond_drop_prob, at_least=0.0, at_most=1.0)
    is_integer = not (classes.is_floating_point() or classes.dtype == torch.bool)
    got, num_images = f"{tuple(classes.shape)} {classes.dtype}", len(images)
    is_valid = is_integer and classes.shape == (num_images,)
    require(is_valid, "classes", f"integers ({num_images},), one for each image", got)
    last = int(null_class)
    in_range = ((classes >= 0) & (classes <= last)).all()
    require(in_range, "classes", f"0 to {last}, the null class", classes.tolist())
    batch = make_noisy_batch(scheduler, images, generator)
    return batch, drop_conditioning(classes, null_class, cond_drop_prob, generator)
