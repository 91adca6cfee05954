"""Frames per second of the Emoji World: data must never be what training waits for."""

import itertools

from course_lib.bench.timing import Row, alternate, quartiles
from course_lib.world import World

TARGET = 1500  # frames/s at 64 x 64 on two cores
CLIPS = 32


def bench_world() -> list[Row]:
    """Rendering rate of training clips at the sizes the course uses; every batch is a new one."""
    rows = []
    for size, frames in ((64, 16), (64, 8), (32, 16)):
        source, batch = World(split="train", size=size, frames=frames), itertools.count()

        def render(source=source, batch=batch) -> None:
            first = next(batch) * CLIPS
            source.batch(range(first, first + CLIPS)).video  # noqa: B018 (rendered when asked for, if not before)

        seconds = alternate({"world": render}, repeats=15, warmup=2, budget_s=8)["world"]
        low, rate, high = quartiles([CLIPS * frames / second for second in seconds])
        case = f"{CLIPS} clips of {frames} frames, {size}x{size}"
        target = f"target {TARGET} at 64x64"
        ratios = (rate / TARGET, low / TARGET, high / TARGET)
        rows.append(Row("world", case, "World.batch", rate, "frames/s", target, *ratios))
    return rows
