"""The result type and the base class of all metrics."""

from typing import NamedTuple

from torchmetrics import Metric


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
    """Base class of the metrics: the state is additive over batches."""

    full_state_update = False  # so that `forward` updates once per batch
