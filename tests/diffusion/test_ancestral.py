"""DDPM and DDIM by hand, against diffusers step by step; DDIM inversion against ideal denoisers."""

import inspect
import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from course_lib.diffusion import (
    alpha_sigma_at,
    ddim,
    ddpm,
    ideal_denoiser,
    isotropic_gaussian,
    sample,
    sample_noise,
)

SHAPE = (2, 3, 2, 4, 4)
TEXT = torch.tensor([0.5, -0.5])
TYPES = ("epsilon", "sample", "v_prediction")  # those of DDPMScheduler and DDIMScheduler
CLIPS = [
    {"clip_sample": False},
    {"clip_sample": True},
    {"thresholding": True, "sample_max_value": 1.5},
]
SETTINGS = list(itertools.product(TYPES, [("leading", 0), ("leading", 1), ("trailing", 0)], CLIPS))


def model(x, t, cond):
    """No network, but nonlinear, and it depends on t and on its text."""
    shift = t.to(x.dtype) / 1000 + (0 if cond is None else cond.to(x.dtype))
    return 1.5 * torch.tanh(2 * x + shift.view(-1, *[1] * (x.ndim - 1)))


def noise(dtype=torch.float64, shape=SHAPE):
    return torch.randn(shape, generator=rng(5), dtype=dtype)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def precise(scheduler):
    """The scheduler with its table in float64, so that it computes in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = (
            torch.ones(()).double()
            if scheduler.config.set_alpha_to_one
            else scheduler.alphas_cumprod[0]
        )
    return scheduler


def clips(scheduler):
    """Whether it clips or thresholds x0."""
    return scheduler.config.clip_sample or scheduler.config.thresholding


def diffusers_loop(scheduler, x, num_steps, **step_kwargs):
    """The loop of diffusers' pipelines: (t, x, result of the step); eps follows a clipped x0."""
    if isinstance(scheduler, DDIMScheduler):
        step_kwargs.setdefault("use_clipped_model_output", clips(scheduler))
    scheduler.set_timesteps(num_steps)
    step_kwargs["generator"] = rng()
    for t in scheduler.timesteps:
        result = scheduler.step(model(x, t.expand(2), TEXT), t, x, **step_kwargs)
        x = result.prev_sample
        yield t.item(), x, result


def run(sampler, scheduler, num_steps=10, x=None, **options):
    """All steps of a sampler."""
    x = noise() if x is None else x
    options = {"generator": rng(), **options}
    return list(sampler(model, scheduler, x, TEXT, num_inference_steps=num_steps, **options))


# Against diffusers


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_is_diffusers_step_by_step(variance):
    for prediction_type, (spacing, offset), clip in [
        *SETTINGS,
        ("epsilon", ("linspace", 0), CLIPS[0]),
    ]:
        config = {"timestep_spacing": spacing, "steps_offset": offset, **clip}
        config = {"prediction_type": prediction_type, "variance_type": variance, **config}
        scheduler = precise(DDPMScheduler(**config))
        steps = run(ddpm, scheduler)
        assert [step.index for step in steps] == list(range(1, 11))
        for step, (t, x, result) in zip(steps, diffusers_loop(scheduler, noise(), 10), strict=True):
            torch.testing.assert_close(step.x0, result.pred_original_sample, rtol=1e-9, atol=1e-9)
            assert step.t == t
            if step.index < 10 or t == 0:
                torch.testing.assert_close(step.x, x, rtol=1e-9, atol=1e-9)
        # the last step leads to the estimate itself; diffusers adds noise if t > 0, of variance
        # beta with "fixed_large"
        torch.testing.assert_close(steps[-1].x, steps[-1].x0, rtol=1e-12, atol=1e-12)
        added = (x - result.pred_original_sample).std().item()
        is_noisy = variance == "fixed_large" and t > 0
        expected = (1 - scheduler.alphas_cumprod[t].item()) ** 0.5 if is_noisy else 0
        assert added == pytest.approx(expected, rel=0.4, abs=1e-9)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_is_diffusers_step_by_step(eta, to_one):
    for prediction_type, (spacing, offset), clip in SETTINGS:
        config = {"timestep_spacing": spacing, "steps_offset": offset, **clip}
        config = {"prediction_type": prediction_type, "set_alpha_to_one": to_one, **config}
        scheduler = precise(DDIMScheduler(**config))
        expected = diffusers_loop(scheduler, noise(), 10, eta=eta)
        for step, (t, x, result) in zip(run(ddim, scheduler, eta=eta), expected, strict=True):
            torch.testing.assert_close(step.x, x, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(step.x0, result.pred_original_sample, rtol=1e-9, atol=1e-9)
            assert step.t == t


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sampler", [ddim, sample])
def test_where_ddim_clips_x0_eps_is_recomputed(sampler, clip):
    """At every step one pair of x0 and eps makes both the x before and the x after it."""
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", **clip}
    scheduler = precise(DDIMScheduler(**config))
    x, limit = noise(), scheduler.config.sample_max_value if scheduler.config.thresholding else 1
    for step, after in itertools.pairwise(run(sampler, scheduler)):
        level, next_level = (alpha_sigma_at(scheduler, torch.tensor([s.t])) for s in (step, after))
        eps = (x - level.alpha * step.x0) / level.sigma
        expected = next_level.alpha * step.x0 + next_level.sigma * eps
        torch.testing.assert_close(step.x, expected, rtol=1e-9, atol=1e-9)
        assert not clips(scheduler) or step.x0.abs().max() <= limit
        x = step.x


def test_a_scheduler_in_float32_gives_the_same_to_its_precision():
    x = noise(torch.float32)
    for scheduler, sampler in ((DDPMScheduler(), ddpm), (DDIMScheduler(), ddim)):
        expected = diffusers_loop(scheduler, x, 20)
        for step, (_, other, _) in zip(run(sampler, scheduler, 20, x), expected, strict=True):
            assert step.x.dtype == torch.float32
            torch.testing.assert_close(step.x, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_the_noise_of_the_steps_can_be_correlated_between_frames(sampler):
    """The model predicts 0, so that the differences between frames are those of the noise."""
    shape, options = (2, 3, 4, 16, 16), {"eta": 1} if sampler is ddim else {}
    zero = lambda x, t, cond: torch.zeros_like(x)  # noqa: E731

    def spread(frame_correlation):
        x = sample_noise(shape, rng(5), 1)
        scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
        kwargs = {"num_inference_steps": 5, "frame_correlation": frame_correlation, **options}
        *_, step, _ = sampler(zero, scheduler, x, generator=rng(), **kwargs)
        return ((step.x - step.x.mean(dim=2, keepdim=True)).std() / step.x.std()).item()

    assert spread(1) < 1e-5
    assert spread(0.5) == pytest.approx(spread(0.0) / 2**0.5, rel=0.1) and spread(0.0) > 0.3


# Inversion

INVERSE = {"inverse": True, "eta": 0}


def gaussian(std):
    return isotropic_gaussian(torch.tensor([0.2, -0.7, 0.4], dtype=torch.float64), std)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_inversion_of_a_point_is_exact(prediction_type, to_one, spacing):
    config = {"prediction_type": prediction_type, "timestep_spacing": spacing}
    scheduler = DDIMScheduler(set_alpha_to_one=to_one, clip_sample=False, **config)
    ideal = ideal_denoiser(gaussian(0.0), scheduler)
    start = noise(shape=(4, 3))
    down = list(ddim(ideal, scheduler, start, num_inference_steps=12))
    up = list(ddim(ideal, scheduler, down[-1].x, num_inference_steps=12, **INVERSE))
    *_, again = ddim(ideal, scheduler, up[-1].x, num_inference_steps=12)
    torch.testing.assert_close(again.x, down[-1].x, rtol=1e-9, atol=1e-9)
    # the timesteps that are left, from the lowest to the last but one
    visited = [step.t for step in down]
    lowest = visited[-1] if to_one else 0
    assert [step.t for step in up] == [lowest, *reversed(visited[1:])]
    # each step lies on the level it leads to: that of the timestep which the next one leaves
    for step, after in itertools.pairwise(up):
        level = alpha_sigma_at(scheduler, torch.tensor([after.t]))
        eps = (step.x - level.alpha * gaussian(0.0).means) / level.sigma
        x0 = (step.x - level.sigma * eps) / level.alpha
        torch.testing.assert_close(x0, gaussian(0.0).means.expand(4, -1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after.x0, x0, rtol=1e-7, atol=1e-7)


def test_inversion_undoes_every_step_of_one_path_to_the_noise():
    """Without clipping and on a point, the noise that data came from is found again."""
    scheduler = DDIMScheduler(set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    ideal = ideal_denoiser(gaussian(0.0), scheduler)
    down = list(ddim(ideal, scheduler, noise(shape=(4, 3)), num_inference_steps=10))
    up = list(ddim(ideal, scheduler, down[-1].x, num_inference_steps=10, **INVERSE))
    expected = [*(step.x for step in reversed(down[:-1])), noise(shape=(4, 3))]
    for step, x in zip(up, expected, strict=True):
        torch.testing.assert_close(step.x, x, rtol=1e-7, atol=1e-7)


def test_inversion_evaluates_the_model_at_the_timestep_that_it_leaves():
    scheduler, calls = DDIMScheduler(clip_sample=False), []

    def watched(x, t, cond):
        calls.append((x, t))
        return model(x, t, cond)

    x = noise()
    steps = list(ddim(watched, scheduler, x, TEXT, num_inference_steps=5, **INVERSE))
    assert [t.tolist() for _, t in calls] == [[t, t] for t in (0, 0, 200, 400, 600)]
    assert [step.t for step in steps] == [0, 0, 200, 400, 600]
    inputs = [x, *(step.x for step in steps[:-1])]
    assert all(torch.equal(a, b) for (a, _), b in zip(calls, inputs, strict=True))
    assert torch.equal(steps[0].x0, x)  # no noise is in it yet


# Refusals

X = torch.zeros(SHAPE)
LEARNED = DDPMScheduler(variance_type="learned_range")


def begin(sampler, scheduler, **options):
    """The call alone: a generator that is not advanced must refuse as well."""
    options = {"num_inference_steps": 5, "generator": rng(), **options}
    return inspect.unwrap(sampler)(model, scheduler, X, TEXT, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: begin(ddpm, DDPMScheduler(), frame_correlation=1.5),
            "frame_correlation: expected a finite number at least 0 and at most 1, got 1.5",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=1, frame_correlation=-1),
            "frame_correlation: expected a finite number at least 0 and at most 1, got -1",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=1.5),
            "eta: expected a finite number at least 0 and at most 1, got 1.5",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=0.5, inverse=True),
            "eta: expected 0 with inverse=True, got 0.5",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=0.5, generator=None),
            "generator: expected one, since eta=0.5",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=0.5, generator=[rng()] * 3),
            "generator: expected one, or a list of 2, one for each row; got a list of 3",
        ),
        (
            lambda: begin(ddpm, LEARNED),
            "variance_type of fixed_small or fixed_large, got 'learned_range'",
        ),
        (
            lambda: begin(ddim, EulerDiscreteScheduler()),
            "expected one with integer timesteps or flow matching, got EulerDiscrete",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(rescale_betas_zero_snr=True)),
            "epsilon-prediction is undefined at zero SNR",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(steps_offset=1), num_inference_steps=1000),
            "num_inference_steps: with 1000, DDIMScheduler visits timesteps 1 to 1000, not 0 to 9",
        ),
    ],
)
def test_bad_input_is_refused_by_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_of_another_shape_is_refused():
    cropped = lambda x, t, cond: x[:, :, :1]  # noqa: E731
    message = r"pred: expected the shape of x_t, .*, got \(2, 3, 1, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        next(ddim(cropped, DDIMScheduler(), X, num_inference_steps=2))
