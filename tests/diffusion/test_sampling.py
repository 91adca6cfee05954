"""`sample` against the loops of diffusers, and the timesteps that the step of DDIM misses."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from course_lib.diffusion import (
    CLEAN_LEVEL,
    alpha_sigma_at,
    ddim,
    ddpm,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
    rescale_to_zero_terminal_snr,
    sample,
)

# The set_timesteps of Euler and DPM-Solver hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 2, 4, 4)
TEXT = torch.tensor([0.5, -0.5])
CLIPS = [
    {"clip_sample": False},
    {"clip_sample": True},
    {"thresholding": True, "sample_max_value": 1.5},
]


def model(x, t, cond):
    """No network, but nonlinear, and it depends on t and on its text."""
    shift = t.to(x.dtype) / 1000 + (0 if cond is None else cond.to(x.dtype))
    return 1.5 * torch.tanh(2 * x + shift.view(-1, *[1] * (x.ndim - 1)))


def noise(shape=SHAPE):
    return torch.randn(shape, generator=rng(5))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def run(scheduler, num_steps=6, x=None, cond=TEXT, sampler=sample, **options):
    """All steps of a sampler."""
    x = noise() if x is None else x
    options = {"generator": rng(), **options}
    return list(sampler(model, scheduler, x, cond, num_inference_steps=num_steps, **options))


def diffusers_loop(scheduler, x, num_steps, **step_kwargs):
    """The loop of diffusers' pipelines: (t, x, result of the step); eps follows a clipped x0."""
    if isinstance(scheduler, DDIMScheduler):
        clips = scheduler.config.clip_sample or scheduler.config.thresholding
        step_kwargs.setdefault("use_clipped_model_output", clips)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_kwargs["generator"] = rng()
    scheduler.set_timesteps(num_steps)
    is_flow = isinstance(scheduler, FLOW_MATCH)
    x = x if is_flow else x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = x if is_flow else scheduler.scale_model_input(x, t)
        result = scheduler.step(model(scaled, t.expand(2), TEXT), t, x, **step_kwargs)
        x = result.prev_sample
        yield t.item(), x, result


FLOW_MATCH = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
KARRAS = {"use_karras_sigmas": True}
V = {"prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = [
    (DDPMScheduler, {"timestep_spacing": "trailing"}, {}),
    (DDIMScheduler, V, {"eta": 0.5}),
    (EulerDiscreteScheduler, {}, {}),
    (
        EulerDiscreteScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1, **KARRAS},
        {"s_churn": 2.0},
    ),
    (EulerDiscreteScheduler, {"timestep_spacing": "trailing", **V}, {}),
    (EulerDiscreteScheduler, {"timestep_type": "continuous", **V, **KARRAS}, {}),
    (DPMSolverMultistepScheduler, {}, {}),
    (DPMSolverMultistepScheduler, {"prediction_type": "sample", "solver_order": 3, **KARRAS}, {}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", **V}, {}),
    (DPMSolverMultistepScheduler, {"thresholding": True, "sample_max_value": 1.5}, {}),
    (DPMSolverMultistepScheduler, {"flow_shift": 3.0, **FLOW}, {}),
    (HeunDiscreteScheduler, {}, {}),
    (UniPCMultistepScheduler, V, {}),
    (UniPCMultistepScheduler, {"flow_shift": 3.0, **FLOW}, {}),
    (UniPCMultistepScheduler, {**FLOW, "prediction_type": "sample"}, {}),
    (FlowMatchEulerDiscreteScheduler, {}, {}),
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0, "stochastic_sampling": True}, {}),
    (FlowMatchEulerDiscreteScheduler, {"shift_terminal": 0.1, **KARRAS}, {}),
    (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, {}),
    (FlowMatchLCMScheduler, {"shift": 3.0}, {}),
]


@pytest.mark.parametrize(("scheduler", "config", "step_kwargs"), SCHEDULERS)
def test_sample_is_the_loop_of_diffusers(scheduler, config, step_kwargs):
    steps = run(scheduler(**config), **step_kwargs)
    reference = scheduler(**config)
    expected = diffusers_loop(reference, noise(), 6, **step_kwargs)
    before = noise()
    for step, (t, x, result) in zip(steps, expected, strict=True):
        assert step.t == t and torch.equal(step.x, x)
        if "pred_original_sample" in result:
            x0 = result.pred_original_sample
        elif isinstance(reference, FLOW_MATCH):
            x0 = before - t / 1000 * model(before, torch.tensor([t, t]), TEXT)
        else:
            x0 = reference.model_outputs[-1]
        torch.testing.assert_close(step.x0, x0, rtol=1e-4, atol=1e-4 * x0.abs().max().item())
        before = x


@pytest.mark.parametrize("clip", CLIPS)
def test_ddim_without_recomputed_eps_is_available(clip):
    plain = {"use_clipped_model_output": False}
    steps = run(DDIMScheduler(**clip), 10, **plain)
    expected = diffusers_loop(DDIMScheduler(**clip), noise(), 10, **plain)
    for step, (_, x, _) in zip(steps, expected, strict=True):
        assert torch.equal(step.x, x)
    scheduler = DDIMScheduler(**clip)
    clips = scheduler.config.clip_sample or scheduler.config.thresholding
    assert torch.equal(run(scheduler, 10)[-1].x, steps[-1].x) != clips


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_autocast_does_not_reduce_the_precision_of_samples(scheduler):
    """The predictions are bfloat16; x, x0 and the noise keep their dtype."""
    half = lambda x, t, text: model(x, t, text).bfloat16()  # noqa: E731
    rounded = lambda x, t, text: half(x, t, text).float()  # noqa: E731
    options = {"num_inference_steps": 5}
    ends = [
        [*sample(each, scheduler(), noise(), TEXT, generator=rng(), **options)][-1]
        for each in (half, rounded)
    ]
    assert ends[0].x.dtype == ends[0].x0.dtype == torch.float32
    assert torch.equal(ends[0].x, ends[1].x)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler])
def test_schedulers_of_several_evaluations_per_step_count_all_of_them(scheduler):
    steps = run(scheduler())
    assert [step.index for step in steps] == list(range(1, len(steps) + 1)) and len(steps) > 6


def test_the_model_gets_unit_variance_and_one_timestep_per_row():
    data = isotropic_gaussian(torch.zeros(64), 1.0)  # unit variance at every level
    for scheduler in (
        EulerDiscreteScheduler(timestep_spacing="leading"),
        DDIMScheduler(clip_sample=False),
    ):
        ideal = ideal_denoiser(data, scheduler)
        stds = []

        def watched(x, t, cond, ideal=ideal, stds=stds):
            assert t.shape == (50,) and not torch.is_grad_enabled()
            stds.append(x.std().item())
            return ideal(x, t, cond)

        options = {"num_inference_steps": 20, "generator": rng()}
        for _ in sample(watched, scheduler, noise((50, 64)), **options):
            assert torch.is_grad_enabled()
        assert len(stds) == 20 and all(abs(std - 1) < 0.2 for std in stds)


@pytest.mark.parametrize("sampler", [ddim, ddpm, sample])
def test_two_runs_with_one_scheduler_are_independent(sampler):
    scheduler = DPMSolverMultistepScheduler() if sampler is sample else DDPMScheduler()
    table, timesteps = scheduler.alphas_cumprod.clone(), scheduler.timesteps.clone()

    def start(num_steps):
        options = {"num_inference_steps": num_steps, "generator": rng()}
        return sampler(model, scheduler, noise(), TEXT, **options)

    separate = list(start(4)), list(start(6))
    first, second = start(4), start(6)
    interleaved = [], []
    for _ in range(6):
        for generator, steps in zip((first, second), interleaved, strict=True):
            steps += [step for step in [next(generator, None)] if step is not None]
    for expected, steps in zip(separate, interleaved, strict=True):
        assert all(torch.equal(a.x, b.x) for a, b in zip(expected, steps, strict=True))
    assert torch.equal(scheduler.alphas_cumprod, table)
    assert torch.equal(scheduler.timesteps, timesteps)


# Timesteps that DDIM's step misses

MISSED = [("linspace", 10), ("linspace", 60), ("trailing", 3), ("trailing", 30)]


@pytest.mark.parametrize(("spacing", "num_steps"), MISSED)
@pytest.mark.parametrize("clip_sample", [False, True])
def test_ddim_steps_that_would_miss_the_next_timestep_reach_it(spacing, num_steps, clip_sample):
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=clip_sample)
    steps = run(scheduler, num_steps)
    by_hand = run(scheduler, num_steps, sampler=ddim)
    assert len(steps) == num_steps
    assert all(torch.equal(a.x, b.x) for a, b in zip(steps, by_hand, strict=True))
    with pytest.raises(ValueError, match="use_clipped_model_output: expected none where `ddim`"):
        run(scheduler, num_steps, use_clipped_model_output=False)


@pytest.mark.parametrize(("spacing", "num_steps"), MISSED)
def test_on_a_point_mass_every_ddim_step_lies_on_the_next_level(spacing, num_steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    data = isotropic_gaussian(torch.tensor([0.2, -0.1]), 0.0)
    ideal = ideal_denoiser(data, scheduler)
    kwargs = {"num_inference_steps": num_steps, "generator": rng()}
    steps = list(sample(ideal, scheduler, noise((20, 2)), **kwargs))
    start = alpha_sigma_at(scheduler, torch.tensor([steps[0].t]))
    for step, following in zip(steps, steps[1:], strict=False):
        level = alpha_sigma_at(scheduler, torch.tensor([following.t]))
        exact = probability_flow_solution(data, noise((20, 2)), start, level)
        torch.testing.assert_close(step.x, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_steps_that_reach_the_next_timestep_are_accepted(spacing, offset):
    config = {"num_train_timesteps": 60, "beta_end": 0.3, "steps_offset": offset}
    scheduler = DDIMScheduler(timestep_spacing=spacing, **config)
    divisors = [n for n in range(1, 60) if 60 % n == 0]
    for num_steps in divisors if spacing == "trailing" else (*divisors, 7, 11, 25):
        steps = run(scheduler, num_steps)
        by_hand = run(scheduler, num_steps, sampler=ddim)
        for step, other in zip(steps, by_hand, strict=True):
            torch.testing.assert_close(step.x, other.x, rtol=1e-3, atol=1e-3)


def test_ddim_by_hand_is_right_where_the_step_of_diffusers_is_not():
    """In 60 "linspace" steps over 100 timesteps DDIMScheduler goes 1 down instead of 1.7."""
    config = {"num_train_timesteps": 100, "beta_end": 0.2, "clip_sample": False}
    scheduler = DDIMScheduler(timestep_spacing="linspace", **config)
    scheduler.set_timesteps(60)
    levels = [alpha_sigma_at(scheduler, t[None]) for t in scheduler.timesteps]

    def errors(std):
        """Of every step by hand and by diffusers, against the probability flow."""
        data = isotropic_gaussian(torch.tensor([0.2, -0.1]), std)
        ideal, x = ideal_denoiser(data, scheduler), noise((20, 2))
        ends = [*levels[1:], CLEAN_LEVEL]
        exact = [probability_flow_solution(data, x, levels[0], end) for end in ends]
        by_hand = [step.x for step in ddim(ideal, scheduler, x, num_inference_steps=60)]
        by_diffusers = []
        for t in scheduler.timesteps:
            x = scheduler.step(ideal(x, t.expand(20), None), t, x).prev_sample
            by_diffusers.append(x)
        return [
            [(x - y).abs().max().item() for x, y in zip(run, exact, strict=True)]
            for run in (by_hand, by_diffusers)
        ]

    by_hand, by_diffusers = errors(0.0)  # a point
    assert max(by_hand) < 1e-5 and max(by_diffusers) > 0.05
    by_hand, by_diffusers = errors(0.5)
    assert 5 * by_hand[-1] < by_diffusers[-1]


def test_zero_snr_with_eta_1_is_refused_where_diffusers_gives_nan():
    scheduler = rescale_to_zero_terminal_snr(DDIMScheduler(clip_sample=False, **V))
    assert all(step.x.isfinite().all() for step in run(scheduler, 10, sampler=ddim, eta=1))
    with pytest.raises(ValueError, match="eta: eta=1 with a zero-terminal-SNR schedule gives NaN"):
        run(scheduler, 10, eta=1.0)
    scheduler.set_timesteps(10)
    step = scheduler.step(noise(), 999, noise(), eta=1.0, generator=rng())
    assert step.prev_sample.isnan().any()


# Refusals

X = torch.zeros(SHAPE)
TRAILING = DDIMScheduler(timestep_spacing="trailing")


def begin(scheduler, sampler=sample, **options):
    """The call alone: a generator that is not advanced must refuse as well."""
    sampler = inspect.unwrap(sampler)  # the type checker of the tests would refuse 2.5 as well
    return sampler(
        model, scheduler, X, TEXT, **{"num_inference_steps": 5, "generator": rng(), **options}
    )


@pytest.mark.parametrize("sampler", [sample, ddpm, ddim])
@pytest.mark.parametrize("number", [0, -1, 1001, 2.5, 2.0, True, "5", None])
def test_only_whole_numbers_of_steps_are_accepted(sampler, number):
    message = f"num_inference_steps: expected an integer from 1 to 1000, got {number!r}"
    with pytest.raises(ValueError, match=message):
        begin(DDPMScheduler(), sampler, num_inference_steps=number)
    assert next(begin(DDPMScheduler(), sampler, num_inference_steps=np.int64(5))).index == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: begin(DDPMScheduler(), eta=0.5),
            "eta: DDPMScheduler.step takes no such argument",
        ),
        (
            lambda: begin(DDIMScheduler(), return_dict=False),
            "return_dict: DDIMScheduler.step takes no such argument",
        ),
        (
            lambda: begin(CogVideoXDPMScheduler()),
            "scheduler: CogVideoXDPMScheduler.step requires old_pred",
        ),
        (
            lambda: begin(UnCLIPScheduler()),
            "scheduler: UnCLIPScheduler.step requires prev_timestep",
        ),
        (
            lambda: begin(EulerDiscreteScheduler(rescale_betas_zero_snr=True)),
            "epsilon-prediction is undefined at zero SNR",
        ),
        (
            lambda: begin(TRAILING, num_inference_steps=61),
            "num_inference_steps: with 61, DDIMScheduler visits timesteps -1 to 999, not 0 to 999",
        ),
        (
            lambda: begin(UniPCMultistepScheduler(use_flow_sigmas=True, **V)),
            "UniPCMultistepScheduler.step does not support 'v_prediction' on a flow-matching",
        ),
        (
            lambda: begin(UniPCMultistepScheduler(prediction_type="flow_prediction")),
            "UniPCMultistepScheduler.step does not support 'flow_prediction' on a variance-pres",
        ),
        (
            lambda: begin(DDPMScheduler(), generator=[rng()]),
            "generator: expected one, or a list of 2, one for each row; got a list of 1",
        ),
    ],
)
def test_bad_input_is_refused_by_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()
