"""The video U-Nets: what is compared, what is counted, and that the peer's mask leaks."""

import builtins
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib.bench import unet as bench
from course_lib.nn.profiling import count_parameters
from course_lib.nn.unet import VideoUNet

try:
    import video_diffusion_pytorch
except ImportError:  # only `make bench` installs it
    video_diffusion_pytorch = None
peer = pytest.mark.skipif(
    video_diffusion_pytorch is None, reason="video-diffusion-pytorch is not installed"
)


def build_small(name):
    return VideoUNet(block_out_channels=(8, 8), attention_levels=(True, True), head_dim=8)


@pytest.fixture
def small(monkeypatch):
    """Tiny networks without the peer, tiny clips, one round."""
    monkeypatch.setattr(bench, "SIZE", 8)
    monkeypatch.setattr(bench, "NUM_FRAMES", (2,))
    monkeypatch.setattr(bench, "build_net", build_small)
    monkeypatch.setattr(bench, "SECONDS_PER_CASE", 0)
    monkeypatch.setattr(bench, "matmul_peak", lambda dtype: 1e9)
    monkeypatch.setattr(
        bench,
        "peak_memory",
        lambda name, num_frames, dtype: 100.0 if name == bench.COURSE else 250.0,
    )


@pytest.mark.parametrize(
    "fast, names", [(torch.bfloat16, ("float32", "bfloat16")), (torch.float32, ("float32",))]
)
def test_every_case_has_a_row_for_each_network_and_one_for_memory(small, monkeypatch, fast, names):
    monkeypatch.setattr(bench.runtime, "dtype", lambda device: fast)
    rows = bench.bench_unet()
    steps = [
        f"{step}{suffix}"
        for step in ("training step", "sampling step")
        for suffix in ("", ", malloc tuned")
    ]
    cases = [f"4x3x2x8x8 {name} {step}" for name in names for step in steps]
    assert {row.case for row in rows if not row.case.endswith("memory")} == set(cases)
    for case in cases:
        contenders = [row.contender for row in rows if row.case == case]
        assert contenders == [bench.COURSE, bench.PATCHES, bench.PEER]
    memory = [row for row in rows if row.case.endswith("memory")]
    assert [(row.value, row.ratio, row.unit) for row in memory] == [(100.0, 2.5, "MB")] * len(names)
    assert all(row.peer == bench.PEER for row in rows)
    for row in rows:
        is_training = "training step" in row.case
        assert ("of the matmul peak" in row.note and "GFLOP" in row.note) == is_training


def test_flops_of_a_training_step_are_about_those_that_torch_counts(small):
    """A layer's backward pass has two products for each forward one; only the first has one."""
    contender = bench.make_contender(bench.COURSE, 2, torch.float32)
    with FlopCounterMode(display=False) as counter:
        contender.training_step()
    # With a peak of 1,000 FLOP per second and a step of 1 s, 1 % of the peak is 10 FLOP
    note = bench._note({"net": contender}, 1e3, "net", [1.0])
    flops = 1e3 * float(re.search(r"([0-9]+)% of the matmul peak", note).group(1)) / 100
    assert counter.get_total_flops() < flops < 1.3 * counter.get_total_flops()


def test_a_multiply_add_counts_as_two_operations(monkeypatch):
    timings = {"product": [0.5, 0.25]}
    monkeypatch.setattr(bench, "interleaved_timings", lambda functions, **kwargs: timings)
    assert bench.matmul_peak(torch.float32, size=8) == 2 * 8**3 / 0.25


def test_memory_is_measured_in_a_new_process(monkeypatch):
    monkeypatch.setattr(bench, "PEER", "nobody")
    # The real network on a clip of one frame
    assert bench.peak_memory(bench.COURSE, 1, torch.float32) > 1


def test_without_the_peer_the_message_says_how_to_get_it(monkeypatch):
    real_import = builtins.__import__

    def failing_import(name, *args, **kwargs):
        if name == "video_diffusion_pytorch":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing_import)
    message = "video-diffusion-pytorch is missing; `make bench` installs it"
    with pytest.raises(ImportError, match=message):
        bench.build_net(bench.PEER)


@peer
def test_the_networks_are_equally_large():
    sizes = {
        name: count_parameters(bench.build_net(name))
        for name in (bench.COURSE, bench.PATCHES, bench.PEER)
    }
    assert all(abs(size / sizes[bench.PEER] - 1) < 0.05 for size in sizes.values())


@peer
def test_the_peers_mask_leaks_and_the_courses_does_not():
    """All frames are marked as images; then the last two change, and the first two are compared."""
    torch.manual_seed(0)
    unet3d = video_diffusion_pytorch.Unet3D(dim=16, dim_mults=(1, 2)).eval()
    unet = VideoUNet(block_out_channels=(16, 32), attention_levels=(True, True), head_dim=16).eval()
    for layer in unet.modules():
        if hasattr(layer, "to_out"):
            torch.nn.init.normal_(layer.to_out.weight)
    clip, t = torch.randn(1, 3, 4, 16, 16), torch.tensor([5])
    other = torch.cat([clip[:, :, :2], clip[:, :, 2:] + 1], dim=2)
    is_image = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        leaked, kept = (
            call(clip) - call(other)
            for call in (
                lambda x: unet3d(x, t, focus_present_mask=is_image[:, 0]),
                lambda x: unet(x, t, is_image=is_image).sample,
            )
        )
    assert leaked[:, :, :2].abs().max() > 0.01
    assert kept[:, :, :2].abs().max() == 0 and kept[:, :, 2:].abs().max() > 0.01
