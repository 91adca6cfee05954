"""Which scenes exist, splits that cannot overlap, and captions that can be parsed back."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.world import (
    BACKGROUNDS,
    BASE_EMOJI,
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    MOTIONS,
    NOVEL_EMOJI,
    SHAPES,
    SUBJECTS,
    Sampler,
    Scene,
    World,
    caption,
    image_caption,
    parse_caption,
    subset_of,
)
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.hashing import hash_u64, hash_uniform
from course_lib.world.subjects import is_shape

every_scene = st.builds(
    lambda subject, motion, background, variant: (subject, motion, background, variant),
    st.sampled_from(SUBJECTS),
    st.sampled_from(MOTIONS),
    st.sampled_from(BACKGROUNDS),
    st.integers(0, 2**32 - 1),
).filter(lambda s: not (s[1] == "spinning" and s[0].endswith((" circle", " ring"))))


def test_number_of_subjects():
    assert len(BASE_EMOJI) >= 64 and len(NOVEL_EMOJI) == 12 and "backpack" in NOVEL_EMOJI
    assert len(SHAPES) == 6 and len(COLOURS) == 8 and len(BACKGROUNDS) >= 8 and len(MOTIONS) == 9
    assert len(set(SUBJECTS)) == len(SUBJECTS) == 76 + 48


def test_a_tenth_of_the_pairs_is_held_out():
    assert len(HELD_OUT_SHAPES) == round(0.1 * 48)
    pairs = 9 * (64 + 48) - 16  # 8 circles and 8 rings do not spin
    assert len(HELD_OUT_PAIRS) == round(0.1 * pairs)
    assert {motion for _, motion in HELD_OUT_PAIRS} == set(MOTIONS)
    # every subject keeps a motion in the base subset
    for subject in BASE_EMOJI:
        assert any(subset_of(subject, motion) == "base" for motion in MOTIONS)


def test_splitmix64_matches_its_published_first_outputs():
    # the reference generator with seed 0: state += gamma, then the finaliser, gives these
    def reference(seed, count):
        state, out = seed, []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            out.append(z ^ (z >> 31))
        return out

    assert reference(0, 1) == [0xE220A8397B1DCDAF]  # known answer
    assert int(hash_u64(0)[0]) == 0xE220A8397B1DCDAF


def test_uniform_is_uniform_and_its_draws_are_independent():
    index = np.arange(20000)
    a, b = hash_uniform("a", index), hash_uniform("b", index)
    assert 0 <= a.min() and a.max() < 1
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03 and abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


@given(every_scene, st.integers(0, len(VIDEO_TEMPLATES) - 1))
def test_every_caption_can_be_parsed_back(values, paraphrase):
    scene = Scene(*values)
    expected = {"subject": scene.subject, "motion": scene.motion, "background": scene.background}
    assert parse_caption(caption(scene, paraphrase)) == expected
    assert parse_caption(image_caption(scene, paraphrase)) == expected | {"motion": None}


def test_articles():
    for subject in SUBJECTS:
        article = re.match(r"(an?) ", caption(Scene(subject))).group(1)
        has_vowel = subject.startswith(
            ("ant", "ambulance", "airplane", "alarm", "elephant", "octopus", "owl", "orange")
        )
        assert (article == "an") == (has_vowel or subject.startswith("umbrella")), caption(
            Scene(subject)
        )


def test_bad_captions_raise():
    with pytest.raises(ValueError, match="paraphrase: expected an integer from 0 to 3, got 4"):
        caption(Scene("tiger"), 4)
    assert parse_caption("a  Tiger on a night   sky background")["background"] == "night sky"
    with pytest.raises(ValueError, match="text: expected at most one subject, got rabbit, tiger"):
        parse_caption("a tiger and a rabbit")
    assert len(IMAGE_TEMPLATES) == len(VIDEO_TEMPLATES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("tigre",), "subject: expected one of tiger, .*, got 'tigre'"),
        (("tiger", "flying"), "motion: expected one of standing still, .*, got 'flying'"),
        (("tiger", "growing", "moon"), "background: expected one of white, .*, got 'moon'"),
        (("red circle", "spinning"), "motion: expected any but 'spinning' for 'red circle'"),
        (
            ("tiger", "growing", "sea", -1),
            "variant: expected an integer from 0 to 4294967295, got -1",
        ),
    ],
)
def test_bad_scenes_raise(values, message):
    with pytest.raises(ValueError, match=message):
        Scene(*values)


@given(
    st.integers(0, 2**31),
    st.integers(0, 10**9),
    st.sampled_from(["base", "novel", "composed", "all"]),
)
def test_sampling_is_a_pure_function_and_splits_never_overlap(seed, index, subset):
    train = Sampler("train", subset=subset, seed=seed)
    test = Sampler("test", subset=subset, seed=seed)
    assert train(index) == Sampler("train", subset=subset, seed=seed)(index)
    assert train(index).variant % 2 == 0 and test(index).variant % 2 == 1
    if subset != "all":
        assert subset_of(train(index).subject, train(index).motion) == subset


def test_sampling_covers_the_world_evenly():
    sampler = Sampler("train", subset="all")
    scenes = [sampler(i) for i in range(4000)]
    assert {s.subject for s in scenes} == set(SUBJECTS)
    backgrounds = Counter(s.background for s in scenes)
    # 400 each, about 4 sigma
    assert min(backgrounds.values()) > 320 and max(backgrounds.values()) < 480
    assert len({s.variant for s in scenes}) == len(scenes)
    assert abs(sum(is_shape(s.subject) for s in scenes) / 4000 - 0.3) < 0.03
    assert [Sampler("train", seed=1)(i) for i in range(5)] != [
        Sampler("train", seed=2)(i) for i in range(5)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split: expected one of train, test, got 'val'"),
        ({"subset": "unseen"}, "subset: expected one of base, novel, composed, all, got 'unseen'"),
        ({"seed": -1}, "seed: expected an integer from 0 to 9223372036854775807, got -1"),
        ({"seed": 2**64}, "seed: expected an integer from 0 to 9223372036854775807, got"),
        ({"backgrounds": []}, "backgrounds: expected at least one name, got none"),
        ({"subjects": ["dodo"]}, "subjects: expected one of tiger, .*, got 'dodo'"),
        (
            {"subset": "novel", "subjects": ["tiger"]},
            "subset: expected 'novel' pairs among .*, got none",
        ),
        (
            {"subset": "all", "subjects": ["red ring"], "motions": ["spinning"]},
            "subset: expected 'all' pairs among .*, got none",
        ),
    ],
)
def test_bad_sampler_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


@pytest.mark.parametrize("index", [-1, 2**63])
def test_an_index_out_of_range_raises(index):
    with pytest.raises(
        ValueError, match=f"index: expected an integer from 0 to 9223372036854775807, got {index}"
    ):
        Sampler()(index)


def test_an_index_is_an_integer():
    with pytest.raises(TypeError):
        World().batch([1.7])
    assert World().batch(np.arange(2)).scenes == World().batch(range(2)).scenes
