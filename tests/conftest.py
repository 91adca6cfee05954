"""Settings that every test shares."""

import os

import hypothesis
import matplotlib
import pytest

# Sizes and steps for a machine in a hurry. An environment variable, so that notebook kernels inherit it.
os.environ.setdefault("COURSE_PROFILE", "ci")
# No windows. Not MPLBACKEND: the kernels would inherit it and lose their inline pictures.
matplotlib.use("Agg")

# The same examples in every run: a red test stays red until it is mended. No deadline: CI machines stall.
hypothesis.settings.register_profile(
    "course", deadline=None, derandomize=True, database=None, max_examples=30
)
hypothesis.settings.load_profile("course")


@pytest.fixture(scope="session")
def untrained_diffusion():
    """Makes a small LatentDiffusion without training."""
    # Here and not above: what checks the types of course_lib must be there before it is first imported
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from course_lib.papers.latent_diffusion import (
        LatentDiffusion,
        build_autoencoder,
        build_schedule,
        build_unet,
    )
    from course_lib.recipes.mini_clip import build_tokenizer

    def build(prediction_type="v_prediction", text_width=32):
        """All parts, untrained and small; the weights of the U-Net's last layer are not zero, so that text matters."""
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        ids = {
            name: getattr(tokenizer, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        text = CLIPTextConfig(
            hidden_size=text_width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **ids,
        )  # fmt: skip
        parts = LatentDiffusion(
            vae=build_autoencoder((8, 8, 8, 8), 4),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=build_unet(4, 8, (32, 64), text_width),
            scheduler=build_schedule(prediction_type),
        )
        parts.vae.register_to_config(scaling_factor=0.4)
        for part in (parts.vae, parts.text_encoder, parts.unet):
            part.eval().requires_grad_(False)
        return parts

    return build
