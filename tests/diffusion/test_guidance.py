"""Guidance against diffusers and Gaussians whose guided flow is known; dropout by counts."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st

from course_lib.diffusion import (
    PREDICTION_TYPES,
    AlphaSigma,
    GaussianMixture,
    cfg_model,
    classifier_free_guidance,
    convert_prediction,
    ddim,
    drop_conditioning,
    dynamic_thresholding,
    ideal_denoiser,
    isotropic_gaussian,
    switch_at,
)

SHAPE = (3, 4, 2, 5, 5)


def draws(num_tensors, seed=0, shape=SHAPE):
    generator = rng(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(num_tensors)
    ]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Spy:
    """A model that records its calls; it predicts x + t · the mean of each row of text."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, cond):
        self.calls.append((x, t, cond))
        text = cond["text"] if isinstance(cond, dict) else cond
        return x + text.flatten(1).mean(1).view(-1, 1, 1, 1, 1) * t.view(-1, 1, 1, 1, 1)


# The formula


@given(scale=st.floats(0, 20), rescale=st.floats(0, 1), seed=st.integers(0, 100))
def test_the_formula_is_that_of_diffusers(scale, rescale, seed):
    cond_pred, uncond_pred = draws(2, seed)
    mixed = uncond_pred + scale * (cond_pred - uncond_pred)
    expected = rescale_noise_cfg(mixed, cond_pred, rescale)
    out = classifier_free_guidance(cond_pred, uncond_pred, scale, rescale)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rescale", [0, 0.7, 1])
def test_rescaling_restores_the_standard_deviation(rescale):
    cond_pred, uncond_pred = draws(2)
    out = classifier_free_guidance(cond_pred, uncond_pred, 7.5, rescale)
    std, target = (x.flatten(1).std(dim=1) for x in (out, cond_pred))
    mixed = classifier_free_guidance(cond_pred, uncond_pred, 7.5).flatten(1).std(dim=1)
    expected = rescale * target + (1 - rescale) * mixed
    torch.testing.assert_close(std, expected, rtol=1e-10, atol=0)
    at_one = classifier_free_guidance(cond_pred, uncond_pred, 1, rescale)
    torch.testing.assert_close(at_one, cond_pred, rtol=1e-10, atol=1e-10)


@given(
    kind=st.sampled_from(PREDICTION_TYPES),
    other=st.sampled_from(PREDICTION_TYPES),
    scale=st.floats(0, 10),
)
def test_all_prediction_types_give_the_same_guidance(kind, other, scale):
    x, first, second = draws(3)
    level = AlphaSigma(torch.tensor([0.6]).double(), torch.tensor([0.8]).double())
    mixed = classifier_free_guidance(first, second, scale)
    mixed = convert_prediction(mixed, x, level, kind).as_type(other)
    converted = [
        convert_prediction(pred, x, level, kind).as_type(other) for pred in (first, second)
    ]
    expected = classifier_free_guidance(*converted, scale)
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)


# Scales that are tensors


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_scale_per_frame_is_each_frames_own_scale(shape, dtype):
    cond_pred, uncond_pred = draws(2)  # b c f h w, with 2 frames
    scales = torch.tensor([1, 3], dtype=dtype)
    out = classifier_free_guidance(cond_pred, uncond_pred, scales.view(shape))
    for frame, scale in enumerate(scales.tolist()):
        expected = classifier_free_guidance(cond_pred, uncond_pred, scale)[:, :, frame]
        torch.testing.assert_close(out[:, :, frame], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1, 1, 1)])
@pytest.mark.parametrize("rescale", [0, 0.7])
def test_a_scale_per_row_is_each_rows_own_scale(shape, rescale):
    cond_pred, uncond_pred = draws(2)
    scales = torch.tensor([0.0, 1.0, 7.5])
    out = classifier_free_guidance(cond_pred, uncond_pred, scales.view(shape), rescale)
    for row, scale in enumerate(scales.tolist()):
        rows = cond_pred[row : row + 1], uncond_pred[row : row + 1]
        expected = classifier_free_guidance(*rows, scale, rescale)
        torch.testing.assert_close(out[row : row + 1], expected, rtol=1e-12, atol=1e-12)


def test_a_scale_of_one_number_is_that_number():
    cond_pred, uncond_pred = draws(2)
    expected = classifier_free_guidance(cond_pred, uncond_pred, 2.5)
    for scale in (torch.tensor(2.5), torch.tensor([2.5]), torch.tensor([[2.5]])):
        torch.testing.assert_close(
            classifier_free_guidance(cond_pred, uncond_pred, scale), expected
        )


# The guided model


def test_one_forward_pass_has_both_halves():
    spy, (x,), text, uncond = Spy(), draws(1), torch.ones(3, 7, 2), torch.zeros(1, 7, 2)
    t = torch.tensor([1.0, 2.0, 3.0])
    out = cfg_model(spy, uncond, 4)(x, t, text)
    assert len(spy.calls) == 1
    called_x, called_t, called_text = spy.calls[0]
    assert torch.equal(called_x, torch.cat([x, x])) and torch.equal(called_t, torch.cat([t, t]))
    assert torch.equal(called_text, torch.cat([torch.zeros(3, 7, 2), text]))
    # the prediction is x + t with the prompt and x without
    torch.testing.assert_close(out, x + 4 * t.view(-1, 1, 1, 1, 1))
    per_frame = torch.tensor([4.0, 0.5]).view(2, 1, 1)
    out = cfg_model(spy, uncond, per_frame)(x, t, text)
    torch.testing.assert_close(out, x + per_frame * t.view(-1, 1, 1, 1, 1))


def test_without_guidance_the_model_is_called_as_it_is():
    spy = Spy()
    assert cfg_model(spy, torch.zeros(1, 7, 2), 1, 0.7) is spy
    assert cfg_model(spy, torch.zeros(1, 7, 2), 1.01) is not spy
    # a tensor of ones costs two passes, and changes nothing
    (x,), t, text = draws(1), torch.ones(3), torch.ones(3, 7, 2)
    out = cfg_model(spy, torch.zeros(1, 7, 2), torch.ones(3))(x, t, text)
    torch.testing.assert_close(out, spy(x, t, text))


def test_negative_prompts_and_several_conditions():
    (x,), t = draws(1), torch.ones(3)
    text = torch.ones(3, 7, 2)
    negative = torch.tensor([0.0, -1.0, -2.0]).view(3, 1, 1).expand(3, 7, 2)
    out = cfg_model(Spy(), negative, 3)(x, t, text)
    expected = (negative + 3 * (text - negative))[:, 0, 0]
    torch.testing.assert_close(out, x + expected.view(-1, 1, 1, 1, 1))
    spy = Spy()
    guided = cfg_model(spy, {"text": negative, "fps": torch.zeros(1)}, 3)
    torch.testing.assert_close(guided(x, t, {"text": text, "fps": torch.full((3,), 8.0)}), out)
    assert spy.calls[0][2]["fps"].tolist() == [0, 0, 0, 8, 8, 8]


SCHEDULERS = [
    *(DDIMScheduler(prediction_type=kind, clip_sample=False) for kind in PREDICTION_TYPES),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=[*PREDICTION_TYPES, "flow matching"])
@pytest.mark.parametrize("scale", [0, 1, 3, torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5])])
def test_guidance_between_two_gaussians_leads_to_a_third(scheduler, scale):
    """Scores of N(a, s²) and N(b, s²) mix to that of N(a + scale (b - a), s²), step by step."""
    a, b, s = torch.tensor([0.2, -0.3]), torch.tensor([-0.1, 0.5]), 0.4
    pair = ideal_denoiser(GaussianMixture(torch.stack([a, b]), torch.tensor([s, s])), scheduler)
    (noise,) = draws(1, shape=(5, 2))
    cond, uncond = torch.tensor([[0.0, 1.0]]).expand(5, 2), torch.tensor([[1.0, 0.0]])
    steps = list(
        ddim(cfg_model(pair, uncond, scale), scheduler, noise, cond, num_inference_steps=20)
    )
    for row, row_scale in enumerate(torch.as_tensor(scale).expand(5).tolist()):
        third = ideal_denoiser(isotropic_gaussian(a + row_scale * (b - a), s), scheduler)
        rows = slice(row, row + 1)
        expected = ddim(third, scheduler, noise[rows], num_inference_steps=20)
        for step, other in zip(steps, expected, strict=True):
            torch.testing.assert_close(step.x[rows], other.x, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(step.x0[rows], other.x0, rtol=1e-5, atol=1e-6)


# Switching models


def test_switching_uses_one_model_at_each_step():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    first, second = (
        ideal_denoiser(isotropic_gaussian(torch.tensor(mean), 0.4), scheduler)
        for mean in ([0.2, -0.3], [-0.1, 0.5])
    )
    (noise,) = draws(1, shape=(5, 2))
    model = switch_at(first, second, 400)
    steps = list(ddim(model, scheduler, noise, num_inference_steps=10))
    assert {step.t >= 400 for step in steps} == {True, False}
    x_t = noise
    only_first = ddim(first, scheduler, noise, num_inference_steps=10)
    for step, expected in zip(steps, only_first, strict=True):
        t = torch.full((5,), step.t)
        if step.t >= 400:
            assert torch.equal(step.x, expected.x)
        torch.testing.assert_close(step.x0, (first if step.t >= 400 else second)(x_t, t, None))
        x_t = step.x
    assert (steps[-1].x - expected.x).abs().min() > 0.01


def test_switching_passes_all_arguments_and_keeps_rows_together():
    high, low, (x,), text = Spy(), Spy(), draws(1), torch.ones(3, 7, 2)
    switched = switch_at(high, low, 500)
    for t, (used, unused) in ((500.0, (high, low)), (999.0, (high, low)), (499.5, (low, high))):
        high.calls.clear()
        low.calls.clear()
        switched(x, torch.full((3,), t), text)
        assert len(used.calls) == 1 and not unused.calls
        assert used.calls[0][0] is x and used.calls[0][2] is text
    with pytest.raises(ValueError, match="t: expected all rows at 500 or more, or all below, got"):
        switched(x, torch.tensor([499.0, 500.0, 600.0]), text)


# Dropout


@pytest.mark.parametrize("drop_prob", [0, 0.1, 0.5, 1])
def test_each_row_is_dropped_independently(drop_prob):
    text, uncond = torch.rand(4000, 5, 2, generator=rng()) + 1, torch.zeros(5, 2)
    out = drop_conditioning(text, uncond, drop_prob, rng(1))
    dropped = (out == 0).flatten(1).all(1)
    assert torch.equal(out[~dropped], text[~dropped])  # entire rows or nothing
    deviation = math.sqrt(4000 * drop_prob * (1 - drop_prob))
    assert abs(dropped.sum() - 4000 * drop_prob) <= 4 * deviation
    # one number per row, whatever the probability: raising it only drops more
    generator = rng(1)
    more = drop_conditioning(text, uncond[None], min(1, drop_prob + 0.2), generator)
    assert not (more[dropped] != 0).any()
    reference = rng(1)
    torch.rand(4000, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


# Thresholding


@given(
    percentile=st.floats(0.5, 1),
    max_value=st.floats(0.1, 4),
    std=st.floats(0.1, 5),
    seed=st.integers(0, 100),
)
def test_dynamic_thresholding_is_that_of_diffusers(percentile, max_value, std, seed):
    options = {"dynamic_thresholding_ratio": percentile, "sample_max_value": max_value}
    x0 = std * draws(1, seed)[0]
    expected = DDPMScheduler(thresholding=True, **options)._threshold_sample(x0)
    out = dynamic_thresholding(x0, percentile, max_value)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_dynamic_thresholding_keeps_values_in_range_and_clips_by_rows():
    x0 = torch.linspace(-1, 1, 100).repeat(2, 1)
    x0[1] *= 10
    out = dynamic_thresholding(x0, 0.5)
    assert torch.equal(out[0], x0[0])  # half its values lie within 1/2: nothing to do
    limit = x0[1].abs().quantile(0.5)
    torch.testing.assert_close(out[1], (x0[1] / limit).clamp(-1, 1))
    assert torch.equal(dynamic_thresholding(x0, 0.5, 1), x0.clamp(-1, 1))
    assert dynamic_thresholding(x0.bfloat16()).dtype == torch.bfloat16


def test_a_threshold_of_more_values_than_torch_sorts_for_quantiles():
    x0 = torch.full((1, 2**24 + 2), 0.5)
    x0[:, :3] = 4.0
    # the third largest value still counts; the fourth is one of the many
    assert dynamic_thresholding(x0, 1 - 2 / (2**24 + 1))[0, 3] == 0.125
    assert dynamic_thresholding(x0, 1 - 3 / (2**24 + 1))[0, 3] == 0.5


# Refusals

X, TEXT = torch.zeros(SHAPE), torch.zeros(3, 7, 2)
T = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: classifier_free_guidance(X, X, -1),
            "guidance_scale: expected a finite number at least 0, got -1",
        ),
        (
            lambda: classifier_free_guidance(X, X, torch.tensor([1.0, 2.0, -0.1])),
            "guidance_scale: expected finite numbers of at least 0, got tensor",
        ),
        (
            lambda: classifier_free_guidance(X, X, torch.tensor([1.0, math.nan, 1.0])),
            "guidance_scale: expected finite numbers of at least 0, got tensor",
        ),
        (
            lambda: classifier_free_guidance(X, X, torch.ones(2)),
            r"guidance_scale: expected a number, \(3,\) or a shape that .*, got \(2,\)",
        ),
        (
            lambda: classifier_free_guidance(X, X, torch.ones(3, 1, 1)),
            r"guidance_scale: .* broadcasts to \(3, 4, 2, 5, 5\), got \(3, 1, 1\)",
        ),
        (
            lambda: classifier_free_guidance(X, X, torch.ones(1, 1, 1, 1, 1, 1)),
            r"guidance_scale: .*, got \(1, 1, 1, 1, 1, 1\)",
        ),
        (
            lambda: classifier_free_guidance(X, X, 2, 1.5),
            "guidance_rescale: expected a finite number at least 0 and at most 1, got 1.5",
        ),
        (
            lambda: cfg_model(Spy(), TEXT, -0.5),
            "guidance_scale: expected a finite number at least 0, got -0.5",
        ),
        (
            lambda: cfg_model(Spy(), TEXT, torch.tensor([[-1.0]])),
            "guidance_scale: expected finite numbers of at least 0, got tensor",
        ),
        (
            lambda: cfg_model(Spy(), TEXT, 1, -1),
            "guidance_rescale: expected a finite number at least 0 and at most 1, got -1",
        ),
        (
            lambda: cfg_model(Spy(), TEXT[:1], 2)(X, T, None),
            "cond: expected a tensor like uncond, got NoneType",
        ),
        (
            lambda: cfg_model(Spy(), {"text": TEXT}, 2)(X, T, {"fps": TEXT, "a": TEXT}),
            "cond: expected a mapping of text like uncond, got a mapping of a, fps",
        ),
        (
            lambda: cfg_model(Spy(), TEXT[:2], 2)(X, T, TEXT),
            r"rows of one shape, 1 or 3 and 3 of them, got \(2, 7, 2\) and \(3, 7, 2\)",
        ),
        (
            lambda: cfg_model(Spy(), TEXT[:1, :5], 2)(X, T, TEXT),
            r"rows of one shape, 1 or 3 and 3 of them, got \(1, 5, 2\) and \(3, 7, 2\)",
        ),
        (
            lambda: cfg_model(Spy(), TEXT[:1], 2)(X, T, TEXT[:1]),
            r"got \(1, 7, 2\) and \(1, 7, 2\)",
        ),
        (
            lambda: drop_conditioning(TEXT, TEXT[:2], 0.1, rng()),
            r"uncond: expected one row of cond, \(7, 2\), got \(2, 7, 2\)",
        ),
        (
            lambda: drop_conditioning(TEXT, TEXT[0], 1.2, rng()),
            "drop_prob: expected a finite number at least 0 and at most 1, got 1.2",
        ),
        (
            lambda: dynamic_thresholding(X, 1.1),
            "percentile: expected a finite number at least 0 and at most 1, got 1.1",
        ),
        (
            lambda: dynamic_thresholding(X, 0.9, 0),
            "max_value: expected a finite number above 0, got 0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
