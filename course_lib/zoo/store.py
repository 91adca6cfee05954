"""Writing a checkpoint: model, card, metrics and checksums, all or nothing."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from course_lib import files
from course_lib.validation import require
from course_lib.zoo import journal
from course_lib.zoo.checksums import CARD_FILE, EVALUATION_FILE, check_no_pickles, model_files
from course_lib.zoo.registry import ALIASES, names, to_root

FORBIDDEN_CHARACTERS = set('<>:"|?*\\')  # in a file's name, on one system or another


def store(
    name: str,
    save: Callable[[Path], None],
    metadata: Mapping[str, Any],
    text: str,
    root: Path | str | None = None,
) -> Path:
    """Write a checkpoint; an older one is replaced only when the new one is complete.

    Whatever fails, and if two processes store at once, there is always the old checkpoint or the
    new one; see `journal`.

    Args:
        name: may contain a slash.
        save: writes the model into the folder that it is given.
        metadata: content of `evaluation.json`, with the key "evaluation".
        text: the model card.
        root: folder of checkpoints; None is the course's own.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: a name that cannot be a folder of its own, weights that are not safetensors,
            metadata without "evaluation", or a part that differs from its stored alias (mini-sd
            with another autoencoder than mini-vae).
        OSError: a file cannot be written.
    """
    if "evaluation" not in metadata:
        keys = ", ".join(metadata) or "no keys"
        raise ValueError(f"metadata: expected the key 'evaluation', got {keys}")
    root = to_root(root)
    _check_new_name(name, root)
    stage = journal.open_stage(root)
    try:
        new = stage / "new"
        new.mkdir()
        save(new)
        check_no_pickles("save", new)
        files.write_json(new / EVALUATION_FILE, metadata)
        files.write_text(new / CARD_FILE, text)
        checksums = _checksums(name, new)
        with files.locked(root):  # the list is read and replaced
            journal.recover(root)
            listed = files.read_checksums(root)
            others = {k: v for k, v in listed.items() if not k.startswith(f"{name}/")}
            checksums |= others
            copies = _alias_copies(name, checksums, root)
            remaining = {k: v for k, v in checksums.items() if k not in copies}
            journal.commit(name, stage, remaining, copies, root)
    finally:
        journal.discard_stage(stage, root)
    return root / name


def _check_new_name(name: str, root: Path) -> None:
    """Check that a checkpoint can have a folder of its own under this name, on every system."""
    parts = name.split("/")
    is_portable = name.isprintable() and all(
        part and part == part.strip(" .") and not FORBIDDEN_CHARACTERS & set(part) for part in parts
    )
    require(is_portable and parts[0] != files.CHECKSUMS_FILE, "name", "folder names", repr(name))
    for other in names(root):
        both = sorted([f"{name}/".casefold(), f"{other}/".casefold()], key=len)
        is_apart = name == other or not both[1].startswith(both[0])
        require(is_apart, "name", f"a folder apart from that of {other}", repr(name))


def _checksums(name: str, new: Path) -> dict[str, str]:
    """The files of a new checkpoint, written to disk, and their checksums."""
    checksums = {}
    for file in sorted(new.rglob("*")):
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
        if file.is_file() and file != new / CARD_FILE:
            checksums[f"{name}/{file.relative_to(new).as_posix()}"] = files.sha256(file)
    return checksums


def _alias_copies(name: str, checksums: Mapping[str, str], root: Path) -> list[str]:
    """Files of aliases that their pipeline has as well; only the pipeline's are kept."""
    copies = []
    for alias, target in ALIASES.items():
        own = model_files(alias, checksums)
        part = model_files(target, checksums)
        is_stored = f"{alias}/{EVALUATION_FILE}" in checksums and target.startswith(f"{name}/")
        if is_stored and part != (own or model_files(target, files.read_checksums(root))):
            raise ValueError(f"save: expected {target} to be the stored {alias}, got another model")
        if own and own == part:
            copies += [f"{alias}/{file}" for file in own]
    return copies
