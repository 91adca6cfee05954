"""Folding of frames, images of joint training, nested modules."""

import pytest
import torch
from torch import nn

from course_lib.nn.utils import (
    fold_frames,
    insert_module,
    num_trailing_images,
    strip_private,
    unfold_frames,
    zero_module,
)


@pytest.mark.parametrize("b", [0, 1, 3])
def test_folding_keeps_frames_of_a_clip_together_and_can_be_undone(b):
    video = torch.randn(b, 2, 4, 3, 5)
    frames = fold_frames(video)
    assert frames.shape == (4 * b, 2, 3, 5)
    assert all(torch.equal(frames[4 * k + 1], video[k, :, 1]) for k in range(b))
    assert torch.equal(unfold_frames(frames, 4), video)


def test_trailing_images_are_counted():
    assert num_trailing_images(None, 2, 4) == 0
    assert num_trailing_images(torch.tensor([[False, False, True, True]] * 2), 2, 4) == 2
    for wrong in ([[True, False]] * 2, [[False, True], [False, False]], [[False, True]]):
        with pytest.raises(ValueError, match="is_image: must mark the same number of trailing"):
            num_trailing_images(torch.tensor(wrong), 2, 2)
    with pytest.raises(ValueError, match="is_image: expected video frames before the images"):
        num_trailing_images(torch.ones(2, 2, dtype=torch.bool), 2, 2)


def test_inserted_modules_have_dotted_names():
    root = nn.ModuleDict()
    layers = {"conv_in": nn.ReLU(), "down_blocks.0.resnets.1": nn.Linear(2, 3)}
    for name, layer in layers.items():
        insert_module(root, name, layer)
        assert root.get_submodule(name) is layer
    assert list(root.state_dict()) == [f"down_blocks.0.resnets.1.{x}" for x in ("weight", "bias")]
    with pytest.raises(ValueError, match="name: expected one that is not in use, got 'conv_in'"):
        insert_module(root, "conv_in", nn.ReLU())


def test_zero_module_zeroes_weight_and_bias():
    layer = zero_module(nn.Linear(3, 4))
    assert layer.weight.abs().max() == 0 and layer.bias.abs().max() == 0


def test_private_entries_are_stripped():
    assert strip_private({"a": 1, "_name_or_path": "b"}) == {"a": 1}
