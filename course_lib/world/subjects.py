"""Subjects of the Emoji World: 64 base emoji, 12 held-out (novel) emoji, and 6 shapes in 8 colours.

A subject is a plain string ("tiger", "red star"). Names are short, lower case and unambiguous,
because a caption must lead back to exactly one subject.
"""

from dataclasses import dataclass
from functools import cache

from course_lib.validation import check_choice


@dataclass(frozen=True)
class Emoji:
    """An animated sprite.

    Attributes:
        name: name in captions.
        codepoint: Unicode code point, which names its file in the source packages.
        novel: held out of pre-training, for the lessons on DreamBooth, LoRA and editing.
    """

    name: str
    codepoint: str
    novel: bool = False


_BASE = """
tiger 1f405 · rabbit 1f407 · black cat 1f408-200d-2b1b · poodle 1f429 · pig 1f416 · elephant 1f418
octopus 1f419 · bee 1f41d · ladybug 1f41e · fish 1f41f · tropical fish 1f420 · chick 1f423
bird 1f426 · penguin 1f427 · koala 1f428 · camel 1f42a · whale 1f40b · snail 1f40c · horse 1f40e
monkey 1f412 · rooster 1f413 · cow 1f404 · snake 1f40d · frog 1f438
polar bear 1f43b-200d-2744-fe0f · chipmunk 1f43f-fe0f · ant 1f41c · crab 1f980 · lion 1f981
turkey 1f983 · unicorn 1f984 · duck 1f986 · shark 1f988 · owl 1f989 · butterfly 1f98b
gorilla 1f98d · lizard 1f98e · shrimp 1f990 · squid 1f991 · zebra 1f993 · dinosaur 1f996
peacock 1f99a · swan 1f9a2 · flamingo 1f9a9 · giraffe 1f992 · rocket 1f680 · helicopter 1f681
steam train 1f682 · bus 1f68c · ambulance 1f691 · police car 1f693 · taxi 1f695 · tractor 1f69c
ship 1f6a2 · sailboat 26f5 · airplane 1f6e9-fe0f · motorcycle 1f3cd-fe0f · ufo 1f6f8
ferris wheel 1f3a1 · sun 1f31e · umbrella 2602-fe0f · snowman 26c4 · campfire 1f525
alarm clock 23f0
"""
_NOVEL = """
backpack 1f392 · teddy bear 1f9f8 · fox 1f98a · panda 1f43c · parrot 1f99c · dolphin 1f42c
robot 1f916 · racing car 1f3ce-fe0f · hedgehog 1f994 · dragon 1f409 · pumpkin 1f383
birthday cake 1f382
"""


def _parse(table: str, novel: bool) -> list[Emoji]:
    entries = [entry.strip() for line in table.strip().splitlines() for entry in line.split("·")]
    return [Emoji(*entry.rsplit(" ", 1), novel=novel) for entry in entries]


EMOJI: tuple[Emoji, ...] = tuple(_parse(_BASE, novel=False) + _parse(_NOVEL, novel=True))
BASE_EMOJI: tuple[str, ...] = tuple(e.name for e in EMOJI if not e.novel)
NOVEL_EMOJI: tuple[str, ...] = tuple(e.name for e in EMOJI if e.novel)

# sRGB in [0, 1]; far enough apart to survive blur, noise and compression
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.15),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.99, 0.86, 0.15),
    "green": (0.14, 0.62, 0.24),
    "blue": (0.13, 0.35, 0.87),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.98, 0.50, 0.74),
    "brown": (0.48, 0.29, 0.13),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "ring")
COLOURED_SHAPES: tuple[str, ...] = tuple(
    f"{colour} {shape}" for shape in SHAPES for colour in COLOURS
)

SUBJECTS: tuple[str, ...] = tuple(e.name for e in EMOJI) + COLOURED_SHAPES
SUBJECT_INDEX: dict[str, int] = {name: i for i, name in enumerate(SUBJECTS)}

# 10 % of the colour x shape pairs, each of another colour and shape, held out to measure
# composition
HELD_OUT_SHAPES: tuple[str, ...] = (
    "red star",
    "blue heart",
    "green ring",
    "yellow square",
    "purple triangle",
)


@cache
def is_shape(subject: str) -> bool:
    """Whether a subject is a coloured shape, not an emoji.

    Args:
        subject: a name from `SUBJECTS`.

    Raises:
        ValueError: an unknown subject.
    """
    check_choice("subject", subject, SUBJECTS)
    return subject in COLOURED_SHAPES


@cache
def is_rotation_symmetric(subject: str) -> bool:
    """Whether rotating a subject about its centre changes nothing.

    Args:
        subject: a name from `SUBJECTS`.

    Raises:
        ValueError: an unknown subject.
    """
    check_choice("subject", subject, SUBJECTS)
    return subject.endswith((" circle", " ring"))
