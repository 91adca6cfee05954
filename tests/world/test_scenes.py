"""What exists in the world, splits that cannot overlap, and captions that lead back."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    MOTIONS,
    NOVEL_EMOJI,
    SEEN_EMOJI,
    SHAPES,
    SUBJECTS,
    Sampler,
    Scene,
    World,
    caption,
    image_caption,
    parse_caption,
    part_of,
)
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.hashing import mix, uniform
from course_lib.world.subjects import is_shape

every_scene = st.builds(
    lambda subject, motion, background, variant: (subject, motion, background, variant),
    st.sampled_from(SUBJECTS),
    st.sampled_from(MOTIONS),
    st.sampled_from(BACKGROUNDS),
    st.integers(0, 2**32 - 1),
).filter(lambda s: not (s[1] == "spinning" and s[0].endswith((" circle", " ring"))))


def test_the_cast_is_as_large_as_promised():
    assert len(SEEN_EMOJI) >= 64 and len(NOVEL_EMOJI) == 12 and "backpack" in NOVEL_EMOJI
    assert len(SHAPES) == 6 and len(COLOURS) == 8 and len(BACKGROUNDS) >= 8 and len(MOTIONS) == 9
    assert len(set(SUBJECTS)) == len(SUBJECTS) == 76 + 48


def test_a_tenth_of_the_pairs_is_held_out():
    assert len(HELD_OUT_SHAPES) == round(0.1 * 48)
    pairs = 9 * (64 + 48) - 16  # 8 circles and 8 rings do not spin
    assert len(HELD_OUT_PAIRS) == round(0.1 * pairs)
    assert {motion for _, motion in HELD_OUT_PAIRS} == set(MOTIONS)
    # every subject is still seen in some motion, every colour and shape in some pair
    for subject in SEEN_EMOJI:
        assert any(part_of(subject, motion) == "seen" for motion in MOTIONS)


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
    assert int(mix(0)[0]) == 0xE220A8397B1DCDAF


def test_uniform_is_uniform_and_its_draws_are_independent():
    index = np.arange(20000)
    a, b = uniform("a", index), uniform("b", index)
    assert 0 <= a.min() and a.max() < 1
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03 and abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


@given(every_scene, st.integers(0, len(VIDEO_TEMPLATES) - 1))
def test_every_caption_leads_back_to_its_scene(values, paraphrase):
    scene = Scene(*values)
    expected = {"subject": scene.subject, "motion": scene.motion, "background": scene.background}
    assert parse_caption(caption(scene, paraphrase)) == expected
    assert parse_caption(image_caption(scene, paraphrase)) == expected | {"motion": None}


def test_articles():
    for subject in SUBJECTS:
        article = re.match(r"(an?) ", caption(Scene(subject))).group(1)
        spoken = subject.startswith(
            ("ant", "ambulance", "airplane", "alarm", "elephant", "octopus", "owl", "orange")
        )
        assert (article == "an") == (spoken or subject.startswith("umbrella")), caption(
            Scene(subject)
        )


def test_captions_refuse_what_they_cannot_say():
    with pytest.raises(ValueError, match="paraphrase must be in 0..3, got 4"):
        caption(Scene("tiger"), 4)
    assert parse_caption("a  Tiger on a night   sky background")["background"] == "night sky"
    with pytest.raises(ValueError, match="names 2 values of subject"):
        parse_caption("a tiger and a rabbit")
    assert len(IMAGE_TEMPLATES) == len(VIDEO_TEMPLATES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("tigre",), "subject 'tigre' is not one of"),
        (("tiger", "flying"), "motion 'flying' is not one of"),
        (("tiger", "growing", "moon"), "background 'moon' is not one of"),
        (("red circle", "spinning"), "spinning red circle looks the same"),
        (("tiger", "growing", "sea", -1), r"variant must be in \[0, 2\*\*32\), got -1"),
    ],
)
def test_scene_refuses_nonsense(values, message):
    with pytest.raises(ValueError, match=message):
        Scene(*values)


@given(
    st.integers(0, 2**31),
    st.integers(0, 10**9),
    st.sampled_from(["seen", "novel", "composed", "all"]),
)
def test_sampling_is_a_pure_function_and_splits_never_overlap(seed, index, part):
    train, test = Sampler("train", part=part, seed=seed), Sampler("test", part=part, seed=seed)
    assert train(index) == Sampler("train", part=part, seed=seed)(index)
    assert train(index).variant % 2 == 0 and test(index).variant % 2 == 1
    if part != "all":
        assert part_of(train(index).subject, train(index).motion) == part


def test_sampling_covers_the_world_evenly():
    sampler = Sampler("train", part="all")
    scenes = [sampler(i) for i in range(4000)]
    assert {s.subject for s in scenes} == set(SUBJECTS)
    backgrounds = Counter(s.background for s in scenes)
    assert (
        min(backgrounds.values()) > 320 and max(backgrounds.values()) < 480
    )  # 400 each, about 4 sigma
    assert len({s.variant for s in scenes}) == len(scenes)
    assert abs(sum(is_shape(s.subject) for s in scenes) / 4000 - 0.3) < 0.03
    assert [Sampler("train", seed=1)(i) for i in range(5)] != [
        Sampler("train", seed=2)(i) for i in range(5)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of"),
        ({"part": "unseen"}, "part must be one of"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
        ({"seed": 2**64}, r"seed must be in \[0, 2\*\*63\), got"),
        ({"backgrounds": []}, "backgrounds must name at least one, got none"),
        ({"subjects": ["dodo"]}, "subjects: 'dodo' is not one of"),
        ({"part": "novel", "subjects": ["tiger"]}, "no 'novel' scene is left"),
        (
            {"part": "all", "subjects": ["red ring"], "motions": ["spinning"]},
            "no 'all' scene is left",
        ),
    ],
)
def test_sampler_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


@pytest.mark.parametrize("index", [-1, 2**63])
def test_sampler_refuses_an_index_out_of_range(index):
    with pytest.raises(ValueError, match=rf"index must be in \[0, 2\*\*63\), got {index}"):
        Sampler()(index)


def test_an_index_is_an_integer():
    with pytest.raises(TypeError):
        World().batch([1.7])
    assert World().batch(np.arange(2)).scenes == World().batch(range(2)).scenes
