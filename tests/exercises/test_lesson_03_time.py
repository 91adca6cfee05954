"""Lesson 03's exercises 3.2 and 3.3, rows in time and the mask: every mistake gets the message meant for it."""

import pytest
import torch

from course_lib.lab.checks import Wrong
from course_lib.exercises.lesson_03 import EXERCISES, may_look, over_time
from course_lib.nn.attention import TemporalAttention, apart

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
    first = over_time(video[:1], attend)
    return torch.cat([first, video[1:]])


def in_place(video, attend):
    video.copy_(over_time(video, attend))
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
        "Row 0 that attend got holds frame 0 at (0, 0), frame 0 at (0, 3), frame 0 at (1, 0)",
    ),
    (rows(cut(0, 1, 2, 3, 4)), "A reshape (or view) moves no number"),
    (
        rows(cut(0, 1, 2, 3, 4), lambda out, video: out.reshape(video.shape)),
        "A reshape (or view) moves no number",
    ),
    (rows(cut(0, 2, 1, 3, 4)), "h and w are still last"),
    (rows(cut(0, 2, 3, 4, 1)), "f stands before h and w"),
    (rows(cut(0, 3, 4, 1, 2)), "c stands before f"),
    (rows(lambda video: columns(video).flip(1)), "holds frame 3 at (0, 0), frame 2 at (0, 0)"),
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
        lambda video, attend: over_time(video[..., :-1], attend),
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
    (lambda video, attend: over_time(video, attend) + video, "the residual"),
    (lambda video, attend: (over_time(video, attend), video)[1], "attend's answer is not in it"),
    (in_place, "has changed `video` itself"),
    (lambda video, attend: (over_time(video, attend), None)[1], "Is a `return` missing?"),
]


# 3.3


def eye(alone):
    return torch.eye(alone.shape[1], dtype=torch.bool)


def pairs(combine, diagonal=eye):
    """A mask from whether who looks, and who is seen, belongs to the clip."""
    return lambda alone: (
        combine(~alone[:, :, None], ~alone[:, None]).expand(*alone.shape, alone.shape[1])
        | diagonal(alone)
    )


def no_diagonal(alone):
    return torch.zeros(1, dtype=torch.bool)


def as_scores(alone):
    return torch.zeros(apart(alone).shape).masked_fill(~apart(alone), -torch.inf)


def by_where(alone):
    f = alone.shape[1]
    return [
        [[i == j or not (row[i] or row[j]) for j in range(f)] for i in range(f)]
        for row in alone.tolist()
    ]


def apart_in_place(alone):
    mask = apart(alone)
    alone.logical_not_()
    return mask


MASKS = [
    (
        pairs(lambda looks, seen: looks & seen, no_diagonal),
        "in clip 0, frame 3, a picture, may not look at itself",
    ),
    (pairs(lambda looks, seen: looks & seen, no_diagonal), "the softmax of such a row is nan"),
    (pairs(lambda looks, seen: looks == seen), "Pictures see each other"),
    (pairs(lambda looks, seen: looks), "Frames of the clip look at pictures"),
    (
        pairs(lambda looks, seen: seen),
        "frame 3, a picture, may look at frame 0, a frame of the clip. Pictures look at",
    ),
    (
        pairs(lambda looks, seen: looks, no_diagonal),
        "the clip look at pictures: both, who looks and who is seen, have",
    ),
    (pairs(lambda looks, seen: looks, no_diagonal), "not even itself"),
    (pairs(lambda looks, seen: seen, no_diagonal), "And they do not see themselves"),
    (pairs(lambda looks, seen: looks | seen), "`and`, not `or`"),
    (pairs(lambda looks, seen: looks & ~looks), "Nobody sees anybody else"),
    (pairs(lambda looks, seen: looks | ~looks), "`alone` does not enter"),
    (lambda alone: apart(alone[:1]).expand(len(alone), -1, -1), "That is the first clip's mask"),
    (lambda alone: apart(alone) & ~eye(alone), "No frame sees itself"),
    (
        lambda alone: apart(alone) & ~(eye(alone) & ~alone[:, None]),
        "Frames of the clip do not see themselves",
    ),
    (lambda alone: ~apart(alone), "Inverted: True is to mean"),
    (
        lambda alone: alone[:, :, None] | alone[:, None],
        "(In torch's nn.MultiheadAttention, True hides.) A picture sees",
    ),
    (lambda alone: alone[:, :, None] ^ alone[:, None], "True hides.) Pictures see each other"),
    (
        lambda alone: apart(alone.flip(1)),
        "by your mask, in clip 0, frame 0, a frame of the clip, may not look at",
    ),
    (as_scores, "0 and -inf are what is added to the scores"),
    (lambda alone: apart(alone).float(), "a mask of numbers would be added to the scores"),
    (lambda alone: apart(alone).long(), "~ turns 1 into -2"),
    (lambda alone: apart(alone)[0], "one mask (5, 5) for 2 clips"),
    (lambda alone: apart(alone)[:, None], "the axis of heads comes later"),
    (lambda alone: alone, "shape is (2, 5), expected (2, 5, 5)"),
    (apart_in_place, "has changed `alone` itself"),
    (lambda alone: None, "Is a `return` missing?"),
]


ALL = {"3.2": ROWS, "3.3": MASKS}
MUTANTS = [(identifier, *mutant) for identifier, mutants in ALL.items() for mutant in mutants]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(Wrong) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


OTHERS = [
    ("3.2", pixel_by_pixel),
    ("3.2", lambda video, attend: over_time(video.mT, attend).mT.float()),
    ("3.2", lambda video, attend: torch.cat([over_time(clip, attend) for clip in video.split(1)])),
    ("3.3", by_where),
    ("3.3", lambda alone: apart(alone).numpy()),
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

    torch.testing.assert_close(over_time(video, attend), layer(video))


def test_the_mask_is_that_of_the_layer():
    alone = torch.rand(5, 6) < 0.5
    assert torch.equal(may_look(alone), apart(alone))
