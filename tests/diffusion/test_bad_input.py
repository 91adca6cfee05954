"""What would give a wrong result without a message is refused: integers, NaN, broadcast shapes."""

import inspect
import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from course_lib.diffusion import (
    CLEAN_LEVEL,
    AlphaSigma,
    GaussianMixture,
    add_noise,
    alpha_sigma_at,
    cfg_model,
    classifier_free_guidance,
    convert_prediction,
    denoising_loss,
    drop_conditioning,
    dynamic_thresholding,
    empirical_distribution,
    isotropic_gaussian,
    make_noisy_batch,
    min_snr_weights,
    offset_noise,
    prediction_target,
    probability_flow_solution,
    sample_noise,
    snr,
    switch_at,
)

S = DDPMScheduler()
FLOW = FlowMatchEulerDiscreteScheduler()
X = torch.zeros(2, 3)
T = torch.tensor([1, 2])
LEVEL = alpha_sigma_at(S, T)
MIXTURE = GaussianMixture(torch.zeros(4, 3), torch.ones(4))
MODEL = lambda x, t, cond: x  # noqa: E731
INTEGERS = [torch.uint8, torch.int64, torch.bool]
NAN, INF = math.nan, math.inf
# The type checker of the tests raises TypeError before the check of the package
NO_TENSOR = (ValueError, TypeError)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def level_of(alpha, sigma):
    return AlphaSigma(torch.tensor(alpha).double(), torch.tensor(sigma).double())


# Integers

DATA = {
    "add_noise x0": ("x0", lambda x: add_noise(S, x, X, T)),
    "add_noise eps": ("eps", lambda x: add_noise(S, X, x, T)),
    "prediction_target x0": ("x0", lambda x: prediction_target(S, x, X, T)),
    "prediction_target eps": ("eps", lambda x: prediction_target(S, X, x, T)),
    "convert_prediction pred": ("pred", lambda x: convert_prediction(x, X, LEVEL, "epsilon")),
    "convert_prediction x_t": ("x_t", lambda x: convert_prediction(X, x, LEVEL, "epsilon")),
    "make_noisy_batch": ("x0", lambda x: make_noisy_batch(S, x, rng())),
    "denoising_loss": ("pred", lambda x: denoising_loss(x, make_noisy_batch(S, X, rng()))),
    "offset_noise": ("noise", lambda x: offset_noise(x, 0.1, rng())),
    "level": ("x", lambda x: LEVEL.like(x)),
    "means": ("means", lambda x: GaussianMixture(x, torch.ones(2))),
    "stds": ("stds", lambda x: GaussianMixture(X, x[:, 0])),
    "weights": ("weights", lambda x: GaussianMixture(X, torch.ones(2), x[:, 0])),
    "mean": ("mean", lambda x: isotropic_gaussian(x, 0.5)),
    "data": ("data", lambda x: empirical_distribution(x)),
    "denoise": ("x_t", lambda x: MIXTURE.denoise(x, LEVEL)),
    "denoise weights": ("weights", lambda x: MIXTURE.denoise(X, LEVEL, torch.eye(4)[:2].to(x))),
    "score": ("x", lambda x: MIXTURE.score(x, LEVEL)),
    "log_density": ("x_t", lambda x: MIXTURE.log_density(x, LEVEL)),
    "flow": (
        "x",
        lambda x: probability_flow_solution(isotropic_gaussian(X[0], 1), x, LEVEL, CLEAN_LEVEL),
    ),
    "cond_pred": ("cond_pred", lambda x: classifier_free_guidance(x, X, 2)),
    "uncond_pred": ("uncond_pred", lambda x: classifier_free_guidance(X, x, 2)),
    "dynamic_thresholding": ("x0", lambda x: dynamic_thresholding(x)),
}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(("name", "call"), DATA.values(), ids=DATA)
def test_integers_are_not_taken_for_floats(name, call, dtype):
    with pytest.raises(ValueError, match=f"^{name}: expected floating point, got {dtype}"):
        call(torch.ones(2, 3, dtype=dtype))


def test_embeddings_are_not_rounded_to_class_numbers():
    message = "uncond: expected the dtype of cond, torch.int64, got torch.float32"
    classes, half = torch.tensor([1, 2]), torch.tensor([0.5])
    with pytest.raises(ValueError, match=message):
        drop_conditioning(classes, half, 0.5, rng())
    with pytest.raises(ValueError, match=message):
        cfg_model(lambda x, t, cond: x, half, 2)(X, T, classes)
    # two kinds of integers, or of floats, are the same
    assert (
        drop_conditioning(classes, torch.tensor(7, dtype=torch.int32), 1, rng()).tolist() == [7] * 2
    )
    assert drop_conditioning(X.half(), X[0], 1, rng()).dtype == torch.float16


# Numbers

UNIT = "expected a finite number at least 0 and at most 1"
LEAST = "expected a finite number at least 0"
ABOVE = "expected a finite number above 0"
NUMBERS = {
    "guidance_scale": (LEAST, lambda v: classifier_free_guidance(X, X, v)),
    "guidance_scale ": (LEAST, lambda v: cfg_model(MODEL, X, v)),
    "guidance_rescale": (UNIT, lambda v: classifier_free_guidance(X, X, 2, v)),
    "drop_prob": (UNIT, lambda v: drop_conditioning(X, X[0], v, rng())),
    "percentile": (UNIT, lambda v: dynamic_thresholding(X, v)),
    "boundary_timestep": (LEAST, lambda v: switch_at(MODEL, MODEL, v)),
    "snr_gamma": (ABOVE, lambda v: min_snr_weights(S, T, v)),
    "snr_gamma ": (ABOVE, lambda v: make_noisy_batch(S, X, rng(), snr_gamma=v)),
    "noise_offset": (LEAST, lambda v: offset_noise(X, v, rng())),
    "noise_offset ": (LEAST, lambda v: make_noisy_batch(S, X, rng(), noise_offset=v)),
    "frame_correlation": (UNIT, lambda v: sample_noise((1, 1, 2, 2, 2), rng(), v)),
    "frame_correlation ": (UNIT, lambda v: make_noisy_batch(S, X, rng(), frame_correlation=v)),
    "std": (LEAST, lambda v: isotropic_gaussian(X[0], v)),
}


@pytest.mark.parametrize("value", [NAN, INF, -INF, -0.5, True])
@pytest.mark.parametrize(("name", "expected", "call"), [(k, *v) for k, v in NUMBERS.items()])
def test_numbers_are_finite_and_in_their_interval(name, expected, call, value):
    with pytest.raises(ValueError, match=f"^{name.strip()}: {expected}, got {value}"):
        call(value)


@pytest.mark.parametrize("value", [NAN, -INF, -0.5, 0, True])
def test_the_bound_of_thresholds_is_positive_and_may_be_infinite(value):
    with pytest.raises(ValueError, match=f"max_value: {ABOVE}, got {value}"):
        dynamic_thresholding(X, 0.9, value)
    dynamic_thresholding(X, 0.9, INF)


@pytest.mark.parametrize("value", [NAN, INF, -1.0])
def test_scales_that_are_tensors_are_finite(value):
    with pytest.raises(ValueError, match="guidance_scale: expected finite numbers of at least 0"):
        classifier_free_guidance(X, X, torch.tensor([1.0, value]))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("means", lambda x: GaussianMixture(x, torch.ones(2))),
        ("stds", lambda x: GaussianMixture(X, x[:, 0].abs())),
        ("weights", lambda x: GaussianMixture(X, torch.ones(2), x[:, 0].abs())),
        ("weights", lambda x: MIXTURE.denoise(X, LEVEL, x.new_ones(4) * x[0, 0])),
        ("data", empirical_distribution),
        ("mean", lambda x: isotropic_gaussian(x, 1)),
    ],
)
def test_a_mixture_has_finite_values(name, call, value):
    with pytest.raises(ValueError, match=f"{name}: expected finite values"):
        call(torch.full((2, 3), value))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("means", lambda: GaussianMixture(X[:0], torch.ones(0))),
        ("data", lambda: empirical_distribution(X[:0])),
        ("mean", lambda: isotropic_gaussian(X[0, :0], 1)),
    ],
)
def test_what_is_empty_is_refused(name, call):
    with pytest.raises(ValueError, match=f"{name}: expected no empty axis, got"):
        call()


# Timesteps and levels

TIMESTEPS = [
    torch.tensor([-1, 5]),
    torch.tensor([5, 1001]),
    torch.tensor([5.0, NAN]),
    torch.tensor([NAN, NAN]),
    torch.tensor([INF, 5.0]),
    torch.tensor([True, False]),
    torch.tensor([[1, 2]]),
    torch.tensor(5),
    torch.tensor([], dtype=torch.long),
]


@pytest.mark.parametrize("scheduler", [S, FLOW])
@pytest.mark.parametrize("t", TIMESTEPS, ids=str)
def test_timesteps_are_a_list_inside_the_schedule(scheduler, t):
    calls = [
        lambda: alpha_sigma_at(scheduler, t),
        lambda: snr(scheduler, t),
        lambda: add_noise(scheduler, X, X, t),
        lambda: prediction_target(scheduler, X, X, t),
        lambda: make_noisy_batch(scheduler, X, rng(), timesteps=t),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="^t: expected|^timesteps: expected"):
            call()
    with pytest.raises(ValueError, match="^t: expected"):
        min_snr_weights(S, t)


@pytest.mark.parametrize(
    "level",
    [
        level_of([NAN], [0.5]),
        level_of([0.5], [NAN]),
        level_of([0.5], [INF]),
        level_of([], []),
        level_of(0.5, 0.5),
        level_of([0.5], [0.5, 0.5, 0.5]),
        level_of([[0.5, 0.5]], [[0.5, 0.5]]),
    ],
)
def test_levels_are_finite_and_have_one_entry_or_one_for_each_row(level):
    gaussian = isotropic_gaussian(X[0], 1)
    calls = [
        lambda: level.like(X),
        lambda: convert_prediction(X, X, level, "epsilon"),
        lambda: MIXTURE.denoise(X, level),
        lambda: MIXTURE.log_density(X, level),
        lambda: MIXTURE.score(X, level),
        lambda: probability_flow_solution(gaussian, X, level, CLEAN_LEVEL),
        lambda: probability_flow_solution(gaussian, X, LEVEL, level),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="^t: expected 1 timestep|^level: expected"):
            call()


# Shapes that broadcast


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3,), (), (1, 2, 3)])
def test_predictions_of_two_shapes_are_not_mixed(shape):
    with pytest.raises(ValueError, match=r"uncond_pred: expected the shape of cond_pred, \(2, 3\)"):
        classifier_free_guidance(X, torch.zeros(shape), 2)


def test_a_prediction_is_a_tensor():
    guidance = inspect.unwrap(classifier_free_guidance)
    for cond_pred, uncond_pred in ((X, 0.5), ([0.5], X)):
        with pytest.raises(NO_TENSOR):
            guidance(cond_pred, uncond_pred, 2)
    guided = cfg_model(lambda x, t, cond: (x,), X, 2)  # a network with return_dict=False
    with pytest.raises(NO_TENSOR, match="model's pred"):
        guided(X, T, X)


@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (4, 1), (4,), (3, 3), (8, 3)])
def test_a_guided_model_predicts_both_halves(shape):
    guided = cfg_model(lambda x, t, cond: torch.zeros(shape), X, 2)
    message = r"model's pred: expected the shape of x_t, \(4, 3\), got "
    with pytest.raises(ValueError, match=message):
        guided(X, T, X)


def test_rows_of_one_value_are_not_rescaled_to_nan():
    ones = torch.ones(2, 1)
    for pred in (ones, ones[:, 0]):
        assert classifier_free_guidance(pred, pred, 2).isfinite().all()
        with pytest.raises(ValueError, match="guidance_rescale: expected 0 for rows of one value"):
            classifier_free_guidance(pred, pred, 2, 0.7)


@pytest.mark.parametrize("shape", [(2, 1), (1,), (3,), ()])
def test_weights_of_a_loss_are_one_for_each_row(shape):
    batch = make_noisy_batch(S, X, rng())._replace(weight=torch.ones(shape))
    with pytest.raises(
        ValueError, match="batch: expected a weight for each of 2 rows, got weights"
    ):
        denoising_loss(X, batch)


@pytest.mark.parametrize("shape", [(5, 1), (5,), (5, 1, 3), (5, 2)])
def test_the_flow_is_that_of_data_of_one_shape(shape):
    gaussian = isotropic_gaussian(X[0], 1)
    with pytest.raises(ValueError, match=r"x: expected \(b, 3\), got"):
        probability_flow_solution(gaussian, torch.zeros(shape), level_of([0.6], [0.8]), CLEAN_LEVEL)


def test_no_flow_starts_at_a_point_without_noise():
    point = isotropic_gaussian(X[0], 0)
    with pytest.raises(ValueError, match="start: expected sigma > 0, or a mixture with a std abo"):
        probability_flow_solution(point, X, CLEAN_LEVEL, level_of([0.6], [0.8]))


# Generators and schedulers


@pytest.mark.parametrize("generator", [None, 0, [None, None], (rng(), rng()), "cpu"])
@pytest.mark.parametrize(
    "call",
    [
        lambda g: inspect.unwrap(sample_noise)((2, 3), g),
        lambda g: inspect.unwrap(offset_noise)(X, 0.1, g),
        lambda g: inspect.unwrap(make_noisy_batch)(S, X, g),
        lambda g: inspect.unwrap(drop_conditioning)(X, X[0], 0.5, g),
        lambda g: inspect.unwrap(GaussianMixture.sample)(MIXTURE, 2, g),
    ],
)
def test_only_generators_draw(call, generator):
    with pytest.raises(NO_TENSOR, match="generator"):
        call(generator)
