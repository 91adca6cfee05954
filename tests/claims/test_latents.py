"""Lesson 06's experiments: that both spaces see the same pictures, and what each reader can know."""

import pytest
import torch

from course_lib.claims import latents
from course_lib.metrics import psnr
from course_lib.recipes.mini_clip import tokenize
from course_lib.world import BACKGROUNDS, HELD_OUT_SHAPES, World, parse_caption

pytestmark = pytest.mark.usefixtures("tiny")


def pictures():
    return World("test", frames=1).batch(range(4)).video[:, :, 0]


def test_pixels_come_back_exactly_and_latents_nearly():
    images = pictures()
    pixels, latent = (latents.SPACES[name] for name in ("pixels", "latents"))
    assert pixels.enter(images).shape == (4, 48, 16, 16) and latent.enter(images).shape == (
        4,
        16,
        8,
        8,
    )
    assert torch.equal(pixels.leave(pixels.enter(images)), images)
    back = latent.leave(latent.enter(images))
    assert psnr(back[:, :, None], images[:, :, None]).mean() > 25


def test_only_pixels_are_bounded_while_sampling():
    clips = {name: space.scheduler.config.clip_sample for name, space in latents.SPACES.items()}
    assert clips == {"latents": False, "pixels": True}


def test_a_set_knows_no_order_a_bag_is_one_vector_and_a_tower_hears_the_neighbour():
    said, turned = tokenize(["a red star"]), tokenize(["a star red"])
    torch.manual_seed(0)
    bag, each = latents.Words(averaged=True), latents.Words(averaged=False)
    assert bag(said).shape == (1, 1, latents.WIDTH) and each(said).shape == (
        1,
        said.shape[1],
        latents.WIDTH,
    )
    torch.testing.assert_close(bag(said), bag(turned))
    torch.testing.assert_close(each(said)[:, 2], each(turned)[:, 3])  # "red", wherever it stands
    tower = latents.Tower()
    assert not torch.allclose(tower(said)[:, 2], tower(turned)[:, 3], atol=1e-2)


def test_a_bag_does_not_count_what_fills_the_caption_up():
    torch.manual_seed(0)
    bag, said = latents.Words(averaged=True), tokenize(["a red star"])
    shorter = said[:, :6]
    assert (said[:, 6:] == bag.end).all()
    torch.testing.assert_close(bag(said), bag(shorter))
    assert bag(tokenize([""])).isfinite().all()


def test_both_spaces_learn_from_the_same_pictures_captions_and_noise_levels(monkeypatch):
    seen = {}

    def fit(model, batch, loss, **options):
        seen[model.unet.config.in_channels] = batch(0)
        return real_fit(model, batch, loss, **options)

    real_fit = latents.fit
    monkeypatch.setattr(latents, "fit", fit)
    found = [latents._spaces(arm, 0, 0.004) for arm in latents.SPACES]
    first, second = seen[16], seen[48]
    assert torch.equal(first["t"], second["t"]) and torch.equal(first["tokens"], second["tokens"])
    assert found[1]["GFLOP a picture and step"] > 2 * found[0]["GFLOP a picture and step"]
    subjects = ("owl", "red heart")
    near, exact = (
        latents.SPACES[arm].leave(latents._data(0, subjects, arm)[0]) for arm in latents.SPACES
    )
    assert psnr(near[:, :, None], exact[:, :, None]).mean() > 25


def test_held_out_pairs_are_asked_for_and_never_learned(monkeypatch):
    asked = []
    monkeypatch.setattr(
        latents, "obeyed", lambda model, space, prompts, seed: asked.append(prompts) or 0.5
    )
    latents._composed("bag of words", 0, 0.05)
    unseen, seen = ([parse_caption(prompt)["subject"] for prompt in prompts] for prompts in asked)
    assert set(unseen) <= set(HELD_OUT_SHAPES) and len(set(unseen)) > 1
    assert not set(seen) & set(HELD_OUT_SHAPES) and set(seen) <= set(latents.SHAPED)
    learned = World("train", seed=0, frames=1, subjects=latents.SHAPED).batch(range(300))
    assert not {scene.subject for scene in learned.scenes} & set(HELD_OUT_SHAPES)
    assert set(latents.BACKGROUNDS) < set(BACKGROUNDS)


def test_what_learned_nothing_is_obeyed_by_chance_and_the_true_pictures_are_obeyed(monkeypatch):
    prompts = latents._prompts(16, 0, subjects=latents.SHAPED)
    model = latents.TextToImage(latents.Words(True), latents.SPACES["pixels"])
    assert latents.obeyed(model, "pixels", prompts, 0) < 0.3
    options = {
        "frames": 1,
        "anytime": True,
        "backgrounds": latents.BACKGROUNDS,
        "subjects": latents.SHAPED,
    }
    true = World("test", seed=0, **options).batch(range(16)).video[:, :, 0]

    def perfect(net, scheduler, x, tokens, **how):
        from course_lib.diffusion import Step

        yield Step(1, 0, latents.SPACES["pixels"].enter(true), None)

    monkeypatch.setattr(latents, "sample", perfect)
    assert latents.obeyed(model, "pixels", prompts, 0) > 0.8
