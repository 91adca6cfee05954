"""Flow: directions, signs and lengths; references from scipy, loops and torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import ndimage
from torchvision.models.optical_flow import raft_small

from course_lib.metrics import (
    bidirectional_flow,
    estimate_flow,
    ground_truth_flow,
    non_occluded_mask,
    raft_flow,
    warp,
)
from course_lib.metrics.flow import check_flow
from course_lib.world import Scene, World, render


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texture(size=64, seed=0, frames=2, step=(1.5, -0.75)):
    """A sum of waves that moves by `step` (x, y) pixels per frame, without interpolation."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.rand(12, 4, generator=generator, dtype=torch.float64)
    x = torch.arange(size, dtype=torch.float64)[None, None, :]
    y = torch.arange(size, dtype=torch.float64)[None, :, None]
    t = torch.arange(frames, dtype=torch.float64)[:, None, None]
    image = sum(
        torch.sin(
            (a - 0.5) * 0.9 * (x - step[0] * t) + (b - 0.5) * 0.9 * (y - step[1] * t) + 6.3 * phase
        )
        * height
        for a, b, phase, height in waves.tolist()
    )
    return (image / 12)[None, None].expand(1, 3, -1, -1, -1)


# Warping


@given(st.integers(0, 10**6))
def test_warp_is_scipys_bilinear_lookup(seed):
    frames, flow = noise(2, 3, 2, 7, 9, seed=seed), 3 * noise(2, 2, 2, 7, 9, seed=seed + 1)
    result = warp(frames, flow)
    rows, columns = np.mgrid[:7, :9]
    for b, c, t in np.ndindex(2, 3, 2):
        where = [rows + flow[b, 1, t].numpy(), columns + flow[b, 0, t].numpy()]
        expected = ndimage.map_coordinates(frames[b, c, t].numpy(), where, order=1, mode="nearest")
        assert np.allclose(result[b, c, t].numpy(), expected, atol=1e-10)


def test_warp_brings_the_next_frame_back():
    frame = noise(1, 1, 1, 8, 8)
    following = frame.roll((1, 2), dims=(-2, -1))  # 2 to the right, 1 down
    flow = torch.tensor([2.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    assert torch.allclose(warp(following, flow)[..., :-1, :-2], frame[..., :-1, :-2], atol=1e-12)
    assert torch.allclose(warp(frame, torch.zeros(1, 2, 1, 8, 8)), frame, atol=1e-12)


# Exact flow


def moving(**options):
    scenes = [
        Scene("tiger", "moving right", "sea", 3),
        Scene("fish", "spinning", "grass", 4),
        Scene("pig", "growing"),
    ]
    return render(scenes, num_frames=5, static_sprites=True, **options)


def test_exact_flows_bring_frames_back_and_forth():
    clips = moving()
    forward, backward = ground_truth_flow(clips)
    assert forward.shape == backward.shape == (3, 2, 4, 64, 64)
    core = clips.alpha > 0.999  # no border, where subject and background mix
    for frames, flow, truth, inside in (
        (clips.video[:, :, 1:], forward, clips.video[:, :, :-1], core[:, :, :-1]),
        (clips.video[:, :, :-1], backward, clips.video[:, :, 1:], core[:, :, 1:]),
    ):
        moved, still = (warp(frames, flow) - truth).abs(), (frames - truth).abs()
        inside = inside.expand_as(moved)
        assert moved[inside].mean() < 0.25 * still[inside].mean()


def test_there_and_back_is_nowhere_where_it_is_visible():
    forward, backward = (flow.double() for flow in ground_truth_flow(moving()))
    visible = non_occluded_mask(forward, backward).expand(-1, 2, -1, -1, -1)
    there_and_back = forward + warp(backward, forward)
    assert there_and_back[visible].abs().max() < 1  # the rule allows about 0.5 on the square
    assert there_and_back[visible].abs().mean() < 0.01
    assert there_and_back[~visible].abs().mean() > 0.2
    assert 0.7 < visible.double().mean() < 0.99


# Occlusion


def visible_by_hand(forward, backward):
    """Lai et al.'s rule for one pair of frames, pixel by pixel; flows (2, h, w)."""
    h, w = forward.shape[1:]
    rows, columns = np.mgrid[:h, :w]
    where = [rows + forward[1], columns + forward[0]]
    back = np.stack(
        [ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in backward]
    )
    visible = np.ones((h, w), bool)
    for y in range(h):
        for x in range(w):
            f, b = forward[:, y, x], back[:, y, x]
            right = forward[:, y, min(x + 1, w - 1)] - f
            below = forward[:, min(y + 1, h - 1), x] - f
            hidden = ((f + b) ** 2).sum() > 0.01 * ((f**2).sum() + (b**2).sum()) + 0.5
            edge = (right**2).sum() + (below**2).sum() > 0.01 * (f**2).sum() + 0.002
            visible[y, x] = not (hidden or edge)
    return visible


@pytest.mark.parametrize("scale", [1.0, 2.0, 6.0])
def test_visible_equals_its_loop(scale):
    fields = ndimage.gaussian_filter(noise(2, 2, 2, 12, 15, seed=5).numpy(), (0, 0, 0, 3, 3))
    fields = scale * (fields + [[[[0.5]], [[-0.3]]]])  # a flow with a direction of its own
    forward, backward = (
        torch.from_numpy(fields[0])[:, :, None],
        torch.from_numpy(-0.9 * fields[0])[:, :, None],
    )
    backward = backward + 0.3 * torch.from_numpy(fields[1])[:, :, None]
    result = non_occluded_mask(forward, backward)
    assert result.shape == (2, 1, 1, 12, 15) and result.dtype == torch.bool
    for b in range(2):
        expected = visible_by_hand(forward[b, :, 0].numpy(), backward[b, :, 0].numpy())
        assert np.array_equal(result[b, 0, 0].numpy(), expected)
        assert 0 < expected.mean() < 1


def test_what_a_square_moves_over_is_hidden():
    forward, backward = torch.zeros(1, 2, 1, 16, 16), torch.zeros(1, 2, 1, 16, 16)
    forward[:, 0, :, 4:10, 2:8] = 4.0  # a square moves 4 to the right
    backward[:, 0, :, 4:10, 6:12] = -4.0
    visible = non_occluded_mask(forward, backward)[0, 0, 0]
    assert not visible[4:10, 8:12].any()  # the ground it comes to lie on
    assert visible[5:8, 3:6].all() and visible[12:, :].all() and visible[:, 13:].all()


# Estimates


@pytest.mark.parametrize("method", ["ilk", "tvl1"])
def test_an_estimate_has_the_right_sign_length_and_order(method):
    flow = estimate_flow(texture(), method)
    assert flow.shape == (1, 2, 1, 64, 64)
    inner = flow[0, :, 0, 12:-12, 12:-12].flatten(1).median(dim=1).values
    assert inner.tolist() == pytest.approx([1.5, -0.75], abs=0.1)


def test_both_flows_are_there_and_back():
    forward, backward = bidirectional_flow(texture(frames=3))
    assert forward.shape == backward.shape == (1, 2, 2, 64, 64)
    inner = (forward + backward)[..., 12:-12, 12:-12].abs()
    assert inner.median() < 0.1


def test_an_estimate_comes_near_the_truth_of_the_world():
    clips = World(
        "test",
        subset="all",
        seed=5,
        static_sprites=True,
        num_frames=3,
        motions=["moving left", "moving down"],
    ).batch(range(4))
    inside = clips.mask[:, 0, :-1]
    missed = (estimate_flow(clips.video) - clips.flow).norm(dim=1)[inside].median()
    assert missed < 0.25 * clips.flow.norm(dim=1)[inside].median()


def test_a_video_without_colour_or_motion():
    still = texture(step=(0, 0))[:, :1]
    assert estimate_flow(still).abs().max() < 1e-3
    assert torch.equal(estimate_flow(torch.zeros(1, 3, 2, 16, 16)), torch.zeros(1, 2, 1, 16, 16))
    coloured = estimate_flow(still.expand(-1, 3, -1, -1, -1))  # the weights of the colours sum to 1
    assert torch.allclose(coloured, estimate_flow(still), atol=1e-3)


@pytest.mark.parametrize(
    ("video", "method", "message"),
    [
        (texture(), "farneback", "method: expected one of ilk, tvl1, got 'farneback'"),
        (texture(frames=1), "ilk", "video: expected at least 2 frames, got 1"),
        (texture()[..., :8, :8], "ilk", "video: expected at least 16x16 pixels, got 8x8"),
        (texture()[:, :2], "ilk", "video: expected 1 or 3 channels, got 2"),
    ],
)
def test_estimates_refuse(video, method, message):
    with pytest.raises(ValueError, match=message):
        estimate_flow(video, method)


def test_a_flow_that_does_not_fit_is_refused():
    video = texture()
    with pytest.raises(
        ValueError, match=r"flow: expected \(b, 2, f-1, h, w\) = \(1, 2, 1, 64, 64\), got"
    ):
        check_flow("flow", torch.zeros(1, 2, 2, 64, 64), video)
    with pytest.raises(ValueError, match="flow: expected floating point, got torch.int64"):
        check_flow("flow", torch.zeros(1, 2, 1, 64, 64).long(), video)
    with pytest.raises(
        ValueError, match="flow: expected finite values, got 8192 of 8192 NaN or infinite"
    ):
        check_flow("flow", torch.full((1, 2, 1, 64, 64), torch.nan), video)


# RAFT, with random weights


@pytest.fixture(scope="module")
def raft(tmp_path_factory):
    torch.manual_seed(0)
    net = raft_small(weights=None).eval()
    folder = tmp_path_factory.mktemp("raft")
    save_file(net.state_dict(), folder / "raft.safetensors")
    torch.save(net.state_dict(), folder / "raft.pth")
    return net, folder


@torch.no_grad()
def test_raft_is_torchvisions(raft):
    net, folder = raft
    video = texture(size=128).float()
    flow = raft_flow(folder / "raft.safetensors")(video)
    assert torch.allclose(flow[:, :, 0], net(video[:, :, 0], video[:, :, 1])[-1], atol=1e-4)
    assert flow.abs().max() > 0.1
    assert torch.equal(raft_flow(str(folder / "raft.pth"))(video), flow)


@torch.no_grad()
def test_small_video_is_enlarged_for_raft_and_its_flow_brought_back(raft):
    net, folder = raft
    video = texture(size=64).float()[..., :60]  # 60 wide, 64 high
    enlarged = torch.nn.functional.interpolate(
        video[0].transpose(0, 1), (128, 128), mode="bilinear"
    )
    flow = net(enlarged[:1], enlarged[1:])[-1]
    flow = torch.nn.functional.interpolate(flow, (64, 60), mode="bilinear")
    result = raft_flow(folder / "raft.safetensors")(video)[:, :, 0]
    assert torch.allclose(result[:, 0], flow[:, 0] * 60 / 128, atol=1e-4)
    assert torch.allclose(result[:, 1], flow[:, 1] / 2, atol=1e-4)


def test_raft_without_a_file_says_so(tmp_path):
    with pytest.raises(
        ValueError, match="weights: expected a file with torchvision's RAFT weights, got none at"
    ):
        raft_flow(tmp_path / "raft.pth")


# Half precision, and refusals


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 192, 512])
def test_a_flow_of_zero_changes_nothing_in_half_precision(dtype, size):
    frames = noise(1, 1, 1, size, size).clamp(-1, 1).to(dtype)
    frames[..., ::3] = 0
    for flow in (torch.zeros(1, 2, 1, size, size), torch.zeros(1, 2, 1, size, size, dtype=dtype)):
        result = warp(frames, flow)
        assert result.dtype == dtype and torch.equal(result, frames)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 256])
def test_half_precision_rounds_only_the_result(dtype, size):
    frames, flow = noise(1, 2, 1, size, size).to(dtype), (9 * noise(1, 2, 1, size, size)).to(dtype)
    expected = warp(frames.double(), flow.double())
    result = warp(frames, flow)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected, rtol=eps, atol=1e-4)
    assert torch.equal(warp(frames, flow.float()), result)
    single = warp(frames.float(), flow)
    assert single.dtype == torch.float32 and torch.equal(single.to(dtype), result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_of_half_precision_flows_are_those_of_their_values(dtype):
    forward = (2 * noise(1, 2, 1, 200, 8)).to(dtype)
    backward = (0.3 * noise(1, 2, 1, 200, 8, seed=1) - forward).to(dtype)
    forward[..., :100, :], backward[..., :100, :] = 0.5, -0.5
    mask = non_occluded_mask(forward, backward)
    assert torch.equal(mask, non_occluded_mask(forward.float(), backward.float()))
    assert 0 < mask.double().mean() < 1


FRAMES, FLOW = torch.ones(2, 3, 4, 8, 8), torch.ones(2, 2, 4, 8, 8)


@pytest.mark.parametrize(
    ("frames", "flow", "message"),
    [
        (FRAMES[0], FLOW, r"frames: expected \(b, c, steps, h, w\)"),
        (FRAMES.byte(), FLOW, "frames: expected floating point"),
        (FRAMES[..., :1], FLOW[..., :1], "frames: expected at least 2x2 pixels, got 8x1"),
        (FRAMES, FLOW[:1], "flow: expected .*2, 2, 4, 8, 8"),
        (FRAMES, FLOW[:, :1], "flow: expected"),
        (FRAMES, FLOW[:, :, :1], "flow: expected"),
        (FRAMES, FLOW[..., :1], "flow: expected"),
        (FRAMES, FLOW.long(), "flow: expected floating point"),
        (FRAMES, FLOW * torch.nan, "flow: expected finite values"),
        (FRAMES, FLOW * torch.inf, "flow: expected finite values"),
    ],
)
def test_warp_refuses(frames, flow, message):
    with pytest.raises(ValueError, match=message):
        warp(frames, flow)


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (FLOW[0], FLOW, r"forward: expected \(b, 2, steps, h, w\)"),
        (FRAMES, FRAMES, "forward: expected"),
        (FLOW, FLOW[:1], "backward: expected"),
        (FLOW, FLOW[:, :, :1], "backward: expected"),
        (FLOW.long(), FLOW, "forward: expected floating point"),
        (FLOW, FLOW * torch.nan, "backward: expected finite values"),
        (FLOW[..., :1], FLOW[..., :1], "forward: expected at least 2x2 pixels"),
    ],
)
def test_masks_refuse(forward, backward, message):
    with pytest.raises(ValueError, match=message):
        non_occluded_mask(forward, backward)


def test_one_clip_is_not_reversed_along_another_axis():
    with pytest.raises(ValueError, match=r"video: expected \(b, c, f, h, w\)"):
        bidirectional_flow(FRAMES[0], lambda video: video)
