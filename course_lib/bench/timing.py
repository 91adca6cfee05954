"""Fair timing on a shared machine: contenders take turns and are compared within a round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_lib import runtime
from course_lib.validation import check_count, check_int, check_number

MIN_ROUNDS = 3


@dataclass(frozen=True)
class BenchmarkRow:
    """One line of a report.

    Attributes:
        benchmark: name of the benchmark.
        case: what was measured, with its sizes.
        contender: the implementation.
        value: median over rounds.
        unit: of `value`.
        peer: what the contender is compared with.
        ratio: how many times as good as the peer, median over rounds; above 1 is better.
        ratio_low: lower quartile.
        ratio_high: upper quartile.
        note: other results.
    """

    benchmark: str
    case: str
    contender: str
    value: float
    unit: str
    peer: str
    ratio: float
    ratio_low: float
    ratio_high: float
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with four significant digits; more would be noise."""
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Contender:
    """A network with the input on which it is timed.

    Attributes:
        net: the network.
        inputs: positional arguments of the call.
        call: called instead of the network, for one that needs other arguments.
        dtype: float32, or bfloat16 for autocast.
    """

    net: nn.Module
    inputs: tuple[Tensor, ...]
    call: Callable[..., Any] | None = None
    dtype: torch.dtype = torch.float32

    def predict(self) -> Tensor:
        """The network's output, as a tensor."""
        bf16 = self.dtype == torch.bfloat16
        with torch.autocast(runtime.device().type, torch.bfloat16, enabled=bf16):
            out = (self.call or self.net)(*self.inputs)
        # diffusers' causal convolution also returns its cache
        return out[0] if isinstance(out, tuple) else getattr(out, "sample", out)

    @torch.no_grad()
    def sampling_step(self) -> None:
        """A forward pass without gradients."""
        self.predict()

    def training_step(self) -> None:
        """A forward and a backward pass; the update is the same for all and left out."""
        self.net.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None
        self.predict().float().sum().backward()


def fast_dtypes() -> list[torch.dtype]:
    """float32, and bfloat16 where the machine is fast at it; emulated, nobody would use it."""
    fast = runtime.dtype(runtime.device())
    return [torch.float32] + [torch.bfloat16] * (fast == torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as in the cases of reports, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def interleaved_timings(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 9,
    warmup: int = 1,
    *,
    budget_s: float | int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, by name; every round runs every function once.

    Every second round is in reversed order. On a GPU each call is waited for.

    Args:
        functions: name to function.
        repeats: rounds that are counted.
        warmup: rounds before, which are not counted.
        budget_s: no round begins after so many seconds, but `MIN_ROUNDS` are always run.
        clock: returns seconds; for tests.

    Raises:
        ValueError: no functions, fewer than 1 repeat, a fraction of a round, or such a budget.
    """
    check_count("functions", len(functions), 1)
    check_int("repeats", repeats, 1)
    check_int("warmup", warmup, 0)
    if budget_s is not None:
        check_number("budget_s", budget_s, at_least=0.0)
    wait = torch.cuda.synchronize if runtime.device().type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in functions}
    start = clock()
    for round_number in range(warmup + repeats):
        is_late = budget_s is not None and clock() - start > budget_s
        if is_late and round_number >= warmup + min(repeats, MIN_ROUNDS):
            break
        # A, B then B, A: a drift within a round (heat, other jobs) favours each of them in turn
        for name in list(functions)[:: 1 if round_number % 2 == 0 else -1]:
            wait()
            before = clock()
            functions[name]()
            wait()
            if round_number >= warmup:
                times[name].append(clock() - before)
    return times


def contender_rows(
    contenders: Mapping[str, Contender],
    method: str,
    pairs: Sequence[tuple[str, str]],
    *,
    benchmark: str,
    case: str,
    budget_s: float | int,
    note: Callable[[str, Sequence[float]], str] = lambda name, times: "",
) -> list[BenchmarkRow]:
    """Rows of networks.

    Args:
        contenders: by name.
        method: which of their methods is timed.
        pairs: contender and peer of every row.
        benchmark, case: of the rows.
        budget_s: see `interleaved_timings`.
        note: from a contender's name and times.
    """
    functions = {name: getattr(contender, method) for name, contender in contenders.items()}
    times = interleaved_timings(functions, budget_s=budget_s)
    return [
        compare(times, name, peer, benchmark=benchmark, case=case, note=note(name, times[name]))
        for name, peer in pairs
    ]


def timed_with_results(
    functions: Mapping[str, Callable[[], Any]], repeats: int, budget_s: float | int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Timings and what the last call of each function returned. Arguments: see above."""
    results: dict[str, Any] = {}

    def store_result(name: str) -> Callable[[], None]:
        return lambda: results.update({name: functions[name]()})

    wrapped = {name: store_result(name) for name in functions}
    return interleaved_timings(wrapped, repeats, budget_s=budget_s), results


def compile_seconds(function: Callable[[], object], name: str) -> float | None:
    """Duration of the first call of a compiled model; None, with a message, without a compiler.

    Args:
        function: makes the call.
        name: of the contender, for the message.
    """
    start = time.perf_counter()
    try:
        function()
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{name}: left out, {reason}", flush=True)
        return None
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; all the same for one value.

    Raises:
        ValueError: no values.
    """
    check_count("values", len(values), 1)
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def compare(
    times: Mapping[str, Sequence[float]],
    contender: str,
    peer: str,
    *,
    benchmark: str,
    case: str,
    note: str = "",
) -> BenchmarkRow:
    """A row in milliseconds; the ratio is the median of the rounds' ratios, not of all times.

    Args:
        times: from `interleaved_timings`, so that the n-th of each belong to one round.
        contender, peer: keys of `times`.
        benchmark, case, note: of the row.
    """
    pairs = zip(times[contender], times[peer], strict=True)
    low, ratio, high = quartiles([peer_time / own_time for own_time, peer_time in pairs])
    milliseconds = 1000 * statistics.median(times[contender])
    return BenchmarkRow(
        benchmark, case, contender, milliseconds, "ms", peer, ratio, low, high, note
    )
