"""Samplers against diffusers step by step; `test_convergence.py` has them against flows and data that are known."""

import inspect
import itertools

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from course_lib.diffusion import (
    CLEAN,
    PREDICTION_TYPES,
    ddim,
    ddpm,
    gaussian,
    initial_noise,
    level_at,
    ode_solution,
    optimal_model,
    sample,
    zero_terminal_snr,
)

# The set_timesteps of Euler and DPM-Solver hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 2, 4, 4)
CLIPS = [
    {"clip_sample": False},
    {"clip_sample": True},
    {"thresholding": True, "sample_max_value": 1.5},
]


def model(x, t, conditioning):
    """No network, but not linear either, and it listens to t and to its text."""
    shift = t.to(x.dtype) / 1000 + (0 if conditioning is None else conditioning.to(x.dtype))
    return 1.5 * torch.tanh(2 * x + shift.view(-1, *[1] * (x.ndim - 1)))


TEXT = torch.tensor([0.5, -0.5])


def noise(dtype=torch.float64, shape=SHAPE):
    return torch.randn(shape, generator=rng(5), dtype=dtype)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def precise(scheduler):
    """The scheduler with its table in float64, so that it calculates in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        to_one = scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = (
            torch.ones(()).double() if to_one else scheduler.alphas_cumprod[0]
        )
    return scheduler


def by_hand(scheduler, x, steps, **options):
    """The loop of diffusers' pipelines: yields (t, x, result of the step). DDIM's ε follows a limited x0."""
    if isinstance(scheduler, DDIMScheduler):
        options.setdefault("use_clipped_model_output", limits(scheduler))
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = rng()
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        result = scheduler.step(
            model(scheduler.scale_model_input(x, t), t.expand(2), TEXT), t, x, **options
        )
        x = result.prev_sample
        yield t.item(), x, result


def limits(scheduler):
    """Whether it keeps estimates of x0 within a range."""
    return scheduler.config.clip_sample or scheduler.config.thresholding


# The hand-written samplers

SETTINGS = list(
    itertools.product(PREDICTION_TYPES, [("leading", 0), ("leading", 1), ("trailing", 0)], CLIPS)
)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_is_diffusers_step_by_step(variance):
    for kind, (spacing, offset), clip in [*SETTINGS, ("epsilon", ("linspace", 0), CLIPS[0])]:
        spaced = {"timestep_spacing": spacing, "steps_offset": offset}
        scheduler = precise(
            DDPMScheduler(prediction_type=kind, variance_type=variance, **spaced, **clip)
        )
        found = list(ddpm(model, scheduler, noise(), TEXT, steps=10, generator=rng()))
        assert [step.step for step in found] == list(range(1, 11))
        for ours, (t, x, theirs) in zip(found, by_hand(scheduler, noise(), 10), strict=True):
            torch.testing.assert_close(ours.x0, theirs.pred_original_sample, rtol=1e-9, atol=1e-9)
            assert ours.t == t
            if ours.step < 10 or t == 0:
                torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)
        # what follows t > 0 is the estimate itself; diffusers adds noise, of variance beta if that is "fixed_large"
        torch.testing.assert_close(found[-1].x, found[-1].x0, rtol=1e-12, atol=1e-12)
        added = (x - theirs.pred_original_sample).std().item()
        wanted = (
            (1 - scheduler.alphas_cumprod[t].item()) ** 0.5
            if variance == "fixed_large" and t > 0
            else 0
        )
        assert added == pytest.approx(wanted, rel=0.4, abs=1e-9)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_is_diffusers_step_by_step(eta, to_one):
    for kind, (spacing, offset), clip in SETTINGS:
        spaced = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
        scheduler = precise(DDIMScheduler(prediction_type=kind, **spaced, **clip))
        found = ddim(model, scheduler, noise(), TEXT, steps=10, eta=eta, generator=rng())
        for ours, (t, x, theirs) in zip(
            found, by_hand(scheduler, noise(), 10, eta=eta), strict=True
        ):
            torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(ours.x0, theirs.pred_original_sample, rtol=1e-9, atol=1e-9)
            assert ours.t == t


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sampler", [ddim, sample])
def test_where_ddim_limits_x0_the_noise_is_what_is_left(sampler, clip):
    """At every step one pair of x0 and ε makes both the x where it began and the x where it led."""
    scheduler = precise(
        DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", **clip)
    )
    x, limit = noise(), scheduler.config.sample_max_value if scheduler.config.thresholding else 1
    steps = list(sampler(model, scheduler, x, TEXT, steps=10, generator=rng()))
    for step, after in zip(steps[:-1], steps[1:], strict=True):
        here, there = (level_at(scheduler, torch.tensor([t])) for t in (step.t, after.t))
        epsilon = (x - here.signal * step.x0) / here.noise
        torch.testing.assert_close(
            step.x, there.signal * step.x0 + there.noise * epsilon, rtol=1e-9, atol=1e-9
        )
        assert not limits(scheduler) or step.x0.abs().max() <= limit
        x = step.x


@pytest.mark.parametrize("clip", CLIPS)
def test_ddim_as_diffusers_has_it_by_default_is_there_for_the_asking(clip):
    scheduler, plain = precise(DDIMScheduler(**clip)), {"use_clipped_model_output": False}
    found = list(sample(model, scheduler, noise(), TEXT, steps=10, generator=rng(), **plain))
    for ours, (_, x, _) in zip(found, by_hand(scheduler, noise(), 10, **plain), strict=True):
        torch.testing.assert_close(ours.x, x, rtol=1e-12, atol=1e-12)
    *_, other = sample(model, scheduler, noise(), TEXT, steps=10, generator=rng())
    assert torch.equal(other.x, found[-1].x) != limits(scheduler)


def test_an_untouched_scheduler_in_float32_gives_the_same_to_its_precision():
    for scheduler, sampler in ((DDPMScheduler(), ddpm), (DDIMScheduler(), ddim)):
        found = sampler(model, scheduler, noise(torch.float32), TEXT, steps=20, generator=rng())
        for ours, (_, x, _) in zip(
            found, by_hand(scheduler, noise(torch.float32), 20), strict=True
        ):
            assert ours.x.dtype == torch.float32
            torch.testing.assert_close(ours.x, x, rtol=1e-3, atol=1e-4)


def test_ddim_goes_to_the_next_timestep_where_diffusers_goes_elsewhere():
    """In 60 "linspace" steps over 100 timesteps DDIMScheduler goes 1 down at a time, and asks as if it were 1.7."""
    data = gaussian(torch.tensor([0.2, -0.1], dtype=torch.float64), 0.5)
    betas = {"num_train_timesteps": 100, "beta_end": 0.2}
    scheduler = precise(DDIMScheduler(timestep_spacing="linspace", clip_sample=False, **betas))
    oracle, x = optimal_model(data, scheduler), noise(shape=(20, 2))
    *_, ours = ddim(oracle, scheduler, x, steps=60)
    *_, theirs = sample(oracle, scheduler, x, steps=60, generator=rng())
    exact = ode_solution(data, x, level_at(scheduler, torch.tensor([99])), CLEAN)
    assert 5 * (ours.x - exact).abs().max() < (theirs.x - exact).abs().max()


def test_full_noise_and_no_signal_at_once_are_finite():
    scheduler = zero_terminal_snr(DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    steps = list(
        ddim(model, scheduler, noise(torch.float32), TEXT, steps=10, eta=1, generator=rng())
    )
    assert steps[0].t == 999 and all(step.x.isfinite().all() for step in steps)
    scheduler.set_timesteps(10)  # here diffusers takes the root of a rounding error below 0
    theirs = scheduler.step(
        noise(torch.float32), 999, noise(torch.float32), eta=1.0, generator=rng()
    ).prev_sample
    assert theirs.isnan().any()
    with pytest.raises(ValueError, match="eta: with zero terminal SNR expected less than 1"):
        sample(model, scheduler, noise(torch.float32), TEXT, steps=10, generator=rng(), eta=1.0)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_a_model_under_autocast_does_not_coarsen_the_samples(kind):
    """Its answers are bfloat16; x, x0 and the noise that is drawn stay what they were."""
    half = lambda x, t, text: model(x, t, text).bfloat16()  # noqa: E731
    rounded = lambda x, t, text: half(x, t, text).float()  # noqa: E731
    ends = [
        [*sample(some, kind(), noise(torch.float32), TEXT, steps=5, generator=rng())][-1]
        for some in (half, rounded)
    ]
    assert ends[0].x.dtype == ends[0].x0.dtype == torch.float32
    assert torch.equal(ends[0].x, ends[1].x)


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_the_noise_of_the_steps_can_be_shared_between_frames(sampler):
    """The model says nothing, so that what frames do not have in common is what was drawn for each."""
    shape, options = (2, 3, 4, 16, 16), {"eta": 1} if sampler is ddim else {}
    silent = lambda x, t, conditioning: torch.zeros_like(x)  # noqa: E731

    def spread(shared):
        x = initial_noise(shape, rng(5), 1)
        scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
        *_, before, _ = sampler(
            silent, scheduler, x, steps=5, generator=rng(), shared=shared, **options
        )
        return ((before.x - before.x.mean(dim=2, keepdim=True)).std() / before.x.std()).item()

    assert spread(1) < 1e-5
    assert spread(0.5) == pytest.approx(spread(0.0) / 2**0.5, rel=0.1) and spread(0.0) > 0.3


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler])
def test_samplers_of_several_calls_a_step_count_all_of_them(scheduler):
    found = list(sample(model, scheduler(), noise(torch.float32), TEXT, steps=6, generator=rng()))
    assert [step.step for step in found] == list(range(1, len(found) + 1)) and len(found) > 6


# Any scheduler of diffusers

KARRAS = {"use_karras_sigmas": True}
SCHEDULERS = [
    (DDPMScheduler, {"timestep_spacing": "trailing"}, {}),
    (DDIMScheduler, {"prediction_type": "v_prediction"}, {"eta": 0.5}),
    (EulerDiscreteScheduler, {}, {}),
    (
        EulerDiscreteScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1, **KARRAS},
        {"s_churn": 2.0},
    ),
    (
        EulerDiscreteScheduler,
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {},
    ),
    (
        EulerDiscreteScheduler,
        {"prediction_type": "v_prediction", "timestep_type": "continuous", **KARRAS},
        {},
    ),
    (DPMSolverMultistepScheduler, {}, {}),
    (DPMSolverMultistepScheduler, {"prediction_type": "sample", "solver_order": 3, **KARRAS}, {}),
    (
        DPMSolverMultistepScheduler,
        {"prediction_type": "v_prediction", "algorithm_type": "sde-dpmsolver++"},
        {},
    ),
    (DPMSolverMultistepScheduler, {"thresholding": True, "sample_max_value": 1.5}, {}),
    (HeunDiscreteScheduler, {}, {}),
    (UniPCMultistepScheduler, {"prediction_type": "v_prediction"}, {}),
]


@pytest.mark.parametrize(("scheduler", "config", "options"), SCHEDULERS)
def test_sample_is_the_loop_of_diffusers(scheduler, config, options):
    x = noise(torch.float32)
    found = list(sample(model, scheduler(**config), x, TEXT, steps=6, generator=rng(), **options))
    for ours, (t, after, theirs) in zip(
        found, by_hand(own := scheduler(**config), x, 6, **options), strict=True
    ):
        assert ours.t == t and torch.equal(ours.x, after)
        x0 = (
            theirs.pred_original_sample
            if "pred_original_sample" in theirs
            else own.model_outputs[-1]
        )
        torch.testing.assert_close(ours.x0, x0, rtol=1e-4, atol=1e-4 * x0.abs().max().item())


def test_the_model_sees_unit_variance_and_one_timestep_per_row():
    data = gaussian(torch.zeros(64), 1.0)  # unit variance at every level
    for scheduler in (
        EulerDiscreteScheduler(timestep_spacing="leading"),
        DDIMScheduler(clip_sample=False),
    ):
        oracle, seen = optimal_model(data, scheduler), []

        def watched(x, t, conditioning, oracle=oracle, seen=seen):
            assert t.shape == (50,) and not torch.is_grad_enabled()
            seen.append(x.std().item())
            return oracle(x, t, conditioning)

        for _ in sample(
            watched, scheduler, noise(torch.float32, (50, 64)), steps=20, generator=rng()
        ):
            assert torch.is_grad_enabled()
        assert len(seen) == 20 and all(abs(std - 1) < 0.2 for std in seen)


@pytest.mark.parametrize("sampler", [ddim, ddpm, sample])
def test_two_samplings_of_one_scheduler_do_not_meet(sampler):
    scheduler = DPMSolverMultistepScheduler() if sampler is sample else DDPMScheduler()
    table, timesteps = scheduler.alphas_cumprod.clone(), scheduler.timesteps.clone()

    def start(steps):
        return sampler(model, scheduler, noise(torch.float32), TEXT, steps=steps, generator=rng())

    alone = list(start(4)), list(start(6))
    first, second = start(4), start(6)
    together = [], []
    for _ in range(6):
        for run, kept in zip((first, second), together, strict=True):
            kept += [step for step in [next(run, None)] if step is not None]
    for expected, found in zip(alone, together, strict=True):
        assert all(torch.equal(a.x, b.x) for a, b in zip(expected, found, strict=True))
    assert torch.equal(scheduler.alphas_cumprod, table) and torch.equal(
        scheduler.timesteps, timesteps
    )


# Refusals

X = torch.zeros(SHAPE)
LEARNT = DDPMScheduler(variance_type="learned_range")


def begin(sampler, scheduler, **options):
    """The call alone: a generator that is not advanced must refuse as well."""
    return sampler(model, scheduler, X, TEXT, **{"steps": 5, "generator": rng(), **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: begin(sample, DDIMScheduler(), steps=0), "steps: expected 1 to 1000, got 0"),
        (lambda: begin(ddpm, DDPMScheduler(), steps=1001), "steps: expected 1 to 1000, got 1001"),
        (
            lambda: begin(sample, DDPMScheduler(), eta=0.5),
            "eta: DDPMScheduler.step takes no such option",
        ),
        (
            lambda: begin(sample, DDIMScheduler(), return_dict=False),
            "return_dict: DDIMScheduler.step takes no such",
        ),
        (
            lambda: begin(sample, CogVideoXDPMScheduler()),
            "scheduler: CogVideoXDPMScheduler.step asks for old_pred",
        ),
        (
            lambda: begin(sample, UnCLIPScheduler()),
            "scheduler: UnCLIPScheduler.step asks for prev_timestep",
        ),
        (
            lambda: begin(ddpm, DDPMScheduler(), shared=1.5),
            "shared: expected a correlation from 0 to 1, got 1.5",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=1, shared=-1),
            "shared: expected a correlation from 0 to 1, got -1",
        ),
        (lambda: begin(ddim, DDIMScheduler(), eta=1.5), "eta: expected 0 to 1, got 1.5"),
        (
            lambda: begin(ddim, DDIMScheduler(), eta=0.5, generator=None),
            "generator: expected one, since eta = 0.5",
        ),
        (
            lambda: begin(ddpm, LEARNT),
            "variance_type of fixed_small or fixed_large, got 'learned_range'",
        ),
        (
            lambda: begin(ddim, EulerDiscreteScheduler()),
            "expected one with integer timesteps, got EulerDiscrete",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(rescale_betas_zero_snr=True)),
            "'epsilon' says nothing about x0",
        ),
        (
            lambda: begin(sample, EulerDiscreteScheduler(rescale_betas_zero_snr=True)),
            "'epsilon' says nothing about x0",
        ),
        (
            lambda: begin(sample, DDIMScheduler(timestep_spacing="trailing"), steps=61),
            "steps: with 61, DDIMScheduler visits timesteps -1 to 999, not 0 to 999",
        ),
        (
            lambda: begin(ddim, DDIMScheduler(steps_offset=1), steps=1000),
            "steps: with 1000, DDIMScheduler visits timesteps 1 to 1000, not 0 to 999",
        ),
    ],
)
def test_bad_input_is_refused_by_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"prediction: expected the shape of x_t, .*, got \(2, 3, 1, 4, 4\)"
    ):
        next(ddim(lambda x, t, c: x[:, :, :1], DDIMScheduler(), X, steps=2))
