"""Inflated U-Nets side by side with diffusers': equal answers, who is compared with whom, what is frozen."""

import re

import pytest
import torch

from course_lib.bench import inflate as bench
from course_lib.bench.timing import Row
from course_lib.papers.latent_diffusion import build_unet


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(
        bench, "build_unet", lambda size, text_width: build_unet(16, size, (32, 32), text_width)
    )
    monkeypatch.setattr(bench, "FRAMES", 3)


def given():
    return {
        "sample": torch.randn(2, 16, 3, 8, 8),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 128),
    }


def test_peers_have_the_same_weights_and_give_the_same_answers(small):
    nets, told = bench.networks(), given()
    answers = {
        name: bench.Subject(net.eval(), told, half=False).answer() for name, net in nets.items()
    }
    for style, peer in (("animatediff", "UNetMotionModel"), ("modelscope", "UNet3DConditionModel")):
        torch.testing.assert_close(answers[style], answers[peer], rtol=1e-4, atol=1e-4)
        assert bench.count_parameters(nets[style]) == bench.count_parameters(nets[peer])


def test_frozen_means_that_only_layers_over_time_learn(small):
    for name, net in bench.networks().items():
        bench.freeze_image(net)
        bench.Subject(net, given(), half=False).train()
        with_gradient = {n for n, p in net.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in net.named_parameters() if p.requires_grad}, name
        assert with_gradient and not any(
            "resnets" in n and "temporal" not in n for n in with_gradient
        ), name


@pytest.mark.parametrize(
    "fast, names", [(torch.bfloat16, ("float32", "bfloat16")), (torch.float32, ("float32",))]
)
def test_every_case_has_a_row_for_each_pair(small, monkeypatch, fast, names):
    def once(functions, **options):
        for function in functions.values():
            # dropout belongs to training alone
            assert function.__self__.net.training == (function.__name__ == "train")
            function()
        return {name: [1.0, 1.0] for name in functions}

    monkeypatch.setattr(bench, "alternate", once)
    clips = []

    def clip_rows(half):
        clips.append(half)
        return [
            Row("inflate", "a clip", "TextToVideoPipeline", 1.0, "s", "target 1 s", 1.0, 1.0, 1.0)
        ]

    monkeypatch.setattr(bench, "clip_rows", clip_rows)
    monkeypatch.setattr(bench.runtime, "dtype", lambda device: fast)
    rows = [row for row in bench.bench_inflate() if row.case != "a clip"]
    assert clips == [False, True][: len(names)]
    whats = ("sampling step", "training step", "training step, image model frozen")
    cases = [f"2x16x3x8x8 {name} {what}" for name in names for what in whats]
    assert list(dict.fromkeys(row.case for row in rows)) == cases
    pairs = [
        ("animatediff", "UNetMotionModel"),
        ("modelscope", "UNet3DConditionModel"),
        ("video-ldm", "UNetMotionModel"),
        ("video-ldm", "UNet3DConditionModel"),
    ]
    for case in cases:
        assert [(row.subject, row.peer) for row in rows if row.case == case] == pairs
    assert all(row.ratio == 1 and row.unit == "ms" for row in rows)


@pytest.fixture
def clips(monkeypatch):
    """A clock by which a clip takes 3 s, and one of a compiled model 2; a compiler that changes nothing.

    Gives what was drawn, by name, the pipelines that were loaded, and every call of what was compiled.
    """
    drawn, loaded, asked, load = {}, [], [], bench.zoo.load

    def thrice(functions, **options):
        drawn.update({name: function() for name, function in functions.items()})
        return {
            name: [1.0, 2.0, 3.0] if name == bench.COMPILED else [2.0, 3.0, 4.0]
            for name in functions
        }

    def remembered(name, **options):
        loaded.append(load(name, **options))  # it loads its image model before
        return loaded[-1]

    def compile(call, **options):
        return lambda *args, **told: asked.append(call) or call(*args, **told)

    monkeypatch.setattr(bench.zoo, "load", remembered)
    monkeypatch.setattr(bench, "alternate", thrice)
    monkeypatch.setattr(torch, "compile", compile)
    return drawn, loaded, asked


@pytest.mark.parametrize("half, target", [(False, 6), (True, 3)])
def test_a_whole_clip_is_held_against_its_target(clips, half, target):
    drawn, loaded, asked = clips
    rows, pipe = bench.clip_rows(half, steps=2), loaded[-1]
    kinds = {
        parameter.dtype
        for part in (pipe.unet, pipe.vae, pipe.text_encoder)
        for parameter in part.parameters()
    }
    assert kinds == {torch.bfloat16 if half else torch.float32}
    assert (
        [row.subject for row in rows] == list(drawn) == [bench.PIPELINE, bench.COMPILED][: 1 + half]
    )
    assert (
        len(asked) == 2 * 2 * half
    )  # two steps to compile, two for the clock, none of the plain network
    for row, seconds in zip(rows, (3, 2), strict=False):
        assert drawn[row.subject].isfinite().all()
        assert drawn[row.subject].shape == (1, 3, 16, 64, 64)
        assert (row.value, row.unit, row.peer, row.ratio) == (
            seconds,
            "s",
            f"target {target} s",
            target / seconds,
        )
        assert row.low < row.ratio < row.high
        assert "2 steps" in row.case and ("bfloat16" if half else "float32") in row.case
    assert [bool(re.fullmatch(r"the first after \d+ s", row.note)) for row in rows] == [
        False,
        True,
    ][: 1 + half]


def test_without_a_compiler_a_clip_is_timed_plainly(clips, monkeypatch, capsys):
    def compile(call, **options):
        def fail(*args, **told):
            raise RuntimeError("no working C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    assert [row.subject for row in bench.clip_rows(True, steps=1)] == [bench.PIPELINE]
    assert (
        capsys.readouterr().out
        == "TextToVideoPipeline, compiled: left out, no working C++ compiler\n"
    )
