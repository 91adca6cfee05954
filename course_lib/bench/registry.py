"""Every benchmark by name, in the order in which they run."""

from collections.abc import Callable

from course_lib.bench.convolution import bench_convolution
from course_lib.bench.inflate import bench_inflate
from course_lib.bench.metrics import bench_metrics
from course_lib.bench.sampling import bench_sampling
from course_lib.bench.threads import bench_threads
from course_lib.bench.timing import BenchmarkRow
from course_lib.bench.unet import bench_unet
from course_lib.bench.world import bench_world

BENCHMARKS: dict[str, Callable[[], list[BenchmarkRow]]] = {
    "world": bench_world,
    "convolution": bench_convolution,
    "metrics": bench_metrics,
    "sampling": bench_sampling,
    "unet": bench_unet,
    "inflate": bench_inflate,
    "threads": bench_threads,
}
