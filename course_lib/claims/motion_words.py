"""Lesson 03's claim about its text: a tower that has learnt from pictures keeps words of motion from a video network.

A small network sees nothing but noise and is told a caption, so that all it can know of a clip comes from the words.
"""

import time
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.claims.ledger import Claim, Numbers
from course_lib.claims.vdm import SCHEDULE, SMALL_WORLD
from course_lib.diffusion import Example, denoising_loss, estimate, level_at, training_example
from course_lib.nn.unet import VideoUNet
from course_lib.recipes import vdm
from course_lib.training import fit
from course_lib.world import MOTIONS, Clips, World

CLIPS, BATCH, STEPS, LEARNING_RATE, WIDTHS = 2048, 32, 400, 1e-3, (64, 64)
TESTED = 256
LAST = len(SCHEDULE.alphas_cumprod) - 1  # the timestep at which nothing is left of a clip
READ, TOWER = (
    256,
    128,
)  # what is read of every token, and how much of it the tower says; the word itself follows
ARMS = {
    "tower": TOWER,
    "tower and words": READ,
}  # how much a network is told; the rest is 0, so that sizes are equal


@cache
def _data(split: str, seed: int, count: int) -> Clips:
    return World(split, seed=seed, size=vdm.SIZE, **SMALL_WORLD).batch(range(count))


@cache
@torch.no_grad()
def _text(seed: int, count: int) -> Tensor:
    return vdm.told(_data("train", seed, count).captions)["text"].cpu()


def expecting(
    clips: Float[Tensor, "b 3 f h w"],
    moments: Int[Tensor, "some"],
    text: Float[Tensor, "b l d"],
    arm: str,
    generator: torch.Generator,
) -> tuple[Example, dict[str, Tensor]]:
    """Some frames of clips under so much noise that nothing is left of them, and what the U-Net is told.

    clips: in [-1, 1]. moments: which frames, from 0. text: as `papers.vdm.read` gives it. arm: of `ARMS`.
    """
    text = text * (torch.arange(text.shape[-1]) < ARMS[arm])
    example = training_example(
        SCHEDULE, clips[:, :, moments], generator, t=torch.full((len(clips),), LAST)
    )
    return example, {"encoder_hidden_states": text, "frame_index": moments.expand(len(clips), -1)}


def learned(arm: str, seed: int, steps: int) -> VideoUNet:
    """A network that has learnt what captions make expect. Equal seeds see equal clips, frames and noise.

    arm: of `ARMS`. seed: of data, weights and noise. steps: at least 2.
    """
    torch.manual_seed(seed)
    video, text = _data("train", seed, CLIPS).video, _text(seed, CLIPS)
    attention, told = (True,) * len(WIDTHS), {"frame_index": True, "places": True}
    model = VideoUNet(widths=WIDTHS, attention=attention, text_width=READ, patch=4, **told)

    def batch(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        rows = torch.randint(len(video), (BATCH,), generator=generator)
        moments = torch.arange(
            int(torch.randint(vdm.SPARSE, (), generator=generator)), vdm.FRAMES, vdm.SPARSE
        )
        example, told = expecting(video[rows], moments, text[rows], arm, generator)
        return example._asdict() | told

    def loss(net: VideoUNet, some: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        example = Example(*(some[name] for name in Example._fields))
        told = {name: part for name, part in some.items() if name not in Example._fields}
        return denoising_loss(net(example.x_t, example.t, **told).sample, example)

    fit(
        model,
        batch,
        loss,
        steps=steps,
        lr=LEARNING_RATE,
        warmup=min(30, steps - 1),
        seed=seed,
        progress=False,
    )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def heard(model: nn.Module, arm: str, clips: Clips, generator: torch.Generator) -> Numbers:
    """What the right motion word is worth to a network that sees only noise, beside the eight wrong ones.

    model: as `learned` gives it. arm: of `ARMS`. clips: of the test split, 16 frames. generator: draws the noise.
    """
    moments, errors = torch.arange(1, vdm.FRAMES, vdm.SPARSE), []
    state = generator.get_state()
    for motion in MOTIONS:
        pairs = zip(clips.captions, clips.scenes, strict=True)
        text = vdm.told(
            [caption.replace(f" {scene.motion} on ", f" {motion} on ") for caption, scene in pairs]
        )["text"]
        generator.set_state(state)  # the same noise for every word
        example, told = expecting(clips.video, moments, text.cpu(), arm, generator)
        said = model(
            *(part.to(model.device) for part in example[:2]),
            **{k: v.to(model.device) for k, v in told.items()},
        )
        x0 = estimate(
            "v_prediction", said.sample.cpu().float(), example.x_t, level_at(SCHEDULE, example.t)
        ).x0
        errors.append((x0 - clips.video[:, :, moments]).square().mean(dim=(1, 2, 3, 4)).double())
    found, own = (
        torch.stack(errors, dim=1),
        torch.tensor([MOTIONS.index(scene.motion) for scene in clips.scenes]),
    )
    right = found[torch.arange(len(own)), own]
    wrong = (found.sum(dim=1) - right) / (len(MOTIONS) - 1)
    return {
        "error saved by the right word": (1 - right.mean() / wrong.mean()).item(),
        "motions told apart": (found.argmin(dim=1) == own).double().mean().item(),
        "error with the right word": right.mean().item(),
    }


def _run(arm: str, seed: int, scale: float) -> Numbers:
    start = time.perf_counter()
    model = learned(arm, seed, max(2, round(STEPS * scale)))
    clips = _data("test", 1000 + seed, max(16, round(TESTED * scale)))
    found = heard(model, arm, clips, torch.Generator().manual_seed(seed))
    return found | {"minutes": (time.perf_counter() - start) / 60}


CLAIMS = (
    Claim(
        id="motion-words-are-heard",
        lesson="03",
        source="this course; the paper's text encoder, BERT, has learnt from text: Ho et al. 2022, section 4.3",
        statement="A video network learns motion words sooner if it is told the words themselves beside what a text "
        "tower makes of them that has learnt from pictures.",
        arms=tuple(ARMS),
        run=_run,
        metric="error saved by the right word",
        better="tower and words",
        worse="tower",
        setting=f"{CLIPS} clips of 32x32 pixels, {len(SMALL_WORLD['subjects'])} subjects, "
        f"{len(SMALL_WORLD['backgrounds'])} backgrounds, sparse frames, pure noise; {STEPS} steps of {BATCH} clips, "
        f"a VideoUNet of widths {WIDTHS} told where and which frame; {TESTED} clips of the test split, each explained "
        "with its own motion word and with the eight others; text by mini-clip",
    ),
)
