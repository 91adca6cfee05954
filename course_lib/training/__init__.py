"""The training loop: `train` yields after every update, `fit` runs it to its end.

| file       | content                                                                          |
|------------|----------------------------------------------------------------------------------|
| `loop`     | `train`, `fit`, and `TrainStep`, which both return                               |
| `run`      | model, optimizer, schedule and EMA of a run, and one update of them              |
| `sharding` | batches by index, and each process's rows of a global batch                      |
| `checks`   | the arguments of `train`                                                         |
| `state`    | the file that holds an interrupted run, written atomically                       |
"""

from course_lib.training.loop import TrainStep, fit, train
from course_lib.training.run import LossFn, StepRecord
from course_lib.training.sharding import BatchSource
from course_lib.training.state import StateError, discard_state

__all__ = [
    "BatchSource",
    "LossFn",
    "StateError",
    "StepRecord",
    "TrainStep",
    "discard_state",
    "fit",
    "train",
]
