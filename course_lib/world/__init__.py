"""The Emoji World: endless, captioned video with exact ground truth; and a few real clips.

    from course_lib.world import Scene, World, render

    clips = World(split="train").batch(range(8))  # video, captions, labels, path, mask, flow
    clip = render([Scene("tiger", "moving left", "sea")])

Modules, bottom up: `hashing`, `subjects`, `subsets`, `motions`, `backgrounds`, `scenes` (which
clips exist), `captions`, `sprites`, `rendering` (pixels), then `film` (real video), `corruption`
(one property at a time), `defects`, `ood` (out-of-distribution clips), `styles` and `control`.
`tools/build_data.py` builds `data/sprites/` and `data/clips/`.
"""

from course_lib.world.backgrounds import BACKGROUNDS
from course_lib.world.captions import caption, image_caption, parse_caption
from course_lib.world.control import canny_edges
from course_lib.world.defects import (
    DEFECTS,
    CorruptedClips,
    inject_defects,
    inject_random_defects,
)
from course_lib.world.film import VideoInfo, list_videos, load_video, save_video
from course_lib.world.motions import MOTIONS
from course_lib.world.rendering import Clips, World, render
from course_lib.world.scenes import HELD_OUT_PAIRS, Sampler, Scene, subset_of
from course_lib.world.styles import STYLES
from course_lib.world.subjects import (
    BASE_EMOJI,
    COLOURED_SHAPES,
    COLOURS,
    HELD_OUT_SHAPES,
    NOVEL_EMOJI,
    SHAPES,
    SUBJECTS,
)
from course_lib.world.subsets import SUBJECTS_24

__all__ = [
    "BACKGROUNDS",
    "BASE_EMOJI",
    "COLOURED_SHAPES",
    "COLOURS",
    "DEFECTS",
    "HELD_OUT_PAIRS",
    "HELD_OUT_SHAPES",
    "MOTIONS",
    "NOVEL_EMOJI",
    "SHAPES",
    "STYLES",
    "SUBJECTS",
    "SUBJECTS_24",
    "Clips",
    "CorruptedClips",
    "Sampler",
    "Scene",
    "VideoInfo",
    "World",
    "canny_edges",
    "caption",
    "image_caption",
    "inject_defects",
    "inject_random_defects",
    "list_videos",
    "load_video",
    "parse_caption",
    "render",
    "save_video",
    "subset_of",
]
