"""Text to video as in diffusers: `pipe("a tiger spinning", num_inference_steps=25).frames[0]`.

One pipeline for every video U-Net of the course and for diffusers' own, in latents or in pixels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, StableDiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from jaxtyping import Float, Real
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from course_lib import runtime
from course_lib.diffusion import SamplerStep, cfg_model, sample, sample_noise, switch_at
from course_lib.nn.temporal_decoder import TemporalAutoencoder
from course_lib.pipelines import frame_condition as frames_given
from course_lib.pipelines.batch import (
    Generators,
    Prompts,
    check_generators,
    check_rows,
    expand_arguments,
    expand_prompts,
    latents_of_callback,
    repeat,
    repeat_lists,
)
from course_lib.pipelines.frame_condition import FrameCondition
from course_lib.pipelines.latents import decode_video
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.pipelines.unet_adapter import (
    accepted_inputs,
    frame_independent_denoiser,
    in_channels,
    latent_shape,
    shared_inputs,
    temporal_guidance,
    unet_denoiser,
)
from course_lib.validation import check_choice, check_float, check_int, check_number, require

# Timestep below which temporal guidance replaces text guidance; measured: docs/decisions.md
TEMPORAL_GUIDANCE_BELOW = 700
# Guidance scale where frames are given; measured: docs/decisions.md
COND_FRAMES_GUIDANCE_SCALE = 2.0
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Callback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass
class VideoPipelineOutput(BaseOutput):
    """frames: a list of PIL images for each video, an array or a tensor, as `output_type` says."""

    frames: Any


class TextToVideoPipeline(DiffusionPipeline):
    """Prompts to videos; the sampling arguments of all methods are those of `sample_iter`.

    Args:
        vae: an AutoencoderKL, which decodes frames one by one, a TemporalAutoencoder, or None for
            a U-Net on pixels.
        text_encoder, tokenizer: as in a StableDiffusionPipeline.
        unet: a VideoUNet, an InflatedUNet, or diffusers' UNet3DConditionModel or UNetMotionModel.
        scheduler: any that `diffusion.sample` takes.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        vae: AutoencoderKL | TemporalAutoencoder | None,
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
        self.vae_scale_factor = 1
        if image_vae is not None:
            self.vae_scale_factor = 2 ** (len(image_vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_image_pipeline(
        cls,
        pipeline: StableDiffusionPipeline,
        unet: nn.Module,
        scheduler: SchedulerMixin | None = None,
    ) -> "TextToVideoPipeline":
        """The parts of an image pipeline with a video U-Net.

        Args:
            pipeline: any StableDiffusionPipeline.
            unet: a video U-Net.
            scheduler: None keeps the pipeline's.

        Raises:
            ValueError: for anything else, such as the name of a folder.
        """
        got = type(pipeline).__name__
        require(isinstance(pipeline, DiffusionPipeline), "pipeline", "a loaded pipeline", got)
        require(isinstance(unet, nn.Module), "unet", "a video U-Net", type(unet).__name__)
        scheduler = pipeline.scheduler if scheduler is None else scheduler
        return cls(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, unet, scheduler)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> "TextToVideoPipeline":
        """diffusers' own, but a mistyped folder is an error and not a download.

        Args:
            folder: of `save_pretrained`; a name on the Hub where `runtime.hub_available()`.
            kwargs: as there.
        """
        is_local = isinstance(folder, os.PathLike) or not runtime.hub_available()
        return super().from_pretrained(os.fspath(folder), **{"local_files_only": is_local} | kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        **kwargs: Any,
    ) -> VideoPipelineOutput | tuple[Any]:
        """Videos, one for each row, as `frames`.

        Args:
            prompt: one, or several.
            output_type: "pil", a list of images for each video; "np" (b, f, h, w, 3) and "pt"
                (b, f, 3, h, w) in [0, 1]; "latent" (b, c, f, y, x).
            return_dict: False returns a tuple.
            callback_on_step_end: gets (pipeline, index from 0, timestep, {"latents"}) after every
                step; if it returns "latents", sampling goes on with those.
            kwargs: num_frames, num_inference_steps, guidance_scale, negative_prompt, generator,
                frame_condition …, see `sample_iter`.

        Raises:
            ValueError: for an unknown `output_type`, for a callback that returns anything but None
                or a dict, in which "latents" have the shape of those it got, and as `sample_iter`.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)

        def on_step(step: SamplerStep) -> Tensor | None:
            if callback_on_step_end is None:
                return None
            result = callback_on_step_end(self, step.index - 1, step.t, {"latents": step.x})
            return latents_of_callback(result, step.x)

        steps = self.sample_iter(prompt, on_step=on_step, **kwargs)
        with self.progress_bar(total=kwargs.get("num_inference_steps", 25)) as bar:
            for step in steps:
                last = step
                bar.total = max(bar.total, step.index)  # Heun's scheduler takes more steps
                bar.update()
        frames = self._paste(last.x, kwargs.get("frame_condition"))
        if output_type != "latent":
            video = self.decode_latents(frames)
            frames = self.video_processor.postprocess_video(video, output_type=output_type)
        return VideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def sample_iter(
        self,
        prompt: Prompts,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        num_inference_steps: int = 25,
        guidance_scale: float | int | Tensor = 4.0,
        guidance_rescale: float | int = 0.0,
        negative_prompt: Prompts | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Float[Tensor, "b c f y x"] | None = None,
        frame_condition: FrameCondition | None = None,
        reconstruction_weight: float | int | None = None,
        frame_index: Real[Tensor, "b f"] | None = None,
        fps: float | int | None = None,
        temporal_scale: float | int = 1.0,
        temporal_guidance_scale: float | int | None = None,
        temporal_guidance_below: float | int = TEMPORAL_GUIDANCE_BELOW,
        on_step: Callable[[SamplerStep], Tensor | None] | None = None,
    ) -> Iterator[SamplerStep]:
        """Sample latents (pixels without a VAE), one `SamplerStep` at a time.

        Args:
            prompt: one, or several; "" stands for any video.
            height, width: in pixels; None is what the U-Net was made for.
            num_frames: frames of every video.
            num_inference_steps: steps of the scheduler.
            guidance_scale: of classifier-free guidance; 1 is none. A tensor broadcasts, such as
                one scale per frame (f, 1, 1).
            guidance_rescale: 0 to 1, see `diffusion.classifier_free_guidance`.
            negative_prompt: one for all or one for each prompt; None is "".
            num_videos_per_prompt: rows are ordered a, a, b, b.
            generator: one, or a list with one for each video; video i is then what a call
                with generator i gives. None is torch's own.
            latents: noise of unit variance to begin with; sizes and num_frames are then its own.
            frame_condition: given frames, one row per video. A U-Net with conditioning channels
                sees them, and guidance then also leads away from the prediction without frames
                (context guidance); the replacement method keeps them for every U-Net.
            reconstruction_weight: of reconstruction guidance towards the given frames; None: none.
            frame_index: time of each frame (b, f), in the unit of training (mini-video: 1/8 s);
                fractions are allowed, None means 0, 1, 2 ….
            fps: frames per second, for U-Nets that take it.
            temporal_scale: factor of what temporal layers add; 0 gives independent images.
            temporal_guidance_scale: below timestep `temporal_guidance_below`, guidance leads away
                from the frame-independent prediction by this scale instead of by text, see
                `temporal_guidance`; None: text guidance throughout.
            temporal_guidance_below: a timestep.
            on_step: called after every step; a tensor that it returns replaces the sample.

        Raises:
            ValueError: for inputs that the U-Net does not take, for sizes, numbers or tensors that
                do not fit, and as `diffusion.sample`.
        """
        prompts, negatives = expand_prompts(prompt, negative_prompt, num_videos_per_prompt)
        generator = check_generators(generator, len(prompts))
        check_int("num_inference_steps", num_inference_steps, 1)
        check_number("temporal_scale", temporal_scale)
        check_number("temporal_guidance_below", temporal_guidance_below)
        if temporal_guidance_scale is not None:
            check_number("temporal_guidance_scale", temporal_guidance_scale, at_least=0.0)
        size = (len(prompts), num_frames, height, width)
        shape = latent_shape(self.unet, self.vae_scale_factor, size, latents, frame_condition)
        inputs = shared_inputs(self.unet, shape, frame_index, fps)
        latents = sample_noise(shape, generator) if latents is None else latents
        latents = latents.to(self.unet.device)
        if frame_condition is not None:
            frame_condition = frame_condition.to(latents)
        cond, uncond = self._conditioning(prompts, negatives, latents, frame_condition)
        scaled = {} if temporal_scale == 1 else {"temporal_scale": temporal_scale}
        model = unet_denoiser(self.unet, **scaled)
        guided = cfg_model(model, uncond | inputs, guidance_scale, guidance_rescale)
        if temporal_guidance_scale is not None:
            spatial = frame_independent_denoiser(self.unet)
            low_noise = temporal_guidance(model, temporal_guidance_scale, spatial)
            guided = switch_at(guided, low_noise, temporal_guidance_below)
        if frame_condition is not None:
            guided = frames_given.condition_on_frames(
                guided, self.scheduler, frame_condition, reconstruction_weight
            )
        return sample(
            guided,
            self.scheduler,
            latents,
            cond | inputs,
            num_inference_steps=num_inference_steps,
            generator=generator,
            on_step=on_step,
        )

    def sample_latents(
        self,
        prompt: Prompts,
        *,
        frame_condition: FrameCondition | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "b c f y x"]:
        """Latents at the end of sampling; given frames are exactly what they were.

        Arguments, raises: as `sample_iter`.
        """
        *_, last = self.sample_iter(prompt, frame_condition=frame_condition, **kwargs)
        return self._paste(last.x, frame_condition)

    def generate(self, prompt: Prompts, **kwargs: Any) -> Float[Tensor, "b 3 f h w"]:
        """Videos in [-1, 1], float32 on the CPU. Arguments, raises: as `sample_iter`."""
        return self.decode_latents(self.sample_latents(prompt, **kwargs)).float().cpu()

    def extend_autoregressively(
        self,
        prompt: Prompts,
        latents: Float[Tensor, "b c f y x"],
        *,
        num_frames: int,
        num_cond_frames: int = 4,
        **kwargs: Any,
    ) -> Float[Tensor, "b c num_frames y x"]:
        """Latents of longer videos, block by block, see `frame_condition.extend_autoregressively`.

        Begin with `sample_latents`, or `latents.encode_video` of a real video; end with
        `decode_latents`.

        Args:
            prompt: one for each video.
            latents: the beginning, as many frames as a block has.
            num_frames: length of the result.
            num_cond_frames: frames that each block is given; mini-video has seen at most 8.
            kwargs: of `sample_iter`; guidance_scale is `COND_FRAMES_GUIDANCE_SCALE` by default.

        Raises:
            ValueError: as `frame_condition.extend_autoregressively` and `sample_iter`.
        """
        defaults = {"guidance_scale": COND_FRAMES_GUIDANCE_SCALE}
        prompts, kwargs = expand_arguments(prompt, defaults | kwargs)
        check_rows("latents", latents, len(prompts), in_channels(self.unet))
        return frames_given.extend_autoregressively(
            lambda condition: self.sample_latents(prompts, frame_condition=condition, **kwargs),
            latents,
            num_frames=num_frames,
            num_cond_frames=num_cond_frames,
        )

    def interpolate_keyframes(
        self,
        prompt: Prompts,
        keyframes: Float[Tensor, "b c n y x"],
        *,
        factor: int = 4,
        window_size: int = 4,
        keyframe_spacing: float | int = 1.0,
        **kwargs: Any,
    ) -> Float[Tensor, "b c frames y x"]:
        """Latents of factor · (n - 1) + 1 frames, see `frame_condition.interpolate_keyframes`.

        Key frames come from `sample_latents`, or `latents.encode_video`; end with `decode_latents`.
        The U-Net should have been trained with such masks: mini-video's knows a factor of 4 and
        clips of up to 16 frames.

        Args:
            prompt: one for each video.
            keyframes: latents.
            factor, window_size, keyframe_spacing: as there.
            kwargs: of `sample_iter`; guidance_scale is `COND_FRAMES_GUIDANCE_SCALE` by default.

        Raises:
            ValueError: as `frame_condition.interpolate_keyframes` and `sample_iter`.
        """
        defaults = {"guidance_scale": COND_FRAMES_GUIDANCE_SCALE}
        prompts, kwargs = expand_arguments(prompt, defaults | kwargs)
        check_rows("keyframes", keyframes, len(prompts), in_channels(self.unet))

        def sample_block(condition: FrameCondition, frame_index: Tensor) -> Tensor:
            windows = len(condition.frames) // len(prompts)
            return self.sample_latents(
                repeat(prompts, windows),
                frame_condition=condition,
                frame_index=frame_index,
                **repeat_lists(kwargs, windows),
            )

        return frames_given.interpolate_keyframes(
            sample_block,
            keyframes,
            factor=factor,
            window_size=window_size,
            keyframe_spacing=keyframe_spacing,
        )

    def encode_prompt(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Text embeddings in the U-Net's dtype; one tensor, without a negative half.

        Token embeddings are appended for a U-Net whose text is twice as wide as the encoder's.
        """
        width = self.text_encoder.config.hidden_size
        text_dim = getattr(self.unet, "text_dim", self.unet.config.get("cross_attention_dim"))
        encoder = TextEncoder(self.text_encoder, self.tokenizer, text_dim == 2 * width)
        return encoder(prompts).to(self.unet.device, self.unet.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c f y x"]) -> Float[Tensor, "b 3 f h w"]:
        """Latents to videos, clamped to [-1, 1]; without a VAE the latents are the pixels."""
        check_float("latents", latents, "(b, c, f, y, x)")
        if self.vae is None:
            return latents.clamp(-1, 1)
        return decode_video(self.vae, latents.to(self.vae.device))

    def _paste(self, latents: Tensor, frame_condition: FrameCondition | None) -> Tensor:
        return latents if frame_condition is None else frame_condition.paste(latents)

    def _conditioning(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        latents: Tensor,
        frame_condition: FrameCondition | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs that the two halves of guidance do not share: text, and given frames."""
        cond = {"text": self.encode_prompt(prompts)}
        uncond = {"text": self.encode_prompt(negatives)}
        if "cond_channels" in accepted_inputs(self.unet):
            no_frames = FrameCondition.none(latents)
            uncond["cond_channels"] = no_frames.channels()
            cond["cond_channels"] = (frame_condition or no_frames).channels()
        return cond, uncond
