"""Batch expansion: the order of diffusers' pipelines, and what is refused."""

import pytest
import torch

from course_lib.pipelines.batch import check_generators, expand_prompts


@pytest.mark.parametrize(
    ("arguments", "prompts", "negatives"),
    [
        (("a",), ["a"], [""]),
        ((["a", "b"], None, 2), ["a", "a", "b", "b"], [""] * 4),
        ((["a", "b"], "", 1), ["a", "b"], ["", ""]),
        ((["a", "b"], "x", 2), ["a", "a", "b", "b"], ["x"] * 4),
        ((["a", "b"], ["x"], 1), ["a", "b"], ["x", "x"]),
        ((["a", "b"], ["x", "y"], 2), ["a", "a", "b", "b"], ["x", "x", "y", "y"]),
    ],
)
def test_rows_are_ordered_a_a_b_b(arguments, prompts, negatives):
    assert expand_prompts(*arguments) == (prompts, negatives)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "prompt: expected one or more strings, got an empty list"),
        ((["a", "b"], ["x"] * 3), "negative_prompt: expected one, or one for each of 2 prompts"),
        (("a", None, 0), "num_videos_per_prompt: expected an integer of at least 1, got 0"),
        (("a", None, True), "num_videos_per_prompt: expected an integer"),
    ],
)
def test_bad_prompts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        expand_prompts(*arguments)


def test_generators_are_one_or_one_for_each_row():
    generator = torch.Generator()
    assert check_generators(None, 3) is torch.default_generator
    assert check_generators(generator, 3) is generator
    assert check_generators([generator] * 3, 3) == [generator] * 3
    with pytest.raises(ValueError, match="generator: expected one, or one for each of 3 videos"):
        check_generators([generator] * 2, 3)
