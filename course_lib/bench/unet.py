"""VideoUNet beside video-diffusion-pytorch's Unet3D: a training step, its memory, and a step of sampling.

Both have the parameters of the other within 5 %, attention over space and over time at the same resolutions, and see
the same clip. Theirs attends over space by a linear approximation but in the middle, and once more over time at the
very beginning; ours attends fully, everywhere. Memory is that of a process of its own.

Every case comes twice: in a process as it is, and in one that keeps freed memory (`runtime.keep_freed_memory`), as the
course's own loops do. The C library of Linux otherwise takes large tensors from the system and gives them back, at
every operation; theirs makes more of them, and gains the more by it.
"""

import io
import multiprocessing
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from course_lib import runtime
from course_lib.bench.timing import Row, alternate, compare
from course_lib.nn.profiling import count_parameters
from course_lib.nn.unet import VideoUNet

BATCH, SIZE, FRAMES = 4, 32, (8, 16)
OURS, STEM, THEIRS = "VideoUNet", "VideoUNet, patches of 2x2", "video-diffusion-pytorch Unet3D"
SECONDS_A_CASE = 40


def build(name: str) -> nn.Module:
    """One of the three, untrained, on the machine's device. Raises ImportError if the peer is not installed."""
    torch.manual_seed(0)
    if name == THEIRS:
        try:
            from video_diffusion_pytorch import Unet3D
        except ImportError as error:
            raise ImportError(
                "video-diffusion-pytorch is missing; `make bench` installs it"
            ) from error
        net = Unet3D(dim=32, dim_mults=(1, 2, 4))
    else:
        patch = 1 if name == OURS else 2
        net = VideoUNet(widths=(32, 96, 160), attention=(True, True, True), patch=patch)
    return net.to(runtime.device())


def answer(net: nn.Module, clip: Tensor, t: Tensor) -> Tensor:
    """The network's prediction."""
    out = net(clip, t)
    return out if isinstance(out, Tensor) else out.sample


@dataclass(frozen=True)
class Subject:
    """A network, the clip that it sees, and the arithmetic."""

    net: nn.Module
    clip: Tensor
    half: bool

    @classmethod
    def make(cls, name: str, frames: int, half: bool) -> "Subject":
        clip = torch.randn(BATCH, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        return cls(build(name), clip.to(runtime.device()), half)

    def train(self) -> None:
        """Forward, backward; the update is the same for all and left out."""
        self.net.zero_grad(set_to_none=True)
        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=self.half):
            loss = answer(self.net, self.clip, self._t()).float().square().mean()
        loss.backward()

    def sample(self) -> None:
        """One step of sampling."""
        with (
            torch.no_grad(),
            torch.autocast(self.clip.device.type, torch.bfloat16, enabled=self.half),
        ):
            answer(self.net, self.clip, self._t())

    def flops(self) -> int:
        """Of a training step, as torch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.train()
        return counter.get_total_flops()

    def _t(self) -> Tensor:
        return torch.arange(BATCH, device=self.clip.device)


def matmul_peak(half: bool, size: int = 2048) -> float:
    """FLOP a second of the largest product that fits in no cache, the best of several: what the machine can do."""
    dtype = torch.bfloat16 if half else torch.float32
    a, b = (torch.randn(size, size, device=runtime.device()).to(dtype) for _ in range(2))
    times = alternate({"product": lambda: a @ b}, repeats=15, warmup=3)["product"]
    return 2 * size**3 / min(times)


def peak_memory(name: str, frames: int, half: bool) -> float:
    """MB that a training step needs beyond the network itself, at most; the second step's, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_of, (name, frames, half))


def _memory_of(name: str, frames: int, half: bool) -> float:
    subject = Subject.make(name, frames, half)
    before = psutil.Process().memory_info().rss / 1e6
    subject.train()  # gradients are there from now on
    if runtime.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    with redirect_stdout(io.StringIO()), runtime.measured("a step") as cost:
        subject.train()
    return cost.peak_mb - before


def memory_row(frames: int, half: bool, case: str) -> Row:
    """Ours beside theirs."""
    ours, theirs = (peak_memory(name, frames, half) for name in (OURS, THEIRS))
    ratio = theirs / ours
    return Row(
        "unet",
        f"{case} memory",
        OURS,
        ours,
        "MB",
        THEIRS,
        ratio,
        ratio,
        ratio,
        f"theirs {theirs:.0f} MB",
    )


def bench_unet() -> list[Row]:
    """A training step and a step of sampling of each, in float32, and in bfloat16 where the machine is fast at it."""
    # Emulated, it is far slower than float32, and nobody would use it
    halves = (False, True)[: 1 + (runtime.dtype(runtime.device()) == torch.bfloat16)]
    rows = [row for half in halves for row in cases(half, "")]
    rows += [memory_row(frames, half, _case(frames, half)) for half in halves for frames in FRAMES]
    runtime.keep_freed_memory()  # for good, so that it comes last
    return rows + [row for half in halves for row in cases(half, ", freed memory kept")]


def cases(half: bool, told: str) -> list[Row]:
    """Training and sampling for each number of frames. told: of the process, for the names."""
    rows, peak = [], matmul_peak(half)
    for frames in FRAMES:
        subjects = {kind: Subject.make(kind, frames, half) for kind in (OURS, STEM, THEIRS)}
        case = _case(frames, half)
        rows += timed(
            subjects, {k: s.train for k, s in subjects.items()}, f"{case} training step{told}", peak
        )
        rows += timed(
            subjects,
            {k: s.sample for k, s in subjects.items()},
            f"{case} sampling step{told}",
            None,
        )
    return rows


def _case(frames: int, half: bool) -> str:
    return f"{BATCH}x3x{frames}x{SIZE}x{SIZE} {'bfloat16' if half else 'float32'}"


def timed(
    subjects: dict[str, Subject],
    functions: dict[str, Callable[[], None]],
    case: str,
    peak: float | None,
) -> list[Row]:
    """A row for each subject, theirs being the peer; peak: FLOP a second of the machine, None to leave it out."""
    times, rows = alternate(functions, repeats=7, budget_s=SECONDS_A_CASE), []
    for name, subject in subjects.items():
        note = f"{count_parameters(subject.net):,} parameters"
        row = partial(compare, times, name, THEIRS, benchmark="unet", case=case)
        if peak is not None:
            flops = subject.flops()
            share = flops / (min(times[name]) * peak)
            note += f"; {flops / 1e9:.0f} GFLOP; {share:.0%} of the machine's largest product"
        rows.append(row(note=note))
    return rows
