"""Small untrained systems for the calls of the upper rooms."""

import functools

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from course_lib.papers import latent_diffusion, video_ldm
from course_lib.pipelines.text_to_video import TextToVideoPipeline
from course_lib.recipes.mini_clip import build_tokenizer


@functools.cache
def image_system():
    """An untrained latent diffusion system."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **ids,
    )  # fmt: skip
    system = latent_diffusion.LatentDiffusion(
        vae=latent_diffusion.build_autoencoder((8, 8, 8, 8), latent_channels=4, sample_size=16),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=latent_diffusion.build_unet(4, 4, (32, 32), 32),
        scheduler=latent_diffusion.build_scheduler(),
    )
    for part in (system.vae, system.text_encoder, system.unet):
        part.eval().requires_grad_(False)
    return system


@functools.cache
def video_pipeline():
    """An untrained text-to-video pipeline whose layers over time change the result."""
    system = image_system()
    unet = video_ldm.build_unet(system.unet)
    torch.manual_seed(1)
    for parameter in unet.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = TextToVideoPipeline(**{**vars(system), "unet": unet.eval().requires_grad_(False)})
    pipe.set_progress_bar_config(disable=True)
    return pipe
