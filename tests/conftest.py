"""Settings that all tests share."""

import os

import hypothesis
import matplotlib
import pytest

# Small sizes and few steps. An environment variable, because notebook kernels inherit it.
os.environ.setdefault("COURSE_PROFILE", "ci")
# No windows. Not MPLBACKEND: the kernels would inherit it and lose their inline figures.
matplotlib.use("Agg")

# The same examples in every run: a failure can be repeated. No deadline: CI machines stall.
hypothesis.settings.register_profile(
    "course", deadline=None, derandomize=True, database=None, max_examples=30
)
hypothesis.settings.load_profile("course")


@pytest.fixture(scope="session")
def untrained_diffusion():
    """Builds a small LatentDiffusion without training."""
    # Not at the top: jaxtyping's import hook must be installed before course_lib is imported
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from course_lib.papers.latent_diffusion import (
        LatentDiffusion,
        build_autoencoder,
        build_scheduler,
        build_unet,
    )
    from course_lib.recipes.mini_clip import build_tokenizer

    def build(prediction_type="v_prediction", cross_attention_dim=32):
        """The U-Net's last layer is not zero, so the text makes a difference."""
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        config = CLIPTextConfig(
            hidden_size=cross_attention_dim,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            **{name: getattr(tokenizer, name) for name in names},
        )
        system = LatentDiffusion(
            vae=build_autoencoder(block_out_channels=(8, 8, 8, 8), latent_channels=4),
            text_encoder=CLIPTextModel(config),
            tokenizer=tokenizer,
            unet=build_unet(4, 8, (32, 64), cross_attention_dim),
            scheduler=build_scheduler(prediction_type),
        )
        system.vae.register_to_config(scaling_factor=0.4)
        for part in (system.vae, system.text_encoder, system.unet):
            part.eval().requires_grad_(False)
        return system

    return build
