"""Lesson 06's experiments: both spaces get the same images, and what each text encoder can know."""

import pytest
import torch

from course_lib import zoo
from course_lib.claims import latents
from course_lib.diffusion import SamplerStep
from course_lib.metrics import psnr
from course_lib.world import BACKGROUNDS, HELD_OUT_SHAPES, World, parse_caption
from course_lib.world.subjects import COLOURED_SHAPES

pytestmark = pytest.mark.usefixtures("tiny")


def images():
    return World("test", num_frames=1).batch(range(4)).video[:, :, 0]


def test_pixels_come_back_exactly_and_latents_nearly():
    x = images()
    assert latents.PIXELS.encode(x).shape == (4, 48, 16, 16)
    assert latents.LATENTS.encode(x).shape == (4, 16, 8, 8)
    assert torch.equal(latents.PIXELS.decode(latents.PIXELS.encode(x)), x)
    recon = latents.LATENTS.decode(latents.LATENTS.encode(x))
    assert psnr(recon[:, :, None], x[:, :, None]).mean() > 25


def test_only_pixels_are_clipped_while_sampling():
    spaces = (latents.LATENTS, latents.PIXELS)
    assert [space.value().config.clip_sample for space in spaces] == [False, True]


def test_a_set_has_no_order_a_bag_is_one_vector_and_clip_depends_on_the_neighbours():
    clip = zoo.load_text_encoder()
    tokens, swapped = clip.tokenize(["a red star"]), clip.tokenize(["a star red"])
    torch.manual_seed(0)
    bag, word_set = (latents.WordEmbedding(clip, average=average) for average in (True, False))
    assert bag(tokens).shape == (1, 1, latents.TEXT_DIM)
    assert word_set(tokens).shape == (1, tokens.shape[1], latents.TEXT_DIM)
    torch.testing.assert_close(bag(tokens), bag(swapped))
    torch.testing.assert_close(word_set(tokens)[:, 2], word_set(swapped)[:, 3])  # "red"
    assert not torch.allclose(clip.encode(tokens)[:, 2], clip.encode(swapped)[:, 3], atol=1e-2)


def test_a_bag_ignores_padding():
    clip = zoo.load_text_encoder()
    torch.manual_seed(0)
    bag, tokens = latents.WordEmbedding(clip, average=True), clip.tokenize(["a red star"])
    assert (tokens[:, 6:] == bag.end_token).all()
    torch.testing.assert_close(bag(tokens), bag(tokens[:, :6]))
    assert bag(clip.tokenize([""])).isfinite().all()


def test_both_spaces_learn_from_the_same_images_captions_and_timesteps(batches):
    spaces = (latents.LATENTS, latents.PIXELS)
    cheap, costly = (latents._run_representation(space, 0, 0.004) for space in spaces)
    (first, _), (second, _) = batches
    assert torch.equal(first["t"], second["t"]) and torch.equal(first["tokens"], second["tokens"])
    assert costly["gflops_per_image_step"] > 2 * cheap["gflops_per_image_step"]
    near, exact = (
        space.decode(latents._data(0, ("owl", "red heart"), space)[0]) for space in spaces
    )
    assert psnr(near[:, :, None], exact[:, :, None]).mean() > 25


def test_held_out_pairs_are_tested_and_never_learnt(monkeypatch):
    prompt_sets = []
    monkeypatch.setattr(
        latents,
        "generation_accuracy",
        lambda model, space, prompts, seed: prompt_sets.append(prompts) or 0.5,
    )
    latents._run_composition(latents.TEXT_ENCODERS[1], 0, 0.05)
    held_out, trained = (
        {parse_caption(prompt)["subject"] for prompt in prompts} for prompts in prompt_sets
    )
    assert held_out <= set(HELD_OUT_SHAPES) and len(held_out) > 1
    assert not trained & set(HELD_OUT_SHAPES) and trained <= set(COLOURED_SHAPES)
    clips = World("train", seed=0, num_frames=1, subjects=COLOURED_SHAPES).batch(range(300))
    assert not {scene.subject for scene in clips.scenes} & set(HELD_OUT_SHAPES)
    assert set(latents.BACKGROUNDS) < set(BACKGROUNDS)


def test_an_untrained_model_is_right_by_chance_and_real_images_are_right(monkeypatch):
    clip = zoo.load_text_encoder()
    prompts = latents._prompts(16, 0, subjects=COLOURED_SHAPES)
    model = latents.TextToImage(latents.WordEmbedding(clip, average=True), latents.PIXELS)
    assert latents.generation_accuracy(model, latents.PIXELS, prompts, 0) < 0.3
    world = World("test", seed=0, subjects=COLOURED_SHAPES, **latents.IMAGE_KWARGS)
    real = latents.PIXELS.encode(world.batch(range(16)).video[:, :, 0])
    monkeypatch.setattr(
        latents, "sample", lambda *args, **kwargs: iter([SamplerStep(1, 0, real, None)])
    )
    assert latents.generation_accuracy(model, latents.PIXELS, prompts, 0) > 0.8
