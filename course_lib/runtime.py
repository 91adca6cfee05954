"""The machine: profile, device, precision, seeds, time and memory of a block, data folder.

Five optional environment variables:
`COURSE_PROFILE` (cpu, gpu or ci), `COURSE_DEVICE` (any torch device), `COURSE_DATA` (another data
folder), `COURSE_HUB=1` (lessons may download the original checkpoints), `COURSE_WORK` (another
folder for training states).
"""

import ctypes
import numbers
import os
import platform
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PROFILES = ("cpu", "gpu", "ci")
HUB_TIMEOUT_SECONDS = 3.0
RSS_POLL_SECONDS = 0.01


def profile() -> str:
    """Name of the current profile, which decides the sizes of a lesson.

    Returns:
        "cpu" (a laptop), "gpu", or "ci" (a few steps, for tests): the value of `COURSE_PROFILE`.
        Without it, "gpu" on a machine with a CUDA device and "cpu" elsewhere.

    Raises:
        ValueError: `COURSE_PROFILE` has another value.
    """
    name = os.environ.get("COURSE_PROFILE", "")
    if name == "":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if name not in PROFILES:
        raise ValueError(f"COURSE_PROFILE: expected one of {', '.join(PROFILES)}; got {name!r}")
    return name


def by_profile(*, cpu: Any, gpu: Any, ci: Any) -> Any:
    """The value for the current profile: `num_steps = by_profile(cpu=300, gpu=2000, ci=5)`."""
    return {"cpu": cpu, "gpu": gpu, "ci": ci}[profile()]


def device() -> torch.device:
    """The device for tensors: `COURSE_DEVICE` if set, else cuda, else mps (Apple), else cpu.

    With `COURSE_PROFILE` set to cpu or ci it is the CPU, even on a machine with an accelerator.

    Raises:
        ValueError: `COURSE_DEVICE` is no device of torch, or `COURSE_PROFILE` has another value
            than those of `profile`.
    """
    name = os.environ.get("COURSE_DEVICE", "")
    if name:
        try:
            return torch.device(name)
        except RuntimeError as error:
            expected = "a device of torch, such as cpu, cuda, cuda:1 or mps"
            raise ValueError(f"COURSE_DEVICE: expected {expected}; got {name!r}") from error
    if os.environ.get("COURSE_PROFILE") and profile() != "gpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype(device: torch.device | str | None = None) -> torch.dtype:
    """The faster type for matrix products on a device: bfloat16 or float32.

    On a CPU bfloat16 needs AVX512-BF16 or AMX instructions; emulated bfloat16 is slower than
    float32.

    Args:
        device: any torch device; None means `device()`.
    """
    device_type = torch.device(device).type if device is not None else _device_type()
    if device_type == "cuda":
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast_bf16 = device_type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if fast_bf16 else torch.float32


def autocast(device: torch.device | str) -> torch.autocast:
    """Context in which models on `device` multiply in `dtype(device)`; weights stay float32."""
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=dtype(device) == torch.bfloat16
    )


def _device_type() -> str:
    return device().type  # `dtype` has an argument of that name


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch on every device.

    Global seeds are for libraries that take no generator; pass the returned one to everything else.

    Args:
        seed: 0 to 2**32 - 1, NumPy's range.

    Returns:
        A new generator on the CPU with the same seed.

    Raises:
        ValueError: `seed` is no integer, or outside its range.
    """
    is_int = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_int or not 0 <= seed < 2**32:
        raise ValueError(
            f"seed: expected an integer from 0 to 2**32 - 1 (NumPy's range), got {seed!r}"
        )
    seed = int(seed)  # a NumPy integer is hashed differently
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def tune_glibc_malloc() -> bool:
    """Let glibc keep freed memory for later tensors, for the rest of the process.

    By default glibc returns every block above 32 MB (often above 128 kB) to the system, which
    clears its pages at the next allocation: see docs/decisions.md for the cost. Other C libraries
    (macOS, Windows, musl) are left unchanged. Source: mallopt(3) of the Linux manual.

    Returns:
        Whether the setting was accepted.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h; 1 means accepted
    return libc.mallopt(-3, 2**30) == 1 and libc.mallopt(-1, 2**31 - 1) == 1


def cpu_cores() -> int:
    """Number of CPU cores that this process may use: in a container often not all there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_summary() -> str:
    """One line: cores, memory, accelerator, precision, versions, profile."""
    current = device()
    if current.type == "cuda":
        gpu = torch.cuda.get_device_properties(current)
        accelerator = f"{gpu.name} ({_format_bytes(gpu.total_memory)})"
    else:
        accelerator = "Apple GPU" if current.type == "mps" else "no GPU in use"
    parts = [
        _cpu_name(),
        f"{_format_bytes(psutil.virtual_memory().total)} memory",
        accelerator,
        "fast bfloat16" if dtype(current) == torch.bfloat16 else "float32",
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}",
        f"profile {profile()}",
    ]
    return " · ".join(parts)


def _cpu_name() -> str:
    cores = cpu_cores()
    return f"{cores} CPU core{'s' * (cores != 1)}"


@dataclass
class Measurement:
    """Time and memory of a block, complete once the block has ended.

    Attributes:
        label: name of the block.
        seconds: wall-clock time.
        peak_mb: peak memory during the block in 10**6 bytes: on a GPU what torch allocated,
            elsewhere the resident memory of the whole process.
        device: name of the hardware.
    """

    label: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    device: str = ""

    def __str__(self) -> str:
        memory = (
            _format_bytes(self.peak_mb * 1e6) if self.peak_mb >= 1000 else f"{self.peak_mb:.0f} MB"
        )
        duration = _format_seconds(self.seconds)
        return f"measured: {self.label}: {duration}, peak memory {memory} ({self.device})"


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off the loading bars of transformers and diffusers inside the block."""
    # imported here: they take seconds, and most callers of this module do not need them
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [
        library
        for library in (transformers_logging, diffusers_logging)
        if library.is_progress_bar_enabled()
    ]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


@contextmanager
def measure(label: str) -> Iterator[Measurement]:
    """Measure time and peak memory of a block; print one line at its end unless it raised.

    `with measure("training") as cost: …` prints
    "measured: training: 12.3 s, peak memory 1.2 GB (2 CPU cores)".

    Args:
        label: name of the block.

    Yields:
        A `Measurement`; its numbers are filled in at the end of the block.
    """
    current = device()
    on_gpu = current.type == "cuda"
    cost = Measurement(label, device=_cpu_name())
    if on_gpu:
        cost.device = torch.cuda.get_device_name(current)
        torch.cuda.synchronize(current)
        torch.cuda.reset_peak_memory_stats(current)
    with _peak_rss() as peak:
        start = time.perf_counter()
        yield cost
        if on_gpu:
            torch.cuda.synchronize(current)  # kernels are queued: otherwise only launches are timed
        cost.seconds = time.perf_counter() - start
    cost.peak_mb = (torch.cuda.max_memory_allocated(current) if on_gpu else peak[0]) / 1e6
    print(cost)


@contextmanager
def _peak_rss() -> Iterator[list[int]]:
    """Yields a list of one element: the process's peak resident bytes, once the block has ended."""
    process = psutil.Process()
    peak = [process.memory_info().rss]
    max_before = _max_rss()
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(RSS_POLL_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        yield peak
    finally:
        finished.set()
        poller.join()
        peak[0] = max(peak[0], process.memory_info().rss)
        # The high-water mark is exact, but covers the whole process: valid only if it rose in the
        # block
        if _max_rss() > max_before:
            peak[0] = max(peak[0], _max_rss())


def _max_rss() -> int:
    """The process's high-water mark of resident memory in bytes."""
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if platform.system() == "Darwin" else max_rss * 1024  # macOS bytes, Linux KiB


def _format_bytes(num_bytes: float | int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes < 10e9 else f"{num_bytes / 1e9:.0f} GB"


def _format_seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def hub_available() -> bool:
    """Whether lessons may download: `COURSE_HUB=1` and the model hub answers within 3 s.

    Raises:
        ValueError: `COURSE_HUB` is set to something other than 0 or 1.
    """
    setting = os.environ.get("COURSE_HUB", "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"COURSE_HUB: expected 0 or 1, got {setting!r}")
    if setting != "1":
        return False
    from huggingface_hub import constants  # has the hub's address, or that of a configured mirror

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS):
            return True
    except OSError:  # no route, no such name, a timeout, or an HTTP error
        return False


def data_dir() -> Path:
    """The course's data folder: `COURSE_DATA` if set, else `data/` next to the package."""
    return Path(os.environ.get("COURSE_DATA") or Path(__file__).resolve().parent.parent / "data")
