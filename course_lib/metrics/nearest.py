"""The rendering of a prompt that is nearest to a frame: analysis by synthesis.

A classifier forgives: it names a cat without a head. The Emoji World is known exactly, so the real
picture nearest to a generated frame can be searched, over the subject's animation frames, position,
size and angle. What still differs inside the subject is what a person sees: missing parts, melted
lines, wrong colours.

Three steps per frame (Horn 1986, "Robot Vision", on analysis by synthesis; the second is
Levenberg-Marquardt):

1. The background: the painted variant that differs least, where differences are truncated so that
   the subject hardly counts.
2. A coarse search over sizes, angles and animation frames at 32 x 32, all positions at once: the
   squared error of frame and rendering is a sum of correlations, which are products of Fourier
   transforms.
3. The best candidates are refined through the renderer's own affine sampling, by the derivatives of
   its pixels with respect to x, y, log size and angle.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from course_lib.metrics.trajectory import drop_specks
from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.validation import check_prompts, check_video, require
from course_lib.world import BACKGROUNDS, parse_caption
from course_lib.world.backgrounds import BACKGROUND_INDEX, paint
from course_lib.world.rendering import place_sprites
from course_lib.world.sprites import MIP_BLUR_SIGMAS, SPRITE_FRAMES, mip_level_for, sprite_atlas
from course_lib.world.subjects import SUBJECT_INDEX, is_rotation_symmetric, is_shape

RENDER_SIZE = 64
COARSE_SIZE = 32
PADDING = 8  # pixels of the coarse frame, on each side: subjects may leave the frame that far
MAX_SHIFT = 11  # pixels of the coarse frame from its centre
COARSE_SIZES = tuple(np.geomspace(0.46, 0.84, 5).tolist())
NUM_ANGLES = 18
COARSE_FRAME_STRIDE = 3  # every third animation frame takes part in the coarse search
NUM_CANDIDATES = 8  # of the coarse search
NUM_VARIANTS = 512  # of every background
TRUNCATION = 0.15  # largest difference in [0, 1] by which a pixel counts against a background
DIFFERENCE = 0.1  # in [0, 1], of a pixel that is not the background's
MAX_STEP = (0.1, 0.1, 0.15, 0.3)  # of x, y, log size and angle, in one step of the refinement
DERIVATIVE_STEP = (1 / 64, 1 / 64, 0.015, 0.02)
SIZE_RANGE = (0.35, 1.0)
PSNR_CAP = 50.0  # dB; what 8 bits per channel can show


@dataclass(frozen=True)
class NearestRenderings:
    """The renderings of prompts that are nearest to the frames of videos.

    Attributes:
        pose: x, y in [-1, 1], size as a fraction of the frame, and angle in radians, as in
            `world.Clips.path`. The angle of a circle or ring means nothing.
        animation_frame: index of the sprite's frame, 0 to 15.
        video: the renderings in [-1, 1]. Away from the subject they repeat the given frames, so
            only the subject, and what is in its place, makes a difference.
        alpha: coverage of each pixel by the rendered subject, in [0, 1].
        psnr: PSNR of the frame inside `alpha` in dB, at most 50.
    """

    pose: Float[Tensor, "b f 4"]
    animation_frame: Int[Tensor, "b f"]
    video: Float[Tensor, "b 3 f h w"]
    alpha: Float[Tensor, "b 1 f h w"]
    psnr: Float[Tensor, "b f"]


def nearest_renderings(video: Tensor, prompts: Sequence[str]) -> NearestRenderings:
    """Search the renderings of prompts that are nearest to the frames of videos.

    Every frame is searched on its own. Subjects stand upright, as in the world, unless the prompt
    says "spinning" or names no motion.

    Args:
        video: (b, 3, f, 64, 64) or (b, 3, f, 32, 32) in [-1, 1].
        prompts: one per video; each names a subject. Without a background all ten are tried.

    Raises:
        ValueError: bad videos, another size, or a prompt without a subject of the world.
    """
    check_video("video", video)
    b, c, f, h, w = video.shape
    sizes = (RENDER_SIZE, COARSE_SIZE)
    is_size = c == 3 and h == w and h in sizes
    require(is_size, "video", "(b, 3, f, h, w) with h = w = 64 or 32", tuple(video.shape))
    check_prompts("prompts", prompts, b)
    frames = fold_frames(video.detach().cpu().float()).clamp(-1, 1).add(1).div(2)
    groups: dict[tuple, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(_query(prompt), []).append(row)
    parts, order = [], []
    for (subject, background, is_upright), rows in groups.items():
        indices = [row * f + frame for row in rows for frame in range(f)]
        order += indices
        for chunk in frames[indices].split(16):
            parts.append(_search(chunk, subject, background, is_upright))
    position = torch.tensor(order).argsort()
    fields = [torch.cat(field)[position] for field in zip(*parts, strict=True)]
    pose, animation_frame, psnr = (x.unflatten(0, (b, f)) for x in fields[:3])
    renderings, alpha = (unfold_frames(x, f) for x in fields[3:])
    return NearestRenderings(pose, animation_frame, renderings * 2 - 1, alpha, psnr)


def _query(prompt: str) -> tuple[str, str | None, bool]:
    """Subject and background of a prompt, and whether its subject stands upright."""
    names = parse_caption(prompt)
    require(names["subject"] is not None, "prompts", "a subject of the world", repr(prompt))
    is_upright = names["motion"] not in (None, "spinning")
    is_upright = is_upright or is_rotation_symmetric(names["subject"])
    return names["subject"], names["background"], is_upright


def _search(
    frames: Float[Tensor, "n 3 h w"], subject: str, background: str | None, is_upright: bool
) -> tuple[Tensor, ...]:
    """Pose (n, 4), animation frame (n,), PSNR (n,), rendering and alpha (n, c, h, w) of frames.

    Colours are in [0, 1].
    """
    backdrop = _fill_background(frames, background)
    candidates, animation_frame = _coarse_search(frames, backdrop, subject, is_upright)
    sprites = _Sprites(subject)
    n, k = animation_frame.shape
    theta = candidates.flatten(0, 1)
    images = sprites(theta, animation_frame.flatten())
    theta, error = _refine(images, theta, *_repeat(k, frames, backdrop), 5, is_upright)
    theta = _smallest(error.view(n, k), theta.view(n, k, 4))
    # An animation frame and a small move can look alike: from there, refine all of them
    k = sprites.num_frames
    animation_frame = torch.arange(k).repeat(n)
    theta = theta.repeat_interleave(k, dim=0)
    images = sprites(theta, animation_frame)
    theta, error = _refine(images, theta, *_repeat(k, frames, backdrop), 5, is_upright)
    theta = _smallest(error.view(n, k), theta.view(n, k, 4))
    animation_frame = error.view(n, k).argmin(dim=1)
    # a clip has one mip level, chosen by its mean size
    levels = range(len(MIP_BLUR_SIGMAS))
    by_level = [sprites.at_level(level, animation_frame) for level in levels]
    errors = torch.stack([_squared_error(x, theta, frames, backdrop) for x in by_level])
    images = torch.stack(by_level)[errors.argmin(dim=0), torch.arange(n)]
    theta, _ = _refine(images, theta, frames, backdrop, 3, is_upright)
    rgb, alpha = _place(images, theta, frames.shape[-1]).split([3, 1], dim=1)
    rendering = rgb + (1 - alpha) * backdrop
    mse = ((rendering - frames).square() * alpha).sum(dim=(1, 2, 3))
    mse = mse / (3 * alpha.sum(dim=(1, 2, 3))).clamp(min=1e-6)
    psnr = (-10 * mse.clamp(min=1e-9).log10()).clamp(max=PSNR_CAP)
    pose = torch.cat([theta[:, :2], theta[:, 2:3].exp(), theta[:, 3:]], dim=1)
    return pose, animation_frame, psnr, rendering, alpha


def _repeat(k: int, *tensors: Tensor) -> list[Tensor]:
    """Every row k times, neighbouring."""
    return [tensor.repeat_interleave(k, dim=0) for tensor in tensors]


def _smallest(error: Float[Tensor, "n k"], values: Float[Tensor, "n k d"]) -> Tensor:
    """Of every row, the values of the smallest error."""
    return values[torch.arange(len(error)), error.argmin(dim=1)]


@lru_cache(maxsize=len(BACKGROUNDS))
def _painted(background: str) -> Float[Tensor, "variant 3 32 32"]:
    index = np.full(NUM_VARIANTS, BACKGROUND_INDEX[background])
    return paint(index, np.arange(NUM_VARIANTS), COARSE_SIZE)


def _fill_background(
    frames: Float[Tensor, "n 3 h w"], background: str | None
) -> Float[Tensor, "n 3 h w"]:
    """The frames without their subjects: where they differ from the nearest painted background."""
    names = BACKGROUNDS if background is None else (background,)
    size = frames.shape[-1]
    filled = []
    for frame, small in zip(frames, _shrink(frames, COARSE_SIZE), strict=True):
        # (backgrounds, variants)
        distance = torch.stack(
            [(_painted(name) - small).abs().clamp(max=TRUNCATION).square().sum((1, 2, 3))
             for name in names]
        )  # fmt: skip
        kind, variant = divmod(int(distance.argmin()), NUM_VARIANTS)
        index = np.array([BACKGROUND_INDEX[names[kind]]])
        painted = paint(index, np.array([variant]), size)[0]
        differs = (frame - painted).abs().amax(dim=0) > DIFFERENCE
        mask = torch.from_numpy(drop_specks(differs.numpy())).float()
        mask = F.max_pool2d(mask[None, None], 5, stride=1, padding=2)[0]
        filled.append(painted * mask + frame * (1 - mask))
    return torch.stack(filled)


class _Sprites:
    """Sprites of a subject, premultiplied RGBA in [0, 1]."""

    def __init__(self, subject: str) -> None:
        self.images, table = sprite_atlas()
        self.rows = torch.from_numpy(table[SUBJECT_INDEX[subject]].copy())
        self.num_frames = 1 if is_shape(subject) else SPRITE_FRAMES

    def __call__(
        self, theta: Float[Tensor, "n 4"], animation_frame: Int[Tensor, "n"]
    ) -> Float[Tensor, "n 4 64 64"]:
        """At the mip level of the sizes in theta."""
        level = torch.from_numpy(mip_level_for(theta[:, 2].exp().numpy(), RENDER_SIZE))
        return self.images[level, self.rows[animation_frame]].float() / 255

    def at_level(self, level: int, animation_frame: Int[Tensor, "n"]) -> Tensor:
        return self.images[level, self.rows[animation_frame]].float() / 255


@lru_cache(maxsize=2)
def _templates(
    subject: str, is_upright: bool
) -> tuple[Float[Tensor, "t 4"], Int[Tensor, "t"], Complex[Tensor, "y x t 9"]]:
    """Centred renderings: x, y, log size and angle, animation frames, conjugate spectra.

    The nine kernels are those of `_coarse_search`.
    """
    sprites = _Sprites(subject)
    angles = [0.0] if is_upright else [2 * math.pi * i / NUM_ANGLES for i in range(NUM_ANGLES)]
    frames = range(0, sprites.num_frames, COARSE_FRAME_STRIDE)
    rows = [(0.0, 0.0, math.log(s), a) for _ in frames for s in COARSE_SIZES for a in angles]
    theta = torch.tensor(rows)
    animation_frame = torch.tensor(frames).repeat_interleave(len(COARSE_SIZES) * len(angles))
    pose = torch.cat([theta[:, :2], theta[:, 2:3].exp(), theta[:, 3:]], dim=1)[:, None]
    images = sprites(theta, animation_frame)[:, None]
    placed = place_sprites(images, pose, COARSE_SIZE)[:, 0]
    rgb, alpha = placed.split([3, 1], dim=1)
    kernels = [rgb, alpha, rgb.square().sum(1, keepdim=True), alpha * rgb, alpha.square()]
    spectra = torch.fft.rfft2(F.pad(torch.cat(kernels, dim=1), (PADDING,) * 4))  # t 9 y x
    return theta, animation_frame, spectra.conj().permute(2, 3, 0, 1).contiguous()


def _coarse_search(
    frames: Float[Tensor, "n 3 h w"],
    backdrop: Float[Tensor, "n 3 h w"],
    subject: str,
    is_upright: bool,
) -> tuple[Float[Tensor, "n k 4"], Int[Tensor, "n k"]]:
    """Candidates (x, y, log size, angle) and their animation frames, best first.

    With D = I - B, the error of a rendering P + (1 - α) B of the frame I is, inside the frame,
    Σ D² - 2 Σ P D + 2 Σ α B D + Σ P² - 2 Σ α P B + Σ α² B²: five correlations, of nine channels.
    """
    theta, animation_frame, spectra = _templates(subject, is_upright)
    image, back = (_shrink(x, COARSE_SIZE) for x in (frames, backdrop))
    rest = image - back

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=1, keepdim=True)

    inside = torch.ones_like(rest[:, :1])
    channels = [-2 * rest, 2 * dot(back, rest), inside, -2 * back, dot(back, back)]
    padded = F.pad(torch.cat(channels, dim=1), (PADDING,) * 4)  # n 9 y x
    image_spectra = torch.fft.rfft2(padded).permute(2, 3, 1, 0)  # y x 9 n
    product = (spectra @ image_spectra).permute(3, 2, 0, 1)  # n t y x
    side = COARSE_SIZE + 2 * PADDING
    width = 2 * MAX_SHIFT + 1
    error = torch.fft.irfft2(product, s=(side, side)).roll((MAX_SHIFT,) * 2, dims=(2, 3))
    error, shift = error[:, :, :width, :width].flatten(2).min(dim=2)  # n t
    # the candidates differ in angle, or in animation frame if all stand upright
    kind = animation_frame if is_upright else theta[:, 3]
    values = kind.unique()
    best = torch.stack(
        [error.where(kind == value, torch.inf).argmin(dim=1) for value in values], dim=1
    )  # n kinds
    k = min(NUM_CANDIDATES, len(values))
    best = best.gather(1, error.gather(1, best).topk(k, largest=False).indices)  # n k
    row, column = shift.gather(1, best) // width, shift.gather(1, best) % width
    centre = torch.stack([column, row], dim=2).sub(MAX_SHIFT) * (2 / COARSE_SIZE)
    return torch.cat([centre, theta[best][:, :, 2:]], dim=2), animation_frame[best]


def _shrink(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c small_h small_w"]:
    factor = images.shape[-1] // size
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _place(
    sprites: Float[Tensor, "n 4 64 64"], theta: Float[Tensor, "n 4"], size: int
) -> Float[Tensor, "n 4 h w"]:
    pose = torch.cat([theta[:, :2], theta[:, 2:3].exp(), theta[:, 3:]], dim=1)
    return _shrink(place_sprites(sprites[:, None], pose[:, None], RENDER_SIZE)[:, 0], size)


def _residual(
    sprites: Tensor, theta: Tensor, frames: Tensor, backdrop: Tensor
) -> Float[Tensor, "n pixels"]:
    rgb, alpha = _place(sprites, theta, frames.shape[-1]).split([3, 1], dim=1)
    return (rgb + (1 - alpha) * backdrop - frames).flatten(1)


def _squared_error(*args: Tensor) -> Float[Tensor, "n"]:
    return _residual(*args).square().sum(dim=1)


def _refine(
    sprites: Float[Tensor, "n 4 64 64"],
    theta: Float[Tensor, "n 4"],
    frames: Float[Tensor, "n 3 h w"],
    backdrop: Float[Tensor, "n 3 h w"],
    num_steps: int,
    is_upright: bool,
) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n"]]:
    """Levenberg-Marquardt on the pixels. Returns theta and the squared error, never larger."""
    free = 3 if is_upright else 4
    limit = torch.tensor(MAX_STEP)[:free]
    damping = torch.full((len(theta), 1), 1e-2)
    residual = _residual(sprites, theta, frames, backdrop)
    error = residual.square().sum(dim=1)
    for _ in range(num_steps):
        columns = []
        for parameter, step in enumerate(DERIVATIVE_STEP[:free]):
            moved = theta + F.one_hot(torch.tensor(parameter), 4) * step
            columns.append((_residual(sprites, moved, frames, backdrop) - residual) / step)
        jacobian = torch.stack(columns, dim=1)  # n free pixels
        hessian = jacobian @ jacobian.transpose(1, 2)
        gradient = jacobian @ residual[:, :, None]  # n free 1
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        damped = hessian + torch.diag_embed(diagonal * damping + 1e-6)
        step = -torch.linalg.solve(damped, gradient)[:, :, 0].clamp(-limit, limit)
        proposal = theta + F.pad(step, (0, 4 - free))
        proposal[:, 2].clamp_(*map(math.log, SIZE_RANGE))
        proposed = _residual(sprites, proposal, frames, backdrop)
        better = proposed.square().sum(dim=1) < error
        theta = proposal.where(better[:, None], theta)
        residual = proposed.where(better[:, None], residual)
        error = residual.square().sum(dim=1)
        damping = (damping / 4).where(better[:, None], damping * 8)
    return theta, error
