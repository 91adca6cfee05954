"""The feature nets: what each can see by construction, and what their card measures."""

import pytest
import torch

from course_lib.recipes import RECIPES, features
from course_lib.recipes.recipe import Settings
from course_lib.world import World
from course_lib.world.corruption import shuffle

SMALL = Settings(steps=3, batch=4, lr=1e-3)


def video(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_image_net_is_blind_to_order_and_the_video_net_is_not():
    torch.manual_seed(0)
    clip = video(2, 3, 16, 64, 64)
    mixed = shuffle(clip, torch.Generator().manual_seed(1))
    for build, blind in ((features.build_image, True), (features.build_video, False)):
        net = build().eval()
        gap = (net.features(clip) - net.features(mixed)).abs().max() / net.features(
            clip
        ).abs().max()
        assert (gap < 1e-5) == blind


def test_features_are_few_enough_for_a_frechet_distance():
    for build in (features.build_image, features.build_video):
        assert build().features(video(1, 3, 1, 64, 64)).shape == (1, 64)


@pytest.mark.parametrize("frames", [1, 16])
def test_texture_gets_its_share_of_the_variance(frames):
    torch.manual_seed(0)
    net = (features.build_image if frames == 1 else features.build_video)().eval()
    features.weigh_texture(net, SMALL, frames)
    clips = World("train", part="all", seed=22, frames=frames, anytime=frames == 1).batch(range(80))
    found = features.vectors(net, clips.video).var(0)
    assert found.shape == (73,)
    assert found[64:].sum() / found.sum() == pytest.approx(features.SHARE, rel=0.02)
    weight = net.config.texture
    features.weigh_texture(net, SMALL, frames)
    assert net.config.texture == weight, "the weight it had before must not matter"


def test_batches_are_clean_and_pure():
    for frames in (1, 16):
        one, again = (features.batches(2, SMALL, frames) for _ in range(2))
        assert torch.equal(one["video"], again["video"]) and one["video"].shape == (
            4,
            3,
            frames,
            64,
            64,
        )


def test_the_recipes_of_the_course_are_known_by_name():
    names = [
        "judge",
        "features/image",
        "features/video",
        "mini-clip",
        "pixel-ddpm",
        "mini-vae",
        "mini-sd",
        "vdm",
    ]
    assert list(RECIPES) == [*names, "mini-video", "temporal-vae"]
    for name, recipe in RECIPES.items():
        assert recipe.name == name and recipe.bars and recipe.notes.strip()
