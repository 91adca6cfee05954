"""Writing a checkpoint: model, card, metrics and checksums, all or nothing."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from course_lib.zoo.checksums import (
    CARD_FILE,
    EVALUATION_FILE,
    check_no_pickles,
    model_files,
    read_checksums,
    sha256,
    write_checksums,
    write_text,
)
from course_lib.zoo.registry import ALIASES, default_root


def store(
    name: str,
    save: Callable[[Path], None],
    metadata: Mapping[str, Any],
    text: str,
    root: Path | None = None,
) -> Path:
    """Write a checkpoint; an older one is replaced only when the new one is complete.

    Args:
        name: may contain a slash.
        save: writes the model into the folder that it is given.
        metadata: content of `evaluation.json`, with the key "evaluation".
        text: the model card.
        root: folder of checkpoints; None is the course's own.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: weights that are not safetensors, metadata without "evaluation", or a part that
            differs from its stored alias (mini-sd with another autoencoder than mini-vae).
    """
    if "evaluation" not in metadata:
        keys = ", ".join(metadata) or "no keys"
        raise ValueError(f"metadata: expected the key 'evaluation', got {keys}")
    root = root or default_root()
    folder = root / name
    part = root / f".{name.replace('/', '-')}.part"
    old = part.with_suffix(".old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a kill between the two renamings below: this is the only good copy
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(part)
        check_no_pickles("save", part)
        write_text(
            part / EVALUATION_FILE, json.dumps(metadata, indent=1, ensure_ascii=False) + "\n"
        )
        write_text(part / CARD_FILE, text)
        checksums = _updated_checksums(name, part, root)
        copies = _alias_copies(name, checksums, root)
    except BaseException:
        shutil.rmtree(part)
        raise
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    write_checksums({k: v for k, v in checksums.items() if k not in copies}, root)
    for file in copies:
        (root / file).unlink()
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _updated_checksums(name: str, part: Path, root: Path) -> dict[str, str]:
    """The list of checksums with the files in `part` as those of this checkpoint."""
    listed = read_checksums(root)
    checksums = {file: v for file, v in listed.items() if not file.startswith(f"{name}/")}
    for file in part.rglob("*"):
        if file.is_file() and file != part / CARD_FILE:
            checksums[f"{name}/{file.relative_to(part).as_posix()}"] = sha256(file)
    return checksums


def _alias_copies(name: str, checksums: Mapping[str, str], root: Path) -> list[str]:
    """Files of aliases that their pipeline has as well; only the pipeline's are kept."""
    copies = []
    for alias, target in ALIASES.items():
        own = model_files(alias, checksums)
        part = model_files(target, checksums)
        is_stored = f"{alias}/{EVALUATION_FILE}" in checksums and target.startswith(f"{name}/")
        if is_stored and part != (own or model_files(target, read_checksums(root))):
            raise ValueError(f"save: expected {target} to be the stored {alias}, got another model")
        if own and own == part:
            copies += [f"{alias}/{file}" for file in own]
    return copies
