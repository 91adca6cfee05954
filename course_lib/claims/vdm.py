"""Lesson 03's claims: what pictures teach a video model, what positions are for, how a clip is best led and continued.

Two of them train small networks from nothing, without text, on a small part of the world; the others draw clips of the
shipped vdm.
"""

import time
from functools import cache

import torch
from torch import Tensor, nn

from course_lib import zoo
from course_lib.claims.ledger import Claim, Numbers
from course_lib.diffusion import (
    Example,
    add_noise,
    denoising_loss,
    estimate,
    initial_noise,
    level_at,
    sample,
    training_example,
)
from course_lib.metrics import frechet_distance
from course_lib.nn.unet import VideoUNet
from course_lib.papers.vdm import as_model, build_schedule
from course_lib.recipes import vdm
from course_lib.evaluation import features, judged
from course_lib.training import fit
from course_lib.world import World

SCHEDULE = build_schedule()
SMALL_WORLD = {"subjects": vdm.CLASSES[:8], "backgrounds": ("white", "mint", "sunset", "night sky")}
HOW = {
    "size": vdm.SIZE,
    "frames": 8,
    "fps": 4,
    **SMALL_WORLD,
}  # half the frames of the same two seconds
CLIPS, BATCH, STEPS, LEARNING_RATE, AVERAGE = 2048, 16, 800, 1e-3, 0.99
WIDTHS = (64, 96)  # three quarters of vdm's, and narrower
DRAWN, WALK = 256, 25  # clips, steps of DDIM
LEVEL = 500  # timestep at which a clip is compared with its shuffle


def build(positions: str) -> VideoUNet:
    """A small network for clips of 32x32 pixels, without text. positions: see `nn.attention.TemporalAttention`."""
    return VideoUNet(widths=WIDTHS, attention=(True, True), patch=4, positions=positions)


@cache
def _data(seed: int) -> Tensor:
    """Clips of the training split (n, 3, 8, 32, 32)."""
    return World("train", seed=seed, **HOW).batch(range(CLIPS)).video


def _real(count: int, seed: int) -> Tensor:
    """Clips of the test split."""
    return World("test", seed=1000 + seed, **HOW).batch(range(count)).video


@cache
def learned(positions: str, pictures: int, seed: int, steps: int) -> tuple[VideoUNet, float]:
    """A network trained on clips with so many pictures appended to each, and its seconds a step.

    Equal seeds see equal clips, noise levels and noise, whatever is appended: the pictures are frames of other clips
    of the same data, so that they bring no new data, only more of it at a time.
    """
    torch.manual_seed(seed)
    model, video = build(positions), _data(seed)

    def batch(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        clips = video[torch.randint(len(video), (BATCH,), generator=generator)]
        example = training_example(SCHEDULE, clips, generator)
        if not pictures:
            return example._asdict()
        chosen = torch.randint(len(video), (BATCH, pictures), generator=generator)
        moments = torch.randint(video.shape[2], (BATCH, pictures), generator=generator)
        stills = video[chosen, :, moments].transpose(1, 2)  # b c n h w
        noise = initial_noise(stills.shape, generator)
        noisy = add_noise(SCHEDULE, stills, noise, example.t)
        signal, sigma = level_at(SCHEDULE, example.t).beside(stills)
        return example._asdict() | {
            "x_t": torch.cat([example.x_t, noisy], dim=2),
            "target": torch.cat([example.target, signal * noise - sigma * stills], dim=2),
            "alone": (torch.arange(clips.shape[2] + pictures) >= clips.shape[2]).expand(BATCH, -1),
        }

    def loss(net: VideoUNet, some: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        example = Example(*(some[name] for name in Example._fields))
        return denoising_loss(net(example.x_t, example.t, alone=some.get("alone")).sample, example)

    options = {"warmup": min(50, steps - 1), "ema": AVERAGE, "seed": seed, "progress": False}
    last = fit(model, batch, loss, steps=steps, lr=LEARNING_RATE, **options)[-1]
    return model.eval().requires_grad_(False), last.seconds / steps


def distances(video: Tensor, real: Tensor) -> Numbers:
    """Fréchet distances of clips from real ones: of clips as such, and of their frames, two of each."""
    stills = [
        part[:, :, [1, 6]].transpose(1, 2).flatten(0, 1)[:, :, None] for part in (real, video)
    ]
    return {
        "FVD": frechet_distance(
            features("features/video", real), features("features/video", video)
        ),
        "FID of frames": frechet_distance(*(features("features/image", part) for part in stills)),
    }


@cache
def _drawn(arm: str, seed: int, scale: float) -> Numbers:
    start, count = time.perf_counter(), max(16, round(DRAWN * scale))
    model, seconds = learned("relative", PICTURES[arm], seed, max(2, round(STEPS * scale)))
    generator, parts = torch.Generator().manual_seed(seed), []
    for some in initial_noise((count, 3, HOW["frames"], vdm.SIZE, vdm.SIZE), generator).split(32):
        x = some.to(model.device)
        *_, last = sample(as_model(model), SCHEDULE, x, steps=WALK, generator=generator)
        parts.append(last.x.float().cpu().clamp(-1, 1))
    found = distances(torch.cat(parts), _real(count, seed)) | {"seconds a training step": seconds}
    return found | {"minutes": (time.perf_counter() - start) / 60}


PICTURES = {"no pictures": 0, "4 pictures": 4, "8 pictures": 8}


@torch.no_grad()
def told_apart(model: nn.Module, video: Tensor, generator: torch.Generator) -> Numbers:
    """How often a network's error is smaller on a clip than on the same frames in another order; a tie counts half.

    Clip and shuffle have the same noise in the same frames, and the answers are compared frame by frame: all that
    differs is which frame is whose neighbour.
    """
    order = torch.randperm(video.shape[2], generator=generator)
    noise, t = initial_noise(video.shape, generator), torch.tensor([LEVEL])
    errors = []
    for frames in (torch.arange(video.shape[2]), order):
        found = []
        for clips, eps in zip(
            video[:, :, frames].split(32), noise[:, :, frames].split(32), strict=True
        ):
            x = add_noise(SCHEDULE, clips, eps, t).to(model.device)
            said = model(x, t.expand(len(x)).to(model.device)).sample
            x0 = estimate("v_prediction", said, x, level_at(SCHEDULE, t)).x0.cpu()
            found.append((x0 - clips).square().mean(dim=(1, 2, 3, 4)).double())
        errors.append(torch.cat(found))
    right, wrong = errors
    tie = (right - wrong).abs() < 1e-4 * right  # float32: what a sum in another order may differ by
    share = torch.where(tie, 0.5, (right < wrong).double()).mean()
    return {
        "share told apart": share.item(),
        "error of the shuffle over that of the clip": (wrong / right).mean().item(),
    }


def _shuffled(arm: str, seed: int, scale: float) -> Numbers:
    model, _ = learned(arm, 0, seed, max(2, round(STEPS * scale)))
    return told_apart(
        model, _real(max(16, round(DRAWN * scale)), seed), torch.Generator().manual_seed(seed)
    )


LED = 64  # clips
GUIDES = {"by text": None, "by text, then away from frames alone": vdm.COHERENT}


def _led(arm: str, seed: int, scale: float) -> Numbers:
    """Clips of the two motions that are hardest; equal seeds have equal prompts and noise."""
    count, start = max(4, round(LED * scale)), time.perf_counter()
    told = World("test", seed=1000 + seed, size=8, frames=1, **vdm.SCENES).batch(range(10 * count))
    pairs = zip(told.captions, told.scenes, strict=True)
    prompts = [caption for caption, scene in pairs if scene.motion in vdm.HARD][:count]
    clips = vdm.draw(_vdm(), prompts, torch.Generator().manual_seed(seed), coherence=GUIDES[arm])
    found = judged(clips, prompts)
    return {
        "motion right": found["motion, judge"],
        "subject right": found["subject, judge"],
        "minutes": (time.perf_counter() - start) / 60,
    }


LONG, CONTINUED = 40, 24  # frames in the end; clips
NEW = vdm.FRAMES - vdm.PAST  # frames of a block
WAYS = {"replacement": None, "reconstruction": vdm.WEIGHT}


def seams(video: Tensor) -> float:
    """How much larger the change from frame to frame is where blocks meet than elsewhere after the first of them.

    video: (b, 3, f, h, w) at 32 frames a second, where an emoji's own picture changes with every fourth frame: only
    such changes are compared.
    """
    changes = video.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))[vdm.FRAMES - 1 :: 4]
    meet = torch.arange(len(changes)) * 4 % NEW == 0
    return (changes[meet].mean() / changes[~meet].mean()).item()


def _continued(arm: str, seed: int, scale: float) -> Numbers:
    """Clips of the test split's prompts, drawn at 32 frames a second and continued; both ways begin with the same."""
    count, start = max(4, round(CONTINUED * scale)), time.perf_counter()
    frames = LONG if scale == 1 else vdm.FRAMES + NEW
    prompts = (
        World("test", seed=1000 + seed, size=8, frames=1, **vdm.SCENES).batch(range(count)).captions
    )
    generator = torch.Generator().manual_seed(seed)
    video = vdm.draw(_vdm(), prompts, generator, frame_rate=32, frames=frames, weight=WAYS[arm])
    first, last = (
        judged(part, prompts)["subject, judge"] for part in (video[:, :, :16], video[:, :, -16:])
    )
    return {
        "change at a seam over change elsewhere": seams(video),
        "subject in the first 16 frames": first,
        "subject in the last 16 frames": last,
        "minutes": (time.perf_counter() - start) / 60,
    }


@cache
def _vdm() -> VideoUNet:
    return zoo.load("vdm")


_TRAINED = (
    f"{CLIPS} clips of {HOW['frames']} frames of 32x32 pixels, {len(SMALL_WORLD['subjects'])} subjects, "
    f"{len(SMALL_WORLD['backgrounds'])} backgrounds, no text; {STEPS} steps of {BATCH} clips, v-prediction, vdm's "
    f"schedule, a VideoUNet of widths {WIDTHS} on patches of 4x4 pixels"
)
CLAIMS = (
    Claim(
        id="pictures-help-video",
        lesson="03",
        source="Ho et al. 2022, Video Diffusion Models, section 4.3.1 and table 4",
        statement="Trained on the same clips for as many steps, a video model is better if pictures are appended to "
        "every clip.",
        arms=tuple(PICTURES),
        run=_drawn,
        metric="FVD",
        lower_is_better=True,
        better="4 pictures",
        worse="no pictures",
        setting=f"{_TRAINED}; the pictures are frames of random clips of the same set; {DRAWN} clips, {WALK} steps of "
        "DDIM, FVD by features/video",
    ),
    Claim(
        id="positions-in-time",
        lesson="03",
        source="this course; attention without positions knows no order: Vaswani et al. 2017, section 3.5",
        statement="Temporal attention without positions cannot tell a clip from its shuffle; with them it can.",
        arms=("relative", "none"),
        run=_shuffled,
        metric="share told apart",
        better="relative",
        worse="none",
        setting=f"{_TRAINED}; {DRAWN} clips of the test split at timestep {LEVEL}, told apart where the estimate of "
        "the clip has the smaller error, the noise being shuffled with the frames; ties count half",
    ),
    Claim(
        id="coherence-helps-motion",
        lesson="03",
        source="Hyung et al. 2024, Spatiotemporal Skip Guidance; here the worse network sees frames alone",
        statement="Led away from what it says of frames alone once little noise is left, a video network makes things "
        "move as told more often than if text leads it throughout.",
        arms=tuple(GUIDES),
        run=_led,
        metric="motion right",
        better="by text, then away from frames alone",
        worse="by text",
        setting=f"vdm, {LED} captions of the test split, spinning and bouncing; {vdm.STEPS} steps of DDIM, guidance by "
        f"text {vdm.GUIDANCE:g}, below timestep {vdm.LATE} {vdm.COHERENT:g} away from frames alone; the judge",
        seeds=(0, 1, 2, 3, 4),
    ),
    Claim(
        id="reconstruction-beats-replacement",
        lesson="03",
        source="Ho et al. 2022, Video Diffusion Models, sections 3.1 and 4.3.3",
        statement="Clips continued under reconstruction guidance have smaller jumps where blocks meet than those "
        "continued by replacement.",
        arms=tuple(WAYS),
        run=_continued,
        metric="change at a seam over change elsewhere",
        lower_is_better=True,
        better="reconstruction",
        worse="replacement",
        setting=f"vdm, {CONTINUED} captions of the test split, 16 frames at 32 frames a second continued to {LONG}, "
        f"{NEW} new ones at a time, {vdm.STEPS} steps of DDIM, guided as vdm is, weight {vdm.WEIGHT:g}",
    ),
)
