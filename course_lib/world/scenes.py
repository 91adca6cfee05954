"""Scenes, splits and sampling: which clips exist.

A `Scene` determines a clip completely: four small values from which every pixel follows. Sampling
is a pure function of (seed, index). Train and test scenes never coincide: their variants differ in
parity.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from course_lib.validation import check_choice, check_int, require
from course_lib.world.backgrounds import BACKGROUND_INDEX
from course_lib.world.hashing import hash_u64, hash_uniform
from course_lib.world.motions import MOTION_INDEX, MOTIONS
from course_lib.world.subjects import (
    BASE_EMOJI,
    COLOURED_SHAPES,
    HELD_OUT_SHAPES,
    NOVEL_EMOJI,
    SUBJECT_INDEX,
    is_rotation_symmetric,
    is_shape,
)

SPLITS = ("train", "test")
SUBSETS = ("base", "novel", "composed", "all")
P_SHAPE = 0.3  # probability that a clip shows a coloured shape, not an emoji


@dataclass(frozen=True)
class Scene:
    """The content of a clip.

    Attributes:
        subject: a name from `SUBJECTS`.
        motion: a name from `MOTIONS`.
        background: a name from `BACKGROUNDS`.
        variant: integer in [0, 2**32) that determines the rest (start, speed, size, horizon, …).

    Raises:
        ValueError: an unknown name, a spinning circle or ring, or a variant out of range.
    """

    subject: str
    motion: str = "standing still"
    background: str = "white"
    variant: int = 0

    def __post_init__(self) -> None:
        check_choice("subject", self.subject, SUBJECT_INDEX)
        check_choice("motion", self.motion, MOTION_INDEX)
        check_choice("background", self.background, BACKGROUND_INDEX)
        require(
            _is_valid_pair(self.subject, self.motion),
            "motion",
            f"any but 'spinning' for {self.subject!r}, whose rotation is unseen",
            repr(self.motion),
        )
        check_int("variant", self.variant, 0, 2**32 - 1)


@cache
def subset_of(subject: str, motion: str) -> str:
    """Name the subset of a pair of subject and motion.

    Args:
        subject: a name from `SUBJECTS`.
        motion: a name from `MOTIONS`.

    Returns:
        "base" if generators may be trained on the pair, "novel" if the subject is held out,
        "composed" if only the combination is held out.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("subject", subject, SUBJECT_INDEX)
    check_choice("motion", motion, MOTION_INDEX)
    if subject in NOVEL_EMOJI:
        return "novel"
    held_out = subject in HELD_OUT_SHAPES or (subject, motion) in HELD_OUT_PAIRS
    return "composed" if held_out else "base"


class Sampler:
    """Sample scenes of one split and one subset, as a pure function of (seed, index).

    Args:
        split: "train" or "test"; their scenes never coincide.
        subset: "base" (the training data of generators), "novel" (the 12 held-out emoji),
            "composed" (held-out combinations of base subjects, colours and motions) or "all" (the
            judge's data).
        seed: integer in [0, 2**63).
        subjects: names to restrict the subjects to; None means all.
        motions: names to restrict the motions to; None means all.
        backgrounds: names to restrict the backgrounds to; None means all.

    Raises:
        ValueError: an unknown split, subset or name, a seed that is not such an integer, or a
            restriction that leaves no scene.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        subset: str = "base",
        seed: int = 0,
        subjects: Sequence[str] | None = None,
        motions: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_choice("subset", subset, SUBSETS)
        check_int("seed", seed, 0, 2**63 - 1)
        self.split = split
        self.seed = seed
        subjects = _check_names("subjects", subjects, SUBJECT_INDEX)
        motions = _check_names("motions", motions, MOTION_INDEX)
        self.backgrounds = _check_names("backgrounds", backgrounds, BACKGROUND_INDEX)
        pairs = [
            (subject, motion)
            for subject in subjects
            for motion in motions
            if _is_valid_pair(subject, motion) and subset in ("all", subset_of(subject, motion))
        ]
        require(
            pairs != [],
            "subset",
            f"{subset!r} pairs among {subjects} and {motions}",
            "none",
        )
        self.pairs = {
            wants_shape: [pair for pair in pairs if is_shape(pair[0]) == wants_shape] or pairs
            for wants_shape in (False, True)
        }

    def __call__(self, index: int) -> Scene:
        """The scene of an index.

        Args:
            index: integer in [0, 2**63).

        Raises:
            ValueError: an index out of range.
            TypeError: an index that is not an integer.
        """
        index = operator.index(index)
        check_int("index", index, 0, 2**63 - 1)
        key = (SPLITS.index(self.split), self.seed, index)
        pairs = self.pairs[bool(hash_uniform("kind", *key)[0] < P_SHAPE)]
        subject, motion = pairs[_choose(len(pairs), 1, *key)]
        background = self.backgrounds[_choose(len(self.backgrounds), 2, *key)]
        # even variants are for training, odd ones for testing: no scene belongs to both
        variant = 2 * int(hash_u64(3, *key)[0] >> np.uint64(33)) + SPLITS.index(self.split)
        return Scene(subject, motion, background, variant)


def _is_valid_pair(subject: str, motion: str) -> bool:
    return not (motion == "spinning" and is_rotation_symmetric(subject))


def _held_out_pairs() -> frozenset[tuple[str, str]]:
    """10 % of the pairs of subject and motion, selected by a hash."""
    subjects = BASE_EMOJI + COLOURED_SHAPES
    pairs = [(s, m) for s in subjects for m in MOTIONS if _is_valid_pair(s, m)]
    index = np.array([(SUBJECT_INDEX[s], MOTION_INDEX[m]) for s, m in pairs])  # (pairs, 2)
    order = np.argsort(hash_u64(7, *index.T))
    return frozenset(pairs[i] for i in order[: round(len(pairs) / 10)])


HELD_OUT_PAIRS: frozenset[tuple[str, str]] = _held_out_pairs()


def _choose(num_options: int, *key: int) -> int:
    return int(hash_u64(*key)[0] % np.uint64(num_options))


def _check_names(
    argument: str, names: Sequence[str] | None, valid: dict[str, int]
) -> tuple[str, ...]:
    """Check the names, or return all valid ones for None."""
    names = tuple(valid) if names is None else tuple(names)
    for name in names:
        check_choice(argument, name, valid)
    require(names != (), argument, "at least one name", "none")
    return names
