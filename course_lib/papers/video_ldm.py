"""Align your Latents: layers over time set an image model's pictures in motion, and are all that is trained.

Reads top to bottom: the network, its noise, what is known of a clip beforehand, the pipeline, how it is kept; key
frames and what lies between them, and clips that go on.

Blattmann et al. 2023, "Align your Latents: High-Resolution Video Synthesis with Latent Diffusion Models",
arXiv 2304.08818.
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.pipelines.animatediff import AnimateDiffPipelineOutput
from diffusers.video_processor import VideoProcessor
from jaxtyping import Bool, Float, Real
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from course_lib.diffusion import (
    Model,
    Step,
    guide,
    guided,
    in_turn,
    initial_noise,
    sample,
    zero_terminal_snr,
)
from course_lib.nn.inflate import InflatedUNet, inflate, placed_as
from course_lib.nn.temporal_decoder import TemporalAutoencoder
from course_lib.papers.latent_diffusion import decode as decode_frames
from course_lib.papers.latent_diffusion import embed, tokenize
from course_lib.papers.vdm import every, first, read, replacement

# Timestep below which guidance may leave the text: of 6 clips told to spin, 5 did so then, 4 with 500, 2 without
LATE = 700
# Guidance where frames are known; at 4, the changes at real key frames are 1.6, at 2 1.4 times those of the real clip
FITTING = 2.0

# The network


def build_unet(
    image: UNet2DConditionModel, *, hears: bool = True, completes: bool = True
) -> InflatedUNet:
    """An image U-Net with layers over time, which alone are to be trained; at first it is the image U-Net.

    image: mini-sd's, or any that `inflate` takes; it is copied. hears: whether layers over time read the text
    themselves, as those of the paper's text-to-video model do; here words and all, see `papers.vdm.read`. Without, they
    see of the text what the image model makes of it, and one that has learnt from captions without motions makes
    nothing of those. completes: whether it can be shown frames that are known, see `beside`.
    """
    options: dict[str, Any] = {"text_width": 2 * image.config.cross_attention_dim} if hears else {}
    options |= {"extra_channels": image.config.in_channels + 1} if completes else {}
    unet = inflate(image, "video-ldm", **options)
    unet.spatial.requires_grad_(False)
    return unet


def build_schedule(image: SchedulerMixin) -> SchedulerMixin:
    """The image model's noise levels, moved so that the last one leaves nothing of the data. Lin et al. 2024.

    The paper keeps the image model's own. But what that leaves of a picture at its last timestep, it leaves of all
    frames alike, and of sixteen frames it can be read: a network that has learnt to go by it is lost where sampling
    begins, with nothing but noise. image: its scheduler; it must predict v or x0, see `zero_terminal_snr`.
    """
    return zero_terminal_snr(image)


def as_model(unet: nn.Module, **always: Any) -> Model:
    """A video U-Net as diffusion/ knows a model: (x, t, {"text" and whatever else it takes}) to a prediction.

    unet: an `InflatedUNet`, or diffusers' UNet3DConditionModel or UNetMotionModel, which take "text" only. Weights and
    text may be in half precision and x in float32. always: what it is told in every call, such as temporal_scale.
    """
    repeats = isinstance(unet, UNetMotionModel)  # the only one that wants the text of every frame

    def model(x: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        told = dict(conditioning)
        text = told.pop("text")
        if "extra" in told:
            told["extra"] = told["extra"].to(text.dtype)
        each = text.repeat_interleave(x.shape[2], dim=0) if repeats else text
        return unet(x.to(text.dtype), t, each, **told, **always).sample

    return model


def coherent(unet: InflatedUNet, scale: float | int, **always: Any) -> Model:
    """A video U-Net under guidance away from the image model inside: towards what only a clip can know.

    alone + scale · (together - alone), see `diffusion.guide`; alone is what it says without its layers over time, and
    costs less than it. `papers.vdm.coherent` is the like for a network that joint training taught both. scale: 0 or
    more; 1 is the network itself, at its own cost. always: see `as_model`. Raises ValueError for a negative scale.
    """
    if scale < 0:
        raise ValueError(f"scale: expected 0 or more, got {scale}")
    together, alone = as_model(unet, **always), as_model(unet, **always | {"temporal_scale": 0})
    if scale == 1:
        return together
    return lambda x, t, told: guide(together(x, t, told), alone(x, t, told), scale)


# What is known of a clip beforehand


def beside(
    latents: Float[Tensor, "b c f y x"], mask: Bool[Tensor, "b f"]
) -> Float[Tensor, "b channels f y x"]:
    """Known frames beside the noise, nothing elsewhere, and a last channel that says which are known.

    latents: clean; what stands in other frames does not matter. mask: which frames are known; none, for a clip of
    which nothing is.
    """
    shown = (
        mask[:, None, :, None, None].to(latents).expand(-1, 1, -1, *latents.shape[3:])
    )  # b 1 f y x
    return torch.cat([torch.where(shown > 0, latents, 0), shown], dim=1)


# The pipeline


class TextToVideoPipeline(DiffusionPipeline):
    """A sentence to a clip, with the habits of diffusers' pipelines: `pipe("a tiger spinning on grass").frames[0]`.

    vae: an AutoencoderKL, which decodes frames one by one, or a `TemporalAutoencoder`. text_encoder, tokenizer: as in
    a StableDiffusionPipeline. unet: an `InflatedUNet`, or diffusers' UNet3DConditionModel or UNetMotionModel.
    scheduler: any that `diffusion.sample` takes.
    """

    def __init__(
        self,
        vae: AutoencoderKL | TemporalAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: nn.Module,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        image_vae = vae.spatial if isinstance(vae, TemporalAutoencoder) else vae
        self.vae_scale_factor = 2 ** (len(image_vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        num_inference_steps: int = 25,
        guidance_scale: float | int = 4.0,
        negative_prompt: str | Sequence[str] = "",
        generator: torch.Generator | None = None,
        latents: Float[Tensor, "b c f y x"] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor] | None]
        | None = None,
        coherence: float | int | None = None,
    ) -> AnimateDiffPipelineOutput | tuple[Any]:
        """Clips, one for each prompt, as `frames`.

        height, width: in pixels; None: what the U-Net was made for. latents: noise to begin with; if it is given, sizes
        and num_frames are its own. guidance_scale: 1 is none. negative_prompt: what to be led away from, one for all or
        for each. generator: None is torch's own. output_type: "pil", a list of pictures for each clip; "np" (b, f, h,
        w, 3) and "pt" (b, f, 3, h, w) in [0, 1]; "latent" (b, c, f, y, x). callback_on_step_end: (pipeline, step from
        0, timestep, {"latents"}); if it returns "latents", sampling goes on with those. coherence: see `steps`.
        Raises ValueError for sizes that latents do not divide or an unknown output_type, and as `steps`.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type: expected pil, np, pt or latent; got {output_type!r}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if latents is None:
            shape = (
                len(prompts),
                self._image_config().in_channels,
                num_frames,
                *self._size(height, width),
            )
            latents = initial_noise(shape, generator or torch.default_generator)
        steps = self.steps(
            prompts,
            latents,
            steps=num_inference_steps,
            scale=guidance_scale,
            negative=negative_prompt,
            generator=generator or torch.default_generator,
            coherence=coherence,
        )
        with self.progress_bar(total=num_inference_steps) as bar:
            for step in steps:
                if callback_on_step_end is not None:
                    changed = (
                        callback_on_step_end(self, step.step - 1, step.t, {"latents": step.x}) or {}
                    )
                    step.x.copy_(changed.get("latents", step.x))  # where sampling goes on from
                bar.update()
        frames = step.x
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(
                self.decode(frames), output_type=output_type
            )
        return AnimateDiffPipelineOutput(frames=frames) if return_dict else (frames,)

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Prompts to what the U-Net reads: what the text tower says and, if there is room for them, the words."""
        tokens, tower, unet = tokenize(self.tokenizer, prompts), self.text_encoder, self.unet
        wider = isinstance(unet, InflatedUNet) and unet.text_width == 2 * tower.config.hidden_size
        with torch.no_grad():
            return (read if wider else embed)(tower, tokens).to(unet.device, unet.dtype)

    def steps(
        self,
        prompts: Sequence[str],
        latents: Float[Tensor, "b c f y x"],
        *,
        generator: torch.Generator,
        steps: int = 25,
        scale: float | int = 4.0,
        rescale: float | int = 0.0,
        negative: str | Sequence[str] = "",
        known: Float[Tensor, "b c f y x"] | None = None,
        mask: Bool[Tensor, "b f"] | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
        temporal_scale: float | int = 1.0,
        coherence: float | int | None = None,
        late: float | int = LATE,
    ) -> Iterator[Step]:
        """Sample latents, one `diffusion.Step` at a time; `decode(step.x)` shows where it stands.

        latents: noise. scale, rescale: of guidance by text, see `diffusion.guide`. negative: prompt to be led away
        from, one for all or for each. known, mask: see `beside`; then guidance leads away from knowing nothing, too
        (the paper's context guidance), and `replacement` keeps them; None: nothing is known. frame_index: where frames
        are in time, in units of 1/8 s for mini-video; None: 0, 1, 2 …. temporal_scale: of what an `InflatedUNet`'s
        layers over time add; 0 draws pictures. coherence: below timestep `late`, guidance is not by text but away from
        what an `InflatedUNet` says of frames alone, by this scale, see `coherent`; None: by text throughout. Raises
        ValueError as `diffusion.sample` and the U-Net do, and for known frames or scales that it cannot be told.
        """
        ours = isinstance(self.unet, InflatedUNet)
        if temporal_scale != 1 and not ours:
            raise ValueError(
                f"temporal_scale: expected 1, only an InflatedUNet has a dial; got {temporal_scale}"
            )
        if coherence is not None and not ours:
            raise ValueError(
                f"coherence: expected None, only an InflatedUNet has layers to leave out; got {coherence}"
            )
        if (known is None) != (mask is None):
            raise ValueError(
                f"known, mask: expected both or neither, got {'no known' if known is None else 'no mask'}"
            )
        negative = [negative] if isinstance(negative, str) else negative
        if len(negative) not in (1, len(prompts)):
            raise ValueError(
                f"negative: expected one prompt, or one for each of {len(prompts)}; got {len(negative)}"
            )
        told, negatives = {"text": self.text(prompts)}, {"text": self.text(negative)}
        negatives["text"] = negatives["text"].expand_as(told["text"])
        if frame_index is not None:
            told["frame_index"] = negatives["frame_index"] = frame_index.to(self.unet.device)
        latents = latents.to(self.unet.device)
        if ours and (self.unet.config.options or {}).get("extra_channels"):
            nothing = torch.zeros(
                len(latents), latents.shape[2], dtype=torch.bool, device=latents.device
            )
            told["extra"] = negatives["extra"] = beside(latents, nothing)
            if known is not None and mask is not None:
                told["extra"] = beside(known.to(latents), mask.to(latents.device))
        elif known is not None:
            raise ValueError(
                "known: expected none, since this U-Net cannot be shown frames; got some"
            )
        always = {"temporal_scale": temporal_scale} if ours else {}
        model = guided(as_model(self.unet, **always), negatives, scale, rescale)
        if coherence is not None:
            model = in_turn(model, coherent(self.unet, coherence, **always), late)
        if known is not None and mask is not None:
            model = replacement(model, self.scheduler, known, mask)
        return sample(model, self.scheduler, latents, told, steps=steps, generator=generator)

    def decode(self, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 f h w"]:
        """Latents of about unit variance to clips, clamped to [-1, 1]."""
        latents = latents.to(self.vae.device)
        with torch.no_grad():
            if isinstance(self.vae, TemporalAutoencoder):
                return self.vae.decode(latents).clamp(-1, 1)
            frames = decode_frames(self.vae, latents.transpose(1, 2).flatten(0, 1))  # (b f) 3 h w
            return frames.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def draw(
        self, prompts: Sequence[str], *, frames: int = 16, **options: Any
    ) -> Float[Tensor, "b 3 f h w"]:
        """Clips in [-1, 1], float32 on the CPU. Arguments, raises: as `steps`, which gets all but `frames`."""
        return self.decode(self.latents(prompts, frames=frames, **options)).float().cpu()

    def latents(
        self,
        prompts: Sequence[str],
        *,
        generator: torch.Generator,
        frames: int = 16,
        **options: Any,
    ) -> Float[Tensor, "b c f y x"]:
        """As `draw`, but not decoded; frames that were known are what they were, and decide the size."""
        known = options.get("known")
        size = self._size(None, None) if known is None else known.shape[3:]
        noise = initial_noise(
            (len(prompts), self._image_config().in_channels, frames, *size), generator
        )
        *_, last = self.steps(prompts, noise, generator=generator, **options)
        if known is None:
            return last.x
        return torch.where(
            options["mask"][:, None, :, None, None].to(last.x.device), known.to(last.x), last.x
        )

    def _image_config(self) -> Any:
        return (self.unet.spatial if isinstance(self.unet, InflatedUNet) else self.unet).config

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Of latents, for pixels."""
        made_for = self._image_config().sample_size
        sides = (made_for, made_for) if isinstance(made_for, int) else tuple(made_for)
        sizes = []
        for name, pixels, side in (("height", height, sides[0]), ("width", width, sides[1])):
            if pixels is not None and (pixels < 1 or pixels % self.vae_scale_factor):
                raise ValueError(
                    f"{name}: expected a multiple of {self.vae_scale_factor} pixels, got {pixels}"
                )
            sizes.append(side if pixels is None else pixels // self.vae_scale_factor)
        return sizes[0], sizes[1]


# What an image model's folder does not have

LAYERS = "temporal.safetensors"  # not diffusers' name: it would read the folder as a whole model, and fill in at random


def save_layers(model: InflatedUNet | TemporalAutoencoder, folder: Path) -> None:
    """Write configuration and layers over time, in half precision; the image model they were made for is left out.

    folder: where to; it must exist.
    """
    model.save_config(folder)
    weights = {
        name: value.half().contiguous() for name, value in model.temporal.state_dict().items()
    }
    save_file(weights, folder / LAYERS)


def with_layers(image: nn.Module, folder: Path) -> InflatedUNet | TemporalAutoencoder:
    """An image model with the layers over time that `save_layers` wrote, which were trained on it.

    image: the UNet2DConditionModel or AutoencoderKL; it is copied. Raises RuntimeError for weights too many or missing.
    """
    kind = TemporalAutoencoder if isinstance(image, AutoencoderKL) else InflatedUNet
    model = placed_as(kind.from_config(kind.load_config(folder)), image)
    model.spatial.load_state_dict(image.state_dict())
    model.temporal.load_state_dict(load_file(folder / LAYERS))
    return model.train(image.training)


def on_image_pipeline(image: StableDiffusionPipeline, folder: Path) -> TextToVideoPipeline:
    """An image pipeline whose U-Net has got the layers over time in a folder, and the schedule beside them."""
    written = DDIMScheduler.load_config(folder, subfolder="scheduler")  # any scheduler's
    kind = getattr(diffusers, written["_class_name"])
    scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    unet = with_layers(image.unet, folder)
    return TextToVideoPipeline(image.vae, image.text_encoder, image.tokenizer, unet, scheduler)


# Key frames, then what lies between them; clips that go on


def between(
    pipeline: TextToVideoPipeline,
    prompts: Sequence[str],
    keys: Float[Tensor, "b c n y x"],
    *,
    factor: int = 4,
    window: int = 4,
    spacing: float | int = 1.0,
    **options: Any,
) -> Float[Tensor, "b c frames y x"]:
    """Clips of factor · (n - 1) + 1 frames, of which every factor-th is a key frame.

    Windows of a few key frames, in which the last of one is the first of the next, are filled in all at once; the same
    network drew the key frames. prompts: one for each clip. factor: frames for each key frame. window: key frames of a
    window, 2 or more; n - 1 is a multiple of window - 1. spacing: time between key frames, as in `frame_index`. The
    U-Net should have been trained with such masks: mini-video's knows a factor of 4 and clips of up to 16 frames.
    options: of `TextToVideoPipeline.steps`; scale is `FITTING` if not told. Raises ValueError as it, or for others.
    """
    b, _, n, _, _ = keys.shape
    if window < 2 or n < window or (n - 1) % (window - 1):
        raise ValueError(
            f"window: expected 2 or more, with one less a divisor of {n} - 1; got {window}"
        )
    count = (n - 1) // (window - 1)
    pieces = (
        keys.unfold(2, window, window - 1).permute(0, 2, 1, 5, 3, 4).flatten(0, 1)
    )  # (b count) c window y x
    length = factor * (window - 1) + 1
    mask = every(length, factor).expand(len(pieces), -1)
    known = keys.new_zeros(len(pieces), keys.shape[1], length, *keys.shape[3:])
    known[:, :, ::factor] = pieces
    index = (torch.arange(length) * spacing / factor).expand(len(pieces), -1)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    options = {"scale": FITTING} | options
    filled = pipeline.latents(
        repeated, frames=length, known=known, mask=mask, frame_index=index, **options
    )
    inner = filled[:, :, :-1].unflatten(
        0, (b, count)
    )  # the last frame of each is the first of the next
    inner = inner.transpose(1, 2).flatten(2, 3)  # b c (count · (length - 1)) y x
    return torch.cat([inner, keys[:, :, -1:].to(inner)], dim=2)


def onwards(
    pipeline: TextToVideoPipeline,
    prompts: Sequence[str],
    clip: Float[Tensor, "b c f y x"],
    *,
    frames: int,
    past: int = 4,
    **options: Any,
) -> Float[Tensor, "b c frames y x"]:
    """Longer clips, block by block: each begins with the last `past` frames that there are.

    clip: its beginning, as many frames as a block has. frames: how many in the end. past: fewer than a block has; of
    mini-video's training, at most 8. options: see `between`. Raises ValueError for no longer clip, or such a `past`.
    """
    block = clip.shape[2]
    if not 1 <= past < block:
        raise ValueError(f"past: expected 1 to {block - 1} of {block} frames, got {past}")
    if frames <= block:
        raise ValueError(f"frames: expected more than the {block} that there are, got {frames}")
    mask = first(block, past).expand(len(clip), -1)
    while clip.shape[2] < frames:
        known = nn.functional.pad(clip[:, :, -past:], (0, 0, 0, 0, 0, block - past))
        made = pipeline.latents(
            prompts, frames=block, known=known, mask=mask, **{"scale": FITTING} | options
        )
        clip = torch.cat([clip, made[:, :, past:].to(clip)], dim=2)
    return clip[:, :, :frames]
