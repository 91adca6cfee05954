"""Clips that are none of the world's: what a judge must learn to refuse, each with the labels that still hold.

A generator's mistakes are not the world's clips under bad light; they are things that do not exist: half a tiger and
half a bus, a smear of colour, a subject without a name. Whatever part of a clip remains true keeps its label.

Each maker takes clips and a generator on the CPU, and returns videos (b, 3, f, h, w) in [-1, 1] and labels (b,) by
attribute; the next clip of the batch lends what is foreign. `impostors` is what to call.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from course_lib.world.backgrounds import BACKGROUND_INDEX, BACKGROUNDS, paint
from course_lib.world.corruption import blur
from course_lib.world.motions import MOTIONS
from course_lib.world.rendering import Clips
from course_lib.world.subjects import COLOURS, SUBJECTS, is_shape

NONE = {"subject": len(SUBJECTS), "motion": len(MOTIONS), "background": len(BACKGROUNDS)}
"""The label "none of these" of each attribute: one more than the last real one."""
UNKNOWN = -100
"""A label nobody can tell, or that is a matter of taste; cross-entropy leaves it out."""

Labels = dict[str, Tensor]
Impostor = Callable[[Clips, torch.Generator], tuple[Tensor, Labels]]


def _behind(clips: Clips) -> Float[Tensor, "b 3 1 h w"]:
    """The painted backgrounds alone, in [-1, 1]."""
    size = clips.video.shape[-1]
    index = np.array([BACKGROUND_INDEX[scene.background] for scene in clips.scenes])
    variant = np.array([scene.variant for scene in clips.scenes])
    fine = 64 if 64 % size == 0 else size  # as `render` does
    painted = F.avg_pool2d(paint(index, variant, fine, clips.video.device), fine // size)
    return painted.mul(2).sub(1)[:, :, None]


def _subject_over(clips: Clips, behind: Tensor) -> Tensor:
    """The clips' subjects, moving as before, over other backgrounds."""
    return clips.video + (1 - clips.alpha) * (behind - _behind(clips))


def _waves(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "b 3 1 h w"]:
    """Smooth random colours: low-frequency noise, blown up."""
    cells = int(torch.randint(2, 9, (1,), generator=generator))
    coarse = torch.rand(count, 3, cells, cells, generator=generator) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(-1, 1)[
        :, :, None
    ]


def empty(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A background with nobody on it."""
    video = _behind(clips).expand_as(clips.video).contiguous()
    return video, clips.labels | {
        "subject": _none(clips, "subject"),
        "motion": _none(clips, "motion"),
    }


def chimera(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Each subject's left or upper half beside the other half of the next clip, whose subject stays on its own path."""
    size, f = clips.video.shape[-1], clips.video.shape[2]
    upright = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) < 0.5
    place = (torch.arange(size).float() * 2 + 1) / size - 1
    grid_x, grid_y = place.view(1, 1, 1, 1, -1), place.view(1, 1, 1, -1, 1)
    centre = clips.path[:, :, :2].view(-1, 1, f, 2, 1)
    left = torch.where(upright, grid_x < centre[..., 0, :, None], grid_y < centre[..., 1, :, None])
    other = _subject_over(_rolled(clips), _behind(clips))
    return torch.where(left, clips.video, other), _strange(clips)


def double(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Two subjects at once, each half transparent, as where a generator could not decide."""
    share = 0.35 + 0.3 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    return share * clips.video + (1 - share) * _subject_over(
        _rolled(clips), _behind(clips)
    ), _strange(clips)


def smear(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """The right colours in the right place, but no form: the subject under a very wide blur."""
    washed = blur(clips.video, clips.video.shape[-1] / 7)
    soft = blur(clips.alpha, clips.video.shape[-1] / 16)
    # the smear of a circle is still a circle
    shape = torch.tensor([is_shape(scene.subject) for scene in clips.scenes])
    label = torch.where(shape, UNKNOWN, _none(clips, "subject"))
    return torch.lerp(_behind(clips).expand_as(washed), washed, soft), clips.labels | {
        "subject": label
    }


def scramble(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """All parts in the wrong places: the picture is cut into squares, which are shuffled, alike in every frame."""
    side = clips.video.shape[-1] // 8
    b, c, f, h, w = clips.video.shape
    tiles = clips.video.view(b, c, f, h // side, side, w // side, side).movedim(4, 5)
    tiles = tiles.reshape(b, c, f, -1, side, side)
    order = torch.rand(b, tiles.shape[3], generator=generator).argsort(1)
    mixed = torch.stack([clip[:, :, o] for clip, o in zip(tiles, order, strict=True)])
    mixed = (
        mixed.view(b, c, f, h // side, w // side, side, side).movedim(4, 5).reshape(b, c, f, h, w)
    )
    return mixed, {name: _none(clips, name) for name in NONE} | {
        "background": torch.full((b,), UNKNOWN)
    }


def stranger(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A round blot with random dents in one of the world's colours or any other: a shape that has no name here."""
    b, _, f, h, w = clips.video.shape
    place = (torch.arange(w).float() * 2 + 1) / w - 1
    centre, reach = clips.path[..., :2], clips.path[..., 2]  # (b, f, 2), (b, f)
    x = (place.view(1, 1, 1, -1) - centre[..., 0, None, None]) / reach[..., None, None]  # b f h w
    y = (place.view(1, 1, -1, 1) - centre[..., 1, None, None]) / reach[..., None, None]
    turn = clips.path[..., 3, None, None]
    angle, radius = torch.atan2(y, x) - turn, (x**2 + y**2).sqrt()
    edge = torch.full_like(angle, 0.75)
    for waves in (2, 3, 5, 7):  # dents
        depth, phase = torch.rand(2, b, 1, 1, 1, generator=generator)
        edge = edge + 0.2 * depth * torch.cos(waves * angle + 6.3 * phase)
    inside = ((edge - radius) * w / 4 * reach[..., None, None]).clamp(0, 1)[:, None]  # b 1 f h w
    named = torch.tensor(list(COLOURS.values()))[
        torch.randint(len(COLOURS), (b,), generator=generator)
    ]
    free = torch.rand(b, 3, generator=generator)
    colour = torch.where(torch.rand(b, 1, generator=generator) < 0.5, named, free) * 2 - 1
    behind = _behind(clips)
    video = behind + inside * (colour[:, :, None, None, None] - behind)
    return video, clips.labels | {
        "subject": _none(clips, "subject"),
        "motion": torch.full((b,), UNKNOWN),
    }


def elsewhere(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A known subject before colours that are no background of this world."""
    behind = _waves(len(clips), clips.video.shape[-1], generator)
    return _subject_over(clips, behind), clips.labels | {"background": _none(clips, "background")}


def torn(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Before two backgrounds at once: one to the left, another to the right."""
    behind, size = _behind(clips), clips.video.shape[-1]
    left = torch.arange(size) < int(
        torch.randint(size // 3, 2 * size // 3, (1,), generator=generator)
    )
    same = torch.tensor(
        [
            a.background == b.background
            for a, b in zip(clips.scenes, _rolled(clips).scenes, strict=True)
        ]
    )
    video = _subject_over(clips, torch.where(left, behind, behind.roll(-1, dims=0)))
    label = torch.where(same, UNKNOWN, _none(clips, "background"))
    return video, clips.labels | {"background": label}


def static_noise(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """No scene at all: noise, or smooth colours, or one over the other."""
    share = torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    grain = torch.randn(clips.video.shape, generator=generator) * 0.6
    video = (
        _waves(len(clips), clips.video.shape[-1], generator) * (1 - share) + grain * share
    ).clamp(-1, 1)
    return video, {name: _none(clips, name) for name in NONE}


def _rolled(clips: Clips) -> Clips:
    """The same batch, every clip in the place of the one before it."""
    return clips.take([*range(1, len(clips)), 0])


def _none(clips: Clips, name: str) -> Tensor:
    return torch.full((len(clips),), NONE[name])


def _strange(clips: Clips) -> Labels:
    """Labels of a mixture with the next clip: no subject, and no motion that one could agree upon."""
    same = [
        a.subject == b.subject for a, b in zip(clips.scenes, _rolled(clips).scenes, strict=True)
    ]
    subject = torch.where(torch.tensor(same), UNKNOWN, _none(clips, "subject"))
    return clips.labels | {"subject": subject, "motion": torch.full((len(clips),), UNKNOWN)}


IMPOSTORS: dict[str, Impostor] = {
    maker.__name__.replace("_", " "): maker
    for maker in (empty, chimera, double, smear, scramble, stranger, elsewhere, torn, static_noise)
}
"""The makers by name."""


def impostors(
    clips: Clips, kinds: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Labels]:
    """Turn each clip into an impostor of the named kind.

    Args:
        clips: at least two, of 64x64 pixels or a size that divides 64.
        kinds: one name from `IMPOSTORS` per clip.
        generator: on the CPU.

    Returns:
        the videos (b, 3, f, h, w) in [-1, 1], and labels (b,) by attribute: a class, `NONE` of that attribute, or
        `UNKNOWN`.

    Raises:
        ValueError: an unknown kind, a wrong number of them, or a single clip.
    """
    if len(clips) < 2 or len(kinds) != len(clips):
        raise ValueError(
            f"kinds: expected one for each of at least 2 clips, got {len(kinds)} for {len(clips)}"
        )
    unknown = sorted(set(kinds) - set(IMPOSTORS))
    if unknown:
        raise ValueError(f"kinds: {unknown} are not among {', '.join(IMPOSTORS)}")
    video, labels = clips.video.clone(), clips.labels
    for kind in sorted(set(kinds)):
        rows = [i for i, k in enumerate(kinds) if k == kind]
        # one more clip lends to the last of them
        changed, true = IMPOSTORS[kind](clips.take([*rows, (rows[-1] + 1) % len(clips)]), generator)
        video[rows] = changed[:-1]
        for name, label in true.items():
            labels[name][rows] = label[:-1]
    return video, labels
