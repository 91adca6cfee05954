"""Defects match their labels and change nothing else; styles keep shape, range and dtype."""

import pytest
import torch

from course_lib.world import (
    DEFECTS,
    STYLES,
    Scene,
    World,
    inject_defects,
    inject_random_defects,
    parse_caption,
    render,
)


@pytest.fixture(scope="module")
def clips():
    return World("test", subset="all").batch(range(8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("defect", ["clean", *DEFECTS])
def test_each_defect_changes_only_its_property(clips, defect):
    corrupted = inject_defects(clips, [defect] * 8, generator())
    before, after = clips.video, corrupted.video
    assert corrupted.labels == [defect] * 8 and after.abs().max() <= 1 + 1e-5
    changed = (before - after).abs().amax(1)  # b f h w
    assert (corrupted.captions == clips.captions) == (defect != "wrong caption")
    assert torch.equal(before, after) == (defect in ("clean", "wrong caption"))
    if defect == "hard cut":
        for i, cut in enumerate(corrupted.cuts):
            assert 4 <= cut <= 11
            assert torch.equal(after[i, :, :cut], before[i, :, :cut])
            assert torch.equal(after[i, :, cut:], before[(i + 1) % 8, :, cut:])
    else:
        assert corrupted.cuts == [None] * 8
    if defect == "static":
        assert (after - after[:, :, :1]).abs().max() == 0
    if defect == "letterbox":
        assert (after[:, :, :, :8] == -1).all() and (after[:, :, :, -8:] == -1).all()
        assert torch.equal(after[:, :, :, 8:-8], before[:, :, :, 8:-8])
    if defect == "text":
        share = (changed > 0.3).float().mean((1, 2, 3))
        assert (share > 0.01).all() and (share < 0.3).all()
        overlay = (after - before).abs().amax(1) > 1e-6
        rows = overlay.any(dim=1).any(dim=2)  # b h
        assert (rows.sum(1) <= 24).all(), "text stays in one line"
    if defect == "noise":
        assert 0.1 < (after - before).std() < 0.3
    if defect == "blur":
        detail = lambda v: v.diff(n=2, dim=-1).abs().mean((1, 2, 3, 4))  # noqa: E731
        assert (detail(after) < 0.5 * detail(before)).all()
        assert (after.mean((2, 3, 4)) - before.mean((2, 3, 4))).abs().max() < 0.03


def test_a_wrong_caption_is_wrong_even_if_all_clips_agree():
    twins = render([Scene("tiger", "growing", "sea", 0), Scene("tiger", "growing", "sea", 2)])
    corrupted = inject_defects(twins, ["wrong caption", "clean"], generator())
    assert (
        parse_caption(corrupted.captions[0])["background"] != "sea"
        and corrupted.captions[1] == twins.captions[1]
    )


def test_inject_random_defects_is_reproducible_and_does_not_modify_its_input(clips):
    before = clips.video.clone()
    one, two = (inject_random_defects(clips, 0.7, generator(3)) for _ in range(2))
    assert (
        torch.equal(one.video, two.video)
        and one.labels == two.labels
        and torch.equal(clips.video, before)
    )
    assert inject_random_defects(clips, 0.0, generator()).labels == ["clean"] * 8
    assert "clean" not in inject_random_defects(clips, 1.0, generator()).labels


def test_a_label_is_never_false(clips):
    """A shape that stands still is labelled static, and a cut to the same scene is an error."""
    still = render(
        [Scene("red star", "standing still", "sea", 0), Scene("tiger", "growing", "sea", 2)]
    )
    assert inject_random_defects(still, 0.0, generator()).labels == ["static", "clean"]
    with pytest.raises(ValueError, match="motion in clip 0, got a static 'a red star"):
        inject_defects(still, ["static", "clean"], generator())
    twins = render([Scene("tiger", "growing", "sea", 2)] * 2)
    with pytest.raises(
        ValueError, match="expected different scenes for a cut from 0 to 1, got the same"
    ):
        inject_defects(twins, ["hard cut", "clean"], generator())
    with pytest.raises(
        ValueError, match="expected at least 2 frames for a hard cut or a static clip, got 1"
    ):
        inject_defects(World(num_frames=1).batch(range(2)), ["static", "clean"], generator())
    with pytest.raises(
        ValueError, match="expected at least 2 frames, got 1, which is neither static nor moving"
    ):
        inject_random_defects(World(num_frames=1).batch(range(2)), 0.5, generator())


def test_bad_defects_raise(clips):
    one = render([Scene("tiger")])
    with pytest.raises(ValueError, match="defects: expected one per clip, got 1 for 8 clips"):
        inject_defects(clips, ["blur"], generator())
    with pytest.raises(ValueError, match="defects: expected clean, hard cut, .*, got scratch"):
        inject_defects(one, ["scratch"], generator())
    with pytest.raises(
        ValueError, match="expected at least 2 for a hard cut or a wrong caption, got 1"
    ):
        inject_defects(one, ["hard cut"], generator())
    with pytest.raises(
        ValueError, match="expected at least 2 frames for a hard cut or a static clip, got 1"
    ):
        inject_defects(World(num_frames=1).batch(range(2)), ["hard cut", "clean"], generator())
    with pytest.raises(
        ValueError, match="fraction: expected a finite number at least 0 and at most 1, got 1.5"
    ):
        inject_random_defects(clips, 1.5, generator())


@pytest.mark.parametrize("name", sorted(STYLES))
def test_styles_keep_the_dtype(name):
    video = World(subset="all", num_frames=1).batch(range(2)).video
    assert STYLES[name](video.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(STYLES))
@pytest.mark.parametrize(("b", "f", "size"), [(2, 3, 64), (1, 1, 32), (0, 2, 64)])
def test_styles_keep_shape_and_range(name, b, f, size):
    video = World(subset="all", size=size, num_frames=f).batch(range(b)).video
    styled = STYLES[name](video)
    assert styled.shape == video.shape and (b == 0 or styled.abs().max() <= 1)


def test_pixel_art_is_blocks_of_few_colours(clips):
    styled = STYLES["pixel art"](clips.video)
    blocks = styled.unflatten(-1, (16, 4)).unflatten(-3, (16, 4))  # b c f 16 4 16 4
    assert (blocks - blocks[..., :1, :, :1]).abs().max() == 0 and len(styled.unique()) == 6
    with pytest.raises(ValueError, match="expected sides divisible by 16, got 40x40"):
        STYLES["pixel art"](torch.zeros(1, 3, 1, 40, 40))


def test_ink_draws_dark_lines_on_paper():
    clip = render([Scene("red square", "standing still", "white", 0)], num_frames=1)
    image = STYLES["ink"](clip.video)[0, :, 0].mean(0)
    rim = (clip.alpha[0, 0, 0] > 0.2) & (clip.alpha[0, 0, 0] < 0.8)
    ground = clip.alpha[0, 0, 0] == 0
    assert image[rim].mean() < -0.5 and image[ground].median() > 0.6
