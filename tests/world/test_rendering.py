"""Pixels against their closed forms: flow, masks, time reversal, composition, any size."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.world import BACKGROUNDS, MOTIONS, Scene, World, canny_edges, parse_caption, render
from course_lib.world.backgrounds import BACKGROUND_INDEX, paint
from course_lib.world.motions import MOTION_INDEX, TIME_REVERSED, path
from course_lib.world.sprites import (
    MIP_BLUR_SIGMAS,
    draw_shape,
    mip_level_for,
    signed_distance,
    sprite_atlas,
)
from course_lib.world.subjects import COLOURS, SHAPES


def warp(images, flow):
    """Backward warp: sample images (n, c, h, w) at the ends of the flow (n, 2, h, w), in pixels."""
    size = images.shape[-1]
    line = (torch.arange(size) * 2 + 1) / size - 1
    grid = (
        torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        + flow.permute(0, 2, 3, 1) * 2 / size
    )
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped, (grid.abs() <= 1 - 1 / size).all(-1)[:, None]


@pytest.mark.parametrize(("size", "allowed"), [(64, 1.0), (32, 2.0)])
def test_flow_explains_clips_with_static_sprites(size, allowed):
    """Mean warping error on the subject, away from occlusions, is at most 1/255.

    At 32 pixels there is twice the detail per pixel, and the interpolation error is larger.
    """
    clips = World("test", subset="all", static_sprites=True, size=size).batch(range(48))
    assert clips.flow_exact.all()
    frames = ((clips.video + 1) / 2).transpose(1, 2)  # b f c h w
    now, later = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    alpha = clips.alpha.transpose(1, 2)
    cover, next_cover = alpha[:, :-1].flatten(0, 1), alpha[:, 1:].flatten(0, 1)
    flow = clips.flow.transpose(1, 2).flatten(0, 1)
    warped, in_frame = warp(later, flow)
    error = (warped - now).abs().mean(1, keepdim=True) * 255
    opaque = -F.max_pool2d(-cover, 3, 1, 1) > 0.999
    subject = opaque & in_frame & (warp(next_cover, flow)[0] > 0.98)
    ground = (F.max_pool2d(cover, 3, 1, 1) < 1e-3) & (F.max_pool2d(next_cover, 3, 1, 1) < 1e-3)
    assert subject.float().mean() > 0.03, "too few pixels"
    assert error[subject].mean() <= allowed
    assert error[ground].max() < 1e-3
    assert error[subject | ground].mean() <= 0.25
    # and the flow is needed: without it the same pixels do not match
    moving = subject & (flow.norm(dim=1, keepdim=True) > 1)
    assert (later - now).abs().mean(1, keepdim=True)[moving].mean() * 255 > 5 * error[moving].mean()


def test_flow_of_a_translation_is_the_step_of_its_path():
    clips = render([Scene("red square", "moving right", "white", 4)])
    step = (clips.path[0, 1, :2] - clips.path[0, 0, :2]) * 32  # pixels of a 64-pixel frame
    inside = clips.mask[0, 0, 0]
    torch.testing.assert_close(
        clips.flow[0, :, 0, inside], step[:, None].expand(-1, int(inside.sum()))
    )
    assert (clips.flow[0, :, 0, ~inside] == 0).all()


@pytest.mark.parametrize("motion", sorted(TIME_REVERSED))
def test_opposite_motions_are_time_reversals(motion):
    """The two clips have the same frames, in opposite order: no frame shows the direction."""
    for variant in (0, 5, 123456):
        one = render([Scene("tiger", motion, "sea", variant)], static_sprites=True).video
        other = render(
            [Scene("tiger", TIME_REVERSED[motion], "sea", variant)], static_sprites=True
        ).video
        torch.testing.assert_close(one, other.flip(2), atol=2e-3, rtol=0)
        assert (one - other).abs().max() > 0.3


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([4.0, 8.0, 12.5]))
@settings(max_examples=40)
def test_paths_match_their_names(variant, num_frames, fps):
    motions = np.arange(len(MOTIONS))
    paths = path(motions, np.full(len(MOTIONS), variant), num_frames, fps)
    assert paths.shape == (len(MOTIONS), num_frames, 4) and np.isfinite(paths).all()
    size = paths[..., 2]
    assert (size >= 0.44).all() and (size <= 0.86).all(), "the subject fills 45-85 % of the frame"
    if num_frames == 1:
        return
    step = np.diff(paths, axis=1)
    steps = {name: step[MOTION_INDEX[name]] for name in MOTIONS}
    assert (steps["standing still"] == 0).all()
    assert (steps["growing"][:, 2] > 0).all() and (steps["shrinking"][:, 2] < 0).all()
    spin = steps["spinning"][:, 3]
    assert (spin > 0).all() or (spin < 0).all()
    for name, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        moves = steps[f"moving {name}"]
        assert (moves[:, 1 - axis] == 0).all() and (sign * moves[:, axis] > 0).all()
    # however long the clip, most of the subject is in the frame all the time
    reach = np.abs(paths[..., :2]).max(-1) + size
    assert reach.max() <= 1.25


def test_bouncing_goes_up_and_down_and_spinning_both_ways():
    variants = np.arange(40)
    bounce = path(np.full(40, MOTION_INDEX["bouncing"]), variants, 16, 8)
    turns = np.sign(np.diff(bounce[..., 1], axis=1))
    assert ((turns > 0).any(1) & (turns < 0).any(1)).all() and (
        np.ptp(bounce[..., 1], axis=1) > 0.4
    ).all()
    assert (bounce[..., 0] == bounce[:, :1, 0]).all()
    spin = np.diff(path(np.full(40, MOTION_INDEX["spinning"]), variants, 16, 8)[..., 3], axis=1)
    assert 10 < (spin[:, 0] > 0).sum() < 30


def frames_differ(video):
    """For each pair of neighbouring frames, whether they differ: (f-1,)."""
    return (video[0, :, 1:] - video[0, :, :-1]).abs().amax((0, 2, 3)) > 1e-4


def test_sprites_are_animated_to_and_fro_unless_static():
    tiger = [Scene("tiger", "standing still", "white", 3)]
    assert frames_differ(render(tiger).video).sum() >= 14
    assert not frames_differ(render(tiger, static_sprites=True).video).any()
    there_and_back = render(tiger, num_frames=61).video[0]  # 16 images to and fro: period 30
    torch.testing.assert_close(there_and_back[:, :31], there_and_back[:, 30:])
    turn = next(
        i for i in range(15, 46) if torch.equal(there_and_back[:, i - 1], there_and_back[:, i + 1])
    )
    for k in range(1, 15):
        torch.testing.assert_close(there_and_back[:, turn - k], there_and_back[:, turn + k])


def test_sprites_have_eight_frames_per_second():
    changes = frames_differ(
        render([Scene("tiger", "standing still", "white", 3)], num_frames=16, fps=16).video
    )
    assert changes[1::2].sum() >= 6 and not changes[0::2].any()


def test_a_short_clip_is_the_middle_of_the_canonical_one():
    for motion in MOTIONS:
        scene = [Scene("tiger", motion, "sea", 12)]
        torch.testing.assert_close(
            render(scene, num_frames=8).video, render(scene).video[:, :, 4:12], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(("num_frames", "fps"), [(64, 8), (16, 2), (48, 24)])
def test_flow_of_a_long_clip_never_jumps(num_frames, fps):
    scenes = [Scene("tiger", f"moving {way}", "sea", v) for way in ("left", "up") for v in range(4)]
    clips = render(scenes, num_frames=num_frames, fps=fps, static_sprites=True)
    step = (clips.path[:, 1:, :2] - clips.path[:, :-1, :2]).norm(dim=-1) * 32
    assert (clips.flow.norm(dim=1).amax((2, 3)) <= step + 1e-3).all() and step.max() < 8


def test_a_clip_does_not_depend_on_its_batch_or_order():
    world = World(subset="all")
    batch = world.batch([3, 1, 4, 1, 5])
    single = world.batch([4])
    torch.testing.assert_close(batch.video[2:3], single.video, atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.video[1], batch.video[3], atol=0, rtol=0)
    assert batch.captions[2] == single.captions[0]
    one = world[4]
    assert one["video"].shape == (3, 16, 64, 64) and one["motion"] == single.labels["motion"][0]
    assert one["caption"] == single.paraphrases[0]


def test_world_in_a_data_loader():
    loader = torch.utils.data.DataLoader(World(num_frames=2, size=32, length=5), batch_size=2)
    batches = list(loader)
    assert [len(batch["caption"]) for batch in batches] == [2, 2, 1]
    assert batches[0]["video"].shape == (2, 3, 2, 32, 32)
    assert batches[0]["subject"].tolist() == World().batch([0, 1]).labels["subject"].tolist()
    with pytest.raises(IndexError, match=r"index: expected one in \[0, 5\), got 5"):
        World(length=5)[5]
    with pytest.raises(ValueError, match="length: expected an integer of at least 1, got 0"):
        World(length=0)


def test_wordings_vary_and_image_captions_name_no_motion():
    clips = World(size=8, num_frames=1).batch(range(60))
    assert 20 < sum(a != b for a, b in zip(clips.paraphrases, clips.captions, strict=True)) < 60
    assert all(
        parse_caption(text)["motion"] is None
        for text in clips.image_captions + clips.image_paraphrases
    )
    for text, scene in zip(clips.paraphrases, clips.scenes, strict=True):
        assert parse_caption(text)["motion"] == scene.motion


def test_the_small_clip_is_the_average_of_the_large_one():
    scenes = [Scene("owl", "bouncing", "grass", 2), Scene("blue ring", "growing", "desert", 3)]
    large, small = render(scenes), render(scenes, size=32)
    torch.testing.assert_close(F.avg_pool3d(large.video, (1, 2, 2)), small.video, atol=1e-5, rtol=0)
    # away from the borders of the mask, vectors measured in pixels are half as long
    both = F.avg_pool3d(large.mask[:, :, :-1].float(), (1, 2, 2)) == 1
    halved = F.avg_pool3d(large.flow, (1, 2, 2)) / 2
    inside = (both & small.mask[:, :, :-1]).expand_as(halved)
    torch.testing.assert_close(halved[inside], small.flow[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [8, 33, 48, 64, 96])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_any_size_and_length(size, num_frames):
    clips = World(subset="all", size=size, num_frames=num_frames).batch(range(3))
    assert clips.video.shape == (3, 3, num_frames, size, size)
    assert clips.video.dtype == torch.float32 and clips.video.abs().max() <= 1 + 1e-5
    assert clips.flow.shape == (3, 2, num_frames - 1, size, size)
    assert clips.trajectory.shape == clips.alpha.shape == (3, 1, num_frames, size, size)


def test_a_large_batch_is_rendered_in_chunks():
    world = World("test", subset="all", size=16, num_frames=2)
    full, last = world.batch(range(131)), world.batch(range(126, 131))
    assert len(full) == 131 and full.flow_exact.shape == (131,)
    again = full.select(range(126, 131))
    assert again.scenes == last.scenes and torch.equal(again.flow_exact, last.flow_exact)
    for name in ("video", "path", "alpha", "flow", "trajectory"):
        assert torch.equal(getattr(again, name), getattr(last, name)), name


def test_an_empty_batch():
    clips = render([])
    assert clips.video.shape == (0, 3, 16, 64, 64) and clips.flow.shape == (0, 2, 15, 64, 64)
    assert len(clips) == 0 and clips.captions == [] and clips.labels["subject"].dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size: expected an integer of at least 8, got 4"),
        ({"num_frames": 0}, "num_frames: expected an integer of at least 1, got 0"),
        ({"fps": 0.0}, "fps: expected a finite number above 0, got 0"),
        ({"fps": float("inf")}, "fps: expected a finite number above 0, got inf"),
    ],
)
def test_bad_arguments_raise_in_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        World(**arguments)


def test_a_shape_that_stands_still_and_the_background_are_static():
    clips = render(
        [Scene("red star", "standing still", "sea", 8), Scene("tiger", "moving left", "sea", 8)]
    )
    assert (clips.video[0] - clips.video[0, :, :1]).abs().max() == 0
    ground = (clips.alpha[1] == 0).all(dim=1, keepdim=True).expand(3, 16, -1, -1)  # never covered
    assert (clips.video[1] - clips.video[1, :, :1])[ground].abs().max() == 0
    assert clips.flow_exact.tolist() == [True, False]


def test_masks_cover_what_the_shape_covers():
    """A circle of size s covers pi/4 s^2 of the frame."""
    clips = render([Scene("blue circle", "standing still", "white", v) for v in range(0, 20, 2)])
    expected = np.pi / 4 * clips.path[:, 0, 2] ** 2
    torch.testing.assert_close(
        clips.mask[:, 0, 0].float().mean((1, 2)), expected, rtol=0.03, atol=0
    )
    torch.testing.assert_close(clips.alpha[:, 0, 0].mean((1, 2)), expected, rtol=0.03, atol=0)


def test_the_trajectory_peaks_at_the_subject():
    clips = render([Scene("bus", "moving left", "snow", 10)])
    for f in range(16):
        y, x = np.unravel_index(int(clips.trajectory[0, 0, f].argmax()), (64, 64))
        centre = (clips.path[0, f, :2] + 1) * 32 - 0.5
        assert abs(x - centre[0]) <= 0.5 + 1e-4 and abs(y - centre[1]) <= 0.5 + 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distances_agree_with_brute_force(shape):
    """|distance| is how far the nearest point of the other side is."""
    line = np.linspace(-1.3, 1.3, 66)
    x, y = np.meshgrid(line, line)
    d = signed_distance(shape, x, y)
    inside = np.stack([x[d < 0], y[d < 0]], 1)
    probe = np.random.default_rng(0).choice(np.flatnonzero(d.ravel() > 0.1), 40)
    for i in probe:
        nearest = np.hypot(inside[:, 0] - x.ravel()[i], inside[:, 1] - y.ravel()[i]).min()
        assert abs(nearest - d.ravel()[i]) < 0.07, shape
    assert np.abs(inside).max() <= 1.05 and np.abs(inside).max() > 0.8, "the shape spans [-1, 1]"


def test_unknown_shape_raises():
    with pytest.raises(ValueError, match="shape: expected one of"):
        draw_shape("hexagon", (1.0, 0.0, 0.0))


def test_sprites_are_premultiplied_with_an_empty_margin():
    images, table = sprite_atlas()
    assert (
        images.shape[0] == len(MIP_BLUR_SIGMAS)
        and images.dtype == torch.uint8
        and table.shape == (124, 16)
    )
    colour, alpha = images[:, :, :3].int(), images[:, :, 3:].int()
    assert (colour <= alpha + 1).all(), "premultiplied colour never exceeds coverage"
    assert alpha[0, :, :, 0].max() <= 3 and alpha[0, :, :, :, 0].max() <= 3, (
        "the margin of the sharpest level is empty"
    )
    assert alpha[..., 0, :].max() < 20 and alpha[..., :, 0].max() < 20, (
        "and of the most blurred one almost"
    )
    assert (table[76:] == table[76:, :1]).all() and len(np.unique(table[:76])) == 76 * 16


def test_mip_level_increases_as_the_subject_shrinks():
    assert mip_level_for(np.array([0.85, 0.6, 0.45]), 64).tolist() == [0, 1, 2]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_colours_and_vary(background):
    index = np.full(6, BACKGROUND_INDEX[background])
    images = paint(index, np.arange(6), 64)
    assert images.shape == (6, 3, 64, 64) and 0 <= images.min() and images.max() <= 1
    assert not torch.equal(images[0], images[1])


def test_backgrounds_differ_from_each_other():
    means = paint(np.arange(len(BACKGROUNDS)), np.zeros(len(BACKGROUNDS), dtype=int), 64)
    for a, b in itertools.combinations(range(len(BACKGROUNDS)), 2):
        assert (means[a] - means[b]).abs().mean() > 0.05, (BACKGROUNDS[a], BACKGROUNDS[b])


def test_colours_are_far_apart():
    values = torch.tensor(list(COLOURS.values()))
    distances = torch.cdist(values, values) + 10 * torch.eye(len(values))
    assert distances.min() > 0.25


def test_canny_edges_of_a_square():
    clips = render([Scene("red square", "standing still", "white", 0)], num_frames=2)
    edges = canny_edges(clips.video)
    assert edges.shape == (1, 1, 2, 64, 64) and set(edges.unique().tolist()) == {0.0, 1.0}
    rim = (
        F.max_pool2d(clips.alpha[:, :, 0], 5, 1, 2) - -F.max_pool2d(-clips.alpha[:, :, 0], 5, 1, 2)
        > 0.5
    )
    near = F.max_pool2d(rim.float(), 7, 1, 3) > 0  # the rim of a shape has a second, inner line
    assert edges[:, :, 0][~near].sum() == 0 and edges[:, :, 0].sum() > 60
    tiger = render([Scene("tiger")], num_frames=1).video
    assert canny_edges(tiger, sigma=3.0).sum() < 0.7 * canny_edges(tiger).sum()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    scenes = [World(subset="all").sampler(i) for i in range(8)]
    torch.testing.assert_close(
        render(scenes, device="cuda").video.cpu(), render(scenes).video, atol=2e-3, rtol=0
    )
