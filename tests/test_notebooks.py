"""The contract of the saved notebooks: what a page shows before anything is run."""

import ast
import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib.lab.gallery import clean_notebook, output_images

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES, MAX_CELL_LINES, MAX_DEFINITION_LINES = 2**20, 30, 25
MIN_IMAGES, MIN_CHECKS = 4, 3
WIDGET = "application/vnd.jupyter.widget-view+json"
SEED = re.compile(r"seed_everything\(|manual_seed\(|default_rng\(\d|seed=\d")
CHECK = re.compile(r"""\bcheck\(\s*["'](\d+\.\d+)["']""")
SECTIONS = (
    "What you will be able to do",
    "What you need first",
    "Exercises",
    "On the real thing",
    "Summary",
    "References",
)
TOUR_SECTIONS = (
    "What you will be able to do",
    "Exercises",
    "Summary",
)  # of notebook 00, which is no lesson


def load(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def python(source):
    """The cell without its magics, so that ast can read it."""
    return "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )


def long_definitions(source):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    nodes = [node for node in ast.walk(ast.parse(python(source))) if isinstance(node, kinds)]
    return [node.name for node in nodes if node.end_lineno - node.lineno >= MAX_DEFINITION_LINES]


def output_problems(number, output):
    where = f"cell {number}"
    if output.output_type == "error":
        yield f"{where} shows the error {output.ename}"
    if WIDGET in output.get("data", {}):
        yield f"{where} shows a widget, which is blank on a page"
    if output.output_type == "stream" and re.search(r"\w*Warning\b", output.text):
        yield f"{where} shows a warning"


def cell_problems(notebook):
    cells = code_cells(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "the cells were not run once, in order, in a new kernel"
    for number, cell in enumerate(cells, 1):
        if len(cell.source.splitlines()) > MAX_CELL_LINES:
            yield f"cell {number} is longer than {MAX_CELL_LINES} lines"
        for name in long_definitions(cell.source):
            yield f"cell {number} defines {name} in more than {MAX_DEFINITION_LINES} lines"
        for output in cell.outputs:
            yield from output_problems(number, output)


def page_problems(notebook, size):
    code = "\n".join(cell.source for cell in code_cells(notebook))
    if size > MAX_BYTES:
        yield f"{size / 2**20:.1f} MB is more than 1 MB"
    if "widgets" in notebook.metadata:
        yield "widget state is saved in its metadata"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernel is not python3"
    if not re.search(r"^\s*(from|import) course_lib", code, re.MULTILINE):
        yield "it does not import course_lib"
    if not SEED.search(code):
        yield "no seed is set"
    num_images = len(output_images(notebook))
    if num_images < MIN_IMAGES:
        yield f"it shows {num_images} images, fewer than {MIN_IMAGES}"
    num_checks = len(CHECK.findall(code))
    if num_checks < MIN_CHECKS:
        yield f"it checks {num_checks} exercises, fewer than {MIN_CHECKS}"


def section_problems(notebook, sections=SECTIONS):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#{1,4} +(.+?) *$", prose, re.MULTILINE)
    if not prose.lstrip().startswith("# "):
        yield "it does not open with a title"
    for section in sections:
        if not any(section.lower() in heading.lower() for heading in headings):
            yield f"it has no section {section!r}"
    if not re.search(r"\bmeasured\b", prose, re.IGNORECASE):
        yield "it does not say what time and memory were measured"


def exercises(number):
    """The ids of the exercises of lesson `number`, from its checks."""
    module = importlib.import_module(f"course_lib.exercises.lesson_{number:02d}")
    return {exercise.id for exercise in module.EXERCISES}


def exercise_problems(notebook, ids):
    checked = set(CHECK.findall("\n".join(cell.source for cell in code_cells(notebook))))
    for identifier in sorted(checked - ids):
        yield f"exercise {identifier} has no check"
    for identifier in sorted(ids - checked):
        yield f"exercise {identifier} has a check but is not in the notebook"


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ is empty"
    assert NOTEBOOKS[0].name == "00_start_here.ipynb"
    numbers = [path.name[:3] for path in NOTEBOOKS]
    assert all(re.fullmatch(r"\d\d_", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_cells(self, path):
        assert list(cell_problems(load(path))) == []

    def test_page(self, path):
        assert list(page_problems(load(path), path.stat().st_size)) == []

    def test_sections(self, path):
        sections = TOUR_SECTIONS if path.stem.startswith("00") else SECTIONS
        assert list(section_problems(load(path), sections)) == []

    def test_exercises(self, path):
        assert list(exercise_problems(load(path), exercises(int(path.name[:2])))) == []

    def test_saved_cleanly(self, path):
        """As `make notebooks` saves it: stable cell ids, no timings, no editor settings."""
        saved, cleaned = json.loads(path.read_text(encoding="utf-8")), clean_notebook(load(path))
        assert saved["metadata"] == cleaned.metadata
        assert [cell["id"] for cell in saved["cells"]] == [cell.id for cell in cleaned.cells]
        assert [cell["metadata"] for cell in saved["cells"]] == [
            cell.metadata for cell in cleaned.cells
        ]


# The contract itself must be able to fail.


def sound():
    image = new_output("display_data", {"image/png": "aGVsbG8="})
    prose = "# Lesson\n\nMeasured: 1 minute.\n\n" + "\n\n".join(
        f"## {section}" for section in SECTIONS
    )
    cells = [new_markdown_cell(prose)]
    cells.append(new_code_cell("from course_lib import runtime\nruntime.seed_everything(0)"))
    cells.append(new_code_cell("%matplotlib inline\ndraw()", outputs=[image] * MIN_IMAGES))
    cells += [new_code_cell(f'check("7.{n}", f)') for n in (1, 2, 3)]
    notebook = clean_notebook(new_notebook(cells=cells))
    for number, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = number
    return notebook


def problems(notebook, size=1000, ids=frozenset({"7.1", "7.2", "7.3"})):
    page = [*cell_problems(notebook), *page_problems(notebook, size), *section_problems(notebook)]
    return page + list(exercise_problems(notebook, ids))


def test_a_sound_notebook_has_no_problems():
    assert problems(sound()) == []


def set_source(source):
    def change(notebook):
        notebook.cells[-1].source = source

    return change


def add_output(*arguments, **fields):
    def change(notebook):
        notebook.cells[-1].outputs.append(new_output(*arguments, **fields))

    return change


def replace(cell, old, new):
    def change(notebook):
        notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda n: n.cells[1].update(execution_count=None), "not run once, in order"),
        (lambda n: n.cells[1].update(execution_count=7), "not run once, in order"),
        (
            add_output("error", ename="ValueError", evalue="", traceback=[]),
            "cell 5 shows the error ValueError",
        ),
        (add_output("display_data", {WIDGET: {}, "text/plain": "x"}), "cell 5 shows a widget"),
        (add_output("stream", name="stderr", text="UserWarning: no"), "cell 5 shows a warning"),
        (set_source('check("7.3", f)' + "\n#" * 30), "longer than 30 lines"),
        (
            set_source('check("7.3", f)\ndef f():' + "\n    x = 1" * 25),
            "defines f in more than 25 lines",
        ),
        (lambda n: n.metadata.update(widgets={}), "widget state"),
        (lambda n: n.metadata.kernelspec.update(name="venv"), "kernel is not python3"),
        (replace(1, "course_lib", "other"), "does not import course_lib"),
        (replace(1, "seed_everything(0)", "device()"), "no seed"),
        (lambda n: n.cells[2].outputs.pop(), "3 images, fewer than 4"),
        (set_source("check('7.4', f)"), "exercise 7.4 has no check"),
        (set_source("x = 1"), "checks 2 exercises"),
        (set_source("x = 1"), "exercise 7.3 has a check but is not"),
        (replace(0, "## Summary", "## End"), "no section 'Summary'"),
        (replace(0, "Measured", "Thought"), "what time and memory were measured"),
    ],
)
def test_the_contract_detects(change, problem):
    notebook = sound()
    change(notebook)
    assert any(problem in line for line in problems(notebook)), problems(notebook)


def test_the_contract_detects_a_big_file():
    assert problems(sound(), size=2**20 + 1) == ["1.0 MB is more than 1 MB"]
