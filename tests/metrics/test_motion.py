"""Warping error, flicker, smoothness and dynamic degree, against loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from course_lib.metrics import (
    DynamicDegree,
    Flicker,
    Smoothness,
    WarpingError,
    bidirectional_flow,
    dynamic_degree,
    estimate_flow,
    ground_truth_flow,
    non_occluded_mask,
    warping_error,
)
from course_lib.world import MOTIONS, World


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def video(b=3, f=5, size=16, seed=0):
    return (
        torch.rand(
            b, 3, f, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        * 2
        - 1
    )


def zero_flows(like):
    b, _, f, h, w = like.shape
    return torch.zeros(b, 2, f - 1, h, w), torch.zeros(b, 2, f - 1, h, w)


def smooth_flows(b=2, f=3, size=16):
    """A flow and about its opposite, both with a direction of their own."""
    fields = (
        2 * ndimage.gaussian_filter(noise(b, 2, f - 1, size, size).numpy(), (0, 0, 0, 3, 3)) + 1
    )
    return torch.from_numpy(fields), torch.from_numpy(-0.9 * fields)


@pytest.fixture(scope="module")
def clips():
    return World("test", subset="all", seed=5, static_sprites=True, num_frames=8).batch(range(12))


# Warping error


def warping_error_by_hand(clip, forward, mask):
    """Lai et al.'s loop: clip (c, f, h, w) in [0, 1], flow (2, f-1, h, w), mask (f-1, h, w)."""
    total, steps = 0, forward.shape[1]
    rows, columns = np.mgrid[: clip.shape[2], : clip.shape[3]]
    for t in range(steps):
        where = [rows + forward[1, t], columns + forward[0, t]]
        warped = np.stack(
            [ndimage.map_coordinates(c[t + 1], where, order=1, mode="nearest") for c in clip]
        )
        three = np.repeat(mask[t][None], len(clip), axis=0)
        difference = (warped - clip[:, t]) * three
        count = three.sum() if three.sum() else difference.size
        total += (difference**2).sum() / count
    return total / steps


def test_warping_error_equals_the_authors_loop():
    shown, (forward, backward) = video(b=2, f=3), smooth_flows()
    mask = non_occluded_mask(forward, backward)
    assert 0.1 < mask.double().mean() < 0.95
    expected = [
        warping_error_by_hand((shown[i].numpy() + 1) / 2, forward[i].numpy(), mask[i, 0].numpy())
        for i in range(2)
    ]
    assert warping_error(shown, forward, backward).tolist() == pytest.approx(expected, rel=1e-9)


def test_independent_noise_has_twice_its_variance_as_warping_error():
    still = video(f=1, size=32).expand(-1, -1, 30, -1, -1) * 0.5
    noisy = still + 0.1 * noise(*still.shape)  # a standard deviation of 0.05 in [0, 1]
    assert warping_error(still, *zero_flows(still)).tolist() == pytest.approx([0, 0, 0], abs=1e-20)
    for value in warping_error(noisy.clamp(-1, 1), *zero_flows(still)).tolist():
        assert value == pytest.approx(2 * 0.05**2, rel=0.03)


def test_a_step_in_which_nothing_can_be_seen_counts_as_zero():
    shown = video(f=2)
    everywhere = torch.full((3, 2, 1, 16, 16), 5.0)
    assert not non_occluded_mask(everywhere, everywhere).any()
    assert warping_error(shown, everywhere, everywhere).tolist() == [0, 0, 0]


def test_true_clips_follow_their_flow_and_shuffled_ones_do_not(clips):
    metric, errors = WarpingError("exact"), []
    order = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
    for shown in (
        clips.video,
        clips.video[:, :, order],
        torch.where(clips.mask, clips.video.flip(1), clips.video),
    ):
        metric.reset()
        metric.update(shown, ground_truth_flow(clips))
        errors.append(metric.compute())
    true, shuffled, recoloured = errors
    assert true.name == "warping_error[exact]" and true.n == 12
    assert true.value < 0.05 * shuffled.value
    # an edit that moves as its source does has a small error too: the flow is the source's
    assert recoloured.value < 0.2 * shuffled.value


def test_an_estimated_flow_takes_the_place_of_the_exact_one():
    shown = (
        World("test", seed=5, num_frames=3, size=32, motions=["moving right"]).batch(range(2)).video
    )
    metrics = [WarpingError("ilk"), WarpingError(estimate_flow, "mine"), WarpingError("exact")]
    metrics[0].update(shown)
    metrics[1].update(shown)
    metrics[2].update(shown, bidirectional_flow(shown))
    scores = [metric.compute() for metric in metrics]
    assert [score.name for score in scores] == [
        f"warping_error[{name}]" for name in ("ilk", "mine", "exact")
    ]
    assert scores[0].value == scores[1].value == scores[2].value > 0


# Flicker and smoothness


def test_flicker_is_vbenchs_on_whole_grey_levels():
    grey = torch.randint(
        0, 256, (2, 3, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    metric = Flicker()
    metric.update(grey.double() / 127.5 - 1)
    for clip, result in zip(grey.double(), metric.per_clip()["vbench"].tolist(), strict=True):
        steps = [float((clip[:, t] - clip[:, t + 1]).abs().mean()) for t in range(3)]
        assert result == pytest.approx((255 - sum(steps) / 3) / 255, abs=1e-12)


def test_black_and_white_flicker_most_and_a_still_not_at_all():
    blink = torch.tensor([-1.0, 1.0, -1.0]).view(1, 1, 3, 1, 1).expand(1, 3, 3, 4, 4)
    metric = Flicker()
    metric.update(blink)
    metric.update(blink[:, :, :1].expand(-1, -1, 3, -1, -1))
    assert {key: values.tolist() for key, values in metric.per_clip().items()} == {
        "vbench": [0, 1],
        "difference": [1, 0],
    }
    scores = metric.compute()
    assert scores["vbench"].name == "flicker_vbench" and scores["difference"].value == 0.5


@pytest.mark.parametrize("frames", [3, 4, 5, 8])
def test_smoothness_equals_vbenchs_loop_with_the_mean_as_interpolator(frames):
    shown = video(b=1, f=frames)
    kept = [shown[0, :, t] for t in range(0, frames, 2)]
    interpolated = [(a + b) / 2 for a, b in zip(kept[:-1], kept[1:], strict=True)]
    dropped = [shown[0, :, t] for t in range(1, frames, 2)]
    errors = [float((a - b).abs().mean()) / 2 for a, b in zip(dropped, interpolated, strict=False)]
    metric = Smoothness()
    metric.update(shown)
    assert metric.compute().value == pytest.approx(1 - sum(errors) / len(errors), abs=1e-12)


def test_a_steady_fade_is_smooth_and_a_blink_is_not():
    fade = torch.linspace(-1, 1, 7, dtype=torch.float64).view(1, 1, 7, 1, 1).expand(1, 3, 7, 4, 4)
    metric = Smoothness()
    metric.update(fade)
    assert metric.compute().value == pytest.approx(1, abs=1e-12)
    metric.reset()
    metric.update(
        torch.where(torch.arange(7)[:, None, None] % 2 == 0, -1.0, 1.0).expand(1, 3, 7, 4, 4)
    )
    assert metric.compute().value == 0


# Dynamic degree


def vbench(flow, fps):
    """VBench's rule for one clip, as a loop; flow (2, f-1, h, w)."""
    _, steps, h, w = flow.shape
    count = 0
    for t in range(steps):
        length = np.sqrt(flow[0, t] ** 2 + flow[1, t] ** 2).ravel()
        fastest = np.sort(length)[::-1][: int(h * w * 0.05)]
        count += fastest.mean() > max(1.0, 8.0 / fps) * 6.0 * (min(h, w) / 256.0)
    return count >= round(4 * ((steps + 1) / 16.0))


@given(st.integers(0, 10**6), st.integers(2, 20), st.sampled_from([2, 4, 8, 10]))
def test_dynamic_degree_is_vbenchs_rule(seed, steps, fps):
    pace = torch.rand(
        4, 1, steps, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    flow = noise(4, 2, steps, 16, 24, seed=seed) * pace * 8 / fps / 3
    moves, _ = dynamic_degree(flow, fps)
    assert moves.tolist() == [vbench(clip.numpy(), fps) for clip in flow]


def test_the_threshold_at_64_pixels_is_a_pixel_and_a_half_in_four_of_fifteen_steps():
    def clip(speed, fast_steps):
        flow = torch.zeros(1, 2, 15, 64, 64, dtype=torch.float64)
        flow[:, 1, :fast_steps] = speed
        return flow

    rows = [(1.5, 15, 8), (1.51, 3, 8), (1.51, 4, 8), (1.51, 15, 4), (3.01, 15, 4)]
    result = [bool(dynamic_degree(clip(speed, fast), fps)[0]) for speed, fast, fps in rows]
    assert result == [False, False, True, False, True]
    assert float(dynamic_degree(clip(3, 5))[1]) == pytest.approx(1.0)
    assert (
        not dynamic_degree(clip(0.5, 15), min_speed=2)[0]
        and dynamic_degree(clip(0.51, 15), min_speed=2)[0]
    )


def test_speed_is_that_of_the_fastest_twentieth():
    flow = torch.zeros(1, 2, 3, 20, 20)
    flow[..., 0, :] = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # 20 of 400 pixels, length 5
    assert float(dynamic_degree(flow)[1]) == pytest.approx(5)


def test_what_the_rules_call_moving_in_the_world():
    clips = World("test", subset="all", seed=5, size=32).batch(range(60))
    motion = clips.labels["motion"]
    slow, _ = dynamic_degree(clips.flow, min_speed=2)
    assert torch.equal(slow, motion != MOTIONS.index("standing still"))
    vbench, speed = dynamic_degree(clips.flow)
    travels = torch.tensor([name.startswith("moving") for name in MOTIONS])[motion]
    grows = torch.tensor([name in ("growing", "shrinking") for name in MOTIONS])[motion]
    assert 0.4 < vbench[travels].double().mean() < 0.9 and not vbench[grows].any()
    assert speed[motion == 0].max() < 1e-4


def test_dynamic_degree_counts_clips_with_wilsons_interval(clips):
    metric = DynamicDegree("exact", min_speed=2)
    for start in (0, 4, 8):
        metric.update(clips.video[start : start + 4], clips.flow[start : start + 4])
    scores = metric.compute()
    moving = sum(scene.motion != "standing still" for scene in clips.scenes)
    assert scores["moving"].name == "dynamic_degree_speed2[exact]"
    assert scores["moving"].value == moving / 12 and scores["moving"].n == 12
    assert 0 <= scores["moving"].interval[0] < moving / 12 < scores["moving"].interval[1] <= 1
    assert scores["speed"].unit == "px/frame"
    assert scores["speed"].value == pytest.approx(float(dynamic_degree(clips.flow)[1].mean()))


def test_a_frozen_video_fails_only_the_dynamic_degree():
    frozen = (
        World("test", seed=5, size=32, num_frames=1).batch(range(2)).video.expand(-1, -1, 4, -1, -1)
    )
    dynamic, flicker, smooth, warping = (
        DynamicDegree("ilk"),
        Flicker(),
        Smoothness(),
        WarpingError("ilk"),
    )
    for metric in (dynamic, flicker, smooth, warping):
        metric.update(frozen)
    assert (
        dynamic.compute()["moving"].value == 0
        and dynamic.compute()["moving"].name == "dynamic_degree_vbench[ilk]"
    )
    assert flicker.compute()["vbench"].value == smooth.compute().value == 1
    assert warping.compute().value == pytest.approx(0, abs=1e-12)


# Batches and refusals


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (1, 1, 1)])
def test_batches_do_not_matter(sizes):
    flows = tuple(flow.expand(3, -1, -1, -1, -1) for flow in smooth_flows(b=1, f=5))
    metrics = {
        "warping": (WarpingError("exact"), lambda v, f, b: (v, (f, b))),
        "dynamic": (DynamicDegree("exact"), lambda v, f, b: (v, f)),
        "flicker": (Flicker(), lambda v, f, b: (v,)),
        "smooth": (Smoothness(), lambda v, f, b: (v,)),
    }
    for metric, arguments in metrics.values():
        full = metric.clone()
        full.update(*arguments(video(), *flows))
        for parts in zip(*(x.split(sizes) for x in (video(), *flows)), strict=True):
            metric.update(*arguments(*parts))
        for key, values in full.per_clip().items():
            assert torch.allclose(metric.per_clip()[key], values, rtol=1e-12, atol=0)


def test_metrics_leave_the_callers_video_alone():
    shown = video().requires_grad_()
    before = shown.detach().clone()
    metric = Smoothness()
    metric.update(shown)
    assert torch.equal(shown, before) and not metric.per_clip()["smoothness"].requires_grad


GOOD = video()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WarpingError("raft"), "flow: expected exact, ilk, tvl1 or a function, got 'raft'"),
        (
            lambda: WarpingError(estimate_flow),
            "name: expected a name for the estimator given as flow, got None",
        ),
        (
            lambda: WarpingError("exact").update(GOOD),
            "flows: expected a value with flow='exact', got None",
        ),
        (
            lambda: WarpingError("ilk").update(GOOD, zero_flows(GOOD)),
            "flows: expected None unless flow='exact', got a value",
        ),
        (
            lambda: WarpingError("exact").update(GOOD[:, :, :1], zero_flows(GOOD)),
            "at least 2 frames, got 1",
        ),
        (
            lambda: WarpingError("exact").update(GOOD[:2], zero_flows(GOOD)),
            r"forward: expected \(b, 2, f-1, h, w\)",
        ),
        (
            lambda: WarpingError("exact").update(GOOD * math.nan, zero_flows(GOOD)),
            "video: expected finite values",
        ),
        (
            lambda: DynamicDegree("exact").update(GOOD),
            "flow: expected a value with flow='exact', got None",
        ),
        (
            lambda: DynamicDegree("ilk").update(GOOD, zero_flows(GOOD)[0]),
            "flow: expected None unless flow='exact', got a value",
        ),
        (
            lambda: DynamicDegree("exact").update(GOOD[:, :, :2], zero_flows(GOOD)[0]),
            "at least 3 frames, got 2",
        ),
        (
            lambda: DynamicDegree("exact", fps=24),
            "fps: expected a finite number above 0 and below 12, got 24",
        ),
        (
            lambda: DynamicDegree("exact", min_speed=0),
            "min_speed: expected a finite number above 0, got 0",
        ),
        (
            lambda: dynamic_degree(torch.zeros(1, 2, 1, 8, 8)),
            "flow: expected at least 2 steps and 20 pixels, got 1 steps",
        ),
        (
            lambda: dynamic_degree(torch.zeros(1, 2, 4, 4, 4)),
            "flow: expected at least 2 steps and 20 pixels",
        ),
        (lambda: Flicker().update(GOOD[:, :, :1]), "video: expected at least 2 frames, got 1"),
        (lambda: Smoothness().update(GOOD[:, :, :2]), "video: expected at least 3 frames, got 2"),
        (lambda: Smoothness().update(GOOD[0]), r"video: expected \(b, c, f, h, w\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.full((1, 2, 3, 8, 8), math.nan),), "flow: expected finite values"),
        ((torch.ones(1, 2, 3, 8, 8).long(),), "flow: expected floating point"),
        ((torch.ones(1, 3, 3, 8, 8),), r"flow: expected \(x, y\) in dim 1"),
        ((torch.ones(1, 2, 3, 8, 8), 8, math.inf), "min_speed: expected a finite number"),
    ],
)
def test_dynamic_degree_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        dynamic_degree(*args)


def test_flows_that_are_not_finite_never_count():
    forward, backward = zero_flows(GOOD)
    bad = backward * math.nan
    for metric, flow in (
        (WarpingError("exact"), (forward, bad)),
        (WarpingError(lambda video: bad, "bad"), None),
    ):
        with pytest.raises(ValueError, match="expected finite values"):
            metric.update(GOOD, flow)
        assert metric.update_count == 0
