"""What the runs of a claim depend on: code, by following imports, and data."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from course_lib.claims.ledger import library_versions
from course_lib.runtime import data_dir

PACKAGE = Path(__file__).resolve().parents[1]
CLAIMS_MODULE = "course_lib.claims"
RESULTS = ("claims.json", "bench.json", "README.md")  # in the data folder; no experiment reads them


def code_digest(module: str = CLAIMS_MODULE, package: Path = PACKAGE) -> str:
    """Hash of all code and data that a module can reach, and of the libraries' versions.

    Args:
        module: full name of a module of claims; the package of claims stands for all of them.
        package: folder of `course_lib`, or of a copy.

    Returns:
        12 hexadecimal digits. They change with the text of a reachable file, and with its name.
    """
    data = data_dir()
    files = [(path.relative_to(package.parent), path) for path in code_files(module, package)]
    files += [(path.relative_to(data), path) for path in _data_files(data)]
    hashes = {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files
    }
    contents = sorted((hashes | library_versions()).items())
    return hashlib.sha256(repr(contents).encode()).hexdigest()[:12]


def code_files(module: str, package: Path = PACKAGE) -> set[Path]:
    """The file of a module, and of every module of the same package that it can reach.

    That is what it imports, at the top or in a function, what these import, and the packages around
    them; also a module whose name occurs as a string, as for `importlib.import_module`. Claims are
    independent of each other: the package that collects them counts only if it is the one asked
    for.

    Args:
        module: full name, such as "course_lib.claims.vdm".
        package: folder of `course_lib`, or of a copy.
    """
    collector = _module_file(CLAIMS_MODULE, package)
    files: set[Path] = set()
    names = [module]
    while names:
        name = names.pop()
        file = _module_file(name, package)
        if file is None or file in files or (file == collector and name != module):
            continue
        files.add(file)
        names += _imported_names(file, package)
        names += [name.rsplit(".", 1)[0]] * ("." in name)
    return files


def _module_file(name: str, package: Path) -> Path | None:
    """File of a module of the package; None for any other name."""
    path = package.parent.joinpath(*name.split("."))
    if name.split(".")[0] != package.name:
        return None
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.is_file()), None)


def _imported_names(file: Path, package: Path) -> Iterator[str]:
    """Everything in a file that may be the name of a module."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    for node in _nodes(file.read_bytes()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*parts[: -node.level], *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node.value, str):
            yield node.value


@cache
def _nodes(source: bytes) -> list[ast.AST]:
    """All nodes of a module that hold an import or a constant."""
    kinds = ast.Import | ast.ImportFrom | ast.Constant
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def _data_files(data: Path) -> list[Path]:
    """All data but results; checksums stand for the checkpoints."""
    checkpoints = data / "checkpoints"
    files = [path for path in data.rglob("*") if checkpoints not in path.parents]
    files = [path for path in (*files, checkpoints / "SHA256SUMS") if path.is_file()]
    # A hidden file is a lock
    return [path for path in files if path.name not in RESULTS and path.name[0] != "."]
