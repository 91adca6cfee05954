"""A short fine-tune of a denoiser on a handful of images or one video, given as latents and text.

The common part of LoRA, DreamBooth (with prior preservation) and Tune-A-Video; which parameters are
trained is the caller's choice.

Ruiz et al. 2023, "DreamBooth", arXiv 2208.12242, equation 2.
Wu et al. 2023, "Tune-A-Video", arXiv 2212.11565.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.diffusion import make_noisy_batch
from course_lib.papers import latent_diffusion
from course_lib.pipelines import unet_adapter
from course_lib.pipelines.frame_condition import FrameCondition
from course_lib.recipes.diffusion_recipe import batch_generator, batch_rows, noisy_batch_loss
from course_lib.training import TrainStep, train
from course_lib.validation import (
    check_count,
    check_float,
    check_generator,
    check_int,
    check_number,
    require,
)

Data = tuple[Float[Tensor, "m c *axes"], Float[Tensor, "k l d"]]  # latents and text embeddings


def finetune(
    model: nn.Module,
    scheduler: SchedulerMixin,
    latents: Float[Tensor, "n c *axes"],
    text: Float[Tensor, "rows l d"],
    *,
    trainable: Iterable[nn.Parameter],
    generator: torch.Generator,
    batch_size: int | None = None,
    prior: Data | None = None,
    prior_weight: float | int = 1.0,
    snr_gamma: float | None = None,
    **train_kwargs: Any,
) -> Iterator[TrainStep]:
    """An iterator over training steps of chosen parameters; nothing is trained before its loop.

        losses = [step.loss for step in finetune(unet, scheduler, latents, text, …)]

    The loss is L_instance + prior_weight · L_prior, each the denoising loss of a batch whose items
    are taken in turn. The instance batches are the same with and without a prior.

    Args:
        model: UNet2DConditionModel for images, or any video U-Net, which is given no frames; frozen
            but for `trainable`.
        scheduler: its noise levels and prediction type.
        latents: images (n, c, h, w) or videos (n, c, f, h, w).
        text: text embeddings, one row per item, or one row for all.
        trainable: parameters of `model`.
        generator: draws the seed of the run.
        batch_size: items per batch; None takes all of `latents`.
        prior: latents and text of other images of the same kind, for prior preservation.
        prior_weight: of its loss, 0 or more.
        snr_gamma: of min-SNR weighting; None for none.
        train_kwargs: of `training.train`: num_steps and lr, and others such as warmup.

    Raises:
        ValueError: on the first step, for `trainable`, `prior_weight`, `batch_size`, or latents and
            text that are integers or empty, and as `training.train`.
    """
    check_number("prior_weight", prior_weight, at_least=0.0)
    if batch_size is not None:
        check_int("batch_size", batch_size, 1)
    given = {"latents": latents, "text": text}
    if prior is not None:
        given |= {"prior[0]": prior[0], "prior[1]": prior[1]}
    for name, tensor in given.items():
        check_float(name, tensor)
        check_count(name, len(tensor), 1)
    require(len(text) in (1, len(latents)), "text", f"1 or {len(latents)} rows", len(text))
    check_generator(generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    data = [(latents, text)] if prior is None else [(latents, text), prior]
    if latents.ndim == 4:
        denoising_loss = noisy_batch_loss(latent_diffusion.unet_denoiser, "text")
    else:
        denoising_loss = noisy_batch_loss(unet_adapter.unet_denoiser)

    def make_batch(number: int) -> list[dict[str, Tensor]]:
        rows = torch.tensor(batch_rows(number, batch_size or len(latents)))
        return [
            _noisy_items(
                scheduler,
                *items,
                rows,
                batch_generator(seed + i, number),
                snr_gamma,
                "cond_channels" in unet_adapter.accepted_inputs(model),
            )
            for i, items in enumerate(data)
        ]

    def loss_fn(model: nn.Module, batches: Sequence[Any], generator: torch.Generator) -> Tensor:
        losses = [denoising_loss(model, batch, generator) for batch in batches]
        return losses[0] + prior_weight * sum(losses[1:])

    with _only_trainable(model, trainable):
        yield from train(model, make_batch, loss_fn, seed=seed, **train_kwargs)


def _noisy_items(
    scheduler: SchedulerMixin,
    latents: Tensor,
    text: Tensor,
    rows: Tensor,
    generator: torch.Generator,
    snr_gamma: float | None,
    takes_frames: bool,
) -> dict[str, Tensor]:
    x0 = latents[rows % len(latents)]
    noisy = make_noisy_batch(scheduler, x0, generator, snr_gamma=snr_gamma)
    items = {**noisy._asdict(), "text": text[rows % len(text)]}
    if takes_frames:
        items["cond_channels"] = FrameCondition.none(x0).channels()
    return items


@contextmanager
def _only_trainable(model: nn.Module, trainable: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it, only these parameters of a model require a gradient."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in trainable}
    num_foreign = len(chosen - {id(parameter) for parameter, _ in required})
    if num_foreign or not chosen:
        got = f"{num_foreign} that are not in it" if chosen else "none"
        raise ValueError(f"trainable: expected parameters of the model, got {got}")
    try:
        for parameter, _ in required:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, value in required:
            parameter.requires_grad_(value)
