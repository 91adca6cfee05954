"""pixel-ddpm's recipe: its classes, its batches, its loss, and which subjects it may be shown."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from course_lib.diffusion import alpha_sigma_at, sample
from course_lib.recipes import pixel_ddpm
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import HELD_OUT_SHAPES, NOVEL_EMOJI, SUBJECTS, SUBJECTS_24, World

SMALL = TrainConfig(num_steps=3, batch_size=6, lr=1e-3, eval_samples=80)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_classes_are_of_the_base_subset():
    assert len(set(SUBJECTS_24)) == len(SUBJECTS_24) == 24
    assert set(SUBJECTS_24) < set(SUBJECTS) - set(NOVEL_EMOJI) - set(HELD_OUT_SHAPES)


def test_batches_are_pure_and_hide_an_image_in_noise():
    batch, again, other = (pixel_ddpm.make_batch(number, SMALL) for number in (4, 4, 5))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["x_t"], other["x_t"]) and not torch.equal(batch["t"], other["t"])
    assert batch["x_t"].shape == batch["target"].shape == (6, 3, 32, 32)
    assert batch["classes"].max() <= len(SUBJECTS_24)
    # x0 = alpha x_t - sigma v
    alpha, sigma = alpha_sigma_at(pixel_ddpm.scheduler(), batch["t"]).like(batch["x_t"])
    assert (alpha * batch["x_t"] - sigma * batch["target"]).abs().max() <= 1 + 1e-3


def test_the_loss_of_an_untrained_network_is_the_variance_of_the_target():
    """Its last convolution is not zero, but its predictions are small."""
    torch.manual_seed(0)
    batch = pixel_ddpm.make_batch(0, SMALL)
    loss = pixel_ddpm.loss_fn(pixel_ddpm.build_model(), batch, torch.Generator())
    assert 0.8 * batch["target"].square().mean() < loss < 2 * batch["target"].square().mean()


def test_the_generator_decides_the_images():
    torch.manual_seed(0)
    model = pixel_ddpm.build_model().eval().requires_grad_(False)
    images, again, other = (
        pixel_ddpm.generate(model, torch.tensor([0, 5, 24]), generator(seed), num_inference_steps=2)
        for seed in (0, 0, 1)
    )
    assert images.shape == (3, 3, 1, 32, 32) and images.abs().max() <= 1
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_every_sampler_begins_with_the_same_noise(monkeypatch):
    noise = {}

    def spy(model, scheduler, x, *args, **kwargs):
        noise.setdefault(type(scheduler).__name__, []).append(x)
        return sample(model, scheduler, x, *args, **kwargs)

    monkeypatch.setattr(pixel_ddpm, "sample", spy)
    model = pixel_ddpm.build_unet(24, 32, (8, 32)).eval().requires_grad_(False)
    classes = torch.zeros(70).long()
    for kind in (DDIMScheduler, DDPMScheduler):
        scheduler = kind.from_config(pixel_ddpm.scheduler().config)
        kwargs = {"num_inference_steps": 1, "guidance_scale": 1.0}
        pixel_ddpm.generate(model, classes, generator(), scheduler=scheduler, **kwargs)
    ddim, ddpm = (torch.cat(parts) for parts in noise.values())
    assert len(noise["DDIMScheduler"]) == 2 and torch.equal(ddim, ddpm)


def test_the_distance_is_of_images_with_the_classes_of_real_ones(monkeypatch):
    calls = []

    def blank(model, classes, generator, guidance_scale=2.0):
        calls.append((classes, guidance_scale))
        return torch.zeros(len(classes), 3, 1, 32, 32)

    monkeypatch.setattr(pixel_ddpm, "generate", blank)
    metrics = pixel_ddpm.evaluate(pixel_ddpm.build_model(), SMALL)
    assert set(pixel_ddpm.RECIPE.targets) <= set(metrics)
    (even, _), (guided, _), (unconditional, scale) = calls
    assert len(even.bincount()) == len(SUBJECTS_24)
    assert even.bincount().max() - even.bincount().min() <= 1
    kwargs = {"size": 32, "num_frames": 1, "random_time_offset": True, **pixel_ddpm.WORLD_KWARGS}
    real = World("test", seed=1, **kwargs).batch(range(80))
    assert [SUBJECTS_24[index] for index in guided] == [scene.subject for scene in real.scenes]
    assert (unconditional == 24).all() and scale == 1


def test_the_folder_holds_network_and_schedule(tmp_path):
    pixel_ddpm.RECIPE.save(pixel_ddpm.build_model(), tmp_path)
    assert UNet2DModel.from_pretrained(tmp_path).config.num_class_embeds == 25
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, pixel_ddpm.scheduler().alphas_cumprod)
