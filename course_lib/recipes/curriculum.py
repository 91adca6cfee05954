"""Training in phases; clips at several frame rates, as both video recipes use them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from course_lib.world import Clips, Sampler, Scene, render

# Frames per second of row 0, 1, …: mostly the canonical 8; at more, a clip shows less time
FRAME_RATES = (8, 8, 8, 8, 16, 32)
CANONICAL_RATE = 8


class Phase(NamedTuple):
    """A part of a training run.

    Args:
        name: of the phase.
        num_steps: its length; None for the last phase, which lasts to the end.
        batch_size: items per step.
    """

    name: str
    num_steps: int | None
    batch_size: int


class PhaseStep(NamedTuple):
    """Where a training step is in its curriculum.

    Args:
        phase: name of the phase.
        index: steps of this phase that came before.
        batch_size: items of this step.
        num_earlier_items: items of all earlier phases together.
    """

    phase: str
    index: int
    batch_size: int
    num_earlier_items: int

    def rows(self, continued: bool = False) -> Tensor:
        """Indices of this step's items (batch_size,), if steps take items in turn.

        Args:
            continued: go on where the phase before ended; else every phase starts at item 0.
        """
        start = self.index * self.batch_size + self.num_earlier_items * continued
        return torch.arange(start, start + self.batch_size)


def find_phase(phases: Sequence[Phase], number: int) -> PhaseStep:
    """The phase of a step.

    Args:
        phases: in their order.
        number: of the step, from 0.

    Raises:
        ValueError: the phases end before this step.
    """
    index, num_earlier_items = number, 0
    for phase in phases:
        if phase.num_steps is None or index < phase.num_steps:
            return PhaseStep(phase.name, index, phase.batch_size, num_earlier_items)
        index -= phase.num_steps
        num_earlier_items += phase.num_steps * phase.batch_size
    raise ValueError(f"number: expected a step of the {len(phases)} phases, got {number}")


def render_by_rate(
    scenes: Sequence[Scene], num_frames: int, size: int
) -> Iterator[tuple[slice, int, Clips]]:
    """Clips of scenes at the rates of `FRAME_RATES`, by turns; one rate at a time.

    Args:
        scenes: row i is rendered at rate i modulo the number of rates.
        num_frames: of every clip.
        size: height and width in pixels.

    Yields:
        The rows of one rate, the rate, and their clips.
    """
    for start, fps in enumerate(FRAME_RATES):
        rows = slice(start, None, len(FRAME_RATES))
        yield (
            rows,
            fps,
            render(
                scenes[rows], num_frames=num_frames, size=size, fps=fps, random_time_offset=True
            ),
        )


def canonical_rate_rows(num_rows: int) -> Tensor:
    """Rows whose clips have the canonical rate: they show the whole motion."""
    rates = torch.tensor(FRAME_RATES).repeat(num_rows // len(FRAME_RATES) + 1)[:num_rows]
    return (rates == CANONICAL_RATE).nonzero().flatten()


def rows_with_motion(sampler: Sampler, motion: str, rows: Tensor) -> Tensor:
    """The rows whose scene has this motion.

    Args:
        sampler: row → scene.
        motion: a name of `world.MOTIONS`.
        rows: row numbers to look through.
    """
    return rows[[sampler(row).motion == motion for row in rows.tolist()]]
