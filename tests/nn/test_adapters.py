"""LoRA on an inflated U-Net: the scale of `cross_attention_kwargs` acts on all layers alike."""

import copy
import threading
from functools import partial

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.checkpoint import checkpoint

from course_lib.nn.temporal_layouts import TEMPORAL_LAYOUTS
from tests.nn.inflated import inputs, make, predict, randomize_temporal

# peft warns of every second adapter
pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute")
KWARGS = inputs("SD 1", b=1, f=2)
LINEAR = r".*\.(to_q|to_v|to_qkv|proj_in)"


def adapted(style, part="", names=("a", "b")):
    """A U-Net with random adapters of several ranks and weights, and what it predicted without."""
    unet = randomize_temporal(make(style, "SD 1"))
    # Frozen as by `add_adapter`, and no copy: torch's kernels, so the rounding, may depend on
    # whether weights need a gradient and on where they lie in memory
    unet.requires_grad_(False)
    base = predict(unet, KWARGS)
    for k, name in enumerate(names):
        torch.manual_seed(k)
        config = peft.LoraConfig(
            r=2 + k, lora_alpha=3, target_modules=part + LINEAR, init_lora_weights=False
        )
        unet.add_adapter(config, adapter_name=name)
    if len(names) > 1:
        unet.set_adapters(list(names), [0.7, 1.3])
    return base, unet.double()  # peft's are float32


def adapters(unet):
    return {
        name: layer for name, layer in unet.named_modules() if isinstance(layer, BaseTunerLayer)
    }


def assert_scaled_by_hand(pred, unet, scale):
    unet = copy.deepcopy(unet)
    for layer in adapters(unet).values():
        for name in layer.scaling:
            layer.scaling[name] *= scale
    torch.testing.assert_close(pred, predict(unet, KWARGS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", TEMPORAL_LAYOUTS)
def test_the_scale_acts_on_all_adapters_alike(style):
    base, unet = adapted(style)
    assert {name.split(".")[0] for name in adapters(unet)} == {"spatial", "temporal"}
    before = {name: dict(layer.scaling) for name, layer in adapters(unet).items()}
    full = predict(unet, KWARGS)
    for scale in (0, 0.5, 1, 2.0, -1.0):
        options = {"scale": scale}
        pred = predict(unet, KWARGS, cross_attention_kwargs=options)
        assert options == {"scale": scale}
        assert_scaled_by_hand(pred, unet, scale)
        assert torch.equal(pred, base) == (scale == 0)
        assert {name: dict(layer.scaling) for name, layer in adapters(unet).items()} == before
    assert torch.equal(predict(unet, KWARGS), full)


def test_adapters_of_the_temporal_layers_only():
    base, unet = adapted("modelscope", part="temporal", names=("a",))
    assert torch.equal(predict(unet, KWARGS, cross_attention_kwargs={"scale": 0.0}), base)
    half = predict(unet, KWARGS, cross_attention_kwargs={"scale": 0.5})
    assert_scaled_by_hand(half, unet, 0.5)
    assert (half - base).abs().max() > 1e-6


def test_loaded_adapters_follow_the_scale(tmp_path):
    _, unet = adapted("lavie", names=("default",))
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    loaded = randomize_temporal(make("lavie", "SD 1")).requires_grad_(False)
    expected = predict(loaded, KWARGS)
    loaded.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    loaded.double()
    assert adapters(loaded).keys() == adapters(unet).keys()
    for scale in (0.0, 0.5):
        pred = predict(loaded, KWARGS, cross_attention_kwargs={"scale": scale})
        assert torch.equal(pred, expected) == (scale == 0)


def test_the_scale_ends_with_a_pass_that_fails():
    _, unet = adapted("video-ldm")
    expected = predict(unet, KWARGS)
    hook = unet.spatial.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(unet, KWARGS, cross_attention_kwargs={"scale": 0.0})
    hook.remove()
    assert torch.equal(predict(unet, KWARGS), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_backward_pass_recomputes_with_the_scale(use_reentrant):
    _, unet = adapted("video-ldm")
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=use_reentrant))
        unet.zero_grad()
        pred = unet(**KWARGS, cross_attention_kwargs={"scale": 0.5}).sample
        unet(**KWARGS)
        pred.square().mean().backward()
        results.append({n: p.grad for n, p in unet.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


def test_threads_and_nested_passes_have_scales_of_their_own():
    _, unet = adapted("lavie")
    scales, results = (0.0, 0.5), {}
    expected = [predict(unet, KWARGS, cross_attention_kwargs={"scale": s}) for s in scales]
    barrier = threading.Barrier(2, timeout=20)

    def wait(*_):
        barrier.wait()

    hook = unet.spatial.conv_in.register_forward_hook(wait)

    def run(scale):
        results[scale] = predict(unet, KWARGS, cross_attention_kwargs={"scale": scale})

    threads = [threading.Thread(target=run, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert all(torch.equal(results[s], pred) for s, pred in zip(scales, expected, strict=True))

    def nested(*_):
        hook.remove()
        results["nested"] = predict(unet, KWARGS, cross_attention_kwargs={"scale": 0.5})

    hook = unet.spatial.mid_block.register_forward_pre_hook(nested)
    outer = predict(unet, KWARGS, cross_attention_kwargs={"scale": 0.0})
    assert torch.equal(outer, expected[0]) and torch.equal(results["nested"], expected[1])


def test_bad_scales_are_refused():
    _, unet = adapted("lavie", names=("a",))
    for scale in (float("nan"), float("inf"), None, "1", True):
        with pytest.raises(
            ValueError, match=r"cross_attention_kwargs\['scale'\]: expected a finite"
        ):
            unet(**KWARGS, cross_attention_kwargs={"scale": scale})
    unet.fuse_lora()
    with pytest.raises(ValueError, match="cross_attention_kwargs: expected no scale, got fused"):
        unet(**KWARGS, cross_attention_kwargs={"scale": 0.5})
