"""Run the notebooks without a browser: an HTML gallery to read, or the notebooks themselves, ready to commit.

python -m course_lib.lab.gallery                       all lessons -> build/course/index.html
python -m course_lib.lab.gallery --in-place FILE.ipynb run and save those lessons where they are

A cell that fails makes the command fail, after the other lessons have run.
"""

import argparse
import base64
import hashlib
import html
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from course_lib.runtime import machine_summary

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST = 1_000_000  # bytes of a saved notebook: GitHub gives up on some that are bigger
CELL_TIMEOUT = 900  # seconds
NO_ALT = 'alt="No description has been provided for this image"'
KEPT_CELL_METADATA = ("tags", "alt")

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Video diffusion: the course</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #222; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }}
article {{ border: 1px solid #bbb; border-radius: 6px; overflow: hidden; }}
article img {{ display: block; width: 100%; height: 14rem; object-fit: contain; image-rendering: pixelated;
              background: #f4f4f4; }}
article div {{ padding: 0.2rem 1rem 1rem; }}
h2 {{ font-size: 1.15rem; margin: 0.6rem 0; }} p {{ margin: 0.4rem 0; }}
.failed {{ color: #a00000; font-weight: bold; }}
</style></head><body>
<h1>Video diffusion: the course</h1>
<p>{summary}</p>
<main>
{cards}
</main></body></html>
"""

CARD = """<article><a href="{page}">{picture}</a><div><h2><a href="{page}">{title}</a></h2>
<p>{line}</p><p>{status}</p></div></article>"""


@dataclass(frozen=True)
class Lesson:
    """One executed notebook: `minutes` is this run's, kernel start included; no `error` if it ran through."""

    path: Path
    notebook: NotebookNode
    minutes: float
    error: str = ""


def run_notebook(path: Path) -> Lesson:
    """Execute every cell of the notebook at `path` in a new kernel, in the notebook's own folder.

    The kernel is the interpreter that runs this module, and widgets draw their static form (COURSE_STATIC=1).
    A failing cell ends the run: the lesson comes back with its outputs so far and the error in one line.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        record_timing=False,
    )
    start, error = time.perf_counter(), ""
    try:
        client.execute(env=kernel_environment())
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except (CellTimeoutError, DeadKernelError) as failure:
        error = str(failure).splitlines()[0]
    return Lesson(path, tidy(notebook), (time.perf_counter() - start) / 60, error)


def kernel_environment() -> dict[str, str]:
    """This process's environment, with widgets told to draw their static form."""
    return {**os.environ, "COURSE_STATIC": "1"}


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Keep of an executed notebook only what a reader or a diff needs; changes and returns `notebook`.

    Widget state, timings and editor settings go. Cell ids become a hash of the cell's source, so they do not
    change with each save, nor when another cell is put before.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {
                "file_extension": ".py",
                "mimetype": "text/x-python",
                "name": "python",
            },
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict(
            {k: cell.metadata[k] for k in KEPT_CELL_METADATA if k in cell.metadata}
        )
    return notebook


def save_notebook(lesson: Lesson) -> int:
    """Write the lesson to its own path, whole or not at all, and return its size in bytes."""
    nbformat.validate(lesson.notebook)
    part = lesson.path.with_suffix(".part")
    nbformat.write(lesson.notebook, part)
    part.replace(lesson.path)
    return lesson.path.stat().st_size


def pictures(notebook: NotebookNode) -> list[tuple[bytes, str]]:
    """Every PNG among the outputs, in order: its bytes and its alternative text ("" where none is saved)."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                found.append((base64.b64decode(output.data["image/png"]), alt))
    return found


def heading(notebook: NotebookNode) -> tuple[str, str]:
    """The title (first `# ` heading) and the first sentence of prose after it, as plain text."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title, line = "Untitled", ""
    for paragraph in re.split(r"\n\s*\n", prose):
        paragraph = paragraph.strip()
        if paragraph.startswith("# ") and title == "Untitled":
            title, _, rest = paragraph[2:].partition("\n")
            paragraph = rest.strip()
        if title != "Untitled" and re.match(r"[\w*_(\"'`]", paragraph):
            plain = re.sub(
                r"\[([^]]*)\]\([^)]*\)|[*_`]{1,2}",
                lambda m: m[1] or "",
                " ".join(paragraph.split()),
            )
            line = re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0]
            break
    return title.strip(), line


def to_html(notebook: NotebookNode) -> str:
    """The notebook as one page. nbconvert's template drops the pictures' alternative text; it is put back."""
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    alts = iter(pictures(notebook))
    if page.count(NO_ALT) != len(pictures(notebook)):
        return page
    return re.sub(re.escape(NO_ALT), lambda _: f'alt="{html.escape(next(alts)[1])}"', page)


def card(lesson: Lesson, folder: Path) -> str:
    """Write the lesson's page and first picture into `folder`; return its entry for the index."""
    page = folder / f"{lesson.path.stem}.html"
    page.write_text(to_html(lesson.notebook), encoding="utf-8")
    title, line = heading(lesson.notebook)
    picture = ""
    for data, alt in pictures(lesson.notebook)[:1]:
        (folder / f"{lesson.path.stem}.png").write_bytes(data)
        picture = f'<img src="{lesson.path.stem}.png" alt="{html.escape(alt)}">'
    status = f"ran in {lesson.minutes:.1f} minutes"
    if lesson.error:
        status = f'<span class="failed">failed: {html.escape(lesson.error)}</span>'
    words = {"title": html.escape(title), "line": html.escape(line)}
    return CARD.format(page=page.name, picture=picture, status=status, **words)


def write_gallery(lessons: list[Lesson], folder: Path, machine: str) -> Path:
    """Write every lesson as HTML and an index page of them all into `folder`; return the index.

    `machine` is the one-line summary of where the lessons ran, shown above the minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for images in {lesson.path.parent / "images" for lesson in lessons}:
        if images.is_dir():  # pictures that the prose refers to
            shutil.copytree(images, folder / "images", dirs_exist_ok=True)
    cards = "\n".join(card(lesson, folder) for lesson in lessons)
    total = sum(lesson.minutes for lesson in lessons)
    summary = f"{len(lessons)} lessons, run from top to bottom in {total:.1f} minutes on: {html.escape(machine)}"
    index = folder / "index.html"
    index.write_text(PAGE.format(summary=summary, cards=cards), encoding="utf-8")
    return index


def report(lesson: Lesson, size: int) -> str:
    """One line on a lesson: minutes, pictures, and its size with a warning if it is over the limit."""
    if lesson.error:
        return f"{lesson.path.name}: FAILED: {lesson.error}"
    count = len(pictures(lesson.notebook))
    line = f"{lesson.path.name}: {lesson.minutes:.1f} min, pictures: {count}, {size / 1e3:.0f} KB"
    return line + (f"  WARNING: over {LARGEST / 1e6:.0f} MB" if size > LARGEST else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 if a cell of any lesson failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: every lesson in notebooks/"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="save the executed notebooks, write no HTML"
    )
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "build" / "course", help="the gallery's folder"
    )
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    if not paths:
        parser.error("there is no notebook in notebooks/")
    lessons = []
    for path in paths:
        print(f"{path.name} ...", flush=True)
        lessons.append(run_notebook(path.resolve()))
        if options.in_place and not lessons[-1].error:
            save_notebook(lessons[-1])
        print(report(lessons[-1], len(nbformat.writes(lessons[-1].notebook).encode())), flush=True)
    if not options.in_place:
        print(f"gallery: {write_gallery(lessons, options.out, machine_summary())}")
    return int(any(lesson.error for lesson in lessons))


if __name__ == "__main__":
    sys.exit(main())
