"""The Emoji World: endless, captioned, labelled video with exact ground truth; and a little real film.

    from course_lib.world import Scene, World, render

    clips = World(split="train").batch(range(8))        # video, captions, labels, path, mask, flow
    clip = render([Scene("tiger", "moving left", "sea")])

Rooms, bottom up: `hashing`, `subjects`, `motions`, `backgrounds`, `scenes` (what exists), `captions`, `sprites`,
`rendering` (pixels), then `corruption` (one dial each), `defects`, `impostors`, `styles`, `control`, `film`; `build`
makes `data/`.
"""

from course_lib.world.backgrounds import BACKGROUNDS
from course_lib.world.captions import caption, image_caption, parse_caption
from course_lib.world.control import canny_edges
from course_lib.world.defects import DEFECTS, Damaged, damage, damage_some
from course_lib.world.film import FilmCard, films, load_film, save_film
from course_lib.world.motions import MOTIONS
from course_lib.world.rendering import Clips, World, render
from course_lib.world.scenes import HELD_OUT_PAIRS, Sampler, Scene, part_of
from course_lib.world.styles import STYLES
from course_lib.world.subjects import (
    COLOURS,
    HELD_OUT_SHAPES,
    NOVEL_EMOJI,
    SEEN_EMOJI,
    SHAPES,
    SUBJECTS,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DEFECTS",
    "HELD_OUT_PAIRS",
    "HELD_OUT_SHAPES",
    "MOTIONS",
    "NOVEL_EMOJI",
    "SEEN_EMOJI",
    "SHAPES",
    "STYLES",
    "SUBJECTS",
    "Clips",
    "Damaged",
    "FilmCard",
    "Sampler",
    "Scene",
    "World",
    "canny_edges",
    "caption",
    "damage",
    "damage_some",
    "films",
    "image_caption",
    "load_film",
    "parse_caption",
    "part_of",
    "render",
    "save_film",
]
