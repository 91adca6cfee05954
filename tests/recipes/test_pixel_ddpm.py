"""pixel-ddpm's recipe: its classes, its batches, its loss, and what it may not see."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from course_lib.diffusion import level_at, sample
from course_lib.recipes import pixel_ddpm
from course_lib.recipes.recipe import Settings
from course_lib.world import HELD_OUT_SHAPES, NOVEL_EMOJI, SUBJECTS, World

SMALL = Settings(steps=3, batch=6, lr=1e-3)


def test_the_classes_are_what_generators_may_see():
    assert len(set(pixel_ddpm.CLASSES)) == len(pixel_ddpm.CLASSES) == 24
    assert set(pixel_ddpm.CLASSES) < set(SUBJECTS) - set(NOVEL_EMOJI) - set(HELD_OUT_SHAPES)


def test_batches_are_pure_and_hide_a_picture_in_noise():
    one, again, other = (pixel_ddpm.batches(number, SMALL) for number in (4, 4, 5))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["x_t"], other["x_t"]) and not torch.equal(one["t"], other["t"])
    assert one["x_t"].shape == one["target"].shape == (6, 3, 32, 32)
    assert one["classes"].max() <= len(pixel_ddpm.CLASSES)
    # v and x_t give the picture back, whatever the level: x0 = signal x_t - noise v
    signal, noise = level_at(pixel_ddpm.SCHEDULE, one["t"]).beside(one["x_t"])
    assert (signal * one["x_t"] - noise * one["target"]).abs().max() <= 1 + 1e-3


def test_an_untrained_network_errs_by_the_variance_of_the_target():
    """Its last convolution is not zero, but its answers are small: the loss is nearly that of saying nothing."""
    torch.manual_seed(0)
    batch = pixel_ddpm.batches(0, SMALL)
    loss = pixel_ddpm.loss(pixel_ddpm.build(), batch, torch.Generator())
    assert 0.8 * batch["target"].square().mean() < loss < 2 * batch["target"].square().mean()


def test_draw_obeys_its_generator():
    torch.manual_seed(0)
    model = pixel_ddpm.build().eval().requires_grad_(False)
    drawn = pixel_ddpm.draw(
        model, torch.tensor([0, 5, 24]), torch.Generator().manual_seed(0), steps=2
    )
    assert drawn.shape == (3, 3, 1, 32, 32) and drawn.abs().max() <= 1
    again, other = (
        pixel_ddpm.draw(
            model, torch.tensor([0, 5, 24]), torch.Generator().manual_seed(seed), steps=2
        )
        for seed in (0, 1)
    )
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_every_sampler_begins_with_the_same_noise(monkeypatch):
    begun = {}

    def watched(model, scheduler, x, *rest, **options):
        begun.setdefault(type(scheduler).__name__, []).append(x)
        return sample(model, scheduler, x, *rest, **options)

    monkeypatch.setattr(pixel_ddpm, "sample", watched)
    model = pixel_ddpm.build_unet(24, 32, (8, 32)).eval().requires_grad_(False)
    for kind in (DDIMScheduler, DDPMScheduler):
        scheduler = kind.from_config(pixel_ddpm.SCHEDULE.config)
        classes, generator = torch.zeros(70).long(), torch.Generator().manual_seed(0)
        pixel_ddpm.draw(model, classes, generator, scheduler=scheduler, steps=1, scale=1.0)
    ddim, ddpm = (torch.cat(parts) for parts in begun.values())
    assert len(begun["DDIMScheduler"]) == 2 and torch.equal(ddim, ddpm)


def test_the_distance_is_of_pictures_with_the_classes_of_real_ones(monkeypatch):
    asked = []

    def blank(model, classes, generator, scale=2.0):
        asked.append((classes, scale))
        return torch.zeros(len(classes), 3, 1, 32, 32)

    monkeypatch.setattr(pixel_ddpm, "draw", blank)
    found = pixel_ddpm.evaluate(pixel_ddpm.build(), SMALL)
    assert set(pixel_ddpm.RECIPE.bars) <= set(found)
    (even, _), (likewise, _), (free, scale) = asked
    assert len(even.bincount()) == len(pixel_ddpm.CLASSES)
    assert even.bincount().max() - even.bincount().min() <= 1
    real = World("test", size=32, frames=1, anytime=True, seed=1, **pixel_ddpm.SCENES).batch(
        range(80)
    )
    assert [pixel_ddpm.CLASSES[number] for number in likewise] == [
        scene.subject for scene in real.scenes
    ]
    assert (free == 24).all() and scale == 1


def test_the_folder_holds_network_and_schedule(tmp_path):
    pixel_ddpm.save(pixel_ddpm.build(), tmp_path)
    assert UNet2DModel.from_pretrained(tmp_path).config.num_class_embeds == 25
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, pixel_ddpm.SCHEDULE.alphas_cumprod)
