"""Prompt accuracy of planted predictions; calibration and AUROC against loops, torchmetrics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from course_lib.metrics import PromptAccuracy, auroc, expected_calibration_error, subset_of_prompt
from course_lib.metrics.prompt_accuracy import CLASSES, NONE_CLASS, Confusion
from course_lib.world import HELD_OUT_PAIRS, Sampler, Scene, caption, image_caption, subset_of

KEYS = ("subject", "motion", "background")


def planted(*answers):
    """Videos whose first pixel encodes the classes (subject, motion, background) to predict."""
    video = torch.zeros(len(answers), 3, 2, 4, 4)
    for clip, names in zip(video, answers, strict=True):
        for channel, (key, name) in enumerate(zip(KEYS, names, strict=True)):
            clip[channel] = CLASSES[key].index(name) / 100 - 1
    return video


def judge(video):
    """Logits with the planted class on top of some noise."""
    noise = torch.randn(125, generator=torch.Generator().manual_seed(0))
    result = (video[:, :, 0, 0, 0] * 100 + 100).round().long()
    logits = {"order": torch.zeros(len(video), 2)}
    for channel, (key, classes) in enumerate(CLASSES.items()):
        logits[key] = noise[: len(classes)] + 10 * nn.functional.one_hot(
            result[:, channel], len(classes)
        )
    return logits


def accuracy(answers, prompts):
    metric = PromptAccuracy(judge, "planted")
    metric.update(planted(*answers), prompts)
    return metric


ANSWERS = [
    ("tiger", "moving left", "sea"),  # all right
    ("tiger", "moving left", "grass"),  # wrong background, which the prompt does not name
    ("lion", "moving left", "sea"),  # wrong subject
    (NONE_CLASS, "spinning", NONE_CLASS),  # nothing right
]
PROMPTS = [
    "a tiger moving left on a sea background",
    "a tiger moving left",
    "a tiger moving left on a sea background",
    "a tiger moving left on a sea background",
]


def test_counts_by_attribute():
    scores = accuracy(ANSWERS, PROMPTS).compute()
    counts = {key: (round(score.value * score.n), score.n) for key, score in scores.items()}
    assert counts == {"subject": (2, 4), "motion": (3, 4), "background": (2, 3), "all": (2, 4)}
    assert scores["motion"].name == "prompt_accuracy_motion[planted]"
    expected = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert scores["motion"].interval == pytest.approx((expected.low, expected.high))


def test_an_attribute_that_no_prompt_names_has_no_score():
    scores = accuracy(ANSWERS[:1], ["tiger"]).compute()
    assert set(scores) == {"subject", "all"}


def test_an_image_judge_need_not_know_motion():
    metric = PromptAccuracy(
        lambda video: {k: v for k, v in judge(video).items() if k != "motion"}, "image judge"
    )
    metric.update(planted(ANSWERS[0])[:, :, :1], ["a tiger on a sea background"])
    assert metric.compute()["all"].value == 1
    with pytest.raises(
        ValueError, match=r"judge: expected logits of shape \(1, 10\) for motion, got nothing"
    ):
        metric.update(planted(ANSWERS[0]), PROMPTS[:1])


@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(1, 5))
def test_true_captions_are_always_right_and_parts_are_those_of_the_world(index, wording, count):
    scenes = [Sampler("test", subset="all")(index + i) for i in range(count)]
    answers = [(scene.subject, scene.motion, scene.background) for scene in scenes]
    prompts = [caption(scene, wording) for scene in scenes]
    scores = accuracy(answers, prompts).compute()
    assert {key: (score.value, score.n) for key, score in scores.items()} == dict.fromkeys(
        (*KEYS, "all"), (1.0, count)
    )
    assert [subset_of_prompt(prompt) for prompt in prompts] == [
        subset_of(s.subject, s.motion) for s in scenes
    ]


def test_a_prompt_without_motion_is_judged_by_its_subject():
    subject, motion = sorted(HELD_OUT_PAIRS)[0]
    scene = Scene(subject, motion, "sea")
    assert subset_of_prompt(caption(scene)) == "composed"
    assert subset_of_prompt(image_caption(scene)) == "base"
    assert [subset_of_prompt(text) for text in ("a fox", "a red star", "a red ring")] == [
        "novel",
        "composed",
        "base",
    ]
    with pytest.raises(
        ValueError, match="prompt: expected one that names a subject, got 'moving left'"
    ):
        subset_of_prompt("moving left")


def test_breakdown_by_any_key():
    metric = accuracy(ANSWERS, PROMPTS)
    groups = metric.breakdown(["odd", "even", "odd", "even"])
    assert list(groups) == ["even", "odd"]
    assert {key: score.value for key, score in groups["odd"].items()} == {
        "subject": 0.5,
        "motion": 1,
        "background": 1,
        "all": 0.5,
    }
    assert groups["even"]["background"].n == 1
    assert groups["even"]["all"].name == "prompt_accuracy_all_even[planted]"
    assert metric.breakdown(["x"] * 4)["x"]["all"].value == metric.compute()["all"].value
    with pytest.raises(ValueError, match="groups: expected 4, one per video so far, got 3"):
        metric.breakdown(["x"] * 3)


def test_confusions_are_the_most_frequent_mistakes():
    answers = (
        [("lion", "spinning", "sea")] * 2
        + [(NONE_CLASS, "spinning", "sea")]
        + [("tiger", "spinning", "sea")] * 3
    )
    metric = accuracy(answers, ["a tiger moving left"] * 6)
    assert metric.confusions("subject") == [
        Confusion("tiger", "lion", 2),
        Confusion("tiger", NONE_CLASS, 1),
    ]
    assert metric.confusions("subject", top_k=1) == [("tiger", "lion", 2)]
    assert metric.confusions("motion") == [("moving left", "spinning", 6)]
    assert metric.confusions("background") == []
    with pytest.raises(
        ValueError, match="attribute: expected one of subject, motion, background, got 'order'"
    ):
        metric.confusions("order")


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (1, 1, 1, 1)])
def test_batches_do_not_matter(sizes):
    metric, start = PromptAccuracy(judge, "planted"), 0
    for size in sizes:
        metric.update(planted(*ANSWERS[start : start + size]), PROMPTS[start : start + size])
        start += size
    assert metric.compute() == accuracy(ANSWERS, PROMPTS).compute()
    assert metric.confusions("subject") == accuracy(ANSWERS, PROMPTS).confusions("subject")


def test_two_processes_give_the_result_of_one():
    first, second = accuracy(ANSWERS[:1], PROMPTS[:1]), accuracy(ANSWERS[1:], PROMPTS[1:])
    first.merge_state(second)
    assert first.compute() == accuracy(ANSWERS, PROMPTS).compute()


def returning(**logits):
    return lambda video: judge(video) | logits


@pytest.mark.parametrize(
    ("judge", "video", "prompts", "message"),
    [
        (
            judge,
            planted(ANSWERS[0]),
            ["a thing"],
            "prompts: expected a subject, motion or background of the world",
        ),
        (
            judge,
            planted(ANSWERS[0]),
            ["a tiger and a lion"],
            "expected at most one subject, got tiger, lion",
        ),
        (
            judge,
            planted(ANSWERS[0]),
            PROMPTS,
            "prompts: expected a list of 1 prompts, one per clip, got 4",
        ),
        (
            judge,
            planted(ANSWERS[0]),
            "a tiger",
            "prompts: expected a list of 1 prompts, one per clip, got one string",
        ),
        (judge, planted(ANSWERS[0])[0], PROMPTS[:1], r"video: expected \(b, c, f, h, w\)"),
        (
            returning(subject=torch.zeros(1, 124)),
            planted(ANSWERS[0]),
            PROMPTS[:1],
            r"shape \(1, 125\) for subject, got",
        ),
        (
            returning(motion=torch.full((1, 10), torch.nan)),
            planted(ANSWERS[0]),
            PROMPTS[:1],
            r"judge\(video\)\['motion'\]: expected finite",
        ),
    ],
)
def test_refusals(judge, video, prompts, message):
    metric = PromptAccuracy(judge, "planted")
    with pytest.raises(ValueError, match=message):
        metric.update(video, prompts)
    with pytest.raises(ValueError, match="videos: expected at least 1, got 0"):
        metric.confusions("subject")


def test_a_judge_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="judge: expected a network in evaluation mode"):
        PromptAccuracy(nn.Linear(1, 1), "net")


# Calibration


def ece_by_hand(probabilities, labels, bins):
    """Guo et al.: bins (i/bins, (i+1)/bins], one after the other."""
    confidence, answer = probabilities.max(dim=1)
    total = 0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            accuracy = (answer[inside] == labels[inside]).double().mean()
            total += inside.double().mean() * (accuracy - confidence[inside].mean()).abs()
    return float(total)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 10, 15]))
def test_ece_equals_its_loop_and_torchmetrics(seed, bins):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(60, 4, generator=generator, dtype=torch.float64)).softmax(
        dim=1
    )
    labels = torch.randint(0, 4, (60,), generator=generator)
    score = expected_calibration_error(probabilities, labels, bins)
    assert score.value == pytest.approx(ece_by_hand(probabilities, labels, bins), abs=1e-12)
    reference = multiclass_calibration_error(
        probabilities, labels, num_classes=4, n_bins=bins, norm="l1"
    )
    assert score.value == pytest.approx(float(reference), abs=1e-6)  # it sums in float32
    assert (score.name, score.n) == (f"ece_l1_bins{bins}", 60)


def test_full_confidence_shares_the_last_bin():
    probabilities = torch.tensor(
        [[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]], dtype=torch.float64
    )
    labels = torch.tensor([0, 1, 0, 0])  # 3 of 4 right at a mean confidence of 0.975
    assert expected_calibration_error(probabilities, labels).value == pytest.approx(0.225)
    # torchmetrics gives a confidence of 1 a bin of its own
    reference = multiclass_calibration_error(
        probabilities, labels, num_classes=2, n_bins=15, norm="l1"
    )
    assert float(reference) == pytest.approx((0.5 + 0.05) / 2)


def test_a_bin_holds_its_upper_end():
    probabilities = torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([1, 0])  # the first is wrong: (0, 0.5] is off by 0.5, (0.5, 1] by 0.4
    assert expected_calibration_error(probabilities, labels, 2).value == pytest.approx(
        (0.5 + 0.4) / 2
    )


def test_a_calibrated_judge_has_no_error():
    probabilities = torch.tensor([[0.75, 0.25]] * 4)
    assert expected_calibration_error(
        probabilities, torch.tensor([0, 0, 1, 0])
    ).value == pytest.approx(0)
    assert expected_calibration_error(
        probabilities, torch.tensor([1, 1, 1, 1])
    ).value == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        (
            torch.randn(3, 4),
            torch.zeros(3).long(),
            15,
            "probabilities: expected rows of at least 0 that sum to 1",
        ),
        (torch.full((3, 4), 0.3), torch.zeros(3).long(), 15, "apply softmax to logits"),
        (
            torch.full((3, 4), 0.25),
            torch.tensor([0, 1, 4]),
            15,
            "labels: expected 3 class indices from 0 to 3",
        ),
        (
            torch.full((3, 4), 0.25),
            torch.tensor([0, -1, 3]),
            15,
            "labels: expected 3 class indices from 0 to 3",
        ),
        (torch.full((3, 4), 0.25), torch.tensor([0, 1]), 15, "labels: expected 3 class indices"),
        (
            torch.full((3, 4), 0.25),
            torch.tensor([0, 1, 2]),
            0,
            "bins: expected an integer of at least 1, got 0",
        ),
        (torch.full((4,), 0.25), torch.tensor([0]), 15, r"probabilities: expected \(n, d\)"),
    ],
)
def test_ece_refuses(probabilities, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, labels, bins)


# AUROC


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows):
    values, positive = torch.tensor([float(v) for v, _ in rows]), torch.tensor([p for _, p in rows])
    pairs = [
        (a > b) + (a == b) / 2
        for a in values[positive].tolist()
        for b in values[~positive].tolist()
    ]
    if not pairs:
        with pytest.raises(
            ValueError,
            match="itives: expected at least 1, got 0|negatives: expected at least 1, got 0",
        ):
            auroc(values, positive)
        return
    assert auroc(values, positive).value == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_auroc_keeps_large_numbers_apart():
    values, positive = (
        torch.tensor([100.0, 101.0, 102.0, 103.0]),
        torch.tensor([False, True, False, True]),
    )
    assert auroc(values, positive).value == 0.75
    assert auroc(values, positive).n == 4
    assert (
        float(binary_auroc(values, positive.long())) == 0.5
    )  # why ranks: the sigmoid makes ties of them


def test_auroc_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="values: expected 2 finite numbers"):
        auroc(torch.tensor([0.5, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="values: expected 3 finite numbers"):
        auroc(torch.tensor([0.5, 0.1]), torch.tensor([True, False, True]))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([[0], [1], [2]]),
        torch.tensor([0.4, 1.0, 2.0]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([True, False, True]),
        torch.tensor(1),
        torch.tensor([0, 1, torch.iinfo(torch.int64).max]),
    ],
)
def test_labels_are_a_row_of_class_indices(labels):
    with pytest.raises(ValueError, match="labels: expected 3 class indices from 0 to 3, got"):
        expected_calibration_error(torch.full((3, 4), 0.25), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_small_integers(dtype):
    probabilities, labels = torch.full((3, 4), 0.25), torch.tensor([0, 1, 2])
    expected = expected_calibration_error(probabilities, labels)
    assert expected_calibration_error(probabilities, labels.to(dtype)) == expected


@pytest.mark.parametrize("positive", [[0, 1], [0.0, 1.0], [[False, True]]])
def test_auroc_takes_a_row_of_bools(positive):
    with pytest.raises(ValueError, match=r"positive: expected \(n,\) bool, got"):
        auroc(torch.tensor([0.1, 0.9]), torch.tensor(positive))


def test_confusions_take_no_negative_number():
    metric = accuracy(ANSWERS, PROMPTS)
    assert metric.confusions("subject", 0) == []
    with pytest.raises(ValueError, match="top_k: expected an integer of at least 0, got -1"):
        metric.confusions("subject", -1)
