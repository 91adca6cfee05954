"""Lesson 07's claims: what pictures are worth to a video model, what freezing them keeps, who must read the text, and
what a decoder gains that sees time.

But for the last, one set of small trainings: an inflated mini-sd learns from clips of half of the subjects, and draws
clips of these and of the others, which it knows from pictures alone.
"""

import time
from functools import cache

import torch
from torch import Tensor

from course_lib import zoo
from course_lib.claims.ledger import Claim, Numbers
from course_lib.diffusion import drop_conditioning, training_example
from course_lib.metrics import frechet_distance
from course_lib.nn.inflate import InflatedUNet
from course_lib.nn.temporal import TextBlock
from course_lib.papers.latent_diffusion import build_unet as build_image_unet
from course_lib.papers.latent_diffusion import encode
from course_lib.papers.video_ldm import build_unet
from course_lib.recipes import mini_sd, mini_video, temporal_vae
from course_lib.evaluation import features, judged
from course_lib.recipes.pixel_ddpm import CLASSES
from course_lib.training import fit
from course_lib.world import Clips, World

FILMED, PICTURED = (
    CLASSES[::2],
    CLASSES[1::2],
)  # subjects in clips, and those known from pictures alone
PLACES = ("white", "mint", "sunset", "night sky")
MOTIONS = ("standing still", "growing", "shrinking", "spinning")  # what is learnt soonest
# Every fourth frame: four tell a motion as well as sixteen
HOW = {"frames": 4, "fps": 2, "backgrounds": PLACES, "motions": MOTIONS}
INDEX = torch.arange(4) * 4.0  # where they are in time, see `recipes.mini_video`
CLIPS, BATCH, STEPS, LEARNING_RATE = 2048, 16, 250, 1e-3
DRAWN, WALK, GUIDANCE = 256, 10, 4.0

ALONE, DEAF, TUNED = (
    "layers over time",
    "deaf layers over time",
    "deaf layers over time, text projections tuned",
)
WORDLESS = "layers over time, told no words"
EVERYTHING, NOTHING = "everything", "everything, from nothing"


@cache
@torch.no_grad()
def _data(seed: int) -> tuple[Tensor, list[str]]:
    """Latents of clips of the training split (n, 16, 4, 8, 8), and their captions."""
    clips, vae = (
        World("train", seed=seed, subjects=FILMED, **HOW).batch(range(CLIPS)),
        mini_sd.vae(),
    )
    frames = clips.video.transpose(1, 2).flatten(0, 1)
    made = torch.cat([encode(vae, some.to(vae.device)).cpu() for some in frames.split(64)])
    return made.unflatten(0, (CLIPS, -1)).transpose(1, 2), clips.captions


def build(arm: str) -> InflatedUNet:
    """The network of an arm: of mini-sd or, "from nothing", of an untrained U-Net of its shape.

    "Text projections" are the image model's: of the text to the keys and values of its cross-attention. "Told no
    words": as large as the layers that read, but every text that they are given is the empty one.
    """
    image = build_image_unet() if arm == NOTHING else zoo.load("mini-sd").unet
    unet = build_unet(image, hears=arm not in (DEAF, TUNED), completes=False)
    for name, parameter in unet.spatial.named_parameters():
        projection = ".attn2.to_k." in name or ".attn2.to_v." in name
        parameter.requires_grad_(arm in (EVERYTHING, NOTHING) or (arm == TUNED and projection))
    if arm == WORDLESS:
        nothing = mini_video.system(unet).text([""])
        for block in (module for module in unet.modules() if isinstance(module, TextBlock)):
            block.register_forward_pre_hook(
                lambda _, told: (told[0], nothing.to(told[1]).expand_as(told[1]), *told[2:])
            )
    return unet


def learned(arm: str, seed: int, steps: int) -> tuple[InflatedUNet, float]:
    """A network that has learnt from clips of `FILMED`, and its seconds a step. Equal seeds see equal clips, noise
    levels and noise.

    arm: see above. steps: at least 2.
    """
    torch.manual_seed(seed)
    model, (latents, captions) = build(arm), _data(seed)
    pipeline = mini_video.system(model)
    texts, nothing = pipeline.text(captions).cpu(), pipeline.text([""]).cpu()

    def batch(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        # Motion is decided where noise is high
        t = torch.randint(
            len(mini_video.SCHEDULE.alphas_cumprod), (2, BATCH), generator=generator
        ).amax(dim=0)
        example = training_example(mini_video.SCHEDULE, latents[rows], generator, t=t)
        text = drop_conditioning(texts[rows], nothing, 0.1, generator)
        return example._asdict() | {"text": text, "frame_index": INDEX.expand(BATCH, -1)}

    options = {"warmup": min(30, steps - 1), "ema": 0.98, "seed": seed, "progress": False}
    last = fit(model, batch, mini_video.loss, steps=steps, lr=LEARNING_RATE, **options)[-1]
    return model.eval().requires_grad_(False), last.seconds / steps


def _real(subjects: tuple[str, ...], count: int, seed: int) -> Clips:
    return World("test", seed=1000 + seed, subjects=subjects, **HOW).batch(range(count))


def drawn(model: InflatedUNet, captions: list[str], seed: int) -> Tensor:
    """A clip (n, 3, 4, 64, 64) in [-1, 1] of every fourth frame, for each caption."""
    how = {
        "frames": 4,
        "frame_index": INDEX.expand(len(captions), -1),
        "steps": WALK,
        "scale": GUIDANCE,
    }
    return mini_video.draw(model, captions, torch.Generator().manual_seed(seed), **how)


def held(video: Tensor) -> Tensor:
    """Every frame of (b, 3, f, h, w) four times: the judge has learnt from clips of two seconds, 8 frames a second."""
    return video.repeat_interleave(4, dim=2)


def distances(video: Tensor, real: Tensor) -> Numbers:
    """Fréchet distances of clips from real ones: of clips as such, and of all their frames as pictures."""
    stills = [part.transpose(1, 2).flatten(0, 1)[:, :, None] for part in (real, video)]
    return {
        "FVD": frechet_distance(
            *(features("features/video", held(part)) for part in (real, video))
        ),
        "FID of frames": frechet_distance(*(features("features/image", part) for part in stills)),
    }


@cache
def _run(arm: str, seed: int, scale: float) -> Numbers:
    """Half of the clips are of subjects that clips had shown, half of the others."""
    start, count = time.perf_counter(), max(16, round(DRAWN * scale) // 2)
    model, seconds = learned(arm, seed, max(2, round(STEPS * scale)))
    found: Numbers = {"seconds a training step": seconds}
    for name, subjects in (("filmed", FILMED), ("pictured", PICTURED)):
        real = _real(subjects, count, seed)
        video = drawn(model, real.captions, seed)
        found |= {
            f"{key}, {name} subjects": value for key, value in distances(video, real.video).items()
        }
        right = judged(held(video), real.captions)
        for key in ("subject", "motion", "everything named"):
            found[f"{key} right, {name} subjects"] = right[f"{key}, judge"]
    return found | {"minutes": (time.perf_counter() - start) / 60}


SEEN_AGAIN = 256  # clips
APART, TOGETHER = "frame by frame", "together"
SHAKEN = {APART: "frame by frame, latents shaken", TOGETHER: "together, latents shaken"}
# Of each arm: how much of the layers over time is added, and how much the latents are shaken
WAYS = {APART: (0, 0.0), TOGETHER: (1, 0.0)}
WAYS |= {SHAKEN[arm]: (scale, temporal_vae.SHAKEN) for arm, (scale, _) in WAYS.items()}


@cache
def _films(seed: int, count: int) -> Tensor:
    return World("test", seed=1000 + seed).batch(range(count)).video


@torch.no_grad()
def _decoded(arm: str, seed: int, scale: float) -> Numbers:
    """Real clips, what is left of them, and how it changes from frame to frame."""
    start, video = time.perf_counter(), _films(seed, max(8, round(SEEN_AGAIN * scale)))
    again = temporal_vae.reconstructed(zoo.load("temporal-vae"), video, WAYS[arm][1], WAYS[arm][0])
    changes = temporal_vae.changes(again) / temporal_vae.changes(video)
    return {
        "FVD": frechet_distance(*(features("features/video", part) for part in (video, again))),
        "changes, times the film's own": changes,
        "flicker": abs(changes - 1),
        "minutes": (time.perf_counter() - start) / 60,
    }


_TRAINED = (
    f"{CLIPS} clips of {len(FILMED)} subjects on {len(PLACES)} backgrounds that stand still, grow, shrink or spin, "
    f"every fourth frame, as mini-vae's latents; {STEPS} steps of {BATCH} clips, AdamW {LEARNING_RATE:g}, "
    f"v-prediction, mini-sd's schedule with a zero terminal SNR, style video-ldm; {DRAWN} clips of the test split, "
    f"half of them of {len(PICTURED)} subjects that are in mini-sd's pictures but in no clip here; {WALK} steps of "
    f"DDIM, guidance {GUIDANCE:g}; judge and features/video are shown each frame four times"
)
_DECODED = (
    f"{SEEN_AGAIN} clips of the test split, their latents as mini-vae makes them, decoded by temporal-vae with its "
    "layers over time on or off"
)
CLAIMS = (
    Claim(
        id="pictures-first",
        lesson="07",
        source="Blattmann et al. 2023, Align your Latents",
        statement="Trained on the same clips for as many steps, a video model that begins as an image model is better "
        "than one that begins from nothing.",
        arms=(EVERYTHING, NOTHING),
        run=_run,
        metric="FVD, filmed subjects",
        lower_is_better=True,
        better=EVERYTHING,
        worse=NOTHING,
        setting=f"{_TRAINED}; in both arms all weights learn",
    ),
    Claim(
        id="frozen-keeps-pictures",
        lesson="07",
        source="Blattmann et al. 2023, Align your Latents",
        statement="Training only the layers over time keeps what the image model knows: frames of subjects that no "
        "clip showed are closer to real ones than if everything is trained.",
        arms=(ALONE, EVERYTHING),
        run=_run,
        metric="FID of frames, pictured subjects",
        lower_is_better=True,
        better=ALONE,
        worse=EVERYTHING,
        setting=_TRAINED,
    ),
    Claim(
        id="pictures-and-motion-compose",
        lesson="07",
        source="Singer et al. 2022, Make-A-Video; Blattmann et al. 2023, Align your Latents",
        statement="A subject that the model knows from pictures alone does in its clips what other subjects did in the "
        "clips that it has seen.",
        arms=(ALONE, NOTHING),
        run=_run,
        metric="everything named right, pictured subjects",
        better=ALONE,
        worse=NOTHING,
        setting=f"{_TRAINED}; from nothing, all weights learn",
    ),
    Claim(
        id="motion-words-reach-the-layers-over-time",
        lesson="07",
        source="this course; the layers over time of Blattmann et al. 2023, Align your Latents, read in text-to-video",
        statement="Over an image model that has learnt from captions of pictures, layers over time set more things in "
        "motion as told if they read the text themselves.",
        arms=(ALONE, DEAF, TUNED, WORDLESS),
        run=_run,
        metric="motion right, filmed subjects",
        better=ALONE,
        worse=DEAF,
        setting=f"{_TRAINED}; three seeds had not decided it, and two more were added",
        seeds=(0, 1, 2, 3, 4),
    ),
    Claim(
        id="temporal-decoder-fvd",
        lesson="07",
        source="Blattmann et al. 2023, Align your Latents",
        statement="Clips are closer to what they were if a decoder with layers over time makes them of their latents "
        "than if the image decoder does, frame by frame.",
        arms=(APART, TOGETHER),
        run=_decoded,
        metric="FVD",
        lower_is_better=True,
        better=TOGETHER,
        worse=APART,
        setting=f"{_DECODED}; FVD by features/video from the clips themselves",
    ),
    Claim(
        id="temporal-decoder-steadies",
        lesson="07",
        source="this course, after Blattmann et al. 2023, Align your Latents",
        statement="Where latents shake from frame to frame, a decoder with layers over time makes clips of them that "
        "flicker less.",
        arms=tuple(SHAKEN.values()),
        run=_decoded,
        metric="flicker",
        lower_is_better=True,
        better=SHAKEN[TOGETHER],
        worse=SHAKEN[APART],
        setting=f"{_DECODED}; noise of standard deviation {temporal_vae.SHAKEN:g} on the latents; flicker: by how much "
        "the mean change from frame to frame, as a multiple of the clips' own, differs from 1",
    ),
)
