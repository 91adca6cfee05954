"""Lesson 06's claims: what latents save, and what a text tower knows that a bag of words does not.

Both train small text-to-image models from nothing, on mini-vae's latents or on pixels, for a few minutes each. They are
far from finished then: what is compared is how far the same number of training pictures has brought them.
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import runtime, zoo
from course_lib.claims.ledger import Claim, Numbers
from course_lib.diffusion import (
    Example,
    denoising_loss,
    drop_conditioning,
    guided,
    initial_noise,
    sample,
    training_example,
)
from course_lib.nn.profiling import count_flops, count_parameters
from course_lib.papers.latent_diffusion import build_schedule, build_unet, decode, embed, encode
from course_lib.recipes import pixel_ddpm
from course_lib.evaluation import judged
from course_lib.recipes.mini_clip import build_tokenizer, tokenize
from course_lib.recipes.mini_sd import text_tower
from course_lib.training import fit
from course_lib.world import COLOURS, HELD_OUT_SHAPES, SHAPES, World

PICTURES, BATCH, STEPS, LEARNING_RATE, AVERAGE = 4096, 64, 600, 2e-3, 0.98
WIDTHS = (64, 128)  # of the U-Net, two thirds of mini-sd's
BACKGROUNDS = ("white", "mint", "sunset", "night sky")
PROMPTS, WALK, GUIDANCE, DROPPED = 256, 15, 4.0, 0.1
WIDTH = 128  # of a text vector, mini-clip's


@dataclass(frozen=True)
class Space:
    """Where a model works: how pictures (n, 3, 64, 64) get there and back, how large it is, its noise levels."""

    channels: int
    size: int
    scheduler: SchedulerMixin
    patch: int | None = None  # pixels a side; None: through mini-vae

    @torch.no_grad()
    def enter(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, 64, 64) to what the U-Net sees."""
        if self.patch:
            return F.pixel_unshuffle(pictures, self.patch)
        return torch.cat([encode(_vae(), some) for some in pictures.split(64)])

    @torch.no_grad()
    def leave(self, x: Tensor) -> Tensor:
        """And back, in [-1, 1]."""
        if self.patch:
            return F.pixel_shuffle(x, self.patch).clamp(-1, 1)
        return torch.cat([decode(_vae(), some) for some in x.split(64)])


# Each has the schedule that its kind of model is usually given: pixels are bounded, latents are not
_COSINE = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
)
SPACES = {"latents": Space(16, 8, build_schedule()), "pixels": Space(48, 16, _COSINE, patch=4)}


@cache
def _vae() -> nn.Module:
    return zoo.load("mini-vae")


class Words(nn.Module):
    """Token ids (b, l) to a learned vector for each, (b, l, d), or to their mean as the only one, (b, 1, d).

    Either way a word is the same vector wherever it stands and whatever stands beside it.
    """

    def __init__(self, averaged: bool) -> None:
        super().__init__()
        self.averaged, self.end = (
            averaged,
            int(tokenize([""])[0, -1]),
        )  # ends a caption and fills it up
        self.table = nn.Embedding(len(build_tokenizer()), WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.table(tokens)
        if not self.averaged:
            return vectors
        counted = (tokens != self.end)[..., None].to(vectors.dtype)
        return (vectors * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)


class Tower(nn.Module):
    """mini-clip's frozen text tower: token ids (b, l) to vectors (b, l, d) that know their neighbours."""

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return embed(text_tower(), tokens)


class TextToImage(nn.Module):
    """A U-Net and what reads for it: (x, t, token ids) to a prediction."""

    def __init__(self, reader: nn.Module, space: Space) -> None:
        super().__init__()
        self.reader, self.unet = reader, build_unet(space.channels, space.size, WIDTHS)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=self.reader(tokens)).sample


@cache
def _data(seed: int, subjects: tuple[str, ...], space: str) -> tuple[Tensor, Tensor]:
    """Pictures of the training split as the space has them, and token ids of their captions."""
    options = {"frames": 1, "anytime": True, "subjects": subjects, "backgrounds": BACKGROUNDS}
    clips = World("train", seed=seed, **options).batch(range(PICTURES))
    return SPACES[space].enter(clips.video[:, :, 0]), tokenize(clips.image_paraphrases)


def learn(
    model: TextToImage, space: str, subjects: tuple[str, ...], seed: int, steps: int
) -> float:
    """Train in place; returns seconds a step. Equal seeds see equal pictures, captions and timesteps in every space.

    space: a key of `SPACES`. subjects: of the pictures. steps: of `BATCH` pictures each.
    """
    pictures, tokens = _data(seed, subjects, space)
    scheduler, empty = SPACES[space].scheduler, tokenize([""])

    def batch(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        told = drop_conditioning(tokens[chosen], empty, DROPPED, generator)
        return {
            **training_example(scheduler, pictures[chosen], generator)._asdict(),
            "tokens": told,
        }

    def loss(net: nn.Module, some: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        example = Example(*(some[name] for name in Example._fields))
        return denoising_loss(net(example.x_t, example.t, some["tokens"]), example)

    options = {"warmup": min(50, steps - 1), "ema": AVERAGE, "seed": seed, "progress": False}
    return fit(model, batch, loss, steps=steps, lr=LEARNING_RATE, **options)[-1].seconds / steps


def obeyed(model: TextToImage, space: str, prompts: list[str], seed: int) -> float:
    """Share of prompts of which everything named is there, says the judge.

    space: a key of `SPACES`. prompts: image captions. seed: of the initial noise.
    """
    where, generator, parts = SPACES[space], torch.Generator().manual_seed(seed), []
    device = model.unet.device  # where training has left it
    known = guided(model.eval(), tokenize([""]).to(device), GUIDANCE)
    for start in range(0, len(prompts), 64):
        some = prompts[start : start + 64]
        x = initial_noise((len(some), where.channels, where.size, where.size), generator).to(device)
        with runtime.autocast(device):
            tokens = tokenize(some).to(device)
            *_, last = sample(known, where.scheduler, x, tokens, steps=WALK, generator=generator)
        parts.append(where.leave(last.x.float().cpu()))
    return judged(torch.cat(parts)[:, :, None], prompts)["everything named, judge"]


def _prompts(count: int, seed: int, **world: object) -> list[str]:
    options = {"frames": 1, "anytime": True, "backgrounds": BACKGROUNDS, **world}
    return World("test", seed=seed, **options).batch(range(count)).image_captions


def _spaces(arm: str, seed: int, scale: float) -> Numbers:
    start, subjects = time.perf_counter(), tuple(pixel_ddpm.CLASSES)
    torch.manual_seed(seed)
    model = TextToImage(Tower(), SPACES[arm])
    where = SPACES[arm]
    x, text = torch.zeros(1, where.channels, where.size, where.size), torch.zeros(1, 32, WIDTH)
    flops = count_flops(model.unet, x, torch.zeros(1), text)
    seconds = learn(model, arm, subjects, seed, max(2, round(STEPS * scale)))
    prompts = _prompts(max(8, round(PROMPTS * scale)), 1000 + seed, subjects=subjects)
    return {
        "share of prompts obeyed": obeyed(model, arm, prompts, seed),
        "GFLOP a picture and step": flops / 1e9,
        "seconds a training step": seconds,
        "parameters": float(count_parameters(model)),
        "minutes": (time.perf_counter() - start) / 60,
    }


SHAPED = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
READERS = {
    "text tower": Tower,
    "bag of words": lambda: Words(averaged=True),
    "set of words": lambda: Words(averaged=False),
}


def _composed(arm: str, seed: int, scale: float) -> Numbers:
    torch.manual_seed(seed)
    model = TextToImage(READERS[arm](), SPACES["latents"])
    learn(model, "latents", SHAPED, seed, max(2, round(STEPS * scale)))
    count = max(8, round(PROMPTS * scale))
    unseen = _prompts(count, 1000 + seed, part="composed", subjects=HELD_OUT_SHAPES)
    seen = _prompts(count, 2000 + seed, subjects=SHAPED)
    return {
        "held-out pairs obeyed": obeyed(model, "latents", unseen, seed),
        "seen pairs obeyed": obeyed(model, "latents", seen, seed),
    }


_TRAINED = (
    f"{STEPS} steps of {BATCH} pictures ({PICTURES} in all, {len(BACKGROUNDS)} backgrounds), v-prediction, a U-Net "
    f"like mini-sd's of widths {WIDTHS}"
)
_DRAWN = f"{PROMPTS} captions of the test split, {WALK} steps of DDIM, guidance {GUIDANCE:g}, by the judge"
CLAIMS = (
    Claim(
        id="latents-are-cheaper",
        lesson="06",
        source="Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, section 4.1",
        statement="After as many training pictures, diffusion in latents obeys more prompts than diffusion in pixels, "
        "at a fraction of the compute.",
        arms=tuple(SPACES),
        run=_spaces,
        metric="share of prompts obeyed",
        better="latents",
        worse="pixels",
        setting=f"{len(pixel_ddpm.CLASSES)} subjects, {_TRAINED}, on 8x8x16 latents of mini-vae or on 16x16 patches of "
        f"4x4 pixels, each with its usual schedule; mini-vae's own training is not counted; {_DRAWN}",
    ),
    Claim(
        id="text-tower-composes",
        lesson="06",
        source="this course; the design is Stable Diffusion's (Rombach et al. 2022), which reads by CLIP's text tower",
        statement="Told by CLIP's text tower, a model draws colours and shapes never seen together more often than "
        "told by a bag of words.",
        arms=tuple(READERS),
        run=_composed,
        metric="held-out pairs obeyed",
        better="text tower",
        worse="bag of words",
        setting=f"coloured shapes only, {_TRAINED}; bag: the mean of learned word vectors; set: a learned vector for "
        f"each token, no order; the tower is mini-clip's, which never saw a held-out pair either; {_DRAWN}",
    ),
)
