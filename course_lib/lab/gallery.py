"""Run the notebooks without a browser: as an HTML gallery, or in place, ready to commit.

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
from urllib.parse import quote

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course_lib import files
from course_lib.lab.offline_page import EXPORTED_DOCS, OfflineExporter
from course_lib.runtime import machine_summary

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_NOTEBOOK_BYTES = 1_000_000  # GitHub does not show some larger ones
CELL_TIMEOUT_SECONDS = 900
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
article img {{ display: block; width: 100%; height: 14rem; object-fit: contain;
              image-rendering: pixelated; background: #f4f4f4; }}
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

CARD = """<article><a href="{page}">{image}</a><div><h2><a href="{page}">{title}</a></h2>
<p>{line}</p><p>{status}</p></div></article>"""


@dataclass(frozen=True)
class Lesson:
    """One executed notebook.

    Attributes:
        path: of the notebook.
        notebook: with its outputs.
        minutes: of this run, start of the kernel included.
        error: in one line; "" if no cell failed.
    """

    path: Path
    notebook: NotebookNode
    minutes: float
    error: str = ""


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook.

    Args:
        path: an .ipynb file.

    Raises:
        ValueError: there is no such file, or it is no notebook; the message names it.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except Exception as error:  # nbformat raises many
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: expected a notebook ({reason[:100]})") from error
    return notebook


def run_notebook(path: Path) -> Lesson:
    """Execute every cell of a notebook in a new kernel, in the notebook's own folder.

    The kernel is the interpreter of this process, and widgets show their static form
    (COURSE_STATIC=1). A failing cell ends the run.

    Args:
        path: of the notebook, which is not changed.

    Returns:
        The lesson with its outputs up to the error, if there was one.

    Raises:
        ValueError: the file is no notebook.
    """
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        record_timing=False,
    )
    start = time.perf_counter()
    error = ""
    try:
        client.execute(env=kernel_environment())
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except (CellTimeoutError, DeadKernelError) as failure:
        error = str(failure).splitlines()[0]
    return Lesson(path, clean_notebook(notebook), (time.perf_counter() - start) / 60, error)


def kernel_environment() -> dict[str, str]:
    """This process's variables, with widgets in their static form and no one's own progress."""
    return {**os.environ, "COURSE_STATIC": "1", "COURSE_PROGRESS": ""}


def source_id(cell_type: str, source: str) -> str:
    """A cell's id, ten hex digits that depend on nothing but the cell."""
    return hashlib.sha256(f"{cell_type}\n{source}".encode()).hexdigest()[:10]


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """Remove what neither a reader nor a diff needs: widget state, timings, editor settings.

    Cell ids become a hash of the cell's source, so they change neither with each save nor when
    another cell is inserted.

    Args:
        notebook: executed; it is changed and returned.
    """
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    language = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    counts: dict[str, int] = {}
    for cell in notebook.cells:
        digest = source_id(cell.cell_type, cell.source)
        counts[digest] = counts.get(digest, 0) + 1
        cell.id = digest if counts[digest] == 1 else f"{digest}-{counts[digest]}"
        kept = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def save_notebook(lesson: Lesson) -> int:
    """Write a lesson to its own path atomically, and return its size in bytes."""
    nbformat.validate(lesson.notebook)
    with files.replace_atomically(lesson.path) as part:
        nbformat.write(lesson.notebook, part)
    return lesson.path.stat().st_size


def output_images(notebook: NotebookNode) -> list[tuple[bytes, str]]:
    """Every PNG among the outputs, in order: (bytes, alternative text or "")."""
    images = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                images.append((base64.b64decode(output.data["image/png"]), alt))
    return images


def lesson_title(notebook: NotebookNode) -> tuple[str, str]:
    """The title (first `# ` heading) and the first sentence of prose after it, as plain text."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = "Untitled"
    for paragraph in re.split(r"\n\s*\n", prose):
        paragraph = paragraph.strip()
        if paragraph.startswith("# ") and title == "Untitled":
            title, _, rest = paragraph[2:].partition("\n")
            paragraph = rest.strip()
        if title != "Untitled" and re.match(r"[\w*_(\"'`]", paragraph):
            markup = r"\[([^]]*)\]\([^)]*\)|[*_`]{1,2}"
            plain = re.sub(markup, lambda m: m[1] or "", " ".join(paragraph.split()))
            return title.strip(), re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0]
    return title.strip(), ""


def to_html(notebook: NotebookNode) -> str:
    """The notebook as one page, with the alternative texts that nbconvert's template drops.

    It loads nothing from the network, see `offline_page`.
    """
    page, _ = OfflineExporter().from_notebook_node(notebook)
    alts = [alt for _, alt in output_images(notebook)]
    if page.count(NO_ALT) != len(alts):
        return page
    remaining = iter(alts)
    return re.sub(re.escape(NO_ALT), lambda _: f'alt="{html.escape(next(remaining))}"', page)


def lesson_card(lesson: Lesson, folder: Path) -> str:
    """Write a lesson's page and first image into a folder.

    Args:
        lesson: executed.
        folder: of the gallery.

    Returns:
        The lesson's entry of the index page.
    """
    files.write_text(folder / f"{lesson.path.stem}.html", to_html(lesson.notebook))
    link = quote(lesson.path.stem)
    title, line = lesson_title(lesson.notebook)
    image = ""
    for data, alt in output_images(lesson.notebook)[:1]:
        (folder / f"{lesson.path.stem}.png").write_bytes(data)
        image = f'<img src="{link}.png" alt="{html.escape(alt)}">'
    status = f"ran in {lesson.minutes:.1f} minutes"
    if lesson.error:
        status = f'<span class="failed">failed: {html.escape(lesson.error)}</span>'
    texts = {"title": html.escape(title), "line": html.escape(line)}
    return CARD.format(page=f"{link}.html", image=image, status=status, **texts)


def write_gallery(lessons: list[Lesson], folder: Path, machine: str) -> Path:
    """Write every lesson as HTML and an index page.

    Args:
        lessons: executed.
        folder: of the gallery; it is created.
        machine: one-line summary of the hardware, shown with the minutes.

    Returns:
        The index page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for images in {lesson.path.parent / "images" for lesson in lessons}:
        if images.is_dir():  # images in the prose
            shutil.copytree(images, folder / "images", dirs_exist_ok=True)
    for name in EXPORTED_DOCS:
        text = (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        files.write_text(folder / f"{name}.html", to_html(page))
    cards = "\n".join(lesson_card(lesson, folder) for lesson in lessons)
    minutes = f"{sum(lesson.minutes for lesson in lessons):.1f} minutes"
    summary = f"{len(lessons)} lessons, run from top to bottom in {minutes} on: "
    docs = " · ".join(
        f'<a href="{name}.html">{name.replace("_", " ")}</a>' for name in EXPORTED_DOCS
    )
    index = folder / "index.html"
    page = PAGE.format(summary=f"{summary}{html.escape(machine)}<br>{docs}", cards=cards)
    files.write_text(index, page)
    return index


def report(lesson: Lesson, size: int) -> str:
    """One line on a lesson: minutes, images, size, and a warning if it is above the limit.

    Args:
        lesson: executed.
        size: of the notebook in bytes.
    """
    if lesson.error:
        return f"{lesson.path.name}: FAILED: {lesson.error}"
    num_images = len(output_images(lesson.notebook))
    kilobytes = f"{size / 1e3:.0f} KB"
    line = f"{lesson.path.name}: {lesson.minutes:.1f} min, images: {num_images}, {kilobytes}"
    is_large = size > MAX_NOTEBOOK_BYTES
    return line + (f"  WARNING: over {MAX_NOTEBOOK_BYTES / 1e6:.0f} MB" if is_large else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: None means those of the process.

    Returns:
        1 if a cell of any lesson failed, else 0. A wrong option ends the process with 2.
    """
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
    try:
        machine = machine_summary()
    except (ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error))  # of the profile or the device
    try:
        for path in paths:  # all of them, before hours of work
            read_notebook(path)
        if not options.in_place:
            options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    lessons = []
    for path in paths:
        print(f"{path.name} ...", flush=True)
        lesson = run_notebook(path.resolve())
        lessons.append(lesson)
        if options.in_place and not lesson.error:
            save_notebook(lesson)
        print(report(lesson, len(nbformat.writes(lesson.notebook).encode())), flush=True)
    if not options.in_place:
        print(f"gallery: {write_gallery(lessons, options.out, machine)}")
    return int(any(lesson.error for lesson in lessons))


if __name__ == "__main__":
    sys.exit(main())
