"""Captions: every scene has a sentence, and every sentence can be parsed back."""

import re

from course_lib.validation import check_int, require
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
# Regular expression per name, longest first: "tropical fish" comes before "fish"
_PATTERNS: dict[str, dict[str, str]] = {
    attribute: {
        name: rf"\b{re.escape(name)}\b{suffix}" for name in sorted(names, key=len, reverse=True)
    }
    for attribute, names, suffix in (
        ("background", BACKGROUNDS, " background"),
        ("motion", MOTIONS, ""),
        ("subject", SUBJECTS, ""),
    )
}


def caption(scene: Scene, paraphrase: int = 0) -> str:
    """Describe a clip: subject, motion and background.

    Args:
        scene: content of the clip.
        paraphrase: index of the wording, 0 to 3; 0 is the canonical one.

    Raises:
        ValueError: paraphrase is not an integer from 0 to 3.
    """
    return _fill(VIDEO_TEMPLATES, scene, paraphrase)


def image_caption(scene: Scene, paraphrase: int = 0) -> str:
    """Describe a single frame: subject and background, no motion.

    Args:
        scene: content of the frame.
        paraphrase: index of the wording, 0 to 3; 0 is the canonical one.

    Raises:
        ValueError: paraphrase is not an integer from 0 to 3.
    """
    return _fill(IMAGE_TEMPLATES, scene, paraphrase)


def parse_caption(text: str) -> dict[str, str | None]:
    """Read the attributes out of a caption.

    Args:
        text: a sentence that names a subject and, optionally, a motion and a background by their
            names in the world. The name of a background counts only if the word "background"
            follows it.

    Returns:
        "subject", "motion" and "background", each a name, or None where the text has none.

    Raises:
        ValueError: the text names two different values of one attribute.
    """
    rest = " ".join(text.lower().split())
    attributes: dict[str, str | None] = {}
    for attribute, patterns in _PATTERNS.items():
        names = []
        for name, pattern in patterns.items():
            rest, num_matches = re.subn(pattern, " ", rest)
            if num_matches:
                names.append(name)
        require(
            len(names) <= 1,
            "text",
            f"at most one {attribute}",
            f"{', '.join(names)} in {text!r}",
        )
        attributes[attribute] = names[0] if names else None
    return attributes


def _fill(templates: tuple[str, ...], scene: Scene, paraphrase: int) -> str:
    check_int("paraphrase", paraphrase, 0, len(templates) - 1)
    article = "an" if scene.subject[0] in "aeio" or scene.subject.startswith("umbrella") else "a"
    return templates[paraphrase].format(
        a_subject=f"{article} {scene.subject}", motion=scene.motion, background=scene.background
    )
