"""What is in a clip, and which clips exist: scenes, splits and sampling.

A `Scene` is the whole truth of a clip: four small values from which every pixel follows. Sampling is a pure function
of (seed, index). Train and test scenes can never coincide: their variants differ in parity.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from course_lib.world.backgrounds import BACKGROUND_INDEX
from course_lib.world.hashing import mix, uniform
from course_lib.world.motions import MOTION_INDEX, MOTIONS
from course_lib.world.subjects import (
    COLOURED_SHAPES,
    HELD_OUT_SHAPES,
    NOVEL_EMOJI,
    SEEN_EMOJI,
    SUBJECT_INDEX,
    is_shape,
    looks_round,
)

SPLITS = ("train", "test")
PARTS = ("seen", "novel", "composed", "all")
SHAPE_SHARE = 0.3  # share of clips that show a coloured shape rather than an emoji


@dataclass(frozen=True)
class Scene:
    """Everything that is true of a clip.

    Args:
        subject: a name from `SUBJECTS`.
        motion: a name from `MOTIONS`.
        background: a name from `BACKGROUNDS`.
        variant: a non-negative integer below 2**32 that fixes all the rest (start, speed, size, horizon, stars …).

    Raises:
        ValueError: an unknown name, a spinning circle or ring, or a variant out of range.
    """

    subject: str
    motion: str = "standing still"
    background: str = "white"
    variant: int = 0

    def __post_init__(self) -> None:
        known = (
            ("subject", SUBJECT_INDEX),
            ("motion", MOTION_INDEX),
            ("background", BACKGROUND_INDEX),
        )
        for field, names in known:
            if getattr(self, field) not in names:
                raise ValueError(
                    f"{field} {getattr(self, field)!r} is not one of: {', '.join(names)}"
                )
        if self.motion == "spinning" and looks_round(self.subject):
            raise ValueError(
                f"a spinning {self.subject} looks the same as one standing still: no such scene"
            )
        if not 0 <= self.variant < 2**32:
            raise ValueError(f"variant must be in [0, 2**32), got {self.variant}")


def _exists(pair: tuple[str, str]) -> bool:
    subject, motion = pair
    return not (motion == "spinning" and looks_round(subject))


def _held_out_pairs() -> frozenset[tuple[str, str]]:
    """10 % of subject x motion pairs, fixed for all time by a hash."""
    pairs = [(s, m) for s in SEEN_EMOJI + COLOURED_SHAPES for m in MOTIONS if _exists((s, m))]
    numbers = np.array([(SUBJECT_INDEX[s], MOTION_INDEX[m]) for s, m in pairs])
    key = mix(7, numbers[:, 0], numbers[:, 1])
    return frozenset(pairs[i] for i in np.argsort(key)[: round(len(pairs) / 10)])


HELD_OUT_PAIRS: frozenset[tuple[str, str]] = _held_out_pairs()


def part_of(subject: str, motion: str) -> str:
    """Say whether generators may learn from a pair ("seen") or not ("novel": the subject; "composed": the pair).

    Args:
        subject: a name from `SUBJECTS`.
        motion: a name from `MOTIONS`.
    """
    if subject in NOVEL_EMOJI:
        return "novel"
    held_out = subject in HELD_OUT_SHAPES or (subject, motion) in HELD_OUT_PAIRS
    return "composed" if held_out else "seen"


class Sampler:
    """Draw scenes as a pure function of (seed, index), from one split and one part of the world.

    Args:
        split: "train" or "test"; their scenes never coincide.
        part: "seen" (what generators learn from), "novel" (the 12 held-out emoji), "composed" (held-out pairs
            of seen things) or "all" (for the judge).
        seed: integer in [0, 2**63).
        subjects, motions, backgrounds: restrict the world to these names; None means all.

    Raises:
        ValueError: an unknown split, part or name, or a choice that leaves no scene.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        part: str = "seen",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
        motions: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        if part not in PARTS:
            raise ValueError(f"part must be one of {PARTS}, got {part!r}")
        if not 0 <= operator.index(seed) < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        self.split, self.part, self.seed = split, part, seed
        subjects = _known("subjects", subjects, SUBJECT_INDEX)
        motions = _known("motions", motions, MOTION_INDEX)
        self.backgrounds = _known("backgrounds", backgrounds, BACKGROUND_INDEX)
        if not self.backgrounds:
            raise ValueError("backgrounds must name at least one, got none")
        pairs = [(s, m) for s in subjects for m in motions if _exists((s, m))]
        pairs = [pair for pair in pairs if part == "all" or part_of(*pair) == part]
        if not pairs:
            raise ValueError(
                f"no {part!r} scene is left among subjects={subjects} and motions={motions}"
            )
        self.pairs = {
            False: [p for p in pairs if not is_shape(p[0])],
            True: [p for p in pairs if is_shape(p[0])],
        }

    def __call__(self, index: int) -> Scene:
        """Return the scene of this index.

        Args:
            index: integer in [0, 2**63): as good as no end.

        Raises:
            ValueError: an index out of range.
            TypeError: an index that is no integer.
        """
        if not 0 <= operator.index(index) < 2**63:
            raise ValueError(f"index must be in [0, 2**63), got {index}")
        key = (SPLITS.index(self.split), self.seed, index)
        shape = bool(uniform("kind", *key)[0] < SHAPE_SHARE)
        pairs = self.pairs[shape] or self.pairs[not shape]
        subject, motion = pairs[int(mix(1, *key)[0] % np.uint64(len(pairs)))]
        background = self.backgrounds[int(mix(2, *key)[0] % np.uint64(len(self.backgrounds)))]
        # even variants are for training, odd ones for testing: no scene can belong to both
        variant = 2 * int(mix(3, *key)[0] >> np.uint64(33)) + SPLITS.index(self.split)
        return Scene(subject, motion, background, variant)


def _known(argument: str, names: Sequence[str] | None, table: dict[str, int]) -> tuple[str, ...]:
    if names is None:
        return tuple(table)
    for name in names:
        if name not in table:
            raise ValueError(f"{argument}: {name!r} is not one of: {', '.join(table)}")
    return tuple(names)
