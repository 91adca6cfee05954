"""Labelled defects: what goes wrong in web video, made on demand, so that curation has an exact score.

Stable Video Diffusion filters a large collection for cuts, static clips, text and bad captions (Blattmann et al. 2023,
section 3). Nobody knows the true answer for web video; here every defect comes with its label.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from course_lib.world.captions import caption
from course_lib.world.corruption import blur
from course_lib.world.rendering import Clips
from course_lib.world.scenes import Scene

DEFECTS: tuple[str, ...] = (
    "hard cut",
    "static",
    "text",
    "blur",
    "noise",
    "wrong caption",
    "letterbox",
)
_WORDS = ("SUBSCRIBE", "SALE -50%", "LIVE", "PREVIEW", "CHANNEL 5", "© STOCK")


@dataclass(frozen=True)
class Damaged:
    """Clips of which some are spoilt, and the truth about each."""

    video: Float[Tensor, "b 3 f h w"]
    """red, green, blue in [-1, 1]"""
    captions: list[str]
    labels: list[str]
    """a name from `DEFECTS`, or "clean" """
    cuts: list[int | None]
    """for a hard cut, the first frame of the second shot"""


def damage(clips: Clips, defects: list[str], generator: torch.Generator) -> Damaged:
    """Spoil each clip in the named way.

    Args:
        clips: at least two clips if any gets a "hard cut" or a "wrong caption" (the other shot or sentence comes
            from the next clip of the batch).
        defects: one name from `DEFECTS`, or "clean", per clip.
        generator: source of randomness, on the CPU.

    Raises:
        ValueError: an unknown defect, a wrong number of them, a single clip or frame where two are needed, or a
            defect that would change nothing: its label would be false.
    """
    if len(defects) != len(clips):
        raise ValueError(
            f"defects must name one defect per clip: got {len(defects)} for {len(clips)} clips"
        )
    unknown = set(defects) - {*DEFECTS, "clean"}
    if unknown:
        raise ValueError(f"defects {sorted(unknown)} are not among: clean, {', '.join(DEFECTS)}")
    if len(clips) < 2 and {"hard cut", "wrong caption"} & set(defects):
        raise ValueError(
            "clips: a hard cut or a wrong caption needs a second clip to borrow from, got 1"
        )
    if clips.video.shape[2] < 2 and {"hard cut", "static"} & set(defects):
        raise ValueError("clips: a hard cut or a static clip needs at least two frames, got 1")
    video, captions = clips.video.clone(), clips.captions
    cuts: list[int | None] = [None] * len(clips)
    for i, defect in enumerate(defects):
        other = (i + 1) % len(clips)
        if defect == "hard cut":
            frames = clips.video.shape[
                2
            ]  # cut in the middle half: one stray frame at either end is no shot
            cuts[i] = _integer(generator, max(1, frames // 4), frames - frames // 4)
            video[i, :, cuts[i] :] = clips.video[other, :, cuts[i] :]
            if torch.equal(video[i], clips.video[i]):
                raise ValueError(
                    f"clips: a hard cut of clip {i} to clip {other} shows nothing: they are the same scene"
                )
        elif defect == "static":
            if is_still(video[i]):
                raise ValueError(f"clips: clip {i} ({captions[i]}) stands still already")
            video[i] = video[i, :, :1]
        elif defect == "text":
            video[i] = _write(video[i], _WORDS[_integer(generator, 0, len(_WORDS))], generator)
        elif defect == "blur":
            video[i] = blur(video[i][None], video.shape[-1] / 24)[0]  # out of focus
        elif defect == "noise":
            grain = torch.randn(video[i].shape, generator=generator).to(video)
            video[i] = (video[i] + 0.25 * grain).clamp(-1, 1)
        elif defect == "wrong caption":
            captions[i] = _contradict(clips.scenes[i], clips.scenes[other])
        elif defect == "letterbox":
            bar = max(1, round(video.shape[-2] * 0.125))
            video[i, :, :, :bar] = video[i, :, :, -bar:] = -1
    return Damaged(video, captions, list(defects), cuts)


def is_still(clip: Float[Tensor, "3 f h w"]) -> bool:
    """Say whether every frame of a clip is the same, as in the clip of a shape that stands still.

    Args:
        clip: red, green, blue in [-1, 1].
    """
    return bool((clip == clip[:, :1]).all())


def damage_some(clips: Clips, share: float | int, generator: torch.Generator) -> Damaged:
    """Spoil a random share of the clips, each in a random way; clips that stand still anyway are labelled "static".

    Args:
        clips: at least two clips of at least two frames.
        share: probability in [0, 1] that a clip is spoilt.
        generator: source of randomness, on the CPU.

    Raises:
        ValueError: share outside [0, 1], clips of one frame, or as `damage`.
    """
    if clips.video.shape[2] < 2:
        raise ValueError(
            "clips: one frame can be neither static nor moving; at least two are needed, got 1"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    spoilt = torch.rand(len(clips), generator=generator) < share
    kinds = torch.randint(len(DEFECTS), (len(clips),), generator=generator)
    names = [
        DEFECTS[k] if bad else "clean"
        for bad, k in zip(spoilt.tolist(), kinds.tolist(), strict=True)
    ]
    still = [is_still(clip) for clip in clips.video]
    damaged = damage(
        clips, ["clean" if s else name for s, name in zip(still, names, strict=True)], generator
    )
    labels = ["static" if s else name for s, name in zip(still, damaged.labels, strict=True)]
    return replace(damaged, labels=labels)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))


def _contradict(scene: Scene, other: Scene) -> str:
    """A caption of the other clip, or, if both are described alike, of the same clip on a wrong background."""
    if caption(other) != caption(scene):
        return caption(other)
    wrong = "sea" if scene.background != "sea" else "desert"
    return caption(Scene(scene.subject, scene.motion, wrong, scene.variant))


def _write(clip: Tensor, words: str, generator: torch.Generator) -> Tensor:
    h, w = clip.shape[-2:]
    canvas = Image.new("L", (w, h))
    font = ImageFont.load_default(size=max(6, h // 6))
    y = _integer(generator, 0, 2) * (h - h // 4) + h // 32
    ImageDraw.Draw(canvas).text((w // 2, y), words, fill=255, font=font, anchor="mt")
    ink = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(h, w).to(clip) / 255
    shadow = F.max_pool2d(ink[None, None], 3, 1, 1)[
        0, 0
    ]  # a dark rim, so that white text shows on white
    return (clip * (1 - shadow) - shadow) * (1 - ink) + ink
