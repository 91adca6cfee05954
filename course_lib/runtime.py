"""The ground everybody stands on: which machine is this, how big may a lesson be, and what did it cost.

Five environment variables steer it, none is needed:
`COURSE_PROFILE` (cpu, gpu or ci), `COURSE_DEVICE` (any torch device), `COURSE_DATA` (another data folder),
`COURSE_HUB=1` (lessons may download the real checkpoints), `COURSE_WORK` (another folder for training states).
"""

import ctypes
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
HUB_TIMEOUT_S = 3.0
SAMPLE_EVERY_S = 0.01


def profile() -> str:
    """Which sizes a lesson should use: "cpu" (a laptop), "gpu", or "ci" (a few steps, for tests).

    `COURSE_PROFILE` decides; without it, "gpu" on a machine with a CUDA device and "cpu" elsewhere.
    Raises ValueError for any other value of `COURSE_PROFILE`.
    """
    name = os.environ.get("COURSE_PROFILE", "")
    if name == "":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if name not in PROFILES:
        raise ValueError(f"COURSE_PROFILE must be one of {', '.join(PROFILES)}; got {name!r}")
    return name


def pick(*, cpu: Any, gpu: Any, ci: Any) -> Any:
    """The value for the current profile, for example `steps = pick(cpu=300, gpu=2000, ci=5)`."""
    return {"cpu": cpu, "gpu": gpu, "ci": ci}[profile()]


def device() -> torch.device:
    """Where tensors live: `COURSE_DEVICE` if set, else cuda, else mps (Apple), else cpu.

    A `COURSE_PROFILE` of cpu or ci that was asked for by name means the CPU, whatever else the machine has.
    """
    if os.environ.get("COURSE_DEVICE"):
        return torch.device(os.environ["COURSE_DEVICE"])
    if os.environ.get("COURSE_PROFILE") in ("cpu", "ci"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where `device` (default: `device()`) multiplies it faster than float32, else float32.

    On a CPU that means AVX512-BF16 or AMX instructions; emulated bfloat16 is slower than float32.
    """
    kind = torch.device(device).type if device is not None else _device_type()
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device | str) -> torch.autocast:
    """Within it, a model on `device` multiplies in `dtype(device)`, and a float32 model stays one."""
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=dtype(device) == torch.bfloat16
    )


def _device_type() -> str:
    return device().type  # `dtype` has an argument of that name


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device), and return a fresh CPU generator with the same seed.

    `seed`: 0 … 2**32 - 1, NumPy's range. Raises ValueError outside it.
    Pass the generator on to whatever draws: global seeds are for libraries that take none.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 … 2**32 - 1 (NumPy's range); got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def keep_freed_memory() -> bool:
    """Ask the C library to keep memory that tensors leave behind for the next ones, for as long as the process lives.

    glibc hands every block above 32 MB (often above 128 kB) back to the system, and a training step asks for dozens of
    them: the system then clears every page again. Measured on two cores without it and with it: steps of vdm's training
    took 4.2 to 6.2 s and 2.7 to 3.7 s, at 5 to 8 % more resident memory. Source: mallopt(3) of the Linux manual.
    Returns whether the library agreed; only glibc is asked, others (macOS, Windows, musl) are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h; 1 means taken
    return library.mallopt(-3, 2**30) == 1 and library.mallopt(-1, 2**31 - 1) == 1


def cpu_cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(
        os, "sched_getaffinity"
    ):  # Linux; a container often has fewer cores than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_summary() -> str:
    """One line: cores, memory, accelerator, arithmetic, versions, profile."""
    cores = cpu_cores()
    parts = [
        f"{cores} CPU core{'s' * (cores != 1)}",
        f"{_gb(psutil.virtual_memory().total)} memory",
    ]
    where = device()
    if where.type == "cuda":
        card = torch.cuda.get_device_properties(where)
        parts.append(f"{card.name} ({_gb(card.total_memory)})")
    else:
        parts.append("Apple GPU" if where.type == "mps" else "no GPU in use")
    parts.append("fast bfloat16" if dtype(where) == torch.bfloat16 else "float32")
    parts.append(
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    parts.append(f"profile {profile()}")
    return " · ".join(parts)


@dataclass
class Measurement:
    """What `measured` found out; filled in when its block ends.

    `seconds`: wall clock. `peak_mb`: on a GPU the most memory torch held during the block, elsewhere the
    most memory the whole process had resident during the block; both in 10**6 bytes.
    """

    what: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    where: str = ""

    def __str__(self) -> str:
        peak = _gb(self.peak_mb * 1e6) if self.peak_mb >= 1000 else f"{self.peak_mb:.0f} MB"
        return (
            f"measured: {self.what}: {_duration(self.seconds)}, peak memory {peak} ({self.where})"
        )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """While the block lasts, transformers and diffusers load without a bar: a small model is there before anybody has
    read it.
    """
    from diffusers.utils import (
        logging as diffusers_logging,
    )  # takes seconds, and not everybody needs them
    from transformers.utils import logging as transformers_logging

    shown = [
        library
        for library in (transformers_logging, diffusers_logging)
        if library.is_progress_bar_enabled()
    ]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def measured(what: str) -> Iterator[Measurement]:
    """Time a block and its peak memory; prints one line at the end unless the block raised.

    `with measured("training") as cost: …` prints
    "measured: training: 12.3 s, peak memory 1.2 GB (2 CPU cores)"; `cost.seconds` and `cost.peak_mb` stay.
    """
    where = device()
    cores = cpu_cores()
    name = f"{cores} CPU core{'s' * (cores != 1)}"
    if where.type == "cuda":
        name = torch.cuda.get_device_name(where)
        torch.cuda.synchronize(where)
        torch.cuda.reset_peak_memory_stats(where)
    cost = Measurement(what, where=name)
    with _resident_peak() as resident:
        start = time.perf_counter()
        yield cost
        if where.type == "cuda":
            torch.cuda.synchronize(
                where
            )  # kernels are queued: without this only the launch is timed
        cost.seconds = time.perf_counter() - start
    cost.peak_mb = (
        torch.cuda.max_memory_allocated(where) if where.type == "cuda" else resident[0]
    ) / 1e6
    print(cost)


@contextmanager
def _resident_peak() -> Iterator[list[int]]:
    """Yields a one-element list that holds the process's peak resident bytes once the block is over."""
    process = psutil.Process()
    peak = [process.memory_info().rss]
    lifetime_before = _lifetime_peak()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], process.memory_info().rss)
        # The system's own high-water mark is exact, but covers the life of the process: it speaks about
        # this block only if it rose in it. Otherwise the samples are the answer.
        if _lifetime_peak() > lifetime_before:
            peak[0] = max(peak[0], _lifetime_peak())


def _lifetime_peak() -> int:
    """The process's high-water mark of resident memory in bytes."""
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _gb(n_bytes: float | int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 10e9 else f"{n_bytes / 1e9:.0f} GB"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def hub_available() -> bool:
    """Whether "On the real thing" may download: `COURSE_HUB=1`, and the model hub answers within 3 s.

    Raises ValueError if `COURSE_HUB` is neither unset, 0 nor 1.
    """
    wish = os.environ.get("COURSE_HUB", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"COURSE_HUB must be 0 or 1; got {wish!r}")
    if wish != "1":
        return False
    from huggingface_hub import (
        constants,
    )  # knows the hub's address, and any mirror the reader has set

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return True
    except OSError:  # no route, no name, too slow, or an answer that is an error
        return False


def data_dir() -> Path:
    """The course's data folder: `COURSE_DATA` if set, else `data/` beside the package."""
    return Path(os.environ.get("COURSE_DATA") or Path(__file__).resolve().parent.parent / "data")
