"""mini-vae: images of 64 x 64 x 3 numbers to latents of 8 x 8 x 16, a twelfth, and back.

It is never trained on the 12 novel emoji: reconstructions of those show whether it has learned
images or emoji.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.evaluation import frechet_report, rendering_report
from course_lib.metrics import PSNR, SSIM
from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, build_autoencoder
from course_lib.recipes.diffusion_recipe import batch_generator, batch_rows
from course_lib.recipes.perceptual import PERCEPTUAL_WEIGHT, perceptual_loss
from course_lib.recipes.recipe import Recipe, TrainConfig, save_fp16
from course_lib.world import NOVEL_EMOJI, Clips, Sampler, World, render

SEED = 41
SIZE = 64
KL_WEIGHT = 1e-4  # per number of the image; the squared error of pixels has weight 1


class VAETrainer(nn.Module):
    """An autoencoder with one forward pass from images to reconstructions, for training.

    Args:
        vae: None builds an untrained one.
    """

    def __init__(self, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        self.vae = build_autoencoder(sample_size=SIZE) if vae is None else vae

    def forward(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c y x"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """Reconstructions from sampled latents, and the KL divergence of each posterior to N(0, 1).

        Args:
            images: in [-1, 1].
            noise: of unit variance, samples the posterior.
        """
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.kl()


def make_batch(number: int, config: TrainConfig) -> dict[str, Tensor]:
    """One global batch: "images" (b, 3, 64, 64) in [-1, 1], and the "noise" of their latents."""
    sampler = Sampler("train", seed=SEED)
    scenes = [sampler(row) for row in batch_rows(number, config.batch_size)]
    images = render(scenes, size=SIZE, num_frames=1, random_time_offset=True).video[:, :, 0]
    noise = torch.randn(len(images), LATENT_CHANNELS, 8, 8, generator=batch_generator(SEED, number))
    return {"images": images, "noise": noise}


def loss_fn(model: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Squared error of pixels, perceptual distance and KL divergence. Rombach et al. 2022, eq. 25.

    Their adversarial term is left out: it needs a second network and a longer training.
    """
    images = batch["images"]
    recon, kl = model(images, batch["noise"])
    mse = (recon.float() - images).square().mean()
    perceptual = perceptual_loss(recon, images)
    return mse + PERCEPTUAL_WEIGHT * perceptual + KL_WEIGHT * kl.float().mean() / images[0].numel()


@torch.no_grad()
def fit_scaling_factor(model: VAETrainer, config: TrainConfig) -> None:
    """Set `scaling_factor` such that latents of training images have unit variance."""
    world = World("train", size=SIZE, num_frames=1, random_time_offset=True, seed=42)
    images = world.batch(range(config.eval_samples)).video[:, :, 0]
    vae = model.vae
    latents = [vae.encode(batch.to(vae.device)).latent_dist.mode() for batch in images.split(64)]
    vae.register_to_config(scaling_factor=float(f"{1 / torch.cat(latents).std().item():.4g}"))


@torch.no_grad()
def evaluate(model: VAETrainer, config: TrainConfig) -> Mapping[str, Any]:
    """PSNR and SSIM on test images and on novel emoji, and FID from the very same images."""
    indices = range(config.eval_samples)

    def test_images(**kwargs: Any) -> Clips:
        world = World("test", size=SIZE, num_frames=1, random_time_offset=True, **kwargs)
        return world.batch(indices)

    metrics: dict[str, Any] = {}
    novel = test_images(subset="novel", subjects=NOVEL_EMOJI)
    for name, clips in {"test": test_images(), "novel_emoji": novel}.items():
        images = clips.video
        recon = reconstruct(model.vae, images)
        psnr, ssim = PSNR(), SSIM()
        for rows in torch.arange(len(images)).split(64):
            psnr.update(recon[rows], images[rows])
            ssim.update(recon[rows], images[rows])
        metrics[f"psnr_db/{name}"] = psnr.compute()["frame_mean"].value
        metrics[f"ssim/{name}"] = ssim.compute().value
        if name == "test":
            metrics |= rendering_report(recon, clips.image_captions)
            metrics |= frechet_report(recon, images, test_images(seed=1).video, "reconstruction")
    return metrics | {"scaling_factor": model.vae.config.scaling_factor}


def reconstruct(
    vae: AutoencoderKL, video: Float[Tensor, "b 3 f h w"]
) -> Float[Tensor, "b 3 f h w"]:
    """Every frame encoded to its posterior mean and decoded; in [-1, 1], float32 on the CPU."""
    recon = [
        vae.decode(vae.encode(batch.to(vae.device)).latent_dist.mode()).sample.float().cpu()
        for batch in fold_frames(video).split(64)
    ]
    return unfold_frames(torch.cat(recon).clamp(-1, 1), video.shape[2])


RECIPE = Recipe(
    name="mini-vae",
    summary="Compresses images of 64 x 64 pixels to latents of 8 x 8 with 16 channels.",
    build_model=VAETrainer,
    make_batch=make_batch,
    loss_fn=loss_fn,
    post_train=fit_scaling_factor,
    save=lambda model, folder: save_fp16(model.vae, folder),
    unwrap_checkpoint=VAETrainer,
    evaluate=evaluate,
    configs={
        "cpu": TrainConfig(
            14000, batch_size=8, lr=4e-4, warmup=200, weight_decay=1e-3, ema_decay=0.999
        ),
        "gpu": TrainConfig(
            14000, batch_size=32, lr=4e-4, warmup=200, weight_decay=1e-3, ema_decay=0.999
        ),
        "ci": TrainConfig(3, batch_size=4, lr=1e-3, eval_samples=80),
    },
    targets={"psnr_db/test": (">=", 30.0), "psnr_db/novel_emoji": (">=", 27.0)},
    notes="""
A `diffusers.AutoencoderKL`: pixels in [-1, 1], factor 8, 16 channels, so an image of 12,288 numbers
becomes a latent of 1,024. There is no attention, so any size that is a multiple of 8 works.
`scaling_factor` brings latents to unit variance. PSNR is the mean over images;
`fid/reconstruction` is the distance between images and their own reconstructions. The weights are
stored once, as `mini-sd/vae`; `zoo.load("mini-vae")` finds them there.
""",
)
