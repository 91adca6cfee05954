"""Names of checkpoints, and how a name becomes a model, a pipeline or a card."""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course_lib import runtime
from course_lib.files import read_checksums, read_json, read_text
from course_lib.validation import check_choice, require
from course_lib.zoo.checksums import CARD_FILE, EVALUATION_FILE, model_files, verify_folder
from course_lib.zoo.journal import read_consistently

# Checkpoints that are a part of another one, whose folder then has the only copy
ALIASES = {"mini-vae": "mini-sd/vae"}
# Models of this course: diffusers' ModelMixin writes only the name of the class
COURSE_CLASSES = {"VideoClassifier": "course_lib.nn.classifier", "VideoUNet": "course_lib.nn.unet"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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


def to_root(root: Path | str | None) -> Path:
    """A folder of checkpoints as an absolute path; None is the course's own."""
    return Path(default_root() if root is None else root).absolute()


def names(root: Path | str | None = None) -> list[str]:
    """All checkpoints, sorted; a name may contain a slash.

    Args:
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: the list of checksums is damaged.
    """
    files = read_checksums(to_root(root))
    suffix = f"/{EVALUATION_FILE}"
    return sorted(file.removesuffix(suffix) for file in files if file.endswith(suffix))


def check_name(name: str, root: Path) -> None:
    """Raise ValueError, listing the valid names, unless `root` has a checkpoint of this name."""
    valid_names = names(root)
    if name not in valid_names:
        listing = ", ".join(valid_names) or "none, there are no checkpoints yet"
        similar = difflib.get_close_matches(str(name), valid_names, n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        raise ValueError(f"name: expected one of {listing}; got {name!r}{hint}")


def model_folder(name: str, root: Path) -> str:
    """Folder of a checkpoint's model, relative to `root`: its own, or that of `ALIASES`."""
    has_own_model = bool(model_files(name, read_checksums(root)))
    return name if has_own_model else ALIASES.get(name, name)


def path(name: str, root: Path | str | None = None) -> Path:
    """Folder of a checkpoint's model, for `from_pretrained`; its files are verified first.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: see `verify`.
        FileNotFoundError: see `verify`.
    """
    root = to_root(root)

    def verified_folder() -> Path:
        _verify(name, root)
        return root / model_folder(name, root)

    return read_consistently(verified_folder, root)


def verify(name: str, root: Path | str | None = None) -> None:
    """Compare every file of a checkpoint with the list of checksums.

    A file that has not changed since it was last read is not read again.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: an unknown name, a damaged file, unlisted safetensors, or a pickle.
        FileNotFoundError: missing files; the message names all of them.
    """
    root = to_root(root)
    read_consistently(lambda: _verify(name, root), root)


def _verify(name: str, root: Path) -> None:
    """As `verify`, while no checkpoint is replaced."""
    check_name(name, root)
    for folder in sorted({name, model_folder(name, root)}):
        verify_folder(name, folder, root)


def load(
    name: str,
    *,
    dtype: Any = torch.float32,
    device: torch.device | str = "cpu",
    root: Path | str | None = None,
) -> Any:
    """Load a checkpoint in evaluation mode, without gradients.

    Args:
        name: one of `names()`.
        dtype: of the weights in memory, one of `DTYPES`; on the disk they have half precision.
        device: any torch device.
        root: folder of checkpoints; None is the course's own.

    Returns:
        A pipeline for folders with a `model_index.json` (mini-sd) and for deltas on one
        (mini-video).
        Otherwise a model, such as the VideoUNet of vdm; `recipes.vdm.build_pipeline` makes a
        pipeline of it.

    Raises:
        ValueError: an unknown name, another dtype, a damaged file, or a base with other files than
            the delta needs.
        FileNotFoundError: a missing file.
    """
    from course_lib.zoo import deltas  # it imports this module

    check_choice("dtype", dtype, DTYPES)  # a library would take a name, or ignore it

    def read() -> Any:
        folder = path(name, root)
        if (folder / deltas.BASE_FILE).exists():
            loaded = deltas.load_delta(name, folder, dtype, root)
        else:
            loaded = load_folder(folder, dtype)
        _verify(name, to_root(root))  # the files that were read belong together
        return loaded

    loaded = read_consistently(read, to_root(root)).to(device)
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


def card(name: str, root: Path | str | None = None) -> Card:
    """The card of a checkpoint; its weights are not read.

    Args:
        name: one of `names()`.
        root: folder of checkpoints; None is the course's own.

    Raises:
        ValueError: an unknown name, or a damaged file.
        FileNotFoundError: a missing card.
    """
    root = to_root(root)

    def read() -> Card:
        check_name(name, root)
        metadata = read_object(root / name / EVALUATION_FILE, "evaluation")
        return Card(name, read_text(root / name / CARD_FILE), metadata)

    return read_consistently(read, root)


def load_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model or pipeline in a folder that has all of its files; they are not verified."""
    with runtime.no_progress_bars():
        return _resolve_class(folder).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )


def read_object(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with these keys.

    Args:
        file: to read.
        keys: that it must have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is in it; the message names the file.
    """
    content = read_json(file)
    is_object = isinstance(content, dict) and all(key in content for key in keys)
    expected = f"an object with {', '.join(keys)}" if keys else "an object"
    got = f"keys {', '.join(content)}" if isinstance(content, dict) else type(content).__name__
    require(is_object, str(file), expected, got)
    return content


def find_class(file: Path, class_name: Any, library: str, base: str) -> Any:
    """A class that a configuration names.

    Args:
        file: the configuration, for the message.
        class_name: what it has as the name of the class.
        library: the module to look in.
        base: name of a class there, of which the class must be a subclass.

    Raises:
        ValueError: the library has no such subclass.
    """
    module = importlib.import_module(library)
    try:
        result = getattr(module, class_name)
    except (AttributeError, ImportError, RuntimeError, TypeError):  # or its own imports fail
        result = None
    is_known = isinstance(result, type) and issubclass(result, getattr(module, base))
    require(is_known, str(file), f"a class of {library} that extends {base}", repr(class_name))
    return result


def _resolve_class(folder: Path) -> Any:
    """The class that reads a folder, from its configuration."""
    index = folder / "model_index.json"
    if index.exists():
        content = read_object(index, "_class_name")
        _check_components(index, content)
        return find_class(index, content["_class_name"], "diffusers", "DiffusionPipeline")
    file = folder / "config.json"
    config = read_object(file)
    if "_class_name" not in config:
        architectures = config.get("architectures")
        class_name = architectures[0] if isinstance(architectures, list) and architectures else None
        return find_class(file, class_name, "transformers", "PreTrainedModel")
    class_name = config["_class_name"]
    if isinstance(class_name, str) and class_name in COURSE_CLASSES:
        return getattr(importlib.import_module(COURSE_CLASSES[class_name]), class_name)
    return find_class(file, class_name, "diffusers", "ModelMixin")


def _check_components(file: Path, index: Mapping[str, Any]) -> None:
    """Check that a pipeline's parts are of libraries that it may import."""
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list):
            is_known = len(value) == 2 and value[0] in (None, "diffusers", "transformers")
            require(is_known, str(file), f"{name} of diffusers or transformers", value)
