"""One row per video: prompts, negative prompts and generators, expanded as in diffusers."""

from collections.abc import Sequence

import torch

from course_lib.validation import check_int

Generators = torch.Generator | Sequence[torch.Generator]


def expand_prompts(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    num_videos_per_prompt: int = 1,
) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts of every row, in the order a, a, b, b.

    Args:
        prompt: one, or several.
        negative_prompt: one for all, or one for each prompt; None is "".
        num_videos_per_prompt: rows for each prompt, 1 or more.

    Raises:
        ValueError: no prompt, another number of negative prompts, or a number of videos below 1.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt: expected a string or a list of strings, got {prompt!r}")
    check_int("num_videos_per_prompt", num_videos_per_prompt, 1)
    negatives = "" if negative_prompt is None else negative_prompt
    negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
    if len(negatives) == 1:
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        expected = f"one, or one for each of {len(prompts)} prompts"
        raise ValueError(f"negative_prompt: expected {expected}; got {len(negatives)}")
    rows = [row for row in range(len(prompts)) for _ in range(num_videos_per_prompt)]
    return [prompts[row] for row in rows], [negatives[row] for row in rows]


def check_generators(generator: Generators | None, num_rows: int) -> Generators:
    """The generator of all rows, or a list with one for each; None is torch's default generator.

    Raises:
        ValueError: for a list of another length than `num_rows`.
    """
    if generator is None:
        return torch.default_generator
    if not isinstance(generator, torch.Generator) and len(generator) != num_rows:
        expected = f"one, or one for each of {num_rows} videos"
        raise ValueError(f"generator: expected {expected}; got {len(generator)}")
    return generator
