"""Record what the course computes, and compare it after a change that must not change any number.

    python tools/record_numbers.py record OUT.npz     compute and write
    python tools/record_numbers.py compare OUT.npz    compute again; exit 1 if anything differs
    … --only world                                    one area (see AREAS); may be repeated

It was written for renaming: names of arrays are in the field's words and outlive those of the code.
Every area is one function that imports what it needs and returns a dict of arrays, so that whoever
renames an area updates its calls in one place. If an area raises, the others still run, and the
program ends with exit 1.

Everything is float32 on the CPU, on one thread, with fixed seeds and small inputs. Most inputs are
made here and not by the course's world, so that an area depends on little but its own code. Of an
array with more than LIMIT values every n-th is kept, and mean and standard deviation of all; of
texts a checksum. Another CPU rounds in another way, and sampling amplifies that: record and compare
on the same machine.

`record --only AREA` replaces that area in a file that exists and leaves the others as they are.
"""

import os
import sys

# Before the libraries are loaded: they count cores once
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

# The package beside this folder, not one that is installed
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 512  # values kept of one array
TOLERANCE = 1e-6  # times the largest value, or 1 if that is more
EXACT = "json/"  # arrays whose names begin so are kept in float64 and may not differ at all
SHAPES = "__shapes__"  # in the file: JSON, from the name of an array to the shape it had

Arrays = dict[str, Any]

PROMPTS = [
    "a tiger moving left on a sea background",
    "a red circle bouncing on a white background",
]


# What all areas share


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def moving_discs(b: int = 2, f: int = 8, size: int = 64, seed: int = 0) -> Tensor:
    """Clips (b, 3, f, h, w) in [-1, 1]: a coloured disc glides over a still gradient."""
    draw = torch.rand(b, 12, generator=seeded(seed))
    line = torch.linspace(-1, 1, size)
    y, x, t = line[:, None], line[None], torch.linspace(-1, 1, f)
    clips = []
    for row in draw:
        centre_x = (row[0] - 0.5) * t[:, None, None] + 0.6 * (row[1] - 0.5)
        centre_y = (row[2] - 0.5) * t[:, None, None] + 0.6 * (row[3] - 0.5)
        distance = ((x - centre_x) ** 2 + (y - centre_y) ** 2).sqrt()  # f h w
        cover = ((0.25 + 0.2 * row[4] - distance) * size / 2).clamp(0, 1)[None]
        behind = (row[5:8, None, None] * y + row[8] * x - 0.2).clamp(-1, 1)[:, None]  # 3 1 h w
        clips.append(behind + cover * (2 * row[9:12, None, None, None] - 1 - behind))
    return torch.stack(clips)


def fill(module: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """Replace all parameters, so that nothing is zero that begins so; then freeze the module.

    The k-th parameter of a shape gets the k-th draw for this shape: neither names nor the order
    among different shapes matter. What was all ones (the weight of a norm) is near one, all else
    near zero.
    """
    met: Counter[tuple[int, ...]] = Counter()
    for parameter in module.parameters():
        shape = tuple(parameter.shape)
        key = np.random.SeedSequence([seed, met[shape], *shape]).generate_state(1, np.uint64)[0]
        met[shape] += 1
        base = 1.0 if bool((parameter == 1).all()) and parameter.ndim == 1 else 0.0
        spread = size if parameter.ndim < 2 else (parameter.numel() / len(parameter)) ** -0.5
        draw = torch.randn(shape, generator=seeded(int(key >> np.uint64(1))))
        parameter.data.copy_(base + spread * draw)
    return module.eval().requires_grad_(False)


def sizes(module: nn.Module) -> list[float]:
    """Mean absolute value of every parameter and buffer, sorted: how a network was initialised."""
    values = [*module.parameters(), *module.buffers()]
    return sorted(value.double().abs().mean().item() for value in values if value.numel())


def checksum(texts: Sequence[str]) -> list[int]:
    """Words as 32 numbers, all of which change with any word."""
    return list(hashlib.sha256("\n".join(texts).encode()).digest())


def under(prefix: str, arrays: Mapping[str, Any]) -> Arrays:
    """The same arrays under longer names."""
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


# Areas: the checkpoints


@torch.no_grad()
def classifiers() -> Arrays:
    """Judge and feature nets on a clip and on pictures."""
    from course_lib import zoo

    video, found = moving_discs(2, 16, seed=1), {}
    small, picture = moving_discs(2, 8, 32, seed=2), moving_discs(3, 1, seed=3)
    judge = zoo.load("judge")
    for name, clips in {"clip": video, "small clip": small, "picture": picture}.items():
        logits = judge(clips)
        for head in ("subject", "motion", "background", "order"):
            found[f"judge/{head} logits/{name}"] = logits[head]
    found["judge/temperatures"] = [
        judge.temperature(head) for head in ("subject", "motion", "background", "order")
    ]
    image, video_net = zoo.load("features/image"), zoo.load("features/video")
    found |= {
        f"image features/{name}": image.features(clips)
        for name, clips in {"picture": picture, "clip": small}.items()
    }
    found |= {
        f"video features/{name}": video_net.features(clips)
        for name, clips in {"clip": video, "small": small}.items()
    }
    for name, net in {"image": image, "video": video_net}.items():
        logits = net(small)
        found |= {
            f"{name} features/{head} logits": logits[head] for head in ("subject", "background")
        }
    return found


@torch.no_grad()
def mini_clip() -> Arrays:
    """Embeddings of pictures and words, and how like they are."""
    from course_lib import zoo
    from course_lib.metrics import ClipEncoder
    from course_lib.recipes.mini_clip import tokenize

    model = zoo.load("mini-clip")
    encoder = ClipEncoder.from_pretrained(zoo.path("mini-clip"))
    pictures, prompts = moving_discs(3, 1, seed=4)[:, :, 0], [*PROMPTS, ""]
    images, texts = encoder.image(pictures), encoder.text(prompts)
    tokens = tokenize(prompts)
    unit = [nn.functional.normalize(part, dim=1) for part in (images, texts)]
    return {
        "image embeddings": images,
        "image embeddings of large pictures": encoder.image(
            moving_discs(2, 1, 96, seed=5)[:, :, 0]
        ),
        "text embeddings": texts,
        "similarities": unit[0] @ unit[1].T,
        "tokens": tokens,
        "logits": model(input_ids=tokens, pixel_values=pictures).logits_per_image,
    }


@torch.no_grad()
def pixel_ddpm() -> Arrays:
    """The class-conditional pixel model: forward, four guided steps, a training example."""
    from diffusers import DDIMScheduler

    from course_lib import zoo
    from course_lib.diffusion import guided, initial_noise, sample
    from course_lib.papers.ddpm import as_model, build_schedule, build_unet, learn_from, null_class

    unet, schedule = zoo.load("pixel-ddpm"), build_schedule()
    x, t, classes = normal(2, 3, 32, 32, seed=6), torch.tensor([10, 800]), torch.tensor([3, 24])
    model = as_model(unet)
    guide, noise = guided(model, null_class(unet), 2), initial_noise((2, 3, 32, 32), seeded())
    *_, last = sample(guide, schedule, noise, torch.tensor([1, 7]), steps=4, generator=seeded(1))
    example, told = learn_from(
        schedule, moving_discs(6, 1, 32)[:, :, 0], torch.arange(6), null_class(unet), seeded(2), 0.5
    )
    stored = DDIMScheduler.from_pretrained(zoo.path("pixel-ddpm"), subfolder="scheduler")
    torch.manual_seed(0)
    return {
        "forward": model(x, t, classes),
        "sample": last.x,
        "schedule": schedule.alphas_cumprod,
        "stored schedule": stored.alphas_cumprod,
        "learning/noisy": example.x_t,
        "learning/timesteps": example.t,
        "learning/target": example.target,
        "learning/classes": told,
        "initialisation": sizes(build_unet(5, 16, (16, 32))),
    }


@torch.no_grad()
def mini_vae() -> Arrays:
    """The image autoencoder, there and back, and the one whose decoder sees time."""
    from course_lib import zoo
    from course_lib.nn.temporal_decoder import inflate_decoder
    from course_lib.papers.latent_diffusion import build_autoencoder, decode, encode

    vae, temporal = zoo.load("mini-vae"), zoo.load("temporal-vae")
    pictures, latents = moving_discs(2, 1, seed=7)[:, :, 0], normal(2, 16, 8, 8, seed=8)
    clip_latents = normal(1, 16, 8, 8, 8, seed=9)
    torch.manual_seed(0)
    new = build_autoencoder((8, 16), 4, 16)
    return {
        "encode": encode(vae, pictures),
        "encode, drawn": encode(vae, pictures, seeded(3)),
        "decode": decode(vae, latents),
        "scaling factor": vae.config.scaling_factor,
        "initialisation": sizes(new),
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
    """The image model: U-Net, text, pictures of four steps, and diffusers' own pipeline."""
    from course_lib import zoo
    from course_lib.papers.latent_diffusion import (
        LatentDiffusion,
        as_model,
        build_schedule,
        build_unet,
        embed,
        tokenize,
    )

    pipeline = zoo.load("mini-sd")
    system = LatentDiffusion.of(pipeline)
    text = system.text(PROMPTS)
    x, t = normal(2, 16, 8, 8, seed=11), torch.tensor([20, 900])
    plain = system.pipeline()
    plain.set_progress_bar_config(disable=True)
    drawn = plain(PROMPTS[0], num_inference_steps=3, generator=seeded(4), output_type="np").images
    torch.manual_seed(0)
    return {
        "forward": as_model(system.unet)(x, t, text),
        "text": text,
        "text of tokens": embed(
            system.text_encoder, tokenize(system.tokenizer, ["", "a blue heart"])
        ),
        "tokens": tokenize(system.tokenizer, PROMPTS),
        "picture": system.draw(PROMPTS, steps=4, generator=seeded(0)),
        "picture, rescaled guidance": system.draw(
            PROMPTS, steps=4, scale=7, rescale=0.7, generator=seeded(0)
        ),
        "picture, negative prompt": system.draw(
            PROMPTS, steps=3, negative="a bus", generator=seeded(0), eta=0.5
        ),
        "picture, default steps": system.draw(PROMPTS[:1], latents=x[:1], generator=seeded(0)),
        "picture by diffusers' pipeline": drawn,
        "schedule": system.scheduler.alphas_cumprod,
        "new schedule": build_schedule().alphas_cumprod,
        "initialisation": sizes(build_unet(4, 8, (32, 64), 16, 16)),
    }


@torch.no_grad()
def vdm() -> Arrays:
    """The video U-Net: forward with all that it is told, sampling, known frames, longer clips."""
    from course_lib import zoo
    from course_lib.diffusion import guided, initial_noise, sample
    from course_lib.papers import vdm as paper
    from course_lib.papers.latent_diffusion import tokenize
    from course_lib.recipes import vdm as recipe

    unet, schedule = zoo.load("vdm"), paper.build_schedule()
    image_model = zoo.load("mini-sd")
    tower, tokenizer = image_model.text_encoder, image_model.tokenizer
    text = paper.read(tower, tokenize(tokenizer, PROMPTS))
    nothing = paper.read(tower, tokenize(tokenizer, ["", ""]))
    rate = torch.tensor([8.0, 16.0])
    told, empty = {"text": text, "frame_rate": rate}, {"text": nothing, "frame_rate": rate}
    model = paper.as_model(unet)
    x, t = normal(2, 3, 6, 32, 32, seed=12), torch.tensor([50, 700])
    found = {
        "text": text,
        "forward": model(x, t, told),
        "forward, text alone": model(x, t, {"text": text}),
    }
    found["forward, frame numbers"] = model(
        x, t, told | {"frame_index": torch.tensor([[0, 1, 2, 4, 8, 15]] * 2)}
    )
    # Joint training: pictures appended, with texts of their own
    pictures = moving_discs(2, 2, 32, seed=13).transpose(1, 2)
    joint, joint_told = paper.with_pictures(
        x, text, pictures, text.flip(0)[:, None].expand(-1, 2, -1, -1)
    )
    found["joint/clip"], found["joint/mask"] = joint, joint_told["alone"]
    found["joint/forward"] = model(joint, t, joint_told | {"frame_rate": rate})
    single = unet.down[0][0].temporal  # attention over time of the first level
    found["attention over time/weights"] = single.weights(normal(1, 128, 4, 2, 2, seed=14))
    found["attention over time/alone"] = single(
        normal(1, 128, 4, 2, 2), torch.eye(4, dtype=torch.bool)[None]
    )

    def last(
        one: Callable,
        x: Tensor,
        conditioning: Mapping[str, Tensor] = told,
        seed: int = 1,
        steps: int = 4,
    ) -> Tensor:
        *_, step = sample(one, schedule, x, conditioning, steps=steps, generator=seeded(seed))
        return step.x

    noise, guide = initial_noise((2, 3, 8, 32, 32), seeded(2)), guided(model, empty, 3)
    found["sample/guidance by text"] = last(guide, noise)
    found["sample/guidance away from frames alone"] = last(paper.coherent(model, 2), noise)
    film = moving_discs(2, 8, 32, seed=15)
    mask = paper.first(8, 3)
    found["masks"] = [paper.first(9, 4).tolist(), paper.every(9, 4).tolist()]
    found["sample/replacement"] = last(
        paper.replacement(guide, schedule, film, mask), noise, steps=3
    )
    found["sample/replacement and reconstruction"] = last(
        paper.with_frames(guide, schedule, film, mask), noise, steps=3
    )
    found["sample/replacement alone"] = last(
        paper.with_frames(guide, schedule, film, mask, None), noise, steps=3
    )
    between = paper.with_frames(model, schedule, film, paper.every(8, 4), 1.0)
    found["sample/frames between"] = last(between, noise, steps=3)
    coarse = paper.shrunk(4)
    finer = paper.reconstruction(model, schedule, coarse(film), coarse, 3.0)
    found["sample/higher resolution"] = last(finer, noise, steps=3)
    one = {name: part[:1] for name, part in told.items()}
    settings = {"frames": 17, "steps": 2, "generator": seeded(3)}
    found["extended"] = paper.extend(model, schedule, film[:1, :, :6], one, past=3, **settings)
    found["drawn by the recipe"] = recipe.draw(unet, PROMPTS[:1], seeded(4), steps=3)
    found["drawn by the recipe, longer"] = recipe.draw(
        unet, PROMPTS[:1], seeded(4), steps=2, frames=20, frame_rate=32
    )
    found["schedule"] = schedule.alphas_cumprod
    found["schedule, not shifted"] = paper.build_schedule("epsilon", 1, 100).alphas_cumprod
    torch.manual_seed(0)
    found["initialisation"] = sizes(paper.build_unet(16, (32, 64), 2))
    return found


@torch.no_grad()
def mini_video() -> Arrays:
    """The text-to-video model: forward with all its options, and clips by every way of drawing."""
    from course_lib import zoo
    from course_lib.papers import video_ldm as paper

    pipeline = zoo.load("mini-video")
    pipeline.set_progress_bar_config(disable=True)
    unet, prompt = pipeline.unet, PROMPTS[:1]
    text = pipeline.text(PROMPTS)
    x, t = normal(2, 16, 5, 8, 8, seed=16), torch.tensor([100, 800])
    known = 0.5 * normal(2, 16, 5, 8, 8, seed=17)
    mask = torch.tensor([[True, False, False, False, False], [True, False, False, False, True]])
    told = {"text": text, "extra": paper.beside(known, torch.zeros_like(mask))}
    model = paper.as_model(unet)
    found = {
        "text": text,
        "given frames beside": paper.beside(known, mask),
        "forward": model(x, t, told),
        "forward, given frames": model(x, t, told | {"extra": paper.beside(known, mask)}),
        "forward, frame index": model(
            x, t, told | {"frame_index": torch.arange(5).expand(2, -1) / 4}
        ),
        "forward, half of time": paper.as_model(unet, temporal_scale=0.5)(x, t, told),
        "forward, image model": paper.as_model(unet, temporal_scale=0)(x, t, told),
        "forward, away from frames alone": paper.coherent(unet, 2)(x, t, told),
    }
    alone = torch.tensor([[False, False, False, True, True]] * 2)
    found["forward, joint training"] = model(x, t, told | {"alone": alone})
    each = text[:, None].expand(-1, 5, -1, -1)
    found["forward, text of each frame"] = model(x, t, told | {"text": each, "alone": alone})

    settings = {"num_inference_steps": 4, "output_type": "pt"}
    found["call"] = pipeline(prompt[0], generator=seeded(0), **settings).frames
    short = {
        "num_inference_steps": 3,
        "num_frames": 4,
        "generator": seeded(1),
        "output_type": "latent",
    }
    found["call, latents"] = pipeline(
        PROMPTS, height=48, width=64, negative_prompt="a bus", **short
    ).frames
    found["call, away from frames alone"] = pipeline(prompt, coherence=2, **short).frames
    found["call, default steps"] = pipeline(
        prompt, num_frames=2, generator=seeded(2), output_type="np"
    ).frames
    found["draw"] = pipeline.draw(prompt, frames=16, steps=4, generator=seeded(0))
    found["draw, away from frames alone"] = pipeline.draw(
        prompt, frames=8, steps=4, coherence=2, generator=seeded(0)
    )
    keys = normal(1, 16, 4, 8, 8, seed=18)
    given = {"known": known[:1], "mask": mask[1:], "frames": 5}
    found["latents, known frames"] = pipeline.latents(prompt, steps=4, generator=seeded(3), **given)
    options = {"frame_index": torch.arange(5)[None] / 2, "temporal_scale": 0.8, "rescale": 0.5}
    found["draw, known frames"] = pipeline.draw(
        prompt, steps=3, generator=seeded(3), **given, **options
    )
    found["between key frames"] = paper.between(
        pipeline, prompt, keys, steps=2, generator=seeded(4)
    )
    windows = {"factor": 2, "window": 2, "spacing": 4, "scale": 3}
    found["between key frames, windows"] = paper.between(
        pipeline, prompt, keys, steps=2, generator=seeded(4), **windows
    )
    found["onwards"] = paper.onwards(
        pipeline, prompt, known[:1], frames=7, past=2, steps=2, generator=seeded(5)
    )
    found["onwards, defaults"] = paper.onwards(
        pipeline, prompt, known[:1], frames=6, steps=2, generator=seeded(5)
    )
    found["schedule"] = pipeline.scheduler.alphas_cumprod
    found["schedule of the image model, moved"] = paper.build_schedule(
        zoo.load("mini-sd").scheduler
    ).alphas_cumprod
    with tempfile.TemporaryDirectory() as folder:
        paper.save_layers(unet, Path(folder))
        found["stored and loaded"] = paper.as_model(paper.with_layers(unet.spatial, Path(folder)))(
            x, t, told
        )
    for hears, completes in ((True, False), (False, True), (False, False)):
        torch.manual_seed(0)
        new = paper.build_unet(unet.spatial, hears=hears, completes=completes)
        found[f"initialisation/reads text {hears}, given frames {completes}"] = sizes(new.temporal)
    return found


# Areas: diffusion


def _schedules() -> dict[str, Any]:
    from diffusers import DDIMScheduler

    common = {
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": False,
        "num_train_timesteps": 200,
    }
    return {
        kind: DDIMScheduler(prediction_type=kind, **common)
        for kind in ("epsilon", "sample", "v_prediction")
    }


@torch.no_grad()
def objective() -> Arrays:
    """Levels, targets, conversions, weights, noise, training examples."""
    from course_lib import diffusion as d

    found, x0, noise = {}, moving_discs(4, 4, 8, seed=20), normal(4, 3, 4, 8, 8, seed=21)
    t = torch.tensor([0, 60, 150, 199])
    for kind, schedule in _schedules().items():
        level = d.level_at(schedule, t)
        x_t, target = d.add_noise(schedule, x0, noise, t), d.target(schedule, x0, noise, t)
        back = d.estimate(kind, target, x_t, level)
        arrays = {"noisy": x_t, "target": target, "clean again": back.x0, "noise again": back.noise}
        arrays |= {"velocity again": back.velocity, "of": back.of(kind)}
        arrays |= {"signal": level.signal, "noise": level.noise, "snr": d.snr(schedule, t)}
        arrays |= {"between timesteps": d.level_at(schedule, torch.tensor([3.25, 120.5])).signal}
        arrays |= {
            "min-SNR weights": d.min_snr_weights(schedule, t),
            "gamma 1": d.min_snr_weights(schedule, t, 1),
        }
        options = {
            "plain": {},
            "min-SNR": {"gamma": 5},
            "offset": {"offset": 0.1},
            "shared": {"shared": 0.4},
        }
        options |= {"all": {"gamma": 2, "offset": 0.2, "shared": 1.0}, "given timesteps": {"t": t}}
        for name, told in options.items():
            example = d.training_example(schedule, x0, seeded(5), **told)
            arrays |= under(f"example, {name}", {"noisy": example.x_t, "timesteps": example.t})
            arrays |= under(
                f"example, {name}", {"target": example.target, "weights": example.weight}
            )
            arrays[f"example, {name}/loss"] = d.denoising_loss(0.5 * example.target + 0.1, example)
        arrays["predicts"] = checksum([d.prediction_type(schedule)])
        found |= under(kind, arrays)
        if kind != "epsilon":
            moved = d.zero_terminal_snr(schedule)
            found[f"{kind}/zero terminal SNR"] = moved.alphas_cumprod
            found[f"{kind}/ends without signal"] = [
                d.ends_without_signal(one) for one in (schedule, moved)
            ]
            found[f"{kind}/zero terminal SNR, example"] = d.training_example(
                moved, x0, seeded(6), t=t
            ).x_t
    for shared in (0, 0.3, 1):
        found[f"initial noise/shared {shared}"] = d.initial_noise(
            (2, 3, 4, 5, 5), seeded(7), shared
        )
    found["initial noise/vectors"] = d.initial_noise((5, 7), seeded(7))
    found["offset noise"] = d.offset_noise(noise, 0.3, seeded(8))
    return found


@torch.no_grad()
def guidance() -> Arrays:
    """Dropping, mixing, rescaling and thresholding."""
    from course_lib import diffusion as d

    one, other = normal(2, 3, 4, 5, 5, seed=22), normal(2, 3, 4, 5, 5, seed=23)
    scales = (0, 1, 3.5)
    found = {
        f"mixed/scale {s}, rescale {r}": d.guide(one, other, s, r)
        for s in scales
        for r in (0, 0.7, 1)
    }

    def model(x: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        text = conditioning if isinstance(conditioning, Tensor) else conditioning["text"]
        return x * text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1) + 0.01 * t.view(-1, 1, 1, 1, 1)

    text, t = normal(2, 4, 6, seed=24), torch.tensor([3, 90])
    found["guided"] = d.guided(model, torch.zeros(1, 4, 6), 4, 0.5)(one, t, text)
    found["guided, mapping"] = d.guided(model, {"text": torch.ones(1, 4, 6)}, 4)(
        one, t, {"text": text}
    )
    turns = d.in_turn(model, lambda x, t, told: -x, 50)
    found["in turn"] = [turns(one, torch.tensor(at).expand(2), text).mean() for at in (49, 50, 51)]
    for probability in (0, 0.4, 1):
        dropped = d.drop_conditioning(normal(9, 2, 3), torch.zeros(2, 3), probability, seeded(9))
        found[f"dropped, probability {probability}"] = dropped
    large = 2 * one
    found["dynamic threshold"] = d.dynamic_threshold(large)
    found["dynamic threshold, 0.9"] = d.dynamic_threshold(large, 0.9, 1.5)
    return found


@torch.no_grad()
def exact() -> Arrays:
    """Denoisers known in closed form."""
    from course_lib import diffusion as d

    schedule = _schedules()["epsilon"]
    means = moving_discs(3, 2, 4, seed=25)
    x, level = (
        normal(4, 3, 2, 4, 4, seed=26),
        d.level_at(schedule, torch.tensor([20, 80, 140, 190])),
    )
    found = {}
    mixtures = {
        "mixture": d.Mixture(means, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])),
        "finite data": d.finite_data(means),
        "gaussian": d.gaussian(means[0], 0.4),
    }
    for name, mixture in mixtures.items():
        found[f"{name}/denoised"] = mixture.denoise(x, level)
        found[f"{name}/score"] = mixture.score(x, level)
        found[f"{name}/log density"] = mixture.log_density(x, level)
        found[f"{name}/drawn"] = mixture.draw(6, seeded(10))
        for kind, one in _schedules().items():
            found[f"{name}/predicts {kind}"] = d.optimal_model(mixture, one)(
                x, torch.tensor([20, 80, 140, 190]), None
            )
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    found["mixture/denoised, told"] = mixtures["mixture"].denoise(x, level, rows)
    ends = d.Level(level.signal[:1], level.noise[:1])
    found["gaussian/flow"] = d.ode_solution(
        mixtures["gaussian"], x, d.level_at(schedule, torch.tensor([199])), ends
    )
    found["gaussian/flow to clean"] = d.ode_solution(mixtures["gaussian"], x, level, d.CLEAN)
    return found


@torch.no_grad()
def samplers() -> Arrays:
    """Every way of sampling, with a model known in closed form."""
    import diffusers

    from course_lib import diffusion as d

    means = moving_discs(3, 2, 4, seed=27)
    mixture = d.Mixture(means, torch.tensor([0.1, 0.2, 0.15]))
    noise = d.initial_noise((3, 3, 2, 4, 4), seeded(11))
    told = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])
    common = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200}
    found: Arrays = {}

    def walk(name: str, steps: Any) -> None:
        steps = list(steps)
        found[f"{name}/sample"] = steps[-1].x
        found[f"{name}/estimates"] = torch.stack([step.x0 for step in steps])
        found[f"{name}/timesteps"] = [float(step.t) for step in steps]

    def by_hand(
        way: Callable, name: str, kind: Any, steps: int = 7, seed: int = 1, **options: Any
    ) -> None:
        extra = {"clip_sample": False} | options.pop("config", {})
        schedule = kind(**common, **extra)
        model = d.optimal_model(mixture, schedule)
        guided = d.guided(model, torch.ones(1, 3), 1.5)
        walk(
            name, way(guided, schedule, noise, told, steps=steps, generator=seeded(seed), **options)
        )

    spacings = ("leading", "linspace", "trailing")
    kinds = ("epsilon", "sample", "v_prediction")
    for spacing in spacings:
        for kind in kinds:
            config = {"timestep_spacing": spacing, "prediction_type": kind}
            by_hand(d.ddim, f"ddim/{spacing}, {kind}", diffusers.DDIMScheduler, config=config)
            by_hand(d.ddpm, f"ddpm/{spacing}, {kind}", diffusers.DDPMScheduler, config=config)
    limits = {
        "clipped": {"clip_sample": True},
        "thresholded": {"thresholding": True, "sample_max_value": 1.5},
    }
    for name, config in limits.items():
        for eta in (0, 0.5, 1):
            by_hand(
                d.ddim, f"ddim/eta {eta}, {name}", diffusers.DDIMScheduler, eta=eta, config=config
            )
        by_hand(d.ddpm, f"ddpm/{name}", diffusers.DDPMScheduler, config=config)
        by_hand(d.sample, f"diffusers' DDIM/{name}", diffusers.DDIMScheduler, config=config)
    by_hand(d.ddim, "ddim/eta 0.5", diffusers.DDIMScheduler, eta=0.5)
    by_hand(d.ddim, "ddim/eta 0.5, shared", diffusers.DDIMScheduler, eta=0.5, shared=0.5)
    by_hand(
        d.ddim, "ddim/to timestep 0", diffusers.DDIMScheduler, config={"set_alpha_to_one": False}
    )
    by_hand(d.ddpm, "ddpm/shared", diffusers.DDPMScheduler, shared=0.5)
    by_hand(
        d.ddpm, "ddpm/fixed large", diffusers.DDPMScheduler, config={"variance_type": "fixed_large"}
    )
    zero = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    by_hand(d.ddim, "ddim/zero terminal SNR", diffusers.DDIMScheduler, config=zero)
    by_hand(d.sample, "diffusers' DDIM/eta 0.5", diffusers.DDIMScheduler, eta=0.5)
    plain = {
        "DDPM": diffusers.DDPMScheduler,
        "DDIM": diffusers.DDIMScheduler,
    }
    for name, kind in plain.items():
        by_hand(d.sample, f"diffusers' {name}/plain", kind)
    # These know no clipping
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
    for name, kind in others.items():
        for predicts in ("epsilon", "v_prediction"):
            schedule = kind(prediction_type=predicts, **betas)
            model = d.guided(d.optimal_model(mixture, schedule), torch.ones(1, 3), 1.5)
            walk(
                f"{name}/{predicts}",
                d.sample(model, schedule, noise, told, steps=7, generator=seeded(1)),
            )
    return found


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
    """Every style of layers over time in an image U-Net, and the same in diffusers' classes."""
    from course_lib.nn.exchange import (
        from_unet3d,
        load_motion_adapter,
        to_motion_adapter,
        to_motion_model,
        to_unet3d,
        with_motion_adapter,
    )
    from course_lib.nn.inflate import inflate

    image = _image_unet()
    x, t = normal(2, 4, 5, 8, 8, seed=30), torch.tensor([5, 600])
    styles = {
        "Align your Latents": ("video-ldm", {}),
        "Align your Latents, text": ("video-ldm", {"text_width": 24}),
        "Align your Latents, given frames": ("video-ldm", {"extra_channels": 5, "head_width": 16}),
        "ModelScope": ("modelscope", {}),
        "ModelScope, heads": ("modelscope", {"head_width": 8}),
        "AnimateDiff": ("animatediff", {}),
        "AnimateDiff, options": (
            "animatediff",
            {"heads": 4, "frames": 8, "middle": False, "layers": 2},
        ),
        "LaVie": ("lavie", {}),
    }
    alone = torch.tensor([[False, False, False, True, True]] * 2)
    found, made = {}, {}
    for name, (style, options) in styles.items():
        torch.manual_seed(0)
        unet = inflate(image, style, **options)
        width = options.get("text_width", 16)
        text = normal(2, 6, width, seed=31)
        each = normal(2, 5, 6, width, seed=32)
        told = {"extra": normal(2, 5, 5, 8, 8, seed=33)} if options.get("extra_channels") else {}
        arrays = {
            "at first": unet(x, t, text, **told).sample,
            "initialisation": sizes(unet.temporal),
        }
        fill(unet.temporal, 3)
        arrays |= {
            "forward": unet(x, t, text, **told).sample,
            "forward, one timestep": unet(x, 300, text, **told).sample,
            "half of time": unet(x, t, text, temporal_scale=0.5, **told).sample,
            "image model": unet(x, t, text, temporal_scale=0, **told).sample,
            "joint training": unet(x, t, text, alone=alone, **told).sample,
            "joint training, text of each frame": unet(x, t, each, alone=alone, **told).sample,
            "text of each frame": unet(x, t, each, **told).sample,
        }
        if style in ("video-ldm", "lavie"):
            index = torch.tensor([[0, 0.5, 1, 4, 9], [0, 1, 2, 3, 4]])
            arrays["frame index"] = unet(x, t, text, frame_index=index, **told).sample
            arrays["frame index, joint training"] = unet(
                x, t, text, frame_index=index, alone=alone, **told
            ).sample
        unet.temporal.requires_grad_(True)
        for how in ("kept", "computed again"):
            if how == "computed again":
                unet.enable_gradient_checkpointing()
                unet.train(
                    name != "ModelScope" and name != "ModelScope, heads"
                )  # their layers drop out
            with torch.enable_grad():
                unet(x, t, text, **told).sample.square().mean().backward()
            gradients = [
                parameter.grad
                for parameter in unet.temporal.parameters()
                if parameter.grad is not None
            ]
            arrays[f"gradients, {how}"] = sorted(
                gradient.double().norm().item() for gradient in gradients
            )
            unet.zero_grad()
        unet.eval().requires_grad_(False)
        found |= under(name, arrays)
        made[name] = unet
    text, each = normal(2, 6, 16, seed=31), normal(2, 6, 16, seed=31).repeat_interleave(5, dim=0)
    moving = made["AnimateDiff"]
    found["diffusers/motion model"] = to_motion_model(moving)(x, t, each).sample
    adapter = to_motion_adapter(moving)
    found["diffusers/adapter"] = sizes(adapter)
    found["diffusers/from adapter"] = with_motion_adapter(image, adapter).eval()(x, t, text).sample
    other = inflate(image, "animatediff").eval()
    load_motion_adapter(other, adapter)
    found["diffusers/adapter loaded"] = other(x, t, text).sample
    square = fill(inflate(_even_unet(), "modelscope", head_width=16), 4)
    cubic = to_unet3d(square)
    found["diffusers/3D U-Net"] = cubic(x, t, text).sample
    found["diffusers/from 3D U-Net"] = from_unet3d(cubic)(x, t, text).sample
    return found


def _even_unet() -> nn.Module:
    """Heads of one width everywhere, as diffusers' UNet3DConditionModel has them."""
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
    text, each, rate = (
        normal(2, 6, 12, seed=41),
        normal(2, 5, 6, 12, seed=42),
        torch.tensor([8.0, 16.0]),
    )
    extra, index = (
        normal(2, 2, 5, 16, 16, seed=43),
        torch.tensor([[0, 1, 2, 3, 9], [4, 5, 6, 7, 8]]),
    )
    alone = torch.tensor([[False, False, False, True, True]] * 2)
    small = {"widths": (16, 32), "attention": (False, True), "head_width": 16}
    nets = {
        "plain": ({}, {}),
        "text": ({"text_width": 12}, {"encoder_hidden_states": text}),
        "text of each frame": ({"text_width": 12}, {"encoder_hidden_states": each, "alone": alone}),
        "attention everywhere, two layers": ({"attention": (True, True), "layers": 2}, {}),
        "heads": ({"head_width": 8}, {}),
        "sinusoidal": ({"positions": "sinusoidal"}, {}),
        "rotary": ({"positions": "rotary"}, {}),
        "no positions": ({"positions": "none"}, {}),
        "patches": ({"patch": 2}, {}),
        "patches, detail": ({"patch": 4, "detail": 8}, {}),
        "frame numbers": ({"frame_index": True}, {}),
        "frame numbers, given": ({"frame_index": True}, {"frame_index": index, "alone": alone}),
        "places": ({"places": True}, {}),
        "frame rate": ({"frame_rate": True}, {"frame_rate": rate}),
        "noise level": ({"noise_level": True}, {"noise_level": torch.tensor([1.0, 30.0])}),
        "extra channels": ({"extra_channels": 2, "out_channels": 6}, {"extra": extra}),
        "pictures alone": ({}, {"alone": alone}),
    }
    everything = {
        "text_width": 12,
        "patch": 2,
        "detail": 4,
        "frame_index": True,
        "places": True,
        "frame_rate": True,
    }
    everything |= {"noise_level": True, "extra_channels": 2}
    told = {
        "encoder_hidden_states": each,
        "frame_rate": rate,
        "noise_level": torch.tensor([0.5, 2.0]),
        "extra": extra,
    }
    nets["everything"] = (everything, told | {"alone": alone, "frame_index": index})
    found = {}
    for name, (options, told) in nets.items():
        torch.manual_seed(0)
        net = VideoUNet(**small | options)
        found[f"{name}/initialisation"] = sizes(net)
        found[f"{name}/at first"] = net.eval()(x, t, **told).sample
        fill(net, 5)
        found[f"{name}/forward"] = net(x, t, **told).sample
    odd = fill(VideoUNet(**small), 5)
    found["odd size"] = odd(x[..., :15, :13], t).sample
    found["one frame"] = odd(x[:, :, :1], t).sample
    torch.manual_seed(0)
    found["defaults"] = fill(VideoUNet(), 6)(x[:1, :, :2], t[:1]).sample
    odd.requires_grad_(True).train()
    odd.enable_gradient_checkpointing()
    with torch.enable_grad():
        odd(x, t).sample.square().mean().backward()
    found["gradients, computed again"] = sorted(
        parameter.grad.double().norm().item() for parameter in odd.parameters()
    )
    return found


@torch.no_grad()
def layers() -> Arrays:
    """Single layers: attention, positions, layers over time, texture, what they cost."""
    from course_lib.nn import attention as a
    from course_lib.nn import temporal as o
    from course_lib.nn.cost import conv_flops, count_flops, count_parameters, receptive_field
    from course_lib.nn.texture import texture

    video, text, each = (
        normal(2, 32, 5, 4, 6, seed=50),
        normal(2, 7, 12, seed=51),
        normal(2, 5, 7, 12, seed=52),
    )
    index = torch.tensor([[0, 0.5, 1, 4, 9], [0, 1, 2, 3, 4]])
    alone = torch.tensor([[False, False, False, True, True], [False, True, False, False, False]])
    mask, found = a.apart(alone), {}
    q, k, v = (normal(2, 3, 4, n, 8, seed=53 + n) for n in (5, 6, 6))
    found |= {"attention/attend": a.attend(q, k, v), "attention/weights": a.attention_weights(q, k)}
    found["attention/attend, bias"] = a.attend(q, k, v, normal(4, 5, 6))
    many = normal(1, 2, 80, 8, seed=54)
    found["attention/attend, long"] = a.attend(many, many, many)
    found |= {
        "attention/apart": mask,
        "attention/bias": a.as_bias(mask, torch.float32).clamp(min=-1),
    }
    found["positions/angles"], found["positions/sinusoids"] = (
        a.angles(5, 8, video),
        a.sinusoids(5, 8, video),
    )
    found["positions/sinusoids, given"] = a.sinusoids(index, 8, video)
    found["positions/rotary"], found["positions/rotary, given"] = (
        a.rotate(q),
        a.rotate(q[:, 0], index[:, None]),
    )
    found["positions/places"] = a.place_waves(3, 5, video)
    found["positions/relative"] = fill(a.RelativeBias(2, 3))(6)
    found["space"] = fill(a.SpatialAttention(32, 16))(video)
    found["text"] = fill(a.TextAttention(32, 12, 16))(video, text)
    found["text of each frame"] = fill(a.TextAttention(32, 12, 16))(
        video, each, normal(2, 5, 24, 32)
    )
    for positions in a.POSITIONS:
        layer = fill(a.TemporalAttention(32, 16, positions, 4))
        told = {"frame_index": index} if positions in a.PLACED else {}
        found[f"time/{positions}"], found[f"time/{positions}, masked"] = (
            layer(video),
            layer(video, mask),
        )
        found[f"time/{positions}, weights"] = layer.weights(video, mask, **told)
        found[f"time/{positions}, index"] = layer(video, **told)
    embedding = normal(2, 5, 24, seed=55)
    over_time = {
        "ModelScope's convolutions": (o.TemporalConv(32, 8), {}),
        "transformer": (o.TemporalTransformer(32, 4, 8, 8), {}),
        "transformer, positions": (o.TemporalTransformer(32, 2, 8, 8, 6, 2), {}),
        "residual": (o.TemporalResidual(32, 24), {"embedding": embedding}),
        "text": (o.TextBlock(32, 12, 16), {"text": text}),
        "time and text": (
            o.TimeAndText(32, 16, text_width=12),
            {"text": each, "frame_index": index},
        ),
        "time": (o.TimeAndText(32, 16, "rotary"), {}),
        "given frames": (o.Beside(3, 32), {"extra": normal(2, 3, 5, 4, 6)}),
        "blended": (o.Blend(o.TemporalResidual(32, 24)), {"embedding": embedding}),
    }
    for name, (layer, told) in over_time.items():
        found[f"over time/{name}"] = fill(layer)(video, **told)
        found[f"over time/{name}, two frames"] = layer(
            video[:, :, :2],
            **{
                key: part if key == "text" and part.ndim == 3 else _two(part)
                for key, part in told.items()
            },
        )
    found["texture"] = texture(moving_discs(2, 3, 32))
    net = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 2 * 16, 5))
    found["cost/flops"] = [
        count_flops(net, normal(1, 3, 2, 4, 4)),
        conv_flops((3, 5), (3, 3, 3), (2, 4, 4), 2),
    ]
    found["cost/parameters"] = [count_parameters(net)]
    found["cost/receptive field"] = [
        receptive_field([3, 3, 3]),
        receptive_field([3, 5], [2, 1], [1, 2]),
    ]
    return found


def _two(part: Tensor) -> Tensor:
    """The first two frames of what a layer over time is told."""
    return part[:, :, :2] if part.ndim == 5 else part[:, :2]


@torch.no_grad()
def convolution() -> Arrays:
    """Every convolution for video, and inflated kernels."""
    from course_lib.nn import convolution as c

    video = normal(2, 6, 7, 9, 8, seed=60)
    flat = fill(nn.Conv2d(6, 4, 3, padding=1), 7)
    torch.manual_seed(0)
    nets = {
        "2D per frame": c.FrameConv2d(6, 4, 3),
        "2D per frame, stride": c.FrameConv2d(6, 4, 5, stride=2, bias=False),
        "3D": c.Conv3d(6, 4),
        "3D, options": c.Conv3d(6, 4, (3, 5, 3), stride=(2, 1, 2), dilation=(1, 1, 2), bias=False),
        "3D, padding": c.Conv3d(6, 4, (2, 3, 3), padding=(1, 0, 0)),
        "(2+1)D": c.R2Plus1DConv(6, 4),
        "(2+1)D, options": c.R2Plus1DConv(
            6, 8, 5, 3, stride=(1, 2), middle=8, norm=c.group_norm, bias=True
        ),
        "separable": c.SeparableConv3d(6, 4),
        "pseudo-3D": c.Pseudo3DConv(6, 4),
        "pseudo-3D, stride": c.Pseudo3DConv(6, 4, 3, 5, stride=2),
        "causal": c.CausalConv3d(6, 4),
        "causal, zeros": c.CausalConv3d(6, 4, (2, 3, 1), first="zeros", bias=False),
        "causal, strides": c.CausalConv3d(6, 4, 3, stride=2, dilation=2),
    }
    found = {}
    for name, net in nets.items():
        found[f"{name}, initialisation"] = sizes(net)
        found[name] = fill(net, 8)(video)
    found["pseudo-3D, from 2D"] = c.Pseudo3DConv.from_conv2d(flat)(video)
    found["pseudo-3D, at first"] = fill(c.Pseudo3DConv(6, 4).spatial, 8)(video)
    chunks, cache = [], None
    for chunk in video.split(3, dim=2):
        out, cache = nets["causal"].step(chunk, cache)
        chunks.append(out)
    found["causal, by chunks"], found["causal, cache"] = torch.cat(chunks, dim=2), cache
    for mode, frames in {"center": 3, "mean": 4, "causal": 4}.items():
        found[f"inflated kernel, {mode}"] = c.inflate_kernel(flat.weight, frames, mode)
    found["inflated kernel, default"] = c.inflate_kernel(flat.weight, 5)
    found["middle width"] = [c.middle_width(6, 4), c.middle_width(64, 128, 5, 3)]
    found["output length"] = [c.output_length(17, 3, 2, 1, 2), c.output_length(9, 3)]
    found["groups"] = [c.group_norm(channels).num_groups for channels in (4, 12, 24)]
    return found


@torch.no_grad()
def video_resnet() -> Arrays:
    """Every kind of video classifier."""
    from course_lib.nn.classifier import VideoClassifier
    from course_lib.nn.convolution import group_norm
    from course_lib.nn.video_resnet import video_resnet as build

    video, found = moving_discs(2, 8, 32, seed=61), {}
    widths = {"widths": (8, 8, 16, 16)}
    for kind in ("f-r2d", "r2d", "mc3", "rmc3", "r3d", "r2plus1d", "lean"):
        torch.manual_seed(0)
        frames = 8 if kind == "r2d" else None
        net = build(kind, 5, frames=frames, **widths)
        found[f"{kind}/initialisation"] = sizes(net)
        fill(net, 9)
        found[f"{kind}/logits"], found[f"{kind}/features"] = net(video), net.features(video)
        options = {
            "norm": group_norm,
            "layers": (1, 2, 1, 1),
            "stem_kernel": 5,
            "stem_stride": (2, 2),
        }
        found[f"{kind}/options"] = fill(build(kind, 5, frames=frames, **widths, **options), 9)(
            video
        )
    torch.manual_seed(0)
    net = VideoClassifier("lean", {"motion": 3, "subject": 4}, (8, 8, 16, 16), size=32, texture=2.0)
    found["classifier/initialisation"] = sizes(net)
    net.temperature("motion").fill_(2)
    fill(net, 10)
    for name, clips in {"": video, ", resized": moving_discs(2, 4, 48)}.items():
        logits = net(clips)
        found |= {f"classifier/{head}{name}": logits[head] for head in ("motion", "subject")}
        found[f"classifier/features{name}"] = net.features(clips)
    return found


# Areas: metrics


def _numbers(score: Any) -> list[float]:
    """Value, count and interval of a score, or of all in a dict, in its order."""
    if isinstance(score, Mapping):
        return [number for one in score.values() for number in _numbers(one)]
    return [score.value, score.n, *(score.interval or ())]


@torch.no_grad()
def metrics() -> Arrays:
    """Distances, distributions and everything that is measured on pixels."""
    from course_lib import metrics as m

    video, other = moving_discs(4, 8, 32, seed=70), moving_discs(4, 8, 32, seed=71)
    near = (video + 0.1 * normal(4, 3, 8, 32, 32, seed=72)).clamp(-1, 1)
    real, fake = normal(80, 6, seed=73), 1.2 * normal(70, 6, seed=74) + 0.3
    found: Arrays = {
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
        "kid, subsets": list(m.kernel_distance_subsets(real, fake, subsets=6, size=20)),
        "precision and recall": [
            *m.precision_recall(real, fake),
            *m.precision_recall(real, fake, 1),
        ],
        "inception score": [
            *m.inception_score(3 * real),
            *m.inception_score(3 * real, splits=4, seed=1),
        ],
        "area under ROC": _numbers(m.auroc(real[:, 0], real[:, 1] > 0)),
        "calibration error": [
            *_numbers(m.expected_calibration_error(real.softmax(1), torch.arange(80) % 6)),
            *_numbers(m.expected_calibration_error(real.softmax(1), torch.arange(80) % 6, bins=4)),
        ],
        "mean score": _numbers(m.mean_score("x", real[:, 0])),
        "share score": _numbers(m.share_score("x", 7, 20)),
    }
    limit = m.frechet_infinity(real, fake)
    found["frechet, infinitely many"] = [
        limit.value,
        *limit.interval,
        limit.bias,
        *limit.parts,
        *limit.distances,
    ]

    def net(clips: Tensor) -> Tensor:
        return torch.cat([clips.mean(dim=(2, 3, 4)), clips.std(dim=(2, 3, 4))], dim=1)

    def image_net(pictures: Tensor) -> Tensor:
        return torch.cat([pictures.mean(dim=(2, 3)), pictures.std(dim=(2, 3))], dim=1)

    found["extracted"] = m.extract(net, video)
    found["frame features"] = m.extract(m.frame_features(image_net), video)
    found["mean frame features"] = m.extract(m.mean_frame_features(image_net), video)
    many, few = moving_discs(12, 3, 16, seed=75), moving_discs(9, 3, 16, seed=76)
    for name, kind in {
        "frechet distance": m.FrechetDistance,
        "kernel distance": m.KernelDistance,
        "precision and recall": m.PrecisionRecall,
        "all distances": m.DistributionScores,
    }.items():
        metric = kind(net, "net")
        for part in many.split(5):
            metric.update(part, real=True)
        metric.update(few, real=False)
        found[f"metric/{name}"] = _numbers(metric.compute())
    frechet = m.FrechetDistance(net, "net", ddof=0)
    frechet.update(many, real=True)
    frechet.update(few, real=False)
    found["metric/frechet distance, ddof 0"] = _numbers(frechet.compute())
    inception = m.InceptionScore(net, "net", splits=2)
    inception.update(many)
    found["metric/inception score"] = _numbers(inception.compute())
    pairs = {"psnr": m.PSNR(), "psnr, cap": m.PSNR(20), "ssim": m.SSIM()}
    pairs["perceptual"] = m.PerceptualDistance(
        lambda pictures: [pictures, pictures[:, :, ::2]], "net"
    )
    for name, metric in pairs.items():
        metric.update(near, video)
        found[f"metric/{name}"] = _numbers(metric.compute())
    found["consistency"] = list(m.frame_consistency(normal(3, 5, 6, seed=77)).values())
    consistency = m.FrameConsistency(image_net, "net")
    consistency.update(other)
    found["metric/consistency"] = _numbers(consistency.compute())
    return found


@torch.no_grad()
def motion_metrics() -> Arrays:
    """Optical flow, and what is measured by it: motion, flicker, trajectories."""
    from torchvision.models.optical_flow import raft_small

    from course_lib import metrics as m

    video = moving_discs(3, 6, 32, seed=80)
    forward, backward = m.both_flows(video)
    found: Arrays = {"flow, forward": forward, "flow, backward": backward}
    found["flow, TV-L1"] = m.estimate_flow(video[:1, :, :3], "tvl1")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(fill(raft_small(weights=None), 12).state_dict(), Path(folder) / "raft.pth")
        found["flow, untrained RAFT"] = m.raft_flow(Path(folder) / "raft.pth")(video[:1, :, :2])
    smooth = 3 * nn.functional.interpolate(
        normal(6, 2, 4, 4, seed=81), (32, 32), mode="bilinear"
    ).unflatten(0, (3, 2))
    smooth = smooth.transpose(1, 2).repeat(1, 1, 3, 1, 1)[:, :, :5]
    found["warped"] = m.warp(video[:, :, 1:], smooth)
    found["visible"] = m.visible(smooth, -smooth)
    found["warping error"] = [
        *m.warping_error(video, forward, backward),
        *m.warping_error(video, smooth, -smooth),
    ]
    found["dynamic degree"] = [
        part
        for told in ({}, {"fps": 4}, {"speed": 2})
        for row in m.dynamic_degree(smooth, **told)
        for part in row
    ]
    for name, metric, told in (
        ("warping error", m.WarpingError(), ()),
        ("warping error, given flow", m.WarpingError("exact"), ((smooth, -smooth),)),
        ("flicker", m.Flicker(), ()),
        ("smoothness", m.Smoothness(), ()),
        ("dynamic degree", m.DynamicDegree(), ()),
        ("dynamic degree, given flow", m.DynamicDegree("exact", speed=1, fps=10), (smooth,)),
    ):
        metric.update(video, *told)
        found[f"metric/{name}"] = _numbers(metric.compute())
        found[f"metric/{name}, clips"] = list(metric.per_clip().values())
    masks = m.subject_masks(video)
    found["masks"], found["centres"] = masks, m.centres(masks)
    found["subject centres"] = m.subject_centres(video)
    path = 0.3 * normal(3, 6, 4, seed=82)
    for name, metric, told in (
        ("found", m.TrajectoryError(), ()),
        ("given", m.TrajectoryError("given"), (masks,)),
    ):
        metric.update(video, path, *told)
        found[f"metric/trajectory error, {name} masks"] = _numbers(metric.compute())
    return found


@torch.no_grad()
def text_metrics() -> Arrays:
    """Scores of video with words, by mini-clip and by the judge."""
    from course_lib import metrics as m
    from course_lib import zoo
    from course_lib.recipes.drawn import compared, judged

    encoder = m.ClipEncoder.from_pretrained(zoo.path("mini-clip"))
    source, edited = moving_discs(2, 4, seed=83), moving_discs(2, 4, seed=84)
    targets = ["a bus moving left on a sea background", "a red star bouncing on a white background"]
    found: Arrays = {"similarity": m.clip_similarity(encoder, source, PROMPTS)}
    for name, metric, told in (
        ("alignment", m.TextAlignment(encoder, "mini-clip"), (source, PROMPTS)),
        (
            "direction",
            m.DirectionalSimilarity(encoder, "mini-clip"),
            (source, edited, PROMPTS, targets),
        ),
        ("frame accuracy", m.FrameAccuracy(encoder, "mini-clip"), (edited, PROMPTS, targets)),
        ("consistency", m.FrameConsistency(encoder.image, "mini-clip"), (source,)),
    ):
        metric.update(*told)
        found[name] = _numbers(metric.compute())
    accuracy = m.PromptAccuracy(zoo.load("judge"), "judge")
    accuracy.update(source, PROMPTS)
    accuracy.update(edited, ["a tiger", "a tiger spinning"])
    found["prompt accuracy"] = _numbers(accuracy.compute())
    groups = [m.part_of_prompt(prompt) for prompt in (*PROMPTS, "a tiger", "a fox spinning")]
    found["part of the world"] = checksum(groups)
    found["prompt accuracy, groups"] = [
        _numbers(group) for group in accuracy.breakdown(["a", "a", "b", "b"]).values()
    ]
    mistakes = accuracy.confusions("subject")
    found["confusions"] = checksum([f"{one.asked}, {one.seen}, {one.count}" for one in mistakes])
    shares = judged(source, PROMPTS)
    found["judged"] = np.hstack(list(shares.values()))
    found["compared"] = list(
        compared(source, edited, moving_discs(2, 4, seed=85), name="x").values()
    )
    return found


# Areas: the world


def _of_clips(clips: Any) -> Arrays:
    """All that is true of a batch."""
    words = {"captions": clips.captions, "paraphrases": clips.paraphrases}
    words |= {"image captions": clips.image_captions, "image paraphrases": clips.image_paraphrases}
    labels = [clips.labels[name] for name in ("subject", "motion", "background")]
    arrays = {"video": clips.video, "path": clips.path, "coverage": clips.alpha, "flow": clips.flow}
    arrays |= {
        "mask": clips.mask,
        "trajectory": clips.trajectory,
        "flow is exact": clips.flow_exact,
    }
    arrays["labels"] = torch.stack(labels)
    return arrays | {name: checksum(texts) for name, texts in words.items()}


def world() -> Arrays:
    """Clips of the world with every option, and the scenes it draws."""
    from course_lib import world as w
    from course_lib.metrics import exact_flows
    from course_lib.world.hashing import mix, uniform

    worlds = {
        "plain": {},
        "test": {"split": "test"},
        "novel": {"part": "novel"},
        "composed": {"part": "composed", "seed": 3},
        "all": {"part": "all"},
        "frozen": {"frozen": True, "fps": 16},
        "any time": {"anytime": True, "frames": 4},
        "pictures": {"anytime": True, "frames": 1},
        "small": {"size": 32, "frames": 24},
        "odd size": {"size": 48, "fps": 32, "frames": 8},
        "few": {
            "subjects": ["tiger", "red circle"],
            "motions": ["growing", "bouncing"],
            "backgrounds": ["snow"],
        },
    }
    found = {}
    for name, options in worlds.items():
        clips = w.World(**options).batch(range(6))
        found |= under(name, _of_clips(clips))
        if clips.video.shape[2] > 1:
            found[f"{name}/flow, backward"] = exact_flows(clips)[1]
    item = w.World()[5]
    found["item"] = [item["video"].mean(), item["subject"], item["motion"], item["background"]]
    scenes = [
        w.Scene(w.SUBJECTS[5 * k], motion, w.BACKGROUNDS[k % len(w.BACKGROUNDS)], 11 * k)
        for k, motion in enumerate(w.MOTIONS)
    ]
    scenes += [
        w.Scene(w.SUBJECTS[-1 - k], "moving left", background, k)
        for k, background in enumerate(w.BACKGROUNDS)
    ]
    found |= under("every motion and background", _of_clips(w.render(scenes, frames=4)))
    found |= under(
        "shapes", {"video": w.render([w.Scene(name) for name in w.SUBJECTS[76:]], frames=1).video}
    )
    found |= under(
        "emoji",
        {"video": w.render([w.Scene(name) for name in w.SUBJECTS[:76]], frames=1, size=32).video},
    )
    joined = w.Scene("tiger"), w.Scene("red star", "spinning", "sea", 7)
    found["captions"] = checksum([w.caption(one, k) for one in joined for k in range(4)])
    found["image captions"] = checksum(
        [w.image_caption(one, k) for one in joined for k in range(4)]
    )
    read = w.parse_caption(PROMPTS[0])
    found["caption read"] = checksum(
        [str(read[name]) for name in ("subject", "motion", "background")]
    )
    tables = (
        w.SUBJECTS,
        w.MOTIONS,
        w.BACKGROUNDS,
        w.SEEN_EMOJI,
        w.NOVEL_EMOJI,
        w.HELD_OUT_SHAPES,
        w.SHAPES,
    )
    for number, table in enumerate(tables):
        found[f"tables/{number}"] = checksum(table)
    found["tables/colours"] = list(w.COLOURS.values())
    found["tables/held-out pairs"] = checksum(sorted(" ".join(pair) for pair in w.HELD_OUT_PAIRS))
    sampler = w.Sampler("train", seed=71)
    drawn = [sampler(index) for index in range(300)]
    found["scenes"] = checksum(
        [f"{s.subject} {s.motion} {s.background} {s.variant}" for s in drawn]
    )
    found["hash"] = [*uniform("speed", np.arange(8)), *(mix(3, np.arange(8)) % np.uint64(1000))]
    return found


def corruptions() -> Arrays:
    """What is done to clips: corruptions, defects, impostors, styles, edges.

    They are numbered, in the order of their tables: their names in the code may change.
    """
    from course_lib import world as w
    from course_lib.world import corruption as c
    from course_lib.world.impostors import IMPOSTORS, impostors

    clips = w.World("train", frames=8, seed=5).batch(range(6))
    small = w.World("train", size=32, frames=8, seed=5).batch(range(6))
    video, found = clips.video, {}
    for number, change in enumerate(c.CORRUPTIONS.values()):
        found[f"corruption/{number}"] = change(video, seeded(12))
        found[f"corruption/{number}, small"] = change(small.video, seeded(12))
    found["corruption/blur, 3"] = c.blur(video, 3)
    found["corruption/noise, 0.5"] = c.noise(video, 0.5, seeded(13))
    found["corruption/jpeg"] = c.jpeg(video, 20)
    found["corruption/halves"] = c.swap_halves(video)
    for steady in (True, False):
        glass = c.wobble(video, 2, seeded(14), steady=steady)
        found[f"corruption/wobble, steady {steady}"] = glass
    defects = [*w.DEFECTS, "clean"]
    for number, name in enumerate(defects):
        damaged = w.damage(clips, [name] * len(clips), seeded(15))
        found[f"defect/{number}"] = damaged.video
        found[f"defect/{number}, captions"] = checksum(damaged.captions)
        found[f"defect/{number}, cuts"] = [-1 if cut is None else cut for cut in damaged.cuts]
    some = w.damage_some(clips, 0.7, seeded(16))
    found["defects of some"] = some.video
    found["defects of some, labels"] = [defects.index(label) for label in some.labels]
    for number, name in enumerate(IMPOSTORS):
        strange, labels = impostors(clips, [name] * len(clips), seeded(17))
        found[f"impostor/{number}"] = strange
        heads = ("subject", "motion", "background")
        found[f"impostor/{number}, labels"] = [labels[head].tolist() for head in heads]
    kinds = (list(IMPOSTORS) * 2)[:6]
    found["impostors, mixed"] = impostors(small, kinds, seeded(18))[0]
    for number, style in enumerate(w.STYLES.values()):
        found[f"style/{number}"] = style(video)
    found["edges"] = w.canny_edges(video[:2, :, :3])
    found["edges, wider"] = w.canny_edges(video[:2, :, :3], 2.0)
    return found


def film() -> Arrays:
    """Real film, read and written."""
    from course_lib import world as w

    found = {}
    for name, card in w.films().items():
        found[f"{name}/card"] = [card.fps, card.frames, card.width, card.height, *card.cuts]
        found[f"{name}/square"] = w.load_film(name, start=0.3, frames=5, fps=8, size=32)
    found["own size"] = w.load_film("puck", frames=3)
    found["other size"] = w.load_film("earth", frames=3, size=(40, 72))
    with tempfile.TemporaryDirectory() as folder:
        w.save_film(Path(folder) / "film.mp4", moving_discs(1, 6, seed=90)[0])
        found["written and read"] = w.load_film(Path(folder) / "film.mp4")
    return found


# Areas: files and training


def numbers_in_files() -> Arrays:
    """All numbers of the committed JSON files, in the order of the file."""
    files = [ROOT / "data" / name for name in ("claims.json", "bench.json", "clips/clips.json")]
    files += sorted((ROOT / "data" / "checkpoints").rglob("evaluation.json"))

    def leaves(value: Any) -> list[float]:
        if isinstance(value, Mapping):
            return [number for item in value.values() for number in leaves(item)]
        if isinstance(value, list):
            return [number for item in value for number in leaves(item)]
        return [float(value)] if isinstance(value, bool | int | float) else []

    return {
        file.relative_to(ROOT / "data").as_posix(): leaves(
            json.loads(file.read_text(encoding="utf-8"))
        )
        for file in files
    }


def training() -> Arrays:
    """A few steps of the training loop on a tiny net, and a run that goes on from its state."""
    from course_lib.training import fit, train

    def net() -> nn.Module:
        return fill(
            nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 2)), 11
        ).requires_grad_(True)

    def batches(number: int) -> Tensor:
        return normal(6, 4, seed=100 + number)

    def loss(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        noisy = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        return (model(noisy) - batch[:, :2].sin()).square().mean()

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    runs = {
        "defaults": {"lr": 1e-2},
        "warmed up, averaged": {"lr": 1e-2, "warmup": 2, "ema": 0.8, "seed": 3},
        "adam, linear": {
            "lr": 1e-2,
            "optimizer": "adam",
            "schedule": "linear",
            "weight_decay": 0.1,
        },
        "sgd, constant": {"lr": 0.1, "optimizer": "sgd", "schedule": "constant", "clip": 0.01},
        "adamw, not clipped": {"lr": 1e-2, "weight_decay": 0.5, "clip": None},
    }
    found: Arrays = {}
    for name, options in runs.items():
        model = net()
        steps = list(train(model, batches, loss, steps=6, mixed_precision="no", **options))
        found[f"{name}/weights"] = flat(model)
        found[f"{name}/losses"], found[f"{name}/rates"] = (
            steps[-1].losses,
            [step.lr for step in steps],
        )
        with steps[-1].averaged() as average:
            found[f"{name}/averaged weights"] = flat(average)
    model = net()
    options = {"steps": 5, "lr": 1e-2, "ema": 0.5, "mixed_precision": "no"}
    told = {"evaluate": lambda step: {"loss": step.loss}, "every": 2}
    history = fit(model, [batches(k) for k in range(3)], loss, progress=False, **options, **told)
    found["fit/weights"] = flat(model)
    found["fit/evaluations"] = [
        number for step in history for number in (step.evaluation or {}).values()
    ]
    with tempfile.TemporaryDirectory() as folder:
        model, again, state = net(), net(), Path(folder) / "state"
        for step in train(model, batches, loss, state=state, save_every=0, **options):
            if step.step == 2:
                break
        steps = list(train(again, batches, loss, state=state, save_every=0, **options))
        found["resumed/weights"], found["resumed/losses"] = flat(again), steps[-1].losses
    return found


def recipes() -> Arrays:
    """Batches and losses of the recipes that need no thousand encoded clips, and their settings."""
    import importlib

    found: Arrays = {}
    places = {
        "judge": ("judge", "RECIPE"),
        "mini-clip": ("mini_clip", "RECIPE"),
        "mini-vae": ("mini_vae", "RECIPE"),
        "pixel-ddpm": ("pixel_ddpm", "RECIPE"),
        "temporal-vae": ("temporal_vae", "RECIPE"),
        "image features": ("features", "IMAGE"),
        "video features": ("features", "VIDEO"),
    }
    for name, (module, what) in places.items():
        recipe = getattr(importlib.import_module(f"course_lib.recipes.{module}"), what)
        settings = recipe.settings["ci"]
        batch = recipe.batches(1, settings)
        tensors = [part for part in _leaves(batch) if isinstance(part, Tensor)]
        for number, part in enumerate(tensors):
            found[f"{name}/batch/{number}"] = part
        torch.manual_seed(0)
        model = recipe.build()
        found[f"{name}/initialisation"] = sizes(model)
        with torch.no_grad():
            found[f"{name}/loss"] = recipe.loss(model.train(False), batch, seeded(19))
    return found


def video_recipes() -> Arrays:
    """Batches and losses of the recipes that encode clips by the thousand; here by the dozen."""
    from course_lib.recipes import mini_sd, mini_video
    from course_lib.recipes import vdm as vdm_recipe

    found: Arrays = {}
    for name, module, chunks in (
        ("mini-sd", mini_sd, 2),
        ("vdm", vdm_recipe, 12),
        ("mini-video", mini_video, 12),
    ):
        recipe = module.RECIPE
        rows = recipe.settings.values()
        found[f"{name}/settings"] = [
            number for one in rows for number in (one.steps, one.batch, one.lr, one.ema or 0)
        ]
        torch.manual_seed(0)
        model = recipe.build().eval()
        found[f"{name}/initialisation"] = sizes(model)
        # How many clips are encoded at once, and how often
        with mock.patch.multiple(module, CHUNK=12, CHUNKS=chunks), torch.no_grad():
            for step in range(recipe.settings["ci"].steps):
                batch = recipe.batches(step, recipe.settings["ci"])
                for number, part in enumerate(_leaves(batch)):
                    found[f"{name}/step {step}/batch/{number}"] = part
                found[f"{name}/step {step}/loss"] = recipe.loss(model, batch, seeded(19))
    found["mini-video/known frames"] = mini_video.known(8, seeded(20))
    return found


def _leaves(value: Any) -> list[Any]:
    """What lies in mappings and sequences, in their order."""
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
    "exact": exact,
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


def kept(name: str, whole: np.ndarray) -> np.ndarray:
    """All of an array, or every n-th value, and mean and standard deviation of all behind."""
    if name.startswith(EXACT):
        return whole
    flat = whole.ravel()
    if flat.size > LIMIT:
        stride = -(-flat.size // LIMIT) | 1  # odd, so that not all come from one column
        flat = np.concatenate([flat[::stride], [flat.mean(), flat.std()]])
    return flat.astype(np.float32)


def compute(
    areas: Sequence[str],
) -> tuple[dict[str, np.ndarray], dict[str, list[int]], dict[str, str]]:
    """Run areas. Returns arrays and their shapes by name, and what went wrong, by area."""
    arrays, shapes, failures = {}, {}, {}
    for area in areas:
        start = time.perf_counter()
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = {f"{area}/{name}": to_array(value) for name, value in AREAS[area]().items()}
        except Exception:
            failures[area] = traceback.format_exc()
            found = {}
        shapes |= {name: list(whole.shape) for name, whole in found.items()}
        arrays |= {name: kept(name, whole) for name, whole in found.items()}
        said = "FAILED" if area in failures else f"{len(found)} arrays"
        print(f"{area}: {said}, {time.perf_counter() - start:.1f} s", flush=True)
    return arrays, shapes, failures


def read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Arrays and shapes of a file."""
    with np.load(file) as stored:
        shapes = json.loads(bytes(stored[SHAPES]).decode())
        return {name: stored[name] for name in stored.files if name != SHAPES}, shapes


def record(file: Path, areas: Sequence[str]) -> dict[str, str]:
    """Compute areas and write them; others in the file stay. Returns what went wrong, by area."""
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
    """What differs in two arrays, or None."""
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
    """Compute areas again. Returns one line for every difference, and what went wrong, by area."""
    old, old_shapes = read(file)
    arrays, shapes, failures = compute(areas)
    old = {name: value for name, value in old.items() if name.split("/")[0] in areas}
    lines = []
    for name in sorted(old.keys() | arrays.keys()):
        if name.split("/")[0] in failures:
            continue  # said already
        if name not in arrays:
            lines.append(f"missing: {name}")
        elif name not in old:
            lines.append(f"new: {name}")
        elif shapes[name] != old_shapes[name]:
            lines.append(f"differs: {name}: had shape {old_shapes[name]}, now {shapes[name]}")
        elif (what := difference(name, old[name], arrays[name])) is not None:
            lines.append(f"differs: {name}: {what}")
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
