"""Counts, indices, seeds and names that the world does not have are refused by name."""

import inspect
import math

import numpy as np
import pytest

from course_lib.world import (
    Sampler,
    Scene,
    World,
    caption,
    image_caption,
    render,
    subset_of,
)
from course_lib.world.backgrounds import paint
from course_lib.world.hashing import hash_u64, hash_uniform
from course_lib.world.motions import check_timing, path
from course_lib.world.sprites import draw_shape, signed_distance
from course_lib.world.subjects import is_rotation_symmetric, is_shape

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [1.5, 8.0, NAN, INF, 0, -1, "8", True, None])
def test_sizes_and_frames_are_counts(value):
    # The type checker of the tests would refuse some of them as well
    with pytest.raises(ValueError, match="^size: expected an integer of at least 8, got"):
        inspect.unwrap(render)([Scene("tiger")], size=value)
    with pytest.raises(ValueError, match="^num_frames: expected an integer of at least 1, got"):
        inspect.unwrap(check_timing)(value if value != 8.0 else 2.0, 8)


@pytest.mark.parametrize("value", [0, -1, 0.0, -8.0, NAN, INF])
def test_fps_is_positive(value):
    with pytest.raises(ValueError, match="^fps: expected a finite number above 0, got"):
        World(fps=value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("length", 0), ("length", -1), ("num_frames", 0), ("num_frames", -1), ("size", -8)],
)
def test_a_world_refuses_counts_below_one(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: expected an integer of at least"):
        World(**{argument: value})


@pytest.mark.parametrize("value", [1.5, 2.0, NAN, -1, 2**63, "0", None, True])
def test_a_seed_is_an_integer(value):
    with pytest.raises(ValueError, match="^seed: expected an integer from 0 to"):
        inspect.unwrap(Sampler.__init__)(Sampler.__new__(Sampler), seed=value)


@pytest.mark.parametrize("value", [1.5, 2.0, NAN, -1, 2**32, "0", None, True])
def test_a_variant_is_an_integer(value):
    scene = Scene("tiger")
    object.__setattr__(scene, "variant", value)
    with pytest.raises(ValueError, match="^variant: expected an integer from 0 to 4294967295"):
        scene.__post_init__()


@pytest.mark.parametrize("value", [1.5, 1.0, NAN, -1, 4, "0", None, True])
@pytest.mark.parametrize("describe", [caption, image_caption])
def test_a_paraphrase_is_an_index(describe, value):
    captions = inspect.getmodule(inspect.unwrap(caption))
    with pytest.raises(ValueError, match="^paraphrase: expected an integer from 0 to 3, got"):
        inspect.unwrap(captions._fill)(captions.VIDEO_TEMPLATES, Scene("tiger"), value)
    if type(value) is int:
        with pytest.raises(ValueError, match="^paraphrase: "):
            describe(Scene("tiger"), value)


@pytest.mark.parametrize(
    ("subject", "motion", "message"),
    [
        ("tigre", "flying", "subject: expected one of tiger, .*, got 'tigre'"),
        ("tigre", "growing", "subject: expected one of tiger"),
        ("Tiger", "growing", "subject: expected one of tiger"),
        ("", "growing", "subject: expected one of tiger"),
        ("tiger", "flying", "motion: expected one of standing still, .*, got 'flying'"),
        ("fox", "flying", "motion: expected one of standing still"),
    ],
)
def test_an_unknown_name_has_no_subset(subject, motion, message):
    for _ in range(2):  # the cache keeps no errors
        with pytest.raises(ValueError, match=message):
            subset_of(subject, motion)


@pytest.mark.parametrize("question", [is_shape, is_rotation_symmetric])
def test_a_question_about_an_unknown_subject_is_refused(question):
    for name in ("tigre", "red hexagon", "grey circle", "circle", ""):
        with pytest.raises(ValueError, match="subject: expected one of tiger"):
            question(name)
    assert question("red circle") and not question("tiger")


@pytest.mark.parametrize("time_offset", [NAN, INF, [0.0, 0.0], [[0.0]], [NAN, 0.0, 0.0]])
def test_time_offsets_are_finite_and_one_per_clip(time_offset):
    with pytest.raises(ValueError, match="^time_offset: expected one finite time"):
        inspect.unwrap(path)([0, 1, 2], [0, 2, 4], 4, 8, np.asarray(time_offset))


@pytest.mark.parametrize("motion", [[-1], [9], [0, 99]])
def test_an_index_of_no_motion_is_refused(motion):
    with pytest.raises(ValueError, match="^motion: expected indices into MOTIONS"):
        path(np.array(motion), np.zeros(len(motion), dtype=int), 4, 8)


@pytest.mark.parametrize("background", [[-1], [10], [0, 99]])
def test_an_index_of_no_background_is_refused(background):
    with pytest.raises(ValueError, match="^background: expected indices into BACKGROUNDS"):
        paint(np.array(background), np.zeros(len(background), dtype=int), 8)


@pytest.mark.parametrize("key", [1.5, -1, NAN, 2**64, True, np.array([0.0]), np.array([1, -1])])
def test_a_key_is_a_non_negative_integer(key):
    for function in (inspect.unwrap(hash_u64), lambda k: inspect.unwrap(hash_uniform)("x", k)):
        with pytest.raises((ValueError, TypeError), match="keys"):
            function(key)


@pytest.mark.parametrize("rgb", [(255, 0, 0), (-0.1, 0, 0), (0, NAN, 0)])
def test_a_colour_is_in_0_to_1(rgb):
    with pytest.raises(ValueError, match="rgb: expected a finite number at least 0 and at most 1"):
        inspect.unwrap(draw_shape)("circle", rgb)


def test_the_distance_of_an_unknown_shape():
    with pytest.raises(ValueError, match="shape: expected one of circle, .*, got 'hexagon'"):
        signed_distance("hexagon", np.zeros(1), np.zeros(1))
