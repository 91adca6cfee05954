"""Options of all samplers: a hook after every step, a generator for each row."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from course_lib.diffusion import ddim, ddpm, sample, sample_noise

# Euler's set_timesteps hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 2, 4, 4)
TEXT = torch.tensor([0.5, -0.5])


def model(x, t, cond):
    """No network, but nonlinear, and it depends on t and on its text."""
    shift = t.to(x.dtype) / 1000 + cond.to(x.dtype)
    return 1.5 * torch.tanh(2 * x + shift.view(-1, *[1] * (x.ndim - 1)))


def noise():
    return torch.randn(SHAPE, generator=rng(5))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Hooks

HOOKED = [
    (sample, DDIMScheduler(), {}),
    (sample, EulerDiscreteScheduler(), {}),
    (sample, FlowMatchEulerDiscreteScheduler(), {}),
    (ddim, DDIMScheduler(), {}),
    (ddim, DDIMScheduler(), {"inverse": True}),
    (ddpm, DDPMScheduler(), {}),
]


@pytest.mark.parametrize(("sampler", "scheduler", "options"), HOOKED)
def test_a_hook_replaces_the_sample(sampler, scheduler, options):
    """What it returns is in the yielded step and in what the model gets next."""
    inputs, steps = [], []

    def watched(x, t, cond):
        inputs.append(x)
        return model(x, t, cond)

    def on_step(step):
        assert not torch.is_grad_enabled()
        steps.append(step)
        return torch.full_like(step.x, step.index).requires_grad_() if step.index == 2 else None

    options = {"num_inference_steps": 4, "generator": rng(), **options}
    yielded = list(sampler(watched, scheduler, noise(), TEXT, on_step=on_step, **options))
    plain = list(sampler(model, scheduler, noise(), TEXT, **{**options, "generator": rng()}))
    assert [step.index for step in steps] == [1, 2, 3, 4]
    assert torch.equal(yielded[0].x, plain[0].x) and torch.equal(steps[1].x, plain[1].x)
    assert torch.equal(yielded[1].x, torch.full(SHAPE, 2.0)) and not yielded[1].x.requires_grad
    assert torch.equal(yielded[1].x0, plain[1].x0)
    constant = inputs[2]
    if isinstance(scheduler, EulerDiscreteScheduler):  # scaled to unit variance
        assert constant.std() < 1e-6 and 0 < constant.mean() < 2
    else:
        assert torch.equal(constant, torch.full(SHAPE, 2.0))


@pytest.mark.parametrize(("sampler", "scheduler", "options"), HOOKED)
def test_a_hook_that_returns_another_shape_is_refused(sampler, scheduler, options):
    options = {"num_inference_steps": 4, "generator": rng(), **options}
    steps = sampler(model, scheduler, noise(), TEXT, on_step=lambda s: s.x[:, :, :1], **options)
    message = r"on_step: expected the shape of x, \(2, 3, 2, 4, 4\), got \(2, 3, 1, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        next(steps)


# A generator for each row

DRAWING = [
    (ddpm, DDPMScheduler(), {}),
    (ddpm, DDPMScheduler(), {"frame_correlation": 0.5}),
    (ddim, DDIMScheduler(), {"eta": 0.5}),
    (sample, DDPMScheduler(), {}),
    (sample, DDIMScheduler(), {"eta": 0.5}),
    (sample, FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}),
]


@pytest.mark.parametrize(("sampler", "scheduler", "options"), DRAWING)
def test_each_row_of_a_batch_is_the_row_by_itself(sampler, scheduler, options):
    """Its noise at the start and on the way comes from its own generator."""

    def generate(seeds, text):
        generators = [rng(seed) for seed in seeds]
        x = sample_noise((len(seeds), *SHAPE[1:]), generators)
        return list(
            sampler(
                model, scheduler, x, text, num_inference_steps=5, generator=generators, **options
            )
        )

    text = torch.tensor([0.5, -0.5, 0.1])
    batch = generate([3, 7, 5], text)
    for i, seed in enumerate([3, 7, 5]):
        for step, row in zip(batch, generate([seed], text[i : i + 1]), strict=True):
            torch.testing.assert_close(step.x[i : i + 1], row.x, rtol=1e-5, atol=1e-6)
    other = generate([3, 8, 5], text)[-1].x
    assert torch.equal(other[[0, 2]], batch[-1].x[[0, 2]])
    assert not torch.allclose(other[1], batch[-1].x[1], atol=0.01)
