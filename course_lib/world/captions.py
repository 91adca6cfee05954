"""Captions and back again: every scene has a sentence, and every sentence leads back to one scene's attributes."""

import re

from course_lib.world.backgrounds import BACKGROUNDS
from course_lib.world.motions import MOTIONS
from course_lib.world.scenes import Scene
from course_lib.world.subjects import SUBJECTS

VIDEO_TEMPLATES: tuple[str, ...] = (
    "{a_subject} {motion} on a {background} background",
    "a video of {a_subject} {motion} on a {background} background",
    "{a_subject} is {motion}, {background} background",
    "on a {background} background, {a_subject} {motion}",
)
IMAGE_TEMPLATES: tuple[str, ...] = (
    "{a_subject} on a {background} background",
    "a picture of {a_subject} on a {background} background",
    "{a_subject}, {background} background",
    "on a {background} background, {a_subject}",
)


def caption(scene: Scene, paraphrase: int = 0) -> str:
    """Describe a clip: subject, motion and background.

    Args:
        scene: what the clip shows.
        paraphrase: which wording, 0 to 3; 0 is the canonical one.

    Raises:
        ValueError: no such paraphrase.
    """
    return _fill(VIDEO_TEMPLATES, scene, paraphrase)


def image_caption(scene: Scene, paraphrase: int = 0) -> str:
    """Describe a single frame: subject and background, no motion.

    Args:
        scene: what the frame shows.
        paraphrase: which wording, 0 to 3; 0 is the canonical one.

    Raises:
        ValueError: no such paraphrase.
    """
    return _fill(IMAGE_TEMPLATES, scene, paraphrase)


def parse_caption(text: str) -> dict[str, str | None]:
    """Read a caption back into its attributes.

    Args:
        text: a sentence that names a subject and, perhaps, a motion and a background in the world's own words; the
            name of a background counts where the word "background" follows it.

    Returns:
        "subject", "motion" and "background", each a name or None where the text has none.

    Raises:
        ValueError: the text names two different values of one attribute.
    """
    rest = " ".join(text.lower().split())
    found: dict[str, str | None] = {}
    for attribute, names in (
        ("background", BACKGROUNDS),
        ("motion", MOTIONS),
        ("subject", SUBJECTS),
    ):
        hits = []
        for name in sorted(names, key=len, reverse=True):  # "tropical fish" before "fish"
            pattern = rf"\b{re.escape(name)}\b" + (
                " background" if attribute == "background" else ""
            )
            rest, count = re.subn(pattern, " ", rest)
            hits += [name] * min(count, 1)
        if len(hits) > 1:
            raise ValueError(
                f"the caption {text!r} names {len(hits)} values of {attribute}: {', '.join(hits)}"
            )
        found[attribute] = hits[0] if hits else None
    return found


def _fill(templates: tuple[str, ...], scene: Scene, paraphrase: int) -> str:
    if not 0 <= paraphrase < len(templates):
        raise ValueError(f"paraphrase must be in 0..{len(templates) - 1}, got {paraphrase}")
    article = "an" if scene.subject[0] in "aeio" or scene.subject.startswith("umbrella") else "a"
    return templates[paraphrase].format(
        a_subject=f"{article} {scene.subject}", motion=scene.motion, background=scene.background
    )
