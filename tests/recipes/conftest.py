"""Untrained parts in place of shipped checkpoints."""

from types import SimpleNamespace

import pytest
import torch

from course_lib import zoo
from course_lib.papers.latent_diffusion import build_autoencoder
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.recipes import mini_clip


@pytest.fixture
def untrained_parts(monkeypatch):
    """An untrained autoencoder and CLIP, which the zoo then hands to recipes."""
    torch.manual_seed(0)
    vae = build_autoencoder().eval().requires_grad_(False)
    clip = mini_clip.build_model().eval().requires_grad_(False)
    tokenizer = mini_clip.build_tokenizer()
    models = {"mini-vae": vae, "mini-clip": clip}
    load_shipped = zoo.load_cached

    def load_cached(name, device=None):
        return models[name] if name in models else load_shipped(name, device)

    def load_text_encoder(token_embeddings=False):
        return TextEncoder.from_clip(clip, tokenizer, token_embeddings)

    monkeypatch.setattr(zoo, "load_cached", load_cached)
    monkeypatch.setattr(zoo, "load_text_encoder", load_text_encoder)
    return SimpleNamespace(vae=vae, clip=clip, text_encoder=load_text_encoder)
