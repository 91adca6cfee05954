"""Write the U-Nets of lessons 03, 06 and 07 as variants of lesson 02's figure.

    python tools/write_unet_figures.py          notebooks/images/unet_*.svg
    python tools/write_unet_figures.py --check  write nothing; 1 if a file is out of date

The figure of lesson 02, notebooks/images/unet.svg, names its groups. A variant has two levels in
place of three, other sizes, and in every block a label of the layer that its lesson adds.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "notebooks" / "images"
BLOCKS = {"down-1": (100, 88), "down-2": (134, 200), "up-1": (472, 88), "up-2": (458, 200)}
WIDTHS = {"down-1": 148, "down-2": 128, "up-1": 148, "up-2": 128, "middle": 128}
MIDDLE = (296, 292)  # left and top of the middle block, one level higher than in lesson 02
MIDDLE_LIFT = 404 - MIDDLE[1]
REMOVED = ("down-3", "up-3", "skip-3", "size-3", "halve-2", "double-2", "to-middle", "from-middle")
ARROW = '<path d="{}" fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#arrow)"/>'


@dataclass(frozen=True)
class Figure:
    """A U-Net of two levels with a layer added to each block.

    Attributes:
        title: in the figure.
        description: for readers who do not see it.
        embedding: what is added in every block.
        sizes: height, width and channels of the two levels.
        noisy: two lines below the input.
        label: the added layer, in a word.
        legend: what it does, beside the label.
        frozen: whether the blocks are drawn grey, since they are not trained.
    """

    title: str
    description: str
    embedding: str
    sizes: tuple[str, str]
    noisy: tuple[str, str]
    label: str
    legend: str
    frozen: bool = False


FIGURES = {
    "unet_vdm": Figure(
        "VDM's U-Net",
        "The U-Net of lesson 02 with two levels; every block has temporal attention.",
        "timestep, as an embedding, is added here",
        ("8 × 8 tokens, 128 channels", "4 × 4, 128 channels"),
        ("noisy", "clip"),
        "time",
        "new in every block: attention between the frames",
    ),
    "unet_text": Figure(
        "mini-sd's U-Net",
        "The U-Net of lesson 02 with two levels; every block has cross-attention to the prompt.",
        "timestep, as an embedding, is added here",
        ("8 × 8, 96 channels", "4 × 4, 192 channels"),
        ("noisy", "latents"),
        "text",
        "new in every block: cross-attention to the prompt",
    ),
    "unet_inflated": Figure(
        "mini-sd, inflated",
        "mini-sd's U-Net in grey, frozen; every block has trained temporal layers.",
        "timestep, as an embedding, is added here",
        ("8 × 8, 96 channels", "4 × 4, 192 channels"),
        ("latents of", "all frames"),
        "time",
        "new and trained: temporal layers · grey: frozen image model",
        frozen=True,
    ),
}


def group(name: str) -> re.Pattern[str]:
    """The group of this id, to its end; groups are not nested."""
    return re.compile(rf'<g id="{name}">.*?</g>\n', re.DOTALL)


def layer_label(left: float, top: float, text: str) -> str:
    """A coloured label, 60 x 21."""
    return (
        f'<rect x="{left}" y="{top}" width="60" height="21" rx="5" fill="#FFE08A" '
        'stroke="#7A5900" stroke-width="1.5"/>'
        f'<text x="{left + 30}" y="{top + 15.5}" font-size="14" font-weight="bold" '
        f'fill="#5A4200" text-anchor="middle">{text}</text>\n'
    )


def draw(base: str, figure: Figure) -> str:
    """The variant of the figure `base`."""
    svg = re.sub(r"<!--.*?-->\n", "", base, flags=re.DOTALL)
    for name in REMOVED:
        svg = group(name).sub("", svg)
    middle = group("middle").search(svg).group()
    lifted = re.sub(r'(\b(?:y|cy)=")(\d+)', lambda m: f"{m[1]}{int(m[2]) - MIDDLE_LIFT}", middle)
    lifted = lifted.replace(
        "M406 418H414M410 414V422",
        f"M406 {418 - MIDDLE_LIFT}H414M410 {414 - MIDDLE_LIFT}V{422 - MIDDLE_LIFT}",
    )
    svg = svg.replace(middle, lifted)
    arrows = ARROW.format("M198 258V317H293") + "\n" + ARROW.format("M426 317H522V259") + "\n"
    # A block's name moves up, and leaves the lower right corner to the label
    svg = re.sub(r'y="(\d+)"(?= font-size="17")', lambda match: f'y="{int(match[1]) - 13}"', svg)
    labels = [
        layer_label(left + WIDTHS[name] - 66, top + 29, figure.label)
        for name, (left, top) in (BLOCKS | {"middle": (MIDDLE[0], MIDDLE[1] - 5)}).items()
    ]
    legend = layer_label(16, 362, figure.label) + (
        f'<text x="88" y="378" font-size="15" fill="#222">{figure.legend}</text>\n'
    )
    svg = svg.replace("</svg>", f"{arrows}{''.join(labels)}{legend}</svg>")
    for old, new in (
        ('height="470" viewBox="0 0 720 470"', 'height="396" viewBox="0 0 720 396"'),
        ('width="720" height="470" fill', 'width="720" height="396" fill'),
        ('<title id="title">A U-Net<', f'<title id="title">{figure.title}<'),
        ('fill="#222">A U-Net<', f'fill="#222">{figure.title}<'),
        ("timestep and class, as an embedding, are added here", figure.embedding),
        ("16 × 16, 64 channels", figure.sizes[0]),
        ("8 × 8, 128 channels", figure.sizes[1]),
        (">noisy<", f">{figure.noisy[0]}<"),
        (">image<", f">{figure.noisy[1]}<"),
    ):
        if old not in svg:
            raise ValueError(f"notebooks/images/unet.svg must contain {old!r}, which is replaced")
        svg = svg.replace(old, new)
    svg = re.sub(r'(<desc id="desc">).*?<', rf"\g<1>{figure.description}<", svg)
    if figure.frozen:
        for colour in ("#E3F0F8", "#E0F3ED"):
            svg = svg.replace(colour, "#EDEFF0")
        for colour in ("#0072B2", "#00734F"):
            svg = svg.replace(colour, "#444")
    return svg


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the figures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    base = (IMAGES / "unet.svg").read_text(encoding="utf-8")
    stale = 0
    for name, figure in FIGURES.items():
        path, svg = IMAGES / f"{name}.svg", draw(base, figure)
        if path.is_file() and path.read_text(encoding="utf-8") == svg:
            continue
        stale = 1
        if check:
            print(f"{path.name} is out of date: run python tools/write_unet_figures.py")
        else:
            path.write_text(svg, encoding="utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main())
