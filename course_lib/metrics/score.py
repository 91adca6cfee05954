"""What every metric returns: a number that carries its conventions in its name."""

from typing import NamedTuple


class Score(NamedTuple):
    """One measured number; `float(score)` is the value, `str(score)` one line such as "psnr_pooled 31.42 dB (n = 64)".

    A named tuple and not a frozen dataclass: torchmetrics walks through what `compute` returns and refuses the latter.

    Args:
        name: the metric with its conventions, and in brackets the network it rests on: "frechet_ddof1[features]".
        value: in `unit`.
        n: how many samples it was computed from; the metric says of what (clips, frames, pairs).
        interval: lower and upper end of the 95 % confidence interval, where the metric has one.
        unit: such as "dB" or "px"; empty for a pure number.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float] | None = None
    unit: str = ""

    def __float__(self) -> float:
        """The value."""
        return self.value

    def __str__(self) -> str:
        """Name, value to four digits, unit, interval, number of samples."""
        unit = f" {self.unit}" if self.unit else ""
        interval = (
            "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        )
        return f"{self.name} {self.value:.4g}{unit}{interval} (n = {self.n})"
