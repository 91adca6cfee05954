"""Delta checkpoints: weights stored on top of a base checkpoint.

`base.json` has the kind of the delta, the name of the base, the part of it that was changed, and
the checksums of the base's files that the delta needs. LoRA, ControlNet, T2I-Adapter and textual
inversion have diffusers' own format. A new kind is one entry of `DELTA_KINDS`.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.files import read_checksums, write_json
from course_lib.validation import require
from course_lib.zoo.checksums import EVALUATION_FILE, files_under
from course_lib.zoo.registry import (
    check_name,
    default_root,
    find_class,
    load,
    load_folder,
    names,
    read_object,
    to_root,
)

BASE_FILE = "base.json"
# Part of a pipeline → the folder whose files a delta needs ("": all, as it makes a pipeline again)
BASE_PARTS = {"unet": "", "text_encoder": "", "vae": "vae/"}
# Not diffusers' name: it would load the folder as a complete model and fill it with random weights
TEMPORAL_WEIGHTS_NAME = "temporal.safetensors"
# diffusers' names
LORA_WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
EMBEDDING_WEIGHTS_NAME = "learned_embeds.safetensors"


def save_temporal_layers(model: nn.Module, folder: Path | str) -> None:
    """Write configuration and temporal layers of a model, without its image model.

    Args:
        model: an InflatedUNet or TemporalAutoencoder; written in half precision.
        folder: must exist.
    """
    folder = Path(folder)
    model.save_config(folder)
    layers = model.temporal.state_dict().items()
    weights = {name: value.half().contiguous() for name, value in layers}
    save_file(weights, folder / TEMPORAL_WEIGHTS_NAME)


def load_temporal_layers(base_model: nn.Module, folder: Path | str) -> nn.Module:
    """An image model with the temporal layers of `save_temporal_layers`.

    Args:
        base_model: the UNet2DConditionModel or AutoencoderKL of their training; it is copied.
        folder: of the layers.

    Returns:
        An InflatedUNet or a TemporalAutoencoder.

    Raises:
        FileNotFoundError: the folder has no such layers.
        ValueError: a damaged configuration, or one of another class.
        RuntimeError: weights are missing, or there are too many.
    """
    from diffusers import AutoencoderKL

    from course_lib.nn.inflate import InflatedUNet
    from course_lib.nn.temporal_decoder import TemporalAutoencoder
    from course_lib.nn.utils import to_like

    model_class = TemporalAutoencoder if isinstance(base_model, AutoencoderKL) else InflatedUNet
    file = Path(folder, "config.json")
    config = read_object(file, "_class_name")  # diffusers would look for the folder on its hub
    is_own = config["_class_name"] == model_class.__name__
    require(is_own, str(file), f"a {model_class.__name__}", repr(config["_class_name"]))
    model = to_like(model_class.from_config(config), base_model)
    model.spatial.load_state_dict(base_model.state_dict())
    model.temporal.load_state_dict(load_file(Path(folder, TEMPORAL_WEIGHTS_NAME)))
    return model.train(base_model.training)


def _load_temporal(pipeline: Any, part: str, folder: Path) -> Any:
    """An image pipeline as a video pipeline, or just its autoencoder, with temporal layers."""
    from course_lib.pipelines.text_to_video import TextToVideoPipeline

    model = load_temporal_layers(getattr(pipeline, part), folder)
    if part != "unet":
        return model
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_object(file, "_class_name")
    scheduler_class = find_class(file, config["_class_name"], "diffusers", "SchedulerMixin")
    scheduler = scheduler_class.from_config(config)
    return TextToVideoPipeline.from_image_pipeline(pipeline, model, scheduler)


def save_lora(unet: nn.Module, folder: Path | str) -> None:
    """Write the LoRA of a U-Net in half precision, for diffusers' `load_lora_weights`.

    Args:
        unet: a UNet2DConditionModel with peft's adapter "default" (`unet.add_adapter`).
        folder: must exist.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    weights = {name: value.half() for name, value in layers.items()}
    metadata = unet.peft_config["default"].to_dict()  # has lora_alpha
    StableDiffusionPipeline.save_lora_weights(folder, weights, unet_lora_adapter_metadata=metadata)


def _load_lora(pipeline: Any, part: str, folder: Path) -> Any:
    """The image pipeline with a LoRA, which is not fused with its weights."""
    pipeline.load_lora_weights(
        folder, weight_name=LORA_WEIGHTS_NAME, local_files_only=True, use_safetensors=True
    )
    return pipeline


def save_controlnet(model: nn.Module, folder: Path | str) -> None:
    """Write a ControlNetModel or T2IAdapter in half precision, without changing the model."""
    deepcopy(model).half().save_pretrained(folder)


def _load_controlnet(pipeline: Any, part: str, folder: Path) -> Any:
    """diffusers' pipeline for a ControlNet or T2I-Adapter, with the parts of an image pipeline."""
    import diffusers

    model = load_folder(folder, pipeline.dtype)
    parts = {name: x for name, x in pipeline.components.items() if name != "image_encoder"}
    parts["requires_safety_checker"] = pipeline.config.requires_safety_checker
    if isinstance(model, diffusers.T2IAdapter):
        return diffusers.StableDiffusionAdapterPipeline(adapter=model, **parts)
    return diffusers.StableDiffusionControlNetPipeline(controlnet=model, **parts)


def save_text_embedding(embedding: Mapping[str, Tensor], folder: Path | str) -> None:
    """Write a new token of textual inversion in half precision, in diffusers' format.

    Args:
        embedding: the token and its embedding, (d,), or several vectors, (n, d).
        folder: must exist.

    Raises:
        ValueError: several tokens.
    """
    require(len(embedding) == 1, "embedding", "one token", ", ".join(embedding) or "none")
    weights = {token: value.detach().half().contiguous() for token, value in embedding.items()}
    save_file(weights, Path(folder, EMBEDDING_WEIGHTS_NAME))


def _load_text_embedding(pipeline: Any, part: str, folder: Path) -> Any:
    """The image pipeline with the new token in its tokenizer and text encoder."""
    pipeline.load_textual_inversion(load_file(folder / EMBEDDING_WEIGHTS_NAME))
    return pipeline


class DeltaKind(NamedTuple):
    """How deltas of one kind are written and loaded.

    Attributes:
        save: (model, folder) → None.
        load: (base pipeline, part, folder) → model or pipeline.
        parts: of `BASE_PARTS`, those that such a delta may change.
    """

    save: Callable[[Any, Path], None]
    load: Callable[[Any, str, Path], Any]
    parts: tuple[str, ...]


DELTA_KINDS = {
    "temporal-layers": DeltaKind(save_temporal_layers, _load_temporal, ("unet", "vae")),
    "lora": DeltaKind(save_lora, _load_lora, ("unet",)),
    "controlnet": DeltaKind(save_controlnet, _load_controlnet, ("unet",)),
    "text-embedding": DeltaKind(save_text_embedding, _load_text_embedding, ("text_encoder",)),
}


def write_base(
    folder: Path | str, base: str, part: str, model: nn.Module, kind: str = "temporal-layers"
) -> None:
    """Write `base.json` next to a delta.

    Args:
        folder: of the delta.
        base: name of an image pipeline, one of `zoo.names()`.
        part: of the pipeline, one of the kind's parts: "unet", "text_encoder" or "vae".
        model: that part, with the weights on which the delta was trained. It may have its LoRA and
            its new tokens.
        kind: one of `DELTA_KINDS`.

    Raises:
        ValueError: an unknown name, part or kind, or a stored part with other weights than `model`.
    """
    root = to_root(None)
    check_name(base, root)
    require(kind in DELTA_KINDS, "kind", f"one of {', '.join(DELTA_KINDS)}", repr(kind))
    parts = DELTA_KINDS[kind].parts
    has_part = part in parts and (root / base / part).is_dir()
    require(has_part, "part", f"one of {', '.join(parts)} of {base}", repr(part))
    stored = load_folder(root / base / part).state_dict()
    weights = {
        name.replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    # The embeddings of new tokens are rows behind those of the base
    is_equal = stored.keys() == weights.keys() and all(
        torch.equal(value.half(), weights[name][: len(value)].half().cpu())
        for name, value in stored.items()
    )
    require(is_equal, "model", f"the weights of {base}/{part}", "others")
    content = {"name": base, "kind": kind, "part": part, "sha256": _base_files(base, part, root)}
    write_json(Path(folder, BASE_FILE), content)


def _base_files(base: str, part: str, root: Path) -> dict[str, str]:
    """Files of a base that a delta of a part needs, with their checksums."""
    files = files_under(base, read_checksums(root))
    prefix = BASE_PARTS[part]
    return {k: v for k, v in files.items() if k.startswith(prefix) and k != EVALUATION_FILE}


def load_delta(name: str, folder: Path, dtype: torch.dtype, root: Path | str | None) -> Any:
    """Load a delta and its base.

    Args:
        name: of the delta, for messages.
        folder: of the delta.
        dtype: of the weights in memory.
        root: folder of checkpoints with the base; None, or a folder without it, means the course's
            own.

    Raises:
        FileNotFoundError: the base is missing.
        ValueError: a damaged `base.json`, or the base's files differ from those that the delta was
            trained on.
    """
    file = folder / BASE_FILE
    content = read_object(file, "name", "kind", "part", "sha256")
    base, part, kind = content["name"], content["part"], content["kind"]
    is_known = isinstance(kind, str) and kind in DELTA_KINDS
    require(is_known, str(file), f"one of the kinds {', '.join(DELTA_KINDS)}", repr(kind))
    require(part in DELTA_KINDS[kind].parts, str(file), f"a part that {kind} changes", repr(part))
    if root is None or base not in names(root):
        root = default_root()
    if base not in names(root):
        raise FileNotFoundError(f"checkpoint {name}: its base {base} is missing")
    is_pipeline = (to_root(root) / base / "model_index.json").is_file()
    require(is_pipeline, str(file), "the name of an image pipeline", repr(base))
    if _base_files(base, part, to_root(root)) != content["sha256"]:
        raise ValueError(
            f"checkpoint {name}: made for another {base}; restore that from the repository, or "
            f"train again: python -m course_lib.recipes {name}"
        )
    return DELTA_KINDS[kind].load(load(base, dtype=dtype, root=root), part, folder)
