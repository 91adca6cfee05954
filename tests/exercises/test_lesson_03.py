"""Lesson 03's exercises: solutions pass, every likely mistake gets its own message.

The mistakes in 3.2 and 3.3 are in `test_lesson_03_time.py`, those in 3.4 in
`test_lesson_03_leak.py`.
"""

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib.diffusion import alpha_sigma_at, convert_prediction
from course_lib.exercises import check
from course_lib.exercises.lesson_03 import EXERCISES, reconstruction_guided_x0, repeat_per_frame
from course_lib.lab.checks import IncorrectAnswer, engine, present
from course_lib.papers.vdm import build_scheduler
from course_lib.pipelines.frame_condition import FrameCondition, condition_on_frames

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


# 3.1


def in_place(embedding, f):
    embedding *= 1.0001
    embedding += 1
    return (embedding - 1).div(1.0001).repeat_interleave(f, dim=0)


FRAMES = [
    (
        lambda e, f: e.repeat(f, 1),
        "you returned 010101, expected 000111",
    ),
    (lambda e, f: e.repeat(f, 1), "`repeat`, which tiles"),
    (lambda e, f: e.expand(f, *e.shape).reshape(-1, e.shape[1]), "`repeat`, which tiles"),
    (lambda e, f: e[:1].expand(len(e) * f, -1), "only where there is one clip"),
    (lambda e, f: e[-1:].expand(len(e) * f, -1), "the last clip's vector"),
    (lambda e, f: e.flip(0).repeat_interleave(f, dim=0), "The clips run backwards"),
    (lambda e, f: e.repeat_interleave(f, dim=0).roll(1, 0), "First all frames of clip 0"),
    (lambda e, f: e[:, None].expand(-1, f, -1), "That is (b, f, d)"),
    (lambda e, f: e.repeat(f, 1, 1), "That is (f, b, d)"),
    (lambda e, f: e.repeat(1, f), "every vector grew longer"),
    (lambda e, f: e.repeat_interleave(f, dim=1), "every vector grew longer"),
    (lambda e, f: e.repeat_interleave(f), "Without dim"),
    (lambda e, f: e, "num_frames does not enter"),
    (lambda e, f: e.repeat_interleave(len(e), dim=0), "You repeat b times"),
    (lambda e, f: e.repeat(len(e), 1), "You repeat b times"),
    (
        lambda e, f: e.repeat_interleave(f, dim=1).reshape(len(e) * f, -1),
        "the numbers within each vector",
    ),
    (lambda e, f: e.mean(0).expand(len(e) * f, -1), "the mean over the clips"),
    (in_place, "has changed `embedding` itself"),
    (lambda e, f: None, "Is a `return` missing?"),
    (lambda e, f: e.repeat_interleave(f, dim=0) + torch.nan, "is nan"),
]


# 3.5


def guided(
    error=lambda known, x0, mask: (known - x0)[:, :, mask].square().sum(),
    factor=lambda signal, weight: weight * signal / 2,
    by=lambda x, x0: x,
    start=lambda x, x0: x0,
    end=lambda moved, known, mask: torch.where(mask[:, None, None], known, moved),
):
    """A guided estimate with parts to replace."""

    def attempt(denoise, x, known, mask, signal, weight):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoise(x)
            (gradient,) = torch.autograd.grad(error(known, x0, mask), by(x, x0))
        return end((start(x, x0) - factor(signal, weight) * gradient).detach(), known, mask)

    return attempt


def unmoved(moved, known, mask):
    return moved


def others_replaced(moved, known, mask):
    return torch.where(mask[:, None, None], moved, known)


def replaced_first(known, x0, mask):
    return (known - torch.where(mask[:, None, None], known, x0)).square()


def masked_mean(known, x0, mask):
    return ((known - x0) * mask[:, None, None]).square().mean()


def replacement_only(denoise, x, known, mask, signal, weight):
    return torch.where(mask[:, None, None], known, denoise(x))


def without_enabling(denoise, x, known, mask, signal, weight):
    x = x.detach().requires_grad_()
    error = (known - denoise(x))[:, :, mask].square().sum()
    return denoise(x) - weight * signal / 2 * torch.autograd.grad(error, x)[0]


def asking_too_late(denoise, x, known, mask, signal, weight):
    with torch.enable_grad():
        x0 = denoise(x.detach())
        return torch.autograd.grad(
            (known - x0)[:, :, mask].square().sum(), x.detach().requires_grad_()
        )[0]


def by_another_x(denoise, x, known, mask, signal, weight):
    with torch.enable_grad():
        x0, other = denoise(x.detach().requires_grad_()), x.detach().requires_grad_()
        return torch.autograd.grad((known - x0)[:, :, mask].square().sum(), other)[0]


def all_recorded(denoise, x, known, mask, signal, weight):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoise(x)
        (gradient,) = torch.autograd.grad(
            (known - x0)[:, :, mask].square().sum(), x, retain_graph=True
        )
        return torch.where(mask[:, None, None], known, x0 - weight * signal / 2 * gradient)


def backward(own=lambda x: x.detach().requires_grad_()):
    def attempt(denoise, x, known, mask, signal, weight):
        with torch.enable_grad():
            x = own(x)
            x0 = denoise(x)
            (known - x0)[:, :, mask].square().sum().backward()
        return torch.where(mask[:, None, None], known, x0 - weight * signal / 2 * x.grad)

    return attempt


def into_known(denoise, x, known, mask, signal, weight):
    moved = guided(end=unmoved)(denoise, x, known, mask, signal, weight)
    known[:, :, ~mask] = moved[:, :, ~mask]
    return known


def known_to_the_denoiser(denoise, x, known, mask, signal, weight):
    return denoise(x[:, :, mask])


def norm(known, x0, mask):
    return (known - x0)[:, :, mask].norm()


def norms(known, x0, mask):
    return (known - x0)[:, :, mask].flatten(1).norm(dim=1).sum()


ESTIMATES = [
    (guided(factor=lambda s, w: -w * s / 2), "The sign is flipped"),
    (guided(factor=lambda s, w: w * s), "the half is missing"),
    (guided(factor=lambda s, w: w * s / 4), "a factor of 2 of its own"),
    (guided(factor=lambda s, w: w / 2), "Alpha is missing"),
    (guided(factor=lambda s, w: w), "Alpha and the half are missing"),
    (guided(factor=lambda s, w: w / s / 2), "You divide by alpha"),
    (guided(factor=lambda s, w: w * s**2 / 2), "Alpha is in it squared"),
    (guided(factor=lambda s, w: w / 2 * (1 - s**2) ** 0.5), "You take sigma"),
    (guided(factor=lambda s, w: s / 2), "The weight is missing"),
    (guided(factor=lambda s, w: s), "The weight and the half are missing"),
    (guided(factor=lambda s, w: w**2 * s / 2), "The weight is in it twice"),
    (guided(factor=lambda s, w: 0.77 * w * s), "you go 1.54 times as far"),
    (guided(error=lambda k, x0, mask: (k - x0)[:, :, mask].square().mean()), "The error is a mean"),
    (guided(error=masked_mean), "The error is a mean"),
    (
        guided(error=lambda k, x0, mask: (k - x0)[:, :, mask].square().sum() / len(x0)),
        "rows of a batch weaken",
    ),
    (
        guided(error=lambda k, x0, m: (k - x0)[:, :, m].square().mean(), factor=lambda s, w: w * s),
        "is missing too",
    ),
    (guided(error=lambda k, x0, mask: (k - x0).square().sum()), "The error is over all frames"),
    (
        guided(error=lambda k, x0, mask: (k - x0)[:, :, ~mask].square().sum()),
        "over the frames that are not given",
    ),
    (guided(error=norm), "the gradient of the norm"),
    (guided(error=norms), "the gradient of the norm"),
    (guided(error=norm, end=unmoved), "further off. The given frames are not replaced"),
    (
        guided(error=lambda k, x0, mask: replaced_first(k, x0, mask).sum()),
        "replaced before it was taken",
    ),
    (
        guided(error=lambda k, x0, mask: replaced_first(k, x0, mask)[:, :, mask].sum()),
        "before the error is taken",
    ),
    (guided(by=lambda x, x0: x0), "By x0 it is zero there"),
    (
        guided(by=lambda x, x0: x0, end=unmoved),
        "The gradient is by x0, and does not reach the other frames",
    ),
    (guided(start=lambda x, x0: x), "You moved x_t, which is noisy"),
    (guided(end=unmoved), "The given frames are not replaced"),
    (
        guided(factor=lambda s, w: -w * s / 2, end=unmoved),
        "minus the gradient. The given frames are not replaced",
    ),
    (guided(end=others_replaced), "You replaced the other frames"),
    (replacement_only, "no gradient has reached them"),
    (without_enabling, "with torch.enable_grad()"),
    (asking_too_late, "before it goes into denoise"),
    (by_another_x, "not the one that went into denoise"),
    (all_recorded, "they still carry the graph"),
    (backward(lambda x: x.requires_grad_()), "`x_t` itself requires a gradient"),
    (into_known, "has changed `cond_frames` itself"),
    (known_to_the_denoiser, "denoise takes all of x_t"),
    (lambda *_: None, "Is a `return` missing?"),
    (lambda denoise, x, *_: denoise(x)[:, :, 0], "shape is (3, 2, 2, 5)"),
]


MUTANTS = [
    (identifier, *mutant)
    for identifier, mutants in (("3.1", FRAMES), ("3.5", ESTIMATES))
    for mutant in mutants
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_solution_passes(exercise):
    state = torch.get_rng_state()
    assert len(list(exercise.verify(exercise.solution))) >= 2
    assert torch.equal(state, torch.get_rng_state()), (
        "a check leaves the student's random numbers alone"
    )
    assert torch.is_grad_enabled()
    assert len(exercise.hints) >= 3 and 5 <= exercise.minutes <= 15


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)
    assert torch.is_grad_enabled()


def by_func(denoise, x, known, mask, signal, weight):
    gradient = torch.func.grad(lambda x: (known - denoise(x))[:, :, mask].square().sum())(x)
    return torch.where(mask[:, None, None], known, denoise(x) - weight * signal / 2 * gradient)


OTHERS = [
    ("3.5", by_func),
    ("3.1", lambda e, f: e[:, None].expand(-1, f, -1).flatten(0, 1)),
    ("3.1", lambda e, f: e.repeat(1, f).reshape(len(e) * f, -1).float()),
    ("3.1", lambda e, f: [row for row in e for _ in range(f)]),
    ("3.5", backward()),
    ("3.5", lambda denoise, x, *rest: reconstruction_guided_x0(denoise, x.float(), *rest).float()),
    ("3.5", guided(error=lambda known, x0, mask: ((x0 - known) * mask[:, None, None]).norm() ** 2)),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


def stub(*_):
    raise NotImplementedError("Exercise 3.1: your code here")


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_nonsense_never_stops_a_notebook(exercise, monkeypatch):
    shown = []
    monkeypatch.setattr(present, "display", shown.append)
    monkeypatch.setattr(engine, "_progress", {})
    values = (
        None,
        "x",
        [],
        {},
        torch.zeros(0),
        torch.ones(2, 3),
        (1, 2),
        [torch.ones(2), torch.ones(3)],
        1j,
        True,
    )
    given = (
        lambda first, second, *_: first,
        lambda first, *rest: rest[-1],
        lambda *a: a[0](*a[1:]),
        lambda *a: a[1](a[0]),
    )
    for function in (
        *(lambda *_, value=value: value for value in values),
        *given,
        lambda *_: 1 / 0,
        lambda: 1,
        "text",
        7,
    ):
        check(exercise.id, function)
        assert "not right yet" in repr(shown[-1]) or "stopped with an error" in repr(shown[-1])
    for attempt in (None, stub):
        engine._progress.clear()
        check(exercise.id, attempt)
        assert "not attempted yet" in repr(shown[-1])


# The oracles


def test_a_vector_for_each_frame_is_in_the_order_in_which_frames_are_folded():
    video = torch.arange(3.0)[:, None, None, None, None].expand(3, 2, 4, 5, 5)
    frames = video.transpose(1, 2).flatten(0, 1)
    assert torch.equal(repeat_per_frame(torch.arange(3.0)[:, None], 4)[:, 0], frames[:, 0, 0, 0])


def test_the_estimate_is_that_of_the_courses_vdm():
    scheduler = DDIMScheduler.from_config(build_scheduler().config, clip_sample=False)
    x, frames = (torch.randn(2, 3, 4, 2, 2, dtype=torch.float64) for _ in range(2))
    t, mask = torch.tensor([600]), torch.tensor([True, False, False, True])
    level, mix = alpha_sigma_at(scheduler, t), torch.randn(4, 4, dtype=torch.float64)

    def denoise(x):
        return torch.einsum("fg,bcghw->bcfhw", mix, x.sin())

    def model(x, t, cond):
        return convert_prediction(denoise(x), x, level, "sample").as_type("v_prediction")

    condition = FrameCondition(frames, mask.expand(2, -1))
    pred = condition_on_frames(model, scheduler, condition, 3.0)(x, t, None)
    mine = reconstruction_guided_x0(denoise, x, frames, mask, level.alpha.item(), 3.0)
    torch.testing.assert_close(mine, convert_prediction(pred, x, level, "v_prediction").x0)
