"""VideoUNet: initially an image network; leaks, sizes, conditioning, saving and loading."""

import pytest
import torch
from torch import nn

from course_lib.nn.attention import TemporalAttention
from course_lib.nn.positions import POSITIONS
from course_lib.nn.unet import VideoUNet
from course_lib.nn.unet_blocks import AttentionPool

SMALL = {"block_out_channels": (16, 24), "attention_levels": (True, True), "head_dim": 8}
ALL_OPTIONS = {
    "cross_attention_dim": 6,
    "frame_embedding": True,
    "coord_embedding": True,
    "fps_embedding": True,
    "noise_aug_embedding": True,
    "cond_channels": 2,
    "refiner_channels": 4,
}


def build(randomize=False, seed=0, **options):
    """A small float64 network; `randomize` replaces the zeros of its last layers."""
    torch.manual_seed(seed)
    unet = VideoUNet(**SMALL | options).double().eval()
    if randomize:
        for layer in temporal_layers(unet):
            nn.init.normal_(layer.to_out.weight, std=0.5)
            nn.init.normal_(layer.to_out.bias, std=0.5)
            if layer.rel_pos_bias is not None:
                nn.init.normal_(layer.rel_pos_bias.embedding)
        zeros = [unet.cond_mlp[-1]]
        zeros += [unet.frame_embed.linear_2] if unet.frame_embed else []
        zeros += [unet.text_pool.to_out] if unet.text_pool else []
        zeros += [unet.refiner.conv_out] if unet.refiner else []
        for layer in zeros:
            nn.init.normal_(layer.weight, std=0.5)
    return unet


def temporal_layers(unet):
    return [layer for layer in unet.modules() if isinstance(layer, TemporalAttention)]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(b=2, f=4, size=8, **changes):
    """Arguments of a network with `ALL_OPTIONS`."""
    return {
        "sample": randn(b, 3, f, size, size),
        "timestep": torch.tensor([10, 500])[:b],
        "encoder_hidden_states": randn(b, 5, 6, seed=1),
        "fps": torch.tensor([8.0, 16.0])[:b],
        "cond_channels": randn(b, 2, f, size, size, seed=2),
        "noise_aug_level": torch.tensor([100, 0])[:b],
    } | changes


def apply_per_frame(unet, kwargs):
    """The network applied to every frame as a clip of one frame."""
    preds = []
    for k in range(kwargs["sample"].shape[2]):
        frame = {name: kwargs[name][:, :, k : k + 1] for name in ("sample", "cond_channels")}
        text = kwargs["encoder_hidden_states"]
        frame["encoder_hidden_states"] = text[:, k] if text.ndim == 4 else text
        preds.append(unet(**kwargs | frame).sample)
    return torch.cat(preds, dim=2)


@pytest.mark.parametrize("temporal_positions", POSITIONS)
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_initially_it_is_an_image_network(temporal_positions, patch_size, training):
    options = {"temporal_positions": temporal_positions, "patch_size": patch_size}
    unet, kwargs = build(**options, **ALL_OPTIONS).train(training), inputs()
    expected = apply_per_frame(unet, kwargs)
    torch.testing.assert_close(unet(**kwargs).sample, expected, atol=1e-12, rtol=1e-12)


def test_trained_it_depends_on_other_frames():
    unet, kwargs = build(randomize=True, **ALL_OPTIONS), inputs()
    assert (unet(**kwargs).sample - apply_per_frame(unet, kwargs)).abs().max() > 1e-2


def test_after_two_steps_every_parameter_has_moved():
    # One step is not enough: before a zero layer only the zero layer has a gradient
    unet, kwargs = build(**ALL_OPTIONS), inputs()
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(2):
        unet(**kwargs).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    unmoved = [name for name, p in unet.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


@pytest.mark.parametrize("temporal_positions", POSITIONS)
def test_images_do_not_leak_into_clips_or_into_each_other(temporal_positions):
    options = {"temporal_positions": temporal_positions, "cross_attention_dim": 6}
    unet, t = build(randomize=True, **options), torch.tensor([10])
    sample, text = randn(1, 3, 6, 8, 8), randn(1, 6, 5, 6, seed=1)
    is_image = torch.tensor([[False, False, True, False, True, True]])
    base = unet(sample, t, text, is_image=is_image).sample
    for k in range(6):
        changed = sample.clone()
        changed[:, :, k] += 1
        difference = (unet(changed, t, text, is_image=is_image).sample - base).abs()
        affected = (difference.amax(dim=(0, 1, 3, 4)) > 0).nonzero().flatten().tolist()
        assert affected == ([k] if is_image[0, k] else [0, 1, 3])


def test_the_mask_reaches_every_temporal_layer():
    levels = {"block_out_channels": (16, 24, 16), "attention_levels": (True, False, True)}
    unet, masks = build(randomize=True, **levels, layers_per_block=2), []
    for layer in temporal_layers(unet):
        layer.register_forward_hook(lambda module, args, output: masks.append(args[1]))
    is_image = torch.tensor([[False, True, True]])
    unet(randn(1, 3, 3, 8, 8), torch.tensor([1]), is_image=is_image)
    assert len(masks) == len(temporal_layers(unet)) == 9  # 2 levels with 2 + 2, mid block
    expected = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    assert all(torch.equal(mask[0], expected) for mask in masks)


def test_appended_images_leave_the_clip_unchanged_and_are_clips_of_one_frame():
    unet, kwargs = build(randomize=True, **ALL_OPTIONS), inputs(f=5)
    kwargs["encoder_hidden_states"] = randn(2, 5, 5, 6, seed=4)  # a text per frame
    is_image = torch.tensor([[False, False, False, True, True]] * 2)
    pred = unet(**kwargs, is_image=is_image).sample
    clip = kwargs | {name: kwargs[name][:, :, :3] for name in ("sample", "cond_channels")}
    clip["encoder_hidden_states"] = kwargs["encoder_hidden_states"][:, :3]
    torch.testing.assert_close(pred[:, :, :3], unet(**clip).sample)
    torch.testing.assert_close(pred[:, :, 3:], apply_per_frame(unet, kwargs)[:, :, 3:])


def test_only_a_frame_embedding_tells_equal_frames_apart():
    """Relative distances cannot: a softmax over equal values gives that value, for any weights."""
    same, t = randn(1, 3, 1, 8, 8).expand(-1, -1, 4, -1, -1), torch.tensor([5])
    for frame_embedding in (False, True):
        pred = build(randomize=True, frame_embedding=frame_embedding)(same, t).sample
        assert ((pred - pred[:, :, :1]).abs().max() > 1e-3) == frame_embedding
    is_image = torch.ones(1, 4, dtype=torch.bool)
    pred = build(randomize=True, frame_embedding=True)(same, t, is_image=is_image).sample
    torch.testing.assert_close(pred, pred[:, :, :1].expand_as(pred))  # an image has no index


def test_frames_are_numbered_from_0_unless_an_index_is_given():
    unet = build(randomize=True, temporal_positions="none", frame_embedding=True)
    x, t = randn(2, 3, 5, 8, 8), torch.tensor([5, 9])
    for layer in temporal_layers(unet):  # so that no frame depends on the others
        nn.init.zeros_(layer.to_out.weight)
    pred = unet(x, t).sample
    torch.testing.assert_close(unet(x, t, frame_index=torch.arange(5).expand(2, -1)).sample, pred)
    index = torch.tensor([[0, 3], [1, 4]])
    rows = torch.arange(2)[:, None]
    sparse = x.transpose(1, 2)[rows, index].transpose(1, 2)
    expected = pred.transpose(1, 2)[rows, index].transpose(1, 2)
    torch.testing.assert_close(unet(sparse, t, frame_index=index).sample, expected)
    assert (unet(sparse, t).sample - expected).abs().max() > 1e-3
    single = unet(x[:, :, 3:4], t, frame_index=torch.full((2, 1), 3)).sample
    torch.testing.assert_close(single, pred[:, :, 3:4])


def test_only_with_coordinates_pixels_of_a_uniform_frame_differ_far_from_the_border():
    """Convolutions see a border only from as far as they reach."""
    sample, t = torch.ones(1, 3, 1, 64, 64, dtype=torch.float64), torch.tensor([5])
    level = {"block_out_channels": (16,), "attention_levels": (False,)}
    for coord_embedding in (False, True):
        unet = build(**level, coord_embedding=coord_embedding)
        middle = unet(sample, t).sample[0, :, 0, 24:40, 24:40].flatten(1)
        assert ((middle - middle[:, :1]).abs().max() > 1e-3) == coord_embedding


def test_a_refiner_initially_adds_nothing_and_then_crosses_the_borders_of_patches():
    level = {"patch_size": 4, "block_out_channels": (16,), "attention_levels": (False,)}
    plain, unet = (build(**level, refiner_channels=channels) for channels in (None, 8))
    unet.load_state_dict(unet.state_dict() | plain.state_dict())
    x, t = randn(1, 3, 2, 8, 8), torch.tensor([10])
    pred = plain(x, t).sample
    assert torch.equal(unet(x, t).sample, pred)

    nn.init.normal_(unet.refiner.conv_out.weight)
    changed = x.clone()
    changed[0, :, 0, 4, 4] += 1  # the first pixel of the last patch
    frames, changed_frames, pred = (v.transpose(1, 2).flatten(0, 1) for v in (x, changed, pred))
    temb = torch.randn(2, 32, dtype=torch.float64)
    difference = unet.refiner(changed_frames, pred, temb) - unet.refiner(frames, pred, temb)
    difference = difference.abs().amax(dim=1)  # f h w
    # Three convolutions of 3 x 3 reach three pixels far
    assert difference[0, 1:8, 1:8].min() > 0
    difference[0, 1:8, 1:8] = 0
    assert difference.max() == 0


def test_pooled_text_does_not_depend_on_the_order_of_tokens():
    torch.manual_seed(0)
    pool, text = AttentionPool(6, 32, 8).double(), randn(3, 5, 6)
    assert not pool(text).any()  # initially zero
    nn.init.normal_(pool.to_out.weight)
    pooled = pool(text)
    assert pooled.shape == (3, 32)
    torch.testing.assert_close(pool(text[:, torch.tensor([4, 2, 0, 1, 3])]), pooled)
    torch.testing.assert_close(pool(text.repeat(1, 2, 1)), pooled)  # weights sum to 1
    assert (pool(text.flip(0)) - pooled).abs().max() > 1e-3


def test_only_without_positions_a_shuffled_clip_gives_the_shuffled_result():
    order, x, t = torch.tensor([2, 0, 3, 1]), randn(1, 3, 4, 8, 8), torch.tensor([5])
    for positions in POSITIONS:
        unet = build(randomize=True, temporal_positions=positions)
        difference = (unet(x[:, :, order], t).sample - unet(x, t).sample[:, :, order]).abs().max()
        assert difference < 1e-12 if positions == "none" else difference > 1e-3


@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (3, 6, 10), (7, 14, 4), (2, 5, 7)])
def test_any_number_of_frames_and_any_size(frames, height, width):
    levels = {"block_out_channels": (8, 8, 8), "attention_levels": (False, True, True)}
    x = randn(1, 3, frames, height, width)
    assert build(randomize=True, **levels)(x, torch.tensor([1])).sample.shape == x.shape


def test_one_text_per_clip_equals_the_same_text_for_each_frame():
    unet, kwargs = build(randomize=True, **ALL_OPTIONS), inputs()
    text = kwargs["encoder_hidden_states"][:, None].expand(-1, 4, -1, -1)
    expected = unet(**kwargs | {"encoder_hidden_states": text}).sample
    torch.testing.assert_close(unet(**kwargs).sample, expected)


@pytest.mark.parametrize(
    "name", ["encoder_hidden_states", "fps", "cond_channels", "noise_aug_level", "timestep"]
)
def test_every_condition_acts_on_its_own_clip(name):
    unet, kwargs = build(**ALL_OPTIONS), inputs()
    factor = torch.tensor([1, 2]).view(-1, *[1] * (kwargs[name].ndim - 1))
    changed = kwargs | {name: kwargs[name] * factor}
    if name == "noise_aug_level":
        changed[name] = torch.tensor([100, 50])
    difference = (unet(**changed).sample - unet(**kwargs).sample).abs().amax(dim=(1, 2, 3, 4))
    assert difference[0] == 0 and difference[1] > 1e-6


def test_clips_of_a_batch_do_not_mix():
    unet, kwargs = build(randomize=True, **ALL_OPTIONS), inputs()
    rows = [{name: value[k : k + 1] for name, value in kwargs.items()} for k in range(2)]
    expected = torch.cat([unet(**row).sample for row in rows])
    torch.testing.assert_close(unet(**kwargs).sample, expected)


def test_out_channels_may_differ():
    x = randn(1, 3, 2, 8, 8)
    assert build(out_channels=6)(x, torch.tensor([1])).sample.shape == (1, 6, 2, 8, 8)


def test_accepts_names_the_arguments_of_the_configuration():
    assert build().accepts == {"is_image"}
    video_arguments = {"fps", "frame_index", "cond_channels", "noise_aug_level"}
    assert build(**ALL_OPTIONS).accepts == {"is_image"} | video_arguments


def test_saving_and_loading(tmp_path):
    unet, kwargs = build(randomize=True, **ALL_OPTIONS), inputs()
    unet.save_pretrained(tmp_path)
    loaded = VideoUNet.from_pretrained(tmp_path).double()  # from_pretrained reads float32
    torch.testing.assert_close(loaded(**kwargs).sample, unet.float().double()(**kwargs).sample)
    assert loaded.config.block_out_channels == [16, 24] and loaded.config.cross_attention_dim == 6


def test_no_module_has_the_name_of_a_configuration_entry():
    """diffusers would return the entry in its place."""
    unet = build(**ALL_OPTIONS)
    assert not {name for name, _ in unet.named_children()} & set(unet.config)


def test_gradient_checkpointing_changes_no_gradient():
    gradients, is_image = [], torch.tensor([[False, False, False, True]] * 2)
    for checkpointing in (False, True):
        unet, kwargs = build(randomize=True, **ALL_OPTIONS).train(), inputs()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**kwargs, is_image=is_image).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    assert unet.is_gradient_checkpointing
    for gradient, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, recomputed)


TEXT_SHAPE = r"encoder_hidden_states: expected \(2, l, 6\) or \(2, 4, l, 6\), got "


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"sample": randn(2, 4, 4, 8, 8)},
            r"sample: expected 3 channels and frames, got \(2, 4, 4, 8, 8\)",
        ),
        (
            {"sample": randn(2, 3, 4, 9, 8), "cond_channels": randn(2, 2, 4, 9, 8)},
            "sample: expected height and width divisible by 2, got 9 x 8",
        ),
        ({"encoder_hidden_states": None}, TEXT_SHAPE + "None"),
        ({"encoder_hidden_states": randn(2, 5, 7)}, TEXT_SHAPE + r"\(2, 5, 7\)"),
        ({"encoder_hidden_states": randn(2, 3, 5, 6)}, TEXT_SHAPE + r"\(2, 3, 5, 6\)"),
        ({"frame_index": torch.zeros(2, 3)}, r"frame_index: expected \(2, 4\), got \(2, 3\)"),
        ({"cond_channels": None}, r"cond_channels: expected \(2, 2, 4, 8, 8\), got None"),
    ],
)
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(patch_size=2, **ALL_OPTIONS)(**inputs() | changes)


def test_arguments_that_the_configuration_does_not_take_are_refused():
    plain, x, t = build(), randn(1, 3, 2, 8, 8), torch.tensor([1])
    index = torch.tensor([[0, 1]])
    for name, value in (("fps", t), ("noise_aug_level", t), ("frame_index", index)):
        with pytest.raises(
            ValueError,
            match=f"{name}: expected None, since this VideoUNet was built without {name}",
        ):
            plain(x, t, **{name: value})
    with pytest.raises(ValueError, match="encoder_hidden_states: expected None, got"):
        plain(x, t, randn(1, 5, 6))
    with pytest.raises(ValueError, match="cond_channels: expected None, got"):
        plain(x, t, cond_channels=randn(1, 1, 2, 8, 8))
    with pytest.raises(ValueError, match="attention_levels: expected one per level, 2, got 1"):
        VideoUNet(block_out_channels=(8, 8), attention_levels=(True,))
    with pytest.raises(ValueError, match="refiner_channels: expected at least 1 or None, got 0"):
        build(refiner_channels=0)
