"""Compiled models: the same results, and the original model is unchanged."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_lib.nn.compilation import compile_for_inference
from course_lib.nn.inflate import inflate
from tests.nn.inflated import image_unet

# Both in processes of their own: the compiler cannot follow the type checks that tests add to all
# functions, and warns
INFLATED = """
from functools import partial
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch._dynamo.utils import counters
from course_lib.nn.compilation import compile_for_inference
from course_lib.nn.inflate import inflate
from tests.nn.inflated import image_unet, inputs, randomize_temporal

torch.compile = partial(torch.compile, backend="eager", fullgraph=True)  # traced only
unet, kwargs, outputs = randomize_temporal(inflate(image_unet("SD 1"))), inputs("SD 1"), []
compiled = compile_for_inference(unet)
with torch.no_grad():
    for scale in (1.0, 0.5, 0):
        expected, out = (model(**kwargs, temporal_scale=scale).sample for model in (unet, compiled))
        torch.testing.assert_close(out, expected)
        outputs.append(out)
assert all((out - outputs[0]).abs().max() > 1e-3 for out in outputs[1:])
assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"], counters
unet.set_attn_processor(AttnProcessor())  # also that of the copy
with torch.no_grad():
    torch.testing.assert_close(compiled(**kwargs, temporal_scale=1.0).sample, outputs[0])
assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"], counters
"""
CONSTANTS = """
import torch
from torch import nn
from course_lib.nn.compilation import compile_for_inference

model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(3, 4)
compiled = compile_for_inference(model)
with torch.no_grad():
    before = model(x)
    torch.testing.assert_close(compiled(x), before)
    model[0].weight.mul_(-1)
    torch.testing.assert_close(compiled(x), before)
    assert (model(x) - before).abs().max() > 1e-3
"""


def run(program):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_an_inflated_unet_gives_the_same():
    run(INFLATED)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_weights_become_constants():
    run(CONSTANTS)


def test_the_original_model_is_unchanged(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    unet = inflate(image_unet("SD 1"))
    compiled = compile_for_inference(unet)
    assert type(compiled) is type(unet) and compiled.config == unet.config
    assert "forward" in vars(compiled) and "forward" not in vars(unet)
    assert all(a is b for a, b in zip(compiled.parameters(), unet.parameters(), strict=True))
