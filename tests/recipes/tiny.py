"""A recipe small enough for tests: two numbers to one, learned in a blink. Not a test itself."""

import time

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from course_lib.recipes import Recipe, Settings


class Tiny(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x):
        return self.body(x)


def batches(number, settings):
    generator = torch.Generator().manual_seed(1000 * settings.seed + number)
    x = torch.randn(settings.batch, 2, generator=generator)
    noise = 0.01 * torch.randn(settings.batch, 1, generator=generator)
    return {
        "x": x,
        "y": x.prod(1, keepdim=True) + noise,
        "caption": [f"row {row}" for row in range(settings.batch)],
    }


def loss(model, batch, generator):
    assert len(batch["caption"]) == len(batch["x"])
    return (model(batch["x"]) - batch["y"]).square().mean()


def slow_loss(model, batch, generator):
    time.sleep(0.01)
    return loss(model, batch, generator)


def evaluate(model, settings):
    batch = batches(10**6, settings)
    return {"error": loss(model, batch, None).item(), "examples": settings.batch}


def finish(model, settings):
    model.temperature.fill_(2.0)


SETTINGS = Settings(steps=40, batch=8, lr=0.05, warmup=4, ema=0.9, mixed_precision="no")
COMMON = dict(about="a tiny one", build=Tiny, batches=batches, evaluate=evaluate, finish=finish)
COMMON |= dict(
    settings={"cpu": SETTINGS, "gpu": SETTINGS, "ci": SETTINGS},
    bars={"error": ("<=", 9.0), "examples": (">=", 100)},
)
RECIPE = Recipe(name="tests/tiny", loss=loss, **COMMON)
SLOW = Recipe(name="slow", loss=slow_loss, **COMMON)
