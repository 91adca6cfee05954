"""Damaged, hostile or mistyped folders are refused by name, without network or foreign code."""

import json
import shutil
import socket
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, UNet2DModel
from transformers import CLIPConfig, CLIPModel

from course_lib import files, zoo
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.zoo import deltas, registry

VAE = dict(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)
UNET = dict(block_out_channels=(8,), norm_num_groups=4, sample_size=8, layers_per_block=1)
UNET |= dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False)
TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
CLIP = dict(text_config=TEXT | {"vocab_size": 20}, vision_config=TEXT | {"image_size": 8})


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("network"))


def store(root, name, save):
    zoo.store(name, save, {"evaluation": {}}, f"# {name}\n", root)


def store_vae(root, name="vae"):
    store(root, name, AutoencoderKL(**VAE).half().save_pretrained)


def edit(root, file, content):
    """Replace a file, and its checksum, as the author of a folder could."""
    path = root / file
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    files.write_checksums(files.read_checksums(root) | {file: files.sha256(path)}, root)


# Every kind of checkpoint takes the same dtypes


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    store_vae(root, "diffusers")
    clip = CLIPModel(CLIPConfig(**CLIP | {"projection_dim": 8}))
    store(root, "transformers", clip.half().save_pretrained)
    pipeline = DDIMPipeline(UNet2DModel(**UNET), DDIMScheduler())
    store(root, "pipeline", pipeline.to(dtype=torch.float16).save_pretrained)
    return root


KINDS = ["diffusers", "transformers", "pipeline"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "x", None, 16, float, torch.int8, torch.uint8])
def test_what_is_no_dtype_of_weights_is_refused_for_every_kind(kinds, name, dtype):
    with pytest.raises(ValueError, match="dtype: expected one of torch.float32, torch.float16"):
        zoo.load(name, dtype=dtype, root=kinds)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_kind_has_the_dtype_that_was_asked_for(kinds, name, dtype):
    loaded = zoo.load(name, dtype=dtype, root=kinds)
    model = loaded.unet if name == "pipeline" else loaded
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_deltas_too():
    with pytest.raises(ValueError, match="dtype: expected one of"):
        zoo.load("mini-video", dtype="float16")


# Names and paths


def test_an_unknown_name_comes_with_a_suggestion(kinds):
    with pytest.raises(ValueError, match="; got 'difusers'; did you mean 'diffusers'"):
        zoo.load("difusers", root=kinds)
    with pytest.raises(ValueError, match="; got 'mini-video2'; did you mean 'mini-video'"):
        zoo.card("mini-video2")


def test_a_folder_may_be_a_str(kinds, tmp_path, monkeypatch):
    root = tmp_path / "root"
    store_vae(str(root))
    zoo.verify("vae", str(root))
    assert zoo.names(str(root)) == ["vae"] and zoo.card("vae", str(root)).name == "vae"
    assert zoo.path("vae", str(root)) == root / "vae"
    model = inflate_decoder(zoo.load("vae", root=str(root)))
    zoo.save_temporal_layers(model, str(tmp_path))
    assert isinstance(zoo.load_temporal_layers(model.spatial, str(tmp_path)), type(model))
    zoo.save_text_embedding({"<new>": torch.zeros(4)}, str(tmp_path))
    monkeypatch.chdir(root)
    store_vae(".", "another")
    assert zoo.names(".") == ["another", "vae"]


def test_a_mistyped_folder_stays_local(tmp_path):
    vae = AutoencoderKL(**VAE)
    for folder in (tmp_path / "some" / "where", "some/where"):
        with pytest.raises(FileNotFoundError, match="some/where/config.json"):
            zoo.load_temporal_layers(vae, folder)
    zoo.save_temporal_layers(inflate_decoder(vae), tmp_path)
    with pytest.raises(FileNotFoundError, match="scheduler/scheduler_config.json"):
        deltas._load_temporal(_Parts(unet=vae), "unet", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere/config.json"):
        registry.load_folder(tmp_path / "nowhere")


class _Parts:
    def __init__(self, **parts):
        self.__dict__ |= parts


# Configurations

NOT_CLASSES = [None, 3, [], {}, "", "os", "__class__", "__name__", "logging", "ModelMixin.load",
               "DDIMScheduler", "DiffusionPipeline", "AutoPipelineForText2Image", "Nonsense",
               "CLIPModel", "DummyObject"]  # fmt: skip


@pytest.mark.parametrize("class_name", NOT_CLASSES)
def test_only_models_are_built_from_a_model_configuration(tmp_path, class_name):
    store_vae(tmp_path)
    edit(tmp_path, "vae/config.json", {"_class_name": class_name})
    with pytest.raises(ValueError, match=r"vae/config\.json: expected a class of diffusers that"):
        zoo.load("vae", root=tmp_path)


@pytest.mark.parametrize(
    "architectures", [None, 3, [], {}, "CLIPModel", [None], [3], ["AutoModel"], ["Trainer"],
                      ["CLIPTokenizer"], ["pipeline"], ["__class__"]]
)  # fmt: skip
def test_only_transformers_models_are_built_from_theirs(tmp_path, architectures):
    store_vae(tmp_path)
    edit(tmp_path, "vae/config.json", {"architectures": architectures, "model_type": "clip"})
    with pytest.raises(ValueError, match=r"vae/config\.json: expected a class of transformers"):
        zoo.load("vae", root=tmp_path)


@pytest.mark.parametrize("class_name", [None, 3, ["pipeline", "Mine"], "UNet2DModel", "os", "Mine"])
def test_only_pipelines_are_built_from_an_index(kinds, tmp_path, class_name):
    shutil.copytree(kinds, tmp_path / "root")
    content = files.read_json(kinds / "pipeline" / "model_index.json")
    edit(tmp_path / "root", "pipeline/model_index.json", content | {"_class_name": class_name})
    with pytest.raises(ValueError, match=r"model_index\.json: expected a class of diffusers that"):
        zoo.load("pipeline", root=tmp_path / "root")


@pytest.mark.parametrize("library", ["os", "pipeline", "scheduler", "course_lib", "trap", 3])
def test_a_pipeline_imports_no_module_that_its_index_names(kinds, tmp_path, library, monkeypatch):
    shutil.copytree(kinds, tmp_path / "root")
    (tmp_path / "trap.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    content = files.read_json(kinds / "pipeline" / "model_index.json")
    content["scheduler"] = [library, "DDIMScheduler"]
    edit(tmp_path / "root", "pipeline/model_index.json", content)
    with pytest.raises(ValueError, match=r"index\.json: expected scheduler of diffusers or"):
        zoo.load("pipeline", root=tmp_path / "root")
    assert "trap" not in sys.modules


@pytest.mark.parametrize("class_name", [*NOT_CLASSES[:10], "AutoencoderKL", "SchedulerOutput"])
def test_only_schedulers_are_built_from_the_one_of_a_delta(tmp_path, class_name):
    zoo.save_temporal_layers(inflate_decoder(AutoencoderKL(**VAE)), tmp_path)
    (tmp_path / "scheduler").mkdir()
    files.write_json(tmp_path / "scheduler" / "scheduler_config.json", {"_class_name": class_name})
    with pytest.raises(ValueError, match=r"scheduler_config\.json: expected a class of diffusers"):
        deltas._load_temporal(_Parts(unet=AutoencoderKL(**VAE)), "unet", tmp_path)


def test_layers_of_another_class_are_refused(tmp_path):
    AutoencoderKL(**VAE).save_config(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: expected a TemporalAutoencoder, got 'Aut"):
        zoo.load_temporal_layers(AutoencoderKL(**VAE), tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "\N{COMBINING ACUTE ACCENT}"])
@pytest.mark.parametrize("file", ["config.json", "evaluation.json", "base.json"])
def test_a_damaged_json_file_is_named(tmp_path, file, content):
    store_vae(tmp_path)
    edit(tmp_path, f"vae/{file}", content)
    read = zoo.card if file == "evaluation.json" else zoo.load
    with pytest.raises(ValueError, match=f"vae/{file}: expected"):
        read("vae", root=tmp_path)


def test_a_card_in_another_encoding_is_named(tmp_path):
    store_vae(tmp_path)
    (tmp_path / "vae" / "README.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"vae/README\.md: expected text in UTF-8"):
        zoo.card("vae", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "virus"}, "base.json: expected one of the kinds temporal-layers, .*, got 'virus"),
        ({"kind": ["lora"]}, "base.json: expected one of the kinds"),
        ({"part": "vae"}, "base.json: expected a part that lora changes, got 'vae'"),
        ({"part": "__class__"}, "base.json: expected a part that lora changes"),
        ({"name": "delta"}, "base.json: expected the name of an image pipeline, got 'delta'"),
        ({"name": "judge"}, "base.json: expected the name of an image pipeline, got 'judge'"),
        ({"sha256": {}}, "checkpoint delta: made for another mini-sd"),
        ({"sha256": None}, "checkpoint delta: made for another mini-sd"),
    ],
)
def test_a_base_file_that_makes_no_sense_is_named(tmp_path, change, message):
    content = {"name": "mini-sd", "kind": "lora", "part": "unet", "sha256": {}}
    content["sha256"] = deltas._base_files("mini-sd", "unet", zoo.default_root())
    write = lambda folder: files.write_json(folder / "base.json", content | change)  # noqa: E731
    store(tmp_path, "delta", write)
    with pytest.raises(ValueError, match=message):
        zoo.load("delta", root=tmp_path)
