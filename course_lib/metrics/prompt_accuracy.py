"""Does the video show what was asked for? Accuracy per attribute by a judge, and whether the judge may be believed.

A judge is any function from videos (b, c, f, h, w) to logits: {"subject": (b, 125), "motion": (b, 10), "background":
(b, 11)}, in the order of the world's tables, the last class of each being "none of these".
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities.data import dim_zero_cat

from course_lib.metrics.clipwise import share_score
from course_lib.validation import check_count, check_features, check_net, check_video
from course_lib.metrics.score import Score
from course_lib.world import (
    BACKGROUNDS,
    HELD_OUT_SHAPES,
    MOTIONS,
    NOVEL_EMOJI,
    SUBJECTS,
    parse_caption,
    part_of,
)

Judge = Callable[[Tensor], Mapping[str, Tensor]]

NONE = "none of these"
CLASSES: dict[str, tuple[str, ...]] = {
    "subject": (*SUBJECTS, NONE),
    "motion": (*MOTIONS, NONE),
    "background": (*BACKGROUNDS, NONE),
}
UNNAMED = -1  # the prompt says nothing about this attribute


class Confusion(NamedTuple):
    """A mistake and how often it was made: `asked` for, `seen` by the judge."""

    asked: str
    seen: str
    count: int


def asked_for(prompts: Sequence[str]) -> Int[Tensor, "b 3"]:
    """Read prompts into class indices of subject, motion and background; -1 where a prompt does not say.

    Raises ValueError for a prompt that names nothing of the world, or two values of one attribute.
    """
    rows = []
    for prompt in prompts:
        named = parse_caption(prompt)
        if not any(named.values()):
            raise ValueError(
                f"prompts: expected a subject, motion or background of the world, got {prompt!r}"
            )
        rows.append([CLASSES[key].index(named[key]) if named[key] else UNNAMED for key in CLASSES])
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(CLASSES))


def part_of_prompt(prompt: str) -> str:
    """Which part of the world a prompt asks for: "seen", "composed" or "novel", as `world.part_of`.

    A prompt without a motion is judged by its subject alone. Raises ValueError for one without a subject.
    """
    named = parse_caption(prompt)
    subject, motion = named["subject"], named["motion"]
    if subject is None:
        raise ValueError(f"prompt: expected one that names a subject, got {prompt!r}")
    if motion is None:
        return (
            "novel"
            if subject in NOVEL_EMOJI
            else "composed"
            if subject in HELD_OUT_SHAPES
            else "seen"
        )
    return part_of(subject, motion)


class PromptAccuracy(Metric):
    """Share of videos in which the judge sees what the prompt names: subject, motion, background, and all of it.

    Each with Wilson's 95 % interval; `n` counts the videos whose prompt names the attribute. "none of these" is always
    wrong. The interval is about the videos; what the judge itself gets wrong on real ones comes on top.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, judge: Judge, name: str) -> None:
        """judge: see the top of the file. name: of the judge, for the scores. Raises ValueError in training mode."""
        super().__init__()
        check_net("judge", judge)
        self.judge, self.judge_name = judge, name
        self.add_state("asked", [], "cat")
        self.add_state("seen", [], "cat")

    def update(self, video: Tensor, prompts: Sequence[str]) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], where the judge is; prompts: what was asked for, one each.

        Raises ValueError for bad input, a prompt that names nothing, or a judge that does not answer what it is asked.
        """
        check_video("video", video)
        check_net("judge", self.judge)
        if isinstance(prompts, str) or len(prompts) != len(video):
            found = "one string" if isinstance(prompts, str) else len(prompts)
            raise ValueError(f"prompts: expected a list of {len(video)}, one per clip, got {found}")
        asked = asked_for(prompts)
        with torch.no_grad():
            logits = self.judge(video)
        seen = torch.full_like(asked, UNNAMED)
        for column, (key, classes) in enumerate(CLASSES.items()):
            if (asked[:, column] == UNNAMED).all():
                continue  # an image judge knows no motion, and need not
            shape = (len(video), len(classes))
            if key not in logits or tuple(logits[key].shape) != shape:
                found = tuple(logits[key].shape) if key in logits else "nothing"
                raise ValueError(f"judge: expected logits of shape {shape} for {key}, got {found}")
            check_features(f"judge(video)[{key!r}]", logits[key])
            seen[:, column] = logits[key].argmax(dim=1).cpu()
        self.asked.append(asked.to(self.device))
        self.seen.append(seen.to(self.device))

    def compute(self) -> dict[str, Score]:
        """A score for every attribute that was named at all, and "all". Raises ValueError before the first video."""
        asked, seen = self._answers()
        return self._scores(asked, seen, "")

    def breakdown(self, keys: Sequence[str]) -> dict[str, dict[str, Score]]:
        """`compute` for every group of videos; keys: the group of each, in the order of the updates.

            accuracy.breakdown([part_of_prompt(prompt) for prompt in prompts])["novel"]["subject"]

        For one process: several do not keep one order. Raises ValueError for another number of keys than videos.
        """
        asked, seen = self._answers()
        if len(keys) != len(asked):
            raise ValueError(f"keys: expected {len(asked)}, one per video so far, got {len(keys)}")
        groups = {}
        for key in sorted(set(keys)):
            rows = torch.tensor([other == key for other in keys], device=asked.device)
            groups[key] = self._scores(asked[rows], seen[rows], f"_{key}")
        return groups

    def confusions(self, attribute: str, most: int = 5) -> list[Confusion]:
        """The most frequent mistakes in one attribute, with ties in the order of the world's tables.

        Raises ValueError for an unknown attribute, or before the first video.
        """
        if attribute not in CLASSES:
            raise ValueError(f"attribute: expected one of {', '.join(CLASSES)}; got {attribute!r}")
        column, classes = list(CLASSES).index(attribute), CLASSES[attribute]
        asked, seen = (answers[:, column].tolist() for answers in self._answers())
        pairs = Counter((a, s) for a, s in zip(asked, seen, strict=True) if a not in (UNNAMED, s))
        ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
        return [Confusion(classes[a], classes[s], count) for (a, s), count in ranked]

    def _answers(self) -> tuple[Int[Tensor, "n 3"], Int[Tensor, "n 3"]]:
        check_count("videos", len(self.asked), 1)
        return dim_zero_cat(self.asked), dim_zero_cat(self.seen)

    def _scores(
        self, asked: Int[Tensor, "n 3"], seen: Int[Tensor, "n 3"], suffix: str
    ) -> dict[str, Score]:
        named, right = asked != UNNAMED, asked == seen
        counts = {
            key: (right[named[:, i], i].sum(), named[:, i].sum()) for i, key in enumerate(CLASSES)
        }
        counts["all"] = ((right | ~named).all(dim=1).sum(), len(asked))
        return {
            key: share_score(f"prompt_accuracy_{key}{suffix}[{self.judge_name}]", int(hits), int(n))
            for key, (hits, n) in counts.items()
            if n > 0
        }


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Score:
    """How far confidence is from accuracy: Σ over bins of n_bin/n · |accuracy - mean confidence|, in [0, 1].

    Confidence is the largest probability; bins of equal width, (i/bins, (i+1)/bins] (Guo et al. 2017, equation 3).
    torchmetrics' bins are closed below, and so a confidence of exactly 1, which float32 often gives, has its own.
    probabilities: (n, k), rows that sum to 1. labels: (n,), the true classes. Raises ValueError for anything else.
    """
    check_features("probabilities", probabilities)
    probabilities = probabilities.detach().cpu().double()
    n, classes = probabilities.shape
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if probabilities.min() < 0 or (probabilities.sum(dim=1) - 1).abs().max() > 1e-3:
        raise ValueError(
            "probabilities: expected rows of at least 0 that sum to 1; apply softmax to logits"
        )
    labels = labels.cpu()
    if len(labels) != n or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels: expected {n} class indices from 0 to {classes - 1}, got {tuple(labels.shape)}"
            f" from {labels.min()} to {labels.max()}"
        )
    confidence, answer = probabilities.max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    gap = (answer == labels).double() - confidence
    total = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, torch.bucketize(confidence, edges), gap
    )
    return Score(f"ece_l1_bins{bins}", total.abs().sum().item() / n, n)


def auroc(values: Tensor, positive: Tensor) -> Score:
    """Area under the ROC curve: how often a positive has the larger value, ties counting half; 0.5 is chance.

    values: (n,), any real numbers, larger for positives, such as the judge's probability of "none of these".
    positive: (n,) bool. torchmetrics does the work on the ranks of the values: it would squash numbers outside [0, 1]
    by a sigmoid, and large ones into ties. Raises ValueError for values that are not finite, or only one kind.
    """
    if values.shape != positive.shape or not values.isfinite().all():
        raise ValueError(
            f"values: expected {len(positive)} finite numbers, got {tuple(values.shape)} or not finite"
        )
    check_count("positives", int(positive.sum()), 1)
    check_count("negatives", int((~positive).sum()), 1)
    ranks = values.detach().unique(return_inverse=True)[1].double() / len(values)
    return Score("auroc", binary_auroc(ranks, positive.long()).item(), len(values))
