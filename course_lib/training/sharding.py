"""Where batches come from, and which rows of a global batch belong to this process.

Not accelerate's dataloader dispatch: a batch is a function of its index here, which a resumed run
needs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size

BatchSource = Iterable[Any] | Callable[[int], Any]


def batch_source(
    make_batch: BatchSource, accelerator: Accelerator, is_resumable: bool
) -> Callable[[int], Any]:
    """`make_batch` as a function of the batch's index.

    Args:
        make_batch: such a function, or an iterable, which is restarted at its end.
        accelerator: of this run.
        is_resumable: whether the run has a state file.

    Raises:
        ValueError: an iterable for several processes or a resumable run, which may start at any
            index.
    """
    if callable(make_batch):
        return make_batch
    if accelerator.num_processes > 1 or is_resumable:
        reason = "a state_path" if is_resumable else "several processes"
        raise ValueError(
            f"make_batch: with {reason} expected a callable from the batch's index to the batch, "
            f"got {type(make_batch).__name__}"
        )
    iterator = iter(make_batch)

    def next_batch(index: int) -> Any:
        nonlocal iterator
        for _ in range(2):
            for batch in iterator:
                return batch
            iterator = iter(make_batch)  # the next epoch
        raise ValueError(
            f"make_batch: the iterator ended at batch {index} and cannot restart; "
            "pass a list or a callable"
        )

    return next_batch


def count_rows(batch: Any) -> int:
    """Number of rows of a batch, by its first tensor.

    Raises:
        ValueError: it has no tensor at its start, or one without axes.
    """
    try:
        return int(find_batch_size(batch))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"make_batch: expected a tensor with rows, or a collection that starts with one, got "
            f"{type(batch).__name__} ({error})"
        ) from error


def shard_batch(batch: Any, accelerator: Accelerator) -> Any:
    """This process's rows of a global batch.

    Args:
        batch: tensors and lists of strings, all with the same number of rows, in nested dicts,
            lists, tuples and named tuples.
        accelerator: of this run.

    Raises:
        ValueError: the rows cannot be shared evenly, or an item has another number of rows.
    """
    num_processes = accelerator.num_processes
    if num_processes == 1:
        return batch
    num_rows = count_rows(batch)
    if num_rows % num_processes:
        raise ValueError(
            f"make_batch: expected a number of rows divisible by {num_processes} processes, "
            f"got {num_rows}"
        )
    size = num_rows // num_processes
    rows = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)

    def shard(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: shard(value) for name, value in item.items()}
        if isinstance(item, list | tuple) and not all(isinstance(value, str) for value in item):
            items = [shard(value) for value in item]
            return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
        if not isinstance(item, list | tuple | torch.Tensor) or len(item) != num_rows:
            raise ValueError(
                f"make_batch: expected tensors and lists of strings with {num_rows} rows each, "
                f"got {type(item).__name__}"
            )
        return item[rows]

    return shard(batch)
