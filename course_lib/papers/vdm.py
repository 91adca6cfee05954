"""VDM: a U-Net for video denoises whole clips; pictures help it learn, and a gradient lets it go on where a clip ends.

Reads top to bottom: the network, its text, the noise, joint training, guidance away from frames alone, and what is
known of a clip beforehand: the replacement method, reconstruction guidance, longer videos, more frames, more pixels.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458.
Guidance away from frames alone, `coherent`, is not in the paper. Hyung et al. 2024, "Spatiotemporal Skip Guidance for
Enhanced Video Diffusion Sampling", arXiv 2411.18664.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from course_lib.diffusion import (
    Model,
    estimate,
    guided,
    initial_noise,
    level_at,
    prediction_type,
    sample,
)
from course_lib.nn.unet import VideoUNet

Measure = Callable[[Tensor], Tensor]  # from a clip to what is known of it; differentiable

# The network and its noise


def build_unet(
    text_width: int | None = 256, widths: Sequence[int] = (128, 128), patch: int = 4
) -> VideoUNet:
    """An untrained U-Net for RGB clips, with attention over space, text and time on every level.

    text_width: of the text's vectors, see `read`; None for none. widths: channels per level, multiples of 32. patch:
    pixels of a side that are taken together, with a last look at single ones; clips of 32x32 pixels then cost it little
    more than latents of 8x8 would.
    """
    told = {"frame_index": True, "places": True, "frame_rate": True}
    how = {"attention": (True,) * len(widths), "text_width": text_width, "patch": patch}
    how |= {"detail": 32 if patch > 1 else None}
    return VideoUNet(widths=tuple(widths), **how, **told)


def read(text_encoder: PreTrainedModel, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
    """What the U-Net reads: the text tower's last layer, and beside it the words as they went in, token
    and position together, normalised.

    A tower that has learnt from pictures says nothing of motion: no picture ever asked it to. The paper's own, BERT,
    has learnt from text alone (section 4.3). text_encoder: any of transformers'; d is twice its width.
    """
    said = text_encoder(tokens.to(text_encoder.device), output_hidden_states=True)
    words = F.layer_norm(said.hidden_states[0], said.hidden_states[0].shape[-1:])
    return torch.cat([said.last_hidden_state, words], dim=-1)


def build_schedule(
    prediction_type: str = "v_prediction", shift: float | int = 4.0, steps: int = 1000
) -> SchedulerMixin:
    """A thousand noise levels on the cosine schedule, shifted; estimates of x0 are clipped to [-1, 1] while sampling.

    prediction_type: what the U-Net answers, see `diffusion.prediction_type`. shift: signal / noise is divided by it at
    every timestep. 1 is the paper's schedule; but sixteen frames show the same things, and their mean a quarter of the
    noise: what moves where is decided before a picture's schedule has begun to speak of it. Hoogeboom et al. 2023,
    "simple diffusion", section 2.2, shift by the number of pixels for the same reason. steps: of training.
    Raises ValueError for a shift that is not positive.
    """
    if shift <= 0:
        raise ValueError(f"shift: expected a positive number, got {shift}")
    time = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
    ratio = 1 / (time.tan() * shift)  # signal / noise
    squared = ratio**2 / (1 + ratio**2)  # alphas_cumprod
    betas = (1 - squared[1:] / squared[:-1]).clamp(max=0.999)
    return DDIMScheduler(
        trained_betas=betas.tolist(),
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def as_model(unet: VideoUNet) -> Model:
    """The U-Net as diffusion/ knows a model: (x, t, {"text", "frame_rate" and whatever else it takes}) to a prediction.

    Without text it is called with no "text", or None for all of the conditioning.
    """

    def model(x: Tensor, t: Tensor, conditioning: Mapping[str, Tensor] | None) -> Tensor:
        told = dict(conditioning or {})
        return unet(x, t, told.pop("text", None), **told).sample

    return model


# Joint training on clips and pictures: section 3.3


def with_pictures(
    video: Float[Tensor, "b c f h w"],
    text: Float[Tensor, "b l d"],
    pictures: Float[Tensor, "b n c h w"],
    captions: Float[Tensor, "b n l d"],
) -> tuple[Float[Tensor, "b c frames h w"], dict[str, Tensor]]:
    """Clips with n pictures of their own appended to each, and what the network has to be told of them.

    pictures: of anything, best of other clips. captions: their texts, beside that of the clip. Returns f + n frames,
    and conditioning: "text", a text for each frame, and "alone", which frames are pictures.
    """
    frames, count = video.shape[2], pictures.shape[1]
    together = torch.cat([video, pictures.transpose(1, 2)], dim=2)  # b c (f + n) h w
    texts = torch.cat([text[:, None].expand(-1, frames, -1, -1), captions], dim=1)  # b (f + n) l d
    alone = torch.arange(frames + count, device=video.device) >= frames
    return together, {"text": texts, "alone": alone.expand(len(video), -1)}


def coherent(model: Model, scale: float | int) -> Model:
    """The model under guidance away from what it says of each frame alone: towards what only a clip can know.

    Joint training has taught one network both: alone + scale · (together - alone), see `diffusion.guide`. Hyung et al.
    2024 make their worse network by leaving out layers. model: as `as_model` gives it, of clips (b, c, f, h, w).
    scale: 0 or more; 1 is the model itself, at its own cost. Raises ValueError for a negative scale and, when called,
    if the conditioning says itself which frames are alone.
    """
    if scale < 0:
        raise ValueError(f"scale: expected 0 or more, got {scale}")
    if scale == 1:
        return model

    def wrapped(x: Tensor, t: Tensor, conditioning: Mapping[str, Tensor] | None) -> Tensor:
        told = dict(conditioning or {})
        if "alone" in told:
            raise ValueError(
                "conditioning: expected none of 'alone', which guidance decides itself; got it"
            )
        alone = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        return guided(model, told | {"alone": alone}, scale)(x, t, told | {"alone": ~alone})

    return wrapped


# What is known of a clip beforehand: section 3.1


def replacement(
    model: Model,
    scheduler: SchedulerMixin,
    known: Float[Tensor, "b c f h w"],
    mask: Bool[Tensor, "*b f"],
) -> Model:
    """The model, but what it says of known frames is what is known: the replacement method. Song et al. 2021.

    The sampler then leads those frames along q(x_s | x_t, x0), from which the paper draws them (section 3.1), and the
    others see them at their own noise level; but nobody asks what the model itself would have made of the known ones.
    known: clean; what stands in other frames does not matter. mask: which frames are known, of all clips or of each.
    """
    kind = prediction_type(scheduler)

    def wrapped(x: Tensor, t: Tensor, conditioning: object) -> Tensor:
        level = level_at(scheduler, t)
        said = estimate(kind, model(x, t, conditioning).to(x.dtype), x, level)
        x0 = torch.where(mask[..., None, :, None, None].to(x.device), known.to(x), said.x0)
        return estimate("sample", x0, x, level).of(kind)

    return wrapped


def reconstruction(
    model: Model,
    scheduler: SchedulerMixin,
    known: Float[Tensor, "b *axes"],
    measure: Measure,
    weight: float | int = 2.0,
) -> Model:
    """The model, led to where its own estimate agrees with what is known: reconstruction guidance. Equations 7 and 8.

    x0 - weight · signal / 2 · ∇ ‖known - measure(x0)‖², with the gradient by x_t, through the network.
    known: what is known of the clean clip. measure: from a clip to that of it, such as `lambda clip: clip[:, :, :8]`.
    weight: w_r of the paper; 0 is the model itself, at the cost of two.
    """
    kind = prediction_type(scheduler)

    def wrapped(x: Tensor, t: Tensor, conditioning: object) -> Tensor:
        level = level_at(scheduler, t)
        with torch.enable_grad():  # samplers record none
            x = x.detach().requires_grad_()
            x0 = estimate(kind, model(x, t, conditioning).to(x.dtype), x, level).x0
            error = (known.to(x) - measure(x0)).square().sum()
            (gradient,) = torch.autograd.grad(error, x)
        signal, _ = level.beside(x)
        x0 = (x0 - weight * signal / 2 * gradient).detach()
        return estimate("sample", x0, x.detach(), level).of(kind)

    return wrapped


def first(frames: int, shown: int) -> Bool[Tensor, "f"]:
    """A mask of known frames: the first `shown` of so many."""
    return torch.arange(frames) < shown


def every(frames: int, step: int) -> Bool[Tensor, "f"]:
    """A mask of known frames: each `step`-th, from the first."""
    return torch.arange(frames) % step == 0


def with_frames(
    model: Model,
    scheduler: SchedulerMixin,
    known: Float[Tensor, "b c f h w"],
    mask: Bool[Tensor, "f"],
    weight: float | int | None = 2.0,
) -> Model:
    """The model for clips of which some frames are known. Section 3.1.

    known, mask: see `replacement`, which is always done. weight: of `reconstruction`, done before it; None for none.
    """
    if weight is not None:
        model = reconstruction(
            model,
            scheduler,
            known[:, :, mask],
            lambda clip: clip[:, :, mask.to(clip.device)],
            weight,
        )
    return replacement(model, scheduler, known, mask)


def shrunk(factor: int) -> Measure:
    """From a clip to one of lower resolution: the mean of factor x factor pixels."""
    return lambda clip: F.avg_pool3d(clip, (1, factor, factor))


def extend(
    model: Model,
    scheduler: SchedulerMixin,
    clip: Float[Tensor, "b c f h w"],
    conditioning: object,
    *,
    frames: int,
    past: int = 8,
    weight: float | int | None = 2.0,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "b c frames h w"]:
    """A longer clip, block by block: each begins with the last `past` frames that there are. Section 3.1.

    clip: its beginning, as many frames as the network makes at once. conditioning: of every block. frames: how many in
    the end. past: frames of the clip's end that a block is shown, fewer than it has. weight: see `with_frames`.
    steps: of each block. Raises ValueError for no longer clip, or for `past` out of range.
    """
    block = clip.shape[2]
    if not 1 <= past < block:
        raise ValueError(f"past: expected 1 to {block - 1} of {block} frames, got {past}")
    if frames <= block:
        raise ValueError(f"frames: expected more than the {block} that there are, got {frames}")
    mask = first(block, past)
    while clip.shape[2] < frames:
        known = F.pad(clip[:, :, -past:], (0, 0, 0, 0, 0, block - past))
        aware = with_frames(model, scheduler, known, mask, weight)
        x = initial_noise(clip.shape[:2] + (block,) + clip.shape[3:], generator).to(clip)
        *_, last = sample(aware, scheduler, x, conditioning, steps=steps, generator=generator)
        clip = torch.cat([clip, last.x[:, :, past:]], dim=2)
    return clip[:, :, :frames]
