"""VideoUNet against video-diffusion-pytorch's Unet3D: training step, its memory, sampling step.

Both have equally many parameters within 5 %, spatial and temporal attention at the same
resolutions, and the same input. Unet3D's spatial attention is a linear approximation except in the
middle, and it has one more temporal attention at the beginning; VideoUNet has full attention
everywhere. Memory is that of a separate process.

Every case is run twice: in an ordinary process, and in one that keeps freed memory
(`runtime.tune_glibc_malloc`), as in the course's own training loop. By default glibc requests large
tensors from the system and returns them in every operation; Unet3D makes more of them and gains
more.
"""

import io
import multiprocessing
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial

import psutil
import torch
from torch import nn

from course_lib import runtime
from course_lib.bench.timing import (
    BenchmarkRow,
    Contender,
    contender_rows,
    dtype_name,
    fast_dtypes,
    interleaved_timings,
)
from course_lib.nn.profiling import count_flops, count_parameters
from course_lib.nn.unet import VideoUNet

BATCH_SIZE = 4
SIZE = 32
NUM_FRAMES = (8, 16)
COURSE = "VideoUNet"
PATCHES = f"{COURSE}, patches of 2x2"
PEER = "video-diffusion-pytorch Unet3D"
SECONDS_PER_CASE = 40


def build_net(name: str) -> nn.Module:
    """One of the three networks, untrained, on the machine's device.

    Raises:
        ImportError: the peer is not installed.
    """
    torch.manual_seed(0)
    if name == PEER:
        try:
            from video_diffusion_pytorch import Unet3D
        except ImportError as error:
            raise ImportError(
                "video-diffusion-pytorch is missing; `make bench` installs it"
            ) from error
        net = Unet3D(dim=32, dim_mults=(1, 2, 4))
    else:
        net = VideoUNet(
            block_out_channels=(32, 96, 160),
            attention_levels=(True, True, True),
            patch_size=1 if name == COURSE else 2,
        )
    return net.to(runtime.device())


def make_contender(name: str, num_frames: int, dtype: torch.dtype) -> Contender:
    """A network with its input."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(BATCH_SIZE, 3, num_frames, SIZE, SIZE, generator=generator)
    inputs = (video.to(runtime.device()), torch.arange(BATCH_SIZE, device=runtime.device()))
    return Contender(build_net(name), inputs, dtype=dtype)


def matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP per second of a large matrix product, the best of several: the limit of the machine."""
    a, b = (torch.randn(size, size, device=runtime.device()).to(dtype) for _ in range(2))
    times = interleaved_timings({"product": lambda: a @ b}, repeats=15, warmup=3)["product"]
    return 2 * size**3 / min(times)


def peak_memory(name: str, num_frames: int, dtype: torch.dtype) -> float:
    """MB that a training step needs beyond the network, at its peak; measured in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory_of_step, (name, num_frames, dtype))


def _memory_of_step(name: str, num_frames: int, dtype: torch.dtype) -> float:
    contender = make_contender(name, num_frames, dtype)
    before = psutil.Process().memory_info().rss / 1e6
    contender.training_step()  # allocates the gradients
    if runtime.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    with redirect_stdout(io.StringIO()), runtime.measure("step") as cost:
        contender.training_step()
    return cost.peak_mb - before


def memory_row(num_frames: int, dtype: torch.dtype) -> BenchmarkRow:
    """Peak memory of VideoUNet and of its peer."""
    own, peer = (peak_memory(name, num_frames, dtype) for name in (COURSE, PEER))
    case = f"{_case(num_frames, dtype)} memory"
    ratios = (peer / own,) * 3
    return BenchmarkRow("unet", case, COURSE, own, "MB", PEER, *ratios, f"peer {peer:.0f} MB")


def bench_unet() -> list[BenchmarkRow]:
    """Training and sampling steps and memory, in every dtype that the machine is fast at."""
    dtypes = fast_dtypes()
    rows = [row for dtype in dtypes for row in step_rows(dtype, "")]
    rows += [memory_row(num_frames, dtype) for dtype in dtypes for num_frames in NUM_FRAMES]
    runtime.tune_glibc_malloc()  # cannot be undone, so these cases come last
    return rows + [row for dtype in dtypes for row in step_rows(dtype, ", malloc tuned")]


def _case(num_frames: int, dtype: torch.dtype) -> str:
    return f"{BATCH_SIZE}x3x{num_frames}x{SIZE}x{SIZE} {dtype_name(dtype)}"


def step_rows(dtype: torch.dtype, suffix: str) -> list[BenchmarkRow]:
    """Training and sampling for each number of frames.

    Args:
        dtype: float32 or bfloat16.
        suffix: of the cases' names, for the state of the process.
    """
    peak = matmul_peak(dtype)
    rows = []
    for num_frames in NUM_FRAMES:
        contenders = {
            name: make_contender(name, num_frames, dtype) for name in (COURSE, PATCHES, PEER)
        }
        for step in ("training step", "sampling step"):
            rows += contender_rows(
                contenders,
                step.replace(" ", "_"),
                [(name, PEER) for name in contenders],
                benchmark="unet",
                case=f"{_case(num_frames, dtype)} {step}{suffix}",
                budget_s=SECONDS_PER_CASE,
                note=partial(_note, contenders, peak if step == "training step" else None),
            )
    return rows


def _note(
    contenders: dict[str, Contender], peak: float | None, name: str, times: Sequence[float]
) -> str:
    """Parameters; with the machine's FLOP per second also FLOPs and utilisation."""
    note = f"{count_parameters(contenders[name].net):,} parameters"
    if peak is None:
        return note
    # The backward pass has two products for each of the forward pass
    flops = 3 * count_flops(contenders[name].net, *contenders[name].inputs)
    share = flops / (min(times) * peak)
    return f"{note}; {flops / 1e9:.0f} GFLOP; {share:.0%} of the matmul peak"
