"""Guidance against diffusers and against Gaussians whose guided flow is known; dropout by counting."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st

from course_lib.diffusion import (
    PREDICTION_TYPES,
    Level,
    Mixture,
    ddim,
    drop_conditioning,
    dynamic_threshold,
    estimate,
    gaussian,
    guide,
    guided,
    in_turn,
    optimal_model,
)

SHAPE = (3, 4, 2, 5, 5)


def draws(count, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Spy:
    """A model that remembers what it was called with: its answer is x + the mean of each row of text."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, conditioning):
        self.calls.append((x, t, conditioning))
        text = conditioning["text"] if isinstance(conditioning, dict) else conditioning
        return x + text.flatten(1).mean(1).view(-1, 1, 1, 1, 1) * t.view(-1, 1, 1, 1, 1)


# The formula


@given(scale=st.floats(0, 20), rescale=st.floats(0, 1), seed=st.integers(0, 100))
def test_the_formula_is_that_of_diffusers(scale, rescale, seed):
    conditional, unconditional = draws(2, seed)
    mixed = unconditional + scale * (conditional - unconditional)
    expected = rescale_noise_cfg(mixed, conditional, rescale)
    torch.testing.assert_close(
        guide(conditional, unconditional, scale, rescale), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("rescale", [0, 0.7, 1])
def test_rescaling_brings_the_spread_back(rescale):
    conditional, unconditional = draws(2)
    found = guide(conditional, unconditional, 7.5, rescale)
    spread, wanted = (x.flatten(1).std(dim=1) for x in (found, conditional))
    mixed = guide(conditional, unconditional, 7.5).flatten(1).std(dim=1)
    torch.testing.assert_close(spread, rescale * wanted + (1 - rescale) * mixed, rtol=1e-10, atol=0)
    at_one = guide(conditional, unconditional, 1, rescale)
    torch.testing.assert_close(at_one, conditional, rtol=1e-10, atol=1e-10)


@given(
    kind=st.sampled_from(PREDICTION_TYPES),
    other=st.sampled_from(PREDICTION_TYPES),
    scale=st.floats(0, 10),
)
def test_it_does_not_matter_which_form_is_mixed(kind, other, scale):
    x, first, second = draws(3)
    level = Level(torch.tensor([0.6]).double(), torch.tensor([0.8]).double())
    mixed = estimate(kind, guide(first, second, scale), x, level).of(other)
    forms = [estimate(kind, prediction, x, level).of(other) for prediction in (first, second)]
    torch.testing.assert_close(mixed, guide(*forms, scale), rtol=1e-6, atol=1e-6)


# The guided model


def test_one_forward_pass_holds_both_halves():
    spy, (x,), text, empty = Spy(), draws(1), torch.ones(3, 7, 2), torch.zeros(1, 7, 2)
    t = torch.tensor([1.0, 2.0, 3.0])
    found = guided(spy, empty, 4)(x, t, text)
    assert len(spy.calls) == 1
    seen_x, seen_t, seen_text = spy.calls[0]
    assert torch.equal(seen_x, torch.cat([x, x])) and torch.equal(seen_t, torch.cat([t, t]))
    assert torch.equal(seen_text, torch.cat([torch.zeros(3, 7, 2), text]))
    torch.testing.assert_close(
        found, x + 4 * t.view(-1, 1, 1, 1, 1)
    )  # the prompt says +t, its absence +0


def test_without_guidance_the_model_is_called_as_it_is():
    spy = Spy()
    assert guided(spy, torch.zeros(1, 7, 2), 1, 0.7) is spy
    assert guided(spy, torch.zeros(1, 7, 2), 1.01) is not spy


def test_negative_prompts_and_several_conditions():
    (x,), t = draws(1), torch.ones(3)
    text, negative = (
        torch.ones(3, 7, 2),
        torch.tensor([0.0, -1.0, -2.0]).view(3, 1, 1).expand(3, 7, 2),
    )
    found = guided(Spy(), negative, 3)(x, t, text)
    said = (negative + 3 * (text - negative))[:, 0, 0]
    torch.testing.assert_close(found, x + said.view(-1, 1, 1, 1, 1))
    spy = Spy()
    both = guided(spy, {"text": negative, "fps": torch.zeros(1)}, 3)(
        x, t, {"text": text, "fps": torch.full((3,), 8.0)}
    )
    torch.testing.assert_close(both, found)
    assert spy.calls[0][2]["fps"].tolist() == [0, 0, 0, 8, 8, 8]


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("scale", [0, 1, 3])
def test_guidance_between_two_gaussians_leads_to_a_third(kind, scale):
    """Scores of N(a, s²) and N(b, s²) mix to that of N(a + scale (b - a), s²): every step is its own."""
    a, b, s = torch.tensor([0.2, -0.3]), torch.tensor([-0.1, 0.5]), 0.4
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    pair = optimal_model(Mixture(torch.stack([a, b]), torch.tensor([s, s])), scheduler)
    third = optimal_model(gaussian(a + scale * (b - a), s), scheduler)
    (noise,) = draws(1, shape=(5, 2))
    prompt, empty = torch.tensor([[0.0, 1.0]]).expand(5, 2), torch.tensor([[1.0, 0.0]])
    steps = ddim(guided(pair, empty, scale), scheduler, noise, prompt, steps=20)
    for found, expected in zip(steps, ddim(third, scheduler, noise, steps=20), strict=True):
        torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.x0, expected.x0, rtol=1e-5, atol=1e-6)


def test_two_models_take_turns_and_each_step_is_its_own_models():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    first, second = (
        optimal_model(gaussian(torch.tensor(mean), 0.4), scheduler)
        for mean in ([0.2, -0.3], [-0.1, 0.5])
    )
    (noise,) = draws(1, shape=(5, 2))
    found = list(ddim(in_turn(first, second, 400), scheduler, noise, steps=10))
    assert {step.t >= 400 for step in found} == {True, False}
    x_t = noise
    for step, expected in zip(found, ddim(first, scheduler, noise, steps=10), strict=True):
        t = torch.full((5,), step.t)
        if step.t >= 400:
            assert torch.equal(step.x, expected.x)
        torch.testing.assert_close(step.x0, (first if step.t >= 400 else second)(x_t, t, None))
        x_t = step.x
    assert (found[-1].x - expected.x).abs().min() > 0.01


def test_who_takes_turns_is_told_what_the_caller_told_and_rows_are_not_torn_apart():
    early, late, (x,), text = Spy(), Spy(), draws(1), torch.ones(3, 7, 2)
    both = in_turn(early, late, 500)
    for t, (asked, other) in (
        (500.0, (early, late)),
        (999.0, (early, late)),
        (499.5, (late, early)),
    ):
        early.calls.clear(), late.calls.clear()
        both(x, torch.full((3,), t), text)
        assert len(asked.calls) == 1 and not other.calls
        assert asked.calls[0][0] is x and asked.calls[0][2] is text
    with pytest.raises(ValueError, match="t: expected all rows at 500 or more, or all below, got"):
        both(x, torch.tensor([499.0, 500.0, 600.0]), text)


# Dropout


@pytest.mark.parametrize("probability", [0, 0.1, 0.5, 1])
def test_each_row_is_dropped_by_its_own_chance(probability):
    text, empty = torch.rand(4000, 5, 2, generator=rng()) + 1, torch.zeros(5, 2)
    kept = drop_conditioning(text, empty, probability, rng(1))
    dropped = (kept == 0).flatten(1).all(1)
    assert torch.equal(kept[~dropped], text[~dropped])  # whole rows or nothing
    deviation = math.sqrt(4000 * probability * (1 - probability))
    assert abs(dropped.sum() - 4000 * probability) <= 4 * deviation
    # one number per row, whatever the chance: raising it only drops more
    generator = rng(1)
    more = drop_conditioning(text, empty[None], min(1, probability + 0.2), generator)
    assert not (more[dropped] != 0).any()
    beside = rng(1)
    torch.rand(4000, generator=beside)
    assert torch.equal(generator.get_state(), beside.get_state())


# Thresholding


@given(
    ratio=st.floats(0.5, 1),
    largest=st.floats(1, 4),
    spread=st.floats(0.1, 5),
    seed=st.integers(0, 100),
)
def test_dynamic_thresholding_is_that_of_diffusers(ratio, largest, spread, seed):
    options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
    x0 = spread * draws(1, seed)[0]
    expected = DDPMScheduler(thresholding=True, **options)._threshold_sample(x0)
    torch.testing.assert_close(
        dynamic_threshold(x0, ratio, largest), expected, rtol=1e-12, atol=1e-12
    )


def test_dynamic_thresholding_leaves_what_is_in_range_and_clips_by_rows():
    x0 = torch.linspace(-1, 1, 100).repeat(2, 1)
    x0[1] *= 10
    found = dynamic_threshold(x0, 0.5)
    assert torch.equal(found[0], x0[0])  # half its values lie within 1/2: nothing to do
    limit = x0[1].abs().quantile(0.5)
    torch.testing.assert_close(found[1], (x0[1] / limit).clamp(-1, 1))
    assert torch.equal(dynamic_threshold(x0, 0.5, 1), x0.clamp(-1, 1))
    assert dynamic_threshold(x0.bfloat16()).dtype == torch.bfloat16


def test_a_threshold_of_more_values_than_torch_sorts_for_quantiles():
    x0 = torch.full((1, 2**24 + 2), 0.5)
    x0[:, :3] = 4.0
    assert (
        dynamic_threshold(x0, 1 - 2 / (2**24 + 1))[0, 3] == 0.125
    )  # the third largest still counts
    assert dynamic_threshold(x0, 1 - 3 / (2**24 + 1))[0, 3] == 0.5  # the fourth is one of the many


# Refusals

X, TEXT = torch.zeros(SHAPE), torch.zeros(3, 7, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guide(X, X, -1), "scale: expected 0 or more, got -1"),
        (lambda: guide(X, X, 2, 1.5), "rescale: expected 0 to 1, got 1.5"),
        (lambda: guided(Spy(), TEXT, -0.5), "scale: expected 0 or more, got -0.5"),
        (lambda: guided(Spy(), TEXT, 1, -1), "rescale: expected 0 to 1, got -1"),
        (
            lambda: guided(Spy(), TEXT[:1], 2)(X, X[:, 0, 0, 0, 0], None),
            "what `empty` is, a tensor, got NoneType",
        ),
        (
            lambda: guided(Spy(), {"text": TEXT}, 2)(X, X[:, 0, 0, 0, 0], {"fps": TEXT, "a": TEXT}),
            "conditioning: expected what `empty` is, a mapping of text, got a mapping of a, fps",
        ),
        (
            lambda: guided(Spy(), TEXT[:2], 2)(X, X[:, 0, 0, 0, 0], TEXT),
            r"equal rows, 1 or 3 and 3 of them, got \(2, 7, 2\) and \(3, 7, 2\)",
        ),
        (
            lambda: guided(Spy(), TEXT[:1, :5], 2)(X, X[:, 0, 0, 0, 0], TEXT),
            r"equal rows, 1 or 3 and 3 of them, got \(1, 5, 2\) and \(3, 7, 2\)",
        ),
        (
            lambda: guided(Spy(), TEXT[:1], 2)(X, X[:, 0, 0, 0, 0], TEXT[:1]),
            r"got \(1, 7, 2\) and \(1, 7, 2\)",
        ),
        (
            lambda: drop_conditioning(TEXT, TEXT[:2], 0.1, rng()),
            r"empty: expected one row .*, \(7, 2\), got \(2, 7, 2\)",
        ),
        (
            lambda: drop_conditioning(TEXT, TEXT[0], 1.2, rng()),
            "probability: expected 0 to 1, got 1.2",
        ),
        (lambda: dynamic_threshold(X, 1.1), "ratio: expected 0 to 1, got 1.1"),
        (lambda: dynamic_threshold(X, 0.9, 0.5), "largest: expected at least 1, got 0.5"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
