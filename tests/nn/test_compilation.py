"""Compiled networks: they say the same, and leave the network that they were made from as it is."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_lib.nn.compilation import compiled
from course_lib.nn.inflate import inflate
from tests.nn.inflated import image_unet

# Both in processes of their own: the compiler cannot follow the checks of types that tests have everywhere, and is not
# free of warnings
INFLATED = """
from functools import partial
import torch
from torch._dynamo.utils import counters
from course_lib.nn.compilation import compiled
from course_lib.nn.inflate import inflate
from tests.nn.inflated import awake, image_unet, inputs

torch.compile = partial(torch.compile, backend="eager", fullgraph=True)  # follow all of it, but make nothing of it
unet, told, answers = awake(inflate(image_unet("SD 1"))), inputs("SD 1"), []
fast = compiled(unet)
with torch.no_grad():
    for scale in (1.0, 0.5, 0):
        expected, found = (net(**told, temporal_scale=scale).sample for net in (unet, fast))
        torch.testing.assert_close(found, expected)
        answers.append(found)
assert all((a - answers[0]).abs().max() > 1e-3 for a in answers[1:])
assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"], counters
"""
CONSTANTS = """
import torch
from torch import nn
from course_lib.nn.compilation import compiled

net, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(3, 4)
fast = compiled(net)
with torch.no_grad():
    before = net(x)
    torch.testing.assert_close(fast(x), before)
    net[0].weight.mul_(-1)
    torch.testing.assert_close(fast(x), before)
    assert (net(x) - before).abs().max() > 1e-3
"""


def run(program):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_an_inflated_unet_says_the_same():
    run(INFLATED)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_weights_become_constants():
    run(CONSTANTS)


def test_what_was_compiled_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    unet = inflate(image_unet("SD 1"))
    fast = compiled(unet)
    assert type(fast) is type(unet) and fast.config == unet.config
    assert "forward" in vars(fast) and "forward" not in vars(unet)
    assert all(a is b for a, b in zip(fast.parameters(), unet.parameters(), strict=True))
