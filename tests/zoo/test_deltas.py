"""Deltas on mini-sd: each gives the base's image if it changes nothing, else plain diffusers'."""

import json
import socket

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from course_lib import zoo

PROMPT = "a poodle on a sea background"
EMBEDDING = "text-embedding"
CONTROL = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)


def generate(pipeline, prompt=PROMPT, **kwargs):
    """One image, as numbers in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    kwargs |= {"num_inference_steps": 2, "output_type": "np", "generator": generator}
    return pipeline(prompt, **kwargs).images[0]


def plain_base(pipeline_class=StableDiffusionPipeline, **kwargs):
    """mini-sd as diffusers loads it, without the zoo's deltas."""
    return pipeline_class.from_pretrained(zoo.path("mini-sd"), local_files_only=True, **kwargs)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("network"))


@pytest.fixture(scope="module")
def base_image():
    return generate(plain_base())


def store(root, kind, part, model, delta=None):
    """A delta as a recipe would store it; returns what the zoo loads."""
    delta = model if delta is None else delta

    def save(folder):
        zoo.DELTA_KINDS[kind].save(delta, folder)
        zoo.write_base(folder, "mini-sd", part, model, kind)

    zoo.store("delta", save, {"evaluation": {}}, "# delta\n", root)
    return zoo.load("delta", root=root)


def assert_frozen(pipeline):
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            assert not any(module.training for module in part.modules())
            assert not any(parameter.requires_grad for parameter in part.parameters())
            assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}


def assert_half(folder):
    """All weights of a delta are safetensors of half precision."""
    (file,) = folder.glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}


def lora_unet(std, lora_alpha=16):
    """mini-sd's U-Net with a LoRA whose matrices B have this standard deviation."""
    torch.manual_seed(0)
    unet = plain_base().unet
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=lora_alpha, target_modules=targets))
    for name, parameter in unet.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter, std=std)
    return unet


def test_a_lora_with_zero_b_gives_the_bases_image(tmp_path, base_image):
    pipeline = store(tmp_path, "lora", "unet", lora_unet(std=0.0))
    assert type(pipeline) is StableDiffusionPipeline
    assert_frozen(pipeline)
    assert np.array_equal(generate(pipeline), base_image)


def test_a_lora_gives_the_image_of_plain_diffusers_and_of_the_trained_model(tmp_path, base_image):
    unet = lora_unet(std=0.5)
    image = generate(store(tmp_path, "lora", "unet", unet))
    assert_half(tmp_path / "delta")
    plain = plain_base()
    plain.load_lora_weights(tmp_path / "delta", weight_name=zoo.LORA_WEIGHTS_NAME)
    assert np.array_equal(image, generate(plain))
    assert np.abs(image - base_image).max() > 0.1
    # With its alpha, which the weights do not have
    np.testing.assert_allclose(image, generate(plain_base(unet=unet)), atol=0.02)


def test_a_controlnet_with_zero_convolutions_gives_the_bases_image(tmp_path, base_image):
    unet = plain_base().unet
    model = ControlNetModel.from_unet(unet)
    pipeline = store(tmp_path, "controlnet", "unet", unet, model)
    assert type(pipeline) is StableDiffusionControlNetPipeline
    assert_frozen(pipeline)
    assert_half(tmp_path / "delta")
    assert model.dtype == torch.float32  # saving does not change it
    assert np.array_equal(generate(pipeline, image=CONTROL), base_image)


def test_a_controlnet_gives_the_image_of_plain_diffusers(tmp_path, base_image):
    torch.manual_seed(0)
    unet = plain_base().unet
    model = ControlNetModel.from_unet(unet)
    for layer in [*model.controlnet_down_blocks, model.controlnet_mid_block]:
        nn.init.normal_(layer.weight, std=0.05)
    image = generate(store(tmp_path, "controlnet", "unet", unet, model), image=CONTROL)
    controlnet = ControlNetModel.from_pretrained(tmp_path / "delta")
    plain = plain_base(StableDiffusionControlNetPipeline, controlnet=controlnet)
    assert np.array_equal(image, generate(plain, image=CONTROL))
    assert np.abs(image - base_image).max() > 0.1


@pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning")
def test_a_t2i_adapter_gives_the_image_of_plain_diffusers(tmp_path, base_image):
    torch.manual_seed(0)
    model = T2IAdapter(in_channels=3, channels=[96, 192], num_res_blocks=1, downscale_factor=8)
    pipeline = store(tmp_path, "controlnet", "unet", plain_base().unet, model)
    assert type(pipeline) is StableDiffusionAdapterPipeline
    assert_frozen(pipeline)
    image = generate(pipeline, image=CONTROL)
    adapter = T2IAdapter.from_pretrained(tmp_path / "delta")
    plain = plain_base(StableDiffusionAdapterPipeline, adapter=adapter)
    assert np.array_equal(image, generate(plain, image=CONTROL))
    assert np.abs(image - base_image).max() > 0.1


@pytest.mark.parametrize("num_vectors", [None, 1, 2])
def test_a_token_with_the_embedding_of_words_gives_their_image(tmp_path, num_vectors):
    base = plain_base()
    words = {None: "poodle", 1: "poodle", 2: "poodle owl"}[num_vectors]
    prompt = "a {} on a sea background"
    expected = generate(base, prompt.format(words))
    token_ids = base.tokenizer(words, add_special_tokens=False).input_ids
    vectors = base.text_encoder.get_input_embeddings().weight[token_ids]
    embedding = {"<new>": vectors[0] if num_vectors is None else vectors}
    pipeline = store(tmp_path, EMBEDDING, "text_encoder", base.text_encoder, embedding)
    assert type(pipeline) is StableDiffusionPipeline
    assert_frozen(pipeline)
    assert_half(tmp_path / "delta")
    assert np.array_equal(generate(pipeline, prompt.format("<new>")), expected)
    base.load_textual_inversion(tmp_path / "delta", weight_name=zoo.EMBEDDING_WEIGHTS_NAME)
    assert np.array_equal(generate(base, prompt.format("<new>")), expected)
    # The text encoder of the training, with the new token, is still mini-sd's
    zoo.write_base(tmp_path, "mini-sd", "text_encoder", base.text_encoder, EMBEDDING)


def test_two_tokens_in_one_file_are_refused(tmp_path):
    vectors = {"<a>": torch.zeros(128), "<b>": torch.zeros(128)}
    with pytest.raises(ValueError, match="embedding: expected one token, got <a>, <b>"):
        zoo.save_text_embedding(vectors, tmp_path)


@pytest.mark.parametrize(
    ("kind", "part"), [("lora", "unet"), ("controlnet", "unet"), (EMBEDDING, "text_encoder")]
)
def test_a_trained_base_is_refused(tmp_path, kind, part):
    """The base must be frozen: a delta has no room for its changes."""
    model = getattr(plain_base(), part)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(ValueError, match=f"model: expected the weights of mini-sd/{part}"):
        zoo.write_base(tmp_path, "mini-sd", part, model, kind)


def store_token(root, after=lambda folder: None):
    """A text embedding whose folder is edited after it was written."""

    def save(folder):
        zoo.save_text_embedding({"<new>": torch.zeros(128)}, folder)
        zoo.write_base(folder, "mini-sd", "text_encoder", plain_base().text_encoder, EMBEDDING)
        after(folder)

    zoo.store("delta", save, {"evaluation": {}}, "# delta\n", root)


def test_the_checksums_of_another_base_are_refused(tmp_path):
    def edit(folder):
        base = json.loads((folder / zoo.BASE_FILE).read_text(encoding="utf-8"))
        assert len(base["sha256"]) == 10  # all files: the base makes a pipeline again
        base["sha256"]["unet/config.json"] = "0" * 64
        (folder / zoo.BASE_FILE).write_text(json.dumps(base), encoding="utf-8")

    store_token(tmp_path, edit)
    with pytest.raises(ValueError, match="checkpoint delta: made for another mini-sd"):
        zoo.load("delta", root=tmp_path)


def test_a_pickle_is_refused(tmp_path):
    def pickle(folder):
        torch.save({"<new>": torch.zeros(128)}, folder / "learned_embeds.bin")

    with pytest.raises(ValueError, match="save: expected safetensors only, got learned_embeds.bin"):
        store_token(tmp_path, pickle)
    store_token(tmp_path)
    pickle(tmp_path / "delta")
    with pytest.raises(ValueError, match="delta: expected safetensors only, got learned_embeds"):
        zoo.load("delta", root=tmp_path)
