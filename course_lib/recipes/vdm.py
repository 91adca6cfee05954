"""vdm: a sentence to a clip of 16 frames, 32 x 32 pixels; the first video model of the course, that of lesson 03.

It learns from clips and from pictures at once. It never sees the 12 novel emoji, a held-out colour and shape, or a
held-out subject and motion, and of the others it knows those of `CLASSES`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_lib import runtime
from course_lib.diffusion import (
    Example,
    denoising_loss,
    drop_conditioning,
    guided,
    in_turn,
    initial_noise,
    sample,
    training_example,
)
from course_lib.metrics import Flicker
from course_lib.nn.unet import VideoUNet
from course_lib.papers.vdm import (
    as_model,
    build_schedule,
    build_unet,
    coherent,
    extend,
    read,
    with_pictures,
)
from course_lib.evaluation import compared, judged, judged_by_motion
from course_lib.recipes.mini_clip import tokenize
from course_lib.recipes.mini_sd import text_tower
from course_lib.recipes.pixel_ddpm import CLASSES
from course_lib.recipes.recipe import Recipe, Settings, save_half
from course_lib.world import Clips, Sampler, World, render
from course_lib.world.hashing import mix

SIZE, FRAMES, PICTURES = 32, 16, 4
RATES = (
    8,
    8,
    8,
    8,
    16,
    32,
)  # frames a second: of most clips the canonical 8; faster ones show a part of the film
SCENES = {"subjects": CLASSES}  # of its world, see `world.Sampler`
# Shifted to more noise: sixteen frames see through more of it than one picture does, see `build_schedule`
SCHEDULE = build_schedule(shift=4)
CHUNK, CHUNKS = 1020, 16  # clips are rendered by the chunk, and met again after so many
# Every fourth frame, of four times as many clips: four frames tell a motion as well as sixteen. In 400 such steps a
# network that had read the text tower alone, and drew 19 % of motions, learnt to tell those of 50 clips in 54
SPARSE = 4
SLOW = torch.tensor(
    [row for row in range(CHUNK * CHUNKS) if RATES[row % len(RATES)] == 8]
)  # whole films
# Of whole clips, those whose motion is hard to draw: their share of a batch, and the timesteps at which they are met.
# Real clips under noise were finished by a network that drew 99 % of the other motions: from timestep 150 on 15 of 18
# turned as told, from 300 on 10; from 700 on 12 of 14 bounced, from 850 on 6
HARD = {"spinning": (5 / 16, 50, 600), "bouncing": (4 / 16, 650, 1000)}
DROPPED = 0.1  # share of texts that training forgets, for guidance
STEPS, GUIDANCE, WEIGHT = 25, 3.0, 2.0  # of the evaluation
# Below timestep 500 it is guidance not by text but away from frames alone, see `papers.vdm.coherent`: of 80 clips of
# the two hard motions 53 moved as told, with text throughout 43; with it throughout 51, but subjects suffered
COHERENT, LATE = 2.0, 500
ROWS, LONG = 16, 64  # clips that are drawn at once; frames of a long clip
# Frames of the past that a block of a longer clip is shown. Of 32 clips 29 showed their subject in the first 16 frames;
# in the last 16 frames of 64, after four blocks that see 4 frames, 28 did, after six that see 8, 24
PAST = 4


@cache
def chunk(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips of the training split: uint8 (n, 3, f, h, w), frames a second (n,), tokens of captions with and without a
    motion (n, l).
    """
    sampler = _sampler()
    scenes = [sampler(index) for index in range(number * CHUNK, (number + 1) * CHUNK)]
    rates = [RATES[index % len(RATES)] for index in range(CHUNK)]
    parts: list[Clips] = [
        render(scenes[start :: len(RATES)], size=SIZE, frames=FRAMES, fps=rate, anytime=True)
        for start, rate in enumerate(RATES)
    ]
    video = torch.stack([part.video for part in parts], dim=1).flatten(
        0, 1
    )  # back in the order of the scenes
    texts = [
        [getattr(part, kind) for part in parts] for kind in ("paraphrases", "image_paraphrases")
    ]
    tokens = [tokenize([text for row in zip(*kind, strict=True) for text in row]) for kind in texts]
    return video.add(1).mul(127.5).round().byte(), torch.tensor(rates), *tokens


def batches(number: int, settings: Settings) -> dict[str, Any]:
    """One global batch: what is noisy and what it hides, see `diffusion.Example`, and what the network is told.

    The first steps are of pictures, clips of one frame, with "text" (b, l, d); the next of every fourth frame of clips,
    "frame_rate" (b,), "frame_index" (b, f); the others of whole clips with pictures appended: "text" (b, f, l, d),
    "alone" (b, f), "frame_rate" (b,).
    """
    generator = torch.Generator().manual_seed(int(mix(61, number)[0] >> np.uint64(1)))
    options, count = settings.options, settings.options["pictures a step"]
    first = options["picture steps"]
    sparse = first + options["sparse steps"]
    if number < first:
        rows = torch.arange(number * count, (number + 1) * count)
        frames, captions = _pictures(rows[:, None], generator)
        clips, conditioning = (
            _unpacked(frames).transpose(1, 2),
            {"text": _read(captions[:, 0], generator)},
        )
        t = _timesteps(count, generator)
    elif number < sparse:
        many = SPARSE * settings.batch
        rows = _next(SLOW, number - first, many)
        video, rates, tokens, _ = _clips(rows)
        moments = torch.arange(int(torch.randint(SPARSE, (), generator=generator)), FRAMES, SPARSE)
        clips, conditioning = _unpacked(video[:, :, moments]), {"text": _read(tokens, generator)}
        conditioning |= {"frame_rate": rates, "frame_index": moments.expand(many, -1)}
        t = _timesteps(many, generator, noisiest=True)
    else:
        rows, t = _practice(number - sparse, settings.batch, generator)
        video, rates, tokens, _ = _clips(rows)
        # Its pictures are frames of other clips, and their captions say nothing of motion
        others = torch.randint(CHUNK * CHUNKS, (len(rows), PICTURES), generator=generator)
        frames, captions = _pictures(others, generator)
        text = _read(torch.cat([tokens[:, None], captions], dim=1).flatten(0, 1), generator)
        text = text.unflatten(0, (len(rows), -1))  # b (1 + n) l d
        clips, conditioning = with_pictures(
            _unpacked(video), text[:, 0], _unpacked(frames), text[:, 1:]
        )
        conditioning |= {"frame_rate": rates}
    example = training_example(SCHEDULE, clips, generator, t=t)
    return {**example._asdict(), **conditioning}


def _timesteps(count: int, generator: torch.Generator, noisiest: bool = False) -> Tensor:
    """The largest of three for each row; or any for even rows, and the smallest of three for odd ones.

    Motion is decided at high noise. But the last of 25 steps of sampling begins with a third as much noise as signal,
    and one timestep in 25 has less: where they were rare in training, the network left grain in its clips.
    """
    t = torch.randint(len(SCHEDULE.alphas_cumprod), (3, count), generator=generator)
    return (
        t.amax(dim=0)
        if noisiest
        else torch.where(torch.arange(count) % 2 == 0, t[0], t.amin(dim=0))
    )


def _practice(number: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which whole clips a batch has, and their timesteps: those of `HARD`, the rest any clip.

    Returns rows (count,) and timesteps (count,).
    """
    rows, t = [], []
    for motion, (share, low, high) in HARD.items():
        some = round(share * count)
        rows.append(_next(_of(motion), number, some))
        t.append(torch.randint(low, high, (some,), generator=generator))
    rest = count - sum(map(len, rows))
    rows.append(_next(torch.arange(CHUNK * CHUNKS), number, rest))
    t.append(_timesteps(rest, generator))
    return torch.cat(rows), torch.cat(t)


def _next(rows: Tensor, number: int, count: int) -> Tensor:
    return rows[torch.arange(number * count, (number + 1) * count) % len(rows)]


@cache
def _of(motion: str) -> Tensor:
    """The clips that have this motion."""
    sampler = _sampler()
    rows = [row for row in range(CHUNK * CHUNKS) if sampler(row).motion == motion]
    return torch.tensor(rows, dtype=torch.int64)


def _sampler() -> Sampler:
    return Sampler("train", seed=61, **SCENES)


def _clip(row: int) -> list[Tensor]:
    return [part[row % CHUNK] for part in chunk(row // CHUNK % CHUNKS)]


def _clips(rows: Tensor) -> list[Tensor]:
    return [
        torch.stack(parts) for parts in zip(*(_clip(row) for row in rows.tolist()), strict=True)
    ]


def _pictures(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random frame of each of these clips (b, n): pictures uint8 (b, n, 3, h, w), and tokens of their captions."""
    moments = torch.randint(FRAMES, (rows.numel(),), generator=generator).tolist()
    clips = [_clip(row) for row in rows.flatten().tolist()]
    frames = torch.stack([clip[0][:, moment] for clip, moment in zip(clips, moments, strict=True)])
    captions = torch.stack([clip[3] for clip in clips])
    return frames.unflatten(0, rows.shape), captions.unflatten(0, rows.shape)


@torch.no_grad()
def _read(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """What the network reads, (n, l, d); some texts are forgotten."""
    return read(text_tower(), drop_conditioning(tokens, tokenize([""]), DROPPED, generator)).cpu()


def _unpacked(video: Tensor) -> Tensor:
    return video.float().div(127.5).sub(1)


def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """The squared error of one batch, pictures and frames of clips counting alike."""
    example = Example(*(batch[name] for name in Example._fields))
    conditioning = {name: part for name, part in batch.items() if name not in Example._fields}
    return denoising_loss(as_model(model)(example.x_t, example.t, conditioning), example)


def save(model: VideoUNet, folder: Path) -> None:
    """Write the U-Net, and beside it its noise schedule."""
    save_half(model, folder)
    SCHEDULE.save_pretrained(folder / "scheduler")


def told(prompts: Sequence[str], frame_rate: float | int = 8) -> dict[str, Tensor]:
    """What the network is told: "text" (b, 32, 256) and "frame_rate" (b,)."""
    text = read(text_tower(), tokenize(prompts))
    return {
        "text": text,
        "frame_rate": torch.full((len(prompts),), float(frame_rate), device=text.device),
    }


def draw(
    model: VideoUNet,
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    steps: int = STEPS,
    scale: float | int = GUIDANCE,
    coherence: float | int | None = COHERENT,
    frame_rate: float | int = 8,
    frames: int = FRAMES,
    weight: float | int | None = WEIGHT,
) -> Tensor:
    """A clip (b, 3, frames, 32, 32) in [-1, 1], on the CPU, for each prompt.

    prompts: "" for anything. steps: of sampling. scale: of guidance by text, 0 or more. coherence: scale, 0 or more, of
    `papers.vdm.coherent`, which takes its place below timestep `LATE`; None for text throughout.
    frame_rate: 8, 16 or 32 are what it has seen. frames: more than 16 are drawn by `papers.vdm.extend`, which
    shows every block `PAST` frames; weight: of its reconstruction guidance.
    """
    parts = []
    # All of it first: runs with other settings begin with equal noise
    noise = initial_noise((len(prompts), 3, FRAMES, SIZE, SIZE), generator).to(model.device)
    for some, x in zip(_split(prompts, ROWS), noise.split(ROWS), strict=True):
        known = guided(as_model(model), told([""] * len(some), frame_rate), scale)
        if coherence is not None:
            known = in_turn(known, coherent(as_model(model), coherence), LATE)
        how = {"steps": steps, "generator": generator}
        asked = told(some, frame_rate)  # as the empty text: in float32
        with runtime.autocast(model.device):
            *_, last = sample(known, SCHEDULE, x, asked, **how)
            clip = last.x.float()
            if frames > FRAMES:
                clip = extend(
                    known, SCHEDULE, clip, asked, frames=frames, past=PAST, weight=weight, **how
                )
        parts.append(clip.cpu().clamp(-1, 1))
    return torch.cat(parts)


def _split(prompts: Sequence[str], rows: int) -> list[Sequence[str]]:
    return [prompts[start : start + rows] for start in range(0, len(prompts), rows)]


def evaluate(model: VideoUNet, settings: Settings) -> Mapping[str, Any]:
    """The judge's view of a thousand clips, their distance from real ones, that of clips without a prompt, and what
    becomes of long ones.
    """
    count = 16 if settings.steps < 100 else 1024
    return prompted(model, count) | unprompted(model, count) | longer(model, max(count // 8, 16))


def prompted(model: VideoUNet, count: int) -> dict[str, Any]:
    """Clips of so many prompts: what the judge says, also of each motion, and their distance from real ones.

    model: in evaluation mode. count: of clips drawn, and of the test split's, whose captions are the prompts.
    """
    real, other = (_real(count, seed) for seed in (1, 2))
    clips = draw(model, real.captions, torch.Generator().manual_seed(0))
    found = judged(clips, real.captions) | compared(clips, other.video, real.video, name="guided")
    return found | judged_by_motion(clips, real)


def unprompted(model: VideoUNet, count: int) -> dict[str, Any]:
    """The distance of so many clips without a prompt from real ones. Arguments: as for `prompted`."""
    real, other = (_real(count, seed) for seed in (1, 2))
    free = draw(model, [""] * count, torch.Generator().manual_seed(1), scale=1, coherence=None)
    return compared(free, other.video, real.video, name="without a prompt")


def _real(count: int, seed: int) -> Clips:
    return World("test", size=SIZE, seed=seed, **SCENES).batch(range(count))


def longer(model: VideoUNet, count: int) -> dict[str, float]:
    """What becomes of clips of 64 frames, at 32 frames a second: their last 16 frames beside their first 16.

    Arguments: as for `prompted`.
    """
    prompts, generator = _real(count, 1).captions, torch.Generator().manual_seed(2)
    video, found, shares, changes = (
        draw(model, prompts, generator, frame_rate=32, frames=LONG),
        {},
        [],
        [],
    )
    for name, part in (("first", video[:, :, :FRAMES]), ("last", video[:, :, -FRAMES:])):
        shares.append(judged(part, prompts)["subject, judge"])
        flicker = Flicker()
        flicker.update(part)
        changes.append(flicker.compute()["difference"].value)
        found[f"{LONG} frames: subject in the {name} {FRAMES}, judge"] = shares[-1]
    found[f"{LONG} frames: subject, last over first"] = shares[1] / max(shares[0], 1 / len(prompts))
    return found | {f"{LONG} frames: flicker, last over first": changes[1] / changes[0]}


RECIPE = Recipe(
    name="vdm",
    about="Draws what a sentence says, as a clip of 16 frames of 32 x 32 pixels.",
    build=build_unet,
    batches=batches,
    loss=loss,
    save=save,
    evaluate=evaluate,
    settings={
        "cpu": Settings(
            steps=7000,
            batch=16,
            lr=1e-3,  # with 2e-3 the residual stream grew to thousands within 2,000 steps, and nothing more was learnt
            warmup=300,
            ema=0.999,
            options={"picture steps": 1500, "pictures a step": 256, "sparse steps": 2000},
        ),
        "gpu": Settings(
            steps=10000,
            batch=64,
            lr=1e-3,
            warmup=300,
            ema=0.999,
            options={"picture steps": 2000, "pictures a step": 1024, "sparse steps": 3000},
        ),
        "ci": Settings(
            steps=3,
            batch=2,
            lr=1e-3,
            options={"picture steps": 1, "pictures a step": 4, "sparse steps": 1},
        ),
    },
    bars={
        "subject, judge": (">=", 0.85),
        "motion, judge": (">=", 0.9),
        "background, judge": (">=", 0.9),
        "FVD, guided, times the floor": ("<=", 4.0),
        "64 frames: subject, last over first": (">=", 0.9),
        "64 frames: flicker, last over first": ("<=", 1.2),
    },
    notes="""
A `course_lib.nn.unet.VideoUNet`, v-prediction on a cosine schedule with four times the noise beside the signal
(`scheduler/`, a DDIMScheduler). It reads what the text tower of mini-clip makes of a sentence and, beside it, the
words themselves (`papers.vdm.read`), and is told the number of frames a second (8, 16 or 32; faster ones show a part
of the film). It knows the 24 subjects of `course_lib.recipes.pixel_ddpm.CLASSES` in all motions on all backgrounds,
as captions of the world name them, and not the 12 novel emoji. The empty prompt gives any scene. It sees patches of 4
x 4 pixels, and single ones only in a last look, so that small details are coarse. Spinning and bouncing are the hardest
motions; training meets them more often, under the noise where they are decided. `course_lib.recipes.vdm.draw` draws
clips of 16 frames, and longer ones block by block. Text leads it, and below timestep 500 the network itself, away from
what it says of frames alone (`papers.vdm.coherent`); "without a prompt" nothing does.
""",
)
