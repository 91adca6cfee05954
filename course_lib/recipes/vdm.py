"""vdm: text to clips of 16 frames, 32 x 32 pixels; the first video model of the course (lesson 03).

Trained jointly on clips and images, on 24 subjects of the base subset: without the 12 novel emoji,
held-out shapes and held-out pairs of subject and motion.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from course_lib import evaluation, zoo
from course_lib.diffusion import make_noisy_batch, sample_noise
from course_lib.metrics import Flicker
from course_lib.nn.unet import VideoUNet
from course_lib.papers.vdm import append_images, build_scheduler, build_unet
from course_lib.pipelines.text_to_video import TextToVideoPipeline
from course_lib.pipelines.unet_adapter import unet_denoiser
from course_lib.recipes.curriculum import (
    Phase,
    PhaseStep,
    canonical_rate_rows,
    find_phase,
    render_by_rate,
    rows_with_motion,
)
from course_lib.recipes.diffusion_recipe import (
    batch_generator,
    encode_text,
    generate_in_chunks,
    noisy_batch_loss,
    save_unet,
)
from course_lib.recipes.latent_cache import LatentCache
from course_lib.recipes.recipe import Recipe, TrainConfig
from course_lib.validation import check_number
from course_lib.world import SUBJECTS_24, Clips, Sampler, World

SEED = 61
SIZE = 32
NUM_FRAMES = 16
NUM_APPENDED_IMAGES = 4
FRAME_STRIDE = 4  # of the strided phase: 4 frames show a motion as well as 16
WORLD_KWARGS = {"subjects": SUBJECTS_24}
# Motion → its share of a batch of full clips, and the timesteps at which it is decided, found by
# noising real clips and letting the model finish them (docs/decisions.md)
HARD_MOTIONS = {"spinning": (5 / 16, 50, 600), "bouncing": (4 / 16, 650, 1000)}
COND_DROP_PROB = 0.1
NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0
RECONSTRUCTION_WEIGHT = 2.0
# Temporal guidance replaces text guidance below this timestep; measured: docs/decisions.md
TEMPORAL_GUIDANCE_SCALE = 2.0
TEMPORAL_GUIDANCE_BELOW = 500
SAMPLING = {
    "num_inference_steps": NUM_INFERENCE_STEPS,
    "guidance_scale": GUIDANCE_SCALE,
    "temporal_guidance_scale": TEMPORAL_GUIDANCE_SCALE,
    "temporal_guidance_below": TEMPORAL_GUIDANCE_BELOW,
    "fps": 8,
}
GENERATION_BATCH = 16
LONG_NUM_FRAMES = 64
NUM_COND_FRAMES = 4  # given to each block of a longer clip; measured: docs/decisions.md

loss_fn = noisy_batch_loss(unet_denoiser)

Example = tuple[Tensor, dict[str, Tensor], Tensor]  # clips, their conditioning, timesteps


@cache
def scheduler() -> SchedulerMixin:
    """The noise schedule of training and sampling: cosine, shifted to more noise."""
    return build_scheduler()


def _sampler() -> Sampler:
    return Sampler("train", seed=SEED, **WORLD_KWARGS)


def render_chunk(indices: range) -> dict[str, Tensor]:
    """Clips of the training split.

    Returns:
        "video" uint8 (n, 3, f, h, w), "fps" (n,), and the tokens of captions with a motion,
        "tokens" (n, l), and without, "image_tokens" (n, l).
    """
    sampler = _sampler()
    scenes = [sampler(index) for index in indices]
    video = torch.empty(len(scenes), 3, NUM_FRAMES, SIZE, SIZE, dtype=torch.uint8)
    fps_of_row = torch.empty(len(scenes), dtype=torch.int64)
    captions = {"tokens": [""] * len(scenes), "image_tokens": [""] * len(scenes)}
    for rows, fps, clips in render_by_rate(scenes, NUM_FRAMES, SIZE):
        video[rows] = clips.video.add(1).mul(127.5).round().byte()
        fps_of_row[rows] = fps
        captions["tokens"][rows] = clips.paraphrases
        captions["image_tokens"][rows] = clips.image_paraphrases
    tokenize = zoo.load_text_encoder().tokenize
    items = {name: tokenize(texts) for name, texts in captions.items()}
    return items | {"video": video, "fps": fps_of_row}


CACHE = LatentCache(render_chunk, chunk_size=1020, num_chunks=16)


def curriculum(config: TrainConfig) -> list[Phase]:
    """Images, then every fourth frame of four times as many clips, then full clips with images."""
    return [
        Phase("images", config.extra["image_steps"], config.extra["images_per_step"]),
        Phase("strided", config.extra["strided_steps"], config.batch_size * FRAME_STRIDE),
        Phase("full", None, config.batch_size),
    ]


def make_batch(number: int, config: TrainConfig) -> dict[str, Tensor]:
    """One global batch: the fields of `NoisyBatch` and the conditioning of the U-Net.

    images: "text" (b, l, d). strided: also "fps" (b,) and "frame_index" (b, f). full: "text"
    (b, f, l, d), "is_image" (b, f) and "fps" (b,). See `curriculum`.
    """
    step = find_phase(curriculum(config), number)
    generator = batch_generator(SEED, number)
    make_examples = {"images": _images, "strided": _strided_clips, "full": _full_clips}[step.phase]
    x0, cond, t = make_examples(step, generator)
    return make_noisy_batch(scheduler(), x0, generator, timesteps=t)._asdict() | cond


def _images(step: PhaseStep, generator: torch.Generator) -> Example:
    """Videos of one frame."""
    frames, captions = _random_frames(step.rows()[:, None], generator)
    cond = {"text": _encode_text(captions[:, 0], generator)}
    return frames.transpose(1, 2), cond, sample_timesteps(step.batch_size, generator)


def _strided_clips(step: PhaseStep, generator: torch.Generator) -> Example:
    rows = _take_turns(canonical_rate_rows(len(CACHE)), step.index, step.batch_size)
    clips = CACHE[rows]
    first = int(torch.randint(FRAME_STRIDE, (), generator=generator))
    frame_index = torch.arange(first, NUM_FRAMES, FRAME_STRIDE)
    cond = {"text": _encode_text(clips["tokens"], generator), "fps": clips["fps"]}
    cond["frame_index"] = frame_index.expand(step.batch_size, -1)
    t = sample_timesteps(step.batch_size, generator, high_noise=True)
    return _to_float(clips["video"][:, :, frame_index]), cond, t


def _full_clips(step: PhaseStep, generator: torch.Generator) -> Example:
    """Clips with frames of other clips appended, whose captions name no motion."""
    rows, t = sample_hard_motions(step.index, step.batch_size, generator)
    clips = CACHE[rows]
    others = torch.randint(len(CACHE), (len(rows), NUM_APPENDED_IMAGES), generator=generator)
    images, captions = _random_frames(others, generator)
    tokens = torch.cat([clips["tokens"][:, None], captions], dim=1)  # b (1 + n) l
    text = _encode_text(tokens.flatten(0, 1), generator).unflatten(0, (len(rows), -1))
    x0, cond = append_images(_to_float(clips["video"]), text[:, 0], images, text[:, 1:])
    return x0, cond | {"fps": clips["fps"]}, t


def sample_timesteps(
    num_samples: int, generator: torch.Generator, high_noise: bool = False
) -> Tensor:
    """Timesteps (n,): the largest of three for `high_noise`; else uniform for even rows and the
    smallest of three for odd ones.

    Motion is decided at high noise. But one timestep in 25 has less noise than the last of 25
    sampling steps; where such timesteps were rare in training, generated clips kept some grain.
    """
    t = torch.randint(len(scheduler().alphas_cumprod), (3, num_samples), generator=generator)
    if high_noise:
        return t.amax(dim=0)
    return torch.where(torch.arange(num_samples) % 2 == 0, t[0], t.amin(dim=0))


def sample_hard_motions(
    index: int, num_clips: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows and timesteps of a batch of full clips: the share of `HARD_MOTIONS`, then any clips.

    Args:
        index: of the batch in its phase.
        num_clips: size of the batch.
        generator: draws the timesteps.
    """
    rows, t = [], []
    for motion, (share, low, high) in HARD_MOTIONS.items():
        count = round(share * num_clips)
        rows.append(_take_turns(_rows_of(motion, len(CACHE)), index, count))
        t.append(torch.randint(low, high, (count,), generator=generator))
    rest = num_clips - sum(map(len, rows))
    rows.append(_take_turns(torch.arange(len(CACHE)), index, rest))
    t.append(sample_timesteps(rest, generator))
    return torch.cat(rows), torch.cat(t)


def _take_turns(rows: Tensor, index: int, count: int) -> Tensor:
    """The next `count` rows at every index, from the beginning again after the last."""
    return rows[torch.arange(index * count, (index + 1) * count) % len(rows)]


@cache
def _rows_of(motion: str, num_rows: int) -> Tensor:
    return rows_with_motion(_sampler(), motion, torch.arange(num_rows))


def _random_frames(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random frame of each clip (b, n): images (b, n, 3, h, w), and tokens of their captions."""
    frames = torch.randint(NUM_FRAMES, (rows.numel(),), generator=generator)
    clips = CACHE[rows.flatten()]
    images = _to_float(clips["video"][torch.arange(len(frames)), :, frames])  # (b n) 3 h w
    return images.unflatten(0, rows.shape), clips["image_tokens"].unflatten(0, rows.shape)


def _encode_text(tokens: Tensor, generator: torch.Generator) -> Tensor:
    return encode_text(tokens, COND_DROP_PROB, generator, token_embeddings=True)


def _to_float(video: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return video.float().div(127.5).sub(1)


def conditioning(prompts: Sequence[str], fps: float | int = 8) -> dict[str, Tensor]:
    """Conditioning of the U-Net: "text" (b, 32, 256) and "fps" (b,), which has to be positive."""
    check_number("fps", fps, above=0)
    text = zoo.load_text_encoder(token_embeddings=True)(prompts)
    return {"text": text, "fps": torch.full((len(prompts),), float(fps), device=text.device)}


def build_pipeline(model: VideoUNet) -> TextToVideoPipeline:
    """The U-Net with mini-clip's text encoder; its latents are pixels."""
    text = zoo.load_text_encoder()
    return TextToVideoPipeline(None, text.text_encoder, text.tokenizer, model, scheduler())


def generate(
    model: VideoUNet,
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    num_frames: int = NUM_FRAMES,
    reconstruction_weight: float | int | None = RECONSTRUCTION_WEIGHT,
    **kwargs: Any,
) -> Tensor:
    """A clip (b, 3, num_frames, 32, 32) in [-1, 1] for each prompt, on the CPU.

    Args:
        model: the U-Net.
        prompts: "" stands for any clip.
        generator: draws the initial noise of all clips first, so that runs with other settings
            start from equal noise.
        num_frames: more than 16 are generated block by block; each block is given the last
            `NUM_COND_FRAMES` frames.
        reconstruction_weight: of reconstruction guidance towards these frames.
        kwargs: of `TextToVideoPipeline.sample_latents`, by default 25 steps with text guidance 3
            and, below timestep 500, temporal guidance 2, at 8 frames per second. Trained are 8, 16
            and 32; `temporal_guidance_scale=None` keeps text guidance throughout.
    """
    pipe = build_pipeline(model)
    kwargs = SAMPLING | {"generator": generator} | kwargs

    def generate_chunk(prompts: Sequence[str], latents: Tensor) -> Tensor:
        video = pipe.sample_latents(prompts, latents=latents, **kwargs)
        if num_frames > NUM_FRAMES:
            video = pipe.extend_autoregressively(
                prompts,
                video,
                num_frames=num_frames,
                num_cond_frames=NUM_COND_FRAMES,
                reconstruction_weight=reconstruction_weight,
                **kwargs,
            )
        return pipe.decode_latents(video)

    noise = sample_noise((len(prompts), 3, NUM_FRAMES, SIZE, SIZE), generator)
    return generate_in_chunks(
        generate_chunk, prompts, chunk_size=GENERATION_BATCH, device=model.device, latents=noise
    )


def evaluate(model: VideoUNet, config: TrainConfig) -> Mapping[str, Any]:
    """Metrics of prompted clips, of clips without a prompt, and of long clips."""
    num_samples = config.eval_samples
    metrics = evaluate_prompted(model, num_samples) | evaluate_unconditional(model, num_samples)
    return metrics | evaluate_long(model, max(num_samples // 8, 16))


def evaluate_prompted(model: VideoUNet, num_samples: int) -> dict[str, Any]:
    """Prompt accuracy, also by motion, and distance from real clips.

    Args:
        model: in evaluation mode.
        num_samples: clips generated from captions of the test split, and real clips.
    """
    reference, real = (_real_clips(num_samples, seed) for seed in (1, 2))
    clips = generate(model, reference.captions, torch.Generator().manual_seed(0))
    metrics = evaluation.prompt_accuracy(clips, reference.captions)
    metrics |= evaluation.rendering_report(clips, reference.captions)
    metrics |= evaluation.frechet_report(clips, real.video, reference.video, "guided")
    return metrics | evaluation.motion_accuracy(clips, reference)


def evaluate_unconditional(model: VideoUNet, num_samples: int) -> dict[str, Any]:
    """Distance of clips without a prompt and without guidance. Arguments: as above."""
    reference, real = (_real_clips(num_samples, seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(1)
    unguided = {"guidance_scale": 1, "temporal_guidance_scale": None}
    clips = generate(model, [""] * num_samples, generator, **unguided)
    return evaluation.frechet_report(clips, real.video, reference.video, "unconditional")


def evaluate_long(model: VideoUNet, num_samples: int) -> dict[str, float]:
    """The last 16 frames compared with the first 16, of clips of 64 frames at 32 per second.

    Arguments: as above.
    """
    prompts = _real_clips(num_samples, 1).captions
    generator = torch.Generator().manual_seed(2)
    video = generate(model, prompts, generator, fps=32, num_frames=LONG_NUM_FRAMES)
    accuracies, flickers = [], []
    for part in (video[:, :, :NUM_FRAMES], video[:, :, -NUM_FRAMES:]):
        accuracies.append(evaluation.prompt_accuracy(part, prompts)["subject_accuracy"])
        flicker = Flicker()
        flicker.update(part)
        flickers.append(flicker.compute()["difference"].value)
    first, last = accuracies
    return {
        "long_video/subject_accuracy_first_16": first,
        "long_video/subject_accuracy_last_16": last,
        "long_video/subject_accuracy_ratio": last / max(first, 1 / num_samples),
        "long_video/flicker_ratio": flickers[1] / flickers[0],
    }


def _real_clips(num_samples: int, seed: int) -> Clips:
    return World("test", size=SIZE, seed=seed, **WORLD_KWARGS).batch(range(num_samples))


TRAINING = {"lr": 1e-3, "warmup": 300, "ema_decay": 0.999}  # lr 2e-3 diverges: docs/decisions.md

RECIPE = Recipe(
    name="vdm",
    summary="Text to clips of 16 frames of 32 x 32 pixels.",
    build_model=build_unet,
    make_batch=make_batch,
    loss_fn=loss_fn,
    save=lambda model, folder: save_unet(model, scheduler(), folder),
    evaluate=evaluate,
    configs={
        "cpu": TrainConfig(
            num_steps=7000,
            batch_size=16,
            extra={"image_steps": 1500, "images_per_step": 256, "strided_steps": 2000},
            **TRAINING,
        ),
        "gpu": TrainConfig(
            num_steps=10000,
            batch_size=64,
            extra={"image_steps": 2000, "images_per_step": 1024, "strided_steps": 3000},
            **TRAINING,
        ),
        "ci": TrainConfig(
            num_steps=3,
            batch_size=2,
            lr=1e-3,
            eval_samples=16,
            extra={"image_steps": 1, "images_per_step": 4, "strided_steps": 1},
        ),
    },
    targets={
        "subject_accuracy": (">=", 0.85),
        "motion_accuracy": (">=", 0.9),
        "background_accuracy": (">=", 0.9),
        "fvd_over_real_floor/guided": ("<=", 4.0),
        "long_video/subject_accuracy_ratio": (">=", 0.9),
        "long_video/flicker_ratio": ("<=", 1.2),
    },
    hub_metadata={"library_name": "diffusers", "pipeline_tag": "text-to-video"},
    notes="""
A `course_lib.nn.unet.VideoUNet` with v-prediction on a cosine schedule shifted by a factor of 4 to
more noise (`scheduler/`, a DDIMScheduler). Its text conditioning is the last hidden state of
mini-clip's text encoder, concatenated with the layer-normalised token embeddings
(`pipelines.text_encoder.TextEncoder(…, token_embeddings=True)`); `fps` is the number of frames per
second (8, 16 or 32; at more than 8 a clip shows less time). The model knows the 24 subjects of
`course_lib.world.SUBJECTS_24` in all motions on all backgrounds, as captions of the world name
them, and not the 12 novel emoji. The empty prompt gives an arbitrary scene.

The U-Net works on patches of 4 x 4 pixels, with a small full-resolution head, so small details are
coarse. Spinning and bouncing are the hardest motions; training resamples them at the noise levels
where they are decided. `course_lib.recipes.vdm.generate` generates clips of 16 frames, and longer
ones block by block, with text guidance at first and temporal guidance below timestep 500. Clips of
`unconditional` metrics have neither.

`long_video/…` compares the last 16 frames with the first 16, in 128 clips of 64 frames at 32 frames
per second.
""",
)
