"""Copies, pickles, threads and gradient checkpointing of models with temporal layers."""

import copy
import io
import pickle
import threading
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib.nn.compilation import compile_for_inference
from course_lib.nn.inflate import InflatedUNet
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.nn.temporal_layouts import TEMPORAL_LAYOUTS
from course_lib.nn.unet import VideoUNet
from tests.nn.inflated import inputs, make, predict, randomize_temporal


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": unpickled, "torch.save": saved}
CHECKPOINTS = {
    "default": None,
    "reentrant": partial(checkpoint, use_reentrant=True),
    "not reentrant": partial(checkpoint, use_reentrant=False),
}


def build(style):
    return without_dropout(randomize_temporal(make(style, "SD 1")).train())


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def gradients(unet, **kwargs):
    unet.zero_grad()
    unet(**kwargs).sample.square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


def assert_equal_gradients(result, expected):
    assert result.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, msg=name)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("checkpoint_name", CHECKPOINTS)
def test_a_copy_with_gradient_checkpointing_has_its_own_state(checkpoint_name, how):
    unet, kwargs = build("video-ldm"), inputs("SD 1", b=1, f=2)
    expected = gradients(unet, **kwargs)
    unet.enable_gradient_checkpointing(CHECKPOINTS[checkpoint_name])
    assert_equal_gradients(gradients(unet, **kwargs), expected)
    other = COPIES[how](unet)
    assert other.is_gradient_checkpointing
    assert_equal_gradients(gradients(other, **kwargs), expected)
    assert_equal_gradients(gradients(COPIES[how](other), **kwargs), expected)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_temporal_layers_of_a_frozen_image_model_learn_under_reentrant_checkpointing(style):
    unet, kwargs = build(style), inputs("SD 1", b=1, f=2)
    unet.spatial.requires_grad_(False)
    expected = gradients(unet, **kwargs)
    unet.enable_gradient_checkpointing(CHECKPOINTS["reentrant"])
    assert len(expected) == len(list(unet.temporal.parameters()))
    assert_equal_gradients(gradients(unet, **kwargs), expected)


def test_checkpointing_may_be_enabled_on_the_image_model():
    unet, kwargs = build("lavie"), inputs("SD 1", b=1, f=2)
    expected = gradients(unet, **kwargs)
    unet.spatial.enable_gradient_checkpointing()
    assert_equal_gradients(gradients(unet, **kwargs), expected)


def test_a_copy_made_between_forward_and_backward_pass_changes_nothing():
    unet, kwargs = build("modelscope"), inputs("SD 1", b=1, f=2)
    expected = gradients(unet, **kwargs)
    unet.enable_gradient_checkpointing()
    unet.zero_grad()
    loss = unet(**kwargs).sample.square().mean()
    predict(copy.deepcopy(unet), inputs("SD 1", b=1, f=3))
    loss.backward()
    assert_equal_gradients({name: p.grad for name, p in unet.named_parameters()}, expected)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_two_threads_may_be_inside_one_network(style):
    """The barrier lets both threads wait for each other in the middle of their passes."""
    unet, results = randomize_temporal(make(style, "SD 1")), {}
    calls = [inputs("SD 1", b=1, f=2), inputs("SD 1", b=2, f=3, seed=1)]
    scales = [0.5, 1.0]
    expected = [predict(unet, x, temporal_scale=s) for x, s in zip(calls, scales, strict=True)]
    barrier = threading.Barrier(2, timeout=20)
    layers = [unet.spatial.conv_in, *unet.spatial.down_blocks, unet.spatial.mid_block]

    def wait(*_):
        barrier.wait()

    hooks = [layer.register_forward_hook(wait) for layer in layers]

    def run(k):
        results[k] = predict(unet, calls[k], temporal_scale=scales[k])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in hooks:
        hook.remove()
    for k in range(2):
        assert torch.equal(results[k], expected[k])


def test_a_forward_pass_between_a_norm_and_its_attention_changes_nothing():
    unet, kwargs = randomize_temporal(make("lavie", "SD 1")), inputs("SD 1", b=1, f=2)
    other = inputs("SD 1", b=1, f=3, seed=3)
    expected = predict(unet, kwargs)

    def nested(module, args):
        hook.remove()
        predict(unet, other)

    block = unet.spatial.mid_block.attentions[0].transformer_blocks[0]
    hook = block.attn2.register_forward_pre_hook(nested)
    assert torch.equal(predict(unet, kwargs), expected)


def test_a_failed_pass_leaves_no_state():
    unet, kwargs = randomize_temporal(make("lavie", "SD 1")), inputs("SD 1", b=1, f=2)
    hook = unet.spatial.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(unet, kwargs)
    hook.remove()
    assert unet._context.state is None and unet._context.residual is None


def test_a_loaded_network_has_no_checkpointing_and_equal_gradients(tmp_path):
    unet, kwargs = build("video-ldm"), inputs("SD 1", b=1, f=2)
    expected = gradients(unet, **kwargs)
    unet.enable_gradient_checkpointing()
    unet.save_pretrained(tmp_path)
    loaded = InflatedUNet.from_pretrained(tmp_path, torch_dtype=torch.float64)
    without_dropout(loaded.train())
    loaded.enable_gradient_checkpointing()
    assert_equal_gradients(gradients(loaded, **kwargs), expected)


@pytest.mark.parametrize("how", COPIES)
def test_a_video_unet_with_gradient_checkpointing_can_be_copied(how):
    torch.manual_seed(0)
    unet = VideoUNet(block_out_channels=(8, 8), attention_levels=(False, True), head_dim=8)
    kwargs = {"sample": torch.randn(1, 3, 2, 8, 8), "timestep": torch.tensor([5])}
    expected = gradients(unet, **kwargs)
    unet.enable_gradient_checkpointing()
    assert_equal_gradients(gradients(COPIES[how](unet), **kwargs), expected)


@pytest.mark.parametrize("how", COPIES)
def test_a_temporal_autoencoder_with_gradient_checkpointing_can_be_copied(how):
    torch.manual_seed(0)
    image_vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae = without_dropout(randomize_temporal(inflate_decoder(image_vae)))
    latents, results = torch.randn(1, 4, 3, 4, 4), []
    for step in ("plain", "image model", "copy"):
        if step == "image model":
            vae.spatial.enable_gradient_checkpointing()
        elif step == "copy":
            vae.enable_gradient_checkpointing()
        other = COPIES[how](vae) if step == "copy" else vae
        other.zero_grad()
        other.train().decode(latents).square().mean().backward()
        results.append([p.grad.clone() for p in other.temporal.parameters()])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_a_copy_of_a_compiled_model_has_its_own_weights(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    compiled = compile_for_inference(model)
    for other in (copy.deepcopy(compiled), unpickled(compiled)):
        torch.testing.assert_close(other(x), model(x))
        with torch.no_grad():
            other[0].weight.mul_(2)
        assert not torch.allclose(other(x), model(x))
        torch.testing.assert_close(compiled(x), model(x))
