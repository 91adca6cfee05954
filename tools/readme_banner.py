"""The moving picture at the top of the README: `python -m tools.readme_banner` draws it again.

Every clip is made by mini-video, of the sentence below it and noise of its own, so that one can be drawn alone.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib import zoo
from course_lib.lab import canvas, encode
from course_lib.lab.inputs import checked_clips
from course_lib.world import Scene, caption

PICTURE = Path(__file__).resolve().parents[2] / "notebooks" / "images" / "generated.png"
SCENES = (
    Scene("tiger", "moving left", "grass"),
    Scene("rocket", "moving up", "night sky"),
    Scene("tropical fish", "bouncing", "sea"),
    Scene("red heart", "growing", "mint"),
    Scene("penguin", "moving right", "snow"),
    Scene("blue star", "spinning", "sunset"),
    Scene("owl", "standing still", "forest"),
    Scene("helicopter", "moving down", "desert"),
)
SENTENCES = tuple(caption(scene) for scene in SCENES)
COLOURS = 224  # drawn clips have many more than the world's


def film(place: int) -> Float[Tensor, "3 16 64 64"]:
    """The clip of one of the sentences, in [-1, 1]: always the same."""
    pipeline = zoo.load("mini-video")
    return pipeline.draw([SENTENCES[place]], generator=torch.Generator().manual_seed(place))[0]


def draw() -> bytes:
    """Eight clips (16 frames, 64x64 pixels doubled, 8 frames a second), the sentences below, as APNG."""
    row = canvas.Row(
        checked_clips(torch.stack([film(place) for place in range(len(SENTENCES))])), SENTENCES
    )
    return encode.encode_apng(canvas.animation([row], scale=2, columns=4), fps=8, colours=COLOURS)


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")
