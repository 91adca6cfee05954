"""Lesson 01's exercises: solutions pass, every likely mistake gets its own message."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.exercises.lesson_01 import EXERCISES, causal_pseudo3d, inflate_causal, motion_kernel
from course_lib.lab.checks import IncorrectAnswer
from course_lib.nn.convolution import inflate_kernel

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def _zip(*lists):
    return zip(*lists, strict=True)


def padded_by_the_wrong_kernel(video, spatial, temporal):
    d = spatial.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, d - 1, 0)), temporal[:, :, :, None, None])


def padded_on_both_sides(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, (t - 1) // 2, t // 2)), temporal[:, :, :, None, None])


def padded_after_the_end(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, 0, t - 1)), temporal[:, :, :, None, None])


def padded_with_frame_zero(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    video = torch.cat([video[:, :, :1]] * (t - 1) + [video], dim=2)
    return F.conv3d(video, temporal[:, :, :, None, None])


def own_stride_counted(kernels, strides):
    field, step = 1, 1
    for kernel, stride in _zip(kernels, strides):
        step *= stride
        field += (kernel - 1) * step
    return field


MUTANTS = [
    (
        "1.1",
        lambda n, k, s, p: tuple((a + d - b) // c + 1 for a, b, c, d in _zip(n, k, s, p)),
        "added on both sides",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a + 2 * d - b) / c + 1 for a, b, c, d in _zip(n, k, s, p)),
        "half a window",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a + 2 * d - b) // c for a, b, c, d in _zip(n, k, s, p)),
        "the output shape",
    ),
    ("1.1", lambda n, k, s, p: (n[0] + 2 * p[0] - k[0]) // s[0] + 1, "expected three numbers"),
    ("1.4", lambda i, o, t, d: (t * d * d * i * o) // (d * d * o + t * i), "d² belongs to Cin"),
    ("1.4", lambda i, o, t, d: -(-(t * d * d * i * o) // (d * d * i + t * o)), "round down"),
    ("1.4", lambda i, o, t, d: (t * d * d * i * o) / (d * d * i + t * o), "channels come whole"),
    ("1.4", lambda i, o, t, d: (t * d * i * o) // (d * i + t * o), "M "),
    (
        "1.2",
        lambda kernels, strides: 1 + sum(k - 1 for k in kernels),
        "every later layer's step longer",
    ),
    ("1.2", own_stride_counted, "not its own"),
    ("1.2", lambda kernels, strides: sum(kernels), "the number of frames"),
    ("1.3", lambda vx, vy: motion_kernel(-vx, -vy), "a sign is the wrong way round"),
    ("1.3", lambda vx, vy: motion_kernel(vy, vx), "x and y are swapped"),
    (
        "1.3",
        lambda vx, vy: motion_kernel(vx, vy)[:, :, 2:3].expand(-1, -1, 5, -1, -1),
        "same in every frame",
    ),
    ("1.3", lambda vx, vy: motion_kernel(vx, vy)[0, 0], "must be a tensor"),
    ("1.3", lambda vx, vy: motion_kernel(0.4 * vx, 0.4 * vy), "reaches 2"),
    (
        "1.3",
        lambda vx, vy: motion_kernel((vx > 0) - (vx < 0), (vy > 0) - (vy < 0)),
        "as far as the velocity says",
    ),
    ("1.3", lambda vx, vy: motion_kernel(vx, vy if vx == 0 else 0), "in x and in y"),
    ("1.4", lambda i, o, t, d: round(t * d * d * i * o / (d * d * i + t * o)), "round down"),
    ("1.5", lambda w, f: inflate_causal(w, f).flip(2), "sees only the past"),
    ("1.5", lambda w, f: inflate_kernel(w, f if f % 2 else f + 1, "center"), "sees the future"),
    ("1.5", lambda w, f: inflate_kernel(w, f, "mean"), "a ghost on a moving one"),
    ("1.5", lambda w, f: inflate_causal(w, f).transpose(1, 2), "the kernel"),
    ("1.6", padded_by_the_wrong_kernel, "frames come out of 7"),
    ("1.6", padded_on_both_sides, "it sees the future"),
    ("1.6", padded_after_the_end, "it sees the future"),
    ("1.6", padded_with_frame_zero, "the output"),
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_reference_solution_passes(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 1
    assert exercise.hints and exercise.minutes >= 1


@pytest.mark.parametrize(("id", "mutant", "message"), MUTANTS)
def test_a_mistake_gets_its_message(id, mutant, message):
    with pytest.raises(IncorrectAnswer) as caught:
        list(BY_ID[id].verify(mutant))
    assert message in str(caught.value)


def test_every_exercise_has_two_mutants():
    for id in BY_ID:
        assert sum(mutant[0] == id for mutant in MUTANTS) >= 2


def test_the_causal_kernel_equals_the_image_convolution_on_every_frame():
    weight, video = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 5, 8, 8)
    frames = [F.conv2d(frame, weight, padding=1) for frame in video.unbind(2)]
    for kernel_t in (1, 3, 4):
        padded = torch.cat([video[:, :, :1]] * (kernel_t - 1) + [video], dim=2)
        out = F.conv3d(padded, inflate_causal(weight, kernel_t), padding=(0, 1, 1))
        torch.testing.assert_close(out, torch.stack(frames, dim=2))


def test_the_bug_hides_where_both_kernels_have_the_same_size():
    """That is what makes it a good bug: the usual 3x3 and 3 taps work."""
    video, spatial, temporal = (
        torch.randn(1, 2, 4, 6, 6),
        torch.randn(3, 2, 3, 3),
        torch.randn(2, 3, 3),
    )
    expected = causal_pseudo3d(video, spatial, temporal)
    torch.testing.assert_close(padded_by_the_wrong_kernel(video, spatial, temporal), expected)
