"""Delta checkpoints: weights stored on top of a base checkpoint.

`base.json` has the kind of the delta, the name of the base, the part of it that was changed, and
the checksums of the base's files that the delta needs. A new kind is one entry of `DELTA_KINDS`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from course_lib.validation import require
from course_lib.zoo.checksums import EVALUATION_FILE, files_under, read_checksums, write_text
from course_lib.zoo.registry import check_name, default_root, load, names

BASE_FILE = "base.json"
# Part of a pipeline → the folder whose files a delta needs ("": all, as it makes a pipeline again)
BASE_PARTS = {"unet": "", "vae": "vae/"}
# Not diffusers' name: it would load the folder as a complete model and fill it with random weights
TEMPORAL_WEIGHTS_NAME = "temporal.safetensors"


def save_temporal_layers(model: nn.Module, folder: Path) -> None:
    """Write configuration and temporal layers of a model, without its image model.

    Args:
        model: an InflatedUNet or TemporalAutoencoder; written in half precision.
        folder: must exist.
    """
    model.save_config(folder)
    layers = model.temporal.state_dict().items()
    weights = {name: value.half().contiguous() for name, value in layers}
    save_file(weights, folder / TEMPORAL_WEIGHTS_NAME)


def load_temporal_layers(base_model: nn.Module, folder: Path) -> nn.Module:
    """An image model with the temporal layers of `save_temporal_layers`.

    Args:
        base_model: the UNet2DConditionModel or AutoencoderKL of their training; it is copied.
        folder: of the layers.

    Returns:
        An InflatedUNet or a TemporalAutoencoder.

    Raises:
        RuntimeError: weights are missing, or there are too many.
    """
    from diffusers import AutoencoderKL

    from course_lib.nn.inflate import InflatedUNet
    from course_lib.nn.temporal_decoder import TemporalAutoencoder
    from course_lib.nn.utils import to_like

    model_class = TemporalAutoencoder if isinstance(base_model, AutoencoderKL) else InflatedUNet
    model = to_like(model_class.from_config(model_class.load_config(folder)), base_model)
    model.spatial.load_state_dict(base_model.state_dict())
    model.temporal.load_state_dict(load_file(folder / TEMPORAL_WEIGHTS_NAME))
    return model.train(base_model.training)


def _load_temporal(pipeline: Any, part: str, folder: Path) -> Any:
    """An image pipeline as a video pipeline, or just its autoencoder, with temporal layers."""
    import diffusers

    from course_lib.pipelines.text_to_video import TextToVideoPipeline

    model = load_temporal_layers(getattr(pipeline, part), folder)
    if part != "unet":
        return model
    config = diffusers.DDIMScheduler.load_config(folder, subfolder="scheduler")  # of any class
    scheduler_class = getattr(diffusers, config["_class_name"])
    scheduler = scheduler_class.from_pretrained(folder, subfolder="scheduler")
    return TextToVideoPipeline.from_image_pipeline(pipeline, model, scheduler)


class DeltaKind(NamedTuple):
    """How deltas of one kind are written and loaded.

    Attributes:
        save: (model, folder) → None.
        load: (base pipeline, part, folder) → model or pipeline.
    """

    save: Callable[[Any, Path], None]
    load: Callable[[Any, str, Path], Any]


DELTA_KINDS = {"temporal-layers": DeltaKind(save_temporal_layers, _load_temporal)}


def write_base(
    folder: Path, base: str, part: str, model: nn.Module, kind: str = "temporal-layers"
) -> None:
    """Write `base.json` next to a delta.

    Args:
        folder: of the delta.
        base: name of an image pipeline, one of `zoo.names()`.
        part: of the pipeline: "unet", which loads as a pipeline for video, or "vae".
        model: that part, with the weights on which the delta was trained.
        kind: one of `DELTA_KINDS`.

    Raises:
        ValueError: an unknown name, part or kind, or a stored part with other weights than `model`.
    """
    root = default_root()
    check_name(base, root)
    require(kind in DELTA_KINDS, "kind", f"one of {', '.join(DELTA_KINDS)}", repr(kind))
    weights_file = root / base / part / SAFETENSORS_WEIGHTS_NAME
    has_part = part in BASE_PARTS and weights_file.exists()
    require(has_part, "part", f"one of {', '.join(BASE_PARTS)} of {base}", repr(part))
    stored = load_file(weights_file)
    weights = model.state_dict()
    is_equal = stored.keys() == weights.keys() and all(
        torch.equal(value.half(), weights[name].half().cpu()) for name, value in stored.items()
    )
    require(is_equal, "model", f"the weights of {base}/{part}", "others")
    content = {"name": base, "kind": kind, "part": part, "sha256": _base_files(base, part, root)}
    write_text(folder / BASE_FILE, json.dumps(content, indent=1) + "\n")


def _base_files(base: str, part: str, root: Path) -> dict[str, str]:
    """Files of a base that a delta of a part needs, with their checksums."""
    files = files_under(base, read_checksums(root))
    prefix = BASE_PARTS[part]
    return {k: v for k, v in files.items() if k.startswith(prefix) and k != EVALUATION_FILE}


def load_delta(name: str, folder: Path, dtype: torch.dtype, root: Path | None) -> Any:
    """Load a delta and its base.

    Args:
        name: of the delta, for messages.
        folder: of the delta.
        dtype: of the weights in memory.
        root: folder of checkpoints with the base; None, or a folder without it, means the course's
            own.

    Raises:
        FileNotFoundError: the base is missing.
        ValueError: the base's files differ from those that the delta was trained on.
    """
    content = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
    base = content["name"]
    part = content["part"]
    if root is None or base not in names(root):
        root = default_root()
    if base not in names(root):
        raise FileNotFoundError(f"checkpoint {name}: its base {base} is missing")
    if _base_files(base, part, root) != content["sha256"]:
        raise ValueError(
            f"checkpoint {name}: made for another {base}; restore that from the repository, or "
            f"train again: python -m course_lib.recipes {name}"
        )
    return DELTA_KINDS[content["kind"]].load(load(base, dtype=dtype, root=root), part, folder)
