"""A recipe small enough for tests: two numbers to one, trained in a moment. Not a test itself."""

import time

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from course_lib.recipes import Recipe, TrainConfig


class Tiny(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x):
        return self.body(x)


def make_batch(number, config):
    generator = torch.Generator().manual_seed(1000 * config.seed + number)
    x = torch.randn(config.batch_size, 2, generator=generator)
    noise = 0.01 * torch.randn(config.batch_size, 1, generator=generator)
    return {
        "x": x,
        "y": x.prod(1, keepdim=True) + noise,
        "caption": [f"row {row}" for row in range(config.batch_size)],
    }


def loss_fn(model, batch, generator):
    assert len(batch["caption"]) == len(batch["x"])
    return (model(batch["x"]) - batch["y"]).square().mean()


def slow_loss_fn(model, batch, generator):
    time.sleep(0.01)
    return loss_fn(model, batch, generator)


def evaluate(model, config):
    batch = make_batch(10**6, config)
    return {"error": loss_fn(model, batch, None).item(), "examples": config.batch_size}


def post_train(model, config):
    model.temperature.fill_(2.0)


CONFIG = TrainConfig(
    num_steps=40, batch_size=8, lr=0.05, warmup=4, ema_decay=0.9, mixed_precision="no",
    eval_samples=8,
)  # fmt: skip
COMMON = dict(
    summary="a tiny one",
    build_model=Tiny,
    make_batch=make_batch,
    evaluate=evaluate,
    post_train=post_train,
    configs={"cpu": CONFIG, "gpu": CONFIG, "ci": CONFIG},
    targets={"error": ("<=", 9.0), "examples": (">=", 100)},
)
RECIPE = Recipe(name="tests/tiny", loss_fn=loss_fn, **COMMON)
SLOW = Recipe(name="slow", loss_fn=slow_loss_fn, **COMMON)
