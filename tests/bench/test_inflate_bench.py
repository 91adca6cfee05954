"""Inflated U-Nets side by side with diffusers': equal answers, who is compared with whom, what is frozen."""

import pytest
import torch

from course_lib.bench import inflate as bench
from course_lib.bench.timing import Row
from course_lib.papers.latent_diffusion import build_unet


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "build_unet", lambda size, text_width: build_unet(16, size, (32, 32), text_width))
    monkeypatch.setattr(bench, "FRAMES", 3)


def given():
    return {
        "sample": torch.randn(2, 16, 3, 8, 8),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 128),
    }


def test_peers_have_the_same_weights_and_give_the_same_answers(small):
    nets, told = bench.networks(), given()
    answers = {name: bench.Subject(net.eval(), told, half=False).answer() for name, net in nets.items()}
    for style, peer in (("animatediff", "UNetMotionModel"), ("modelscope", "UNet3DConditionModel")):
        torch.testing.assert_close(answers[style], answers[peer], rtol=1e-4, atol=1e-4)
        assert bench.count_parameters(nets[style]) == bench.count_parameters(nets[peer])


def test_frozen_means_that_only_layers_over_time_learn(small):
    for name, net in bench.networks().items():
        bench.freeze_image(net)
        bench.Subject(net, given(), half=False).train()
        with_gradient = {n for n, p in net.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in net.named_parameters() if p.requires_grad}, name
        assert with_gradient and not any("resnets" in n and "temporal" not in n for n in with_gradient), name


@pytest.mark.parametrize("fast, names", [(torch.bfloat16, ("float32", "bfloat16")), (torch.float32, ("float32",))])
def test_every_case_has_a_row_for_each_pair(small, monkeypatch, fast, names):
    def once(functions, **options):
        for function in functions.values():
            # dropout belongs to training alone
            assert function.__self__.net.training == (function.__name__ == "train")
            function()
        return {name: [1.0, 1.0] for name in functions}

    monkeypatch.setattr(bench, "alternate", once)
    clips = []

    def clip_row(half):
        clips.append(half)
        return Row("inflate", "a clip", "TextToVideoPipeline", 1.0, "s", "target 1 s", 1.0, 1.0, 1.0)

    monkeypatch.setattr(bench, "clip_row", clip_row)
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


@pytest.mark.parametrize("half, target", [(False, 6), (True, 3)])
def test_a_whole_clip_is_held_against_its_target(monkeypatch, half, target):
    drawn = []

    def thrice(functions, **options):
        drawn.append(functions["draw"]())
        return {"draw": [2.0, 3.0, 4.0]}

    load, loaded = bench.zoo.load, []

    def remembered(name, **options):
        loaded.append(load(name, **options))
        return loaded[-1]

    monkeypatch.setattr(bench.zoo, "load", remembered)
    monkeypatch.setattr(bench, "alternate", thrice)
    row = bench.clip_row(half, steps=2)
    pipe = loaded[-1]  # it has loaded its image model before
    kinds = {parameter.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for parameter in part.parameters()}
    assert kinds == {torch.bfloat16 if half else torch.float32}
    assert drawn[0].isfinite().all()
    assert drawn[0].shape == (1, 3, 16, 64, 64)
    assert (row.value, row.unit, row.peer, row.ratio) == (3, "s", f"target {target} s", target / 3)
    assert row.low <= row.ratio <= row.high
    assert "2 steps" in row.case and ("bfloat16" if half else "float32") in row.case
