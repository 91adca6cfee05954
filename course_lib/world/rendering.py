"""From scenes to pixels: one background, one sprite, one affine path, one `grid_sample`.

    frame = sprite moved by the path + (1 - its alpha) * background

Rendering is vectorised over clips and frames, follows its device, and knows the exact optical flow, because it moved
every pixel itself.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.world.backgrounds import BACKGROUND_INDEX, paint
from course_lib.world.captions import VIDEO_TEMPLATES, caption, image_caption
from course_lib.world.hashing import uniform
from course_lib.world.motions import CANONICAL_SECONDS, MOTION_INDEX, check_rate, path
from course_lib.world.scenes import Sampler, Scene
from course_lib.world.sprites import EXTENT, SPRITE_FRAMES, level_for, sprite_bank
from course_lib.world.subjects import SUBJECT_INDEX, is_shape

AT_ONCE = 128  # clips


@dataclass(frozen=True)
class Clips:
    """A batch of clips and all that is true of them. Masks, flow and trajectories are computed when asked for."""

    video: Float[Tensor, "b 3 f h w"]
    """red, green, blue in [-1, 1]"""
    scenes: tuple[Scene, ...]
    path: Float[Tensor, "b f 4"]
    """x, y in [-1, 1], size as a share of the frame, angle in radians"""
    alpha: Float[Tensor, "b 1 f h w"]
    """the subject's coverage of each pixel in [0, 1]"""
    flow_exact: Bool[Tensor, "b"]
    """True where nothing but the path moves (a shape, or a frozen sprite); else the flow is the path's alone"""

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, rows: Sequence[int]) -> "Clips":
        """Some of the clips, in the order of `rows` (indices into this batch)."""
        rows = list(rows)
        scenes = tuple(self.scenes[i] for i in rows)
        return Clips(
            self.video[rows], scenes, self.path[rows], self.alpha[rows], self.flow_exact[rows]
        )

    @staticmethod
    def join(parts: Sequence["Clips"]) -> "Clips":
        """One batch of several, all of the same size and length."""
        scenes = tuple(scene for part in parts for scene in part.scenes)
        video, path, alpha = (
            torch.cat([getattr(part, n) for part in parts]) for n in ("video", "path", "alpha")
        )
        return Clips(video, scenes, path, alpha, torch.cat([part.flow_exact for part in parts]))

    @property
    def mask(self) -> Bool[Tensor, "b 1 f h w"]:
        """Where the subject covers more than half of a pixel."""
        return self.alpha > 0.5

    @cached_property
    def flow(self) -> Float[Tensor, "b 2 steps h w"]:
        """Forward optical flow in pixels: where a point seen in frame t goes in frame t + 1; (x, y) in dim 1.

        The background stands still, so its flow is zero.
        """
        size = self.video.shape[-1]
        here, there = self.path[:, :-1], self.path[:, 1:]
        point = _pixel_grid(size, self.video.device)  # (h, w, 2)
        # into the sprite by this frame's path, out of it by the next one's
        inside = (
            _rotate(point - here[:, :, None, None, :2], -here[..., 3])
            / here[..., 2, None, None, None]
        )
        moved = (
            _rotate(inside, there[..., 3]) * there[..., 2, None, None, None]
            + there[:, :, None, None, :2]
        )
        flow = (moved - point).permute(0, 4, 1, 2, 3) * (size / 2)  # (b, 2, f-1, h, w), pixels
        return flow * self.mask[:, :, :-1]

    @property
    def captions(self) -> list[str]:
        """The canonical caption of every clip."""
        return [caption(scene) for scene in self.scenes]

    @property
    def image_captions(self) -> list[str]:
        """The canonical caption of any one frame: no motion."""
        return [image_caption(scene) for scene in self.scenes]

    @property
    def paraphrases(self) -> list[str]:
        """A wording per clip that depends on its variant: use these to train text-conditioned models."""
        return [caption(scene, _wording(scene)) for scene in self.scenes]

    @property
    def image_paraphrases(self) -> list[str]:
        """The same for a frame of each clip: subject and background, no motion."""
        return [image_caption(scene, _wording(scene)) for scene in self.scenes]

    @property
    def labels(self) -> dict[str, Tensor]:
        """Class indices, int64 of shape (b,), for "subject", "motion" and "background"."""
        tables = {"subject": SUBJECT_INDEX, "motion": MOTION_INDEX, "background": BACKGROUND_INDEX}
        return {
            name: torch.tensor(
                [table[getattr(scene, name)] for scene in self.scenes],
                dtype=torch.int64,
                device=self.video.device,
            )
            for name, table in tables.items()
        }

    @cached_property
    def trajectory(self) -> Float[Tensor, "b 1 f h w"]:
        """A soft dot at the subject's centre in each frame, in [0, 1]: a control signal for motion."""
        point = _pixel_grid(self.video.shape[-1], self.video.device)  # (h, w, 2)
        distance = (point - self.path[:, :, None, None, :2]).square().sum(-1)  # (b, f, h, w)
        return torch.exp(-distance / (2 * 0.08**2))[:, None]


def _wording(scene: Scene) -> int:
    return int(uniform("wording", scene.variant)[0] * len(VIDEO_TEMPLATES))


def render(
    scenes: Sequence[Scene],
    *,
    size: int = 64,
    frames: int = 16,
    fps: float | int = 8,
    frozen: bool = False,
    anytime: bool = False,
    device: torch.device | str = "cpu",
) -> Clips:
    """Render scenes; the same scene gives the same clip whatever else is in the batch.

    Args:
        scenes: what to show, one scene per clip; may be empty.
        size: height and width in pixels, at least 8. Clips other than 64x64 are meant to be derived from it:
            32 averages 2x2 pixels of the canonical clip, so both sizes show the same film.
        frames: number of frames, at least 1.
        fps: frames per second; the canonical clip has 16 frames at 8 fps.
        frozen: hold the emoji's own animation still, so that the flow is exact.
        anytime: cut a short clip from a place in the canonical one that its variant decides, not from the middle:
            single pictures then show a subject at every point of its path.
        device: where to render.

    Raises:
        ValueError: size, frames or fps out of range.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if len(scenes) > AT_ONCE:  # what is made on the way takes several times the memory of the clips
        how = {
            "size": size,
            "frames": frames,
            "fps": fps,
            "frozen": frozen,
            "anytime": anytime,
            "device": device,
        }
        return Clips.join(
            [render(scenes[i : i + AT_ONCE], **how) for i in range(0, len(scenes), AT_ONCE)]
        )
    fine = 64 if 64 % size == 0 else size
    variant = np.array([scene.variant for scene in scenes], dtype=np.int64)
    motion = np.array([MOTION_INDEX[scene.motion] for scene in scenes], dtype=np.int64)
    check_rate(frames, fps)
    spare = max(0.0, CANONICAL_SECONDS - (frames - 1) / fps)
    moment = (
        uniform("moment", variant, low=-spare / 2, high=spare / 2)
        if anytime
        else np.zeros(len(scenes))
    )
    places = path(motion, variant, frames, fps, moment)  # (b, f, 4) float64
    background = np.array([BACKGROUND_INDEX[scene.background] for scene in scenes], dtype=np.int64)

    behind = paint(background, variant, fine, device)[:, None]  # (b, 1, 3, h, w)
    where = torch.from_numpy(places).float().to(device)
    moved = _move(
        _sprites(scenes, variant, places, moment, fine, fps, frozen, device), where, fine
    )  # (b, f, 4, h, w)
    alpha = moved[:, :, 3:]
    video = moved[:, :, :3] + (1 - alpha) * behind  # (b, f, 3, h, w)
    still = [frozen or is_shape(scene.subject) for scene in scenes]
    return Clips(
        video=_shrink(video, size).permute(0, 2, 1, 3, 4).mul(2).sub(1).contiguous(),
        scenes=tuple(scenes),
        path=where,
        alpha=_shrink(alpha, size).permute(0, 2, 1, 3, 4).contiguous(),
        flow_exact=torch.tensor(still, dtype=torch.bool, device=device),
    )


def _sprites(
    scenes, variant, places, moment, size, fps, frozen, device
) -> Float[Tensor, "b f 4 64 64"]:
    """Pick each frame's picture of the subject: its animation runs to and fro, from a start of its own."""
    frames = places.shape[1]
    start = np.floor(uniform("animation", variant, high=2 * SPRITE_FRAMES - 2))[:, None]
    # drawn at 8 frames a second, and counted from the middle of the clip, as time on the path is
    elapsed = (
        np.floor((np.arange(frames) - frames // 2) * 8 / fps)[None] + np.floor(8 * moment)[:, None]
    )
    period = 2 * SPRITE_FRAMES - 2
    step = (start + (0 if frozen else elapsed)) % period
    step = np.broadcast_to(step, (len(scenes), frames))
    frame = np.where(step < SPRITE_FRAMES, step, period - step).astype(np.int64)  # (b, f)
    subject = np.array([SUBJECT_INDEX[scene.subject] for scene in scenes], dtype=np.int64)[:, None]
    level = level_for(places[:, :, 2].mean(1), size)[
        :, None
    ]  # one per clip: a change would look like motion
    pictures, table = sprite_bank()
    return pictures[level, table[subject, frame]].to(device).float().div(255)  # (b, f, 4, 64, 64)


def _move(
    sprites: Float[Tensor, "b f 4 64 64"], where: Float[Tensor, "b f 4"], size: int
) -> Tensor:
    """Place every sprite by the inverse of its path: for each pixel of the frame, where in the sprite it lies."""
    if where.numel() == 0:  # affine_grid refuses an empty batch
        return sprites.new_zeros(*where.shape[:2], 4, size, size)
    x, y, share, angle = where.flatten(0, 1).unbind(-1)  # (b f) each
    cos, sin = angle.cos() * EXTENT / share, angle.sin() * EXTENT / share
    inverse = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=-1)
    shape = [len(inverse), 4, size, size]
    grid = F.affine_grid(inverse.view(-1, 2, 3), shape, align_corners=False)  # (b f) h w 2
    moved = F.grid_sample(sprites.flatten(0, 1), grid, align_corners=False)
    return moved.unflatten(0, where.shape[:2])


def _rotate(
    vector: Float[Tensor, "*n h w 2"], angle: Float[Tensor, "b f"]
) -> Float[Tensor, "b f h w 2"]:
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    x, y = vector[..., 0], vector[..., 1]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def _pixel_grid(size: int, device: torch.device | str) -> Float[Tensor, "h w 2"]:
    line = (torch.arange(size, device=device, dtype=torch.float32) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)


def _shrink(images: Float[Tensor, "b f c h w"], size: int) -> Tensor:
    factor = images.shape[-1] // size
    if factor == 1:
        return images
    return F.avg_pool2d(images.flatten(0, 1), factor).unflatten(0, images.shape[:2])


class World(torch.utils.data.Dataset):
    """The Emoji World as a dataset: endless, labelled, and a pure function of (seed, index).

    Args:
        split, part, seed, subjects, motions, backgrounds: which scenes, see `Sampler`.
        size, frames, fps, frozen, anytime, device: how they are rendered, see `render`.
        length: how many clips a DataLoader should take for one epoch; the world itself has no end.

    Raises:
        ValueError: as `Sampler` and `render` do.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        part: str = "seen",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
        motions: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
        size: int = 64,
        frames: int = 16,
        fps: float | int = 8,
        frozen: bool = False,
        anytime: bool = False,
        device: torch.device | str = "cpu",
        length: int = 65536,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.length = length
        self.sampler = Sampler(
            split, part=part, seed=seed, subjects=subjects, motions=motions, backgrounds=backgrounds
        )
        self.how = {
            "size": size,
            "frames": frames,
            "fps": fps,
            "frozen": frozen,
            "anytime": anytime,
            "device": device,
        }
        render([], **self.how)  # refuse bad sizes now, not in the middle of a run

    def batch(self, indices: Iterable[SupportsIndex]) -> Clips:
        """Render the clips of these indices.

        Args:
            indices: non-negative integers, in any order, repeated or not.

        Raises:
            ValueError: a negative index.
        """
        return render([self.sampler(operator.index(index)) for index in indices], **self.how)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """One clip for a DataLoader: "video" (3, f, h, w) in [-1, 1], "caption", and the class indices.

        Raises:
            IndexError: an index outside [0, length), which is what ends a plain `for` loop.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in [0, {self.length}), got {index}")
        clips = self.batch([index])
        labels = {name: int(value[0]) for name, value in clips.labels.items()}
        return {"video": clips.video[0], "caption": clips.paraphrases[0], **labels}
