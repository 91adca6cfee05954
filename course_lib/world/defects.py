"""Labelled synthetic defects of web video, so that data curation has an exact score.

Stable Video Diffusion filters a large collection for cuts, static clips, text and bad captions
(Blattmann et al. 2023, section 3). Web video has no ground truth; here every defect has a label.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from course_lib.validation import check_generator, check_number, check_tensor, require
from course_lib.world.captions import caption
from course_lib.world.checks import at_least_float32
from course_lib.world.corruption import blur, noise
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
_OVERLAYS = ("SUBSCRIBE", "SALE -50%", "LIVE", "PREVIEW", "CHANNEL 5", "© STOCK")


@dataclass(frozen=True)
class CorruptedClips:
    """Clips with injected defects and their labels.

    Attributes:
        video: RGB in [-1, 1].
        captions: one per clip; wrong for the defect "wrong caption".
        labels: a name from `DEFECTS` or "clean", per clip.
        cuts: for a hard cut, the first frame of the second shot; else None.
    """

    video: Float[Tensor, "b 3 f h w"]
    captions: list[str]
    labels: list[str]
    cuts: list[int | None]


def inject_defects(clips: Clips, defects: list[str], generator: torch.Generator) -> CorruptedClips:
    """Give each clip the named defect.

    Args:
        clips: at least two clips if any gets a "hard cut" or a "wrong caption": the second shot or
            the caption comes from the next clip of the batch.
        defects: one name from `DEFECTS`, or "clean", per clip.
        generator: on the CPU.

    Raises:
        ValueError: an unknown defect, a wrong number of them, a single clip or frame where two are
            needed, or a defect that would change nothing, so that its label would be false.
    """
    _check_defects(clips, defects)
    check_generator(generator)
    video = clips.video.clone()
    captions = clips.captions
    cuts: list[int | None] = [None] * len(clips)
    f, h, w = video.shape[2:]
    for i, defect in enumerate(defects):
        other = (i + 1) % len(clips)
        match defect:
            case "hard cut":
                # in the middle half: a single frame at either end is not a shot
                cuts[i] = _randint(generator, max(1, f // 4), f - f // 4)
                video[i, :, cuts[i] :] = clips.video[other, :, cuts[i] :]
                require(
                    not torch.equal(video[i], clips.video[i]),
                    "clips",
                    f"different scenes for a cut from {i} to {other}",
                    "the same",
                )
            case "static":
                require(
                    not is_static(video[i]),
                    "clips",
                    f"motion in clip {i}",
                    f"a static {captions[i]!r}",
                )
                video[i] = video[i, :, :1]
            case "text":
                text = _OVERLAYS[_randint(generator, 0, len(_OVERLAYS))]
                video[i] = _overlay_text(video[i], text, generator)
            case "blur":
                video[i] = blur(video[i : i + 1], w / 24)[0]
            case "noise":
                video[i] = noise(video[i : i + 1], 0.25, generator)[0]
            case "wrong caption":
                captions[i] = _wrong_caption(clips.scenes[i], clips.scenes[other])
            case "letterbox":
                bar = max(1, round(h * 0.125))
                video[i, :, :, :bar] = video[i, :, :, -bar:] = -1
    return CorruptedClips(video, captions, list(defects), cuts)


def inject_random_defects(
    clips: Clips, fraction: float | int, generator: torch.Generator
) -> CorruptedClips:
    """Give a random fraction of the clips random defects.

    Clips without motion are labelled "static".

    Args:
        clips: at least two clips of at least two frames.
        fraction: probability in [0, 1] that a clip gets a defect.
        generator: on the CPU.

    Raises:
        ValueError: fraction outside [0, 1], clips of one frame, or as `inject_defects`.
    """
    got = "1, which is neither static nor moving"
    require(clips.video.shape[2] >= 2, "clips", "at least 2 frames", got)
    check_number("fraction", fraction, at_least=0.0, at_most=1.0)
    check_generator(generator)
    has_defect = torch.rand(len(clips), generator=generator) < fraction
    choices = torch.randint(len(DEFECTS), (len(clips),), generator=generator)
    static = [is_static(clip) for clip in clips.video]
    defects = [
        DEFECTS[choice] if chosen and not still else "clean"
        for choice, chosen, still in zip(choices, has_defect, static, strict=True)
    ]
    corrupted = inject_defects(clips, defects, generator)
    labels = ["static" if still else name for still, name in zip(static, defects, strict=True)]
    return replace(corrupted, labels=labels)


def is_static(clip: Tensor) -> bool:
    """Whether all frames of a clip are equal, as for a shape that stands still.

    Args:
        clip: one clip (c, f, h, w).

    Raises:
        ValueError: another number of axes, or no floats.
    """
    check_tensor("clip", clip, "(c, f, h, w)")
    return bool((clip == clip[:, :1]).all())


def _check_defects(clips: Clips, defects: list[str]) -> None:
    require(
        len(defects) == len(clips),
        "defects",
        "one per clip",
        f"{len(defects)} for {len(clips)} clips",
    )
    unknown = sorted(set(defects) - {*DEFECTS, "clean"})
    require(not unknown, "defects", f"clean, {', '.join(DEFECTS)}", ", ".join(unknown))
    require(
        len(clips) >= 2 or not {"hard cut", "wrong caption"} & set(defects),
        "clips",
        "at least 2 for a hard cut or a wrong caption",
        1,
    )
    require(
        clips.video.shape[2] >= 2 or not {"hard cut", "static"} & set(defects),
        "clips",
        "at least 2 frames for a hard cut or a static clip",
        1,
    )


def _randint(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))


def _wrong_caption(scene: Scene, other: Scene) -> str:
    """The caption of another clip; if it is the same, the clip's own with a wrong background."""
    if caption(other) != caption(scene):
        return caption(other)
    background = "sea" if scene.background != "sea" else "desert"
    return caption(replace(scene, background=background))


def _overlay_text(clip: Tensor, text: str, generator: torch.Generator) -> Tensor:
    h, w = clip.shape[-2:]
    canvas = Image.new("L", (w, h))
    font = ImageFont.load_default(size=max(6, h // 6))
    y = _randint(generator, 0, 2) * (h - h // 4) + h // 32
    ImageDraw.Draw(canvas).text((w // 2, y), text, fill=255, font=font, anchor="mt")
    ink = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(h, w)
    ink = ink.to(at_least_float32(clip)) / 255
    rim = F.max_pool2d(ink[None, None], 3, 1, 1)[0, 0]  # dark, so that white text shows on white
    return (clip * (1 - rim) - rim) * (1 - ink) + ink
