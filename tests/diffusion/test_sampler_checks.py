"""What the samplers refuse when called, what they refuse at a step, and the dtypes they yield."""

import inspect
import math

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
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
    sample,
)

# The set_timesteps of several schedulers hands NumPy 2 a tensor in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SAMPLERS = [sample, ddpm, ddim]
X = torch.zeros(3, 2)
NAN, INF = math.nan, math.inf


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def model(x, t, cond):
    return 1.5 * torch.tanh(2 * x + (t.to(x.dtype) / 1000)[:, None])


def never(x, t, cond):
    raise AssertionError("the model is called before the arguments are checked")


def begin(sampler, scheduler, x=X, **options):
    """The call alone, without the type checker of the tests: no step is taken."""
    options = {"num_inference_steps": 5, "generator": rng(), **options}
    return inspect.unwrap(sampler)(never, scheduler, x, None, **options)


def run(sampler, scheduler, x=X, denoiser=model, **options):
    options = {"num_inference_steps": 5, "generator": rng(), **options}
    return list(sampler(denoiser, scheduler, x, None, **options))


# Refused when called


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_no_noise(sampler, dtype):
    with pytest.raises(ValueError, match=f"x: expected floating point, got {dtype}"):
        begin(sampler, DDIMScheduler(), X.to(dtype))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("number", [0, -1, 1001, 2.5, NAN, INF, True, None, "5"])
def test_steps_are_counted_in_integers(sampler, number):
    with pytest.raises(ValueError, match="num_inference_steps: expected an integer from 1 to 1000"):
        begin(sampler, DDIMScheduler(), num_inference_steps=number)


@pytest.mark.parametrize("sampler", [sample, ddim])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])  # with linspace, sample is ddim
@pytest.mark.parametrize("eta", [-1, 1.5, NAN, INF, True, "0.5", None])
def test_eta_is_a_number_from_0_to_1(sampler, spacing, eta):
    message = f"eta: expected a finite number at least 0 and at most 1, got {eta!r}"
    with pytest.raises(ValueError, match=message):
        begin(sampler, DDIMScheduler(timestep_spacing=spacing), eta=eta)


@pytest.mark.parametrize("key", ["s_churn", "s_noise", "s_tmin", "s_tmax"])
@pytest.mark.parametrize("value", [NAN, -1.0])
def test_settings_of_a_step_are_numbers_of_at_least_0(key, value):
    with pytest.raises(ValueError, match=f"{key}: expected a number of at least 0, got {value}"):
        begin(sample, EulerDiscreteScheduler(), **{key: value})
    assert run(sample, EulerDiscreteScheduler(), s_tmax=INF)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (torch.zeros(1, 2), "variance_noise: expected the shape of x"),
        (torch.zeros(3, 2, dtype=torch.int64), "variance_noise: expected floating point"),
    ],
)
def test_noise_given_to_a_step_has_the_shape_of_x(noise, message):
    with pytest.raises(ValueError, match=message):
        begin(sample, DDIMScheduler(), variance_noise=noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "generator", [[rng()], [rng()] * 4, [], [rng(), None, rng()], (rng(),) * 3, 0]
)
def test_generators_are_one_or_one_for_each_row(sampler, generator):
    options = {"eta": 0.5} if sampler is ddim else {}
    with pytest.raises((ValueError, TypeError), match="generator"):
        begin(sampler, DDIMScheduler(), generator=generator, **options)


def test_only_ddim_without_noise_does_without_a_generator():
    for sampler in (sample, ddpm):
        with pytest.raises(ValueError, match="generator: expected a torch.Generator, got NoneType"):
            begin(sampler, DDIMScheduler(), generator=None)
    assert len(run(ddim, DDIMScheduler(), generator=None)) == 5
    with pytest.raises(ValueError, match="generator: expected one, since eta=0.5 draws noise"):
        begin(ddim, DDIMScheduler(), generator=None, eta=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_a_generator_of_another_device_is_refused_by_the_call():
    generator = torch.Generator("cuda")
    with pytest.raises(ValueError, match="scheduler: DDPMScheduler.step refuses its arguments"):
        begin(sample, DDPMScheduler(), generator=generator)
    assert len(run(sample, DDIMScheduler(), generator=generator)) == 5  # draws nothing


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerAncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        PNDMScheduler,
    ],
)
def test_a_prediction_type_that_a_scheduler_lacks_is_refused_by_the_call(scheduler):
    message = f"scheduler: {scheduler.__name__}.step refuses its arguments: .*prediction_type"
    with pytest.raises(ValueError, match=message):
        begin(sample, scheduler(prediction_type="sample"))


def test_the_trial_of_a_step_draws_from_no_generator():
    generators = [rng(3), rng(4), rng(5)]
    states = [one.get_state() for one in (*generators, torch.default_generator)]
    begin(sample, DDPMScheduler(), generator=generators)
    begin(sample, EulerAncestralDiscreteScheduler(), generator=generators)
    after = [one.get_state() for one in (*generators, torch.default_generator)]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))


def test_a_step_to_nan_is_refused_by_the_call():
    """At its start the data have no noise, and eps follows from x0 by 0 / 0."""
    with pytest.raises(ValueError, match="DDIMInverseScheduler.step gives NaN with these settings"):
        begin(sample, DDIMInverseScheduler(prediction_type="sample"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholding": True, "sample_max_value": NAN}, "sample_max_value: expected a finite"),
        ({"thresholding": True, "sample_max_value": 0}, "sample_max_value: expected a finite"),
        ({"thresholding": True, "sample_max_value": -1.0}, "sample_max_value: expected a finite"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 1.5},
            "dynamic_thresholding_ratio: expected a finite number at least 0 and at most 1",
        ),
        ({"clip_sample": True, "clip_sample_range": NAN}, "clip_sample_range: expected a finite"),
        ({"clip_sample": True, "clip_sample_range": -1}, "clip_sample_range: expected a finite"),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bounds_of_clipping_are_checked_by_the_call(sampler, config, message):
    with pytest.raises(ValueError, match=message):
        begin(sampler, DDIMScheduler(**config))


# Refused at a step


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (1, 1), (), (3,), (2,), (1, 3, 2)])
def test_predictions_do_not_broadcast(sampler, shape):
    steps = sampler(
        lambda x, t, cond: torch.ones(shape),
        DDIMScheduler(),
        X,
        num_inference_steps=2,
        generator=rng(),
    )
    with pytest.raises(ValueError, match=r"model's pred: expected the shape of x_t, \(3, 2\), got"):
        next(steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_predictions_are_floats(sampler):
    options = {"num_inference_steps": 2, "generator": rng()}
    steps = sampler(lambda x, t, cond: x.long(), DDIMScheduler(), X, **options)
    with pytest.raises(ValueError, match="model's pred: expected floating point, got torch.int64"):
        next(steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (), (2,)])
def test_replacements_do_not_broadcast(sampler, shape):
    with pytest.raises(ValueError, match=r"on_step: expected the shape of x, \(3, 2\), got"):
        run(sampler, DDIMScheduler(), on_step=lambda step: torch.ones(shape))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replacements_are_floats_and_keep_the_dtype(sampler):
    for dtype in (torch.int64, torch.uint8, torch.bool):
        with pytest.raises(ValueError, match=f"on_step: expected floating point, got {dtype}"):
            run(sampler, DDIMScheduler(), on_step=lambda step, dtype=dtype: step.x.to(dtype))
    steps = run(sampler, DDIMScheduler(), on_step=lambda step: step.x.double() + 1)
    assert {step.x.dtype for step in steps} == {torch.float32}


# Dtypes

HALF = [
    DDPMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    LCMScheduler,
    FlowMatchEulerDiscreteScheduler,
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scheduler", HALF)
def test_x_and_x0_have_the_dtype_of_the_noise(scheduler, dtype):
    x = torch.randn(3, 2, 1, 1, generator=rng()).to(dtype)
    steps = run(sample, scheduler(), x, lambda x, t, cond: 0.5 * x)
    assert {(step.x.dtype, step.x0.dtype) for step in steps} == {(dtype, dtype)}


# Thresholds below 1


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler])
def test_a_threshold_below_1_is_that_of_diffusers(scheduler):
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
    x = torch.randn(3, 2, 4, 4, generator=rng())
    denoiser = lambda x, t, cond: x.tanh()  # noqa: E731
    reference = scheduler(**config)
    reference.set_timesteps(6)
    steps = run(sample, scheduler(**config), x, denoiser, num_inference_steps=6)
    for step, t in zip(steps, reference.timesteps, strict=True):
        x = reference.step(denoiser(x, t, None), t, x).prev_sample
        assert torch.equal(step.x, x)
        torch.testing.assert_close(step.x0, reference.model_outputs[-1], rtol=1e-4, atol=1e-5)


def test_the_golden_value_of_diffusers_tests_with_a_threshold_below_1():
    """DPMSolverMultistepSchedulerTest.test_full_loop_no_noise_thres of diffusers."""
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
    scheduler = DPMSolverMultistepScheduler(
        lower_order_final=False, final_sigmas_type="sigma_min", **config
    )
    count = 4 * 3 * 8 * 8
    x = (torch.arange(count) / count).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)
    factor = lambda x, t, cond: x * (t / (t + 1)).view(-1, 1, 1, 1)  # noqa: E731
    last = run(sample, scheduler, x, factor, num_inference_steps=10)[-1]
    assert last.x.abs().mean().item() == pytest.approx(1.1364, abs=1e-3)


@pytest.mark.parametrize("sampler", [ddim, sample])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddim_thresholds_below_1_too(sampler, spacing):
    """Every x0 is clipped at 0.5 and rescaled to [-1, 1]."""
    config = {"thresholding": True, "sample_max_value": 0.5, "timestep_spacing": spacing}
    scheduler = DDIMScheduler(prediction_type="sample", **config)
    x = torch.randn(3, 2, 4, 4, generator=rng())
    for step in run(sampler, scheduler, x, lambda x, t, cond: 0.3 * x.sign()):
        torch.testing.assert_close(step.x0.abs(), torch.full_like(x, 0.6))
        assert step.x0.abs().max() <= 1


# Timesteps that a step misses

MASS = isotropic_gaussian(torch.tensor([0.2, -0.1]), 0.0)
DDIM_CONFIGS = [
    ({"timestep_spacing": "leading", "steps_offset": 25}, 39),  # goes by 25, from 975 to 25
    ({"timestep_spacing": "leading", "steps_offset": 25, "set_alpha_to_one": False}, 39),
    ({"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}, 7),
    ({"timestep_spacing": "linspace", "set_alpha_to_one": False}, 10),
    ({"timestep_spacing": "trailing", "set_alpha_to_one": False}, 7),
    ({"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, 10),
    ({"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, 7),
    ({"timestep_spacing": "linspace", "rescale_betas_zero_snr": True}, 50),
    ({"timestep_spacing": "leading", "rescale_betas_zero_snr": True, "steps_offset": 1}, 7),
]


OTHER_DDIM = [DDIMParallelScheduler, CogVideoXDDIMScheduler]


@pytest.mark.parametrize(
    ("scheduler", "config", "num_steps"),
    [
        *((DDIMScheduler, *case) for case in DDIM_CONFIGS),
        *((scheduler, *DDIM_CONFIGS[0]) for scheduler in OTHER_DDIM),
    ],
)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_on_a_point_mass_every_step_of_ddim_lies_on_the_next_level(
    scheduler, config, num_steps, prediction_type
):
    base = scheduler(clip_sample=False, prediction_type=prediction_type)
    scheduler = scheduler.from_config(base.config, **config)
    ideal = ideal_denoiser(MASS, scheduler)
    x = torch.randn(20, 2, generator=rng(5), dtype=torch.float64)
    to_one = scheduler.config.set_alpha_to_one
    end = CLEAN_LEVEL if to_one else alpha_sigma_at(scheduler, torch.tensor([0]))
    steps = run(sample, scheduler, x, ideal, num_inference_steps=num_steps)
    levels = [alpha_sigma_at(scheduler, torch.tensor([step.t])) for step in steps]
    for step, level in zip(steps, [*levels[1:], end], strict=True):
        exact = probability_flow_solution(MASS, x, levels[0], level)
        torch.testing.assert_close(step.x, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
@pytest.mark.parametrize(
    ("spacing", "offset", "num_steps", "is_even"),
    [
        ("leading", 0, 10, True),
        ("leading", 1, 7, True),
        ("leading", 1, 30, True),
        ("trailing", 0, 10, True),
        ("trailing", 0, 30, False),
        ("linspace", 0, 10, False),
        ("linspace", 0, 60, False),
        ("leading", 25, 39, False),
    ],
)
def test_pndm_reaches_the_data_or_is_refused(skip_prk_steps, spacing, offset, num_steps, is_even):
    scheduler = PNDMScheduler(
        timestep_spacing=spacing,
        steps_offset=offset,
        skip_prk_steps=skip_prk_steps,
        set_alpha_to_one=True,
    )
    x, options = torch.randn(20, 2, generator=rng(5)), {"num_inference_steps": num_steps}
    if is_even:
        last = run(sample, scheduler, x, ideal_denoiser(MASS, scheduler), **options)[-1]
        torch.testing.assert_close(last.x, MASS.means.float().expand(20, -1), atol=1e-4, rtol=0)
    else:
        with pytest.raises(ValueError, match="scheduler: PNDMScheduler.step goes by .* timesteps"):
            begin(sample, scheduler, x, **options)


def test_the_inverse_of_ddim_is_refused_where_it_misses_its_timesteps():
    scheduler = DDIMInverseScheduler(timestep_spacing="trailing", clip_sample=False)
    assert len(run(sample, scheduler, num_inference_steps=10)) == 10
    with pytest.raises(ValueError, match="DDIMInverseScheduler.step goes by 142 timesteps, but"):
        begin(sample, scheduler, num_inference_steps=7)
