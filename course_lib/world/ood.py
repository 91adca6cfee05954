"""Out-of-distribution clips, on which the judge learns to answer "none of these".

The failures of a generator look unlike clips of the world: half a tiger and half a bus, a smear of
colour, a shape without a name. Attributes of a clip that stay true keep their labels.

Each kind has a function that takes clips and a generator on the CPU, and returns videos (b, 3, f,
h, w) in [-1, 1] and the labels that change, by attribute: one for all clips or a tensor (b,). It
may use the next clip of the batch. Call them through `make_ood_clips`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from course_lib.validation import check_generator, require
from course_lib.world.backgrounds import BACKGROUNDS
from course_lib.world.checks import at_least_float32
from course_lib.world.corruption import blur
from course_lib.world.motions import MOTIONS
from course_lib.world.rendering import Clips, paint_backgrounds, pixel_grid, render_size
from course_lib.world.subjects import COLOURS, SUBJECTS, is_shape

# Label "none of these" of each attribute: the class after the last real one
NONE_LABEL = {"subject": len(SUBJECTS), "motion": len(MOTIONS), "background": len(BACKGROUNDS)}
IGNORE_INDEX = -100  # label of an attribute that is ambiguous; cross-entropy ignores it

Labels = dict[str, Tensor | int]
OodMaker = Callable[[Clips, torch.Generator], tuple[Tensor, Labels]]


def background_only(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A background without a subject."""
    video = _backgrounds(clips).expand_as(clips.video)
    return video, {"subject": NONE_LABEL["subject"], "motion": NONE_LABEL["motion"]}


def chimera(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """The left or upper half of each subject, and the other half of the next clip's subject."""
    check_generator(generator)
    is_vertical = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) < 0.5
    pixel_x, pixel_y = pixel_grid(clips.video.shape[-1]).unbind(-1)  # (h, w) each
    x, y = clips.path[:, None, :, :2, None, None].unbind(3)  # (b, 1, f, 1, 1) each
    is_first_half = torch.where(is_vertical, pixel_x < x, pixel_y < y)  # (b, 1, f, h, w)
    other = _replace_background(_next_clips(clips), _backgrounds(clips))
    return torch.where(is_first_half, clips.video, other), _mixture_labels(clips)


def double(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Two subjects at once, both semi-transparent."""
    check_generator(generator)
    weight = 0.35 + 0.3 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    other = _replace_background(_next_clips(clips), _backgrounds(clips))
    return weight * clips.video + (1 - weight) * other, _mixture_labels(clips)


def smear(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """The right colours in the right position without form: the subject under a very wide blur."""
    size = clips.video.shape[-1]
    blurred = blur(clips.video, size / 7)
    background = _backgrounds(clips).to(blurred).expand_as(blurred)
    video = torch.lerp(background, blurred, blur(clips.alpha, size / 16).to(blurred))
    # a blurred circle is still a circle
    is_ambiguous = [is_shape(scene.subject) for scene in clips.scenes]
    return video, {"subject": _none_unless(is_ambiguous, "subject")}


def scramble(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """The frame cut into 8x8 tiles and shuffled, in the same order in every frame."""
    check_generator(generator)
    tiles = rearrange(clips.video, "b c f (y h) (x w) -> b (y x) c f h w", y=8, x=8)
    order = torch.rand(len(clips), 64, generator=generator).argsort(1)
    tiles = torch.stack([clip[index] for clip, index in zip(tiles, order, strict=True)])
    video = rearrange(tiles, "b (y x) c f h w -> b c f (y h) (x w)", y=8)
    none = {"subject": NONE_LABEL["subject"], "motion": NONE_LABEL["motion"]}
    return video, none | {"background": IGNORE_INDEX}


def unknown_shape(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A round blob with random dents, in one of the world's colours or any other."""
    check_generator(generator)
    b, w = len(clips), clips.video.shape[-1]
    centre_x, centre_y, size, angle = clips.path[..., None, None].unbind(2)  # (b, f, 1, 1) each
    pixel_x, pixel_y = pixel_grid(w).unbind(-1)  # (h, w) each
    x = (pixel_x[:1] - centre_x) / size  # (b, f, 1, w)
    y = (pixel_y[:, :1] - centre_y) / size  # (b, f, h, 1)
    theta = torch.atan2(y, x) - angle  # (b, f, h, w)
    edge = torch.full_like(theta, 0.75)
    for frequency in (2, 3, 5, 7):  # dents
        depth, phase = torch.rand(2, b, 1, 1, 1, generator=generator)
        edge = edge + 0.2 * depth * torch.cos(frequency * theta + 6.3 * phase)
    alpha = ((edge - (x**2 + y**2).sqrt()) * w / 4 * size).clamp(0, 1)[:, None]  # (b, 1, f, h, w)
    choice = torch.randint(len(COLOURS), (b,), generator=generator)
    named = torch.tensor(list(COLOURS.values()))[choice]  # (b, 3)
    unnamed = torch.rand(b, 3, generator=generator)
    rgb = torch.where(torch.rand(b, 1, generator=generator) < 0.5, named, unnamed) * 2 - 1
    background = _backgrounds(clips)
    video = background + alpha * (rgb[:, :, None, None, None] - background)
    return video, {"subject": NONE_LABEL["subject"], "motion": IGNORE_INDEX}


def unknown_background(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A subject of the world on colours that are no background of the world."""
    check_generator(generator)
    background = _smooth_colours(len(clips), clips.video.shape[-1], generator)
    return _replace_background(clips, background), {"background": NONE_LABEL["background"]}


def split_background(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A subject on two backgrounds: its own to the left, the next clip's to the right."""
    check_generator(generator)
    size = clips.video.shape[-1]
    edge = torch.randint(size // 3, 2 * size // 3, (1,), generator=generator)
    background = _backgrounds(clips)
    split = torch.where(torch.arange(size) < edge, background, background.roll(-1, dims=0))
    labels = {"background": _none_unless(_same_as_next(clips, "background"), "background")}
    return _replace_background(clips, split), labels


def static_noise(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """No scene: a mixture of noise and smooth colours."""
    check_generator(generator)
    weight = torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    grain = torch.randn(clips.video.shape, generator=generator) * 0.6
    colours = _smooth_colours(len(clips), clips.video.shape[-1], generator)
    return (colours * (1 - weight) + grain * weight).clamp(-1, 1), NONE_LABEL


OOD_KINDS: dict[str, OodMaker] = {
    maker.__name__: maker
    for maker in (
        *(background_only, chimera, double, smear, scramble),
        *(unknown_shape, unknown_background, split_background, static_noise),
    )
}
# Order in which kinds use the generator of a batch: fixed, so that a seed gives the same clips
_GENERATION_ORDER = (
    *("chimera", "double", "unknown_background", "background_only", "scramble"),
    *("smear", "static_noise", "unknown_shape", "split_background"),
)


def make_ood_clips(
    clips: Clips, kinds: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Labels]:
    """Turn each clip into an out-of-distribution clip of the named kind.

    Args:
        clips: at least two, of 64x64 pixels or a size that divides 64.
        kinds: one name from `OOD_KINDS` per clip.
        generator: on the CPU.

    Returns:
        the videos (b, 3, f, h, w) in [-1, 1], and labels (b,) by attribute: a class, `NONE_LABEL`
        of the attribute, or `IGNORE_INDEX`.

    Raises:
        ValueError: an unknown kind, a wrong number of them, or a single clip.
    """
    require(
        len(kinds) == len(clips) >= 2,
        "kinds",
        "one for each of at least 2 clips",
        f"{len(kinds)} for {len(clips)}",
    )
    unknown = sorted(set(kinds) - set(OOD_KINDS))
    require(not unknown, "kinds", ", ".join(OOD_KINDS), ", ".join(unknown))
    check_generator(generator)
    video = clips.video.clone()
    clips = replace(clips, video=at_least_float32(clips.video))
    labels = clips.labels
    for kind in sorted(set(kinds), key=_GENERATION_ORDER.index):
        rows = [i for i, name in enumerate(kinds) if name == kind]
        # with one more clip, which the last row borrows from
        batch = clips.select([*rows, (rows[-1] + 1) % len(clips)])
        ood_video, ood_labels = OOD_KINDS[kind](batch, generator)
        video[rows] = ood_video[:-1].to(video)
        for name, label in ood_labels.items():
            labels[name][rows] = torch.as_tensor(label).expand(len(batch))[:-1]
    return video, labels


def _backgrounds(clips: Clips) -> Float[Tensor, "b 3 1 h w"]:
    """The backgrounds without subjects, in [-1, 1]."""
    size = clips.video.shape[-1]
    internal_size = render_size(size)
    images = paint_backgrounds(clips.scenes, internal_size, clips.video.device)
    return F.avg_pool2d(images, internal_size // size).mul(2).sub(1)[:, :, None]


def _replace_background(clips: Clips, background: Float[Tensor, "b 3 1 h w"]) -> Tensor:
    return clips.video + (1 - clips.alpha) * (background - _backgrounds(clips))


def _smooth_colours(b: int, size: int, generator: torch.Generator) -> Float[Tensor, "b 3 1 h w"]:
    """Random colours that vary smoothly: upsampled low-resolution noise."""
    cells = int(torch.randint(2, 9, (1,), generator=generator))
    coarse = torch.rand(b, 3, cells, cells, generator=generator) * 2 - 1
    colours = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return colours.clamp(-1, 1)[:, :, None]


def _next_clips(clips: Clips) -> Clips:
    """The same batch, rolled by one: the clip after each clip."""
    return clips.select([*range(1, len(clips)), 0])


def _same_as_next(clips: Clips, attribute: str) -> list[bool]:
    """Whether each clip and the next one agree in an attribute."""
    values = [getattr(scene, attribute) for scene in clips.scenes]
    return [a == b for a, b in zip(values, values[1:] + values[:1], strict=True)]


def _none_unless(is_ambiguous: list[bool], attribute: str) -> Tensor:
    return torch.where(torch.tensor(is_ambiguous), IGNORE_INDEX, NONE_LABEL[attribute])


def _mixture_labels(clips: Clips) -> Labels:
    """Labels of a mixture with the next clip: no subject, an ambiguous motion."""
    subject = _none_unless(_same_as_next(clips, "subject"), "subject")
    return {"subject": subject, "motion": IGNORE_INDEX}
