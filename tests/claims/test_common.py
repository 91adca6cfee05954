"""Small trainings: every step has its own generator, and the model is frozen in the end."""

import pytest
import torch

from course_lib.claims import common
from course_lib.claims.ledger import Arm


def train(seed, num_steps=3, scale=1.0):
    """Train one weight; returns the batches, the model and the history."""
    batches = []

    def make_batch(generator):
        batches.append(torch.rand(4, 1, generator=generator))
        return {"x": batches[-1]}

    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    training = common.Training(0, batch_size=4, num_steps=num_steps, lr=0.1, warmup=50)
    history = common.train_model(
        model,
        make_batch,
        lambda net, batch, generator: net(batch["x"]).square().mean(),
        training,
        seed=seed,
        scale=scale,
    )
    return batches, model, history


def test_equal_seeds_give_equal_batches_and_the_model_is_frozen():
    first, model, history = train(seed=1)
    again, _, _ = train(seed=1)
    other, _, _ = train(seed=2)
    assert len(first) == len(history) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    expected = torch.rand(4, 1, generator=torch.Generator().manual_seed(100_002))
    assert torch.equal(first[2], expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert common.seconds_per_step(history) == pytest.approx(history[-1].seconds / 3)


def test_scale_shortens_training_to_two_steps_at_least():
    assert len(train(seed=0, num_steps=10, scale=0.5)[2]) == 5
    assert len(train(seed=0, num_steps=10, scale=0.01)[2]) == 2


def test_a_shared_run_is_run_once_and_reports_its_own_minutes():
    calls = []

    @common.shared_run
    def run(arm, seed, scale):
        calls.append((arm.id, seed))
        return {"height": 1.0}

    first = run(Arm("up", "up"), 0, 1.0)
    assert run(Arm("up", "up"), 0, 1.0) is first and calls == [("up", 0)]
    assert first["height"] == 1 and first["minutes"] >= 0
    run(Arm("down", "down"), 0, 1.0)
    assert calls == [("up", 0), ("down", 0)]
