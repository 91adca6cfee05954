"""Motions: every motion is an affine path, a closed-form function of time.

A path gives the subject's centre (x, y), size and angle in each frame. Coordinates are those of
`grid_sample`: -1 is the left or top border of the frame, +1 the right or bottom border. Size is the
fraction of the frame that the subject's longer side covers. Angles are radians; positive is
clockwise on the screen.

The course relies on three properties:
- opposite motions of the same variant are time reversals of each other (pixel for pixel with static
  sprites), so no single frame distinguishes left from right;
- short clips are cut from the middle of the canonical one, which has 16 frames at 8 frames per
  second;
- in longer clips the subject stays in the frame: translation and growth are spread over the whole
  clip, spinning and bouncing continue.
"""

import numpy as np
from jaxtyping import Float, Int

from course_lib.validation import check_int, check_number, require
from course_lib.world.hashing import hash_uniform

MOTIONS: tuple[str, ...] = (
    "standing still",
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "spinning",
    "bouncing",
)
MOTION_INDEX: dict[str, int] = {name: i for i, name in enumerate(MOTIONS)}
TIME_REVERSED: dict[str, str] = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
}
CANONICAL_SECONDS = 15 / 8  # from the first to the last of 16 frames at 8 fps
# Fraction of the frame that a subject covers; smaller sprites have too little detail to train a VAE
MIN_SIZE = 0.45
MAX_SIZE = 0.85


def check_timing(num_frames: int, fps: float | int) -> None:
    """Raise a ValueError unless num_frames is a positive integer and fps positive and finite."""
    check_int("num_frames", num_frames, 1)
    check_number("fps", fps, above=0.0)


def path(
    motion: Int[np.ndarray, "b"],
    variant: Int[np.ndarray, "b"],
    num_frames: int,
    fps: float | int,
    time_offset: Float[np.ndarray, "b"] | float = 0.0,
) -> Float[np.ndarray, "b f 4"]:
    """Evaluate the path of every clip at every frame.

    Args:
        motion: indices into `MOTIONS`.
        variant: one integer per clip; it determines start, speed, size and every other free choice.
        num_frames: number of frames, at least 1.
        fps: frames per second, positive.
        time_offset: seconds from the middle of the canonical clip to the middle of this one.

    Returns:
        (x, y, size, angle) per frame: x and y in [-1, 1] coordinates, size as a fraction of the
        frame, angle in radians.

    Raises:
        ValueError: num_frames is not a positive integer, fps not positive and finite, an index not
            one of a motion, or time_offset not one finite time, nor one per clip.
    """
    check_timing(num_frames, fps)
    motion, time_offset = np.asarray(motion), np.asarray(time_offset)
    is_index = bool(((motion >= 0) & (motion < len(MOTIONS))).all())
    require(is_index, "motion", "indices into MOTIONS", motion)
    is_time = time_offset.shape in ((), motion.shape) and bool(np.isfinite(time_offset).all())
    require(is_time, "time_offset", "one finite time, or one per clip", time_offset)
    # time is centred on zero, so that reversing a clip is t -> -t
    t = (np.arange(num_frames) - (num_frames - 1) / 2)[None, :] / fps  # (1, f)
    t = t + time_offset.reshape(-1, 1)  # (b, f)
    motion = motion[:, None]  # (b, 1)
    variant = np.asarray(variant)[:, None]  # (b, 1)

    def is_motion(*names: str) -> np.ndarray:
        return np.isin(motion, [MOTION_INDEX[name] for name in names])

    # longer clips move more slowly, so that nothing leaves the frame; within [-1/2, 1/2]
    progress = t / max(CANONICAL_SECONDS, (num_frames - 1) / fps)  # (b, f)
    size = _size(is_motion, variant, progress)  # (b, f)
    centring = np.where(is_motion("growing", "shrinking", "spinning"), 0.3, 1.0)
    x = centring * (hash_uniform("x", variant, low=-0.5, high=0.5) * (1 - size))
    y = centring * (hash_uniform("y", variant, low=-0.5, high=0.5) * (1 - size))

    drift = hash_uniform("x", variant, low=-0.1, high=0.1)
    travel = hash_uniform("travel", variant, low=0.55, high=0.95) * progress
    forth_and_back = [drift + travel, drift - travel]
    x = np.select([is_motion("moving right"), is_motion("moving left")], forth_and_back, x)
    y = np.select([is_motion("moving down"), is_motion("moving up")], forth_and_back, y)

    hops = t / hash_uniform("hop", variant, low=0.75, high=1.05) + hash_uniform("phase", variant)
    height = hash_uniform("height", variant, low=0.55, high=0.75)
    y = np.where(is_motion("bouncing"), 0.95 - size - height * np.abs(np.sin(np.pi * hops)), y)

    direction = np.where(hash_uniform("turn", variant) < 0.5, -1.0, 1.0)
    period = hash_uniform("period", variant, low=1.9, high=2.8)
    angle = hash_uniform("angle", variant, high=2 * np.pi) + direction * 2 * np.pi * t / period
    angle = np.where(is_motion("spinning"), angle, 0.0)
    return np.stack([x, y, size, angle], axis=-1)  # (b, f, 4)


def _size(is_motion, variant: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Fraction of the frame that the subject covers, (b, f)."""
    upper = np.select([is_motion("standing still"), is_motion("spinning")], [MAX_SIZE, 0.75], 0.65)
    size = 0.5 + (upper - 0.5) * hash_uniform("size", variant) + 0 * progress  # (b, f)
    ratio = hash_uniform("growth", variant, low=1.6, high=MAX_SIZE / MIN_SIZE)
    growth = np.sqrt(MIN_SIZE * MAX_SIZE) * np.stack([ratio**progress, ratio**-progress])
    return np.select([is_motion("growing"), is_motion("shrinking")], list(growth), size)
