"""The shipped checkpoints: load one by name, read its card, check that it is whole.

    from course_lib import zoo

    judge = zoo.load("judge")
    print(zoo.card("judge").evaluation)

A checkpoint is a folder `data/checkpoints/<name>/` in the format of its library (diffusers or transformers, weights as
safetensors, never pickle) with a model card in `README.md` and the measured numbers in `evaluation.json`.
`data/checkpoints/SHA256SUMS` lists every file but the cards; `sha256sum -c` reads it too.

A model that is also a part of a pipeline (mini-vae of mini-sd) lies there only: its own folder then has the card and
the numbers, and these say under "part of" where the model is. A model that is another one and more (mini-video of
mini-sd) has only the rest in its folder, and `base.json`, which says of which files the other one is.
"""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

from course_lib.runtime import data_dir, no_progress_bars

SUMS = "SHA256SUMS"
CARD, NUMBERS = "README.md", "evaluation.json"
PART_OF = "part of"  # among the numbers
BASE = "base.json"
BUILT_ON = {
    "unet": "",
    "vae": "vae/",
}  # a part of a pipeline that may be a base, and where the files are that it needs
PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
)  # run whatever code they hold when they are opened
# Models of this course: saved by diffusers' ModelMixin, which writes the class' name only
COURSE_CLASSES = {"VideoClassifier": "course_lib.nn.classifier", "VideoUNet": "course_lib.nn.unet"}


@dataclass(frozen=True)
class Card:
    """What is said about a checkpoint.

    text: the model card, Markdown. evaluation: what was measured on the test split, by name. facts: all of
    `evaluation.json`: recipe, bars, seed, steps, machine, versions ….
    """

    name: str
    text: str
    evaluation: dict[str, Any]
    facts: dict[str, Any]


def default_root() -> Path:
    """The folder of the shipped checkpoints, `data/checkpoints`."""
    return data_dir() / "checkpoints"


def names(root: Path | None = None) -> list[str]:
    """The checkpoints that there are, sorted; a name may hold a slash.

    root: folder of checkpoints; None is the course's own.
    """
    return sorted(
        file.removesuffix(f"/{NUMBERS}")
        for file in _sums(root or default_root())
        if file.endswith(NUMBERS)
    )


def path(name: str, root: Path | None = None) -> Path:
    """The folder of a checkpoint's model, for whoever calls `from_pretrained` himself; it is verified first.

    name: one of `names()`. root: as there. Raises ValueError and FileNotFoundError as `verify` does.
    """
    root = root or default_root()
    _verify_once(name, root)
    return root / (_whole(name, root) or name)


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    root: Path | None = None,
) -> Any:
    """A checkpoint as a model (or a diffusers pipeline), in evaluation mode, without gradients.

    name: one of `names()`. dtype: of the weights in memory; on the disk they are half precision. device: any of
    torch's. root: folder of checkpoints; None is the course's own.
    Raises ValueError for an unknown name (listing the known ones), a damaged file, or a base that is not the one it was
    made for; FileNotFoundError for a missing file.
    """
    folder = path(name, root)
    if (folder / BASE).exists():
        loaded = _on_base(name, folder, dtype, root).to(device)
    else:
        kind = _class_of(folder)
        with no_progress_bars():
            loaded = kind.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            ).to(device)
    for part in [loaded] if isinstance(loaded, nn.Module) else loaded.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return loaded


def card(name: str, root: Path | None = None) -> Card:
    """The card of a checkpoint; its weights are not looked at.

    name: one of `names()`. root: as there. Raises ValueError for an unknown name, FileNotFoundError for a missing card.
    """
    folder = _folder(name, root or default_root())
    facts = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    return Card(name, (folder / CARD).read_text(encoding="utf-8"), facts["evaluation"], facts)


def verify(name: str, root: Path | None = None) -> None:
    """Compare every file of a checkpoint with the list of checksums.

    name: one of `names()`. root: as there. Raises ValueError for an unknown name, a file that differs from its
    checksum, safetensors that the list does not name (a library might prefer them), or a pickle; FileNotFoundError
    for missing files. All of them are named.
    """
    root = root or default_root()
    _folder(name, root)
    _verify_files(name, name, root)
    if (whole := _whole(name, root)) is not None:
        _verify_files(name, whole, root)


def _verify_files(name: str, place: str, root: Path) -> None:
    """`verify` what lies in one folder of the root."""
    sums = {file: sum for file, sum in _sums(root).items() if file.startswith(f"{place}/")}
    again = (
        "restore it from the repository, or train it again: python -m course_lib.recipes " + name
    )
    missing = [file for file in sums if not (root / file).is_file()] or [place] * (not sums)
    if missing:
        raise FileNotFoundError(f"checkpoint {name}: missing {', '.join(missing)}; {again}")
    corrupt = [file for file, sum in sums.items() if _sha256(root / file) != sum]
    if corrupt:
        raise ValueError(
            f"checkpoint {name}: corrupt {', '.join(corrupt)} (sha256 is not as in {SUMS}); {again}"
        )
    _refuse_pickles(f"checkpoint {name}", root / place)
    weights = sorted(
        file.relative_to(root).as_posix() for file in (root / place).rglob("*.safetensors")
    )
    foreign = [file for file in weights if file not in sums]
    if foreign:
        raise ValueError(
            f"checkpoint {name}: {', '.join(foreign)} not in {SUMS}; take it away, or {again}"
        )


def _refuse_pickles(what: str, folder: Path) -> None:
    found = sorted(file.name for file in folder.rglob("*") if file.suffix in PICKLES)
    if found:
        raise ValueError(f"{what}: expected safetensors only, found {', '.join(found)}")


def store(
    name: str,
    save: Callable[[Path], None],
    facts: Mapping[str, Any],
    text: str,
    root: Path | None = None,
) -> Path:
    """Write a checkpoint, its card and its checksums; what is there is replaced only when all of it is written.

    name: may hold a slash. save: writes the model into the folder it is given. facts: for `evaluation.json`, among
    them "evaluation". text: the model card. root: folder of checkpoints; None is the course's own.
    A model that is then also a part of a pipeline, file by file, stays there only.
    Returns the folder. Raises ValueError for weights that are not safetensors, for facts without evaluation, and where
    another checkpoint lies in this one and would change with it.
    """
    if "evaluation" not in facts:
        raise ValueError(
            f"facts: expected 'evaluation' among them, got {', '.join(facts) or 'none'}"
        )
    root = root or default_root()
    folder, part, old = (
        root / name,
        root / f".{name.replace('/', '-')}.part",
        root / f".{name.replace('/', '-')}.old",
    )
    if old.exists() and not folder.exists():
        old.rename(
            folder
        )  # a kill came between the two renamings below: this is the only good copy
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(part)
        _refuse_pickles("save", part)
        _write_numbers(part, {key: value for key, value in facts.items() if key != PART_OF})
        _write(part / CARD, text)
        sums = _sums_with(name, part, root)
        _refuse_orphans(name, sums, root)
    except BaseException:
        shutil.rmtree(part)
        raise
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _write_sums(sums, root)
    shutil.rmtree(old, ignore_errors=True)
    _share(root)
    return folder


def _sums_with(name: str, part: Path, root: Path) -> dict[str, str]:
    """The list of checksums once this checkpoint's files are those in `part`."""
    sums = {file: sum for file, sum in _sums(root).items() if not file.startswith(f"{name}/")}
    files = [file for file in part.rglob("*") if file.is_file() and file != part / CARD]
    return sums | {f"{name}/{file.relative_to(part).as_posix()}": _sha256(file) for file in files}


def _write_sums(sums: Mapping[str, str], root: Path) -> None:
    listed = root / f".{SUMS}.part"
    _write(listed, "".join(f"{sums[file]}  {file}\n" for file in sorted(sums)))
    os.replace(listed, root / SUMS)


def _write_numbers(folder: Path, facts: Mapping[str, Any]) -> None:
    _write(folder / NUMBERS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


# Models that are another one and more


def write_base(folder: Path, base: str, part: str, model: nn.Module) -> None:
    """Write down on which of the course's checkpoints the model in a folder is built, with the checksums of its files.

    folder: of the model, to be stored. base: an image pipeline, one of `names()`. part: the folder in it that has got
    layers over time: "unet", and what is loaded is a pipeline for video, which needs all of its parts, or "vae".
    model: that part as the layers over time were trained on it.
    Raises ValueError for an unknown name or part, or if what is stored there has other weights than the model.
    """
    root = default_root()
    _folder(base, root)
    weights = root / base / part / SAFETENSORS_WEIGHTS_NAME
    if part not in BUILT_ON or not weights.exists():
        raise ValueError(f"part: expected one of {', '.join(BUILT_ON)}, in {base}; got {part!r}")
    stored, trained_on = load_file(weights), model.state_dict()
    if stored.keys() != trained_on.keys() or any(
        not torch.equal(value.half(), trained_on[name].half().cpu())
        for name, value in stored.items()
    ):
        raise ValueError(
            f"model: expected the weights of {base}/{part}, on which it is to be built; got others"
        )
    _write(
        folder / BASE,
        json.dumps({"name": base, "part": part, "sha256": _needed(base, part, root)}, indent=1)
        + "\n",
    )


def _needed(base: str, part: str, root: Path) -> dict[str, str]:
    """Files of a base, with their checksums, which a model built on a part of it needs as they are."""
    files = _in(base, _sums(root))
    return {
        file: sum
        for file, sum in files.items()
        if file.startswith(BUILT_ON[part]) and file != NUMBERS
    }


def _on_base(name: str, folder: Path, dtype: torch.dtype, root: Path | None) -> Any:
    """The model in a folder, with the checkpoint on which it is built, if that still is the one."""
    from course_lib.papers.video_ldm import (
        on_image_pipeline,
        with_layers,
    )  # heavy: who reads cards needs none of it

    base = json.loads((folder / BASE).read_text(encoding="utf-8"))
    if root is None or base["name"] not in names(root):
        root = default_root()  # a recipe's result may lie elsewhere, its base is the course's
    if base["name"] not in names(root):
        raise FileNotFoundError(f"checkpoint {name}: built on {base['name']}, which is not there")
    if _needed(base["name"], base["part"], root) != base["sha256"]:
        raise ValueError(
            f"checkpoint {name}: made for another {base['name']} than there is; restore that from the repository, or "
            f"train again: python -m course_lib.recipes {name}"
        )
    image = load(base["name"], dtype=dtype, root=root)
    return (
        on_image_pipeline(image, folder)
        if base["part"] == "unet"
        else with_layers(image.vae, folder)
    )


def _in(place: str, sums: Mapping[str, str]) -> dict[str, str]:
    """The files in a folder, seen from there, with their checksums."""
    return {
        file.removeprefix(f"{place}/"): sum
        for file, sum in sums.items()
        if file.startswith(f"{place}/")
    }


# Models that lie in a pipeline only


def _whole(name: str, root: Path) -> str | None:
    """The folder, seen from the root, of a model that is not in its own."""
    return json.loads((root / name / NUMBERS).read_text(encoding="utf-8")).get(PART_OF)


def _model_files(place: str, sums: Mapping[str, str]) -> dict[str, str]:
    """The files of the model in a folder, seen from there, with their checksums."""
    files = _in(place, sums)
    files.pop(NUMBERS, None)
    return files


def _refuse_orphans(name: str, sums: Mapping[str, str], root: Path) -> None:
    """Checkpoints that lie in this one must not change with it."""
    for other in names(root):
        place = _whole(other, root) or ""
        if place.startswith(f"{name}/") and _model_files(place, sums) != _model_files(
            place, _sums(root)
        ):
            raise ValueError(
                f"save: expected {place} as it is, because {other} lies there; {name} would change it"
            )


def _share(root: Path) -> None:
    """Take a model out of its own folder if a pipeline's has the very same."""
    sums = _sums(root)
    for name in names(root):
        model = _model_files(name, sums)
        places = {file.rpartition("/")[0] for file in sums if not file.startswith(f"{name}/")}
        equal = sorted(
            place
            for place in places - set(names(root))
            if model and _model_files(place, sums) == model
        )
        if not equal:
            continue
        facts = json.loads((root / name / NUMBERS).read_text(encoding="utf-8"))
        _write_numbers(root / name, facts | {PART_OF: equal[0]})
        kept = {
            file: sum for file, sum in sums.items() if file.removeprefix(f"{name}/") not in model
        }
        sums = kept | {f"{name}/{NUMBERS}": _sha256(root / name / NUMBERS)}
        _write_sums(sums, root)
        for file in model:
            (root / name / file).unlink()


def _write(file: Path, text: str) -> None:
    file.write_text(
        text, encoding="utf-8", newline="\n"
    )  # the same bytes, and checksum, on every system


def _sums(root: Path) -> dict[str, str]:
    """File, relative to the root, to sha256."""
    listed = root / SUMS
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    return {file: sum for sum, file in (line.split("  ", 1) for line in lines)}


def _folder(name: str, root: Path) -> Path:
    known = names(root)
    if name not in known:
        raise ValueError(
            f"name: expected one of {', '.join(known) or 'none, there are no checkpoints yet'}; got {name!r}"
        )
    return root / name


@cache
def _verify_once(name: str, root: Path) -> None:
    verify(name, root)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _class_of(folder: Path) -> Any:
    """The class that reads a folder, from what its configuration says."""
    if (folder / "model_index.json").exists():
        return importlib.import_module("diffusers").DiffusionPipeline
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "_class_name" in config:
        kind = config["_class_name"]
        return getattr(importlib.import_module(COURSE_CLASSES.get(kind, "diffusers")), kind)
    return getattr(importlib.import_module("transformers"), config["architectures"][0])
