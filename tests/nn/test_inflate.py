"""Inflation: initially the image model, for every style and configuration; then it learns."""

import copy
import warnings

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel

from course_lib.nn.inflate import InflatedUNet, inflate
from course_lib.nn.temporal import AlphaBlend
from course_lib.nn.temporal_layouts import TEMPORAL_LAYOUTS, insertion_points
from tests.nn.inflated import (
    CONFIGS,
    STYLE_KWARGS,
    apply_per_frame,
    assert_same,
    image_unet,
    inputs,
    make,
    predict,
    randomize_temporal,
)

ALL = [(style, config) for style in TEMPORAL_LAYOUTS for config in CONFIGS]


@pytest.mark.parametrize(("style", "config"), ALL)
def test_initially_it_is_the_image_model_frame_by_frame(style, config):
    image, kwargs = image_unet(config), inputs(config)
    unet = inflate(image, style, **STYLE_KWARGS.get(style, {}))
    expected = apply_per_frame(image, kwargs)
    assert_same(predict(unet, kwargs), expected)
    assert (predict(randomize_temporal(unet), kwargs) - expected).abs().max() > 1e-2
    # The image model that it was made of is unchanged
    assert_same(apply_per_frame(image, kwargs), expected, atol=0)


@pytest.mark.parametrize(("style", "config"), ALL)
def test_after_two_steps_all_temporal_layers_have_moved_and_no_frozen_weight_has(style, config):
    # Two channels per norm group: with one, a bias before the norm would have no effect
    unet, kwargs = make(style, config, block_out_channels=(64, 128)), inputs(config)
    unet.spatial.requires_grad_(False)
    before = copy.deepcopy(unet.state_dict())
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (unet(**kwargs).sample - kwargs["sample"].flip(2)).square().mean().backward()
        optimizer.step()
    after = unet.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    moved = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-13}
    frozen = [name for name in after if name.startswith("spatial.")]
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert all(parameter.grad is None for parameter in unet.spatial.parameters())
    assert moved == {f"temporal.{name}" for name, _ in unet.temporal.named_parameters()}


@pytest.mark.parametrize(("style", "config"), ALL)
def test_frames_depend_on_each_other_in_both_directions(style, config):
    unet, kwargs = randomize_temporal(make(style, config)), inputs(config)
    for changed, affected in ((0, 3), (3, 0)):
        sample = kwargs["sample"].clone()
        sample[:, :, changed] += 1
        difference = predict(unet, kwargs, sample=sample) - predict(unet, kwargs)
        assert difference[:, :, affected].abs().max() > 1e-6


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_a_clip_may_have_one_frame_or_many_and_odd_sizes(style):
    unet = randomize_temporal(make(style, "SD 2"))
    for f, size in ((1, 8), (7, 8), (3, 10)):
        kwargs = inputs("SD 2", f=f, size=size)
        assert predict(unet, kwargs).shape == kwargs["sample"].shape


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_clips_do_not_mix(style):
    unet, kwargs = randomize_temporal(make(style, "SD 1")), inputs("SD 1", b=3)
    row = {name: value[1:2] for name, value in kwargs.items()}
    assert_same(predict(unet, kwargs)[1:2], predict(unet, row))


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_the_image_model_inside_may_be_called_by_itself(style):
    image, kwargs = image_unet("SD 2"), inputs("SD 2")
    unet = randomize_temporal(inflate(image, style, **STYLE_KWARGS.get(style, {})))
    expected = apply_per_frame(image, kwargs)
    for _ in range(2):  # before any forward pass of the video model, and after one
        assert_same(apply_per_frame(unet.spatial, kwargs), expected, atol=0)
        predict(unet, kwargs)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_a_forward_pass_inside_another_one_changes_nothing(style):
    unet, kwargs = randomize_temporal(make(style, "SD 1")), inputs("SD 1")
    other = inputs("SD 1", b=1, f=2, seed=3)
    expected, results = [predict(unet, x) for x in (kwargs, other)], []

    def nested(module, args, output):
        hook.remove()
        results.append(predict(unet, other))

    hook = unet.spatial.mid_block.register_forward_hook(nested)
    results.append(predict(unet, kwargs))
    assert torch.equal(results[0], expected[1]) and torch.equal(results[1], expected[0])


def test_alpha_starts_at_a_half_and_learns():
    unet, kwargs = make("video-ldm", "SD 1"), inputs("SD 1")
    blends = [layer for layer in unet.modules() if isinstance(layer, AlphaBlend)]
    assert len(blends) == len(unet.temporal_layers)
    assert all(layer.alpha.item() == 0.5 for layer in blends)
    unet.spatial.requires_grad_(False)
    optimizer = torch.optim.SGD(unet.temporal.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (unet(**kwargs).sample - kwargs["sample"].flip(2)).square().sum().backward()
        gradients = torch.stack([layer.mix_factor.grad.abs() for layer in blends])
        assert (gradients.max() == 0) if step == 0 else (gradients.min() > 0)
        optimizer.step()


def test_where_temporal_layers_are_inserted():
    unets = {style: make(style, "SD 1") for style in TEMPORAL_LAYOUTS}
    names = {style: set(unet.temporal_layers) for style, unet in unets.items()}
    resnets = {name for name in names["modelscope"] if "resnets" in name}
    attentions = {name for name in names["modelscope"] if "attentions" in name}
    assert names["modelscope"] == {"conv_in"} | resnets | attentions
    assert len(resnets) == 2 + 2 + 2 + 3 + 3 and len(attentions) == 2 + 1 + 3
    assert names["video-ldm"] == resnets | attentions
    without_attention = {x for x in resnets if x.startswith(("down_blocks.1", "up_blocks.0"))}
    assert names["animatediff"] == attentions | without_attention
    assert names["lavie"] == {f"{name}.transformer_blocks.0" for name in attentions}
    without = inflate(image_unet("SD 1"), "animatediff", num_heads=4, use_mid_block=False)
    assert names["animatediff"] - set(without.temporal_layers) == {"mid_block.attentions.0"}
    for unet in unets.values():  # temporal tensors are named like the layers that they follow
        keys = [
            f"{name}.{key}" for name, x in unet.temporal_layers.items() for key in x.state_dict()
        ]
        assert list(unet.temporal.state_dict()) == keys


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_saving_and_loading(style, tmp_path):
    unet, kwargs = randomize_temporal(make(style, "SD 2")), inputs("SD 2")
    unet.save_pretrained(tmp_path)
    loaded = InflatedUNet.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert_same(predict(loaded, kwargs), predict(unet, kwargs))


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_a_copy_is_its_own_network(style):
    unet, kwargs = randomize_temporal(make(style, "SD 1")), inputs("SD 1")
    before, other = predict(unet, kwargs), copy.deepcopy(unet)
    torch.testing.assert_close(predict(other, kwargs), before)
    randomize_temporal(other, seed=2)
    assert torch.equal(predict(unet, kwargs), before)
    assert not torch.allclose(predict(other, kwargs), before)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_gradient_checkpointing_changes_nothing_even_after_another_forward_pass(style):
    options = dict(STYLE_KWARGS.get(style, {}))
    if style == "video-ldm":
        options["temporal_cross_attention_dim"] = 24
    unet = randomize_temporal(inflate(image_unet("SD 1"), style, **options)).train()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    long, short, results = inputs("SD 1"), inputs("SD 1", f=2, seed=1), []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        preds = unet(**long).sample, unet(**short).sample
        (preds[0].square().sum() + preds[1].square().sum()).backward()
        gradients = [parameter.grad for parameter in unet.temporal.parameters()]
        results.append([*(pred.detach() for pred in preds), *gradients])
    for expected, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(expected, recomputed)


@pytest.mark.parametrize("part", ["temporal", "spatial"])
@pytest.mark.parametrize("style", ["modelscope", "animatediff", "lavie"])
def test_lora_attaches_by_name(style, part):
    unet, kwargs = make(style, "SD 1"), inputs("SD 1")
    linear = "to_qkv" if style == "lavie" and part == "temporal" else "to_q"
    modules = rf"{part}\..*\.{linear}"
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
    adapted = {name for name, _ in unet.named_parameters() if "lora" in name}
    assert adapted and all(name.startswith(f"{part}.") for name in adapted)
    if part == "spatial":
        plain = predict(make(style, "SD 1"), kwargs)
        assert not torch.allclose(predict(unet.double(), kwargs), plain)


def test_the_part_before_the_first_temporal_layer_needs_no_backward_pass():
    unet, kwargs = make("lavie", "SD 1"), inputs("SD 1")
    unet.spatial.requires_grad_(False)
    requires_grad = {}
    for name in ("down_blocks.0.resnets.0", "up_blocks.1.resnets.2"):
        unet.spatial.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: requires_grad.update({name: out.requires_grad})
        )
    unet(**kwargs)
    assert requires_grad == {"down_blocks.0.resnets.0": False, "up_blocks.1.resnets.2": True}


def test_dtype_and_mode_are_those_of_the_image_model():
    unet = inflate(image_unet("SD 1").to(torch.bfloat16).train(), "lavie")
    assert unet.dtype == torch.bfloat16 and unet.training
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}


# Errors


def test_unsupported_blocks_are_named():
    unsupported = UNet2DConditionModel(
        block_out_channels=(32, 64),
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    with pytest.raises(ValueError, match="down_blocks.1 is a AttnDownBlock2D"):
        inflate(unsupported)
    dual = image_unet("SD 1", dual_cross_attention=True, cross_attention_dim=24)
    with pytest.raises(ValueError, match=r"down_blocks.0.attentions.0 is a DualTransformer2DModel"):
        list(insertion_points(dual))


def test_bad_arguments_are_refused():
    unet, kwargs = make("animatediff", "SD 1"), inputs("SD 1")
    text = kwargs["encoder_hidden_states"]
    with pytest.raises(ValueError, match="style: expected one of video-ldm, .*; got 'svd'"):
        inflate(image_unet("SD 1"), "svd")
    message = r"sample: expected \(b, 4, f, h, w\), got \(2, 3, 4, 8, 8\)"
    with pytest.raises(ValueError, match=message):
        unet(**kwargs | {"sample": kwargs["sample"][:, :3]})
    three_frames = text[:, None].expand(-1, 3, -1, -1)
    with pytest.raises(ValueError, match="encoder_hidden_states: expected"):
        unet(**kwargs | {"encoder_hidden_states": three_frames})
    wide = torch.cat([text] * 2, dim=-1)  # not cut off, since no layer takes the rest
    message = r"encoder_hidden_states: expected \(2, l, 24\).*, got \(2, 7, 48\)"
    with pytest.raises(ValueError, match=message):
        unet(**kwargs | {"encoder_hidden_states": wide})
    message = "temporal_cross_attention_dim: expected at least the image model's 24, got 20"
    with pytest.raises(ValueError, match=message):
        inflate(image_unet("SD 1"), "video-ldm", head_dim=8, temporal_cross_attention_dim=20)
    with pytest.raises(ValueError, match="video: expected at most 8 frames"):
        unet(**inputs("SD 1", f=9))
    for wrong in (
        [[True, False, False, False]] * 2,
        [[False] * 3 + [True], [False] * 2 + [True] * 2],
    ):
        with pytest.raises(ValueError, match="is_image: must mark the same number of trailing"):
            unet(**kwargs, is_image=torch.tensor(wrong))
    with pytest.raises(ValueError, match="is_image: expected video frames before the images"):
        unet(**kwargs, is_image=torch.ones(2, 4, dtype=torch.bool))
    predict(unet, kwargs)  # a failed call leaves nothing behind


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("video-ldm", "SD 1")(**inputs("SD 1"))
