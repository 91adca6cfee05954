"""Lesson 02's experiments: arms differ in what they should and in nothing else."""

import math

import pytest
import torch

from course_lib.claims import common, diffusion
from course_lib.diffusion import (
    add_noise,
    ddim,
    empirical_distribution,
    get_prediction_type,
    ideal_denoiser,
)
from course_lib.recipes import pixel_ddpm

pytestmark = pytest.mark.usefixtures("tiny")
SCHEDULE_ARMS = {arm.id: arm for arm in diffusion.SCHEDULE_ARMS}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_spiral_has_about_unit_variance():
    points = diffusion.spiral(20_000, rng())
    assert points.shape == (20_000, 2)
    assert points.square().sum(1).mean().item() / 2 == pytest.approx(1, abs=0.05)
    assert torch.equal(points, diffusion.spiral(20_000, rng()))


def test_energy_distance_of_two_points_and_of_equal_sets():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert diffusion.energy_distance(x, y) == 10  # 2 |x - y|
    points = torch.randn(50, 2, generator=rng())
    shuffled = points[torch.randperm(50, generator=rng(1))]
    assert diffusion.energy_distance(points, shuffled) == pytest.approx(0, abs=1e-9)
    near, far = (diffusion.energy_distance(points, points + shift) for shift in (0.1, 1.0))
    assert 0 < near < far


@pytest.mark.parametrize("id", SCHEDULE_ARMS)
def test_a_schedule_ends_as_its_arm_says(id):
    scheduler = diffusion.build_scheduler(*SCHEDULE_ARMS[id].value)
    last_alpha_bar = diffusion.MIN_ALPHA_BAR if id.endswith("zero_snr") else 0.00466
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(last_alpha_bar, rel=1e-2)
    prediction_type = "epsilon" if id.startswith("eps") else "v_prediction"
    assert get_prediction_type(scheduler) == prediction_type
    # The other end stays
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, abs=1e-5)


@pytest.mark.parametrize("id", SCHEDULE_ARMS)
def test_no_arm_is_hopeless_by_construction(id):
    """With the ideal prediction, every schedule and both prediction types lead to the spiral."""
    scheduler = diffusion.build_scheduler(*SCHEDULE_ARMS[id].value)
    data = diffusion.spiral(400, rng())
    x = torch.randn(400, 2, generator=rng(1)).double()
    model = ideal_denoiser(empirical_distribution(data.double()), scheduler)
    *_, last = ddim(model, scheduler, x, num_inference_steps=50)
    assert diffusion.energy_distance(last.x, data) < 0.05


def test_an_error_in_the_first_prediction_is_fatal_for_eps_and_not_for_v():
    """What the claim is about, without training: the same small error, in ε and in v."""
    distances = {}
    for id in ("eps_zero_snr", "v_zero_snr"):
        scheduler = diffusion.build_scheduler(*SCHEDULE_ARMS[id].value)
        data = diffusion.spiral(400, rng())
        ideal = ideal_denoiser(empirical_distribution(data.double()), scheduler)
        x = torch.randn(400, 2, generator=rng(1)).double()
        *_, last = ddim(
            lambda x, t, cond, ideal=ideal: ideal(x, t, cond) + 0.05,
            scheduler,
            x,
            num_inference_steps=50,
        )
        distances[id] = diffusion.energy_distance(last.x, data)
    assert distances["eps_zero_snr"] > 10 * distances["v_zero_snr"]


def test_all_arms_of_a_seed_start_from_equal_weights_and_learn_their_own_targets(monkeypatch):
    starts = []
    fit = common.fit

    def recording_fit(model, make_batch, loss_fn, **kwargs):
        starts.append(([p.clone() for p in model.parameters()], make_batch(0)))
        return fit(model, make_batch, loss_fn, **kwargs)

    monkeypatch.setattr(common, "fit", recording_fit)
    for id in ("eps_default", "v_default", "v_zero_snr"):
        assert diffusion._run_schedule(SCHEDULE_ARMS[id], 4, 0.001)["energy_distance"] > 0
    (weights_eps, eps), (weights_v, v), (_, zero_snr) = starts
    assert all(torch.equal(a, b) for a, b in zip(weights_eps, weights_v, strict=True))
    assert torch.equal(eps["x_t"], v["x_t"]) and torch.equal(eps["t"], zero_snr["t"])
    assert not torch.equal(eps["target"], v["target"])
    assert not torch.equal(v["x_t"], zero_snr["x_t"])
    scheduler = diffusion.build_scheduler("epsilon", False)
    x0 = diffusion.spiral(8, rng(400_000))
    torch.testing.assert_close(add_noise(scheduler, x0, eps["target"], eps["t"]), eps["x_t"])


@pytest.fixture
def calls(monkeypatch):
    """Arguments of every call of `generate`, which returns real images, without a network."""
    recorded = []

    def generate(model, classes, generator, **kwargs):
        recorded.append({"classes": classes, "state": generator.get_state(), **kwargs})
        return diffusion.real_images(len(classes), 50)[0]

    monkeypatch.setattr(pixel_ddpm, "generate", generate)
    return recorded


def test_samplers_get_equal_noise_classes_and_steps(calls):
    for arm in diffusion.SAMPLER_ARMS:
        assert math.isfinite(diffusion._run_sampler(arm, 3, 0.01)["frechet_distance"])
    assert all(torch.equal(call["state"], calls[0]["state"]) for call in calls)
    assert all(torch.equal(call["classes"], calls[0]["classes"]) for call in calls)
    kinds = [type(call["scheduler"]).__name__[:4] for call in calls]
    assert kinds == ["DDIM", "DDPM", "DDIM", "DDPM"]
    assert [call["guidance_scale"] for call in calls] == [1.0, 1.0, 2.0, 2.0]
    assert {call["num_inference_steps"] for call in calls} == {2}
    for call in calls:
        for name in ("beta_schedule", "prediction_type", "clip_sample", "timestep_spacing"):
            assert call["scheduler"].config[name] == pixel_ddpm.scheduler().config[name]


def test_guidance_scales_get_equal_noise_and_one_run_serves_both_claims(calls):
    for _ in range(2):
        results = [diffusion._run_guidance(arm, 5, 0.01) for arm in diffusion.GUIDANCE_ARMS]
    assert [call["guidance_scale"] for call in calls] == [1.0, 2.0, 6.0]
    assert {call["num_inference_steps"] for call in calls} == {pixel_ddpm.NUM_INFERENCE_STEPS}
    assert all(torch.equal(call["state"], calls[0]["state"]) for call in calls)
    keys = {"recall", "precision", "subject_accuracy", "minutes"}
    assert all(metrics.keys() == keys for metrics in results)


def test_another_seed_means_other_noise_and_other_real_images(calls):
    for seed in (3, 4):
        diffusion._run_sampler(diffusion.SAMPLER_ARMS[0], seed, 0.01)
    assert not torch.equal(calls[0]["state"], calls[1]["state"])
    assert not torch.equal(*(diffusion.real_images(8, seed)[0] for seed in (3, 4)))


def test_real_images_have_their_classes():
    video, classes = diffusion.real_images(12, 0)
    assert video.shape == (12, 3, 1, 32, 32)
    right, wrong = (diffusion.class_accuracy(video, each) for each in (classes, classes.roll(1)))
    assert right > 0.9 > wrong
