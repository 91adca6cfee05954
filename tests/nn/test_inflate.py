"""Inflation: at first the image model, for every style and shape; then all of it learns, and pictures stay alone."""

import copy
import warnings

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel

from course_lib.nn.inflate import InflatedUNet, inflate
from course_lib.nn.temporal_layouts import STYLES, places
from course_lib.nn.temporal import Blend
from tests.nn.inflated import SHAPES, awake, frame_by_frame, image_unet, inputs

OPTIONS = {"video-ldm": {"head_width": 8}, "animatediff": {"heads": 4, "frames": 8}}
ALL = [(style, shape) for style in STYLES for shape in SHAPES]


def make(style, shape, **changes):
    return inflate(image_unet(shape, **changes), style, **OPTIONS.get(style, {}))


def run(unet, given, **more):
    with torch.no_grad():
        return unet(**given | more).sample


@pytest.mark.parametrize(("style", "shape"), ALL)
def test_at_first_it_is_the_image_model_frame_by_frame(style, shape):
    image, given = image_unet(shape), inputs(shape)
    unet = inflate(image, style, **OPTIONS.get(style, {}))
    expected = frame_by_frame(image, given)
    torch.testing.assert_close(run(unet, given), expected, rtol=0, atol=1e-12)
    changed = run(awake(unet), given)
    assert (changed - expected).abs().max() > 1e-2
    # Not even awake does it touch what it was made of
    torch.testing.assert_close(frame_by_frame(image, given), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("style", "shape"), ALL)
def test_after_two_steps_all_layers_over_time_have_moved_and_no_frozen_weight_has(style, shape):
    # Two channels in a group: alone in its group, a channel's bias before a norm would make no difference
    unet, given = make(style, shape, block_out_channels=(64, 128)), inputs(shape)
    unet.spatial.requires_grad_(False)
    before = copy.deepcopy(unet.state_dict())
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (unet(**given).sample - given["sample"].flip(2)).square().mean().backward()
        optimizer.step()
    after = unet.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    moved = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-13}
    assert all(
        torch.equal(value, before[name])
        for name, value in after.items()
        if name.startswith("spatial.")
    )
    assert all(parameter.grad is None for parameter in unet.spatial.parameters())
    assert moved == {f"temporal.{name}" for name, _ in unet.temporal.named_parameters()}


@pytest.mark.parametrize(("style", "shape"), ALL)
def test_frames_see_each_other_in_both_directions(style, shape):
    unet, given = awake(make(style, shape)), inputs(shape)
    for changed, seen in ((0, 3), (3, 0)):
        other = given["sample"].clone()
        other[:, :, changed] += 1
        difference = run(unet, given | {"sample": other}) - run(unet, given)
        assert difference[:, :, seen].abs().max() > 1e-6


@pytest.mark.parametrize(("style", "shape"), ALL)
def test_pictures_of_joint_training_do_not_leak(style, shape):
    unet, given = awake(make(style, shape)), inputs(shape, f=5)
    alone = torch.tensor([[False, False, False, True, True]] * 2)
    together = run(unet, given, alone=alone)
    for frame in (3, 4):
        other = given["sample"].clone()
        other[:, :, frame] += 3
        difference = (
            (run(unet, given | {"sample": other}, alone=alone) - together)
            .abs()
            .amax(dim=(0, 1, 3, 4))
        )
        assert difference[frame] > 1e-3
        assert difference[[k for k in range(5) if k != frame]].max() == 0
    clip = run(unet, given | {"sample": given["sample"][:, :, :3]})
    torch.testing.assert_close(together[:, :, :3], clip, rtol=0, atol=1e-12)
    # To ModelScope a picture is a clip of one frame; the others show it to the image model only
    for frame in (3, 4):
        picture = given | {"sample": given["sample"][:, :, [frame]]}
        expected = run(unet, picture, temporal_scale=1.0 if style == "modelscope" else 0.0)
        torch.testing.assert_close(together[:, :, [frame]], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_a_clip_may_have_one_frame_or_many_and_odd_sizes(style):
    unet = awake(make(style, "SD 2"))
    for f, size in ((1, 8), (7, 8), (3, 10)):
        given = inputs("SD 2", f=f, size=size)
        assert run(unet, given).shape == given["sample"].shape


@pytest.mark.parametrize("style", STYLES)
def test_clips_do_not_mix(style):
    unet, given = awake(make(style, "SD 1")), inputs("SD 1", b=3)
    one = {name: value[1:2] for name, value in given.items()}
    torch.testing.assert_close(run(unet, given)[1:2], run(unet, one), rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_frames_may_have_texts_of_their_own(style):
    unet, given = awake(make(style, "SD 1")), inputs("SD 1")
    text = given["encoder_hidden_states"]
    each = text[:, None].expand(-1, 4, -1, -1)
    torch.testing.assert_close(run(unet, given), run(unet, given | {"encoder_hidden_states": each}))
    other = each.clone()
    other[:, 2] += 1
    quiet = inflate(
        image_unet("SD 1"), style, **OPTIONS.get(style, {})
    )  # no layer over time to carry it on
    difference = run(quiet, given) - run(quiet, given | {"encoder_hidden_states": other})
    assert difference[:, :, 2].abs().max() > 1e-3
    assert difference[:, :, [0, 1, 3]].abs().max() < 1e-12


def test_layers_over_time_may_read_a_wider_text():
    image, given = image_unet("SD 1"), inputs("SD 1")
    unet = inflate(image, "video-ldm", head_width=8, text_width=30)
    words = torch.randn(2, 7, 6, dtype=torch.float64)
    text = torch.cat([given["encoder_hidden_states"], words], dim=-1)
    torch.testing.assert_close(
        run(unet, given | {"encoder_hidden_states": text}),
        frame_by_frame(image, given),
        rtol=0,
        atol=1e-12,
    )
    awake(unet)
    other = torch.cat([given["encoder_hidden_states"], words + 1], dim=-1)
    difference = run(unet, given | {"encoder_hidden_states": text}) - run(
        unet, given | {"encoder_hidden_states": other}
    )
    assert difference.abs().max() > 1e-4


def test_what_is_known_beforehand_is_shown_beside_the_noise():
    image, given = image_unet("SD 1"), inputs("SD 1", f=3)
    unet = inflate(image, "video-ldm", head_width=8, extra_channels=5)
    extra = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    expected = frame_by_frame(image, given)
    torch.testing.assert_close(run(unet, given, extra=extra), expected, rtol=0, atol=1e-12)
    alone = torch.tensor([[False, False, True]] * 2)
    told = run(awake(unet), given, extra=extra, alone=alone)
    other = extra.clone()
    other[:, :, 2] += 1  # a picture of its own is told nothing
    assert torch.equal(run(unet, given, extra=other, alone=alone), told)
    other[:, :, 1] += 1
    assert (run(unet, given, extra=other, alone=alone) - told)[:, :, 0].abs().max() > 1e-4
    for wrong in (None, extra[:, :4]):
        with pytest.raises(ValueError, match=r"extra: expected \(2, 5, 3, 8, 8\), got"):
            unet(**given, extra=wrong)
    with pytest.raises(ValueError, match="extra: expected none, got"):
        make("video-ldm", "SD 1")(**given, extra=extra)


@pytest.mark.parametrize("style", STYLES)
def test_frames_may_be_told_where_in_time_they_are(style):
    unet, given = awake(make(style, "SD 2")), inputs("SD 2")
    index = torch.arange(4.0).expand(2, -1)
    if style in ("modelscope", "animatediff"):
        with pytest.raises(
            ValueError, match=f"frame_index: expected none, no layer of '{style}' reads it; got"
        ):
            run(unet, given, frame_index=index)
        return
    expected = run(unet, given)
    torch.testing.assert_close(run(unet, given, frame_index=index), expected, rtol=0, atol=1e-12)
    found = run(unet, given, frame_index=torch.stack([index[0], index[1] / 4]))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    assert (found[1] - expected[1]).abs().max() > 1e-3
    # Pictures of joint training are nowhere in time
    alone = torch.tensor([[False, False, False, True]]).expand(2, -1)
    other = torch.cat([index[:, :3], index[:, 3:] + 7], dim=1)
    first, second = (run(unet, given, alone=alone, frame_index=some) for some in (index, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"frame_index: expected \(2, 4\), got \(2, 3\)"):
        run(unet, given, frame_index=index[:, :3])


def test_the_scale_is_a_dial_from_the_image_model_to_the_video_model():
    image, given = image_unet("SD 1"), inputs("SD 1")
    for style in STYLES:
        unet = awake(inflate(image, style, **OPTIONS.get(style, {})))
        torch.testing.assert_close(
            run(unet, given, temporal_scale=0), frame_by_frame(image, given), rtol=0, atol=1e-12
        )
        whole, half = run(unet, given), run(unet, given, temporal_scale=0.5)
        assert not torch.allclose(half, whole)
        torch.testing.assert_close(
            run(unet, given, temporal_scale=0.9999999), whole, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("style", STYLES)
def test_the_image_model_inside_may_be_called_itself(style):
    image, given = image_unet("SD 2"), inputs("SD 2")
    unet, expected = (
        awake(inflate(image, style, **OPTIONS.get(style, {}))),
        frame_by_frame(image, given),
    )
    for _ in range(2):  # before any call of the whole, and after one
        torch.testing.assert_close(frame_by_frame(unet.spatial, given), expected, rtol=0, atol=0)
        run(unet, given)


def test_alpha_is_a_half_at_first_and_learns():
    unet, given = make("video-ldm", "SD 1"), inputs("SD 1")
    blends = [layer for layer in unet.modules() if isinstance(layer, Blend)]
    assert len(blends) == len(unet.temporal)
    assert all(layer.alpha.item() == 0.5 for layer in blends)
    unet.spatial.requires_grad_(False)
    optimizer = torch.optim.SGD(unet.temporal.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (unet(**given).sample - given["sample"].flip(2)).square().sum().backward()
        gradients = torch.stack([layer.mix_factor.grad.abs() for layer in blends])
        assert (gradients.max() == 0) if step == 0 else (gradients.min() > 0)
        optimizer.step()


def test_where_layers_hang():
    names = {style: set(make(style, "SD 1").temporal) for style in STYLES}
    resnets, attentions = (
        {k for k in names["modelscope"] if kind in k} for kind in ("resnets", "attentions")
    )
    assert names["modelscope"] == {"conv_in"} | resnets | attentions
    assert len(resnets) == 2 + 2 + 2 + 3 + 3 and len(attentions) == 2 + 1 + 3
    assert names["video-ldm"] == resnets | attentions
    bare = {k for k in resnets if k.startswith(("down_blocks-1", "up_blocks-0"))}
    assert names["animatediff"] == attentions | bare
    assert names["lavie"] == {f"{k}-transformer_blocks-0" for k in attentions}
    without = inflate(image_unet("SD 1"), "animatediff", heads=4, middle=False)
    assert names["animatediff"] - set(without.temporal) == {"mid_block-attentions-0"}


@pytest.mark.parametrize("style", STYLES)
def test_a_folder_keeps_all_of_it(style, tmp_path):
    unet, given = awake(make(style, "SD 2")), inputs("SD 2")
    unet.save_pretrained(tmp_path)
    again = InflatedUNet.from_pretrained(tmp_path, torch_dtype=torch.float64)
    torch.testing.assert_close(run(again, given), run(unet, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_a_copy_is_its_own_network(style):
    unet, given = awake(make(style, "SD 1")), inputs("SD 1")
    before, other = run(unet, given), copy.deepcopy(unet)
    torch.testing.assert_close(run(other, given), before)
    awake(other, seed=2)
    assert torch.equal(run(unet, given), before)
    assert not torch.allclose(run(other, given), before)


@pytest.mark.parametrize("style", STYLES)
def test_checkpointing_gradients_changes_nothing_even_if_another_call_came_between(style):
    options = OPTIONS.get(style, {}) | ({"text_width": 24} if style == "video-ldm" else {})
    unet = awake(inflate(image_unet("SD 1"), style, **options)).train()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    long, short, found = inputs("SD 1"), inputs("SD 1", f=2, seed=1), []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        first, second = unet(**long).sample, unet(**short).sample
        (first.square().sum() + second.square().sum()).backward()
        found.append(
            [first.detach(), second.detach(), *(p.grad for p in unet.temporal.parameters())]
        )
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("part", ["temporal", "spatial"])
@pytest.mark.parametrize("style", ["modelscope", "animatediff", "lavie"])
def test_lora_attaches_by_name(style, part):
    unet, given = make(style, "SD 1"), inputs("SD 1")
    linear = "to_qkv" if style == "lavie" and part == "temporal" else "to_q"
    unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=rf"{part}\..*\.{linear}", init_lora_weights=False)
    )
    adapted = {name for name, _ in unet.named_parameters() if "lora" in name}
    assert adapted and all(name.startswith(f"{part}.") for name in adapted)
    if part == "spatial":
        plain = run(make(style, "SD 1"), given)
        assert not torch.allclose(run(unet.double(), given), plain)


def test_what_lies_before_the_first_layer_over_time_costs_no_backward_pass():
    unet, given = make("lavie", "SD 1"), inputs("SD 1")
    unet.spatial.requires_grad_(False)
    seen = {}
    for name in ("down_blocks.0.resnets.0", "up_blocks.1.resnets.2"):
        unet.spatial.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.requires_grad})
        )
    unet(**given)
    assert seen == {"down_blocks.0.resnets.0": False, "up_blocks.1.resnets.2": True}


def test_one_timestep_may_do_for_all():
    unet, given = make("video-ldm", "SD 1"), inputs("SD 1")
    expected = run(unet, given, timestep=torch.tensor([7, 7]))
    for timestep in (7, 7.0, torch.tensor(7)):
        torch.testing.assert_close(run(unet, given, timestep=timestep), expected)
    with torch.no_grad():
        assert torch.equal(unet(**given, return_dict=False)[0], run(unet, given))


def test_residuals_of_a_controlnet_are_added():
    unet, given = make("video-ldm", "SD 1"), inputs("SD 1")
    shapes = [(32, 8)] * 3 + [(32, 4)] + [(64, 4)] * 2
    residuals = tuple(torch.ones(8, c, n, n, dtype=torch.float64) for c, n in shapes)
    middle = torch.ones(8, 64, 4, 4, dtype=torch.float64)
    told = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": middle}
    flat = given["sample"].transpose(1, 2).flatten(0, 1)
    text = given["encoder_hidden_states"].repeat_interleave(4, dim=0)
    with torch.no_grad():
        expected = image_unet("SD 1")(
            flat, given["timestep"].repeat_interleave(4), text, **told
        ).sample
    found = run(unet, given, **told).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_dtype_mode_and_place_are_those_of_the_image_model():
    unet = inflate(image_unet("SD 1").to(torch.bfloat16).train(), "lavie")
    assert unet.dtype == torch.bfloat16 and unet.training
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}


# What is refused


def test_blocks_that_are_not_known_are_named():
    odd = UNet2DConditionModel(
        block_out_channels=(32, 64), cross_attention_dim=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="down_blocks.1 is a AttnDownBlock2D"):
        inflate(odd)
    two = image_unet("SD 1", dual_cross_attention=True, cross_attention_dim=24)
    with pytest.raises(ValueError, match=r"down_blocks.0.attentions.0 is a DualTransformer2DModel"):
        list(places(two))


def test_bad_input_is_refused():
    unet, given = make("animatediff", "SD 1"), inputs("SD 1")
    with pytest.raises(ValueError, match="style: expected one of video-ldm, .*; got 'svd'"):
        inflate(image_unet("SD 1"), "svd")
    with pytest.raises(
        ValueError, match=r"sample: expected \(b, 4, f, h, w\), got \(2, 3, 4, 8, 8\)"
    ):
        unet(**given | {"sample": given["sample"][:, :3]})
    with pytest.raises(ValueError, match="encoder_hidden_states: expected"):
        unet(
            **given
            | {
                "encoder_hidden_states": given["encoder_hidden_states"][:, None].expand(
                    -1, 3, -1, -1
                )
            }
        )
    wide = torch.cat(
        [given["encoder_hidden_states"]] * 2, dim=-1
    )  # no layer reads the rest, so it is not cut off
    with pytest.raises(
        ValueError, match=r"encoder_hidden_states: expected \(2, l, 24\).*, got \(2, 7, 48\)"
    ):
        unet(**given | {"encoder_hidden_states": wide})
    with pytest.raises(
        ValueError, match="text_width: expected at least the image model's 24, got 20"
    ):
        inflate(image_unet("SD 1"), "video-ldm", head_width=8, text_width=20)
    with pytest.raises(ValueError, match="video: expected at most 8 frames"):
        unet(**inputs("SD 1", f=9))
    for wrong in (
        [[True, False, False, False]] * 2,
        [[False] * 3 + [True], [False] * 2 + [True] * 2],
    ):
        with pytest.raises(ValueError, match="alone: expected the last frames"):
            unet(**given, alone=torch.tensor(wrong))
    with pytest.raises(ValueError, match="alone: expected frames of a clip"):
        unet(**given, alone=torch.ones(2, 4, dtype=torch.bool))
    run(unet, given)  # a call that was refused leaves nothing behind


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("video-ldm", "SD 1")(**inputs("SD 1"))
