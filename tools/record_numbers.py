"""Record what the course computes, and compare it after a change that must not change any number.

    python tools/record_numbers.py record OUT.npz     compute and write
    python tools/record_numbers.py compare OUT.npz    compute again; exit 1 if anything differs
    … --only world                                    one area (see AREAS); may be repeated

It was written for renaming: the names of the arrays stay when names in the code change, since they
are the keys of the comparison. Every area is one function that imports what it needs and returns a
dict of arrays, so that a renaming changes its calls in one place. If an area raises, the others
still run, and the program ends with exit 1.

Everything is float32 on the CPU, on one thread, with fixed seeds and small inputs. Most inputs are
made here and not by the course's world, so that an area depends on little but its own code. Of an
array with more than LIMIT values every n-th is kept, and mean and standard deviation of all; of
texts a checksum. Another CPU rounds in another way, and sampling amplifies that: record and compare
on the same machine.

`record --only AREA` replaces that area in a file that exists and leaves the others as they are.
"""

import os
import sys

# Before the imports: the libraries read these variables once
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
os.environ.update({"CUDA_VISIBLE_DEVICES": "", "COURSE_PROFILE": "ci", "COURSE_DEVICE": "cpu"})
os.environ.pop("COURSE_DATA", None)

import argparse
import hashlib
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# This checkout's package, not an installed one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 512  # values kept of one array
TOLERANCE = 1e-6  # times the largest value, or 1 if that is more
EXACT = "json/"  # arrays whose names begin so are kept in float64 and may not differ at all
SHAPES = "__shapes__"  # in the file: JSON, from the name of an array to the shape it had

# Claims in the order of the first record; data/claims.json is sorted by id within a lesson
CLAIMS = (
    "factorised-test-error",
    "factorised-train-error",
    "order-blind",
    "early-temporal-convolutions",
    "ddim-at-few-steps",
    "guidance-costs-variety",
    "guidance-improves-class-accuracy",
    "v-with-zero-terminal-snr",
    "temporal-guidance-helps-motion",
    "token-embeddings-carry-motion-words",
    "joint-training-helps-video",
    "temporal-positions",
    "reconstruction-beats-replacement",
    "latents-are-cheaper",
    "text-encoder-composes",
    "frozen-image-model-keeps-quality",
    "temporal-layers-need-text",
    "image-subjects-and-motion-compose",
    "image-pretraining-helps",
    "temporal-decoder-fvd",
    "temporal-decoder-reduces-flicker",
    "collapse-within-classes",
    "content-bias",
    "fid-bias",
    "fid-falls-as-1-over-n",
    "frozen-video-is-consistent",
    "order-blind-features",
)
ADDED_KEYS = ("added_seeds",)  # keys of JSON files that the first record did not have

Arrays = dict[str, Any]

PROMPTS = [
    "a tiger moving left on a sea background",
    "a red circle bouncing on a white background",
]


# Shared by all areas


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def moving_discs(b: int = 2, f: int = 8, size: int = 64, seed: int = 0) -> Tensor:
    """Clips (b, 3, f, h, w) in [-1, 1]: a coloured disc moves over a static gradient."""
    params = torch.rand(b, 12, generator=seeded(seed))
    axis = torch.linspace(-1, 1, size)
    y, x, t = axis[:, None], axis[None], torch.linspace(-1, 1, f)
    clips = []
    for row in params:
        centre_x = (row[0] - 0.5) * t[:, None, None] + 0.6 * (row[1] - 0.5)
        centre_y = (row[2] - 0.5) * t[:, None, None] + 0.6 * (row[3] - 0.5)
        distance = ((x - centre_x) ** 2 + (y - centre_y) ** 2).sqrt()  # f h w
        alpha = ((0.25 + 0.2 * row[4] - distance) * size / 2).clamp(0, 1)[None]
        gradient = row[5:8, None, None] * y + row[8] * x - 0.2
        background = gradient.clamp(-1, 1)[:, None]  # 3 1 h w
        colour = 2 * row[9:12, None, None, None] - 1
        clips.append(background + alpha * (colour - background))
    return torch.stack(clips)


def fill(module: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Replace all parameters, so that none is zero, and freeze the module.

    The k-th parameter of a shape gets the k-th sample for this shape: neither names nor the order
    among different shapes matter. Parameters that are all ones (the weight of a norm) become
    values near one, all others values near zero.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for parameter in module.parameters():
        shape = tuple(parameter.shape)
        key = np.random.SeedSequence([seed, counts[shape], *shape]).generate_state(1, np.uint64)[0]
        counts[shape] += 1
        mean = 1.0 if bool((parameter == 1).all()) and parameter.ndim == 1 else 0.0
        scale = std if parameter.ndim < 2 else (parameter.numel() / len(parameter)) ** -0.5
        noise = torch.randn(shape, generator=seeded(int(key >> np.uint64(1))))
        parameter.data.copy_(mean + scale * noise)
    return module.eval().requires_grad_(False)


def magnitudes(module: nn.Module) -> list[float]:
    """Mean absolute value of every parameter and buffer, sorted: how a network is initialised."""
    values = [*module.parameters(), *module.buffers()]
    return sorted(value.double().abs().mean().item() for value in values if value.numel())


def checksum(texts: Sequence[str]) -> list[int]:
    """32 numbers that change with any of the texts."""
    return list(hashlib.sha256("\n".join(texts).encode()).digest())


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> Arrays:
    """The same arrays under longer names."""
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


# Areas: the checkpoints


@torch.no_grad()
def classifiers() -> Arrays:
    """Judge and feature nets on clips and on images."""
    from course_lib import zoo

    video = moving_discs(2, 16, seed=1)
    small, image = moving_discs(2, 8, 32, seed=2), moving_discs(3, 1, seed=3)
    out: Arrays = {}
    judge = zoo.load("judge")
    for name, clips in {"clip": video, "small clip": small, "picture": image}.items():
        logits = judge(clips)
        for head in ("subject", "motion", "background", "order"):
            out[f"judge/{head} logits/{name}"] = logits[head]
    out["judge/temperatures"] = [
        judge.temperature(head) for head in ("subject", "motion", "background", "order")
    ]
    image_net, video_net = zoo.load("features/image"), zoo.load("features/video")
    out |= {
        f"image features/{name}": image_net.features(clips)
        for name, clips in {"picture": image, "clip": small}.items()
    }
    out |= {
        f"video features/{name}": video_net.features(clips)
        for name, clips in {"clip": video, "small": small}.items()
    }
    for name, net in {"image": image_net, "video": video_net}.items():
        logits = net(small)
        out |= {
            f"{name} features/{head} logits": logits[head] for head in ("subject", "background")
        }
    return out


@torch.no_grad()
def mini_clip() -> Arrays:
    """Embeddings of images and texts, and their similarities."""
    from course_lib import zoo
    from course_lib.metrics import ClipEncoder
    from course_lib.recipes.mini_clip import tokenize

    model = zoo.load("mini-clip")
    encoder = ClipEncoder.from_pretrained(zoo.path("mini-clip"))
    images, prompts = moving_discs(3, 1, seed=4)[:, :, 0], [*PROMPTS, ""]
    image_embeds, text_embeds = encoder.image(images), encoder.text(prompts)
    tokens = tokenize(prompts)
    unit = [nn.functional.normalize(embeds, dim=1) for embeds in (image_embeds, text_embeds)]
    return {
        "image embeddings": image_embeds,
        "image embeddings of large pictures": encoder.image(
            moving_discs(2, 1, 96, seed=5)[:, :, 0]
        ),
        "text embeddings": text_embeds,
        "similarities": unit[0] @ unit[1].T,
        "tokens": tokens,
        "logits": model(input_ids=tokens, pixel_values=images).logits_per_image,
    }


@torch.no_grad()
def pixel_ddpm() -> Arrays:
    """The class-conditional pixel model: forward, four guided steps, a training batch."""
    from diffusers import DDIMScheduler

    from course_lib import zoo
    from course_lib.diffusion import cfg_model, sample, sample_noise
    from course_lib.papers import ddpm as paper

    unet, scheduler = zoo.load("pixel-ddpm"), paper.build_scheduler()
    x, t, classes = normal(2, 3, 32, 32, seed=6), torch.tensor([10, 800]), torch.tensor([3, 24])
    model = paper.unet_denoiser(unet)
    guided, noise = cfg_model(model, paper.null_class(unet), 2), sample_noise(x.shape, seeded())
    kwargs = {"num_inference_steps": 4, "generator": seeded(1)}
    *_, last = sample(guided, scheduler, noise, torch.tensor([1, 7]), **kwargs)
    images = moving_discs(6, 1, 32)[:, :, 0]
    batch, batch_classes = paper.training_batch(
        scheduler, images, torch.arange(6), paper.null_class(unet), seeded(2), 0.5
    )
    stored = DDIMScheduler.from_pretrained(zoo.path("pixel-ddpm"), subfolder="scheduler")
    torch.manual_seed(0)
    return {
        "forward": model(x, t, classes),
        "sample": last.x,
        "schedule": scheduler.alphas_cumprod,
        "stored schedule": stored.alphas_cumprod,
        "learning/noisy": batch.x_t,
        "learning/timesteps": batch.t,
        "learning/target": batch.target,
        "learning/classes": batch_classes,
        "initialisation": magnitudes(paper.build_unet(5, 16, (16, 32))),
    }


@torch.no_grad()
def mini_vae() -> Arrays:
    """Encoder and decoder of the image autoencoder, and the temporal decoder."""
    from course_lib import zoo
    from course_lib.nn.temporal_decoder import inflate_decoder
    from course_lib.papers.latent_diffusion import build_autoencoder
    from course_lib.pipelines.latents import decode, encode

    vae, temporal = zoo.load("mini-vae"), zoo.load("temporal-vae")
    images, latents = moving_discs(2, 1, seed=7)[:, :, 0], normal(2, 16, 8, 8, seed=8)
    clip_latents = normal(1, 16, 8, 8, 8, seed=9)
    torch.manual_seed(0)
    new = build_autoencoder((8, 16), 4, 16)
    return {
        "encode": encode(vae, images),
        "encode, drawn": encode(vae, images, seeded(3)),
        "decode": decode(vae, latents),
        "scaling factor": vae.config.scaling_factor,
        "initialisation": magnitudes(new),
        "over time/encode": temporal.encode(moving_discs(1, 4, seed=10)),
        "over time/decode": temporal.decode(clip_latents),
        "over time/decode, half": temporal.decode(clip_latents, 0.5),
        "over time/decode, frame by frame": temporal.decode(clip_latents, 0),
        "over time/inflated anew": inflate_decoder(vae).eval().decode(clip_latents),
        "over time/inflated and filled": fill(inflate_decoder(vae), 1).decode(
            normal(1, 16, 3, 4, 4)
        ),
    }


@torch.no_grad()
def mini_sd() -> Arrays:
    """The image model: U-Net, text, images of a few steps, and diffusers' own pipeline."""
    from course_lib import zoo
    from course_lib.papers import latent_diffusion as paper
    from course_lib.pipelines.text_encoder import TextEncoder

    system = paper.LatentDiffusion.from_pipeline(zoo.load("mini-sd"))
    encoder = TextEncoder(system.text_encoder, system.tokenizer)
    text = system.encode_prompt(PROMPTS)
    x, t = normal(2, 16, 8, 8, seed=11), torch.tensor([20, 900])
    pipe = system.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe_images = pipe(
        PROMPTS[0], num_inference_steps=3, generator=seeded(4), output_type="np"
    ).images

    def generate(num_inference_steps: int, **kwargs: Any) -> Tensor:
        kwargs |= {"num_inference_steps": num_inference_steps, "generator": seeded(0)}
        return system.generate(PROMPTS, **kwargs)

    torch.manual_seed(0)
    return {
        "forward": paper.unet_denoiser(system.unet)(x, t, text),
        "text": text,
        "text of tokens": encoder.encode(encoder.tokenize(["", "a blue heart"])),
        "tokens": encoder.tokenize(PROMPTS),
        "picture": generate(4),
        "picture, rescaled guidance": generate(4, guidance_scale=7, guidance_rescale=0.7),
        "picture, negative prompt": generate(3, negative_prompt="a bus", eta=0.5),
        "picture, default steps": system.generate(PROMPTS[:1], latents=x[:1], generator=seeded(0)),
        "picture by diffusers' pipeline": pipe_images,
        "schedule": system.scheduler.alphas_cumprod,
        "new schedule": paper.build_scheduler().alphas_cumprod,
        "initialisation": magnitudes(paper.build_unet(4, 8, (32, 64), 16, 16)),
    }


@torch.no_grad()
def vdm() -> Arrays:
    """The video U-Net: forward with all inputs, sampling, given frames, longer clips."""
    from course_lib import zoo
    from course_lib.diffusion import cfg_model, sample, sample_noise
    from course_lib.papers import vdm as paper
    from course_lib.pipelines import frame_condition as conditions
    from course_lib.pipelines.text_encoder import TextEncoder
    from course_lib.pipelines.unet_adapter import temporal_guidance, unet_denoiser
    from course_lib.recipes import vdm as recipe

    unet, scheduler = zoo.load("vdm"), paper.build_scheduler()
    image_model = zoo.load("mini-sd")
    encoder = TextEncoder(image_model.text_encoder, image_model.tokenizer, token_embeddings=True)
    text, null_text = encoder(PROMPTS), encoder(["", ""])
    fps = torch.tensor([8.0, 16.0])
    cond, uncond = {"text": text, "fps": fps}, {"text": null_text, "fps": fps}
    model = unet_denoiser(unet)
    x, t = normal(2, 3, 6, 32, 32, seed=12), torch.tensor([50, 700])
    out = {
        "text": text,
        "forward": model(x, t, cond),
        "forward, text alone": model(x, t, {"text": text}),
    }
    out["forward, frame numbers"] = model(
        x, t, cond | {"frame_index": torch.tensor([[0, 1, 2, 4, 8, 15]] * 2)}
    )
    # Joint training: images appended, with texts of their own
    images = moving_discs(2, 2, 32, seed=13).transpose(1, 2)
    joint, joint_cond = paper.append_images(
        x, text, images, text.flip(0)[:, None].expand(-1, 2, -1, -1)
    )
    out["joint/clip"], out["joint/mask"] = joint, joint_cond["is_image"]
    out["joint/forward"] = model(joint, t, joint_cond | {"fps": fps})
    layer = unet.down_blocks[0][0].temporal_attn
    out["attention over time/weights"] = layer.weights(normal(1, 128, 4, 2, 2, seed=14))
    out["attention over time/alone"] = layer(
        normal(1, 128, 4, 2, 2), torch.eye(4, dtype=torch.bool)[None]
    )

    def sample_last(model: Callable, num_inference_steps: int = 4) -> Tensor:
        kwargs = {"num_inference_steps": num_inference_steps, "generator": seeded(1)}
        *_, last = sample(model, scheduler, noise, cond, **kwargs)
        return last.x

    noise, guided = sample_noise((2, 3, 8, 32, 32), seeded(2)), cfg_model(model, uncond, 3)
    out["sample/guidance by text"] = sample_last(guided)
    out["sample/guidance away from frames alone"] = sample_last(temporal_guidance(model, 2))
    video = moving_discs(2, 8, 32, seed=15)
    prefix = conditions.FrameCondition.prefix(video[:, :, :3], 8)
    masks = conditions.first_frames_mask(9, 4), conditions.every_nth_frame_mask(9, 4)
    out["masks"] = [mask.tolist() for mask in masks]
    replaced = conditions.replacement_method(guided, scheduler, prefix)
    out["sample/replacement"] = sample_last(replaced, 3)
    for name, kwargs in {"alone": {"reconstruction_weight": None}, "and reconstruction": {}}.items():
        conditioned = conditions.condition_on_frames(guided, scheduler, prefix, **kwargs)
        out[f"sample/replacement {name}"] = sample_last(conditioned, 3)
    keyframe_mask = conditions.every_nth_frame_mask(8, 4).expand(2, -1)
    keyframes = conditions.FrameCondition(video, keyframe_mask)
    interpolated = conditions.condition_on_frames(model, scheduler, keyframes, 1.0)
    out["sample/frames between"] = sample_last(interpolated, 3)
    downsample = conditions.downsample_operator(4)
    upsampled = conditions.reconstruction_guidance(
        model, scheduler, downsample(video), downsample, 3.0
    )
    out["sample/higher resolution"] = sample_last(upsampled, 3)
    kwargs = {"num_frames": 17, "num_inference_steps": 2, "generator": seeded(3)}
    out["extended"] = paper.extend_autoregressively(
        model,
        scheduler,
        video[:1, :, :6],
        {name: part[:1] for name, part in cond.items()},
        num_cond_frames=3,
        **kwargs,
    )
    out["drawn by the recipe"] = recipe.generate(
        unet, PROMPTS[:1], seeded(4), num_inference_steps=3
    )
    out["drawn by the recipe, longer"] = recipe.generate(
        unet, PROMPTS[:1], seeded(4), num_inference_steps=2, num_frames=20, fps=32
    )
    out["schedule"] = scheduler.alphas_cumprod
    out["schedule, not shifted"] = paper.build_scheduler("epsilon", 1, 100).alphas_cumprod
    torch.manual_seed(0)
    out["initialisation"] = magnitudes(paper.build_unet(16, (32, 64), 2))
    return out


@torch.no_grad()
def mini_video() -> Arrays:
    """The text-to-video model: forward with all options, and clips by every way of sampling."""
    from course_lib import zoo
    from course_lib.papers import video_ldm as paper
    from course_lib.pipelines.frame_condition import FrameCondition
    from course_lib.pipelines.unet_adapter import temporal_guidance, unet_denoiser

    pipe = zoo.load("mini-video")
    pipe.set_progress_bar_config(disable=True)
    unet = pipe.unet
    text = pipe.encode_prompt(PROMPTS)
    x, t = normal(2, 16, 5, 8, 8, seed=16), torch.tensor([100, 800])
    mask = torch.tensor([[True, False, False, False, False], [True, False, False, False, True]])
    given = FrameCondition(0.5 * normal(2, 16, 5, 8, 8, seed=17), mask)
    cond = {"text": text, "cond_channels": FrameCondition.none(x).channels()}
    model = unet_denoiser(unet)
    spatial_model = unet_denoiser(unet, temporal_scale=0)
    out = {
        "text": text,
        "given frames beside": given.channels(),
        "forward": model(x, t, cond),
        "forward, given frames": model(x, t, cond | {"cond_channels": given.channels()}),
        "forward, frame index": model(
            x, t, cond | {"frame_index": torch.arange(5).expand(2, -1) / 4}
        ),
        "forward, half of time": unet_denoiser(unet, temporal_scale=0.5)(x, t, cond),
        "forward, image model": spatial_model(x, t, cond),
        "forward, away from frames alone": temporal_guidance(model, 2, spatial_model)(x, t, cond),
    }
    is_image = torch.tensor([[False, False, False, True, True]] * 2)
    out["forward, joint training"] = model(x, t, cond | {"is_image": is_image})
    frame_text = text[:, None].expand(-1, 5, -1, -1)
    out["forward, text of each frame"] = model(
        x, t, cond | {"text": frame_text, "is_image": is_image}
    )
    out |= _sampled_by_pipeline(pipe, given)
    out["schedule"] = pipe.scheduler.alphas_cumprod
    out["schedule of the image model, moved"] = paper.build_scheduler(
        zoo.load("mini-sd").scheduler
    ).alphas_cumprod
    with tempfile.TemporaryDirectory() as folder:
        zoo.save_temporal_layers(unet, Path(folder))
        loaded = zoo.load_temporal_layers(unet.spatial, Path(folder))
        out["stored and loaded"] = unet_denoiser(loaded)(x, t, cond)
    for has_text, has_frames in ((True, False), (False, True), (False, False)):
        torch.manual_seed(0)
        new = paper.build_unet(
            unet.spatial, temporal_cross_attention=has_text, frame_conditioning=has_frames
        )
        name = f"initialisation/reads text {has_text}, given frames {has_frames}"
        out[name] = magnitudes(new.temporal)
    return out


def _sampled_by_pipeline(pipe: Any, given: Any) -> Arrays:
    """Clips by every way of sampling; `given` is a FrameCondition of two clips."""
    from course_lib.pipelines.frame_condition import FrameCondition

    prompt, out = PROMPTS[:1], {}
    kwargs = {"num_inference_steps": 4, "output_type": "pt"}
    out["call"] = pipe(prompt[0], generator=seeded(0), **kwargs).frames
    short = {
        "num_inference_steps": 3,
        "num_frames": 4,
        "generator": seeded(1),
        "output_type": "latent",
    }
    out["call, latents"] = pipe(
        PROMPTS, height=48, width=64, negative_prompt="a bus", **short
    ).frames
    out["call, away from frames alone"] = pipe(prompt, temporal_guidance_scale=2, **short).frames
    out["call, default steps"] = pipe(
        prompt, num_frames=2, generator=seeded(2), output_type="np"
    ).frames

    def generate(num_frames: int, **kwargs: Any) -> Tensor:
        kwargs |= {"num_frames": num_frames, "generator": seeded(0)}
        return pipe.generate(prompt, num_inference_steps=4, **kwargs)

    out["draw"] = generate(16)
    out["draw, away from frames alone"] = generate(8, temporal_guidance_scale=2)
    condition = FrameCondition(given.frames[:1], given.mask[1:])
    out["latents, known frames"] = pipe.sample_latents(
        prompt, num_inference_steps=4, generator=seeded(3), frame_condition=condition
    )
    options = {"temporal_scale": 0.8, "guidance_rescale": 0.5}
    out["draw, known frames"] = pipe.generate(
        prompt,
        num_inference_steps=3,
        generator=seeded(3),
        frame_condition=condition,
        frame_index=torch.arange(5)[None] / 2,
        **options,
    )
    keyframes = normal(1, 16, 4, 8, 8, seed=18)
    windows = {"factor": 2, "window_size": 2, "keyframe_spacing": 4, "guidance_scale": 3}
    for name, kwargs in {"": {}, ", windows": windows}.items():
        out[f"between key frames{name}"] = pipe.interpolate_keyframes(
            prompt, keyframes, num_inference_steps=2, generator=seeded(4), **kwargs
        )
    lengths = {"": {"num_frames": 7, "num_cond_frames": 2}, ", defaults": {"num_frames": 6}}
    for name, kwargs in lengths.items():
        out[f"onwards{name}"] = pipe.extend_autoregressively(
            prompt, given.frames[:1], num_inference_steps=2, generator=seeded(5), **kwargs
        )
    return out


# Areas: diffusion


def _schedulers() -> dict[str, Any]:
    from diffusers import DDIMScheduler

    common = {
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": False,
        "num_train_timesteps": 200,
    }
    return {
        prediction_type: DDIMScheduler(prediction_type=prediction_type, **common)
        for prediction_type in ("epsilon", "sample", "v_prediction")
    }


@torch.no_grad()
def objective() -> Arrays:
    """Levels, targets, conversions, weights, noise, training batches."""
    from course_lib import diffusion as d

    out, x0, eps = {}, moving_discs(4, 4, 8, seed=20), normal(4, 3, 4, 8, 8, seed=21)
    t = torch.tensor([0, 60, 150, 199])
    for kind, scheduler in _schedulers().items():
        level = d.alpha_sigma_at(scheduler, t)
        x_t = d.add_noise(scheduler, x0, eps, t)
        target = d.prediction_target(scheduler, x0, eps, t)
        pred = d.convert_prediction(target, x_t, level, kind)
        arrays = {"noisy": x_t, "target": target, "clean again": pred.x0, "noise again": pred.eps}
        arrays |= {"velocity again": pred.v, "of": pred.as_type(kind)}
        arrays |= {"signal": level.alpha, "noise": level.sigma, "snr": d.snr(scheduler, t)}
        fractional = torch.tensor([3.25, 120.5])
        arrays |= {"between timesteps": d.alpha_sigma_at(scheduler, fractional).alpha}
        arrays |= {
            "min-SNR weights": d.min_snr_weights(scheduler, t),
            "gamma 1": d.min_snr_weights(scheduler, t, 1),
        }
        options = {
            "plain": {},
            "min-SNR": {"snr_gamma": 5},
            "offset": {"noise_offset": 0.1},
            "shared": {"frame_correlation": 0.4},
            "all": {"snr_gamma": 2, "noise_offset": 0.2, "frame_correlation": 1.0},
            "given timesteps": {"timesteps": t},
        }
        for name, kwargs in options.items():
            batch = d.make_noisy_batch(scheduler, x0, seeded(5), **kwargs)
            fields = {"noisy": batch.x_t, "timesteps": batch.t}
            fields |= {"target": batch.target, "weights": batch.weight}
            fields |= {"loss": d.denoising_loss(0.5 * batch.target + 0.1, batch)}
            arrays |= prefixed(f"example, {name}", fields)
        arrays["predicts"] = checksum([d.get_prediction_type(scheduler)])
        out |= prefixed(kind, arrays)
        if kind != "epsilon":
            rescaled = d.rescale_to_zero_terminal_snr(scheduler)
            out[f"{kind}/zero terminal SNR"] = rescaled.alphas_cumprod
            out[f"{kind}/ends without signal"] = [
                d.has_zero_terminal_snr(one) for one in (scheduler, rescaled)
            ]
            batch = d.make_noisy_batch(rescaled, x0, seeded(6), timesteps=t)
            out[f"{kind}/zero terminal SNR, example"] = batch.x_t
    for correlation in (0, 0.3, 1):
        out[f"initial noise/shared {correlation}"] = d.sample_noise(
            (2, 3, 4, 5, 5), seeded(7), correlation
        )
    out["initial noise/vectors"] = d.sample_noise((5, 7), seeded(7))
    out["offset noise"] = d.offset_noise(eps, 0.3, seeded(8))
    return out


@torch.no_grad()
def guidance() -> Arrays:
    """Dropping, mixing, rescaling and thresholding."""
    from course_lib import diffusion as d

    first, second = normal(2, 3, 4, 5, 5, seed=22), normal(2, 3, 4, 5, 5, seed=23)
    scales = (0, 1, 3.5)
    out = {
        f"mixed/scale {s}, rescale {r}": d.classifier_free_guidance(first, second, s, r)
        for s in scales
        for r in (0, 0.7, 1)
    }

    def model(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        text = cond if isinstance(cond, Tensor) else cond["text"]
        return x * text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1) + 0.01 * t.view(-1, 1, 1, 1, 1)

    text, t = normal(2, 4, 6, seed=24), torch.tensor([3, 90])
    out["guided"] = d.cfg_model(model, torch.zeros(1, 4, 6), 4, 0.5)(first, t, text)
    out["guided, mapping"] = d.cfg_model(model, {"text": torch.ones(1, 4, 6)}, 4)(
        first, t, {"text": text}
    )
    switched = d.switch_at(model, lambda x, t, cond: -x, 50)
    out["in turn"] = [
        switched(first, torch.tensor(timestep).expand(2), text).mean() for timestep in (49, 50, 51)
    ]
    for probability in (0, 0.4, 1):
        dropped = d.drop_conditioning(normal(9, 2, 3), torch.zeros(2, 3), probability, seeded(9))
        out[f"dropped, probability {probability}"] = dropped
    large = 2 * first
    out["dynamic threshold"] = d.dynamic_thresholding(large)
    out["dynamic threshold, 0.9"] = d.dynamic_thresholding(large, 0.9, 1.5)
    return out


@torch.no_grad()
def ideal() -> Arrays:
    """Denoisers in closed form."""
    from course_lib import diffusion as d

    scheduler = _schedulers()["epsilon"]
    means = moving_discs(3, 2, 4, seed=25)
    x, t = normal(4, 3, 2, 4, 4, seed=26), torch.tensor([20, 80, 140, 190])
    level = d.alpha_sigma_at(scheduler, t)
    stds, mixture_weights = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    out = {}
    mixtures = {
        "mixture": d.GaussianMixture(means, stds, mixture_weights),
        "finite data": d.empirical_distribution(means),
        "gaussian": d.isotropic_gaussian(means[0], 0.4),
    }
    for name, mixture in mixtures.items():
        out[f"{name}/denoised"] = mixture.denoise(x, level)
        out[f"{name}/score"] = mixture.score(x, level)
        out[f"{name}/log density"] = mixture.log_density(x, level)
        out[f"{name}/drawn"] = mixture.sample(6, seeded(10))
        for kind, other in _schedulers().items():
            out[f"{name}/predicts {kind}"] = d.ideal_denoiser(mixture, other)(x, t, None)
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    out["mixture/denoised, told"] = mixtures["mixture"].denoise(x, level, weights)
    end = d.AlphaSigma(level.alpha[:1], level.sigma[:1])
    out["gaussian/flow"] = d.probability_flow_solution(
        mixtures["gaussian"], x, d.alpha_sigma_at(scheduler, torch.tensor([199])), end
    )
    out["gaussian/flow to clean"] = d.probability_flow_solution(
        mixtures["gaussian"], x, level, d.CLEAN_LEVEL
    )
    return out


@torch.no_grad()
def samplers() -> Arrays:
    """Every way of sampling, with a model in closed form."""
    import diffusers

    from course_lib import diffusion as d

    means = moving_discs(3, 2, 4, seed=27)
    mixture = d.GaussianMixture(means, torch.tensor([0.1, 0.2, 0.15]))
    noise = d.sample_noise((3, 3, 2, 4, 4), seeded(11))
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])
    common = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200}
    out: Arrays = {}

    def run(sampler: Callable, name: str, scheduler: Any, **kwargs: Any) -> None:
        model = d.cfg_model(d.ideal_denoiser(mixture, scheduler), torch.ones(1, 3), 1.5)
        kwargs |= {"num_inference_steps": 7, "generator": seeded(1)}
        steps = list(sampler(model, scheduler, noise, weights, **kwargs))
        out[f"{name}/sample"] = steps[-1].x
        out[f"{name}/estimates"] = torch.stack([step.x0 for step in steps])
        out[f"{name}/timesteps"] = [float(step.t) for step in steps]

    def run_cosine(
        sampler: Callable,
        name: str,
        scheduler_class: Any,
        config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        scheduler = scheduler_class(**common, **{"clip_sample": False} | dict(config or {}))
        run(sampler, name, scheduler, **kwargs)

    spacings = ("leading", "linspace", "trailing")
    kinds = ("epsilon", "sample", "v_prediction")
    for spacing in spacings:
        for kind in kinds:
            config = {"timestep_spacing": spacing, "prediction_type": kind}
            run_cosine(d.ddim, f"ddim/{spacing}, {kind}", diffusers.DDIMScheduler, config)
            run_cosine(d.ddpm, f"ddpm/{spacing}, {kind}", diffusers.DDPMScheduler, config)
    limits = {
        "clipped": {"clip_sample": True},
        "thresholded": {"thresholding": True, "sample_max_value": 1.5},
    }
    for name, config in limits.items():
        for eta in (0, 0.5, 1):
            run_cosine(d.ddim, f"ddim/eta {eta}, {name}", diffusers.DDIMScheduler, config, eta=eta)
        run_cosine(d.ddpm, f"ddpm/{name}", diffusers.DDPMScheduler, config)
        run_cosine(d.sample, f"diffusers' DDIM/{name}", diffusers.DDIMScheduler, config)
    ddim_options = {
        "eta 0.5": {"eta": 0.5},
        "eta 0.5, shared": {"eta": 0.5, "frame_correlation": 0.5},
        "to timestep 0": {"config": {"set_alpha_to_one": False}},
        "zero terminal SNR": {
            "config": {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            }
        },
    }
    for name, kwargs in ddim_options.items():
        run_cosine(d.ddim, f"ddim/{name}", diffusers.DDIMScheduler, **kwargs)
    run_cosine(d.ddpm, "ddpm/shared", diffusers.DDPMScheduler, frame_correlation=0.5)
    config = {"variance_type": "fixed_large"}
    run_cosine(d.ddpm, "ddpm/fixed large", diffusers.DDPMScheduler, config)
    run_cosine(d.sample, "diffusers' DDIM/eta 0.5", diffusers.DDIMScheduler, eta=0.5)
    run_cosine(d.sample, "diffusers' DDPM/plain", diffusers.DDPMScheduler)
    run_cosine(d.sample, "diffusers' DDIM/plain", diffusers.DDIMScheduler)
    # These have no clipping
    others = {
        "Euler": diffusers.EulerDiscreteScheduler,
        "Euler, ancestral": diffusers.EulerAncestralDiscreteScheduler,
        "Heun": diffusers.HeunDiscreteScheduler,
        "DPM-Solver++": diffusers.DPMSolverMultistepScheduler,
        "UniPC": diffusers.UniPCMultistepScheduler,
    }
    betas = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.004,
        "beta_end": 0.06,
        "num_train_timesteps": 200,
    }
    for name, scheduler_class in others.items():
        for kind in ("epsilon", "v_prediction"):
            run(d.sample, f"{name}/{kind}", scheduler_class(prediction_type=kind, **betas))
    return out


# Areas: networks


def _image_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return fill(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=(2, 4),
        ),
        2,
    )


@torch.no_grad()
def inflation() -> Arrays:
    """Every style of temporal layers in an image U-Net, and the same in diffusers' classes."""
    from course_lib.nn import convert_diffusers as convert
    from course_lib.nn.inflate import inflate

    image_unet = _image_unet()
    x, t = normal(2, 4, 5, 8, 8, seed=30), torch.tensor([5, 600])
    frame_conditioning = {"cond_channels": 5, "head_dim": 16}
    options = {"num_heads": 4, "num_frames": 8, "use_mid_block": False, "num_layers": 2}
    styles = {
        "Align your Latents": ("video-ldm", {}),
        "Align your Latents, text": ("video-ldm", {"temporal_cross_attention_dim": 24}),
        "Align your Latents, given frames": ("video-ldm", frame_conditioning),
        "ModelScope": ("modelscope", {}),
        "ModelScope, heads": ("modelscope", {"head_dim": 8}),
        "AnimateDiff": ("animatediff", {}),
        "AnimateDiff, options": ("animatediff", options),
        "LaVie": ("lavie", {}),
    }
    out, unets = {}, {}
    for name, (style, style_kwargs) in styles.items():
        torch.manual_seed(0)
        unets[name] = inflate(image_unet, style, **style_kwargs)
        out |= prefixed(name, _inflated_arrays(unets[name], x, t))
    text = normal(2, 6, 16, seed=31)
    frame_text = text.repeat_interleave(5, dim=0)
    animatediff = unets["AnimateDiff"]
    out["diffusers/motion model"] = convert.to_motion_model(animatediff)(x, t, frame_text).sample
    adapter = convert.to_motion_adapter(animatediff)
    out["diffusers/adapter"] = magnitudes(adapter)
    adapted = convert.inflate_with_motion_adapter(image_unet, adapter).eval()
    out["diffusers/from adapter"] = adapted(x, t, text).sample
    other = inflate(image_unet, "animatediff").eval()
    convert.load_motion_adapter(other, adapter)
    out["diffusers/adapter loaded"] = other(x, t, text).sample
    modelscope = inflate(_even_unet(), "modelscope", head_dim=16).eval()
    # As one module: parameters are numbered across both
    fill(nn.ModuleList([modelscope.spatial, *modelscope.temporal_layers.values()]), 4)
    unet3d = convert.to_unet3d(modelscope)
    out["diffusers/3D U-Net"] = unet3d(x, t, text).sample
    out["diffusers/from 3D U-Net"] = convert.from_unet3d(unet3d)(x, t, text).sample
    return out


def _inflated_arrays(unet: Any, x: Tensor, t: Tensor) -> Arrays:
    """Predictions and gradients of one inflated U-Net; it is filled and left frozen."""
    style, style_kwargs = unet.config.style, unet.config.style_kwargs or {}
    is_image = torch.tensor([[False, False, False, True, True]] * 2)
    text = normal(2, 6, unet.text_dim, seed=31)
    frame_text = normal(2, 5, 6, unet.text_dim, seed=32)
    cond = {}
    if style_kwargs.get("cond_channels"):
        cond = {"cond_channels": normal(2, 5, 5, 8, 8, seed=33)}

    def predict(text: Tensor, t: Tensor | int = t, **kwargs: Any) -> Tensor:
        return unet(x, t, text, **cond, **kwargs).sample

    arrays = {"at first": predict(text), "initialisation": magnitudes(unet.temporal)}
    fill(nn.ModuleList(unet.temporal_layers.values()), 3)
    arrays |= {
        "forward": predict(text),
        "forward, one timestep": predict(text, 300),
        "half of time": predict(text, temporal_scale=0.5),
        "image model": predict(text, temporal_scale=0),
        "joint training": predict(text, is_image=is_image),
        "joint training, text of each frame": predict(frame_text, is_image=is_image),
        "text of each frame": predict(frame_text),
    }
    if style in ("video-ldm", "lavie"):
        index = torch.tensor([[0, 0.5, 1, 4, 9], [0, 1, 2, 3, 4]])
        arrays["frame index"] = predict(text, frame_index=index)
        arrays["frame index, joint training"] = predict(text, frame_index=index, is_image=is_image)
    unet.temporal.requires_grad_(True)
    for name in ("kept", "computed again"):
        if name == "computed again":
            unet.enable_gradient_checkpointing()
            unet.train(style != "modelscope")  # its layers have dropout
        with torch.enable_grad():
            predict(text).square().mean().backward()
        gradients = [p.grad for p in unet.temporal.parameters() if p.grad is not None]
        arrays[f"gradients, {name}"] = sorted(
            gradient.double().norm().item() for gradient in gradients
        )
        unet.zero_grad()
    unet.eval().requires_grad_(False)
    return arrays


def _even_unet() -> nn.Module:
    """Heads of one dimension everywhere, as diffusers' UNet3DConditionModel has them."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
    ).eval()


@torch.no_grad()
def video_unet() -> Arrays:
    """The factorised U-Net with every option."""
    from course_lib.nn.unet import VideoUNet

    x, t = normal(2, 3, 5, 16, 16, seed=40), torch.tensor([5, 600])
    text, frame_text = normal(2, 6, 12, seed=41), normal(2, 5, 6, 12, seed=42)
    fps, noise_aug_level = torch.tensor([8.0, 16.0]), torch.tensor([1.0, 30.0])
    cond = normal(2, 2, 5, 16, 16, seed=43)
    index = torch.tensor([[0, 1, 2, 3, 9], [4, 5, 6, 7, 8]])
    is_image = torch.tensor([[False, False, False, True, True]] * 2)
    small = {"block_out_channels": (16, 32), "attention_levels": (False, True), "head_dim": 16}
    joint = {"is_image": is_image}
    with_text = {"cross_attention_dim": 12}
    two_layers = {"attention_levels": (True, True), "layers_per_block": 2}
    nets = {
        "plain": ({}, {}),
        "text": (with_text, {"encoder_hidden_states": text}),
        "text of each frame": (with_text, {"encoder_hidden_states": frame_text} | joint),
        "attention everywhere, two layers": (two_layers, {}),
        "heads": ({"head_dim": 8}, {}),
        "sinusoidal": ({"temporal_positions": "sinusoidal"}, {}),
        "rotary": ({"temporal_positions": "rotary"}, {}),
        "no positions": ({"temporal_positions": "none"}, {}),
        "patches": ({"patch_size": 2}, {}),
        "patches, detail": ({"patch_size": 4, "refiner_channels": 8}, {}),
        "frame numbers": ({"frame_embedding": True}, {}),
        "frame numbers, given": ({"frame_embedding": True}, {"frame_index": index} | joint),
        "places": ({"coord_embedding": True}, {}),
        "frame rate": ({"fps_embedding": True}, {"fps": fps}),
        "noise level": ({"noise_aug_embedding": True}, {"noise_aug_level": noise_aug_level}),
        "extra channels": ({"cond_channels": 2, "out_channels": 6}, {"cond_channels": cond}),
        "pictures alone": ({}, joint),
    }
    everything = {
        "cross_attention_dim": 12,
        "patch_size": 2,
        "refiner_channels": 4,
        "frame_embedding": True,
        "coord_embedding": True,
        "fps_embedding": True,
        "noise_aug_embedding": True,
        "cond_channels": 2,
    }
    inputs = {
        "encoder_hidden_states": frame_text,
        "fps": fps,
        "noise_aug_level": torch.tensor([0.5, 2.0]),
        "cond_channels": cond,
        "frame_index": index,
    }
    nets["everything"] = (everything, inputs | joint)
    out = {}
    for name, (config, kwargs) in nets.items():
        torch.manual_seed(0)
        net = VideoUNet(**small | config)
        out[f"{name}/initialisation"] = magnitudes(net)
        out[f"{name}/at first"] = net.eval()(x, t, **kwargs).sample
        fill(net, 5)
        out[f"{name}/forward"] = net(x, t, **kwargs).sample
    net = fill(VideoUNet(**small), 5)
    out["odd size"] = net(x[..., :15, :13], t).sample
    out["one frame"] = net(x[:, :, :1], t).sample
    torch.manual_seed(0)
    out["defaults"] = fill(VideoUNet(), 6)(x[:1, :, :2], t[:1]).sample
    net.requires_grad_(True).train()
    net.enable_gradient_checkpointing()
    with torch.enable_grad():
        net(x, t).sample.square().mean().backward()
    out["gradients, computed again"] = sorted(
        parameter.grad.double().norm().item() for parameter in net.parameters()
    )
    return out


@torch.no_grad()
def layers() -> Arrays:
    """Single layers: attention, positions, temporal layers, texture, their cost."""
    from course_lib.nn.profiling import conv_flops, count_flops, count_parameters, receptive_field
    from course_lib.nn.texture import laplacian_band_std

    out = _attention_arrays() | _temporal_arrays()
    out["texture"] = laplacian_band_std(moving_discs(2, 3, 32))
    net = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 2 * 16, 5))
    out["cost/flops"] = [
        count_flops(net, normal(1, 3, 2, 4, 4)),
        conv_flops((3, 5), (3, 3, 3), (2, 4, 4), 2),
    ]
    out["cost/parameters"] = [count_parameters(net)]
    out["cost/receptive field"] = [
        receptive_field([3, 3, 3]),
        receptive_field([3, 5], [2, 1], [1, 2]),
    ]
    return out


def _attention_arrays() -> Arrays:
    """Attention, masks, positions and the three attention layers."""
    from course_lib.nn import attention as a
    from course_lib.nn import positions as p

    video, text = normal(2, 32, 5, 4, 6, seed=50), normal(2, 7, 12, seed=51)
    frame_text = normal(2, 5, 7, 12, seed=52)
    index = torch.tensor([[0, 0.5, 1, 4, 9], [0, 1, 2, 3, 4]])
    is_image = torch.tensor([[False, False, False, True, True], [False, True, False, False, False]])
    mask, out = a.joint_training_mask(is_image), {}
    q, k, v = (normal(2, 3, 4, n, 8, seed=53 + n) for n in (5, 6, 6))
    out |= {
        "attention/attend": a.attention(q, k, v),
        "attention/weights": a.attention_weights(q, k),
    }
    out["attention/attend, bias"] = a.attention(q, k, v, normal(4, 5, 6))
    tokens = normal(1, 2, 80, 8, seed=54)
    out["attention/attend, long"] = a.attention(tokens, tokens, tokens)
    out |= {
        "attention/apart": mask,
        "attention/bias": a.mask_to_bias(mask, torch.float32).clamp(min=-1),
    }
    out["positions/angles"] = p.rotary_angles(5, 8, video)
    out["positions/sinusoids"] = p.sinusoidal_embedding(5, 8, video)
    out["positions/sinusoids, given"] = p.sinusoidal_embedding(index, 8, video)
    out["positions/rotary"] = p.apply_rotary_emb(q)
    out["positions/rotary, given"] = p.apply_rotary_emb(q[:, 0], index[:, None])
    out["positions/places"] = p.coord_features(3, 5, video)
    out["positions/relative"] = fill(p.RelativePositionBias(2, 3))(6)
    out["space"] = fill(a.SpatialAttention(32, 16))(video)
    out["text"] = fill(a.CrossAttention(32, 12, 16))(video, text)
    out["text of each frame"] = fill(a.CrossAttention(32, 12, 16))(
        video, frame_text, normal(2, 5, 24, 32)
    )
    for positions in p.POSITIONS:
        layer = fill(a.TemporalAttention(32, 16, positions, 4))
        kwargs = {"frame_index": index} if positions in p.INDEXED_POSITIONS else {}
        out[f"time/{positions}"], out[f"time/{positions}, masked"] = (
            layer(video),
            layer(video, mask),
        )
        out[f"time/{positions}, weights"] = layer.weights(video, mask, **kwargs)
        out[f"time/{positions}, index"] = layer(video, **kwargs)
    return out


def _temporal_arrays() -> Arrays:
    """The temporal layers of inflated networks."""
    from course_lib.nn import temporal

    video, text = normal(2, 32, 5, 4, 6, seed=50), normal(2, 7, 12, seed=51)
    frame_text, temb = normal(2, 5, 7, 12, seed=52), normal(2, 5, 24, seed=55)
    index = torch.tensor([[0, 0.5, 1, 4, 9], [0, 1, 2, 3, 4]])
    text_block = temporal.TemporalTextBlock(32, 16, cross_attention_dim=12)
    blend = temporal.AlphaBlend(temporal.TemporalResBlock(32, 24))
    cond = normal(2, 3, 5, 4, 6)
    temporal_layers = {
        "ModelScope's convolutions": (temporal.TemporalConvBlock(32, 8), {}),
        "transformer": (temporal.TemporalTransformer(32, 4, 8, 8), {}),
        "transformer, positions": (temporal.TemporalTransformer(32, 2, 8, 8, 6, 2), {}),
        "residual": (temporal.TemporalResBlock(32, 24), {"temb": temb}),
        "text": (temporal.TextCrossAttentionBlock(32, 12, 16), {"text": text}),
        "time and text": (text_block, {"text": frame_text, "frame_index": index}),
        "time": (temporal.TemporalTextBlock(32, 16, "rotary"), {}),
        "given frames": (temporal.FrameConditioningConv(3, 32), {"cond_channels": cond}),
        "blended": (blend, {"temb": temb}),
    }
    out = {}
    for name, (layer, kwargs) in temporal_layers.items():
        out[f"over time/{name}"] = fill(layer)(video, **kwargs)
        first_two = {key: _first_two_frames(key, value) for key, value in kwargs.items()}
        out[f"over time/{name}, two frames"] = layer(video[:, :, :2], **first_two)
    return out


def _first_two_frames(name: str, value: Tensor) -> Tensor:
    """An input of a temporal layer for the first two frames; a text per clip stays as it is."""
    if name == "text" and value.ndim == 3:
        return value
    return value[:, :, :2] if value.ndim == 5 else value[:, :2]


@torch.no_grad()
def convolution() -> Arrays:
    """Every convolution for video, and inflated kernels."""
    from course_lib.nn import convolution as c

    video = normal(2, 6, 7, 9, 8, seed=60)
    conv2d = fill(nn.Conv2d(6, 4, 3, padding=1), 7)
    torch.manual_seed(0)
    nets = {
        "2D per frame": c.FrameConv2d(6, 4, 3),
        "2D per frame, stride": c.FrameConv2d(6, 4, 5, stride=2, bias=False),
        "3D": c.Conv3d(6, 4),
        "3D, options": c.Conv3d(6, 4, (3, 5, 3), stride=(2, 1, 2), dilation=(1, 1, 2), bias=False),
        "3D, padding": c.Conv3d(6, 4, (2, 3, 3), padding=(1, 0, 0)),
        "(2+1)D": c.R2Plus1DConv(6, 4),
        "(2+1)D, options": c.R2Plus1DConv(
            6, 8, 5, 3, stride=(1, 2), midplanes=8, norm=c.group_norm, bias=True
        ),
        "separable": c.SeparableConv3d(6, 4),
        "pseudo-3D": c.Pseudo3DConv(6, 4),
        "pseudo-3D, stride": c.Pseudo3DConv(6, 4, 3, 5, stride=2),
        "causal": c.CausalConv3d(6, 4),
        "causal, zeros": c.CausalConv3d(6, 4, (2, 3, 1), pad_mode="zeros", bias=False),
        "causal, strides": c.CausalConv3d(6, 4, 3, stride=2, dilation=2),
    }
    out = {}
    for name, net in nets.items():
        out[f"{name}, initialisation"] = magnitudes(net)
        out[name] = fill(net, 8)(video)
    out["pseudo-3D, from 2D"] = c.Pseudo3DConv.from_conv2d(conv2d)(video)
    out["pseudo-3D, at first"] = fill(c.Pseudo3DConv(6, 4).spatial, 8)(video)
    chunks, cache = [], None
    for chunk in video.split(3, dim=2):
        result, cache = nets["causal"].forward_chunk(chunk, cache)
        chunks.append(result)
    out["causal, by chunks"], out["causal, cache"] = torch.cat(chunks, dim=2), cache
    for mode, kernel_t in {"center": 3, "mean": 4, "causal": 4}.items():
        out[f"inflated kernel, {mode}"] = c.inflate_kernel(conv2d.weight, kernel_t, mode)
    out["inflated kernel, default"] = c.inflate_kernel(conv2d.weight, 5)
    out["middle width"] = [c.r2plus1d_midplanes(6, 4), c.r2plus1d_midplanes(64, 128, 5, 3)]
    out["output length"] = [c.output_length(17, 3, 2, 1, 2), c.output_length(9, 3)]
    out["groups"] = [c.group_norm(channels).num_groups for channels in (4, 12, 24)]
    return out


@torch.no_grad()
def video_resnet() -> Arrays:
    """Every kind of video classifier."""
    from course_lib.nn.classifier import VideoClassifier
    from course_lib.nn.convolution import group_norm
    from course_lib.nn.video_resnet import video_resnet as build

    video, out = moving_discs(2, 8, 32, seed=61), {}
    channels = (8, 8, 16, 16)
    kinds = {kind: kind for kind in ("f-r2d", "r2d", "mc3", "rmc3", "r3d", "r2plus1d")}
    kinds["lean"] = "r2plus1d_narrow"
    for name, kind in kinds.items():
        torch.manual_seed(0)
        kwargs = {"channels": channels, "num_frames": 8 if kind == "r2d" else None}
        net = build(kind, 5, **kwargs)
        out[f"{name}/initialisation"] = magnitudes(net)
        fill(net, 9)
        out[f"{name}/logits"], out[f"{name}/features"] = net(video), net.features(video)
        options = {
            "norm": group_norm,
            "blocks_per_stage": (1, 2, 1, 1),
            "stem_kernel": 5,
            "stem_stride": (2, 2),
        }
        out[f"{name}/options"] = fill(build(kind, 5, **kwargs, **options), 9)(video)
    torch.manual_seed(0)
    heads = {"motion": 3, "subject": 4}
    net = VideoClassifier("r2plus1d_narrow", heads, channels, size=32, texture_weight=2.0)
    out["classifier/initialisation"] = magnitudes(net)
    net.temperature("motion").fill_(2)
    fill(net, 10)
    for name, clips in {"": video, ", resized": moving_discs(2, 4, 48)}.items():
        logits = net(clips)
        out |= {f"classifier/{head}{name}": logits[head] for head in ("motion", "subject")}
        out[f"classifier/features{name}"] = net.features(clips)
    return out


# Areas: metrics


def _score_values(score: Any) -> list[float]:
    """Value, count and interval of a score, or of all in a dict, in its order."""
    if isinstance(score, Mapping):
        return [number for part in score.values() for number in _score_values(part)]
    return [score.value, score.n, *(score.interval or ())]


@torch.no_grad()
def metrics() -> Arrays:
    """Distances between distributions, and metrics of pixels."""
    from course_lib import metrics as m

    video, other = moving_discs(4, 8, 32, seed=70), moving_discs(4, 8, 32, seed=71)
    near = (video + 0.1 * normal(4, 3, 8, 32, 32, seed=72)).clamp(-1, 1)
    real, fake = normal(80, 6, seed=73), 1.2 * normal(70, 6, seed=74) + 0.3
    out: Arrays = {
        "psnr": m.psnr(near, video),
        "ssim": m.ssim(near, video),
        "ssim map": m.ssim_map(near[:, :, 0], video[:, :, 0]),
        "perceptual distance": m.perceptual_distance(
            [near[:, :, 0]], [video[:, :, 0]], [torch.tensor([1.0, 2, 3])]
        ),
        "frechet": [
            m.frechet_distance(real, fake),
            m.frechet_distance(real, fake, 0),
            m.frechet_distance(real[:5], fake[:4]),
        ],
        "frechet from moments": m.frechet_from_moments(
            real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov()
        ),
        "kid": [
            m.kernel_distance(real, fake),
            m.kernel_distance(real, fake, degree=2, coef=0, unbiased=False),
        ],
        "kid, subsets": list(m.kernel_distance_subsets(real, fake, num_subsets=6, subset_size=20)),
        "precision and recall": [
            *m.precision_recall(real, fake),
            *m.precision_recall(real, fake, 1),
        ],
        "inception score": [
            *m.inception_score(3 * real),
            *m.inception_score(3 * real, num_splits=4, seed=1),
        ],
        "area under ROC": _score_values(m.auroc(real[:, 0], real[:, 1] > 0)),
        "mean score": _score_values(m.mean_score("x", real[:, 0])),
        "share score": _score_values(m.proportion_score("x", 7, 20)),
    }
    calibration = [
        m.expected_calibration_error(real.softmax(1), torch.arange(80) % 6, **kwargs)
        for kwargs in ({}, {"bins": 4})
    ]
    out["calibration error"] = [value for score in calibration for value in _score_values(score)]
    limit = m.frechet_infinity(real, fake)
    out["frechet, infinitely many"] = [
        limit.value,
        *limit.interval,
        limit.bias,
        *limit.splits,
        *limit.distances,
    ]
    pairs = {"psnr": m.PSNR(), "psnr, cap": m.PSNR(20), "ssim": m.SSIM()}
    pairs["perceptual"] = m.PerceptualDistance(lambda images: [images, images[:, :, ::2]], "net")
    for name, metric in pairs.items():
        metric.update(near, video)
        out[f"metric/{name}"] = _score_values(metric.compute())
    out["consistency"] = list(m.frame_consistency(normal(3, 5, 6, seed=77)).values())
    return out | _feature_metrics(video, other)


def _feature_metrics(video: Tensor, other: Tensor) -> Arrays:
    """Metrics on features of a net; here the mean and standard deviation of each channel."""
    from course_lib import metrics as m

    def net(clips: Tensor) -> Tensor:
        return torch.cat([clips.mean(dim=(2, 3, 4)), clips.std(dim=(2, 3, 4))], dim=1)

    def image_net(images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)

    out: Arrays = {"extracted": m.extract_features(net, video)}
    out["frame features"] = m.extract_features(m.frame_features(image_net), video)
    out["mean frame features"] = m.extract_features(m.mean_frame_features(image_net), video)
    real, generated = moving_discs(12, 3, 16, seed=75), moving_discs(9, 3, 16, seed=76)
    for name, metric_class in {
        "frechet distance": m.FrechetDistance,
        "kernel distance": m.KernelDistance,
        "precision and recall": m.PrecisionRecall,
        "all distances": m.DistributionScores,
    }.items():
        metric = metric_class(net, "net")
        for batch in real.split(5):
            metric.update(batch, real=True)
        metric.update(generated, real=False)
        out[f"metric/{name}"] = _score_values(metric.compute())
    frechet = m.FrechetDistance(net, "net", ddof=0)
    frechet.update(real, real=True)
    frechet.update(generated, real=False)
    out["metric/frechet distance, ddof 0"] = _score_values(frechet.compute())
    inception = m.InceptionScore(net, "net", num_splits=2)
    inception.update(real)
    out["metric/inception score"] = _score_values(inception.compute())
    consistency = m.FrameConsistency(image_net, "net")
    consistency.update(other)
    out["metric/consistency"] = _score_values(consistency.compute())
    return out


@torch.no_grad()
def motion_metrics() -> Arrays:
    """Optical flow, and the metrics that use it: motion, flicker, trajectories."""
    from torchvision.models.optical_flow import raft_small

    from course_lib import metrics as m

    video = moving_discs(3, 6, 32, seed=80)
    forward, backward = m.bidirectional_flow(video)
    out: Arrays = {"flow, forward": forward, "flow, backward": backward}
    out["flow, TV-L1"] = m.estimate_flow(video[:1, :, :3], "tvl1")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(fill(raft_small(weights=None), 12).state_dict(), Path(folder) / "raft.pth")
        out["flow, untrained RAFT"] = m.raft_flow(Path(folder) / "raft.pth")(video[:1, :, :2])
    smooth = 3 * nn.functional.interpolate(
        normal(6, 2, 4, 4, seed=81), (32, 32), mode="bilinear"
    ).unflatten(0, (3, 2))
    smooth = smooth.transpose(1, 2).repeat(1, 1, 3, 1, 1)[:, :, :5]
    out["warped"] = m.warp(video[:, :, 1:], smooth)
    out["visible"] = m.non_occluded_mask(smooth, -smooth)
    out["warping error"] = [
        *m.warping_error(video, forward, backward),
        *m.warping_error(video, smooth, -smooth),
    ]
    out["dynamic degree"] = [
        value
        for kwargs in ({}, {"fps": 4}, {"min_speed": 2})
        for row in m.dynamic_degree(smooth, **kwargs)
        for value in row
    ]
    for name, metric, args in (
        ("warping error", m.WarpingError(), ()),
        ("warping error, given flow", m.WarpingError("exact"), ((smooth, -smooth),)),
        ("flicker", m.Flicker(), ()),
        ("smoothness", m.Smoothness(), ()),
        ("dynamic degree", m.DynamicDegree(), ()),
        ("dynamic degree, given flow", m.DynamicDegree("exact", min_speed=1, fps=10), (smooth,)),
    ):
        metric.update(video, *args)
        out[f"metric/{name}"] = _score_values(metric.compute())
        out[f"metric/{name}, clips"] = list(metric.per_clip().values())
    masks = m.subject_masks(video)
    out["masks"], out["centres"] = masks, m.centres(masks)
    out["subject centres"] = m.subject_centres(video)
    path = 0.3 * normal(3, 6, 4, seed=82)
    for name, metric, args in (
        ("found", m.TrajectoryError(), ()),
        ("given", m.TrajectoryError("given"), (masks,)),
    ):
        metric.update(video, path, *args)
        out[f"metric/trajectory error, {name} masks"] = _score_values(metric.compute())
    return out


@torch.no_grad()
def text_metrics() -> Arrays:
    """Scores of videos and prompts, by mini-clip and by the judge."""
    from course_lib import metrics as m
    from course_lib import zoo
    from course_lib.evaluation import frechet_report, prompt_accuracy

    encoder = m.ClipEncoder.from_pretrained(zoo.path("mini-clip"))
    source, edited = moving_discs(2, 4, seed=83), moving_discs(2, 4, seed=84)
    targets = ["a bus moving left on a sea background", "a red star bouncing on a white background"]
    out: Arrays = {"similarity": m.clip_similarity(encoder, source, PROMPTS)}
    for name, metric, args in (
        ("alignment", m.TextAlignment(encoder, "mini-clip"), (source, PROMPTS)),
        (
            "direction",
            m.DirectionalSimilarity(encoder, "mini-clip"),
            (source, edited, PROMPTS, targets),
        ),
        ("frame accuracy", m.FrameAccuracy(encoder, "mini-clip"), (edited, PROMPTS, targets)),
        ("consistency", m.FrameConsistency(encoder.image, "mini-clip"), (source,)),
    ):
        metric.update(*args)
        out[name] = _score_values(metric.compute())
    accuracy = m.PromptAccuracy(zoo.load("judge"), "judge")
    accuracy.update(source, PROMPTS)
    accuracy.update(edited, ["a tiger", "a tiger spinning"])
    out["prompt accuracy"] = _score_values(accuracy.compute())
    subsets = [m.subset_of_prompt(prompt) for prompt in (*PROMPTS, "a tiger", "a fox spinning")]
    # The name of this subset in the first record
    out["part of the world"] = checksum(["seen" if name == "base" else name for name in subsets])
    out["prompt accuracy, groups"] = [
        _score_values(scores) for scores in accuracy.breakdown(["a", "a", "b", "b"]).values()
    ]
    confusions = accuracy.confusions("subject")
    out["confusions"] = checksum([f"{c.target}, {c.predicted}, {c.count}" for c in confusions])
    out["judged"] = np.hstack(list(prompt_accuracy(source, PROMPTS).values()))
    report = frechet_report(source, edited, moving_discs(2, 4, seed=85), "x")
    out["compared"] = list(report.values())
    return out


# Areas: the world


def _clip_arrays(clips: Any) -> Arrays:
    """A batch of clips with its ground truth."""
    texts = {"captions": clips.captions, "paraphrases": clips.paraphrases}
    texts |= {"image captions": clips.image_captions, "image paraphrases": clips.image_paraphrases}
    labels = [clips.labels[name] for name in ("subject", "motion", "background")]
    arrays = {"video": clips.video, "path": clips.path, "coverage": clips.alpha, "flow": clips.flow}
    arrays |= {
        "mask": clips.mask,
        "trajectory": clips.trajectory,
        "flow is exact": clips.flow_exact,
    }
    arrays["labels"] = torch.stack(labels)
    return arrays | {name: checksum(lines) for name, lines in texts.items()}


def world() -> Arrays:
    """Clips of the world with every option, and the scenes that it samples."""
    from course_lib import world as w
    from course_lib.metrics import ground_truth_flow
    from course_lib.world.hashing import hash_u64, hash_uniform

    worlds = {
        "plain": {},
        "test": {"split": "test"},
        "novel": {"subset": "novel"},
        "composed": {"subset": "composed", "seed": 3},
        "all": {"subset": "all"},
        "frozen": {"static_sprites": True, "fps": 16},
        "any time": {"random_time_offset": True, "num_frames": 4},
        "pictures": {"random_time_offset": True, "num_frames": 1},
        "small": {"size": 32, "num_frames": 24},
        "odd size": {"size": 48, "fps": 32, "num_frames": 8},
        "few": {
            "subjects": ["tiger", "red circle"],
            "motions": ["growing", "bouncing"],
            "backgrounds": ["snow"],
        },
    }
    out = {}
    for name, kwargs in worlds.items():
        clips = w.World(**kwargs).batch(range(6))
        out |= prefixed(name, _clip_arrays(clips))
        if clips.video.shape[2] > 1:
            out[f"{name}/flow, backward"] = ground_truth_flow(clips)[1]
    item = w.World()[5]
    out["item"] = [item["video"].mean(), item["subject"], item["motion"], item["background"]]
    scenes = [
        w.Scene(w.SUBJECTS[5 * k], motion, w.BACKGROUNDS[k % len(w.BACKGROUNDS)], 11 * k)
        for k, motion in enumerate(w.MOTIONS)
    ]
    scenes += [
        w.Scene(w.SUBJECTS[-1 - k], "moving left", background, k)
        for k, background in enumerate(w.BACKGROUNDS)
    ]
    out |= prefixed("every motion and background", _clip_arrays(w.render(scenes, num_frames=4)))
    shapes = w.render([w.Scene(name) for name in w.SUBJECTS[76:]], num_frames=1)
    emoji = w.render([w.Scene(name) for name in w.SUBJECTS[:76]], num_frames=1, size=32)
    out |= {"shapes/video": shapes.video, "emoji/video": emoji.video}
    scenes = w.Scene("tiger"), w.Scene("red star", "spinning", "sea", 7)
    out["captions"] = checksum([w.caption(scene, k) for scene in scenes for k in range(4)])
    out["image captions"] = checksum(
        [w.image_caption(scene, k) for scene in scenes for k in range(4)]
    )
    attributes = w.parse_caption(PROMPTS[0])
    out["caption read"] = checksum(
        [str(attributes[name]) for name in ("subject", "motion", "background")]
    )
    tables = (
        w.SUBJECTS,
        w.MOTIONS,
        w.BACKGROUNDS,
        w.BASE_EMOJI,
        w.NOVEL_EMOJI,
        w.HELD_OUT_SHAPES,
        w.SHAPES,
    )
    for number, table in enumerate(tables):
        out[f"tables/{number}"] = checksum(table)
    out["tables/colours"] = list(w.COLOURS.values())
    out["tables/held-out pairs"] = checksum(sorted(" ".join(pair) for pair in w.HELD_OUT_PAIRS))
    sampler = w.Sampler("train", seed=71)
    sampled = [sampler(index) for index in range(300)]
    out["scenes"] = checksum(
        [f"{s.subject} {s.motion} {s.background} {s.variant}" for s in sampled]
    )
    keys = np.arange(8)
    out["hash"] = [*hash_uniform("speed", keys), *(hash_u64(3, keys) % np.uint64(1000))]
    return out


def corruptions() -> Arrays:
    """Changes of clips: corruptions, defects, out-of-distribution clips, styles, edges.

    They are numbered, in the order of their tables: their names in the code may change. The H.264
    encoder (corruption 3) does not give the same result every time: these two arrays may differ.
    """
    from course_lib import world as w
    from course_lib.world import corruption as c
    from course_lib.world.ood import OOD_KINDS, make_ood_clips

    clips = w.World("train", num_frames=8, seed=5).batch(range(6))
    small = w.World("train", size=32, num_frames=8, seed=5).batch(range(6))
    video, out = clips.video, {}
    for number, corrupt in enumerate(c.CORRUPTIONS.values()):
        out[f"corruption/{number}"] = corrupt(video, seeded(12))
        out[f"corruption/{number}, small"] = corrupt(small.video, seeded(12))
    out["corruption/blur, 3"] = c.blur(video, 3)
    out["corruption/noise, 0.5"] = c.noise(video, 0.5, seeded(13))
    out["corruption/jpeg"] = c.jpeg(video, 20)
    out["corruption/halves"] = c.swap_halves(video)
    for consistent in (True, False):
        distorted = c.elastic_distortion(video, 2, seeded(14), consistent=consistent)
        out[f"corruption/wobble, steady {consistent}"] = distorted
    defects = [*w.DEFECTS, "clean"]
    for number, name in enumerate(defects):
        corrupted = w.inject_defects(clips, [name] * len(clips), seeded(15))
        out[f"defect/{number}"] = corrupted.video
        out[f"defect/{number}, captions"] = checksum(corrupted.captions)
        out[f"defect/{number}, cuts"] = [-1 if cut is None else cut for cut in corrupted.cuts]
    corrupted = w.inject_random_defects(clips, 0.7, seeded(16))
    out["defects of some"] = corrupted.video
    out["defects of some, labels"] = [defects.index(label) for label in corrupted.labels]
    for number, kind in enumerate(OOD_KINDS):
        ood_video, labels = make_ood_clips(clips, [kind] * len(clips), seeded(17))
        out[f"impostor/{number}"] = ood_video
        heads = ("subject", "motion", "background")
        out[f"impostor/{number}, labels"] = [labels[head].tolist() for head in heads]
    kinds = (list(OOD_KINDS) * 2)[:6]
    out["impostors, mixed"] = make_ood_clips(small, kinds, seeded(18))[0]
    for number, style in enumerate(w.STYLES.values()):
        out[f"style/{number}"] = style(video)
    out["edges"] = w.canny_edges(video[:2, :, :3])
    out["edges, wider"] = w.canny_edges(video[:2, :, :3], 2.0)
    return out


def film() -> Arrays:
    """Real clips, read and written."""
    from course_lib import world as w

    out = {}
    for name, info in w.list_videos().items():
        out[f"{name}/card"] = [info.fps, info.num_frames, info.width, info.height, *info.cuts]
        out[f"{name}/square"] = w.load_video(name, start=0.3, num_frames=5, fps=8, size=32)
    out["own size"] = w.load_video("puck", num_frames=3)
    out["other size"] = w.load_video("earth", num_frames=3, size=(40, 72))
    with tempfile.TemporaryDirectory() as folder:
        w.save_video(Path(folder) / "film.mp4", moving_discs(1, 6, seed=90)[0])
        out["written and read"] = w.load_video(Path(folder) / "film.mp4")
    return out


# Areas: files and training


def numbers_in_files() -> Arrays:
    """All numbers of the committed JSON files, in the order of the first record."""
    files = [ROOT / "data" / name for name in ("claims.json", "bench.json", "clips/clips.json")]
    files += sorted((ROOT / "data" / "checkpoints").rglob("evaluation.json"))

    def leaves(value: Any) -> list[float]:
        if isinstance(value, Mapping):
            items = [item for key, item in value.items() if key not in ADDED_KEYS]
            return [number for item in items for number in leaves(item)]
        if isinstance(value, list):
            return [number for item in value for number in leaves(item)]
        return [float(value)] if isinstance(value, bool | int | float) else []

    def content(file: Path) -> Any:
        parsed = json.loads(file.read_text(encoding="utf-8"))
        if file.name != "claims.json":
            return parsed
        order = {claim: number for number, claim in enumerate(CLAIMS)}
        return sorted(parsed, key=lambda record: order.get(record["id"], len(order)))

    return {file.relative_to(ROOT / "data").as_posix(): leaves(content(file)) for file in files}


def training() -> Arrays:
    """A few steps of the training loop on a tiny net, and a run that resumes from its state."""
    from course_lib.training import fit, train

    def build_net() -> nn.Module:
        return fill(
            nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 2)), 11
        ).requires_grad_(True)

    def make_batch(number: int) -> Tensor:
        return normal(6, 4, seed=100 + number)

    def loss_fn(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        noisy = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        return (model(noisy) - batch[:, :2].sin()).square().mean()

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    adam = {"lr": 1e-2, "optimizer": "adam", "lr_schedule": "linear", "weight_decay": 0.1}
    sgd = {"lr": 0.1, "optimizer": "sgd", "lr_schedule": "constant", "max_grad_norm": 0.01}
    runs = {
        "defaults": {"lr": 1e-2},
        "warmed up, averaged": {"lr": 1e-2, "warmup": 2, "ema_decay": 0.8, "seed": 3},
        "adam, linear": adam,
        "sgd, constant": sgd,
        "adamw, not clipped": {"lr": 1e-2, "weight_decay": 0.5, "max_grad_norm": None},
    }
    out: Arrays = {}
    for name, kwargs in runs.items():
        net = build_net()
        kwargs |= {"num_steps": 6, "mixed_precision": "no"}
        steps = list(train(net, make_batch, loss_fn, **kwargs))
        out[f"{name}/weights"], out[f"{name}/losses"] = flat(net), steps[-1].losses
        out[f"{name}/rates"] = [step.lr for step in steps]
        with steps[-1].ema_weights() as averaged:
            out[f"{name}/averaged weights"] = flat(averaged)
    net = build_net()
    kwargs = {"num_steps": 5, "lr": 1e-2, "ema_decay": 0.5, "mixed_precision": "no"}
    evaluation = {"evaluate": lambda step: {"loss": step.loss}, "eval_every": 2}
    batches = [make_batch(k) for k in range(3)]
    history = fit(net, batches, loss_fn, progress=False, **kwargs, **evaluation)
    out["fit/weights"] = flat(net)
    out["fit/evaluations"] = [
        number for step in history for number in (step.evaluation or {}).values()
    ]
    with tempfile.TemporaryDirectory() as folder:
        net, resumed = build_net(), build_net()
        kwargs |= {"state_path": Path(folder) / "state", "save_every": 0}
        for step in train(net, make_batch, loss_fn, **kwargs):
            if step.step == 2:
                break
        steps = list(train(resumed, make_batch, loss_fn, **kwargs))
        out["resumed/weights"], out["resumed/losses"] = flat(resumed), steps[-1].losses
    return out


def recipes() -> Arrays:
    """Batches and losses of the recipes that keep no cache of clips, and initialisations."""
    import importlib

    out: Arrays = {}
    attributes = {
        "judge": ("judge", "RECIPE"),
        "mini-clip": ("mini_clip", "RECIPE"),
        "mini-vae": ("mini_vae", "RECIPE"),
        "pixel-ddpm": ("pixel_ddpm", "RECIPE"),
        "temporal-vae": ("temporal_vae", "RECIPE"),
        "image features": ("features", "IMAGE"),
        "video features": ("features", "VIDEO"),
    }
    for name, (module, attribute) in attributes.items():
        recipe = getattr(importlib.import_module(f"course_lib.recipes.{module}"), attribute)
        batch = recipe.make_batch(1, recipe.configs["ci"])
        tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
        for number, tensor in enumerate(tensors):
            out[f"{name}/batch/{number}"] = tensor
        torch.manual_seed(0)
        model = recipe.build_model()
        out[f"{name}/initialisation"] = magnitudes(model)
        with torch.no_grad():
            out[f"{name}/loss"] = recipe.loss_fn(model.train(False), batch, seeded(19))
    return out


def video_recipes() -> Arrays:
    """Batches and losses of the recipes that cache clips by the thousand; here by the dozen."""
    from course_lib.recipes import mini_sd, mini_video
    from course_lib.recipes import vdm as vdm_recipe

    out: Arrays = {}
    for name, module, num_chunks in (
        ("mini-sd", mini_sd, 2),
        ("vdm", vdm_recipe, 12),
        ("mini-video", mini_video, 12),
    ):
        recipe = module.RECIPE
        out[f"{name}/settings"] = [
            number
            for config in recipe.configs.values()
            for number in (config.num_steps, config.batch_size, config.lr, config.ema_decay or 0)
        ]
        torch.manual_seed(0)
        model = recipe.build_model().eval()
        out[f"{name}/initialisation"] = magnitudes(model)
        cache, config = module.CACHE, recipe.configs["ci"]
        small = {"chunk_size": 12, "num_chunks": num_chunks, "chunks": {}}
        with mock.patch.multiple(cache, **small), torch.no_grad():
            for step in range(config.num_steps):
                batch = recipe.make_batch(step, config)
                for number, leaf in enumerate(_leaves(batch)):
                    out[f"{name}/step {step}/batch/{number}"] = leaf
                out[f"{name}/step {step}/loss"] = recipe.loss_fn(model, batch, seeded(19))
    out["mini-video/known frames"] = mini_video.sample_cond_masks(8, seeded(20))
    return out


def _leaves(value: Any) -> list[Any]:
    """Items of nested mappings and sequences, in their order."""
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


AREAS: dict[str, Callable[[], Arrays]] = {
    "json": numbers_in_files,
    "training": training,
    "objective": objective,
    "guidance": guidance,
    "exact": ideal,
    "sampler": samplers,
    "convolution": convolution,
    "layers": layers,
    "video resnet": video_resnet,
    "video unet": video_unet,
    "inflation": inflation,
    "metrics": metrics,
    "motion metrics": motion_metrics,
    "text metrics": text_metrics,
    "world": world,
    "corruption": corruptions,
    "film": film,
    "classifiers": classifiers,
    "mini-clip": mini_clip,
    "mini-vae": mini_vae,
    "pixel-ddpm": pixel_ddpm,
    "mini-sd": mini_sd,
    "vdm": vdm,
    "mini-video": mini_video,
    "recipes": recipes,
    "video recipes": video_recipes,
}


# Recording and comparing


def to_array(value: Any) -> np.ndarray:
    """Any number, list (of lists) of numbers, tensor or array, as float64."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, list | tuple):
        parts = [to_array(item) for item in value]
        same = len({part.shape for part in parts}) == 1
        return (
            np.stack(parts)
            if same
            else np.concatenate([part.ravel() for part in parts])
            if parts
            else np.zeros(0)
        )
    return np.asarray(value, dtype=np.float64)


def subsample(name: str, array: np.ndarray) -> np.ndarray:
    """All of an array, or every n-th value, followed by mean and standard deviation of all."""
    if name.startswith(EXACT):
        return array
    flat = array.ravel()
    if flat.size > LIMIT:
        stride = -(-flat.size // LIMIT) | 1  # odd, to sample all columns
        flat = np.concatenate([flat[::stride], [flat.mean(), flat.std()]])
    return flat.astype(np.float32)


def compute(
    areas: Sequence[str],
) -> tuple[dict[str, np.ndarray], dict[str, list[int]], dict[str, str]]:
    """Run areas. Returns arrays and their shapes by name, and tracebacks by area."""
    arrays, shapes, failures = {}, {}, {}
    for area in areas:
        start = time.perf_counter()
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = {f"{area}/{name}": to_array(value) for name, value in AREAS[area]().items()}
        except Exception:
            failures[area] = traceback.format_exc()
            out = {}
        shapes |= {name: list(array.shape) for name, array in out.items()}
        arrays |= {name: subsample(name, array) for name, array in out.items()}
        status = "FAILED" if area in failures else f"{len(out)} arrays"
        print(f"{area}: {status}, {time.perf_counter() - start:.1f} s", flush=True)
    return arrays, shapes, failures


def read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Arrays and shapes of a file."""
    with np.load(file) as stored:
        shapes = json.loads(bytes(stored[SHAPES]).decode())
        return {name: stored[name] for name in stored.files if name != SHAPES}, shapes


def record(file: Path, areas: Sequence[str]) -> dict[str, str]:
    """Compute areas and write them; others in the file stay. Returns tracebacks by area."""
    arrays, shapes, failures = compute(areas)
    if len(areas) < len(AREAS) and file.exists():
        old, old_shapes = read(file)
        others = [name for name in old if name.split("/")[0] not in areas]
        arrays = {name: old[name] for name in others} | arrays
        shapes = {name: old_shapes[name] for name in others} | shapes
    text = np.frombuffer(json.dumps(shapes).encode(), dtype=np.uint8)
    np.savez_compressed(file, **{SHAPES: text}, **arrays)
    print(f"{file}: {len(arrays)} arrays, {file.stat().st_size / 1e6:.2f} MB")
    return failures


def difference(name: str, old: np.ndarray, new: np.ndarray) -> str | None:
    """The difference of two arrays in words, or None."""
    if old.shape != new.shape:
        return f"{old.size} values were kept, now {new.size}"
    if not old.size or np.array_equal(old, new, equal_nan=True):
        return None
    old, new = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)) or not np.array_equal(
        old[~finite], new[~finite], equal_nan=True
    ):
        return "NaN or infinity in other places"
    gap, largest = np.abs(old - new)[finite].max(), np.abs(old[finite]).max()
    allowed = 0.0 if name.startswith(EXACT) else TOLERANCE * max(1.0, largest)
    return f"differs by {gap:.3g}, largest value {largest:.3g}" if gap > allowed else None


def compare(file: Path, areas: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Compute areas again. Returns one line for every difference, and tracebacks by area."""
    old, old_shapes = read(file)
    arrays, shapes, failures = compute(areas)
    old = {name: value for name, value in old.items() if name.split("/")[0] in areas}
    lines = []
    for name in sorted(old.keys() | arrays.keys()):
        if name.split("/")[0] in failures:
            continue  # reported by its traceback
        if name not in arrays:
            lines.append(f"missing: {name}")
        elif name not in old:
            lines.append(f"new: {name}")
        elif shapes[name] != old_shapes[name]:
            lines.append(f"differs: {name}: had shape {old_shapes[name]}, now {shapes[name]}")
        elif (change := difference(name, old[name], arrays[name])) is not None:
            lines.append(f"differs: {name}: {change}")
    return lines, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if an area raised or, comparing, anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("file", type=Path, metavar="OUT.npz")
    parser.add_argument(
        "--only", action="append", choices=AREAS, metavar="AREA", help=f"of: {', '.join(AREAS)}"
    )
    options = parser.parse_args(arguments)
    if options.file.suffix != ".npz":
        parser.error(f"expected a file named *.npz, got {options.file}")
    print(f"course in {ROOT}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float32)
    areas = [area for area in AREAS if options.only is None or area in options.only]
    lines: list[str] = []
    if options.command == "record":
        failures = record(options.file, areas)
    else:
        lines, failures = compare(options.file, areas)
    for area, trace in failures.items():
        print(f"\n{area} raised:\n{trace}")
    print("\n".join(lines))
    if options.command == "compare" and not lines and not failures:
        print("nothing differs")
    return 1 if lines or failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
