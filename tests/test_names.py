"""Identifiers of course_lib that must not come back, because they say too little or too much."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_lib"

# Identifiers that had several meanings each, or none that a stranger knows (adverbs, participles).
DENIED_NAMES = {
    "told": "cond, or case in a test",
    "said": "pred, out",
    "found": "out, metrics, result",
    "beside": "like, concat, vs",
    "onwards": "extend_autoregressively",
    "between": "interpolate_keyframes",
    "coherent": "temporal_guidance",
    "hears": "temporal_cross_attention",
    "completes": "frame_conditioning",
    "alone": "is_image",
    "drawn": "generated, sampled, plotted",
    "held": "hold_frames",
    "learned": "train_model",
    "practised": "resample",
    "judged": "prompt_accuracy",
    "heard": "motion_word_sensitivity",
    "obeyed": "class_accuracy",
    "pictures": "images",
    "picture": "image",
    "films": "videos, clips",
    "some": "batch, chunk, rows",
    "somewhere": "the name of the position",
    "asked": "target",
    "wanted": "target, expected",
    "whole": "pipeline, full, complete",
    "seen": "context, base, unique",
    "here": "pos, current",
}
ALLOWED_NAMES = {"world/film.py": {"films"}}  # real footage


def identifiers(tree):
    """Every name in a syntax tree, with its line: variables, arguments, attributes, functions, …"""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for attribute in ("id", "arg", "attr", "name", "asname", "rest"):
            name = getattr(node, attribute, None)
            if isinstance(name, str):
                yield line, name
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from ((line, name) for name in node.names)


def denied_names(path, allowed=frozenset()):
    """One sentence for each identifier of the deny-list in a file; case and underscores aside."""
    problems = []
    for line, name in identifiers(ast.parse(path.read_text(encoding="utf-8"))):
        key = name.strip("_").lower()
        if key in DENIED_NAMES and key not in allowed:
            problems.append(f"{path.name}:{line}: {name}; better: {DENIED_NAMES[key]}")
    return problems


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_denied_names(path):
    allowed = ALLOWED_NAMES.get(path.relative_to(PACKAGE).as_posix(), frozenset())
    assert denied_names(path, allowed) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("told = 1", 1),
        ("ALONE = 1\n_found = 2", 2),
        ("def f(wanted): ...", 1),
        ("def between(): ...\nclass Some: ...", 2),
        ("f(seen=1).picture", 2),
        ("import x as held\nfrom films import here as y", 2),
        ("lambda *some, **whole: 0", 2),
        ("try: ...\nexcept E as asked: ...", 1),
        ('held_out = "told what was said"  # found here\nmost = "seen"', 0),
    ],
)
def test_the_name_checker_can_fail(tmp_path, source, count):
    path = tmp_path / "x.py"
    path.write_text(source, encoding="utf-8")
    assert len(denied_names(path)) == count
