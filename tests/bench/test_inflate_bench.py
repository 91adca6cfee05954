"""Inflated U-Nets against diffusers': equal outputs, which pairs are compared, what is frozen."""

import re

import pytest
import torch

from course_lib.bench import inflate as bench
from course_lib.bench.timing import BenchmarkRow
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, build_unet


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(
        bench,
        "build_unet",
        lambda sample_size, cross_attention_dim: build_unet(
            LATENT_CHANNELS, sample_size, (32, 32), cross_attention_dim
        ),
    )
    monkeypatch.setattr(bench, "NUM_FRAMES", 3)


def contenders(nets):
    inputs = bench.random_inputs()
    return {name: bench.make_contender(net, inputs, torch.float32) for name, net in nets.items()}


def test_peers_have_the_same_weights_and_give_the_same_outputs(small):
    nets = bench.networks()
    preds = {name: each.predict() for name, each in contenders(nets).items() if each.net.eval()}
    for style, peer in (("animatediff", "UNetMotionModel"), ("modelscope", "UNet3DConditionModel")):
        torch.testing.assert_close(preds[style], preds[peer], rtol=1e-4, atol=1e-4)
        assert bench.count_parameters(nets[style]) == bench.count_parameters(nets[peer])


def test_with_a_frozen_image_model_only_temporal_layers_are_trained(small):
    for name, contender in contenders(bench.networks()).items():
        bench.freeze_image_model(contender.net)
        contender.training_step()
        parameters = dict(contender.net.named_parameters())
        with_gradient = {n for n, p in parameters.items() if p.grad is not None}
        assert with_gradient == {n for n, p in parameters.items() if p.requires_grad}, name
        spatial = [n for n in with_gradient if "resnets" in n and "temporal" not in n]
        assert with_gradient and not spatial, name


@pytest.mark.parametrize(
    "fast, names", [(torch.bfloat16, ("float32", "bfloat16")), (torch.float32, ("float32",))]
)
def test_every_case_has_a_row_for_each_pair(small, monkeypatch, fast, names):
    def single_run(functions, **kwargs):
        for function in functions.values():
            # dropout belongs to training only
            assert function.__self__.net.training == (function.__name__ == "training_step")
            function()
        return {name: [1.0, 1.0] for name in functions}

    monkeypatch.setattr("course_lib.bench.timing.interleaved_timings", single_run)
    dtypes = []

    def clip_rows(dtype):
        dtypes.append(dtype)
        ratios = (1.0, 1.0, 1.0)
        return [BenchmarkRow("inflate", "clip", bench.PIPELINE, 1.0, "s", "target 1 s", *ratios)]

    monkeypatch.setattr(bench, "clip_rows", clip_rows)
    monkeypatch.setattr(bench.runtime, "dtype", lambda device: fast)
    rows = [row for row in bench.bench_inflate() if row.case != "clip"]
    assert dtypes == [torch.float32, torch.bfloat16][: len(names)]
    steps = ("sampling step", "training step", "training step, image model frozen")
    cases = [f"2x16x3x8x8 {name} {step}" for name in names for step in steps]
    assert list(dict.fromkeys(row.case for row in rows)) == cases
    for case in cases:
        pairs = [(row.contender, row.peer) for row in rows if row.case == case]
        assert pairs == [
            ("animatediff", "UNetMotionModel"),
            ("modelscope", "UNet3DConditionModel"),
            ("video-ldm", "UNetMotionModel"),
            ("video-ldm", "UNet3DConditionModel"),
        ]
    assert all(row.ratio == 1 and row.unit == "ms" for row in rows)


@pytest.fixture
def clips(monkeypatch):
    """A clock by which a clip takes 3 s, and with the compiled U-Net 2 s; a trivial compiler.

    Returns the generated clips by name, the loaded pipelines, and the calls of compiled functions.
    """
    generated, loaded, calls = {}, [], []
    load = bench.zoo.load

    def timings(functions, **kwargs):
        generated.update({name: function() for name, function in functions.items()})
        seconds = {name: [2.0, 3.0, 4.0] for name in functions}
        return seconds | {name: [1.0, 2.0, 3.0] for name in functions if name == bench.COMPILED}

    def recording_load(name, **kwargs):
        loaded.append(load(name, **kwargs))  # loads its image model first
        return loaded[-1]

    def compile(call, **kwargs):
        return lambda *args, **kwargs: calls.append(call) or call(*args, **kwargs)

    monkeypatch.setattr(bench.zoo, "load", recording_load)
    monkeypatch.setattr(bench, "interleaved_timings", timings)
    monkeypatch.setattr(torch, "compile", compile)
    return generated, loaded, calls


@pytest.mark.parametrize("dtype, target", [(torch.float32, 6), (torch.bfloat16, 3)])
def test_a_clip_is_compared_with_its_target(clips, dtype, target):
    generated, loaded, calls = clips
    rows, pipe = bench.clip_rows(dtype, num_inference_steps=2), loaded[-1]
    bf16 = dtype == torch.bfloat16
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {dtype}
    names = [bench.PIPELINE, bench.COMPILED][: 1 + bf16]
    assert [row.contender for row in rows] == list(generated) == names
    # Two steps to compile, two for the clock, none of the ordinary network
    assert len(calls) == 2 * 2 * bf16
    for row, seconds in zip(rows, (3, 2), strict=False):
        assert generated[row.contender].isfinite().all()
        assert generated[row.contender].shape == (1, 3, 16, 64, 64)
        assert (row.value, row.unit, row.peer) == (seconds, "s", f"target {target} s")
        assert row.ratio == target / seconds
        assert row.ratio_low < row.ratio < row.ratio_high
        assert "2 steps" in row.case and bench.dtype_name(dtype) in row.case
    has_compile_time = [bool(re.fullmatch(r"first clip after \d+ s", row.note)) for row in rows]
    assert has_compile_time == [False, True][: 1 + bf16]


def test_without_a_compiler_only_the_ordinary_clip_is_timed(clips, monkeypatch, capsys):
    def compile(call, **kwargs):
        def fail(*args, **kwargs):
            raise RuntimeError("no working C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    rows = bench.clip_rows(torch.bfloat16, num_inference_steps=1)
    assert [row.contender for row in rows] == [bench.PIPELINE]
    message = "TextToVideoPipeline, compiled: left out, no working C++ compiler\n"
    assert capsys.readouterr().out == message
