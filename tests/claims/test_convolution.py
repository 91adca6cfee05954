"""Lesson 01's experiments: data, networks, reproducibility."""

import pytest
import torch

from course_lib.claims import convolution

R3D = convolution.ARMS["r3d"]


@pytest.mark.parametrize("kind", ["f-r2d", "r2plus1d"])
def test_an_arm_reports_accuracy_and_cost(kind, tiny):
    metrics = convolution._run_recognition(convolution.ARMS[kind], 0, 0.01)
    assert metrics["test_accuracy"] == 1 - metrics["test_error"]
    costs = ("num_parameters", "mflops_per_clip", "ms_per_training_step")
    assert min(metrics[key] for key in costs) > 0


def test_the_same_seed_gives_the_same_result(tiny):
    first = convolution._run_recognition(R3D, 1, 0.01)
    convolution._run_recognition.cache_clear()
    again = convolution._run_recognition(R3D, 1, 0.01)
    keys = [key for key in first if not key.startswith(("ms", "minutes"))]
    assert {key: first[key] for key in keys} == {key: again[key] for key in keys}


def test_the_factorised_nets_have_the_parameters_of_the_3d_one():
    full, factorised = (
        convolution.count_parameters(convolution.build_classifier(kind, 9, 0))
        for kind in ("r3d", "r2plus1d")
    )
    assert factorised == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("split", ["train", "test"])
def test_mirrored_pairs_have_the_same_frames_in_opposite_order(split):
    videos, labels = convolution.left_or_right(split, 64, 7)
    assert torch.equal(labels, torch.arange(64) % 2)
    left, right = videos[0::2], videos[1::2]
    assert torch.equal(left.flip(2), right)
    differs = (left != right).flatten(1).any(1)
    assert differs.all(), "a pair that looks the same both ways teaches nothing"


def test_a_net_without_time_is_right_exactly_half_of_the_time():
    data = convolution.left_or_right("test", 64, 7)
    for seed in range(3):
        model = convolution.build_classifier("f-r2d", 2, seed)
        assert convolution.error_rate(model, data) == 0.5


@pytest.mark.parametrize("num_clips", [0, 5])
def test_pairs_need_an_even_number_of_clips(num_clips):
    message = f"num_clips: expected a positive even number, got {num_clips}"
    with pytest.raises(ValueError, match=message):
        convolution.left_or_right("test", num_clips, 0)


def test_train_and_test_pairs_differ():
    train, test = (convolution.left_or_right(split, 32, 7)[0] for split in ("train", "test"))
    assert not (train.flatten(1)[:, None] == test.flatten(1)[None]).all(2).any()
