"""Names of checkpoints, and how a name becomes a model, a pipeline or a card."""

import importlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course_lib import runtime
from course_lib.zoo.checksums import (
    CARD_FILE,
    EVALUATION_FILE,
    model_files,
    read_checksums,
    verify_folder,
)

# Checkpoints that are a part of another one, whose folder then has the only copy
ALIASES = {"mini-vae": "mini-sd/vae"}
# Models of this course: diffusers' ModelMixin writes only the name of the class
COURSE_CLASSES = {"VideoClassifier": "course_lib.nn.classifier", "VideoUNet": "course_lib.nn.unet"}


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint.

    Attributes:
        name: of the checkpoint.
        text: the model card, Markdown.
        metadata: content of `evaluation.json`: recipe, targets, seed, steps, machine, versions, …
    """

    name: str
    text: str
    metadata: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        """Metrics on the test split, by name."""
        return self.metadata["evaluation"]


def default_root() -> Path:
    """The folder of the shipped checkpoints, `data/checkpoints`."""
    return runtime.data_dir() / "checkpoints"


def names(root: Path | None = None) -> list[str]:
    """All checkpoints, sorted; a name may contain a slash.

    Args:
        root: folder of checkpoints; None is the course's own.
    """
    files = read_checksums(root or default_root())
    suffix = f"/{EVALUATION_FILE}"
    return sorted(file.removesuffix(suffix) for file in files if file.endswith(suffix))


def check_name(name: str, root: Path) -> None:
    """Raise ValueError, listing the valid names, unless `root` has a checkpoint of this name."""
    valid_names = names(root)
    if name not in valid_names:
        listing = ", ".join(valid_names) or "none, there are no checkpoints yet"
        raise ValueError(f"name: expected one of {listing}; got {name!r}")


def model_folder(name: str, root: Path) -> str:
    """Folder of a checkpoint's model, relative to `root`: its own, or that of `ALIASES`."""
    has_own_model = bool(model_files(name, read_checksums(root)))
    return name if has_own_model else ALIASES.get(name, name)


def path(name: str, root: Path | None = None) -> Path:
    """Folder of a checkpoint's model, for `from_pretrained`; its files are verified first.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: see `verify`.
        FileNotFoundError: see `verify`.
    """
    root = root or default_root()
    _verify_once(name, root)
    return root / model_folder(name, root)


def verify(name: str, root: Path | None = None) -> None:
    """Compare every file of a checkpoint with the list of checksums.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: an unknown name, a damaged file, unlisted safetensors, or a pickle.
        FileNotFoundError: missing files; the message names all of them.
    """
    root = root or default_root()
    check_name(name, root)
    for folder in sorted({name, model_folder(name, root)}):
        verify_folder(name, folder, root)


@cache
def _verify_once(name: str, root: Path) -> None:
    verify(name, root)


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    root: Path | None = None,
) -> Any:
    """Load a checkpoint in evaluation mode, without gradients.

    Args:
        name: one of `names()`.
        dtype: of the weights in memory; on the disk they have half precision.
        device: any torch device.
        root: folder of checkpoints; None is the course's own.

    Returns:
        A pipeline for folders with a `model_index.json` (mini-sd) and for deltas on one
        (mini-video).
        Otherwise a model, such as the VideoUNet of vdm; `recipes.vdm.build_pipeline` makes a
        pipeline of it.

    Raises:
        ValueError: an unknown name, a damaged file, or a base with other files than the delta
            needs.
        FileNotFoundError: a missing file.
    """
    from course_lib.zoo import deltas  # it imports this module

    folder = path(name, root)
    if (folder / deltas.BASE_FILE).exists():
        loaded = deltas.load_delta(name, folder, dtype, root).to(device)
    else:
        loaded = load_folder(folder, dtype).to(device)
    parts = [loaded] if isinstance(loaded, nn.Module) else loaded.components.values()
    for part in parts:
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return loaded


def load_cached(name: str, device: torch.device | str | None = None) -> Any:
    """As `load`, once per process and device: every caller shares the object.

    Args:
        name: one of `names()`.
        device: any torch device; None is the machine's (`runtime.device`).
    """
    return _load_cached(name, str(device or runtime.device()), default_root())


@cache
def _load_cached(name: str, device: str, root: Path) -> Any:
    return load(name, device=device, root=root)


def load_text_encoder(token_embeddings: bool = False) -> Any:
    """mini-clip's text half and tokenizer on the machine's device, once per process.

    Args:
        token_embeddings: whether to append the input embeddings; see `TextEncoder`.

    Returns:
        A `pipelines.text_encoder.TextEncoder`.
    """
    return _load_text_encoder(token_embeddings, str(runtime.device()), default_root())


@cache
def _load_text_encoder(token_embeddings: bool, device: str, root: Path) -> Any:
    from transformers import CLIPTokenizer

    from course_lib.pipelines.text_encoder import TextEncoder

    tokenizer = CLIPTokenizer.from_pretrained(path("mini-clip", root), local_files_only=True)
    clip = _load_cached("mini-clip", device, root)
    return TextEncoder.from_clip(clip, tokenizer, token_embeddings)


def card(name: str, root: Path | None = None) -> Card:
    """The card of a checkpoint; its weights are not read.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: a missing card.
    """
    root = root or default_root()
    check_name(name, root)
    metadata = json.loads((root / name / EVALUATION_FILE).read_text(encoding="utf-8"))
    return Card(name, (root / name / CARD_FILE).read_text(encoding="utf-8"), metadata)


def load_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model or pipeline in a folder that has all of its files; they are not verified."""
    with runtime.no_progress_bars():
        return _resolve_class(folder).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )


def _resolve_class(folder: Path) -> Any:
    """The class that reads a folder, from its configuration."""
    if (folder / "model_index.json").exists():
        return importlib.import_module("diffusers").DiffusionPipeline
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "_class_name" in config:
        class_name = config["_class_name"]
        module = importlib.import_module(COURSE_CLASSES.get(class_name, "diffusers"))
        return getattr(module, class_name)
    return getattr(importlib.import_module("transformers"), config["architectures"][0])
