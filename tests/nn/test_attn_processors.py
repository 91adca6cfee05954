"""Attention processors of an inflated U-Net: diffusers' give equal results, others may be added."""

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)

from course_lib.nn.temporal import SharedTextAttnProcessor
from course_lib.nn.temporal_layouts import TEMPORAL_LAYOUTS
from tests.nn.inflated import (
    apply_per_frame,
    image_unet,
    inputs,
    make,
    predict,
    randomize_temporal,
)

PROCESSORS = {
    "plain": AttnProcessor,
    "fused": AttnProcessor2_0,
    "sliced": lambda: SlicedAttnProcessor(slice_size=2),
}


class FirstFrameAttnProcessor(AttnProcessor2_0):
    """Self-attention to the first frame of the clip, as in Text2Video-Zero and Tune-A-Video."""

    def __init__(self, num_frames):
        super().__init__()
        self.num_frames = num_frames

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None:
            frames = hidden_states.unflatten(0, (-1, self.num_frames))
            encoder_hidden_states = frames[:, :1].expand_as(frames).flatten(0, 1)
        else:
            assert len(encoder_hidden_states) == len(hidden_states)  # a text per frame
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
@pytest.mark.parametrize("part", ["all", "spatial"])
def test_diffusers_processors_give_equal_results(style, name, part):
    unet, kwargs = randomize_temporal(make(style, "SDXL")), inputs("SDXL")
    expected = predict(unet, kwargs)
    (unet if part == "all" else unet.spatial).set_attn_processor(PROCESSORS[name]())
    torch.testing.assert_close(predict(unet, kwargs), expected, rtol=0, atol=1e-11)
    text = kwargs["encoder_hidden_states"][:, None].expand(-1, 4, -1, -1)
    per_frame = predict(unet, kwargs, encoder_hidden_states=text)
    torch.testing.assert_close(per_frame, expected, rtol=0, atol=1e-11)
    is_image = torch.tensor([[False, False, True, True]] * 2)
    images = predict(unet, kwargs, is_image=is_image)
    unet.set_attn_processor(SharedTextAttnProcessor())
    expected = predict(unet, kwargs, is_image=is_image)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_gradients_do_not_depend_on_the_processor(style):
    unet, kwargs, gradients = randomize_temporal(make(style, "SD 1")), inputs("SD 1"), []
    for processor in (SharedTextAttnProcessor(), AttnProcessor()):
        unet.set_attn_processor(processor)
        unet.enable_gradient_checkpointing()
        unet.zero_grad()
        unet(**kwargs).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in unet.parameters()])
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_a_cross_frame_processor_acts_across_frames(style):
    unet, image, kwargs = make(style, "SD 1"), image_unet("SD 1"), inputs("SD 1")
    plain = predict(randomize_temporal(unet), kwargs)
    unet.spatial.set_attn_processor(FirstFrameAttnProcessor(4))
    assert (predict(unet, kwargs) - plain).abs().max() > 1e-3

    # One frame: the plain model
    frame = inputs("SD 1", f=1)
    unet.spatial.set_attn_processor(FirstFrameAttnProcessor(1))
    pred = predict(unet, frame)
    unet.spatial.set_attn_processor(SharedTextAttnProcessor())
    torch.testing.assert_close(pred, predict(unet, frame), rtol=0, atol=1e-12)

    # Identity temporal layers and equal frames: equal predictions, those of the image model
    unet = make(style, "SD 1")
    unet.spatial.set_attn_processor(FirstFrameAttnProcessor(4))
    same = kwargs | {"sample": kwargs["sample"][:, :, :1].expand(-1, -1, 4, -1, -1)}
    pred = predict(unet, same)
    torch.testing.assert_close(pred, pred[:, :, :1].expand_as(pred), rtol=0, atol=1e-12)
    torch.testing.assert_close(pred, apply_per_frame(image, same), rtol=0, atol=1e-12)
    # Different frames: the first one is that of the image model, the others depend on it
    pred, expected = predict(unet, kwargs), apply_per_frame(image, kwargs)
    torch.testing.assert_close(pred[:, :, 0], expected[:, :, 0], rtol=0, atol=1e-12)
    assert (pred - expected)[:, :, 1:].abs().amax(dim=(0, 1, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_the_text_is_shared_unless_a_cross_attention_needs_it_per_frame(style):
    unet, kwargs, rows = make(style, "SD 1"), inputs("SD 1"), []
    to_k = unet.spatial.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    to_k.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    predict(unet, kwargs)
    processors = unet.spatial.attn_processors
    self_attention = {
        name: FirstFrameAttnProcessor(4) if ".attn1." in name else processor
        for name, processor in processors.items()
    }
    unet.spatial.set_attn_processor(self_attention)
    predict(unet, kwargs)
    unet.spatial.set_attn_processor(AttnProcessor())
    predict(unet, kwargs)
    assert rows == [2, 2, 8]


def test_processors_are_listed_and_set_by_name_as_in_diffusers():
    unet, kwargs = randomize_temporal(make("modelscope", "SD 1")), inputs("SD 1")
    expected = predict(unet, kwargs)
    names = set(unet.attn_processors)
    assert names == {
        f"{name}.processor" for name, module in unet.named_modules() if hasattr(module, "processor")
    }
    assert {name.split(".")[0] for name in names} == {"spatial", "temporal"}
    unet.set_attn_processor({name: AttnProcessor() for name in names})
    assert all(type(x) is AttnProcessor for x in unet.attn_processors.values())
    torch.testing.assert_close(predict(unet, kwargs), expected, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="number of processors 1 does not match"):
        unet.set_attn_processor({"spatial.mid_block": AttnProcessor()})
