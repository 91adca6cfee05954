"""A small run that a state could get wrong, for the tests of resuming and of refused states."""

import time

import torch
from torch import nn

from course_lib.training import fit, train

OPTIONS = {
    "num_steps": 30,
    "lr": 0.05,
    "ema_decay": 0.9,
    "warmup": 3,
    "mixed_precision": "no",
    "seed": 3,
}


class Net(nn.Module):
    """Dropout, a frozen parameter, a buffer that counts: everything that a state could forget."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.layers[0].bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.count += len(x)
        return self.layers(x)


def net(width=8):
    torch.manual_seed(0)
    return Net(width)


def batch(number):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def loss(model, batch, generator):
    noise = 0.1 * torch.randn(batch["y"].shape, generator=generator)
    return (model(batch["x"]) - batch["y"] - noise).square().mean()


def slow_loss(model, batch, generator):
    time.sleep(0.01)
    return loss(model, batch, generator)


def run(path, until=None, **changes):
    """Train until a step (the last by default); returns the model and the last step."""
    model, last = net(), None
    for last in train(model, batch, loss, state_path=path, **{**OPTIONS, **changes}):
        if last.step == until:
            break
    return model, last


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


def fitted(path):
    model = net()
    fit(model, batch, loss, progress=False, state_path=path, **OPTIONS)
    return model.state_dict()
