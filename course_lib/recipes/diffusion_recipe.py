"""What the recipes of diffusion models share: seeds, loss, the saved folder, generation."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib import runtime, zoo
from course_lib.diffusion import Model, NoisyBatch, denoising_loss, drop_conditioning
from course_lib.recipes.recipe import save_fp16
from course_lib.validation import check_count, check_int, require
from course_lib.world.hashing import hash_u64


def batch_generator(seed: int, number: int) -> torch.Generator:
    """The generator of one batch, so that a batch depends on its number only.

    Args:
        seed: of the recipe.
        number: of the batch.
    """
    return torch.Generator().manual_seed(int(hash_u64(seed, number)[0] >> np.uint64(1)))


def batch_rows(number: int, batch_size: int) -> range:
    """The rows of a batch, if batches take a data set's rows in turn."""
    return range(number * batch_size, (number + 1) * batch_size)


@torch.no_grad()
def encode_text(
    tokens: Int[Tensor, "b l"],
    cond_drop_prob: float,
    generator: torch.Generator,
    token_embeddings: bool = False,
) -> Float[Tensor, "b l d"]:
    """Text embeddings of a training batch by mini-clip, on the CPU.

    Args:
        tokens: of the captions.
        cond_drop_prob: probability of replacing a caption by the null text.
        generator: draws which captions are replaced.
        token_embeddings: see `TextEncoder`.
    """
    encoder = zoo.load_text_encoder(token_embeddings)
    null_tokens = encoder.tokenize([""])
    return encoder.encode(drop_conditioning(tokens, null_tokens, cond_drop_prob, generator)).cpu()


def noisy_batch_loss(
    build_denoiser: Callable[[nn.Module], Model], cond_key: str | None = None
) -> Callable[[nn.Module, Mapping[str, Tensor], torch.Generator], Tensor]:
    """The `loss_fn` of a recipe whose batches are a NoisyBatch and conditioning, all in one dict.

    Args:
        build_denoiser: from the network to a model (x, t, cond) → prediction.
        cond_key: the entry that is the whole conditioning; None passes a dict of all entries that
            are not fields of NoisyBatch.
    """

    def loss_fn(
        model: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        noisy = NoisyBatch(*(batch[name] for name in NoisyBatch._fields))
        cond = {name: part for name, part in batch.items() if name not in NoisyBatch._fields}
        pred = build_denoiser(model)(noisy.x_t, noisy.t, cond[cond_key] if cond_key else cond)
        return denoising_loss(pred, noisy)

    return loss_fn


def save_unet(model: nn.Module, scheduler: SchedulerMixin, folder: Path) -> None:
    """Write a U-Net in half precision and its noise schedule, as subfolder `scheduler`."""
    save_fp16(model, folder)
    scheduler.save_pretrained(folder / "scheduler")


def generate_in_chunks(
    generate: Callable[..., Tensor],
    prompts: Sequence[str] | Tensor,
    *,
    chunk_size: int,
    device: torch.device,
    **kwargs: Any,
) -> Tensor:
    """Samples for any number of prompts, a few at a time, float32 on the CPU, under autocast.

    Args:
        generate: (prompts, **kwargs) → one sample per prompt.
        prompts: texts or classes.
        chunk_size: prompts per call.
        device: of the model.
        kwargs: for `generate`; tensors have one row per prompt and are cut like the prompts.

    Raises:
        ValueError: no prompts, one string in place of a list, or chunks of no prompts.
    """
    require(not isinstance(prompts, str), "prompts", "a list", f"one string, {prompts!r}")
    check_count("prompts", len(prompts), 1)
    check_int("chunk_size", chunk_size, 1)
    chunks = []
    with runtime.autocast(device):
        for start in range(0, len(prompts), chunk_size):
            rows = slice(start, start + chunk_size)
            chunk_kwargs = {
                name: value[rows] if isinstance(value, Tensor) else value
                for name, value in kwargs.items()
            }
            chunks.append(generate(prompts[rows], **chunk_kwargs).float().cpu())
    return torch.cat(chunks)
