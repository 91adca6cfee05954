"""Conditioning of an inflated U-Net: text, images of joint training, given frames, positions."""

import pytest
import torch

from course_lib.nn.inflate import inflate
from course_lib.nn.temporal_layouts import TEMPORAL_LAYOUTS
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
def test_images_of_joint_training_do_not_leak(style, config):
    unet, kwargs = randomize_temporal(make(style, config)), inputs(config, f=5)
    is_image = torch.tensor([[False, False, False, True, True]] * 2)
    joint = predict(unet, kwargs, is_image=is_image)
    for frame in (3, 4):
        sample = kwargs["sample"].clone()
        sample[:, :, frame] += 3
        difference = (predict(unet, kwargs, sample=sample, is_image=is_image) - joint).abs()
        difference = difference.amax(dim=(0, 1, 3, 4))
        assert difference[frame] > 1e-3
        assert difference[[k for k in range(5) if k != frame]].max() == 0
    clip = predict(unet, kwargs, sample=kwargs["sample"][:, :, :3])
    assert_same(joint[:, :, :3], clip)
    # ModelScope's layers process an image as a clip of one frame; the others skip it
    scale = 1.0 if style == "modelscope" else 0.0
    for frame in (3, 4):
        image = predict(unet, kwargs, sample=kwargs["sample"][:, :, [frame]], temporal_scale=scale)
        assert_same(joint[:, :, [frame]], image)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_frames_may_have_texts_of_their_own(style):
    unet, kwargs = randomize_temporal(make(style, "SD 1")), inputs("SD 1")
    text = kwargs["encoder_hidden_states"][:, None].expand(-1, 4, -1, -1)
    expected = predict(unet, kwargs, encoder_hidden_states=text)
    torch.testing.assert_close(predict(unet, kwargs), expected)
    changed = text.clone()
    changed[:, 2] += 1
    unet = make(style, "SD 1")  # temporal layers are the identity
    difference = predict(unet, kwargs) - predict(unet, kwargs, encoder_hidden_states=changed)
    assert difference[:, :, 2].abs().max() > 1e-3
    assert difference[:, :, [0, 1, 3]].abs().max() < 1e-12


def test_temporal_layers_may_take_larger_text_embeddings():
    image, kwargs = image_unet("SD 1"), inputs("SD 1")
    unet = inflate(image, "video-ldm", head_dim=8, temporal_cross_attention_dim=30)
    more = torch.randn(2, 7, 6, dtype=torch.float64)
    text, changed = (
        torch.cat([kwargs["encoder_hidden_states"], x], dim=-1) for x in (more, more + 1)
    )
    assert unet.text_dim == 30
    expected = apply_per_frame(image, kwargs)
    assert_same(predict(unet, kwargs, encoder_hidden_states=text), expected)
    randomize_temporal(unet)
    preds = [predict(unet, kwargs, encoder_hidden_states=x) for x in (text, changed)]
    assert (preds[0] - preds[1]).abs().max() > 1e-4


def test_conditioning_channels_are_added_to_the_input():
    image, kwargs = image_unet("SD 1"), inputs("SD 1", f=3)
    unet = inflate(image, "video-ldm", head_dim=8, cond_channels=5)
    cond = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    assert_same(predict(unet, kwargs, cond_channels=cond), apply_per_frame(image, kwargs))
    is_image = torch.tensor([[False, False, True]] * 2)
    kwargs["is_image"] = is_image
    expected = predict(randomize_temporal(unet), kwargs, cond_channels=cond)
    changed = cond.clone()
    changed[:, :, 2] += 1  # an image takes no condition
    assert torch.equal(predict(unet, kwargs, cond_channels=changed), expected)
    changed[:, :, 1] += 1
    difference = predict(unet, kwargs, cond_channels=changed) - expected
    assert difference[:, :, 0].abs().max() > 1e-4
    for wrong in (None, cond[:, :4]):
        with pytest.raises(ValueError, match=r"cond_channels: expected \(2, 5, 3, 8, 8\), got"):
            unet(**kwargs, cond_channels=wrong)
    with pytest.raises(ValueError, match="cond_channels: expected None, got"):
        make("video-ldm", "SD 1")(**kwargs, cond_channels=cond)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_frames_may_have_positions_in_time(style):
    unet, kwargs = randomize_temporal(make(style, "SD 2")), inputs("SD 2")
    index = torch.arange(4.0).expand(2, -1)
    if style in ("modelscope", "animatediff"):
        with pytest.raises(ValueError, match=f"frame_index: not supported by style '{style}'"):
            predict(unet, kwargs, frame_index=index)
        return
    expected = predict(unet, kwargs)
    assert_same(predict(unet, kwargs, frame_index=index), expected)
    slow = predict(unet, kwargs, frame_index=torch.stack([index[0], index[1] / 4]))
    assert_same(slow[0], expected[0])
    assert (slow[1] - expected[1]).abs().max() > 1e-3
    # Images of joint training have no position in time
    kwargs["is_image"] = torch.tensor([[False, False, False, True]]).expand(2, -1)
    changed = torch.cat([index[:, :3], index[:, 3:] + 7], dim=1)
    preds = [predict(unet, kwargs, frame_index=x) for x in (index, changed)]
    assert_same(*preds, atol=0)
    with pytest.raises(ValueError, match=r"frame_index: expected \(2, 4\), got \(2, 3\)"):
        predict(unet, kwargs, frame_index=index[:, :3])


def test_accepts_names_the_arguments_with_an_effect():
    image, always = image_unet("SD 1"), {"is_image", "temporal_scale"}
    for style in ("modelscope", "animatediff"):
        assert make(style, "SD 1").accepts == always
    for style in ("video-ldm", "lavie"):
        assert make(style, "SD 1").accepts == always | {"frame_index"}
    expected = always | {"frame_index", "cond_channels"}
    assert inflate(image, "video-ldm", head_dim=8, cond_channels=5).accepts == expected


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_the_scale_leads_from_the_image_model_to_the_video_model(style):
    image, kwargs = image_unet("SD 1"), inputs("SD 1")
    unet = randomize_temporal(inflate(image, style, **STYLE_KWARGS.get(style, {})))
    assert_same(predict(unet, kwargs, temporal_scale=0), apply_per_frame(image, kwargs))
    full, half = predict(unet, kwargs), predict(unet, kwargs, temporal_scale=0.5)
    assert not torch.allclose(half, full)
    assert_same(predict(unet, kwargs, temporal_scale=0.9999999), full, atol=1e-3)


def test_one_timestep_may_do_for_all_clips():
    unet, kwargs = make("video-ldm", "SD 1"), inputs("SD 1")
    expected = predict(unet, kwargs, timestep=torch.tensor([7, 7]))
    for timestep in (7, 7.0, torch.tensor(7)):
        torch.testing.assert_close(predict(unet, kwargs, timestep=timestep), expected)
    with torch.no_grad():
        assert torch.equal(unet(**kwargs, return_dict=False)[0], predict(unet, kwargs))


def test_residuals_of_a_controlnet_are_added():
    unet, kwargs = make("video-ldm", "SD 1"), inputs("SD 1")
    shapes = [(32, 8)] * 3 + [(32, 4)] + [(64, 4)] * 2
    residuals = {
        "down_block_additional_residuals": tuple(
            torch.ones(8, c, n, n, dtype=torch.float64) for c, n in shapes
        ),
        "mid_block_additional_residual": torch.ones(8, 64, 4, 4, dtype=torch.float64),
    }
    frames = kwargs["sample"].transpose(1, 2).flatten(0, 1)
    t, text = (
        kwargs[name].repeat_interleave(4, dim=0) for name in ("timestep", "encoder_hidden_states")
    )
    with torch.no_grad():
        expected = image_unet("SD 1")(frames, t, text, **residuals).sample
    pred = predict(unet, kwargs, **residuals).transpose(1, 2).flatten(0, 1)
    assert_same(pred, expected)


def residuals(unet, b=2, f=4, size=8):
    """What a ControlNet of this U-Net's image model may return."""
    torch.manual_seed(5)
    shapes, n = [(32, size)], size
    for k, block in enumerate(unet.spatial.down_blocks):
        shapes += [((32, 64)[k], n)] * len(block.resnets)
        if block.downsamplers:
            n = (n + 1) // 2
            shapes.append(((32, 64)[k], n))
    down = [torch.randn(b * f, c, n, n, dtype=torch.float64) for c, n in shapes]
    return down, torch.randn(b * f, 64, n, n, dtype=torch.float64)


@pytest.mark.parametrize(("style", "config", "size"), [
    ("video-ldm", "SD 1", 8), ("modelscope", "SD 2", 7), ("animatediff", "SDXL", 8),
    ("lavie", "classes", 6),
])  # fmt: skip
def test_a_missing_part_of_the_residuals_counts_as_zeros(style, config, size):
    unet, kwargs = randomize_temporal(make(style, config)), inputs(config, size=size)
    (down, mid), names = residuals(unet, size=size), ("down_block_additional_residuals",)
    names += ("mid_block_additional_residual",)

    def pred(*parts):
        return predict(unet, kwargs, **dict(zip(names, parts, strict=True)))

    plain, zeros = predict(unet, kwargs), [torch.zeros_like(x) for x in down]
    copies = [x.clone() for x in down]
    assert torch.equal(pred(down, None), pred(down, torch.zeros_like(mid)))
    assert torch.equal(pred(None, mid), pred(zeros, mid))
    assert torch.equal(pred(tuple(down), mid), pred(down, mid))
    assert torch.equal(pred(zeros, None), plain)
    results = [plain, pred(down, None), pred(None, mid), pred(down, mid)]
    for k, first in enumerate(results):
        assert all((first - second).abs().max() > 1e-3 for second in results[k + 1 :])
    assert len(down) == len(copies) and all(map(torch.equal, down, copies))


def test_residuals_that_would_be_broadcast_are_refused():
    unet, kwargs = make("lavie", "SD 1"), inputs("SD 1")
    down, mid = residuals(unet)
    name = "down_block_additional_residuals"
    video = down[1].unflatten(0, (2, 4)).transpose(1, 2)
    for wrong in (down[1][:1], down[1][:4], down[1][..., :1], down[1][:, :1], down[1][0], video):
        message = rf"{name}\[1\]: expected \(8, 32, 8, 8\), \(b f\) c h w, got"
        for rest in ({}, {"mid_block_additional_residual": mid}):
            with pytest.raises(ValueError, match=message):
                unet(**kwargs, **{name: [down[0], wrong, *down[2:]]}, **rest)
    for wrong in ([], down[:-1], [*down, down[-1]]):
        with pytest.raises(ValueError, match=f"{name}: expected {len(down)}, got {len(wrong)}"):
            unet(**kwargs, **{name: wrong})
    for wrong in (mid[:1], mid[:, :1], mid[..., :1, :1], mid[0]):
        with pytest.raises(ValueError, match=r"mid_block_additional_residual: expected \(8, 64, 4"):
            unet(**kwargs, mid_block_additional_residual=wrong)
    with pytest.raises(ValueError, match="mid_block_additional_residual: expected floating point"):
        unet(**kwargs, mid_block_additional_residual=mid.long())
