"""Training items that are expensive to make: made once, chunk by chunk, and kept in memory."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from course_lib.validation import check_int


class LatentCache:
    """A data set of `chunk_size * num_chunks` items, made in chunks when first needed.

    An index beyond the end starts again at the first item, so an endless stream of batches meets
    every item again after so many.

    Args:
        make_chunk: range of indices → tensors by name, each with one row per index.
        chunk_size: items that are made at once.
        num_chunks: chunks before the items repeat.

    Raises:
        ValueError: a size below 1, or a fraction.
    """

    def __init__(
        self,
        make_chunk: Callable[[range], Mapping[str, Tensor]],
        chunk_size: int,
        num_chunks: int,
    ):
        check_int("chunk_size", chunk_size, 1)
        check_int("num_chunks", num_chunks, 1)
        self.make_chunk = make_chunk
        self.chunk_size = chunk_size
        self.num_chunks = num_chunks
        self.chunks: dict[int, Mapping[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.chunk_size * self.num_chunks

    def chunk(self, number: int) -> Mapping[str, Tensor]:
        """One chunk, made if it is not in memory; its tensors have `chunk_size` rows."""
        if number not in self.chunks:
            start = number * self.chunk_size
            self.chunks[number] = self.make_chunk(range(start, start + self.chunk_size))
        return self.chunks[number]

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        """Items by index (n,), in this order: tensors by name with n rows."""
        positions = [divmod(index % len(self), self.chunk_size) for index in indices.tolist()]
        names = self.chunk(positions[0][0])
        return {
            name: torch.stack([self.chunk(number)[name][row] for number, row in positions])
            for name in names
        }
