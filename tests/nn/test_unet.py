"""VideoUNet: its own image network at first, leak tests, any size, and a folder that it survives."""

import pytest
import torch
from diffusers.models.resnet import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nn.attention import POSITIONS, TemporalAttention, place_waves
from course_lib.nn.unet import Grow, TextSummary, VideoUNet

SMALL = {"widths": (16, 24), "attention": (True, True), "head_width": 8}
TOLD = {
    "text_width": 6,
    "frame_index": True,
    "places": True,
    "frame_rate": True,
    "noise_level": True,
    "extra_channels": 2,
    "detail": 4,
}


def build(awake=False, seed=0, **options):
    """A small float64 network; awake: its temporal layers add something, and so do the frames' numbers and the text."""
    torch.manual_seed(seed)
    unet = VideoUNet(**SMALL | options).double().eval()
    if awake:
        for layer in temporal(unet):
            nn.init.normal_(layer.to_out.weight, std=0.5)
            nn.init.normal_(layer.to_out.bias, std=0.5)
            if layer.bias is not None:
                nn.init.normal_(layer.bias.table)
        if unet.embed_index is not None:
            nn.init.normal_(unet.embed_index.linear_2.weight, std=0.5)
        zeros = [
            unet.mix[-1],
            *([unet.summary.to_out] if unet.summary else []),
            *([unet.finish.say] if unet.finish else []),
        ]
        for layer in zeros:
            nn.init.normal_(layer.weight, std=0.5)
    return unet


def temporal(unet):
    return [layer for layer in unet.modules() if isinstance(layer, TemporalAttention)]


def clip(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(b=2, f=4, size=8, **changes):
    """Everything that a network made with `TOLD` takes."""
    return {
        "sample": clip(b, 3, f, size, size),
        "timestep": torch.tensor([10, 500])[:b],
        "encoder_hidden_states": clip(b, 5, 6, seed=1),
        "frame_rate": torch.tensor([8.0, 16.0])[:b],
        "extra": clip(b, 2, f, size, size, seed=2),
        "noise_level": torch.tensor([100, 0])[:b],
    } | changes


def frame_by_frame(unet, given):
    """The network on every frame as a clip of one."""
    parts = []
    for k in range(given["sample"].shape[2]):
        one = given | {name: given[name][:, :, k : k + 1] for name in ("sample", "extra")}
        if given["encoder_hidden_states"].ndim == 4:
            one["encoder_hidden_states"] = given["encoder_hidden_states"][:, k]
        parts.append(unet(**one).sample)
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_at_first_it_is_its_own_image_network(positions, patch, training):
    unet, given = build(positions=positions, patch=patch, **TOLD).train(training), inputs()
    torch.testing.assert_close(
        unet(**given).sample, frame_by_frame(unet, given), atol=1e-12, rtol=1e-12
    )


def test_once_awake_it_sees_other_frames():
    unet, given = build(awake=True, **TOLD), inputs()
    assert (unet(**given).sample - frame_by_frame(unet, given)).abs().max() > 1e-2


def test_after_two_steps_every_parameter_has_moved():
    # One step is not enough: behind a zero only the zero has a gradient
    unet, given = build(**TOLD), inputs()
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(2):
        unet(**given).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    # A bias beyond the clip's length, or a distance that occurs nowhere, has no gradient
    still = [
        name for name, parameter in unet.named_parameters() if torch.equal(parameter, before[name])
    ]
    assert still == []


@pytest.mark.parametrize("positions", POSITIONS)
def test_pictures_do_not_leak_into_clips_or_into_each_other(positions):
    unet = build(awake=True, positions=positions, text_width=6)
    sample, text = clip(1, 3, 6, 8, 8), clip(1, 6, 5, 6, seed=1)
    alone = torch.tensor([[False, False, True, False, True, True]])
    base = unet(sample, torch.tensor([10]), text, alone=alone).sample
    for changed in range(6):
        other = sample.clone()
        other[:, :, changed] += 1
        difference = (
            (unet(other, torch.tensor([10]), text, alone=alone).sample - base)
            .abs()
            .amax(dim=(0, 1, 3, 4))
        )
        touched = {changed} if alone[0, changed] else {0, 1, 3}
        assert {k for k in range(6) if difference[k] > 0} == touched


def test_the_mask_reaches_every_temporal_layer():
    unet, seen = build(awake=True, widths=(16, 24, 16), attention=(True, False, True), layers=2), []
    for layer in temporal(unet):
        layer.register_forward_hook(lambda module, given, output: seen.append(given[1]))
    alone = torch.tensor([[False, True, True]])
    unet(clip(1, 3, 3, 8, 8), torch.tensor([1]), alone=alone)
    assert len(seen) == len(temporal(unet)) == 9  # 2 levels with 2 + 2, and the middle
    expected = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    assert all(torch.equal(mask[0], expected) for mask in seen)


def test_pictures_appended_leave_the_clip_as_it_was_and_are_clips_of_one_frame():
    unet, given = build(awake=True, **TOLD), inputs(f=5)
    given["encoder_hidden_states"] = clip(2, 5, 5, 6, seed=4)  # a text for each frame
    alone = torch.tensor([[False, False, False, True, True]] * 2)
    together = unet(**given, alone=alone).sample
    short = given | {name: given[name][:, :, :3] for name in ("sample", "extra")}
    short["encoder_hidden_states"] = given["encoder_hidden_states"][:, :3]
    torch.testing.assert_close(together[:, :, :3], unet(**short).sample)
    torch.testing.assert_close(together[:, :, 3:], frame_by_frame(unet, given)[:, :, 3:])


def test_told_its_number_a_frame_of_nothing_but_text_differs_from_the_next():
    """Relative distances alone cannot do that: a softmax over equal values gives that value, whatever its weights."""
    same = clip(1, 3, 1, 8, 8).expand(-1, -1, 4, -1, -1)
    for index, differ in ((False, False), (True, True)):
        said = build(awake=True, frame_index=index)(same, torch.tensor([5])).sample
        assert ((said - said[:, :, :1]).abs().max() > 1e-3) == differ
    alone = torch.ones(1, 4, dtype=torch.bool)
    said = build(awake=True, frame_index=True)(same, torch.tensor([5]), alone=alone).sample
    torch.testing.assert_close(said, said[:, :, :1].expand_as(said))  # a picture has no number


def test_frames_are_numbered_from_0_unless_they_have_numbers_of_their_own():
    unet, x, t = (
        build(awake=True, positions="none", frame_index=True),
        clip(2, 3, 5, 8, 8),
        torch.tensor([5, 9]),
    )
    for layer in temporal(unet):  # so that no frame depends on the others
        nn.init.zeros_(layer.to_out.weight)
    whole = unet(x, t).sample
    torch.testing.assert_close(unet(x, t, frame_index=torch.arange(5).expand(2, -1)).sample, whole)
    some = torch.tensor([[0, 3], [1, 4]])
    rows = torch.arange(2)[:, None]
    sparse = x.transpose(1, 2)[rows, some].transpose(1, 2)
    expected = whole.transpose(1, 2)[rows, some].transpose(1, 2)
    torch.testing.assert_close(unet(sparse, t, frame_index=some).sample, expected)
    assert (unet(sparse, t).sample - expected).abs().max() > 1e-3
    alone = unet(x[:, :, 3:4], t, frame_index=torch.full((2, 1), 3)).sample
    torch.testing.assert_close(alone, whole[:, :, 3:4])


def test_places_are_waves_of_where_a_pixel_is_in_its_frame():
    found = place_waves(4, 6, clip(1))[0]
    down, across = (
        (torch.arange(n).double() + 0.5) / n * 2 - 1 for n in (4, 6)
    )  # centres of pixels in [-1, 1]
    for first, rate in ((0, 0.5), (4, 1.0), (8, 2.0)):
        for offset, turned in ((0, down[:, None]), (2, across[None])):
            turned = (rate * torch.pi * turned).expand(4, 6)
            torch.testing.assert_close(
                found[first + offset : first + offset + 2],
                torch.stack([turned.sin(), turned.cos()]),
            )
    assert found.flatten(1).unique(dim=1).shape[1] == 24  # no two places are told the same


def test_places_need_no_float64_of_the_device():
    """Apple's GPUs have none."""

    class Without64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **kwargs or {})
            assert not (
                isinstance(made, torch.Tensor) and made.is_meta and made.dtype == torch.float64
            ), func
            return made

    like = torch.empty(0, dtype=torch.float16, device="meta")
    with Without64():
        waves = place_waves(4, 6, like)
    assert (waves.device, waves.dtype, waves.shape) == (like.device, like.dtype, (1, 12, 4, 6))


def test_told_its_place_a_pixel_of_an_even_frame_differs_far_from_the_border():
    """Convolutions alone know a border as far as they reach, and no further."""
    sample, t = torch.ones(1, 3, 1, 64, 64, dtype=torch.float64), torch.tensor([5])
    for told, differ in ((False, False), (True, True)):
        unet = build(widths=(16,), attention=(False,), places=told)
        middle = unet(sample, t).sample[0, :, 0, 24:40, 24:40].flatten(1)
        assert ((middle - middle[:, :1]).abs().max() > 1e-3) == differ


def test_a_last_look_adds_nothing_at_first_and_then_sees_pixels_on_both_sides_of_a_patch():
    plain, unet = (
        build(patch=4, widths=(16,), attention=(False,), detail=wide) for wide in (None, 8)
    )
    unet.load_state_dict(unet.state_dict() | plain.state_dict())
    x, t = clip(1, 3, 2, 8, 8), torch.tensor([10])
    answer = plain(x, t).sample
    assert torch.equal(unet(x, t).sample, answer)

    nn.init.normal_(unet.finish.say.weight)
    other = x.clone()
    other[0, :, 0, 4, 4] += 1  # the first pixel of the last patch
    frames, changed = (some.transpose(1, 2).flatten(0, 1) for some in (x, other))
    told = torch.randn(2, 32, dtype=torch.float64)
    said = [
        unet.finish(some, answer.transpose(1, 2).flatten(0, 1), told) for some in (frames, changed)
    ]
    differs = (said[1] - said[0]).abs().amax(dim=1)  # f h w
    assert (
        differs[0, 1:8, 1:8].min() > 0
    )  # three convolutions of 3 x 3 reach that far, across the patches' borders
    differs[0, 1:8, 1:8] = 0
    assert differs.max() == 0


def test_the_text_reaches_the_embedding_as_one_vector_whatever_the_order_of_its_words():
    torch.manual_seed(0)
    summary, text = TextSummary(6, 32, 8).double(), clip(3, 5, 6)
    assert not summary(text).any()  # at first it says nothing
    nn.init.normal_(summary.to_out.weight)
    said = summary(text)
    assert said.shape == (3, 32)
    torch.testing.assert_close(summary(text[:, torch.tensor([4, 2, 0, 1, 3])]), said)
    torch.testing.assert_close(summary(text.repeat(1, 2, 1)), said)  # weights that sum to 1
    assert (summary(text.flip(0)) - said).abs().max() > 1e-3


def test_without_positions_a_shuffled_clip_gives_the_shuffled_result():
    order = torch.tensor([2, 0, 3, 1])
    for positions in POSITIONS:
        unet, x, t = build(awake=True, positions=positions), clip(1, 3, 4, 8, 8), torch.tensor([5])
        difference = (unet(x[:, :, order], t).sample - unet(x, t).sample[:, :, order]).abs().max()
        assert difference < 1e-12 if positions == "none" else difference > 1e-3


@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (3, 6, 10), (7, 14, 4), (2, 5, 7)])
def test_any_number_of_frames_and_any_size(frames, height, width):
    unet = build(awake=True, widths=(8, 8, 8), attention=(False, True, True))
    assert unet(clip(1, 3, frames, height, width), torch.tensor([1])).sample.shape == (
        1,
        3,
        frames,
        height,
        width,
    )


def test_one_text_for_all_frames_is_the_same_as_for_each():
    unet, given = build(awake=True, **TOLD), inputs()
    each = given | {
        "encoder_hidden_states": given["encoder_hidden_states"][:, None].expand(-1, 4, -1, -1)
    }
    torch.testing.assert_close(unet(**given).sample, unet(**each).sample)


@pytest.mark.parametrize(
    "name", ["encoder_hidden_states", "frame_rate", "extra", "noise_level", "timestep"]
)
def test_everything_it_is_told_matters_and_only_to_its_own_clip(name):
    unet, given = build(**TOLD), inputs()
    other = given | {
        name: given[name] * torch.tensor([1, 2]).view(-1, *[1] * (given[name].ndim - 1))
    }
    if name == "noise_level":
        other[name] = torch.tensor([100, 50])
    difference = (unet(**other).sample - unet(**given).sample).abs().amax(dim=(1, 2, 3, 4))
    assert difference[0] == 0 and difference[1] > 1e-6


def test_rows_of_a_batch_do_not_meet():
    unet, given = build(awake=True, **TOLD), inputs()
    rows = [
        unet(**{name: value[k : k + 1] for name, value in given.items()}).sample for k in range(2)
    ]
    torch.testing.assert_close(unet(**given).sample, torch.cat(rows))


def test_out_channels_may_be_others():
    assert build(out_channels=6)(clip(1, 3, 2, 8, 8), torch.tensor([1])).sample.shape == (
        1,
        6,
        2,
        8,
        8,
    )


def test_it_survives_a_folder(tmp_path):
    unet, given = build(awake=True, **TOLD), inputs()
    unet.save_pretrained(tmp_path)
    again = VideoUNet.from_pretrained(tmp_path).double()
    # stored as it is; from_pretrained has read it in float32
    torch.testing.assert_close(again(**given).sample, unet.float().double()(**given).sample)
    assert again.config.widths == [16, 24] and again.config.text_width == 6


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for checkpointed in (False, True):
        unet, given = build(awake=True, **TOLD).train(), inputs()
        if checkpointed:
            unet.enable_gradient_checkpointing()
        unet(
            **given, alone=torch.tensor([[False, False, False, True]] * 2)
        ).sample.square().mean().backward()
        found.append([parameter.grad for parameter in unet.parameters()])
    assert unet.is_gradient_checkpointing
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(plain, replayed)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"sample": clip(2, 4, 4, 8, 8)},
            r"sample: expected 3 channels and frames, got \(2, 4, 4, 8, 8\)",
        ),
        (
            {"sample": clip(2, 3, 4, 9, 8), "extra": clip(2, 2, 4, 9, 8)},
            "sample: expected height and width divisible by 2, got 9 x 8",
        ),
        (
            {"encoder_hidden_states": None},
            "encoder_hidden_states: expected a text of width 6, got none",
        ),
        (
            {"encoder_hidden_states": clip(2, 5, 7)},
            r"expected \(2, l, 6\) or \(2, 4, l, 6\), got \(2, 5, 7\)",
        ),
        (
            {"encoder_hidden_states": clip(2, 3, 5, 6)},
            r"expected \(2, l, 6\) or \(2, 4, l, 6\), got \(2, 3, 5, 6\)",
        ),
        ({"frame_index": torch.zeros(2, 3)}, r"frame_index: expected \(2, 4\), got \(2, 3\)"),
        ({"extra": None}, r"extra: expected \(2, 2, 4, 8, 8\), got none"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(patch=2, **TOLD)(**inputs() | changes)


def test_what_it_was_not_made_for_is_refused():
    plain, x, t = build(), clip(1, 3, 2, 8, 8), torch.tensor([1])
    for name in ("frame_rate", "noise_level"):
        with pytest.raises(ValueError, match=f"{name}: this network was made without"):
            plain(x, t, **{name: t})
    with pytest.raises(ValueError, match="frame_index: this network was made without"):
        plain(x, t, frame_index=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"encoder_hidden_states: expected none, got \(1, 5, 6\)"):
        plain(x, t, clip(1, 5, 6))
    with pytest.raises(ValueError, match=r"extra: expected none, got \(1, 1, 2, 8, 8\)"):
        plain(x, t, extra=clip(1, 1, 2, 8, 8))
    with pytest.raises(ValueError, match="attention: expected one for each of 2 widths, got 1"):
        VideoUNet(widths=(8, 8), attention=(True,))
    with pytest.raises(
        ValueError, match="detail: expected at least 1 channel, or None for no last look, got 0"
    ):
        build(detail=0)


# Growing


@given(h=st.integers(1, 5), w=st.integers(1, 5), channels=st.sampled_from([(3, 2), (2, 2), (1, 4)]))
@settings(max_examples=30, deadline=None)
def test_growing_is_diffusers_upsampling_values_and_gradients(h, w, channels):
    torch.manual_seed(h + 10 * w)
    theirs = Upsample2D(channels[0], use_conv=True, out_channels=channels[1]).double()
    ours = Grow(channels[0], use_conv=True, out_channels=channels[1]).double()
    ours.load_state_dict(theirs.state_dict())
    frames = torch.randn(2, channels[0], h, w, dtype=torch.float64)
    for size in ((2 * h, 2 * w), (2 * h - 1, 2 * w), (2 * h - 1, 2 * w - 1)):
        found = []
        for layer in (ours, theirs):
            layer.zero_grad()
            seen = frames.clone().requires_grad_()
            grown = layer(seen, output_size=size)
            assert grown.shape == (2, channels[1], *size)
            (grown * torch.arange(grown.numel()).reshape(grown.shape)).sum().backward()
            found.append(
                (
                    grown.detach(),
                    seen.grad,
                    layer.conv.weight.grad.clone(),
                    layer.conv.bias.grad.clone(),
                )
            )
        for mine, other in zip(*found, strict=True):
            torch.testing.assert_close(mine, other)
