"""Lesson 16's exercises: solutions pass, every likely mistake gets its own message."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from course_lib.exercises.lesson_16 import (
    EXERCISES,
    fit_gaussian,
    frame_consistency,
    inception_score,
    is_order_invariant,
    kid,
    mean_psnr,
    trace_sqrt,
)
from course_lib.lab.checks import IncorrectAnswer
from tests.exercises.mutants_16 import (
    MUTANTS,
    cancelling,
    decibels,
    divergences,
    mmd,
    root,
    the_bug,
    tries,
)

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_solution_passes(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 2
    assert len(exercise.hints) >= 3 and 5 <= exercise.minutes <= 15


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    torch.manual_seed(0)
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def test_every_exercise_has_three_mistakes():
    assert all(
        len({message for id, _, message in MUTANTS if id == exercise}) >= 3 for exercise in BY_ID
    )


OTHERS = [
    ("16.1", lambda v, r: np.mean([decibels(v[i], r[i], (0, 2, 3)).item() for i in range(len(v))])),
    ("16.1", lambda v, r: decibels((v + 1) / 2, (r + 1) / 2, peak=1).item()),
    ("16.2", lambda x: (x.mean(0), torch.cov(x.T))),
    ("16.2", lambda x: cancelling(x.double())),
    ("16.3", lambda a, b: torch.linalg.eigvals(a @ b).sqrt().real.sum()),
    ("16.3", lambda a, b: torch.linalg.svdvals(root(a) @ root(b)).sum()),
    ("16.4", lambda x, y: mmd(x, y).item()),
    ("16.5", lambda p: divergences(p.clamp(min=1e-12)).sum(1).mean().exp()),
    (
        "16.5",
        lambda p: (
            ((p * (p + 1e-10).log()).sum(1).mean() + torch.special.entr(p.mean(0)).sum())
            .exp()
            .item()
        ),
    ),
    ("16.6", lambda net, video: tries([torch.randperm(8) for _ in range(8)])(net, video)),
    ("16.7", lambda x: [part.item() for part in frame_consistency(x)]),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    torch.manual_seed(0)
    assert list(BY_ID[identifier].verify(attempt))


def test_all_orders_may_go_through_the_net_in_one_batch():
    def in_one_batch(net, video):
        orders = torch.stack([torch.randperm(8) for _ in range(10)])
        shuffled = torch.cat([video[:, :, order] for order in orders])
        features = net(video)
        change = (net(shuffled) - features.repeat(10, 1)).abs().max()
        return change <= 1e-4 * features.abs().max()  # a tensor that is True or False

    torch.manual_seed(0)
    assert list(BY_ID["16.6"].verify(in_one_batch))


def test_the_check_of_order_blindness_hardly_depends_on_chance():
    for seed in range(30):
        torch.manual_seed(seed)
        assert list(BY_ID["16.6"].verify(is_order_invariant))


# The bug of 16.3


def covariances(count, d=5):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.cov(torch.randn(d, 20, generator=generator, dtype=torch.float64))
        for _ in range(count)
    ]


def test_the_bug_hides_where_the_covariances_commute():
    """That makes it a good bug: equal sets, and features without correlation, come out right."""
    first, second = covariances(2)
    for a, b in (
        (first, first),
        (first, first @ first),
        (first.diagonal().diag(), second.diagonal().diag()),
    ):
        torch.testing.assert_close(the_bug(a, b), trace_sqrt(a, b))
    assert abs(the_bug(first, second) - trace_sqrt(first, second)) > 0.01


def test_solutions_of_sets_agree_with_scipy():
    first, second = covariances(2)
    expected = np.trace(sqrtm((first @ second).numpy())).real
    assert trace_sqrt(first, second).item() == pytest.approx(expected, rel=1e-10)
    features = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(
        fit_gaussian(features)[1], torch.from_numpy(np.cov(features.numpy(), rowvar=False))
    )


def test_solutions_are_invariant_where_the_measure_is():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 5))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(kid(x @ turn, y @ turn), kid(x, y))
    torch.testing.assert_close(frame_consistency(3 * x @ turn), frame_consistency(x))
    p = x.softmax(dim=1)
    torch.testing.assert_close(inception_score(p.flip(0)), inception_score(p))
    video, reference = torch.rand(2, 3, 4, 2, 2), torch.rand(2, 3, 4, 2, 2)
    torch.testing.assert_close(mean_psnr(video, reference), mean_psnr(reference, video))
