"""The zoo: stored checkpoints load; damaged, unlisted and unknown ones are refused by name."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from course_lib import runtime, zoo
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.zoo import registry

VAE = dict(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)
UNET = dict(block_out_channels=(8,), norm_num_groups=4, sample_size=8, layers_per_block=1)
UNET |= dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False)
ENCODER = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**VAE)


def store(root, name, model=None, save=None):
    """A checkpoint as a recipe would store it."""
    save = save or (lambda folder: model.half().save_pretrained(folder))
    return zoo.store(name, save, {"evaluation": {"psnr": 31.5}, "seed": 0}, f"# {name}\n", root)


@pytest.fixture
def root(tmp_path):
    store(tmp_path, "mini-vae", vae())
    store(tmp_path, "features/video", vae())
    return tmp_path


def test_names_may_hold_a_slash(root):
    assert zoo.names(root) == ["features/video", "mini-vae"]
    assert zoo.names(root / "nowhere") == []
    assert (zoo.path("features/video", root) / "config.json").exists()


def test_the_courses_own_folder_is_meant_by_default(root, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(root.parent))
    root.rename(root.parent / "checkpoints")
    assert zoo.names() == ["features/video", "mini-vae"]
    assert zoo.load("mini-vae").config.latent_channels == 2
    assert zoo.card("mini-vae").text == "# mini-vae\n"


def test_a_diffusers_model_comes_back_ready_to_use(root):
    model = zoo.load("mini-vae", root=root)
    assert type(model) is AutoencoderKL
    assert not model.training and not any(
        parameter.requires_grad for parameter in model.parameters()
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for loaded, stored in zip(model.parameters(), vae().half().parameters(), strict=True):
        assert torch.equal(loaded, stored.float())
    assert (
        next(zoo.load("mini-vae", dtype=torch.float16, root=root).parameters()).dtype
        == torch.float16
    )
    assert next(zoo.load("mini-vae", device="cpu", root=root).parameters()).device.type == "cpu"


def test_a_transformers_model_too(tmp_path):
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=ENCODER | {"vocab_size": 20},
            vision_config=ENCODER | {"image_size": 16, "patch_size": 8},
        )
    )
    expected = {name: tensor.half().float() for name, tensor in model.named_parameters()}
    store(tmp_path, "mini-clip", model)
    loaded = zoo.load("mini-clip", root=tmp_path)
    assert type(loaded) is CLIPModel and not loaded.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.named_parameters())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_pipeline_too(tmp_path):
    pipeline = DDIMPipeline(UNet2DModel(**UNET), DDIMScheduler(num_train_timesteps=10))
    store(
        tmp_path,
        "pixel",
        save=lambda folder: pipeline.to(dtype=torch.float16).save_pretrained(folder),
    )
    loaded = zoo.load("pixel", root=tmp_path)
    assert type(loaded) is DDIMPipeline and loaded.scheduler.config.num_train_timesteps == 10
    assert not loaded.unet.training and next(loaded.unet.parameters()).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())


def test_classes_of_the_course_are_known(tmp_path):
    for name, module in zoo.COURSE_CLASSES.items():
        model_class = getattr(__import__(module, fromlist=[name]), name)
        assert issubclass(model_class, nn.Module)
        (tmp_path / "config.json").write_text(f'{{"_class_name": "{name}"}}', encoding="utf-8")
        assert registry._resolve_class(tmp_path) is model_class


def test_a_card(root):
    card = zoo.card("features/video", root)
    assert (card.name, card.text, card.evaluation) == (
        "features/video",
        "# features/video\n",
        {"psnr": 31.5},
    )
    assert card.metadata["seed"] == 0


@pytest.mark.parametrize("function", [zoo.load, zoo.card, zoo.verify, zoo.path])
def test_an_unknown_name_lists_the_valid_ones(root, function):
    with pytest.raises(
        ValueError, match="name: expected one of features/video, mini-vae; got 'judge'"
    ):
        function("judge", root=root)
    with pytest.raises(
        ValueError, match="name: expected one of none, there are no checkpoints yet; got 'judge'"
    ):
        function("judge", root=root / "nowhere")


def test_a_missing_file_is_named(root):
    (root / "mini-vae" / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError,
        match="checkpoint mini-vae: missing mini-vae/config.json; restore it from",
    ):
        zoo.load("mini-vae", root=root)
    zoo.verify("features/video", root)
    shutil.rmtree(root / "features")
    with pytest.raises(
        FileNotFoundError, match="missing features/video/config.json, features/video/diffusion"
    ):
        zoo.load("features/video", root=root)


@pytest.mark.parametrize(
    "file", ["config.json", "diffusion_pytorch_model.safetensors", "evaluation.json"]
)
def test_a_corrupt_file_is_named(root, file):
    path = root / "mini-vae" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"checkpoint mini-vae: corrupt mini-vae/{file} .*; restore it from"
    ):
        zoo.load("mini-vae", root=root)


def test_a_card_may_be_edited(root):
    (root / "mini-vae" / "README.md").write_text("# Better words\n", encoding="utf-8")
    zoo.verify("mini-vae", root)
    assert zoo.card("mini-vae", root).text == "# Better words\n"


def test_weights_that_nobody_listed_are_refused(root):
    save_file({"a": torch.ones(1)}, root / "mini-vae" / "model.safetensors")
    with pytest.raises(ValueError, match="mini-vae/model.safetensors not in SHA256SUMS"):
        zoo.load("mini-vae", root=root)


@pytest.mark.parametrize("suffix", zoo.PICKLE_SUFFIXES)
def test_pickles_are_refused(root, tmp_path, suffix):
    (root / "mini-vae" / f"weights{suffix}").write_bytes(b"")
    with pytest.raises(
        ValueError, match=f"mini-vae: expected safetensors only, got weights{suffix}"
    ):
        zoo.load("mini-vae", root=root)
    with pytest.raises(ValueError, match=f"save: expected safetensors only, got weights{suffix}"):
        store(root, "new", save=lambda folder: (folder / f"weights{suffix}").write_bytes(b""))


def test_a_file_that_did_not_change_is_not_read_again(root, monkeypatch):
    zoo.load("mini-vae", root=root)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    zoo.load("mini-vae", root=root)


@pytest.mark.parametrize("file", ["config.json", "evaluation.json", "SHA256SUMS"])
def test_a_change_after_the_first_load_is_noticed(root, file):
    """Even with the old size and the old time, as a copying program may leave them."""
    zoo.load("mini-vae", root=root)
    path = root / "mini-vae" / file if file != "SHA256SUMS" else root / file
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0", b"1", 1) if file == "SHA256SUMS" else content[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    name = "mini-vae" if file != "SHA256SUMS" else "features/video"
    with pytest.raises(ValueError, match="corrupt"):
        [zoo.load(name, root=root) for name in zoo.names(root)]
    path.write_bytes(content)
    zoo.load(name, root=root)


def test_storing_again_replaces_all_of_it_and_nothing_else(root):
    zoo.load("mini-vae", root=root)
    before = (root / "SHA256SUMS").read_text(encoding="utf-8")
    (root / "mini-vae" / "left over").write_text("", encoding="utf-8")
    smaller = AutoencoderKL(**VAE | {"latent_channels": 1})
    folder = store(root, "mini-vae", smaller)
    assert folder == root / "mini-vae" and not (folder / "left over").exists()
    assert zoo.load("mini-vae", root=root).config.latent_channels == 1
    after = (root / "SHA256SUMS").read_text(encoding="utf-8")
    assert [line for line in after.splitlines() if "features" in line] == before.splitlines()[:3]
    assert after != before and after.splitlines() == sorted(
        after.splitlines(), key=lambda line: line[66:]
    )
    assert sorted(path.name for path in root.iterdir()) == ["SHA256SUMS", "features", "mini-vae"]


def test_a_save_that_fails_leaves_what_was_there(root):
    def fails(folder):
        (folder / "config.json").write_text("half", encoding="utf-8")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        store(root, "mini-vae", save=fails)
    zoo.verify("mini-vae", root)
    assert sorted(path.name for path in root.iterdir()) == ["SHA256SUMS", "features", "mini-vae"]


def test_metadata_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="metadata: expected the key 'evaluation', got seed"):
        zoo.store("x", lambda folder: None, {"seed": 0}, "", tmp_path)
    assert list(tmp_path.iterdir()) == []


# Deltas, and what is loaded once


def test_a_delta_knows_its_kind_and_base():
    for name, part in (("mini-video", "unet"), ("temporal-vae", "vae")):
        base = json.loads((zoo.path(name) / zoo.BASE_FILE).read_text(encoding="utf-8"))
        assert (base["name"], base["kind"], base["part"]) == ("mini-sd", "temporal-layers", part)
        assert base["kind"] in zoo.DELTA_KINDS and part in zoo.BASE_PARTS


def test_temporal_layers_come_back(tmp_path):
    image_vae = vae()
    model = inflate_decoder(image_vae)
    for parameter in model.temporal.parameters():
        torch.nn.init.normal_(parameter)
    zoo.save_temporal_layers(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        zoo.TEMPORAL_WEIGHTS_NAME,
    ]
    loaded = zoo.load_temporal_layers(image_vae, tmp_path)
    for name, value in model.temporal.state_dict().items():
        assert torch.equal(loaded.temporal.state_dict()[name], value.half().float())
    for name, value in image_vae.state_dict().items():
        assert torch.equal(loaded.spatial.state_dict()[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mini-sd", "vae", "prefix"), "kind: expected one of temporal-layers, .*, got 'prefix'"),
        (("mini-sd", "vae", "lora"), "part: expected one of unet of mini-sd, got 'vae'"),
        (
            ("mini-sd", "tokenizer", "temporal-layers"),
            "part: expected one of unet, vae of mini",
        ),
        (("mini-sd", "vae", "temporal-layers"), "model: expected the weights of mini-sd/vae"),
        (("maxi-sd", "vae", "temporal-layers"), "name: expected one of .*; got 'maxi-sd'"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(tmp_path, arguments, message):
    base, part, kind = arguments
    with pytest.raises(ValueError, match=message):
        zoo.write_base(tmp_path, base, part, vae(), kind)


def test_cached_models_are_loaded_once():
    assert zoo.load_cached("judge") is zoo.load_cached("judge", runtime.device())


@pytest.mark.filterwarnings("ignore:prompts. words that the tokenizer does not know")
def test_the_text_encoder_is_mini_clips_and_reads_as_mini_sds():
    """One token per word, as the tokenizer that mini-sd brings along."""
    prompts = ["a poodle on a sea background", "xyzzy, an owl", ""]
    text_encoder = zoo.load_text_encoder()
    assert text_encoder is zoo.load_text_encoder()
    pipeline = zoo.load("mini-sd")
    other = TextEncoder(pipeline.text_encoder, pipeline.tokenizer)
    assert torch.equal(text_encoder.tokenize(prompts), other.tokenize(prompts))
    torch.testing.assert_close(text_encoder(prompts).cpu(), other(prompts))
    both = zoo.load_text_encoder(token_embeddings=True)
    assert both.dim == 2 * text_encoder.dim and both(prompts).shape[-1] == both.dim
