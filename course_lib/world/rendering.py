"""Rendering: one background, one sprite, one affine path, one `grid_sample`.

    frame = sprite moved along the path + (1 - its alpha) * background

Rendering is vectorised over clips and frames, runs on any device, and gives the exact optical flow,
because the displacement of every pixel is known.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_lib.validation import check_float, check_int, require
from course_lib.world.backgrounds import BACKGROUND_INDEX, paint
from course_lib.world.captions import VIDEO_TEMPLATES, caption, image_caption
from course_lib.world.checks import CLIPS_AXES
from course_lib.world.hashing import hash_uniform
from course_lib.world.motions import CANONICAL_SECONDS, MOTION_INDEX, check_timing, path
from course_lib.world.scenes import Sampler, Scene
from course_lib.world.sprites import EXTENT, SPRITE_FRAMES, mip_level_for, sprite_atlas
from course_lib.world.subjects import SUBJECT_INDEX, is_shape

RENDER_BATCH_SIZE = 128  # clips; intermediate tensors take several times the memory of the clips
CLASS_INDEX = {"subject": SUBJECT_INDEX, "motion": MOTION_INDEX, "background": BACKGROUND_INDEX}


@dataclass(frozen=True)
class Clips:
    """A batch of clips with their ground truth.

    Masks, flow and trajectories are computed on demand.

    Attributes:
        video: RGB in [-1, 1].
        scenes: content of each clip.
        path: x, y in [-1, 1], size as a fraction of the frame, angle in radians.
        alpha: the subject's coverage of each pixel, in [0, 1].
        flow_exact: True where only the path moves the subject (a shape, or a static sprite).
            Elsewhere `flow` describes the path but not the sprite's own animation.

    Raises:
        ValueError: a video that is not (b, 3, f, h, w) of floats, or a part of another shape.
    """

    video: Float[Tensor, "b 3 f h w"]
    scenes: tuple[Scene, ...]
    path: Float[Tensor, "b f 4"]
    alpha: Float[Tensor, "b 1 f h w"]
    flow_exact: Bool[Tensor, "b"]

    def __post_init__(self) -> None:
        check_float("video", self.video, CLIPS_AXES)
        b, _, f, h, w = self.video.shape
        require(len(self.scenes) == b, "scenes", f"{b}, one per clip", len(self.scenes))
        shapes = {
            "video": (b, 3, f, h, w),
            "path": (b, f, 4),
            "alpha": (b, 1, f, h, w),
            "flow_exact": (b,),
        }
        for name, expected in shapes.items():
            shape = tuple(getattr(self, name).shape)
            require(shape == expected, name, f"shape {expected}", shape)

    def __len__(self) -> int:
        return len(self.scenes)

    def select(self, indices: Sequence[int]) -> "Clips":
        """The clips at these indices of the batch, in this order."""
        indices = list(indices)

        def pick(value: Tensor | tuple) -> Tensor | tuple:
            return value[indices] if torch.is_tensor(value) else tuple(value[i] for i in indices)

        return Clips(*(pick(getattr(self, field.name)) for field in fields(self)))

    @staticmethod
    def concat(batches: Sequence["Clips"]) -> "Clips":
        """Concatenate batches of the same size and number of frames."""

        def concat_field(name: str) -> Tensor | tuple:
            values = [getattr(batch, name) for batch in batches]
            return torch.cat(values) if torch.is_tensor(values[0]) else tuple(chain(*values))

        return Clips(*(concat_field(field.name) for field in fields(Clips)))

    @property
    def mask(self) -> Bool[Tensor, "b 1 f h w"]:
        """Where the subject covers more than half of a pixel."""
        return self.alpha > 0.5

    @cached_property
    def flow(self) -> Float[Tensor, "b 2 steps h w"]:
        """Optical flow (x, y) in pixels from frame t to t + 1; zero on the static background."""
        size = self.video.shape[-1]
        pixels = pixel_grid(size, self.video.device)  # (h, w, 2)
        centre = self.path[:, :, None, None, :2]  # (b, f, 1, 1, 2)
        scale, angle = self.path[:, :, 2:, None, None].unbind(2)  # (b, f, 1, 1) each
        # into the sprite by the current frame's path, out of it by the next frame's
        in_sprite = _rotate(pixels - centre[:, :-1], -angle[:, :-1]) / scale[:, :-1, ..., None]
        moved = _rotate(in_sprite, angle[:, 1:]) * scale[:, 1:, ..., None] + centre[:, 1:]
        # (b, 2, f-1, h, w)
        return (moved - pixels).permute(0, 4, 1, 2, 3) * (size / 2) * self.mask[:, :, :-1]

    @property
    def captions(self) -> list[str]:
        """The canonical caption of every clip."""
        return [caption(scene) for scene in self.scenes]

    @property
    def image_captions(self) -> list[str]:
        """The canonical caption of a single frame of every clip: no motion."""
        return [image_caption(scene) for scene in self.scenes]

    @property
    def paraphrases(self) -> list[str]:
        """A caption per clip whose wording depends on the variant: the training captions."""
        return [caption(scene, _paraphrase(scene)) for scene in self.scenes]

    @property
    def image_paraphrases(self) -> list[str]:
        """`paraphrases` of a single frame of every clip: subject and background, no motion."""
        return [image_caption(scene, _paraphrase(scene)) for scene in self.scenes]

    @property
    def labels(self) -> dict[str, Tensor]:
        """Class indices, int64 of shape (b,), for "subject", "motion" and "background"."""
        classes = _scene_arrays(self.scenes)[1]
        return {name: torch.from_numpy(v).to(self.video.device) for name, v in classes.items()}

    @cached_property
    def trajectory(self) -> Float[Tensor, "b 1 f h w"]:
        """A Gaussian dot at the subject's centre in each frame, in [0, 1], as a control signal."""
        pixels = pixel_grid(self.video.shape[-1], self.video.device)  # (h, w, 2)
        distance = (pixels - self.path[:, :, None, None, :2]).square().sum(-1)  # (b, f, h, w)
        return torch.exp(-distance / (2 * 0.08**2))[:, None]


def render(
    scenes: Sequence[Scene],
    *,
    size: int = 64,
    num_frames: int = 16,
    fps: float | int = 8,
    static_sprites: bool = False,
    random_time_offset: bool = False,
    device: torch.device | str = "cpu",
) -> Clips:
    """Render scenes. The clip of a scene does not depend on the rest of the batch.

    Args:
        scenes: one scene per clip; may be empty.
        size: height and width in pixels, at least 8. Divisors of 64 are averaged from the canonical
            64x64 clip: at 32, every pixel is the mean of 2x2.
        num_frames: number of frames, at least 1.
        fps: frames per second; the canonical clip has 16 frames at 8 fps.
        static_sprites: stop the emoji's own animation, so that the flow is exact.
        random_time_offset: cut a short clip from a part of the canonical one that depends on the
            variant, not from its middle. Single frames then show a subject at every point of its
            path.
        device: device to render on.

    Raises:
        ValueError: size, num_frames or fps out of range, or a size or num_frames that is not an
            integer.
    """
    check_int("size", size, 8)
    check_timing(num_frames, fps)
    starts = range(0, max(1, len(scenes)), RENDER_BATCH_SIZE)
    chunks = [scenes[start : start + RENDER_BATCH_SIZE] for start in starts]
    kwargs = (size, num_frames, fps, static_sprites, random_time_offset, device)
    batches = [_render_batch(chunk, *kwargs) for chunk in chunks]
    return batches[0] if len(batches) == 1 else Clips.concat(batches)


def _render_batch(
    scenes, size, num_frames, fps, static_sprites, random_time_offset, device
) -> Clips:
    """`render` without chunks and checks."""
    variant, classes = _scene_arrays(scenes)
    slack_s = max(0.0, CANONICAL_SECONDS - (num_frames - 1) / fps) * random_time_offset
    time_offset = hash_uniform("moment", variant, low=-slack_s / 2, high=slack_s / 2)  # (b,)
    paths = path(classes["motion"], variant, num_frames, fps, time_offset)
    internal_size = render_size(size)
    level = mip_level_for(paths[:, :, 2].mean(1), internal_size)  # per clip: changes would flicker
    frame = _animation_frames(variant, num_frames, fps, time_offset, static_sprites)  # (b, f)
    images, table = sprite_atlas()
    sprites = images[level[:, None], table[classes["subject"][:, None], frame]]
    positions = torch.from_numpy(paths).float().to(device)  # (b, f, 4)
    moved = place_sprites(sprites.to(device).float().div(255), positions, internal_size)
    alpha = moved[:, :, 3:]  # (b, f, 1, h, w)
    background = paint_backgrounds(scenes, internal_size, device)[:, None]  # (b, 1, 3, h, w)
    video = moved[:, :, :3] + (1 - alpha) * background  # (b, f, 3, h, w)
    flow_exact = [static_sprites or is_shape(scene.subject) for scene in scenes]
    return Clips(
        video=_downsample(video, size).transpose(1, 2).mul(2).sub(1).contiguous(),
        scenes=tuple(scenes),
        path=positions,
        alpha=_downsample(alpha, size).transpose(1, 2).contiguous(),
        flow_exact=torch.tensor(flow_exact, dtype=torch.bool, device=device),
    )


def render_size(size: int) -> int:
    """Size at which clips are rendered before they are averaged down to `size`."""
    return 64 if 64 % size == 0 else size


def paint_backgrounds(
    scenes: Sequence[Scene], size: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "b 3 h w"]:
    """Paint the backgrounds of scenes, RGB in [0, 1], without subjects."""
    variant, classes = _scene_arrays(scenes)
    return paint(classes["background"], variant, size, device)


def _scene_arrays(scenes: Sequence[Scene]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The variants (b,), and by attribute the class indices (b,), of scenes."""
    classes = {
        name: np.array([index[getattr(scene, name)] for scene in scenes], dtype=np.int64)
        for name, index in CLASS_INDEX.items()
    }
    return np.array([scene.variant for scene in scenes], dtype=np.int64), classes


def _paraphrase(scene: Scene) -> int:
    return int(hash_uniform("wording", scene.variant)[0] * len(VIDEO_TEMPLATES))


def _animation_frames(
    variant: Int[np.ndarray, "b"],
    num_frames: int,
    fps: float | int,
    time_offset: Float[np.ndarray, "b"],
    static: bool,
) -> Int[np.ndarray, "b f"]:
    """Frame of the sprite in each frame of the clip: the animation runs to and fro at 8 fps."""
    period = 2 * SPRITE_FRAMES - 2
    start = np.floor(hash_uniform("animation", variant, high=period))[:, None]  # (b, 1)
    # time 0 is the middle of the clip, as on the path
    steps = np.floor((np.arange(num_frames) - num_frames // 2) * 8 / fps)[None]  # (1, f)
    steps = steps + np.floor(8 * time_offset)[:, None]  # (b, f)
    phase = (start + (0 * steps if static else steps)) % period
    return np.where(phase < SPRITE_FRAMES, phase, period - phase).astype(np.int64)


def place_sprites(
    sprites: Float[Tensor, "b f 4 64 64"], positions: Float[Tensor, "b f 4"], size: int
) -> Float[Tensor, "b f 4 h w"]:
    """Place every sprite in its frame, by sampling it through the inverse of its path.

    Args:
        sprites: premultiplied RGBA in [0, 1].
        positions: x, y, size and angle as in `Clips.path`.
        size: height and width of the frames in pixels.

    Raises:
        ValueError: integers, another number of axes, or others than one position per sprite.
    """
    check_float("sprites", sprites, "(b, f, 4, h, w)")
    check_float("positions", positions, "(b, f, 4)")
    expected, got = (*sprites.shape[:2], 4), tuple(positions.shape)
    require(got == expected, "positions", f"shape {expected}", got)
    check_int("size", size, 1)
    if positions.numel() == 0:  # affine_grid rejects an empty batch
        return sprites.new_zeros(*positions.shape[:2], 4, size, size)
    x, y, scale, angle = positions.flatten(0, 1).unbind(-1)  # (b f) each
    cos, sin = angle.cos() * EXTENT / scale, angle.sin() * EXTENT / scale
    inverse = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=-1)
    shape = [len(inverse), 4, size, size]
    grid = F.affine_grid(inverse.view(-1, 2, 3), shape, align_corners=False)  # (b f) h w 2
    moved = F.grid_sample(sprites.flatten(0, 1), grid, align_corners=False)  # (b f) 4 h w
    return moved.unflatten(0, positions.shape[:2])


def _rotate(
    vector: Float[Tensor, "*n h w 2"], angle: Float[Tensor, "b f 1 1"]
) -> Float[Tensor, "b f h w 2"]:
    cos, sin = angle.cos(), angle.sin()
    x, y = vector.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def pixel_grid(size: int, device: torch.device | str = "cpu") -> Float[Tensor, "h w 2"]:
    """(x, y) of the pixel centres in [-1, 1] coordinates."""
    centres = (torch.arange(size, device=device, dtype=torch.float32) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)


def _downsample(images: Float[Tensor, "b f c h w"], size: int) -> Tensor:
    factor = images.shape[-1] // size
    if factor == 1:
        return images
    return F.avg_pool2d(images.flatten(0, 1), factor).unflatten(0, images.shape[:2])


class World(torch.utils.data.Dataset):
    """The Emoji World as a dataset: endless, labelled, and a pure function of (seed, index).

    Args:
        split: see `Sampler`, as for subset, seed, subjects, motions and backgrounds.
        subset: part of the scenes.
        seed: seed of the sampler.
        subjects: subjects to restrict the scenes to.
        motions: motions to restrict the scenes to.
        backgrounds: backgrounds to restrict the scenes to.
        size: see `render`, as for num_frames, fps, static_sprites, random_time_offset and device.
        num_frames: number of frames.
        fps: frames per second.
        static_sprites: stop the emoji's own animation.
        random_time_offset: cut short clips from a random part of the canonical clip.
        device: device to render on.
        length: number of clips in one epoch of a DataLoader; `batch` accepts any index.

    Raises:
        ValueError: as `Sampler` and `render`, or length < 1.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        subset: str = "base",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
        motions: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
        size: int = 64,
        num_frames: int = 16,
        fps: float | int = 8,
        static_sprites: bool = False,
        random_time_offset: bool = False,
        device: torch.device | str = "cpu",
        length: int = 65536,
    ) -> None:
        check_int("length", length, 1)
        self.length = length
        self.sampler = Sampler(
            split,
            subset=subset,
            seed=seed,
            subjects=subjects,
            motions=motions,
            backgrounds=backgrounds,
        )
        self.render_kwargs = {
            "size": size,
            "num_frames": num_frames,
            "fps": fps,
            "static_sprites": static_sprites,
            "random_time_offset": random_time_offset,
            "device": device,
        }
        render([], **self.render_kwargs)  # raises on bad arguments

    def batch(self, indices: Iterable[SupportsIndex]) -> Clips:
        """Render the clips of these indices.

        Args:
            indices: non-negative integers, in any order, repeated or not.

        Raises:
            ValueError: a negative index.
        """
        return render([self.sampler(operator.index(i)) for i in indices], **self.render_kwargs)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """One clip for a DataLoader.

        Returns:
            "video" (3, f, h, w) in [-1, 1], "caption", and the class indices "subject", "motion"
            and "background".

        Raises:
            IndexError: an index outside [0, length), which ends a plain `for` loop.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected one in [0, {self.length}), got {index}")
        clips = self.batch([index])
        labels = {name: int(value[0]) for name, value in clips.labels.items()}
        return {"video": clips.video[0], "caption": clips.paraphrases[0], **labels}
