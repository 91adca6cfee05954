"""Frame consistency: each definition against its own words, and how the three differ."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_lib.metrics import FrameConsistency, frame_consistency


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def by_hand(frames):
    """The three definitions as loops over the frames of one clip."""
    pairs = [(i, j) for i in range(len(frames)) for j in range(len(frames)) if i != j]
    steps = range(1, len(frames))
    return {
        "all_pairs": sum(cosine(frames[i], frames[j]) for i, j in pairs) / len(pairs),
        "consecutive": sum(cosine(frames[t - 1], frames[t]) for t in steps) / len(steps),
        "vbench": sum(
            (max(cosine(frames[t - 1], frames[t]), 0) + max(cosine(frames[0], frames[t]), 0)) / 2
            for t in steps
        )
        / len(steps),
    }


def random_frames(seed, b=3, f=5, d=4):
    return torch.randn(b, f, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotating(angle, count):
    """Embeddings that turn by `angle` from frame to frame."""
    turns = torch.arange(count, dtype=torch.float64) * angle
    return torch.stack([turns.cos(), turns.sin()], dim=-1)[None]


@given(st.integers(0, 10**6), st.integers(2, 7))
def test_each_definition_equals_its_loop(seed, count):
    frames = random_frames(seed, f=count)
    result = frame_consistency(frames)
    for clip in range(len(frames)):
        expected = by_hand(frames[clip])
        assert {key: float(values[clip]) for key, values in result.items()} == pytest.approx(
            expected, abs=1e-12
        )


def test_closed_form_of_a_steady_turn():
    angle, count = 0.2, 6
    result = {key: float(value) for key, value in frame_consistency(rotating(angle, count)).items()}
    lags = range(1, count)
    assert result["consecutive"] == pytest.approx(math.cos(angle), abs=1e-12)
    pairs = sum(2 * (count - lag) * math.cos(lag * angle) for lag in lags) / (count * (count - 1))
    assert result["all_pairs"] == pytest.approx(pairs, abs=1e-12)
    first = sum(math.cos(lag * angle) for lag in lags) / len(lags)
    assert result["vbench"] == pytest.approx((math.cos(angle) + first) / 2, abs=1e-12)
    assert (
        result["consecutive"] > result["vbench"] > result["all_pairs"]
    )  # motion drives distant frames apart


def test_a_frozen_video_is_perfect_by_all_three():
    frozen = random_frames(0)[:, :1].expand(-1, 8, -1)
    for values in frame_consistency(frozen).values():
        assert values == pytest.approx(1, abs=1e-12)


def test_only_all_pairs_is_blind_to_the_order_of_frames():
    straight = rotating(0.2, 8)
    shuffled = straight[:, [3, 0, 6, 1, 7, 2, 5, 4]]
    before, after = frame_consistency(straight), frame_consistency(shuffled)
    assert after["all_pairs"] == pytest.approx(before["all_pairs"], abs=1e-12)
    assert after["consecutive"] < before["consecutive"] - 0.1


def test_only_vbench_clips_what_is_opposite():
    result = frame_consistency(rotating(math.pi, 2))
    assert {key: float(value) for key, value in result.items()} == pytest.approx(
        {"all_pairs": -1, "consecutive": -1, "vbench": 0}
    )


def test_two_frames_leave_no_room_for_definitions():
    result = frame_consistency(rotating(0.7, 2))
    assert set(result) == {"all_pairs", "consecutive", "vbench"}
    assert [float(value) for value in result.values()] == pytest.approx(
        [math.cos(0.7)] * 3, abs=1e-12
    )


def test_the_length_of_an_embedding_does_not_matter():
    frames = random_frames(3)
    longer = frame_consistency(
        frames * torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    )
    for key, values in frame_consistency(frames).items():
        assert torch.allclose(values, longer[key])


def pixels(images):
    return images.flatten(1)


def videos(b=5, f=4):
    return torch.rand(b, 3, f, 4, 6, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1,) * 5])
def test_the_metric_streams_the_function_over_any_encoder(sizes):
    metric = FrameConsistency(pixels, "pixels")
    for batch in videos().split(sizes):
        metric.update(batch)
    scores = metric.compute()
    frames = videos().permute(0, 2, 1, 3, 4).flatten(2)
    for key, values in frame_consistency(frames).items():
        assert scores[key].name == f"frame_consistency_{key}[pixels]"
        assert scores[key].value == pytest.approx(float(values.mean()), abs=1e-7)
        assert scores[key].n == 5


def test_it_takes_a_network_and_refuses_one_in_training_mode():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 8))
    with pytest.raises(ValueError, match=r"encode: expected a network in evaluation mode"):
        FrameConsistency(net, "net")
    metric = FrameConsistency(net.eval(), "net")
    metric.update(videos())
    assert -1 <= metric.compute()["all_pairs"].value < 1
    assert not metric.per_clip()["all_pairs"].requires_grad


@pytest.mark.parametrize(
    ("video", "encode", "message"),
    [
        (videos(f=1), pixels, "video: expected at least 2 frames, got 1"),
        (videos()[0], pixels, r"video: expected \(b, c, f, h, w\)"),
        (videos() * 3, pixels, r"video: expected values in \[-1, 1\]"),
        (videos(), lambda images: images, r"encoder\(video\): expected \(n, d\)"),
        (
            videos(),
            lambda images: pixels(images)[::2],
            r"encoder\(video\): expected 20 rows, got 10",
        ),
        (videos(), lambda images: 0 * pixels(images), "expected embeddings with a direction"),
    ],
)
def test_refusals(video, encode, message):
    with pytest.raises(ValueError, match=message):
        FrameConsistency(encode, "net").update(video)


def test_one_frame_has_no_consistency():
    with pytest.raises(ValueError, match="frames: expected at least 2, got 1"):
        frame_consistency(random_frames(0, f=1))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 3, 4), "frames: expected embeddings with a direction"),
        (torch.ones(2, 3, 4) * torch.tensor([1.0, 0, 1])[:, None], "with a direction"),
        (torch.full((2, 3, 4), torch.nan), "frames: expected finite values"),
        (torch.ones(2, 3, 4).long(), "frames: expected floating point"),
        (torch.ones(3, 4), r"frames: expected \(b, f, d\), .*frames\[None\]"),
    ],
)
def test_embeddings_without_a_cosine_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        frame_consistency(frames)
