"""Seconds a picture, measured on networks that take no time; nothing is really compiled."""

import re

import pytest
import torch

from course_lib.bench import sampling as bench
from course_lib.papers import ddpm

STEPS = 4
TEXT_TO_IMAGE = [
    "diffusers float32", "ours float32", "diffusers bfloat16", "ours bfloat16", "ours bfloat16, compiled",
]  # fmt: skip
SAMPLERS = [
    "DDIMScheduler.step in a loop", "ddpm", "ddim", "sample, DDPMScheduler", "sample, DDIMScheduler",
    "sample, EulerDiscreteScheduler", "sample, DPMSolverMultistepScheduler",
]  # fmt: skip
CASES = [
    "mini-sd, 4 steps of DDIM with guidance, 1 at once",
    "mini-sd, 4 steps of DDIM with guidance, 2 at once",
    "pixel-ddpm, 4 steps, 4 at once",
    "a model that does nothing, 4 steps, 4x3x32x32",
]


@pytest.fixture
def small(monkeypatch, untrained_diffusion):
    """Small networks in the zoo, few pictures, one round, and a compiler that changes nothing."""
    for name, value in (("STEPS", STEPS), ("BARS", {1: 0.5, 2: 0.15}), ("PIXEL_PICTURES", 4)):
        monkeypatch.setattr(bench, name, value)
    for name in ("REPEATS", "SHORT_REPEATS"):
        monkeypatch.setattr(bench, name, 1)

    def load(name, dtype=torch.float32, device="cpu"):
        if name == "mini-sd":
            return untrained_diffusion().pipeline().to(dtype=dtype)
        assert name == "pixel-ddpm"
        torch.manual_seed(0)
        return ddpm.build_unet(3, 8, (8, 32)).eval().requires_grad_(False)

    monkeypatch.setattr(bench.zoo, "load", load)
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)


@pytest.fixture
def only_text_to_image(small, monkeypatch):
    """The same without the cases of the samplers."""
    for name in ("sampler_rows", "overhead_rows"):
        monkeypatch.setattr(bench, name, lambda: [])


@pytest.fixture
def stopped(monkeypatch):
    """A clock by which the two that others are compared with take 6 s, everything else 3 s."""

    def alternate(functions, repeats, budget_s):
        for function in functions.values():
            function()
        return {
            name: [6.0 if name in (bench.PIPELINE, bench.LOOP) else 3.0] * repeats
            for name in functions
        }

    monkeypatch.setattr(bench, "alternate", alternate)


def test_every_way_in_every_case_and_whether_the_pictures_are_the_same(small):
    rows = bench.bench_sampling()
    expected = [(case, name) for case in CASES[:2] for name in TEXT_TO_IMAGE]
    expected += [(case, name) for case in CASES[2:] for name in SAMPLERS]
    assert [(row.case, row.subject) for row in rows] == expected
    assert {row.benchmark for row in rows} == {"sampling"}
    assert all(row.value > 0 and row.low <= row.ratio <= row.high for row in rows)
    assert all(
        row.peer == ("diffusers float32" if row.case in CASES[:2] else SAMPLERS[0]) for row in rows
    )
    notes = {(row.case, row.subject): row.note for row in rows}
    for case, bar, double in ((CASES[0], "0.5", "1"), (CASES[1], "0.15", "0.3")):
        assert notes[case, "ours float32"] == f"bar {double} s; 0.00 of 255 levels apart"
        assert notes[case, "ours bfloat16"].startswith(f"bar {bar} s; ")
        assert re.match(rf"bar {bar} s; the first after \d+ s; ", notes[case, TEXT_TO_IMAGE[4]])
        assert (
            notes[case, "diffusers float32"] == ""
            and "bar" not in notes[case, "diffusers bfloat16"]
        )
        for name in TEXT_TO_IMAGE[2:]:  # coarser arithmetic, but the same picture
            distance = float(notes[case, name].split("; ")[-1].removesuffix(" of 255 levels apart"))
            assert 0 < distance < 8
    for name in SAMPLERS:
        same = name in ("ddim", "sample, DDIMScheduler")
        assert notes[CASES[2], name] == ("0.00 of 255 levels apart" if same else "")


def test_the_pipeline_gets_the_same_noise_prompts_steps_and_guidance(
    small, untrained_diffusion, monkeypatch
):
    parts, noise = (
        untrained_diffusion(),
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    ours, theirs = (
        by(parts, ["a tiger", "a star"], noise) for by in (bench.by_us, bench.by_diffusers)
    )
    pictures = ours()
    torch.testing.assert_close(theirs(), pictures, atol=1e-4, rtol=0)
    assert pictures.shape == (2, 3, 64, 64) and pictures.min() < 0
    for name, value in (("STEPS", STEPS + 2), ("GUIDANCE", 1.5)):
        monkeypatch.setattr(bench, name, value)
        assert (ours() - pictures).abs().max() > 1e-3  # so that agreement means something


def test_seconds_are_a_pictures_and_microseconds_a_steps(small, stopped):
    rows = {(row.case, row.subject): row for row in bench.bench_sampling()}
    for case, count in zip(CASES[:3], (1, 2, 4), strict=True):
        found = [row for (where, _), row in rows.items() if where == case]
        assert [row.value for row in found] == [6 / count] + [3 / count] * (len(found) - 1)
        assert [row.ratio for row in found] == [1] + [2] * (len(found) - 1)
        assert {row.unit for row in found} == {"s/picture"}
    idle = rows[CASES[3], "sample, DDIMScheduler"]
    assert (idle.value, idle.unit, idle.ratio, idle.note) == (
        0.75e6,
        "µs/step",
        2,
        "-750000 µs a step",
    )
    assert rows[CASES[3], bench.LOOP].note == ""


def test_compiling_comes_before_the_clock(only_text_to_image, monkeypatch):
    calls, alternate = [], bench.alternate

    def compile(call, **options):
        return lambda *args, **options: calls.append("compiled") or call(*args, **options)

    def watched(*args, **options):
        calls.append("clock")
        return alternate(*args, **options)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(bench, "alternate", watched)
    bench.bench_sampling()
    once = ["compiled"] * STEPS
    assert calls == [*once, "clock", *once * 2] * 2  # warm-up and one round, for each number


def test_without_a_compiler_its_rows_are_left_out(only_text_to_image, stopped, monkeypatch, capsys):
    def compile(call, **options):
        def fail(*args, **options):
            raise RuntimeError("no working C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    rows = bench.bench_sampling()
    assert [row.subject for row in rows] == TEXT_TO_IMAGE[:4] * 2
    line = "ours bfloat16, compiled: left out, no working C++ compiler\n"
    assert capsys.readouterr().out == line * 2


def test_samplers_end_in_data_each_in_its_own_way(small):
    oracle = torch.full((4, 3, 8, 8), 0.25)
    schedule = ddpm.build_schedule("v_prediction")
    signal = schedule.alphas_cumprod.sqrt()

    def certain(x, t, conditioning):
        """v of a model that always answers the same x0: every sampler must end there."""
        a = signal[t.long()].view(-1, 1, 1, 1)
        return (a * x - oracle) / (1 - a**2).sqrt()

    for name, draw in bench.samplers(certain, torch.randn(4, 3, 8, 8), torch.zeros(4)).items():
        assert (draw() - oracle).abs().max() < 0.05, name
