"""Accuracy per attribute of generated videos by a judge, and how far the judge can be trusted.

A judge is any classifier from videos (b, c, f, h, w) to logits {"subject": (b, 125), "motion":
(b, 10), "background": (b, 11)}, in the order of the world's tables; the last class of each is "none
of these".
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from course_lib.metrics.clipwise import proportion_score
from course_lib.metrics.features import cat_rows
from course_lib.metrics.score import Score, VideoMetric
from course_lib.validation import (
    check_choice,
    check_count,
    check_int,
    check_net,
    check_prompts,
    check_tensor,
    check_video,
    require,
)
from course_lib.world import (
    BACKGROUNDS,
    HELD_OUT_SHAPES,
    MOTIONS,
    NOVEL_EMOJI,
    SUBJECTS,
    parse_caption,
    subset_of,
)

Judge = Callable[[Tensor], Mapping[str, Tensor]]

NONE_CLASS = "none of these"
CLASSES: dict[str, tuple[str, ...]] = {
    "subject": (*SUBJECTS, NONE_CLASS),
    "motion": (*MOTIONS, NONE_CLASS),
    "background": (*BACKGROUNDS, NONE_CLASS),
}
NOT_SPECIFIED = -1  # target class of an attribute that the prompt does not name


class Confusion(NamedTuple):
    """A wrong prediction: the class in the prompt, the predicted class, and how often it occurs."""

    target: str
    predicted: str
    count: int


def parse_targets(prompts: Sequence[str]) -> Int[Tensor, "b 3"]:
    """Class indices of subject, motion and background in prompts; -1 for attributes without a name.

    Raises:
        ValueError: for a prompt that names nothing of the world, or two values of one attribute.
    """
    rows = []
    for prompt in prompts:
        names = parse_caption(prompt)
        require(
            any(names.values()),
            "prompts",
            "a subject, motion or background of the world",
            repr(prompt),
        )
        rows.append(
            [CLASSES[key].index(names[key]) if names[key] else NOT_SPECIFIED for key in CLASSES]
        )
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(CLASSES))


def subset_of_prompt(prompt: str) -> str:
    """Subset of the world that a prompt belongs to: "base", "composed" or "novel".

    As `world.subset_of`; without a motion the subject decides.

    Raises:
        ValueError: for a prompt without a subject.
    """
    names = parse_caption(prompt)
    subject = names["subject"]
    require(subject is not None, "prompt", "one that names a subject", repr(prompt))
    if names["motion"] is not None:
        return subset_of(subject, names["motion"])
    if subject in NOVEL_EMOJI:
        return "novel"
    return "composed" if subject in HELD_OUT_SHAPES else "base"


class PromptAccuracy(VideoMetric):
    """Proportion of videos in which the judge predicts what the prompt names.

    The keys are "subject", "motion", "background" and "all" (every attribute that the prompt
    names), each with Wilson's 95 % interval; `n` counts videos whose prompts name the attribute.
    The class "none of these" is always wrong. The interval covers the sampling of videos, not the
    errors that the judge makes on real videos.

    Args:
        judge: see the module's docstring.
        name: name of the judge, for the scores.

    Raises:
        ValueError: for a judge in training mode.
    """

    def __init__(self, judge: Judge, name: str) -> None:
        super().__init__()
        check_net("judge", judge)
        self.judge = judge
        self.judge_name = name
        self.add_state("target", [], "cat")
        self.add_state("predicted", [], "cat")
        self._separate(name)

    def update(self, video: Tensor, prompts: Sequence[str]) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], on the device of the judge.
            prompts: one per clip.

        Raises:
            ValueError: for bad input, a prompt that names nothing, or logits of another shape.
        """
        check_video("video", video)
        check_net("judge", self.judge)
        check_prompts("prompts", prompts, len(video))
        target = parse_targets(prompts)
        with torch.no_grad():
            logits = self.judge(video)
        predicted = torch.full_like(target, NOT_SPECIFIED)
        for column, (key, classes) in enumerate(CLASSES.items()):
            if (target[:, column] == NOT_SPECIFIED).all():
                continue  # an image judge has no head for motion
            shape = (len(video), len(classes))
            got = tuple(logits[key].shape) if key in logits else "nothing"
            require(got == shape, "judge", f"logits of shape {shape} for {key}", got)
            check_tensor(f"judge(video)[{key!r}]", logits[key], "(b, classes)")
            predicted[:, column] = logits[key].argmax(dim=1).cpu()
        self.target = [*self.target, target.to(self.device)]
        self.predicted = [*self.predicted, predicted.to(self.device)]

    def compute(self) -> dict[str, Score]:
        """Score of every attribute that a prompt names, and of "all".

        Raises:
            ValueError: before the first video.
        """
        return self._scores(*self._labels(), "")

    def breakdown(self, groups: Sequence[str]) -> dict[str, dict[str, Score]]:
        """Scores of every group of videos; on one process, since several keep no common order.

            accuracy.breakdown([subset_of_prompt(prompt) for prompt in prompts])["novel"]["subject"]

        Args:
            groups: group of every video, in the order of the updates.

        Raises:
            ValueError: for another number of groups than videos.
        """
        target, predicted = self._labels()
        require(
            len(groups) == len(target),
            "groups",
            f"{len(target)}, one per video so far",
            len(groups),
        )
        scores = {}
        for group in sorted(set(groups)):
            rows = torch.tensor([other == group for other in groups], device=target.device)
            scores[group] = self._scores(target[rows], predicted[rows], f"_{group}")
        return scores

    def confusions(self, attribute: str, top_k: int = 5) -> list[Confusion]:
        """Most frequent wrong predictions of one attribute; ties are in the order of the tables.

        Args:
            attribute: "subject", "motion" or "background".
            top_k: largest number of confusions.

        Raises:
            ValueError: for another attribute, a top_k below 0, or before the first video.
        """
        check_choice("attribute", attribute, CLASSES)
        check_int("top_k", top_k, 0)
        classes = CLASSES[attribute]
        column = list(CLASSES).index(attribute)
        target, predicted = (labels[:, column].tolist() for labels in self._labels())
        counts = Counter(zip(target, predicted, strict=True))
        wrong = [
            (pair, count)
            for pair, count in counts.items()
            if pair[0] not in (NOT_SPECIFIED, pair[1])
        ]
        ranked = sorted(wrong, key=lambda item: (-item[1], item[0]))[:top_k]
        return [Confusion(classes[t], classes[p], count) for (t, p), count in ranked]

    def _labels(self) -> tuple[Int[Tensor, "n 3"], Int[Tensor, "n 3"]]:
        check_count("videos", len(self.target), 1)
        # `set_dtype`, and a process without videos, make floats of them
        return cat_rows(self.target).long(), cat_rows(self.predicted).long()

    def _scores(
        self, target: Int[Tensor, "n 3"], predicted: Int[Tensor, "n 3"], suffix: str
    ) -> dict[str, Score]:
        specified = target != NOT_SPECIFIED
        correct = target == predicted
        counts = {
            key: (correct[specified[:, i], i].sum(), specified[:, i].sum())
            for i, key in enumerate(CLASSES)
        }
        counts["all"] = ((correct | ~specified).all(dim=1).sum(), len(target))
        name = f"prompt_accuracy_{{}}{suffix}[{self.judge_name}]"
        return {
            key: proportion_score(name.format(key), int(hits), int(n))
            for key, (hits, n) in counts.items()
            if n > 0
        }


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Score:
    """Distance of confidence from accuracy: Σ over bins of n_bin/n · |accuracy - mean confidence|.

    Confidence is the largest probability. Bins have equal width, (i/bins, (i+1)/bins] (Guo et al.
    2017, equation 3). torchmetrics' bins are closed below, so a confidence of exactly 1, frequent
    in float32, has a bin of its own there.

    Args:
        probabilities: (n, k), with rows that sum to 1.
        labels: (n,) integers, true classes.
        bins: number of bins.

    Returns:
        Score in [0, 1].

    Raises:
        ValueError: for bad input.
    """
    check_tensor("probabilities", probabilities, "(n, d)")
    check_int("bins", bins, 1)
    probabilities = probabilities.detach().cpu().double()
    require(
        probabilities.min() >= 0 and (probabilities.sum(dim=1) - 1).abs().max() <= 1e-3,
        "probabilities",
        "rows of at least 0 that sum to 1",
        "others; apply softmax to logits",
    )
    labels = labels.cpu()
    n, num_classes = probabilities.shape
    is_index = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    is_valid = is_index and labels.shape == (n,) and 0 <= labels.min() <= labels.max() < num_classes
    require(
        is_valid,
        "labels",
        f"{n} class indices from 0 to {num_classes - 1}",
        f"{labels.dtype} of shape {tuple(labels.shape)}, {labels.unique()[:9].tolist()}",
    )
    confidence, predicted = probabilities.max(dim=1)
    gap = (predicted == labels).double() - confidence
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    totals = torch.zeros(bins, dtype=torch.float64)
    totals.index_add_(0, torch.bucketize(confidence, edges), gap)
    return Score(f"ece_l1_bins{bins}", totals.abs().sum().item() / n, n)


def auroc(values: Tensor, positive: Tensor) -> Score:
    """Area under the ROC curve: probability that a positive has the larger value; ties count half.

    torchmetrics gets the ranks of the values: it would apply a sigmoid to numbers outside [0, 1],
    which makes large ones equal.

    Args:
        values: (n,), real numbers, such as the judge's probability of "none of these".
        positive: (n,) bool.

    Raises:
        ValueError: for values that are not finite, labels that are not bool, or only one class.
    """
    is_bool = positive.dtype == torch.bool and positive.ndim == 1
    got = f"{positive.dtype} of shape {tuple(positive.shape)}"
    require(is_bool, "positive", "(n,) bool", f"{got}; convert with positive == 1")
    require(
        values.shape == positive.shape and values.isfinite().all(),
        "values",
        f"{len(positive)} finite numbers",
        f"{tuple(values.shape)} or not finite",
    )
    check_count("positives", int(positive.sum()), 1)
    check_count("negatives", int((~positive).sum()), 1)
    ranks = values.detach().unique(return_inverse=True)[1].double() / len(values)
    return Score("auroc", binary_auroc(ranks, positive.long()).item(), len(values))
