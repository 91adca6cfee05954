"""The moving picture at the top of the README: `python -m course_lib.lab.postcard` draws it again."""

from pathlib import Path

from course_lib.lab import canvas, encode
from course_lib.lab.inputs import checked_clips
from course_lib.world import Scene, caption, render

PICTURE = Path(__file__).resolve().parents[2] / "notebooks" / "images" / "world.png"
SCENES = (
    Scene("tiger", "moving left", "grass", 1),
    Scene("rocket", "moving up", "night sky", 2),
    Scene("tropical fish", "bouncing", "sea", 3),
    Scene("red heart", "growing", "mint", 4),
    Scene("penguin", "moving right", "snow", 5),
    Scene("blue star", "spinning", "sunset", 6),
    Scene("owl", "standing still", "forest", 7),
    Scene("helicopter", "moving down", "desert", 8),
)


def draw() -> bytes:
    """Eight clips of the world (16 frames, 64x64 pixels doubled, 8 frames a second), captions below, as APNG."""
    row = canvas.Row(checked_clips(render(SCENES).video), tuple(caption(scene) for scene in SCENES))
    return encode.encode_apng(canvas.animation([row], scale=2, columns=4), fps=8)


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")
