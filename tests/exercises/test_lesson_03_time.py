"""Lesson 03's exercises 3.2 and 3.3, rows of frames and masks: mistakes get their own message."""

import pytest
import torch

from course_lib.exercises.lesson_03 import EXERCISES, apply_over_frames, joint_attention_mask
from course_lib.lab.checks import IncorrectAnswer
from course_lib.nn.attention import TemporalAttention, joint_training_mask

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


# 3.2


def columns(video):
    return video.permute(0, 3, 4, 2, 1).flatten(0, 2)


def put_back(out, video):
    b, c, f, h, w = video.shape
    return out.reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2)


def rows(enter=columns, back=put_back):
    """Attention over time with parts to replace."""
    return lambda video, attend: back(attend(enter(video)), video)


def cut(*order):
    """Rows of the right shape, after a permute to `order`."""
    return lambda video: video.permute(order).reshape(-1, video.shape[2], video.shape[1])


def in_order(names, *order):
    """The way back: rows and tokens read as `names`, such as "bhwfc", then a permute."""

    def back(out, video):
        sizes = dict(zip("bcfhw", video.shape, strict=True))
        return out.reshape([sizes[name] for name in names]).permute(order)

    return back


def over_space(video, attend):
    tokens = video.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)
    return attend(tokens).reshape(*video.shape)


def first_clip_only(video, attend):
    first = apply_over_frames(video[:1], attend)
    return torch.cat([first, video[1:]])


def in_place(video, attend):
    video.copy_(apply_over_frames(video, attend))
    return video


def pixel_by_pixel(video, attend):
    out = torch.empty_like(video)
    for x in range(video.shape[4]):
        for y in range(video.shape[3]):
            out[..., y, x] = attend(video[..., y, x].transpose(1, 2)).transpose(1, 2)
    return out


ROWS = [
    (
        rows(cut(0, 1, 2, 3, 4)),
        "Row 0 that attend got has frame 0 at (0, 0), frame 0 at (0, 3), frame 0 at (1, 0)",
    ),
    (rows(cut(0, 1, 2, 3, 4)), "A reshape (or view) moves no number"),
    (
        rows(cut(0, 1, 2, 3, 4), lambda out, video: out.reshape(video.shape)),
        "A reshape (or view) moves no number",
    ),
    (rows(cut(0, 2, 1, 3, 4)), "h and w are still last"),
    (rows(cut(0, 2, 3, 4, 1)), "f stands before h and w"),
    (rows(cut(0, 3, 4, 1, 2)), "c stands before f"),
    (rows(lambda video: columns(video).flip(1)), "has frame 3 at (0, 0), frame 2 at (0, 0)"),
    (rows(lambda video: columns(video) / 2), "no number of the video"),
    (rows(lambda video: columns(video).mT), "channels and frames are swapped"),
    (over_space, "30 pixels are the sequence, and the frames are rows"),
    (rows(lambda video: video.flatten(2).mT), "all 120 pixels of all frames are one sequence"),
    (
        rows(lambda video: columns(video).unflatten(0, (-1, 30))),
        "fold clips and pixels into one axis of rows",
    ),
    (
        rows(lambda video: columns(video).transpose(0, 1)),
        "the sequence is to be the frames of one pixel",
    ),
    (lambda video, attend: video, "attend was never called"),
    (first_clip_only, "never given pixel (0, 0) of clip 1"),
    (
        lambda video, attend: apply_over_frames(video[..., :-1], attend),
        "never given pixel (0, 5) of clip 0",
    ),
    (rows(back=lambda out, video: out), "these are still the rows of attend"),
    (rows(back=in_order("bhwfc", 0, 1, 2, 3, 4)), "a permute is missing"),
    (rows(back=lambda out, video: out.reshape(video.shape)), "a bare reshape scrambles"),
    (rows(back=in_order("bwhfc", 0, 4, 3, 2, 1)), "h and w are swapped"),
    (rows(lambda video: columns(video.mT)), "h and w are swapped"),
    (rows(back=in_order("bhwcf", 0, 3, 4, 1, 2)), "c and f are swapped"),
    (rows(back=in_order("bfhwc", 0, 4, 1, 2, 3)), "you read the rows as frames"),
    (rows(back=in_order("bfchw", 0, 2, 1, 3, 4)), "you read the rows as frames"),
    (rows(back=in_order("hwbfc", 2, 4, 3, 0, 1)), "b comes first"),
    (rows(back=in_order("bhwfc", 0, 4, 3, 2, 1)), "right values, but axes are swapped"),
    (lambda video, attend: apply_over_frames(video, attend) + video, "the residual"),
    (
        lambda video, attend: (apply_over_frames(video, attend), video)[1],
        "attend's output is not in it",
    ),
    (in_place, "has changed `video` itself"),
    (lambda video, attend: (apply_over_frames(video, attend), None)[1], "Is a `return` missing?"),
]


# 3.3


def eye(is_image):
    return torch.eye(is_image.shape[1], dtype=torch.bool)


def pairs(combine, diagonal=eye):
    """A mask from whether query and key belong to the video."""
    return lambda is_image: (
        combine(~is_image[:, :, None], ~is_image[:, None]).expand(
            *is_image.shape, is_image.shape[1]
        )
        | diagonal(is_image)
    )


def no_diagonal(is_image):
    return torch.zeros(1, dtype=torch.bool)


def as_scores(is_image):
    return torch.zeros(joint_training_mask(is_image).shape).masked_fill(
        ~joint_training_mask(is_image), -torch.inf
    )


def by_where(is_image):
    f = is_image.shape[1]
    return [
        [[i == j or not (row[i] or row[j]) for j in range(f)] for i in range(f)]
        for row in is_image.tolist()
    ]


def apart_in_place(is_image):
    mask = joint_training_mask(is_image)
    is_image.logical_not_()
    return mask


MASKS = [
    (
        pairs(lambda query, key: query & key, no_diagonal),
        "in clip 0, frame 3, an image, may not attend to itself",
    ),
    (pairs(lambda query, key: query & key, no_diagonal), "the softmax of such a row is nan"),
    (pairs(lambda query, key: query == key), "Images attend to each other"),
    (pairs(lambda query, key: query), "Frames of the video attend to images"),
    (
        pairs(lambda query, key: key),
        "frame 3, an image, may attend to frame 0, a frame of the video. Images attend to",
    ),
    (
        pairs(lambda query, key: query, no_diagonal),
        "the video attend to images: both, query and key, have",
    ),
    (pairs(lambda query, key: query, no_diagonal), "not even to itself"),
    (pairs(lambda query, key: key, no_diagonal), "And they do not attend to themselves"),
    (pairs(lambda query, key: query | key), "`and`, not `or`"),
    (pairs(lambda query, key: query & ~query), "No frame attends to another"),
    (pairs(lambda query, key: query | ~query), "`is_image` does not enter"),
    (
        lambda is_image: joint_training_mask(is_image[:1]).expand(len(is_image), -1, -1),
        "That is the first clip's mask",
    ),
    (lambda is_image: joint_training_mask(is_image) & ~eye(is_image), "No frame attends to itself"),
    (
        lambda is_image: joint_training_mask(is_image) & ~(eye(is_image) & ~is_image[:, None]),
        "Frames of the video do not attend to themselves",
    ),
    (lambda is_image: ~joint_training_mask(is_image), "Inverted: True is to mean"),
    (
        lambda is_image: is_image[:, :, None] | is_image[:, None],
        "(In torch's nn.MultiheadAttention, True hides.) An image attends",
    ),
    (
        lambda is_image: is_image[:, :, None] ^ is_image[:, None],
        "True hides.) Images attend to each other",
    ),
    (
        lambda is_image: joint_training_mask(is_image.flip(1)),
        "by your mask, in clip 0, frame 0, a frame of the video, may not attend to",
    ),
    (as_scores, "0 and -inf are what is added to the scores"),
    (
        lambda is_image: joint_training_mask(is_image).float(),
        "a mask of numbers would be added to the scores",
    ),
    (lambda is_image: joint_training_mask(is_image).long(), "~ turns 1 into -2"),
    (lambda is_image: joint_training_mask(is_image)[0], "one mask (5, 5) for 2 clips"),
    (lambda is_image: joint_training_mask(is_image)[:, None], "the axis of heads comes later"),
    (lambda is_image: is_image, "shape is (2, 5), expected (2, 5, 5)"),
    (apart_in_place, "has changed `is_image` itself"),
    (lambda is_image: None, "Is a `return` missing?"),
]


ALL = {"3.2": ROWS, "3.3": MASKS}
MUTANTS = [(identifier, *mutant) for identifier, mutants in ALL.items() for mutant in mutants]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


OTHERS = [
    ("3.2", pixel_by_pixel),
    ("3.2", lambda video, attend: apply_over_frames(video.mT, attend).mT.float()),
    (
        "3.2",
        lambda video, attend: torch.cat(
            [apply_over_frames(clip, attend) for clip in video.split(1)]
        ),
    ),
    ("3.3", by_where),
    ("3.3", lambda is_image: joint_training_mask(is_image).numpy()),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


# The oracles


def test_over_time_is_what_the_layer_does():
    layer = TemporalAttention(32, positions="none").double()
    torch.nn.init.normal_(layer.to_out.weight)
    video = torch.randn(2, 32, 3, 2, 4, dtype=torch.float64)

    def attend(tokens):
        return layer(tokens.permute(0, 2, 1)[..., None, None])[..., 0, 0].permute(0, 2, 1)

    torch.testing.assert_close(apply_over_frames(video, attend), layer(video))


def test_the_mask_is_that_of_the_layer():
    is_image = torch.rand(5, 6) < 0.5
    assert torch.equal(joint_attention_mask(is_image), joint_training_mask(is_image))
