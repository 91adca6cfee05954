"""mini-sd: a Stable Diffusion of the Emoji World, the image model that later lessons inflate.

The autoencoder is mini-vae's and the text encoder mini-clip's, both frozen; the U-Net is trained
here, on the base subset only: without the 12 novel emoji and the held-out shapes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from course_lib import files, zoo
from course_lib.diffusion import make_noisy_batch
from course_lib.evaluation import frechet_report, prompt_accuracy, rendering_report
from course_lib.papers.latent_diffusion import (
    LatentDiffusion,
    build_scheduler,
    build_unet,
    unet_denoiser,
)
from course_lib.recipes.diffusion_recipe import (
    batch_generator,
    batch_rows,
    encode_text,
    generate_in_chunks,
    noisy_batch_loss,
)
from course_lib.recipes.latent_cache import LatentCache
from course_lib.recipes.recipe import Recipe, TrainConfig
from course_lib.world import HELD_OUT_SHAPES, Clips, World

SEED = 51
COND_DROP_PROB = 0.1
SNR_GAMMA = 5.0  # measured: docs/decisions.md
GUIDANCE_SCALE = 4.0
NUM_INFERENCE_STEPS = 25

loss_fn = noisy_batch_loss(unet_denoiser, "text")


@cache
def scheduler() -> SchedulerMixin:
    """The noise schedule of training and sampling."""
    return build_scheduler()


@torch.no_grad()
def encode_chunk(indices: range) -> dict[str, Tensor]:
    """Images of the training split, encoded.

    Returns:
        "mean" and "std" of the posterior (n, 16, 8, 8), scaled to unit variance, and the "tokens"
        of a caption (n, 32), on the CPU.
    """
    clips = World("train", num_frames=1, random_time_offset=True, seed=SEED).batch(indices)
    vae = zoo.load_cached("mini-vae")
    batches = clips.video[:, :, 0].split(64)
    posteriors = [vae.encode(batch.to(vae.device)).latent_dist for batch in batches]
    items = {
        name: torch.cat([getattr(posterior, name).cpu() for posterior in posteriors])
        * vae.config.scaling_factor
        for name in ("mean", "std")
    }
    return items | {"tokens": zoo.load_text_encoder().tokenize(clips.image_paraphrases)}


CACHE = LatentCache(encode_chunk, chunk_size=1024, num_chunks=32)


def make_batch(number: int, config: TrainConfig) -> dict[str, Tensor]:
    """One global batch: the fields of `NoisyBatch`, latents, and "text" (b, 32, 128)."""
    items = CACHE[torch.tensor(batch_rows(number, config.batch_size))]
    generator = batch_generator(SEED, number)
    latents = items["mean"] + items["std"] * torch.randn(items["mean"].shape, generator=generator)
    noisy = make_noisy_batch(scheduler(), latents, generator, snr_gamma=SNR_GAMMA)
    return noisy._asdict() | {"text": encode_text(items["tokens"], COND_DROP_PROB, generator)}


def build_pipeline(model: UNet2DConditionModel) -> LatentDiffusion:
    """The U-Net with the frozen parts."""
    text = zoo.load_text_encoder()
    parts = zoo.load_cached("mini-vae"), text.text_encoder, text.tokenizer
    return LatentDiffusion(*parts, model, scheduler())


def save(model: UNet2DConditionModel, folder: Path) -> None:
    """Write an ordinary StableDiffusionPipeline in half precision."""
    parts = copy.deepcopy(build_pipeline(model))
    for part in (parts.vae, parts.text_encoder, parts.unet):
        part.half()
    parts.to_pipeline().save_pretrained(folder)
    # diffusers records the folder that a part was loaded from, which means nothing elsewhere
    _edit_json(folder / "vae" / "config.json", lambda config: config.pop("_name_or_path", None))
    # transformers loads a part in its config's dtype, diffusers in float32: make them agree
    _edit_json(
        folder / "text_encoder" / "config.json", lambda config: config.update(dtype="float32")
    )


def _edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = files.read_json(file)
    change(content)
    files.write_json(file, content, indent=2)


def generate(
    model: UNet2DConditionModel,
    prompts: Sequence[str],
    generator: torch.Generator,
    guidance_scale: float | int = GUIDANCE_SCALE,
) -> Tensor:
    """An image (b, 3, 1, 64, 64) in [-1, 1] for each prompt, on the CPU."""
    images = generate_in_chunks(
        build_pipeline(model).generate,
        prompts,
        chunk_size=64,
        device=model.device,
        generator=generator,
        guidance_scale=guidance_scale,
        num_inference_steps=NUM_INFERENCE_STEPS,
    )
    return images[:, :, None]


def evaluate(model: UNet2DConditionModel, config: TrainConfig) -> Mapping[str, Any]:
    """Prompt accuracy, also on held-out shapes, and distance from real images."""
    num_samples = config.eval_samples

    def real_images(**kwargs: Any) -> Clips:
        world = World("test", num_frames=1, random_time_offset=True, **kwargs)
        return world.batch(range(num_samples))

    reference, real = (real_images(seed=seed) for seed in (1, 2))
    held_out = real_images(subset="composed", subjects=HELD_OUT_SHAPES)
    generator = torch.Generator()
    images = generate(model, reference.image_captions, generator.manual_seed(0))
    metrics = prompt_accuracy(images, reference.image_captions)
    metrics |= rendering_report(images, reference.image_captions)
    held_out_images = generate(model, held_out.image_captions, generator.manual_seed(1))
    held_out_metrics = prompt_accuracy(held_out_images, held_out.image_captions)
    metrics |= {f"held_out_shapes/{name}": value for name, value in held_out_metrics.items()}
    metrics |= frechet_report(images, real.video, reference.video, "guided")
    images = generate(model, [""] * num_samples, generator.manual_seed(2), guidance_scale=1)
    return metrics | frechet_report(images, real.video, reference.video, "unconditional")


RECIPE = Recipe(
    name="mini-sd",
    summary="Text to images of 64 x 64 pixels: a StableDiffusionPipeline of the Emoji World.",
    build_model=build_unet,
    make_batch=make_batch,
    loss_fn=loss_fn,
    save=save,
    unwrap_checkpoint=lambda pipeline: pipeline.unet,
    evaluate=evaluate,
    configs={
        "cpu": TrainConfig(12000, batch_size=64, lr=1e-3, warmup=300, ema_decay=0.999),
        "gpu": TrainConfig(12000, batch_size=256, lr=1e-3, warmup=300, ema_decay=0.999),
        "ci": TrainConfig(3, batch_size=4, lr=1e-3, eval_samples=80),
    },
    targets={
        "all_attributes_accuracy": (">=", 0.95),
        "held_out_shapes/all_attributes_accuracy": (">=", 0.8),
        "fid_over_real_floor/guided": ("<=", 3.0),
    },
    hub_metadata={"library_name": "diffusers", "pipeline_tag": "text-to-image"},
    notes="""
An ordinary pipeline: `StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)("a
poodle on a sea background")`. Images have 64 x 64 pixels, latents 8 x 8 with 16 channels; the U-Net
predicts v, trained with min-SNR weighting on Stable Diffusion's schedule. Captions are those of
`world.image_captions`.

Small details are soft because of the autoencoder: a giraffe loses its spots in the latents. The
empty prompt gives an arbitrary scene; these samples are farther from real images than prompted ones
(backgrounds are right, subjects often blobs). The model does not know the 12 novel emoji, and its
text embeddings carry no motion.
""",
)
