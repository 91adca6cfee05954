"""Lesson 02's experiments: that arms differ in what they should and in nothing else."""

import math

import pytest
import torch

from course_lib.claims import diffusion
from course_lib.diffusion import add_noise, ddim, finite_data, optimal_model, prediction_type
from course_lib.recipes import pixel_ddpm

pytestmark = pytest.mark.usefixtures("tiny")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_spiral_is_about_as_large_as_the_noise():
    points = diffusion.spiral(20_000, rng())
    assert points.shape == (20_000, 2)
    assert points.square().sum(1).mean().item() / 2 == pytest.approx(1, abs=0.05)
    assert torch.equal(points, diffusion.spiral(20_000, rng()))


def test_energy_distance_of_two_points_and_of_equals():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert diffusion.energy_distance(x, y) == 10  # 2 |x - y|
    points = torch.randn(50, 2, generator=rng())
    assert diffusion.energy_distance(
        points, points[torch.randperm(50, generator=rng(1))]
    ) == pytest.approx(0, abs=1e-9)
    near, far = (diffusion.energy_distance(points, points + shift) for shift in (0.1, 1.0))
    assert 0 < near < far


@pytest.mark.parametrize("arm", diffusion.ENDS)
def test_a_schedule_ends_where_its_arm_says(arm):
    scheduler = diffusion.schedule(*diffusion.ENDS[arm])
    end = scheduler.alphas_cumprod[-1].item()
    assert end == pytest.approx(diffusion.NUDGE if "zero" in arm else 0.00466, rel=1e-2)
    assert prediction_type(scheduler) == ("epsilon" if arm.startswith("ε") else "v_prediction")
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(
        1 - 0.00085, abs=1e-5
    )  # the other end stays


@pytest.mark.parametrize("arm", diffusion.ENDS)
def test_no_arm_is_hopeless_by_construction(arm):
    """With the perfect answer, every schedule and either prediction lead back to the spiral."""
    scheduler, data = diffusion.schedule(*diffusion.ENDS[arm]), diffusion.spiral(400, rng())
    x = torch.randn(400, 2, generator=rng(1))
    *_, last = ddim(
        optimal_model(finite_data(data.double()), scheduler), scheduler, x.double(), steps=50
    )
    assert diffusion.energy_distance(last.x, data) < 0.05


def test_an_error_in_the_first_answer_is_fatal_for_noise_and_not_for_velocity():
    """What the claim is about, without training: the same small error, in ε and in v."""
    found = {}
    for arm in ("ε, zero terminal SNR", "v, zero terminal SNR"):
        scheduler, data = diffusion.schedule(*diffusion.ENDS[arm]), diffusion.spiral(400, rng())
        oracle = optimal_model(finite_data(data.double()), scheduler)
        x = torch.randn(400, 2, generator=rng(1)).double()
        *_, last = ddim(
            lambda x, t, c, oracle=oracle: oracle(x, t, c) + 0.05, scheduler, x, steps=50
        )
        found[arm[0]] = diffusion.energy_distance(last.x, data)
    assert found["ε"] > 10 * found["v"]


def test_all_arms_of_a_seed_begin_with_equal_weights_and_learn_their_own_targets(monkeypatch):
    seen = {}

    def fit(model, batch, loss, **options):
        seen[options["seed"], len(seen)] = [p.clone() for p in model.parameters()], batch(0)
        return real_fit(model, batch, loss, **options)

    real_fit = diffusion.fit
    monkeypatch.setattr(diffusion, "fit", fit)
    for arm in ("ε, ordinary end", "v, ordinary end", "v, zero terminal SNR"):
        assert diffusion._ends(arm, 4, 0.001)["distance"] > 0
    (first, noise), (second, velocity), (_, ended) = seen.values()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(noise["x_t"], velocity["x_t"]) and torch.equal(noise["t"], ended["t"])
    assert not torch.equal(noise["target"], velocity["target"]) and not torch.equal(
        velocity["x_t"], ended["x_t"]
    )
    plain = diffusion.schedule("epsilon", False)
    x0 = diffusion.spiral(8, rng(400_000))
    torch.testing.assert_close(add_noise(plain, x0, noise["target"], noise["t"]), noise["x_t"])


@pytest.fixture
def drawn(monkeypatch):
    """Every call of `draw`: what it was asked, and in place of pictures real ones, without a network."""
    calls = []

    def draw(model, classes, generator, **options):
        calls.append({"classes": classes, "state": generator.get_state(), **options})
        return diffusion.real(len(classes), 50)[0]

    monkeypatch.setattr(pixel_ddpm, "draw", draw)
    return calls


def test_samplers_get_equal_noise_classes_and_steps(drawn):
    for arm in diffusion.SAMPLERS:
        numbers = diffusion._sampled(arm, 3, 0.01)
        assert math.isfinite(numbers["Fréchet distance"])
    assert all(torch.equal(call["state"], drawn[0]["state"]) for call in drawn)
    assert all(torch.equal(call["classes"], drawn[0]["classes"]) for call in drawn)
    assert [type(call["scheduler"]).__name__[:4] for call in drawn] == [
        "DDIM",
        "DDPM",
        "DDIM",
        "DDPM",
    ]
    assert [call["scale"] for call in drawn] == [1.0, 1.0, 2.0, 2.0] and {
        call["steps"] for call in drawn
    } == {2}
    for call in drawn:
        for name in ("beta_schedule", "prediction_type", "clip_sample", "timestep_spacing"):
            assert call["scheduler"].config[name] == pixel_ddpm.SCHEDULE.config[name]


def test_scales_get_equal_noise_and_one_drawing_serves_both_claims(drawn):
    for _ in range(2):
        found = [diffusion._guided(arm, 5, 0.01) for arm in diffusion.SCALES]
    assert [call["scale"] for call in drawn] == [1.0, 2.0, 6.0]
    assert all(torch.equal(call["state"], drawn[0]["state"]) for call in drawn)
    assert all(
        {"recall", "precision", "share that shows its subject", "minutes"} == numbers.keys()
        for numbers in found
    )


def test_another_seed_draws_other_noise_and_holds_it_against_other_pictures(drawn):
    for seed in (3, 4):
        diffusion._sampled("DDIM", seed, 0.01)
    assert not torch.equal(drawn[0]["state"], drawn[1]["state"])
    assert not torch.equal(*(diffusion.real(8, seed)[0] for seed in (3, 4)))


def test_real_pictures_are_of_the_classes_that_are_asked_for():
    video, classes = diffusion.real(12, 0)
    assert video.shape == (12, 3, 1, 32, 32)
    assert diffusion._obeyed(video, classes) > 0.9 > diffusion._obeyed(video, classes.roll(1))
