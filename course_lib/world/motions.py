"""How subjects move: every motion is an affine path, a closed-form function of time.

A path gives, for each frame, the subject's centre (x, y), its size and its angle. Coordinates are grid_sample's:
-1 is the left or top border of the frame, +1 the right or bottom one; size is the share of the frame that the
subject's longer side covers; angles are radians, positive turns clockwise as seen on screen.

Three properties are used all over the course:
- opposite motions of the same variant are time reversals of each other (pixel for pixel if the sprite is frozen), so
  no single frame tells left from right;
- short clips are cut from the middle of the canonical one, which has 16 frames at 8 frames a second;
- longer clips lose nobody: travel and growth are spread over the whole clip, turning and bouncing go on.
"""

import numpy as np
from jaxtyping import Float, Int

from course_lib.world.hashing import uniform

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
REVERSED: dict[str, str] = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
}
CANONICAL_SECONDS = 15 / 8  # from the first to the last of 16 frames at 8 fps
SMALL, LARGE = (
    0.45,
    0.85,
)  # a subject fills this share of the frame: small sprites teach a VAE nothing


def check_rate(frames: int, fps: float | int) -> None:
    """Refuse a clip that cannot be: ValueError for frames < 1, or fps not positive and finite."""
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if not 0 < fps < np.inf:
        raise ValueError(f"fps must be positive and finite, got {fps}")


def path(
    motion: Int[np.ndarray, "b"],
    variant: Int[np.ndarray, "b"],
    frames: int,
    fps: float | int,
    moment: Float[np.ndarray, "b"] | None = None,
) -> Float[np.ndarray, "b f 4"]:
    """Evaluate the path of every clip at every frame.

    Args:
        motion: indices into `MOTIONS`.
        variant: one integer per clip; it fixes start, speed, size and every other free choice.
        frames: number of frames, at least 1.
        fps: frames per second, positive.
        moment: seconds from the middle of the canonical clip to the middle of this one; None means none.

    Returns:
        (x, y, size, angle) per frame: x, y in [-1, 1] coordinates, size as a share of the frame, angle in radians.

    Raises:
        ValueError: frames < 1, or fps not positive and finite.
    """
    check_rate(frames, fps)
    # time runs from -middle to +middle, so that reversing time is t -> -t
    t = (np.arange(frames) - (frames - 1) / 2)[None, :] / fps  # (1, f)
    t = t if moment is None else t + moment[:, None]  # (b, f)
    kind, variant = np.asarray(motion)[:, None], np.asarray(variant)[:, None]  # (b, 1)

    def among(*names: str) -> np.ndarray:
        return np.isin(kind, [MOTION_INDEX[name] for name in names])

    # longer clips take their time, so that nothing runs out of the frame; (1, f) within [-1/2, 1/2]
    progress = t / max(CANONICAL_SECONDS, (frames - 1) / fps)
    size = _size(among, variant, progress)  # (b, f)
    x = uniform("x", variant, low=-0.5, high=0.5) * (1 - size)
    y = uniform("y", variant, low=-0.5, high=0.5) * (1 - size)
    centred = among("growing", "shrinking", "spinning")
    x, y = np.where(centred, 0.3 * x, x), np.where(centred, 0.3 * y, y)

    drift = uniform("x", variant, low=-0.1, high=0.1)
    travel = uniform("travel", variant, low=0.55, high=0.95) * progress
    x = np.where(
        among("moving right"), drift + travel, np.where(among("moving left"), drift - travel, x)
    )
    y = np.where(
        among("moving down"), drift + travel, np.where(among("moving up"), drift - travel, y)
    )

    beat = t / uniform("hop", variant, low=0.75, high=1.05) + uniform("phase", variant)
    height = uniform("height", variant, low=0.55, high=0.75)
    y = np.where(among("bouncing"), 0.95 - size - height * np.abs(np.sin(np.pi * beat)), y)

    turn = np.where(uniform("turn", variant) < 0.5, -1.0, 1.0)
    turned = uniform("angle", variant, high=2 * np.pi) + turn * 2 * np.pi * t / uniform(
        "period", variant, low=1.9, high=2.8
    )
    angle = np.where(among("spinning"), turned, 0.0)
    return np.stack([x, y, size, angle], axis=-1)  # (b, f, 4)


def _size(among, variant: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """The share of the frame that the subject covers, (b, f)."""
    size = uniform("size", variant, low=0.5, high=0.65)  # leaves room to travel
    size = np.where(among("standing still"), uniform("size", variant, low=0.5, high=LARGE), size)
    size = (
        np.where(among("spinning"), uniform("size", variant, low=0.5, high=0.75), size)
        + 0 * progress
    )
    ratio, middle = uniform("growth", variant, low=1.6, high=LARGE / SMALL), np.sqrt(SMALL * LARGE)
    size = np.where(among("growing"), middle * ratio**progress, size)
    return np.where(among("shrinking"), middle * ratio**-progress, size)
