"""The video U-Nets side by side: who is compared with whom, what is counted, and the peer's mask that leaks."""

import builtins

import pytest
import torch

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


@pytest.fixture
def small(monkeypatch):
    """Tiny networks without the peer, tiny clips, one round."""
    monkeypatch.setattr(bench, "SIZE", 8)
    monkeypatch.setattr(bench, "FRAMES", (2,))
    monkeypatch.setattr(
        bench, "build", lambda name: VideoUNet(widths=(8, 8), attention=(True, True), head_width=8)
    )
    monkeypatch.setattr(bench, "SECONDS_A_CASE", 0)
    monkeypatch.setattr(bench, "matmul_peak", lambda half: 1e9)
    monkeypatch.setattr(
        bench, "peak_memory", lambda name, frames, half: 100.0 if name == bench.OURS else 250.0
    )


@pytest.mark.parametrize(
    "fast, names", [(torch.bfloat16, ("float32", "bfloat16")), (torch.float32, ("float32",))]
)
def test_every_case_has_a_row_for_everybody_and_one_for_memory(small, monkeypatch, fast, names):
    monkeypatch.setattr(bench.runtime, "dtype", lambda device: fast)
    rows = bench.bench_unet()
    steps = [
        f"{what}{kept}"
        for what in ("training step", "sampling step")
        for kept in ("", ", freed memory kept")
    ]
    cases = [f"4x3x2x8x8 {name} {step}" for name in names for step in steps]
    assert {row.case for row in rows if not row.case.endswith("memory")} == set(cases)
    for case in cases:
        assert [row.subject for row in rows if row.case == case] == [
            bench.OURS,
            bench.STEM,
            bench.THEIRS,
        ]
    memory = [row for row in rows if row.case.endswith("memory")]
    assert [(row.value, row.ratio, row.unit) for row in memory] == [(100.0, 2.5, "MB")] * len(names)
    assert all(row.peer == bench.THEIRS for row in rows)
    training = [row for row in rows if row.case.endswith("training step")]
    assert all(
        "of the machine's largest product" in row.note and "GFLOP" in row.note for row in training
    )


def test_flops_of_a_step_are_three_times_those_of_a_forward_pass(small):
    """A convolution's backward pass has two products for each of the forward one; the first layer's has only one."""
    subject = bench.Subject.make(bench.OURS, 2, half=False)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        subject.sample()
    assert 2.5 * counter.get_total_flops() < subject.flops() < 3.1 * counter.get_total_flops()


def test_the_largest_product_counts_two_for_a_multiply_add(monkeypatch):
    monkeypatch.setattr(bench, "alternate", lambda functions, **options: {"product": [0.5, 0.25]})
    assert bench.matmul_peak(False, size=8) == 2 * 8**3 / 0.25


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(bench, "THEIRS", "nobody")
    assert bench.peak_memory(bench.OURS, 1, False) > 1  # the real one, on a clip of one frame


def test_without_the_peer_it_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **options):
        if name == "video_diffusion_pytorch":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        ImportError, match="video-diffusion-pytorch is missing; `make bench` installs it"
    ):
        bench.build(bench.THEIRS)


@peer
def test_the_networks_are_equally_large():
    sizes = {
        name: count_parameters(bench.build(name)) for name in (bench.OURS, bench.STEM, bench.THEIRS)
    }
    assert all(abs(size / sizes[bench.THEIRS] - 1) < 0.05 for size in sizes.values())


@peer
def test_the_peers_mask_leaks_and_ours_does_not():
    """All frames are declared pictures of their own; then the last two change, and the first two are looked at."""
    torch.manual_seed(0)
    theirs = video_diffusion_pytorch.Unet3D(dim=16, dim_mults=(1, 2)).eval()
    ours = VideoUNet(widths=(16, 32), attention=(True, True), head_width=16).eval()
    for layer in ours.modules():
        if hasattr(layer, "to_out"):
            torch.nn.init.normal_(layer.to_out.weight)
    clip, t = torch.randn(1, 3, 4, 16, 16), torch.tensor([5])
    other = torch.cat([clip[:, :, :2], clip[:, :, 2:] + 1], dim=2)
    alone = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        leaked = theirs(clip, t, focus_present_mask=alone[:, 0]) - theirs(
            other, t, focus_present_mask=alone[:, 0]
        )
        kept = ours(clip, t, alone=alone).sample - ours(other, t, alone=alone).sample
    assert leaked[:, :, :2].abs().max() > 0.01
    assert kept[:, :, :2].abs().max() == 0 and kept[:, :, 2:].abs().max() > 0.01
