"""Lesson 00's exercises: solutions pass, every likely mistake gets its own message."""

import pytest
import torch
from einops import rearrange

from course_lib.exercises.lesson_00 import EXERCISES
from course_lib.lab.checks import IncorrectAnswer

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def folded_by_reshape(function, video):
    b, c, f, h, w = video.shape
    return function(video.reshape(b * f, c, h, w)).reshape(b, c, f, h, w)


def folded_frames_first(function, video):
    images = function(rearrange(video, "b c f h w -> (f b) c h w"))
    return rearrange(images, "(f b) c h w -> b c f h w", b=len(video))


def unfolded_frames_first(function, video):
    images = function(rearrange(video, "b c f h w -> (b f) c h w"))
    return rearrange(images, "(f b) c h w -> b c f h w", b=len(video))


def unfolded_by_reshape(function, video):
    b, c, f, h, w = video.shape
    return function(rearrange(video, "b c f h w -> (b f) c h w")).reshape(b, c, f, h, w)


def not_unfolded(function, video):
    return function(rearrange(video, "b c f h w -> (b f) c h w"))


def one_call_per_frame(function, video):
    return torch.stack([function(frame) for frame in video.unbind(2)], dim=2)


def old_sizes(function, video):
    b, c, f, h, w = video.shape
    images = function(video.transpose(1, 2).reshape(b * f, c, h, w))
    return images.reshape(b, f, c, h, w).transpose(1, 2)


def columns(mask):
    weight = mask.float()
    return (weight * torch.arange(mask.shape[-1])).sum((-2, -1)) / weight.sum((-2, -1))  # (b, 1, f)


def mean_step(mask):
    return columns(mask).diff(dim=-1).mean((1, 2))


def over_the_whole_clip(mask):
    place = (mask * torch.arange(mask.shape[-1])).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4))
    return place - place


def tinted(video, colour, repeat, unfold):
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)
    frames = (frames + repeat(colour, f)[:, :, None, None]).clamp(-1, 1)
    return unfold(frames, b, f)


def tile(colour, f):
    return colour.repeat(f, 1)


def each(colour, f):
    return colour.repeat_interleave(f, dim=0)


def frames_first(frames, b, f):
    return frames.reshape(f, b, *frames.shape[1:]).permute(1, 2, 0, 3, 4)


def clips_first(frames, b, f):
    return frames.reshape(b, f, *frames.shape[1:]).transpose(1, 2)


MUTANTS = [
    ("0.1", folded_by_reshape, "reshape moves no number"),
    ("0.1", folded_frames_first, "in the order (f b)"),
    ("0.1", unfolded_frames_first, "you read the images as (f, b)"),
    ("0.1", unfolded_by_reshape, "reshape cuts the axes in the wrong places"),
    ("0.1", not_unfolded, "still in the batch"),
    ("0.1", one_call_per_frame, "called 4 times"),
    ("0.1", old_sizes, "Take c, h and w from what comes out"),
    (
        "0.1",
        lambda function, video: function(video),
        "it was given: tensor of shape (2, 3, 4, 2, 3)",
    ),
    ("0.1", lambda function, video: 2 * video, "was never called"),
    ("0.2", lambda p: p.reshape(3, *p.shape[:3]) / 127.5 - 1, "the pixels are scrambled"),
    ("0.2", lambda p: p.permute(0, 3, 1, 2) / 127.5 - 1, "axes are swapped"),
    ("0.2", lambda p: p.permute(3, 0, 2, 1) / 127.5 - 1, "axes are swapped"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2), "still uint8"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2).float(), "from 0 to 255"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2) / 255, "from 0 to 1"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2) / 127.5, "Subtract 1"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2) / 128 - 1, "White becomes 0.992"),
    ("0.2", lambda p: (p.permute(3, 0, 1, 2) * 2 - 255) / 255, "uint8 wraps round"),
    ("0.2", lambda p: p.permute(3, 0, 1, 2).double() / 127.5 - 1, "dtype is torch.float64"),
    ("0.2", lambda pixels: pixels.permute(3, 0, 1, 2) * 2 / 255 - 1, "uint8 wraps round"),
    ("0.3", lambda mask: mean_step(mask.transpose(-1, -2)), "vertical velocity"),
    ("0.3", lambda mask: mean_step(mask) * (mask.shape[2] - 1) / mask.shape[2], "you divided by 8"),
    (
        "0.3",
        lambda mask: (columns(mask)[..., -1] - columns(mask)[..., 0])[:, 0],
        "the way from the first to the last frame",
    ),
    ("0.3", lambda mask: -mean_step(mask), "The sign is flipped"),
    ("0.3", lambda mask: mean_step(mask).abs(), "That is the speed"),
    ("0.3", lambda mask: mean_step(mask) / 32, "coordinates from -1 to 1"),
    ("0.3", over_the_whole_clip, "in each frame separately"),
    ("0.3", lambda mask: mean_step(mask).mean(), "shape is (), expected (4,)"),
    ("0.3", lambda mask: columns(mask).diff(dim=-1).mean(-1), "shape is (4, 1), expected (4,)"),
    (
        "0.4",
        lambda video, colour: tinted(video, colour, tile, frames_first),
        "frame 1 of clip 0 is now what was",
    ),
    (
        "0.4",
        lambda video, colour: tinted(video, colour, each, frames_first),
        "frame 1 of clip 0 is now what was",
    ),
    (
        "0.4",
        lambda video, colour: tinted(video, colour, tile, clips_first),
        "has the colour of clip 1",
    ),
    ("0.4", lambda video, colour: video, "a batch of one clip"),
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_solution_passes(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 2
    assert len(exercise.hints) == 3 and 1 <= exercise.minutes <= 5


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def test_every_exercise_has_two_mistakes():
    assert all(sum(mutant[0] == id for mutant in MUTANTS) >= 2 for id in BY_ID)


def test_other_right_answers_pass():
    def with_a_loop_over_clips(function, video):
        images = function(torch.cat([clip.transpose(0, 1) for clip in video]))
        return torch.stack([clip.transpose(0, 1) for clip in images.split(video.shape[2])])

    def middle_of_the_box(mask):
        taken = mask.any(-2).int()  # (b, 1, f, w)
        left, right = taken.argmax(-1), mask.shape[-1] - 1 - taken.flip(-1).argmax(-1)
        return ((left + right) / 2).diff(dim=-1).mean((1, 2))

    for id, attempt in (("0.1", with_a_loop_over_clips), ("0.3", middle_of_the_box)):
        assert list(BY_ID[id].verify(attempt))
    assert list(
        BY_ID["0.2"].verify(lambda p: torch.einsum("fhwc->cfhw", (p.float() - 127.5) / 127.5))
    )


def test_every_uint8_accident_is_seen():
    for accident in (lambda p: p * 2 - 1, lambda p: (p - 128) / 127.5):
        with pytest.raises(IncorrectAnswer):
            list(BY_ID["0.2"].verify(lambda p, accident=accident: accident(p.permute(3, 0, 1, 2))))
