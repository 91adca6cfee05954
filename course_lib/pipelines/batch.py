"""One row per video: prompts, negative prompts and generators, expanded as in diffusers; checks.

Checks of tensors compare rows and channels with the prompts: broadcasting would accept one video
for all prompts, and give all videos the same frames.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.validation import (
    check_float,
    check_int,
    check_same_shape,
    check_tensor,
    require,
)

Prompts = str | Iterable[str]
Generators = torch.Generator | Iterable[torch.Generator]


def list_prompts(name: str, prompts: Any) -> list[str]:
    """One prompt, or any iterable of prompts, as a list.

    Args:
        name: argument of the caller, for the message.
        prompts: a string, or a list, tuple, array or generator of strings.

    Raises:
        ValueError: no prompt, or something that is not a string.
    """
    is_iterable = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    texts = list(prompts) if is_iterable else [prompts]
    if not texts or not all(isinstance(text, str) for text in texts):
        wrong = [text for text in texts if not isinstance(text, str)]
        got = repr(wrong[0]) if wrong else "an empty list"
        raise ValueError(f"{name}: expected one or more strings, got {got}")
    return [str(text) for text in texts]  # NumPy has strings of its own


def expand_prompts(
    prompt: Any,
    negative_prompt: Any = None,
    num_videos_per_prompt: Any = 1,
) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts of every row, in the order a, a, b, b.

    Args:
        prompt: one, or several.
        negative_prompt: one for all, or one for each prompt; None is "".
        num_videos_per_prompt: rows for each prompt, 1 or more.

    Raises:
        ValueError: no prompt, something that is no string, another number of negative prompts, or
            a number of videos that is not an integer of at least 1.
    """
    prompts = list_prompts("prompt", prompt)
    check_int("num_videos_per_prompt", num_videos_per_prompt, 1)
    negatives = list_negatives(negative_prompt, len(prompts))
    negatives *= len(prompts) if len(negatives) == 1 else 1
    return repeat(prompts, num_videos_per_prompt), repeat(negatives, num_videos_per_prompt)


def list_negatives(negative_prompt: Any, num_prompts: int) -> list[str]:
    """One negative prompt for all, or one for each prompt; see `expand_prompts`."""
    negatives = list_prompts("negative_prompt", "" if negative_prompt is None else negative_prompt)
    if len(negatives) not in (1, num_prompts):
        expected = f"one, or one for each of {num_prompts} prompts"
        raise ValueError(f"negative_prompt: expected {expected}; got {len(negatives)}")
    return negatives


def expand_arguments(prompt: Any, kwargs: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Prompts of every row, and arguments of a pipeline in which lists have an entry for each row.

    Args:
        prompt: one, or several.
        kwargs: "negative_prompt", "num_videos_per_prompt" and "generator" may be among them.

    Raises:
        ValueError: as `expand_prompts` and `check_generators`.
    """
    of_rows = dict(kwargs)
    negative_prompt = of_rows.pop("negative_prompt", None)
    num_videos = of_rows.pop("num_videos_per_prompt", 1)
    prompts, of_rows["negative_prompt"] = expand_prompts(prompt, negative_prompt, num_videos)
    of_rows["generator"] = check_generators(kwargs.get("generator"), len(prompts))
    return prompts, of_rows


def repeat_lists(kwargs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Arguments for `times` as many rows."""
    return {
        name: repeat(value, times) if isinstance(value, list) else value
        for name, value in kwargs.items()
    }


def repeat(rows: Sequence[Any], times: int) -> list[Any]:
    """Every row `times` times, in the order a, a, b, b."""
    return [row for row in rows for _ in range(times)]


def check_generators(generator: Any, num_rows: int) -> torch.Generator | list[torch.Generator]:
    """The generator of all rows, or a list with one for each; None is torch's default generator.

    Raises:
        ValueError: for another number of generators than `num_rows`, or anything else.
    """
    if generator is None:
        return torch.default_generator
    if isinstance(generator, torch.Generator):
        return generator
    generators = list(generator) if isinstance(generator, Iterable) else [generator]
    got = [type(one).__name__ for one in generators if not isinstance(one, torch.Generator)]
    if got or len(generators) != num_rows:
        expected = f"one, or one for each of {num_rows} videos"
        raise ValueError(f"generator: expected {expected}; got {[*got, len(generators)][0]}")
    return generators


def check_rows(
    name: str, latents: Tensor, num_rows: int, num_channels: int, axes: str = "(b, c, f, y, x)"
) -> None:
    """Check that latents have one row for each prompt, and the channels of the U-Net.

    Args:
        name: argument of the caller, for the message.
        latents: expected to be finite floats.
        num_rows: b, number of prompts times number of videos for each.
        num_channels: c.
        axes: of `latents`.

    Raises:
        ValueError: if `latents` is anything else.
    """
    check_float(name, latents)
    check_tensor(name, latents, axes)
    expected = f"{num_rows} rows, one for each prompt"
    require(len(latents) == num_rows, name, expected, len(latents))
    channels = latents.shape[1]
    require(channels == num_channels, name, f"{num_channels} channels, as the U-Net has", channels)


def latents_of_callback(result: Any, latents: Tensor) -> Tensor | None:
    """The latents with which a callback lets sampling go on; None for those that it was given.

    Args:
        result: what `callback_on_step_end` returned.
        latents: what it was given.

    Raises:
        ValueError: for anything but None or a dict, and for latents that are not floats or have
            another shape.
    """
    name = "callback_on_step_end"
    is_valid = result is None or isinstance(result, Mapping)
    require(is_valid, name, "a dict or None as its result", type(result).__name__)
    replacement = (result or {}).get("latents")
    if replacement is not None:
        check_float(name, replacement)
        check_same_shape(name, replacement, "latents", latents)
    return replacement
