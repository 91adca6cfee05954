"""Lesson 01's experiments: their data, their nets, and that a seed decides everything."""

import pytest
import torch

from course_lib.claims import convolution


@pytest.mark.parametrize("kind", ["f-r2d", "r2plus1d"])
def test_an_arm_reports_accuracy_and_cost(kind, tiny):
    numbers = convolution._recognise(kind, 0, 0.01)
    assert numbers["test accuracy"] == 1 - numbers["test error"]
    assert min(numbers[key] for key in ("parameters", "MFLOP a clip", "ms a training step")) > 0


def test_the_same_seed_gives_the_same_result(tiny):
    first = convolution._recognise("r3d", 1, 0.01)
    convolution._recognise.cache_clear()
    again = convolution._recognise("r3d", 1, 0.01)
    same = [key for key in first if not key.startswith(("ms", "minutes"))]
    assert {key: first[key] for key in same} == {key: again[key] for key in same}


def test_the_factorised_nets_have_the_parameters_of_the_3d_one():
    full, factorised = (
        convolution.count_parameters(convolution.build(k, 9, 0)) for k in ("r3d", "r2plus1d")
    )
    assert factorised == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("split", ["train", "test"])
def test_mirrored_pairs_hold_the_same_frames_in_opposite_order(split):
    videos, labels = convolution.left_or_right(split, 64, 7)
    assert torch.equal(labels, torch.arange(64) % 2)
    left, right = videos[0::2], videos[1::2]
    assert torch.equal(left.flip(2), right)
    assert (left != right).flatten(1).any(1).all(), (
        "a pair that looks the same both ways teaches nothing"
    )


def test_whoever_is_blind_to_order_is_right_exactly_half_of_the_time():
    data = convolution.left_or_right("test", 64, 7)
    for seed in range(3):
        assert convolution.error_rate(convolution.build("f-r2d", 2, seed), data) == 0.5


@pytest.mark.parametrize("count", [0, 5])
def test_pairs_come_in_twos(count):
    with pytest.raises(ValueError, match=f"count must be a positive even number, got {count}"):
        convolution.left_or_right("test", count, 0)


def test_train_and_test_pairs_differ():
    train, test = (convolution.left_or_right(split, 32, 7)[0] for split in ("train", "test"))
    assert not (train.flatten(1)[:, None] == test.flatten(1)[None]).all(2).any()
