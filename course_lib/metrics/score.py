"""The result type and the base class of all metrics."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric
from torchmetrics.utilities.exceptions import TorchMetricsUserError

# What torchmetrics changes besides the states: the counter, the cached result, the synchronisation
GUARDED = ("_update_count", "_computed", "_is_synced", "_cache")


class Score(NamedTuple):
    """A measured number whose name states its conventions.

    `float(score)` is the value, `str(score)` one line such as "psnr_pooled 31.42 dB (n = 64)".
    A named tuple, because torchmetrics refuses a frozen dataclass as the result of `compute`.

    Args:
        name: metric, conventions, and in brackets the network: "frechet_ddof1[features]".
        value: the number, in `unit`.
        n: number of samples behind it (clips, frames or pairs: see the metric).
        interval: lower and upper end of the 95 % confidence interval, if the metric has one.
        unit: such as "dB" or "px"; empty for a pure number.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float] | None = None
    unit: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        interval = ""
        if self.interval is not None:
            interval = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.name} {self.value:.4g}{unit}{interval} (n = {self.n})"


class VideoMetric(Metric):
    """Base class of the metrics: the state is additive over batches.

    A call that raises changes nothing. For this, and because copies and the metrics of a
    `MetricCollection` share states, `update` replaces states and never changes them in place.
    """

    full_state_update = False  # so that torchmetrics lets states be merged

    def _separate(self, settings: str) -> None:
        """Keep metrics with other settings out of this one's compute group, and from merging.

        A `MetricCollection` updates only one of the metrics whose states agree after the first
        batch. Those of two thresholds, or of two judges, may agree there and not later.
        """
        self.add_state(f"settings {settings}", torch.tensor(0), "max")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch as `update` does, and return the value of this batch only.

        Raises:
            ValueError: for bad input, or a batch too small to have a value, which is not added.
            TorchMetricsUserError: for a metric that is synced with other processes.
        """
        if self._is_synced:
            raise TorchMetricsUserError("metric: expected one that is not synced; call unsync()")
        # torchmetrics' own would empty this metric first, and lose all if the batch is refused
        batch = copy.copy(self)
        VideoMetric.reset(batch)
        batch._to_sync = self.dist_sync_on_step
        batch.update(*args, **kwargs)
        value = self._batch_value(batch)
        batch._update_count += self._update_count
        batch._reduce_states(self.metric_state)  # what is there, then the batch
        for name in self._defaults:
            setattr(self, name, getattr(batch, name))
        self._update_count = batch._update_count
        self._computed, self._forward_cache = None, value
        return value

    def _batch_value(self, batch: "VideoMetric") -> Any:
        """Value of a metric that holds one batch."""
        return batch.compute()

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Add the state of a metric with the same settings. Raises as torchmetrics."""
        self._guard(super().merge_state)(incoming_state)
        self._update_count += getattr(incoming_state, "_update_count", 1)
        self._computed = None  # torchmetrics would return the value before the merge

    def reset(self) -> None:
        """Remove all samples."""
        for name, default in self._defaults.items():
            if isinstance(default, list):
                setattr(self, name, [])  # torchmetrics would empty a list that others may share
        super().reset()

    def _wrap_update(self, update: Callable) -> Callable:
        return self._guard(super()._wrap_update(update))

    def _wrap_compute(self, compute: Callable) -> Callable:
        return self._guard(super()._wrap_compute(compute))

    def _guard(self, method: Callable) -> Callable:
        """A method that leaves the metric as it was if it raises."""

        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            before = {name: getattr(self, name) for name in (*self._defaults, *GUARDED)}
            try:
                return method(*args, **kwargs)
            except BaseException:  # an interrupt, too
                self.__dict__.update(before)
                raise

        return guarded
