"""Write the links between the lessons, the tables of lessons, and the map of the course.

    python tools/write_navigation.py            every lesson
    python tools/write_navigation.py 00 07      only these; README.md and the map as well
    python tools/write_navigation.py --check    write nothing; 1 if a file is out of date

Each lesson has a line of links below its title and one at its end, in Markdown cells with the tag
"navigation". Titles and what is built come from the table of lessons in README.md, minutes from
the lessons themselves, and whether a lesson exists from the folder. Another run changes nothing.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from course_lib import files
from course_lib.lab.gallery import source_id

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = "Where-to-go-from-here"  # the heading in lesson 00, as JupyterLab links to it
# Endings that were written by hand: they named lessons that do not exist, or had no link
ENDING = re.compile(r"\n+Next: (?:\[|lesson )[^\n]*(?:\n[^\n]+)*\s*\Z")
ROW = re.compile(r"^\| (\d\d) \| (?:\[(.+?)\]\(\S+\)|\*(.+?)\*) \| (.*?) ?\|.*\n", re.MULTILINE)
RUN = re.compile(r"\*\*Measured:\*\* ([\d.]+) (seconds?|minutes?)")
READING = re.compile(r"Reading and exercises: about\s+([^,.;]+)")


@dataclass(frozen=True)
class Lesson:
    """A lesson of the course.

    Attributes:
        number: two digits.
        title: from README.md.
        build: what is built, in a few words; "" if that is not said.
        file: the notebook's name; "" if it does not exist yet.
        minutes: to run it from top to bottom; "" if it does not say.
        reading: time for reading and exercises, in words; "" if it does not say.
    """

    number: str
    title: str
    build: str
    file: str = ""
    minutes: str = ""
    reading: str = ""

    def link(self, folder: str = "") -> str:
        """Number and title, as a Markdown link."""
        return f"[{self.number} · {self.title}]({folder}{self.file})"


def is_markdown(cell: dict[str, Any], tag: str = "") -> bool:
    """Whether a cell is prose, and has this tag if one is given."""
    tags = cell["metadata"].get("tags", [])
    return cell["cell_type"] == "markdown" and (not tag or tag in tags)


def read_lessons(root: Path) -> list[Lesson]:
    """Every lesson in README.md's table, with what its notebook says if it exists.

    Args:
        root: folder of the course.

    Raises:
        ValueError: a notebook is not in the table.
    """
    paths = {
        path.name[:2]: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    }
    lessons = []
    for number, linked, planned, build in ROW.findall(files.read_text(root / "README.md")):
        lesson = Lesson(number, linked or planned, build)
        if number in paths:
            path = paths.pop(number)
            cells = files.read_json(path)["cells"]
            prose = "\n\n".join("".join(cell["source"]) for cell in cells if is_markdown(cell))
            run, reading = RUN.search(prose), READING.search(prose)
            minutes = float(run[1]) / (60 if run[2].startswith("second") else 1) if run else None
            lesson = Lesson(
                *(number, lesson.title, build, path.name),
                minutes="" if minutes is None else f"{minutes:.1f}",
                reading=" ".join(reading[1].split()) if reading else "",
            )
        lessons.append(lesson)
    if paths:
        raise ValueError(f"README.md's table of lessons has no row for {', '.join(sorted(paths))}")
    return lessons


def navigation_line(lesson: Lesson, lessons: list[Lesson]) -> str:
    """The links at the top and at the end of a lesson."""
    ready = [other for other in lessons if other.file]
    place = ready.index(lesson)
    parts = [f"[contents]({'' if lesson.number == '00' else ready[0].file}#{CONTENTS})"]
    if place > 0:
        parts.insert(0, f"← {ready[place - 1].link()}")
    if place + 1 < len(ready):
        after = ready[place + 1]
        is_gap = int(after.number) > int(lesson.number) + 1
        parts.append(f"next{' that is ready' if is_gap else ''}: {after.link()} →")
    else:
        parts.append("the last lesson so far")
    return " | ".join(parts)


def lesson_table(lessons: list[Lesson], folder: str = "") -> str:
    """All lessons as a Markdown table; those that do not exist yet are in italics.

    Args:
        lessons: of the course.
        folder: of the notebooks, as seen from the page; with a slash at its end.
    """
    lines = [
        "| | lesson | what you build | runs in (minutes) | reading and exercises |",
        "|---|---|---|---:|---|",
    ]
    for lesson in lessons:
        title = f"[{lesson.title}]({folder}{lesson.file})" if lesson.file else f"*{lesson.title}*"
        cells = (lesson.number, title, lesson.build, lesson.minutes, lesson.reading)
        lines.append("| " + " | ".join(cells).replace("|  |", "| |").rstrip() + " |")
    return "\n".join(line.replace("|  |", "| |") for line in lines)


def checkpoint_table(root: Path) -> str:
    """What trained each checkpoint, from its evaluation.json, as a Markdown table."""
    lines = ["| checkpoint | what it does | trained on | minutes |", "|---|---|---|---:|"]
    checkpoints = root / "data" / "checkpoints"
    for path in sorted(checkpoints.rglob("evaluation.json")):
        entry, folder = files.read_json(path), path.parent.relative_to(root).as_posix()
        parts = [part for part in entry["machine"].split(" · ") if "GB memory" not in part]
        gpus = [part.partition(" (")[0] for part in parts if "NVIDIA" in part]
        machine = gpus[0] if gpus else parts[0]
        name, minutes = f"[`{entry['name']}`]({folder}/README.md)", f"{entry['minutes']:.0f}"
        lines.append(f"| {name} | {entry['summary']} | {machine} | {minutes} |")
    return "\n".join(lines)


def contents(lessons: list[Lesson]) -> str:
    """The table of lessons in lesson 00."""
    num_ready = sum(bool(lesson.file) for lesson in lessons)
    counted = f"{num_ready} of {len(lessons)} lessons are ready; those in italics are planned."
    if num_ready == len(lessons):
        counted = f"All {num_ready} lessons are ready."
    return f"{counted}\n\n{lesson_table(lessons)}"


def new_cell(source: str, taken: set[str], *tags: str) -> dict[str, Any]:
    """A Markdown cell; its id is the one that `make notebooks` would give it."""
    digest = source_id("markdown", source)
    identifier = digest if digest not in taken else f"{digest}-2"
    taken.add(identifier)
    return {
        "cell_type": "markdown",
        "id": identifier,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source.splitlines(keepends=True),
    }


def with_navigation(cells: list[dict], line: str, table: str) -> list[dict[str, Any]]:
    """A notebook's cells with the lines of links, and without endings that were written by hand.

    Args:
        cells: of a notebook; unchanged.
        line: for below the title and for the end.
        table: for a cell with the tag "contents".
    """
    old = [cell for cell in cells if not is_markdown(cell, "navigation")]
    taken = {cell["id"] for cell in old}
    title, _, rest = "".join(old[0]["source"]).partition("\n")
    new = [old[0]]
    if rest.strip():  # the title gets a cell of its own
        new = [new_cell(title, taken)]
        old = [old[0], new_cell(rest.strip("\n"), taken), *old[1:]]
    new.append(new_cell(line, taken, "navigation"))
    for cell in old[1:]:
        source = "".join(cell["source"])
        wanted = table if is_markdown(cell, "contents") else ENDING.sub("", source)
        if is_markdown(cell) and wanted != source:
            cell = new_cell(wanted, taken, *cell["metadata"].get("tags", []))
        new.append(cell)
    return [*new, new_cell(line, taken, "navigation")]


# The map


@dataclass(frozen=True)
class Group:
    """A row of the map.

    Attributes:
        name: its heading.
        needs: what it builds on.
        colour: of lines and numbers.
        ground: the lighter colour of its boxes.
        labels: of its lessons, one or two lines each.
    """

    name: str
    needs: str
    colour: str
    ground: str
    labels: dict[str, str] = field(default_factory=dict)


GROUPS = (
    Group(
        *("Foundations", "needs a little PyTorch", "#0072B2", "#E3F0F8"),
        {
            "00": "Start here",
            "01": "Convolutions:\n3D and (2+1)D",
            "02": "Diffusion from\nfirst principles",
        },
    ),
    Group(
        *("Video diffusion in pixels", "builds on 01 and 02", "#00734F", "#E0F3ED"),
        {
            "03": "Video Diffusion\nModels (VDM)",
            "04": "Make-A-Video",
            "05": "Imagen and\nImagen Video",
        },
    ),
    Group(
        "Video diffusion in latents",
        *("06 builds on 02; 07 to 09 also on 03", "#A84A00", "#FBE9DD"),
        {
            "06": "CLIP and latent\ndiffusion",
            "07": "Inflation: Align\nyour Latents",
            "08": "Open models:\nModelScope, …",
            "09": "Stable Video\nDiffusion",
        },
    ),
    Group(
        *("Teach a model something new", "builds on 06 and 07", "#A8437F", "#F7E6F0"),
        {"10": "LoRA", "11": "DreamBooth", "12": "ControlNet"},
    ),
    Group(
        *("Edit a video", "builds on 06 and 07", "#8A6500", "#FBF1D9"),
        {
            "13": "DDIM inversion",
            "14": "With tuning:\nTune-A-Video, …",
            "15": "Without tuning:\nTokenFlow, …",
        },
    ),
    Group(
        *("Judge it, and look ahead", "16 builds on 03, 17 on 07", "#444444", "#EDEDED"),
        {"16": "Metrics: FVD\nand friends", "17": "DiT and flow\nmatching, …"},
    ),
)
GREY = "#767676"  # readable on white
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" width="720" height="620" viewBox="0 0 720 620" role="img" \
aria-labelledby="title desc" font-family="DejaVu Sans, Verdana, Arial, sans-serif">
<title id="title">Map of the course</title>
<desc id="desc">The 18 lessons in six groups, and which groups build on which. \
Planned: PLANNED.</desc>
<rect width="720" height="620" fill="#ffffff"/>
<text x="16" y="34" font-size="21" font-weight="bold" fill="#222">\
Eighteen lessons, six groups</text>
"""


def map_box(x: int, y: int, number: str, label: str, group: Group, is_ready: bool) -> list[str]:
    """The lines of SVG for one lesson; grey and dashed if it does not exist yet."""
    colour, ground, ink, dashes = group.colour, group.ground, "#222", ""
    if not is_ready:
        colour, ground, ink, dashes = GREY, "#ffffff", GREY, ' stroke-dasharray="4 4"'
    lines = label.split("\n")
    first = y + 31 if len(lines) == 1 else y + 22
    texts = [
        f'<text x="{x + 42}" y="{first + 18 * i}" font-size="14" fill="{ink}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return [
        f'<rect x="{x}" y="{y}" width="166" height="52" rx="5" fill="{ground}" '
        f'stroke="{colour}" stroke-width="1.5"{dashes}/>',
        f'<text x="{x + 9}" y="{y + 33}" font-size="19" font-weight="bold" '
        f'fill="{colour}">{number}</text>',
        *texts,
    ]


def course_map(lessons: list[Lesson]) -> str:
    """The map of the course as SVG."""
    ready = {lesson.number for lesson in lessons if lesson.file}
    planned = [number for group in GROUPS for number in group.labels if number not in ready]
    head = HEAD.replace("PLANNED", ", ".join(planned) or "none")
    lines = []
    if planned:
        lines.append(
            f'<text x="704" y="34" font-size="14" fill="{GREY}" text-anchor="end">'
            "grey and dashed: planned</text>"
        )
    for row, group in enumerate(GROUPS):
        y = 80 + 94 * row
        lines += [
            f'<text x="16" y="{y - 9}" font-size="17" font-weight="bold" '
            f'fill="{group.colour}">{group.name}</text>',
            f'<text x="704" y="{y - 9}" font-size="14" fill="#444" '
            f'text-anchor="end">{group.needs}</text>',
        ]
        for column, (number, label) in enumerate(group.labels.items()):
            lines += map_box(16 + 174 * column, y, number, label, group, number in ready)
    return head + "\n".join(lines) + "\n</svg>\n"


def pages(root: Path) -> dict[Path, str]:
    """What every file that this tool writes should hold.

    Args:
        root: folder of the course.
    """
    lessons = read_lessons(root)
    readme = files.read_text(root / "README.md")
    for head, rows in (
        (r"\| \| lesson \|", lesson_table(lessons, "notebooks/")),
        (r"\| checkpoint \|", checkpoint_table(root)),
    ):
        pattern = re.compile(rf"^{head}.*(?:\n\|.*)*", re.MULTILINE)
        readme = pattern.sub(lambda _, rows=rows: rows, readme)
    texts = {
        root / "README.md": readme,
        root / "notebooks" / "images" / "course_map.svg": course_map(lessons),
    }
    for lesson in lessons:
        if lesson.file:
            path = root / "notebooks" / lesson.file
            notebook = files.read_json(path)
            line = navigation_line(lesson, lessons)
            notebook["cells"] = with_navigation(notebook["cells"], line, contents(lessons))
            text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
            texts[path] = text + "\n"
    return texts


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """The command line.

    Args:
        arguments: None means those of the process.
        root: folder of the course.

    Returns:
        1 if --check found a file that is out of date, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="of lessons, such as 00; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    options = parser.parse_args(arguments)
    is_stale = False
    for path, text in pages(root).items():
        if options.numbers and path.suffix == ".ipynb" and path.name[:2] not in options.numbers:
            continue
        if files.read_text(path) != text:
            is_stale = True
            print(("out of date: " if options.check else "wrote ") + path.name, file=sys.stderr)
            if not options.check:
                files.write_text(path, text)
    return int(options.check and is_stale)


if __name__ == "__main__":
    sys.exit(main())
