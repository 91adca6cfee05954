"""The feature nets: what each can distinguish by construction, and their metrics."""

import pytest
import torch

from course_lib.recipes import RECIPES, features
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import World
from course_lib.world.corruption import shuffle

SMALL = TrainConfig(num_steps=3, batch_size=4, lr=1e-3, eval_samples=80)


def random_video(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_image_net_is_invariant_to_order_and_the_video_net_is_not():
    torch.manual_seed(0)
    video = random_video(2, 3, 16, 64, 64)
    shuffled = shuffle(video, torch.Generator().manual_seed(1))
    for build, is_invariant in ((features.build_image, True), (features.build_video, False)):
        net = build().eval()
        expected = net.features(video)
        error = (expected - net.features(shuffled)).abs().max() / expected.abs().max()
        assert (error < 1e-5) == is_invariant


def test_features_are_few_enough_for_a_frechet_distance():
    for build in (features.build_image, features.build_video):
        assert build().features(random_video(1, 3, 1, 64, 64)).shape == (1, 64)


@pytest.mark.parametrize("num_frames", [1, 16])
def test_texture_gets_its_share_of_the_variance(num_frames):
    torch.manual_seed(0)
    net = (features.build_image if num_frames == 1 else features.build_video)().eval()
    features.fit_texture_weight(net, SMALL, num_frames)
    kwargs = {"num_frames": num_frames, "random_time_offset": num_frames == 1}
    clips = World("train", subset="all", seed=22, **kwargs).batch(range(80))
    variance = features.extract_features(net, clips.video).var(0)
    assert variance.shape == (73,)
    share = variance[64:].sum() / variance.sum()
    assert share == pytest.approx(features.TEXTURE_VARIANCE_SHARE, rel=0.02)
    weight = net.config.texture_weight
    features.fit_texture_weight(net, SMALL, num_frames)
    assert net.config.texture_weight == weight, "the weight it had before must not matter"


def test_batches_are_clean_and_pure():
    for num_frames in (1, 16):
        batch, again = (features.make_batch(2, SMALL, num_frames) for _ in range(2))
        assert torch.equal(batch["video"], again["video"])
        assert batch["video"].shape == (4, 3, num_frames, 64, 64)


def test_the_recipes_of_the_course_are_listed_by_name():
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
        assert recipe.name == name and recipe.targets and recipe.notes.strip()


def test_every_target_is_measured():
    torch.manual_seed(0)
    metrics = features.IMAGE.evaluate(features.build_image().eval(), SMALL)
    assert set(features.IMAGE.targets) <= set(metrics)
    assert {"frechet_real_floor", "frechet_z_score/elastic"} <= set(metrics)
    assert "frechet_over_real_floor/shuffle" not in metrics  # an image has no order
