"""The list of checksums of a folder of checkpoints, and the check that files match it."""

from collections.abc import Mapping
from pathlib import Path

from course_lib.files import CHECKSUMS_FILE, read_checksums, sha256

CARD_FILE = "README.md"
EVALUATION_FILE = "evaluation.json"
# formats that can run code when they are opened
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def files_under(folder: str, checksums: Mapping[str, str]) -> dict[str, str]:
    """The listed files of a folder and their checksums, by path relative to it."""
    prefix = f"{folder}/"
    return {
        name.removeprefix(prefix): checksum
        for name, checksum in checksums.items()
        if name.startswith(prefix)
    }


def model_files(folder: str, checksums: Mapping[str, str]) -> dict[str, str]:
    """As `files_under`, without the metrics."""
    files = files_under(folder, checksums)
    files.pop(EVALUATION_FILE, None)
    return files


def verify_folder(name: str, folder: str, root: Path) -> None:
    """Compare the files of a folder with the list of checksums.

    Args:
        name: of the checkpoint, for the message.
        folder: relative to `root`.
        root: folder of checkpoints.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a file differs from its checksum, safetensors are not in the list (a library
            might prefer them), or there is a pickle.
    """
    checksums = {f"{folder}/{k}": v for k, v in files_under(folder, read_checksums(root)).items()}
    advice = (
        f"restore it from the repository, or train it again: python -m course_lib.recipes {name}"
    )
    missing = [file for file in checksums if not (root / file).is_file()]
    if missing or not checksums:
        raise FileNotFoundError(
            f"checkpoint {name}: missing {', '.join(missing or [folder])}; {advice}"
        )
    corrupt = [file for file, checksum in checksums.items() if sha256(root / file) != checksum]
    if corrupt:
        raise ValueError(
            f"checkpoint {name}: corrupt {', '.join(corrupt)} (sha256 differs from "
            f"{CHECKSUMS_FILE}); {advice}"
        )
    check_no_pickles(f"checkpoint {name}", root / folder)
    weights = (root / folder).rglob("*.safetensors")
    unlisted = sorted({file.relative_to(root).as_posix() for file in weights} - checksums.keys())
    if unlisted:
        raise ValueError(
            f"checkpoint {name}: {', '.join(unlisted)} not in {CHECKSUMS_FILE}; remove it, "
            f"or {advice}"
        )


def check_no_pickles(label: str, folder: Path) -> None:
    """Raise ValueError if a folder contains a pickle; the message starts with `label`."""
    pickles = sorted(file.name for file in folder.rglob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ValueError(f"{label}: expected safetensors only, got {', '.join(pickles)}")
