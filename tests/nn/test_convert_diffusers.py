"""Weights to diffusers' video classes and back: equal results, nothing left over, clear errors."""

import pytest
import torch
from diffusers import MotionAdapter, UNet3DConditionModel
from torch import nn

from course_lib.nn.convert_diffusers import (
    from_unet3d,
    inflate_with_motion_adapter,
    load_motion_adapter,
    to_motion_adapter,
    to_motion_model,
    to_unet3d,
)
from course_lib.nn.inflate import inflate
from tests.nn.inflated import image_unet, inputs, randomize_temporal

CLOSE = {"rtol": 0, "atol": 1e-11}


def predict(unet, kwargs):
    with torch.no_grad():
        return unet(**kwargs).sample


def text_per_frame(kwargs):
    """As UNetMotionModel takes it."""
    text = kwargs["encoder_hidden_states"].repeat_interleave(kwargs["sample"].shape[2], dim=0)
    return kwargs | {"encoder_hidden_states": text}


@pytest.mark.parametrize("use_mid_block", [True, False])
@pytest.mark.parametrize("config", ["SD 1", "SD 2"])
def test_our_weights_in_unet_motion_model(config, use_mid_block):
    options = {"num_heads": 4, "num_frames": 8, "use_mid_block": use_mid_block, "num_layers": 2}
    unet = randomize_temporal(inflate(image_unet(config), "animatediff", **options))
    kwargs = inputs(config)
    pred = predict(to_motion_model(unet), text_per_frame(kwargs))
    torch.testing.assert_close(pred, predict(unet, kwargs), **CLOSE)


@pytest.mark.parametrize("use_mid_block", [True, False])
def test_an_adapters_weights_in_ours(use_mid_block, tmp_path):
    image, kwargs = image_unet("SD 2"), inputs("SD 2")
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_num_attention_heads=2,
        motion_max_seq_length=6,
        use_motion_mid_block=use_mid_block,
    ).double()
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.2)
    unet = inflate_with_motion_adapter(image, adapter)
    pred = predict(to_motion_model(unet), text_per_frame(kwargs))
    torch.testing.assert_close(pred, predict(unet, kwargs), **CLOSE)
    to_motion_adapter(unet).save_pretrained(tmp_path)
    loaded = MotionAdapter.from_pretrained(tmp_path, torch_dtype=torch.float64)
    state = adapter.state_dict()
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("config", ["SD 2", "classes"])
def test_our_weights_in_unet3d_and_back(config):
    changes = {"num_class_embeds": None} if config == "classes" else {}
    unet = randomize_temporal(inflate(image_unet(config, **changes), "modelscope"))
    kwargs = {name: value for name, value in inputs(config).items() if name != "class_labels"}
    converted = to_unet3d(unet)
    expected = predict(unet, kwargs)
    torch.testing.assert_close(predict(converted, kwargs), expected, **CLOSE)
    torch.testing.assert_close(predict(from_unet3d(converted), kwargs), expected, **CLOSE)


def test_their_weights_in_ours():
    torch.manual_seed(4)
    model = UNet3DConditionModel(
        block_out_channels=(32, 64),
        cross_attention_dim=24,
        attention_head_dim=8,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    model = model.double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    kwargs = inputs("SD 1")
    pred = predict(from_unet3d(model), kwargs)
    torch.testing.assert_close(pred, predict(model, kwargs), **CLOSE)


def test_what_their_classes_lack_is_refused():
    lavie = inflate(image_unet("SD 2"), "lavie")
    for convert in (to_motion_adapter, to_motion_model, to_unet3d):
        with pytest.raises(ValueError, match="unet: expected style '.*', got 'lavie'"):
            convert(lavie)
    with pytest.raises(ValueError, match=r"expected one head_dim on all levels, got \[8, 16\]"):
        to_unet3d(inflate(image_unet("SD 1"), "modelscope"))
    with pytest.raises(ValueError, match="UNet3DConditionModel has no transformer_layers_per_bl"):
        to_unet3d(inflate(image_unet("SDXL"), "modelscope"))
    with pytest.raises(ValueError, match="UNet3DConditionModel has no num_class_embeds, got 3"):
        to_unet3d(inflate(image_unet("classes"), "modelscope"))
    options = {"block_out_channels": (32, 64), "motion_max_seq_length": 6}
    pia = MotionAdapter(**options, conv_in_channels=9)
    with pytest.raises(ValueError, match="expected no conv_in of its own, got 9 channels"):
        inflate_with_motion_adapter(image_unet("SD 2"), pia)
    uneven = MotionAdapter(**options, motion_num_attention_heads=(2, 4))
    message = r"adapter: expected the same num_heads on all levels, got \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        inflate_with_motion_adapter(image_unet("SD 2"), uneven)


def test_weights_that_do_not_fit_are_refused_by_name():
    unet = inflate(image_unet("SD 2"), "animatediff", num_heads=4, use_mid_block=False)
    adapter = MotionAdapter(block_out_channels=(32, 64), motion_num_attention_heads=4)
    with pytest.raises(RuntimeError, match="mid_block.motion_modules.0"):
        load_motion_adapter(unet, adapter)
