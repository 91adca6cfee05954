"""Latent diffusion: an autoencoder makes pictures small, a U-Net that reads text makes noise into small pictures.

Every part is a class of diffusers or transformers, so that all of it is an ordinary StableDiffusionPipeline, and the
functions below take Stable Diffusion's own parts as well. Reads top to bottom: the autoencoder, the text, the U-Net,
one training example, sampling, the pipeline.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from course_lib.diffusion import Model, Step, guided, initial_noise, sample
from course_lib.nn.compilation import compiled

# The autoencoder


def build_autoencoder(
    widths: Sequence[int] = (16, 32, 64, 128), latent_channels: int = 16, size: int = 64
) -> AutoencoderKL:
    """An untrained autoencoder for RGB images. Rombach et al. 2022, section 3.1 and appendix G.

    widths: channels per level; every level but the last halves the resolution: four make it an eighth. size: of the
    images it is made for, in pixels. There is no attention, so that any other size is as good. Channels are normalised
    all together: in groups, as large autoencoders do it, few of them would forget how bright the picture was.
    """
    return AutoencoderKL(
        block_out_channels=tuple(widths),
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=size,
        scaling_factor=1.0,  # until it is measured
    )


def encode(
    vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
) -> Float[Tensor, "b c y x"]:
    """Images in [-1, 1] to latents of about unit variance.

    generator: draws them from the posterior, as training does; None takes its mean, the least lossy.
    """
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return latents * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
    """Latents of about unit variance to images, clamped to [-1, 1]."""
    return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.clamp(-1, 1)


# The text


def embed(text_encoder: CLIPTextModel, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
    """What the U-Net reads: the text tower's last layer, one vector per token, padding included."""
    return text_encoder(tokens.to(text_encoder.device)).last_hidden_state


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
    """Token ids, all rows of the length that the text tower was made for. Raises ValueError for one string."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts: expected a list, got one string, {prompts!r}")
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


# The U-Net


def build_unet(
    latent_channels: int = 16,
    size: int = 8,
    widths: Sequence[int] = (96, 192),
    text_width: int = 128,
    head_width: int = 32,
) -> UNet2DConditionModel:
    """An untrained U-Net for latents, with attention to itself and to the text on every level.

    size: of the latents. widths: channels per level, multiples of 32. text_width: of the text tower's vectors.
    head_width: channels per attention head, which divides the widths.
    """
    levels = len(widths)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(widths),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        # In Stable Diffusion 1's layout this option is the number of heads, whatever its name says
        attention_head_dim=tuple(width // head_width for width in widths),
    )


def build_schedule(prediction_type: str = "v_prediction") -> SchedulerMixin:
    """Stable Diffusion's thousand noise levels and its DDIM, whose steps can be walked in both directions.

    prediction_type: what the U-Net answers, see `diffusion.prediction_type`.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,  # latents have no bounds
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def as_model(unet: nn.Module) -> Model:
    """The U-Net as diffusion/ knows a model: (x, t, text (b, l, d)) to a prediction.

    Weights and text may be in half precision and x in float32: what is added up over many steps stays exact.
    """

    def model(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return unet(x.to(text.dtype), t, encoder_hidden_states=text).sample

    return model


# All of it


@dataclass
class LatentDiffusion:
    """A text-to-image model and its parts, which are those of a StableDiffusionPipeline."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline) -> "LatentDiffusion":
        """The parts of a pipeline: `LatentDiffusion.of(zoo.load("mini-sd"))`, or any Stable Diffusion 1 or 2."""
        return cls(
            pipeline.vae,
            pipeline.text_encoder,
            pipeline.tokenizer,
            pipeline.unet,
            pipeline.scheduler,
        )

    def pipeline(self) -> StableDiffusionPipeline:
        """The same parts as diffusers' own pipeline, without its safety checker."""
        return StableDiffusionPipeline(
            **vars(self), safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    def compiled(self) -> "LatentDiffusion":
        """The same, its U-Net `nn.compiled`: the first pictures of every number wait a minute, later ones take half.

        Load adapters and choose device and dtype before; without a C++ compiler, the first picture raises RuntimeError.
        """
        return replace(self, unet=compiled(self.unet))

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Prompts to what the U-Net reads; "" is the empty prompt, which stands for any picture."""
        with torch.no_grad():
            return embed(self.text_encoder, tokenize(self.tokenizer, prompts))

    def steps(
        self,
        prompts: Sequence[str],
        *,
        generator: torch.Generator,
        steps: int = 25,
        scale: float | int = 5.0,
        rescale: float | int = 0.0,
        negative: str = "",
        latents: Float[Tensor, "b c y x"] | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """Sample latents, one `diffusion.Step` at a time; `decode(vae, step.x)` shows where it stands.

        prompts: one each. scale, rescale: of guidance, see `diffusion.guide`. negative: what to be led away from.
        latents: to begin with; None draws them. options: for the scheduler's step, such as DDIM's eta.
        Raises ValueError as `diffusion.sample` and `diffusion.guided` do.
        """
        if latents is None:
            size, channels = self.unet.config.sample_size, self.unet.config.in_channels
            latents = initial_noise((len(prompts), channels, size, size), generator)
        latents = latents.to(self.unet.device)
        model = guided(as_model(self.unet), self.text([negative]), scale, rescale)
        text = self.text(prompts)
        return sample(
            model, self.scheduler, latents, text, steps=steps, generator=generator, **options
        )

    def draw(self, prompts: Sequence[str], **options: Any) -> Float[Tensor, "b 3 h w"]:
        """Images in [-1, 1], float32 on the CPU. Arguments, raises: as `steps`."""
        *_, last = self.steps(prompts, **options)
        with torch.no_grad():
            return decode(self.vae, last.x).float().cpu()
