"""Latent diffusion: an autoencoder compresses images, a text-conditional U-Net denoises latents.

Every part is a class of diffusers or transformers, so the whole is an ordinary
StableDiffusionPipeline, and the functions take Stable Diffusion's own parts as well.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from course_lib.diffusion import Model, SamplerStep, cfg_model, sample, sample_noise
from course_lib.diffusion.schedule import VP_PREDICTION_TYPES
from course_lib.nn.compilation import compile_for_inference
from course_lib.pipelines.batch import Generators, Prompts, check_rows, list_negatives
from course_lib.pipelines.latents import decode
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.validation import check_choice

LATENT_CHANNELS = 16  # of the course's models


def build_autoencoder(
    block_out_channels: Sequence[int] = (16, 32, 64, 128),
    latent_channels: int = LATENT_CHANNELS,
    sample_size: int = 64,
) -> AutoencoderKL:
    """An untrained autoencoder for RGB images. Rombach et al. 2022, section 3.1 and appendix G.

    There is no attention, so any size that the factor divides works.

    Args:
        block_out_channels: channels per level; every level but the last halves the resolution.
        latent_channels: channels of the latents.
        sample_size: height and width it is made for, in pixels.
    """
    num_levels = len(block_out_channels)
    return AutoencoderKL(
        block_out_channels=tuple(block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,  # norms of few channels would remove the image's brightness
        mid_block_add_attention=False,
        sample_size=sample_size,
        scaling_factor=1.0,  # until it is measured
    )


def build_unet(
    latent_channels: int = LATENT_CHANNELS,
    sample_size: int = 8,
    block_out_channels: Sequence[int] = (96, 192),
    cross_attention_dim: int = 128,
    head_dim: int = 32,
) -> UNet2DConditionModel:
    """An untrained U-Net for latents, with self- and cross-attention on every level.

    Args:
        latent_channels: channels of the latents.
        sample_size: height and width of the latents.
        block_out_channels: channels per level, multiples of 32.
        cross_attention_dim: width of the text embeddings.
        head_dim: channels per attention head; divides the channels of every level.
    """
    num_levels = len(block_out_channels)
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(block_out_channels),
        down_block_types=("CrossAttnDownBlock2D",) * num_levels,
        up_block_types=("CrossAttnUpBlock2D",) * num_levels,
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=tuple(c // head_dim for c in block_out_channels),  # number of heads!
    )


def build_scheduler(prediction_type: str = "v_prediction") -> SchedulerMixin:
    """Stable Diffusion's 1,000 noise levels with DDIM.

    Args:
        prediction_type: "epsilon", "sample" or "v_prediction"; ValueError for others.
    """
    check_choice("prediction_type", prediction_type, VP_PREDICTION_TYPES)
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,  # latents are unbounded
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def unet_denoiser(unet: nn.Module) -> Model:
    """The U-Net as a model: (x (b, c, y, x), t (b,), text (b, l, d)) to a prediction.

    Weights and text may be in half precision while x stays in float32, so that rounding does not
    accumulate over the steps.
    """

    def model(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return unet(x.to(text.dtype), t, encoder_hidden_states=text).sample

    return model


@dataclass
class LatentDiffusion:
    """A text-to-image model: the parts of a StableDiffusionPipeline."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin

    @classmethod
    def from_pipeline(cls, pipeline: StableDiffusionPipeline) -> "LatentDiffusion":
        """The parts of a pipeline: zoo.load("mini-sd"), or any Stable Diffusion 1 or 2."""
        return cls(*(getattr(pipeline, field.name) for field in fields(cls)))

    def to_pipeline(self) -> StableDiffusionPipeline:
        """The same parts as diffusers' pipeline, without its safety checker."""
        return StableDiffusionPipeline(
            **vars(self), safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    def compile(self) -> "LatentDiffusion":
        """The same with its U-Net compiled, see `nn.compilation.compile_for_inference`."""
        return replace(self, unet=compile_for_inference(self.unet))

    def encode_prompt(self, prompts: Iterable[str]) -> Float[Tensor, "b l d"]:
        """Text embeddings of prompts; "" is the null text."""
        return TextEncoder(self.text_encoder, self.tokenizer)(prompts)

    def sample_iter(
        self,
        prompts: Iterable[str],
        *,
        generator: Generators,
        num_inference_steps: int = 25,
        guidance_scale: float | int = 5.0,
        guidance_rescale: float | int = 0.0,
        negative_prompt: Prompts | None = None,
        latents: Float[Tensor, "b c y x"] | None = None,
        **step_kwargs: Any,
    ) -> Iterator[SamplerStep]:
        """Sample latents, one `SamplerStep` at a time.

        Args:
            prompts: one for each image.
            generator: one, or a list with one for each image; draws all noise.
            num_inference_steps: steps of the scheduler.
            guidance_scale, guidance_rescale: see `diffusion.classifier_free_guidance`.
            negative_prompt: one for all or one for each prompt; None is "", the null text.
            latents: noise to begin with; None draws it.
            step_kwargs: for the scheduler's step, such as DDIM's eta.

        Raises:
            ValueError: for latents that do not fit, and as `diffusion.sample` and `cfg_model`.
        """
        text = self.encode_prompt(prompts)
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if latents is None:
            latents = sample_noise((len(text), channels, size, size), generator)
        check_rows("latents", latents, len(text), channels, "(b, c, y, x)")
        uncond = self.encode_prompt(list_negatives(negative_prompt, len(text)))
        model = cfg_model(unet_denoiser(self.unet), uncond, guidance_scale, guidance_rescale)
        step_kwargs |= {"num_inference_steps": num_inference_steps, "generator": generator}
        return sample(model, self.scheduler, latents.to(self.unet.device), text, **step_kwargs)

    def generate(self, prompts: Iterable[str], **kwargs: Any) -> Float[Tensor, "b 3 h w"]:
        """Images in [-1, 1], float32 on the CPU. Arguments, raises: as `sample_iter`."""
        *_, last = self.sample_iter(prompts, **kwargs)
        with torch.no_grad():
            return decode(self.vae, last.x).float().cpu()
