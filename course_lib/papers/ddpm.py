"""DDPM: a U-Net that removes noise from pixels, told by a class what to draw; the first system of the course.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239. Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models", arXiv 2102.09672 (cosine schedule). Ho & Salimans 2022, "Classifier-Free
Diffusion Guidance", arXiv 2207.12598: one class more than there are, and it means "anything". Hoogeboom et al. 2023,
"simple diffusion", arXiv 2301.11093: no layer needs to see every pixel for itself.
"""

import torch
from diffusers import DDIMScheduler, SchedulerMixin, UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.diffusion import Example, Model, drop_conditioning, training_example

PATCH = 2  # 2 x 2 pixels of 3 colours are 12 channels of one place: a quarter of the work, or four times the network


def build_unet(classes: int, size: int = 32, widths: tuple[int, ...] = (64, 64, 64)) -> UNet2DModel:
    """An untrained U-Net for RGB images in patches, see `as_model`; with attention on every level but the finest.

    classes: how many there are; the U-Net gets one more, the last, for "anything". size: of the images, in pixels.
    widths: channels per level, the finest a multiple of 8, the others of 32; every level but the last halves the size.
    Raises ValueError for a size that is not made of whole patches.
    """
    if size % PATCH:
        raise ValueError(f"size: expected a multiple of {PATCH}, got {size}")
    coarser = len(widths) - 1
    return UNet2DModel(
        sample_size=size // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * coarser),
        up_block_types=(*["AttnUpBlock2D"] * coarser, "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=classes + 1,
    )


def build_schedule(prediction_type: str = "v_prediction") -> SchedulerMixin:
    """A thousand noise levels on the cosine schedule; estimates of x0 are clipped to [-1, 1] while sampling.

    prediction_type: what the U-Net answers, see `diffusion.prediction_type`.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )


def null_class(unet: UNet2DModel) -> Int[Tensor, "1"]:
    """The class that stands for no class: `empty` of `diffusion.guided` and `diffusion.drop_conditioning`."""
    return torch.tensor([unet.config.num_class_embeds - 1], device=unet.device)


def as_model(unet: nn.Module) -> Model:
    """The U-Net as diffusion/ knows a model: (x (b, 3, h, w), t, classes (b,)) to a prediction of the shape of x.

    Only the U-Net sees patches. That the numbers of a picture are written in another order changes nothing else: noise
    has no order.
    """

    def model(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, PATCH)  # (b, 12, h / 2, w / 2)
        return F.pixel_shuffle(unet(patches, t, class_labels=classes).sample, PATCH)

    return model


def learn_from(
    scheduler: SchedulerMixin,
    images: Float[Tensor, "b c h w"],
    classes: Int[Tensor, "b"],
    null_class: Int[Tensor, "1"],
    generator: torch.Generator,
    dropped: float = 0.1,
) -> tuple[Example, Int[Tensor, "b"]]:
    """One training example for each image, and the classes to tell the U-Net: some are replaced by the null class.

    images: in [-1, 1]. null_class: see `null_class`. dropped: their share. Ho & Salimans 2022, algorithm 1.
    """
    example = training_example(scheduler, images, generator)
    return example, drop_conditioning(classes, null_class, dropped, generator)
