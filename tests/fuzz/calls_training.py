"""Valid calls of course_lib.training."""

import torch
from torch import nn

from course_lib.training import fit, train
from tests.fuzz.args import C, Dir, N, R
from tests.fuzz.harness import add


def make_batch(number):
    return torch.full((2, 3), 0.1 * number)


def loss_fn(model, batch, generator):
    return model(batch).square().mean()


def run(train_function, **kwargs):
    """The losses and the weights of a short run."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    steps = list(train_function(model, make_batch, loss_fn, **kwargs))
    return [step.loss for step in steps], model.state_dict()


SETTINGS = {
    "num_steps": N(2),
    "lr": R(0.01, 1e-12),
    "optimizer": C("adamw"),
    "weight_decay": R(0.01, 0),
    "warmup": N(1, low=0, high=1),
    "lr_schedule": C("cosine"),
    "max_grad_norm": R(1.0, 1e-9),
    "ema_decay": R(0.9, 1e-9, 1 - 1e-9),
    "minutes": R(5.0, 1e-9),
    "mixed_precision": C("no"),
    "seed": N(0, low=0),
}
add("training.loop.train", lambda **kwargs: run(train, **kwargs), **SETTINGS)
add(
    "training.loop.train",
    lambda **kwargs: run(
        train,
        num_steps=2,
        lr=0.01,
        mixed_precision="no",
        evaluate=lambda step: {"x": 1.0},
        **kwargs,
    ),
    save_every=R(60.0, 0),
    eval_every=N(1),
    state_path=Dir(lambda folder: folder / "state.safetensors", allows="missing"),
)
add(
    "training.loop.fit",
    lambda **kwargs: run(
        lambda *args, **settings: fit(*args, progress=False, **settings),
        mixed_precision="no", **kwargs,
    ),
    num_steps=N(2), lr=R(0.01, 1e-12),
)  # fmt: skip
