"""mini-vae: pictures of 64 x 64 x 3 numbers to latents of 8 x 8 x 16, a twelfth, and back.

It never sees the 12 novel emoji: how well it draws those says whether it learned pictures or emoji.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from course_lib import zoo
from course_lib.metrics import PSNR, SSIM, perceptual_distance
from course_lib.papers.latent_diffusion import build_autoencoder
from course_lib.evaluation import compared
from course_lib.recipes.recipe import Recipe, Settings, save_half
from course_lib.world import NOVEL_EMOJI, Sampler, World, render
from course_lib.world.hashing import mix

SIZE = 64
LOOKS, BOTTLENECK = 0.02, 1e-4  # weights of the perceptual and the KL term; that of the pixels is 1


class Autoencoding(nn.Module):
    """The autoencoder as training sees it: one call from images to images, by way of drawn latents.

    vae: None for an untrained one.
    """

    def __init__(self, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        self.vae = build_autoencoder(size=SIZE) if vae is None else vae

    def forward(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c y x"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """Images in [-1, 1] to what is left of them, and the KL divergence of each posterior from N(0, 1)."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.kl()


def batches(number: int, settings: Settings) -> dict[str, Tensor]:
    """One global batch: "images" (b, 3, 64, 64) in [-1, 1], and the "noise" of their latents."""
    sampler = Sampler("train", seed=41)
    rows = range(number * settings.batch, (number + 1) * settings.batch)
    images = render([sampler(row) for row in rows], size=SIZE, frames=1, anytime=True).video[
        :, :, 0
    ]
    generator = torch.Generator().manual_seed(int(mix(41, number)[0] >> np.uint64(1)))
    return {"images": images, "noise": torch.randn(len(images), 16, 8, 8, generator=generator)}


def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """What differs in pixels (squared error) and in looks (to mini-clip), and a little pressure on the latents.

    Rombach et al. 2022 add an adversarial term, which needs a second network and more patience.
    """
    images = batch["images"]
    drawn, divergence = model(images, batch["noise"])
    pixels = (drawn.float() - images).square().mean()
    tower = _tower(images.device)
    looks = perceptual_distance(maps(tower, drawn), maps(tower, images)).mean()
    return pixels + LOOKS * looks + BOTTLENECK * divergence.float().mean() / images[0].numel()


@cache
def _tower(device: torch.device) -> CLIPModel:
    return zoo.load("mini-clip", device=device)


def maps(clip: CLIPModel, images: Float[Tensor, "b 3 64 64"]) -> list[Float[Tensor, "b d y x"]]:
    """What every layer of CLIP's image tower makes of the patches of a picture. images: in [-1, 1]."""
    layers = clip.vision_model(images, output_hidden_states=True).hidden_states[1:]
    side = clip.config.vision_config.image_size // clip.config.vision_config.patch_size
    return [
        layer[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for layer in layers
    ]  # without the class token


@torch.no_grad()
def scale(model: Autoencoding, settings: Settings) -> None:
    """Measure the latents' unit, on training pictures: what the U-Net sees should have variance 1."""
    count = 32 if settings.steps < 100 else 1024
    images = (
        World("train", size=SIZE, frames=1, anytime=True, seed=42)
        .batch(range(count))
        .video[:, :, 0]
    )
    latents = torch.cat(
        [
            model.vae.encode(some.to(model.vae.device)).latent_dist.mode()
            for some in images.split(64)
        ]
    )
    model.vae.register_to_config(scaling_factor=float(f"{1 / latents.std().item():.4g}"))


@torch.no_grad()
def evaluate(model: Autoencoding, settings: Settings) -> Mapping[str, Any]:
    """How much of unseen pictures survives, and whether what is lost can be seen by the course's feature net."""
    count = 80 if settings.steps < 100 else 1024
    found: dict[str, Any] = {}
    worlds = {
        "unseen pictures": World("test", size=SIZE, frames=1, anytime=True),
        "the 12 unseen emoji": World(
            "test", size=SIZE, frames=1, anytime=True, part="novel", subjects=NOVEL_EMOJI
        ),
    }
    for name, world in worlds.items():
        video = world.batch(range(count)).video
        again = reconstructed(model.vae, video)
        scores = {"PSNR": PSNR(), "SSIM": SSIM()}
        for score in scores.values():
            for some in torch.arange(count).split(64):
                score.update(again[some], video[some])
        found[f"PSNR of {name}, dB, mean of frames"] = scores["PSNR"].compute()["frame_mean"].value
        found[f"SSIM of {name}"] = scores["SSIM"].compute().value
        if name == "unseen pictures":
            other = (
                World("test", size=SIZE, frames=1, anytime=True, seed=1).batch(range(count)).video
            )
            found |= compared(again, video, other, name="reconstructed, to the very same pictures")
    return found | {"scaling factor": model.vae.config.scaling_factor}


def reconstructed(
    vae: AutoencoderKL, video: Float[Tensor, "b 3 f h w"]
) -> Float[Tensor, "b 3 f h w"]:
    """Every frame through the latents and back, by the posterior's mean; in [-1, 1], float32 on the CPU."""
    frames = video.transpose(1, 2).flatten(0, 1)
    again = [
        vae.decode(vae.encode(some.to(vae.device)).latent_dist.mode()).sample
        for some in frames.split(64)
    ]
    return (
        torch.cat(again).float().cpu().clamp(-1, 1).unflatten(0, (len(video), -1)).transpose(1, 2)
    )


RECIPE = Recipe(
    name="mini-vae",
    about="Makes pictures small and large again: 64 x 64 pixels to 8 x 8 latents of 16 channels.",
    build=Autoencoding,
    batches=batches,
    loss=loss,
    finish=scale,
    save=lambda model, folder: save_half(model.vae, folder),
    trained=Autoencoding,
    evaluate=evaluate,
    settings={
        "cpu": Settings(steps=14000, batch=8, lr=4e-4, warmup=200, weight_decay=1e-3, ema=0.999),
        "gpu": Settings(steps=14000, batch=32, lr=4e-4, warmup=200, weight_decay=1e-3, ema=0.999),
        "ci": Settings(steps=3, batch=4, lr=1e-3),
    },
    bars={
        "PSNR of unseen pictures, dB, mean of frames": (">=", 30.0),
        "PSNR of the 12 unseen emoji, dB, mean of frames": (">=", 27.0),
    },
    notes="""
A `diffusers.AutoencoderKL`: pixels in [-1, 1], factor 8, 16 channels, so a latent holds 1,024 numbers for 12,288. No
attention: any size that is a multiple of 8 will do. `scaling_factor` brings the latents to unit variance.
The weights lie in `mini-sd/vae`, of which they are a part; `zoo.load("mini-vae")` finds them there.
""",
)
