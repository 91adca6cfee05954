"""Weights to diffusers' video classes and back: equal answers, nothing left over, and plain refusals."""

import pytest
import torch
from diffusers import MotionAdapter, UNet3DConditionModel
from torch import nn

from course_lib.nn.convert_diffusers import (
    from_unet3d,
    load_motion_adapter,
    to_motion_adapter,
    to_motion_model,
    to_unet3d,
    with_motion_adapter,
)
from course_lib.nn.inflate import inflate
from tests.nn.inflated import awake, image_unet, inputs

CLOSE = {"rtol": 0, "atol": 1e-11}


def answer(unet, given):
    with torch.no_grad():
        return unet(**given).sample


def each(given):
    """As UNetMotionModel wants it: a text for each frame."""
    text = given["encoder_hidden_states"].repeat_interleave(given["sample"].shape[2], dim=0)
    return given | {"encoder_hidden_states": text}


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("shape", ["SD 1", "SD 2"])
def test_our_weights_answer_alike_in_unet_motion_model(shape, middle):
    unet = awake(
        inflate(image_unet(shape), "animatediff", heads=4, frames=8, middle=middle, layers=2)
    )
    given = inputs(shape)
    torch.testing.assert_close(
        answer(to_motion_model(unet), each(given)), answer(unet, given), **CLOSE
    )


@pytest.mark.parametrize("middle", [True, False])
def test_an_adapters_weights_answer_alike_in_ours(middle, tmp_path):
    image, given = image_unet("SD 2"), inputs("SD 2")
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_num_attention_heads=2,
        motion_max_seq_length=6,
        use_motion_mid_block=middle,
    ).double()
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.2)
    unet = with_motion_adapter(image, adapter)
    torch.testing.assert_close(
        answer(to_motion_model(unet), each(given)), answer(unet, given), **CLOSE
    )
    to_motion_adapter(unet).save_pretrained(tmp_path)
    again = MotionAdapter.from_pretrained(tmp_path, torch_dtype=torch.float64)
    state = adapter.state_dict()
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("shape", ["SD 2", "classes"])
def test_our_weights_answer_alike_in_unet3d_and_back(shape):
    changes = {"num_class_embeds": None} if shape == "classes" else {}
    unet = awake(inflate(image_unet(shape, **changes), "modelscope"))
    given = {name: value for name, value in inputs(shape).items() if name != "class_labels"}
    theirs = to_unet3d(unet)
    torch.testing.assert_close(answer(theirs, given), answer(unet, given), **CLOSE)
    torch.testing.assert_close(answer(from_unet3d(theirs), given), answer(unet, given), **CLOSE)


def test_their_weights_answer_alike_in_ours():
    torch.manual_seed(4)
    theirs = UNet3DConditionModel(
        block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).double().eval()  # fmt: skip
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    given = inputs("SD 1")
    torch.testing.assert_close(answer(from_unet3d(theirs), given), answer(theirs, given), **CLOSE)


def test_what_their_classes_cannot_say_is_refused():
    ours = inflate(image_unet("SD 2"), "lavie")
    for to in (to_motion_adapter, to_motion_model, to_unet3d):
        with pytest.raises(ValueError, match="unet: expected style '.*', got 'lavie'"):
            to(ours)
    with pytest.raises(ValueError, match=r"heads of one width everywhere, got \[8, 16\]"):
        to_unet3d(inflate(image_unet("SD 1"), "modelscope"))
    with pytest.raises(
        ValueError, match="UNet3DConditionModel has no transformer_layers_per_block, which is"
    ):
        to_unet3d(inflate(image_unet("SDXL"), "modelscope"))
    with pytest.raises(
        ValueError, match="UNet3DConditionModel has no num_class_embeds, which is 3"
    ):
        to_unet3d(inflate(image_unet("classes"), "modelscope"))
    odd = {"block_out_channels": (32, 64), "motion_max_seq_length": 6}
    with pytest.raises(
        ValueError, match="adapter: expected none with a conv_in of its own, got 9 channels"
    ):
        with_motion_adapter(image_unet("SD 2"), MotionAdapter(**odd, conv_in_channels=9))
    with pytest.raises(
        ValueError, match=r"adapter: expected one number of heads everywhere, got \(2, 4\)"
    ):
        with_motion_adapter(
            image_unet("SD 2"), MotionAdapter(**odd, motion_num_attention_heads=(2, 4))
        )


def test_weights_that_do_not_fit_are_refused_by_name():
    unet = inflate(image_unet("SD 2"), "animatediff", heads=4, middle=False)
    adapter = MotionAdapter(block_out_channels=(32, 64), motion_num_attention_heads=4)
    with pytest.raises(RuntimeError, match="mid_block.motion_modules.0"):
        load_motion_adapter(unet, adapter)
