"""Seconds per image, measured on tiny networks; nothing is really compiled."""

import re

import pytest
import torch

from course_lib.bench import sampling as bench
from course_lib.papers import ddpm

STEPS = 4
TEXT_TO_IMAGE = [
    "diffusers float32",
    "course float32",
    "diffusers bfloat16",
    "course bfloat16",
    "course bfloat16, compiled",
]
SAMPLERS = [
    "DDIMScheduler.step in a loop",
    "ddpm",
    "ddim",
    "sample, DDPMScheduler",
    "sample, DDIMScheduler",
    "sample, EulerDiscreteScheduler",
    "sample, DPMSolverMultistepScheduler",
]
CASES = [
    "mini-sd, 4 steps of DDIM with guidance, batch of 1",
    "mini-sd, 4 steps of DDIM with guidance, batch of 2",
    "pixel-ddpm, 4 steps, batch of 4",
    "identity model, 4 steps, 4x3x32x32",
]


@pytest.fixture
def small(monkeypatch, untrained_diffusion):
    """Small networks in the zoo, few images, few rounds, and a compiler that changes nothing."""
    for name, value in (
        ("NUM_INFERENCE_STEPS", STEPS),
        ("TARGET_SECONDS", {1: 0.5, 2: 0.15}),
        ("PIXEL_BATCH", 4),
        ("SECONDS_PER_CASE", 0),
    ):
        monkeypatch.setattr(bench, name, value)

    def load(name, dtype=torch.float32, device="cpu"):
        if name == "mini-sd":
            return untrained_diffusion().to_pipeline().to(dtype=dtype)
        assert name == "pixel-ddpm"
        torch.manual_seed(0)
        return ddpm.build_unet(3, 8, (8, 32)).eval().requires_grad_(False)

    monkeypatch.setattr(bench.zoo, "load", load)
    monkeypatch.setattr(torch, "compile", lambda call, **kwargs: call)


@pytest.fixture
def only_text_to_image(small, monkeypatch):
    """The same without the cases of the samplers."""
    for name in ("sampler_rows", "overhead_rows"):
        monkeypatch.setattr(bench, name, lambda: [])


@pytest.fixture
def fixed_clock(monkeypatch):
    """A clock by which the two peers take 6 s and everything else 3 s."""

    def timings(functions, repeats, budget_s):
        results = {name: function() for name, function in functions.items()}
        seconds = {
            name: [6.0 if name in (bench.PIPELINE, bench.LOOP) else 3.0] * repeats
            for name in functions
        }
        return seconds, results

    monkeypatch.setattr(bench, "timed_with_results", timings)


def test_every_contender_in_every_case_and_whether_images_are_equal(small):
    rows = bench.bench_sampling()
    expected = [(case, name) for case in CASES[:2] for name in TEXT_TO_IMAGE]
    expected += [(case, name) for case in CASES[2:] for name in SAMPLERS]
    assert [(row.case, row.contender) for row in rows] == expected
    assert {row.benchmark for row in rows} == {"sampling"}
    assert all(row.value > 0 and row.ratio_low <= row.ratio <= row.ratio_high for row in rows)
    for row in rows:
        assert row.peer == ("diffusers float32" if row.case in CASES[:2] else SAMPLERS[0])
    notes = {(row.case, row.contender): row.note for row in rows}
    for case, target, double in ((CASES[0], "0.5", "1"), (CASES[1], "0.15", "0.3")):
        equal = f"target {double} s; mean difference 0.00 of 255 levels"
        assert notes[case, "course float32"] == equal
        assert notes[case, "course bfloat16"].startswith(f"target {target} s; ")
        compiled = rf"target {target} s; first call after \d+ s; "
        assert re.match(compiled, notes[case, TEXT_TO_IMAGE[4]])
        assert notes[case, "diffusers float32"] == ""
        assert "target" not in notes[case, "diffusers bfloat16"]
        for name in TEXT_TO_IMAGE[2:]:  # coarser arithmetic, but the same image
            difference = re.search(r"mean difference (.*) of 255 levels", notes[case, name])
            assert 0 < float(difference.group(1)) < 8
    for name in SAMPLERS:
        is_equal = name in ("ddim", "sample, DDIMScheduler")
        expected = "mean difference 0.00 of 255 levels" if is_equal else ""
        assert notes[CASES[2], name] == expected


def test_the_pipeline_gets_the_same_noise_prompts_steps_and_guidance(
    small, untrained_diffusion, monkeypatch
):
    parts = untrained_diffusion()
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["a tiger", "a star"]
    generate = bench.course_fn(parts, prompts, noise)
    images = generate()
    diffusers_images = bench.diffusers_fn(parts, prompts, noise)()
    torch.testing.assert_close(diffusers_images, images, atol=1e-4, rtol=0)
    assert images.shape == (2, 3, 64, 64) and images.min() < 0
    # Steps and scale matter, so that the agreement means something
    for name, value in (("NUM_INFERENCE_STEPS", STEPS + 2), ("GUIDANCE_SCALE", 1.5)):
        monkeypatch.setattr(bench, name, value)
        assert (generate() - images).abs().max() > 1e-3


def test_seconds_are_per_image_and_microseconds_per_step(small, fixed_clock):
    rows = {(row.case, row.contender): row for row in bench.bench_sampling()}
    for case, batch_size in zip(CASES[:3], (1, 2, 4), strict=True):
        of_case = [row for (row_case, _), row in rows.items() if row_case == case]
        others = len(of_case) - 1
        assert [row.value for row in of_case] == [6 / batch_size] + [3 / batch_size] * others
        assert [row.ratio for row in of_case] == [1] + [2] * others
        assert {row.unit for row in of_case} == {"s/image"}
    idle = rows[CASES[3], "sample, DDIMScheduler"]
    assert (idle.value, idle.unit, idle.ratio) == (0.75e6, "µs/step", 2)
    assert idle.note == "-750000 µs per step"
    assert rows[CASES[3], bench.LOOP].note == ""


def test_compiling_comes_before_the_clock(only_text_to_image, monkeypatch):
    calls, timed = [], bench.timed_with_results

    def compile(call, **kwargs):
        return lambda *args, **kwargs: calls.append("compiled") or call(*args, **kwargs)

    def recording_timings(*args, **kwargs):
        calls.append("clock")
        return timed(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(bench, "timed_with_results", recording_timings)
    bench.bench_sampling()
    single_call = ["compiled"] * STEPS
    # A warm-up and three rounds, for each batch size
    assert calls == [*single_call, "clock", *single_call * 4] * 2


def test_without_a_compiler_its_rows_are_left_out(
    only_text_to_image, fixed_clock, monkeypatch, capsys
):
    def compile(call, **kwargs):
        def fail(*args, **kwargs):
            raise RuntimeError("no working C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    rows = bench.bench_sampling()
    assert [row.contender for row in rows] == TEXT_TO_IMAGE[:4] * 2
    line = "course bfloat16, compiled: left out, no working C++ compiler\n"
    assert capsys.readouterr().out == line * 2


def test_samplers_end_at_the_data(small):
    x0 = torch.full((4, 3, 8, 8), 0.25)
    alphas = ddpm.build_scheduler("v_prediction").alphas_cumprod.sqrt()

    def ideal(x, t, cond):
        """v of a model that always predicts the same x0."""
        alpha = alphas[t.long()].view(-1, 1, 1, 1)
        return (alpha * x - x0) / (1 - alpha**2).sqrt()

    functions = bench.samplers(ideal, torch.randn(4, 3, 8, 8), torch.zeros(4))
    for name, generate in functions.items():
        assert (generate() - x0).abs().max() < 0.05, name
