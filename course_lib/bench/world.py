"""Rendering rate of the Emoji World; training must never wait for data."""

import itertools
from collections.abc import Iterator

from course_lib.bench.timing import BenchmarkRow, interleaved_timings, quartiles
from course_lib.world import World

TARGET_RATE = 1500  # frames per second at 64x64 on two cores
BATCH_SIZE = 32


def bench_world() -> list[BenchmarkRow]:
    """Frames per second of training clips at the sizes of the course; every batch is a new one."""
    rows = []
    for size, num_frames in ((64, 16), (64, 8), (32, 16)):
        world = World(split="train", size=size, num_frames=num_frames)
        starts = itertools.count(step=BATCH_SIZE)

        def render(world: World = world, starts: Iterator[int] = starts) -> object:
            first = next(starts)
            return world.batch(range(first, first + BATCH_SIZE)).video  # may be rendered lazily

        times = interleaved_timings({"world": render}, repeats=15, warmup=2, budget_s=8)["world"]
        low, rate, high = quartiles([BATCH_SIZE * num_frames / seconds for seconds in times])
        case = f"{BATCH_SIZE} clips of {num_frames} frames, {size}x{size}"
        peer = f"target {TARGET_RATE} at 64x64"
        ratios = (rate / TARGET_RATE, low / TARGET_RATE, high / TARGET_RATE)
        rows.append(BenchmarkRow("world", case, "World.batch", rate, "frames/s", peer, *ratios))
    return rows
