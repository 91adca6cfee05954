"""A lesson in a browser: JupyterLab with its widgets, and an exported page.

It needs Playwright (`pip install -e .[browser]`) and a Chromium of the system; without them the
tests are skipped. .ci/run installs both where it can.
"""

import base64
import io
import json
import re
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from course_lib.lab.gallery import read_notebook, to_html
from tests.jupyter_server import served

ROOT = Path(__file__).resolve().parents[1]
LESSON = ROOT / "notebooks" / "00_start_here.ipynb"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
REDRAW_SECONDS, PATIENCE_MS = 2, 180_000
# A widget that takes its time: what is said meanwhile?
SLOW = """\
import time
from course_lib.lab import widgets

def slow(n):
    time.sleep(3)
    return f"slept for {n}"

widgets.explore(slow, n=(1, 9))"""

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[browser]'"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this system")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        with driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def page(browser):
    """A page that collects in `.problems` what a reader would not see."""
    with browser.new_context(viewport={"width": 1400, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.problems = []
        add = page.problems.append
        page.on("console", lambda message: message.type == "error" and add(message.text))
        page.on("pageerror", lambda error: add(str(error)))
        # aborted: JupyterLab puts another address in place of a picture's relative one
        page.on(
            "requestfailed",
            lambda r: r.failure != "net::ERR_ABORTED" and add(f"{r.url}: {r.failure}"),
        )
        page.on("response", lambda r: r.status >= 400 and add(f"{r.url}: {r.status}"))
        yield page


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a copy of lesson 00, and on a notebook of its widget and a slow one."""
    folder = tmp_path_factory.mktemp("browser")
    notebooks = folder / "root" / "notebooks"
    notebooks.mkdir(parents=True)
    shutil.copy(LESSON, notebooks)
    shutil.copytree(LESSON.parent / "images", notebooks / "images")
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    widget = next(cell for cell in code if "widgets.explore(" in "".join(cell["source"]))
    slow = {**widget, "id": "slow", "source": SLOW.splitlines(keepends=True)}
    cells = [{**cell, "outputs": [], "execution_count": None} for cell in (code[0], widget, slow)]
    text = json.dumps({**notebook, "cells": cells})
    (notebooks / "widgets.ipynb").write_text(text, encoding="utf-8")
    options = f"--ServerApp.root_dir={folder / 'root'}", "--LabApp.expose_app_in_browser=True"
    variables = {"COURSE_PROFILE": "cpu", "COURSE_STATIC": "", "COURSE_PROGRESS": ""}
    with served(folder, *options, PYTHONPATH=str(ROOT), **variables) as running:
        yield running


def open_notebook(page, server, name):
    port, token, _ = server  # in a workspace of its own: no tab of an earlier test comes back
    workspace = f"http://localhost:{port}/lab/workspaces/{uuid.uuid4().hex}"
    page.goto(f"{workspace}/tree/notebooks/{name}?token={token}")
    page.locator(".jp-NotebookPanel:visible .jp-Cell").first.wait_for()
    page.locator('.jp-NotebookPanel-toolbar [data-status="idle"]').wait_for()


def run_until(page, result):
    """Run all cells, once the kernel's channels are open: before that, requests get lost."""
    page.wait_for_function(
        """() => {
            const context = window.jupyterapp.shell.currentWidget?.sessionContext
            const kernel = context?.isReady ? context.session?.kernel : null
            return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'
        }"""
    )
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    result.wait_for()


def luminance(rgb):
    """Relative luminance of a colour in [0, 255] (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb / 255.0]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(rgb, other):
    """Contrast ratio of two colours, from 1 to 21 (WCAG 2.2; 4.5 is legible)."""
    low, high = sorted((luminance(rgb), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_jupyterlab_opens_the_first_lesson(page, server):
    open_notebook(page, server, LESSON.name)
    assert page.locator(".jp-Notebook h1").first.inner_text().startswith("Start here")
    page.get_by_role("link", name=re.compile("^01 ·")).first.wait_for()
    assert page.locator('.jp-SideBar [title^="Table of Contents"]').count() == 1
    picture = page.locator(".jp-OutputArea img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.problems == []


def test_widgets_answer_and_say_that_they_work(page, server):
    open_notebook(page, server, "widgets.ipynb")
    areas = page.locator(".jp-CodeCell")
    run_until(page, areas.nth(2).get_by_text("slept for 5"))
    picture = areas.nth(1).locator(".jp-OutputArea img").last
    handle = areas.nth(1).locator(".noUi-handle")
    seconds = []
    for _ in range(3):
        before, start = picture.get_attribute("src"), time.perf_counter()
        handle.press("ArrowRight")
        while picture.get_attribute("src") == before:
            assert time.perf_counter() - start < 30, "the slider does not change the picture"
            page.wait_for_timeout(20)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < REDRAW_SECONDS, seconds
    areas.nth(2).locator(".noUi-handle").press("ArrowRight")
    areas.nth(2).get_by_text("drawing").wait_for(timeout=2500)  # before the three seconds are over
    areas.nth(2).get_by_text("slept for 6").wait_for()
    assert page.problems == []


def test_the_dark_theme_is_legible(page, server):
    open_notebook(page, server, LESSON.name)
    theme = "window.jupyterapp.commands.execute('apputils:change-theme', {theme: '%s'})"
    page.evaluate(theme % "JupyterLab Dark")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(1000)
    cells = page.locator(".jp-MarkdownOutput:visible")
    for cell in (cells.nth(i) for i in range(3)):
        cell.scroll_into_view_if_needed()
        pixels = pixels_of(cell.screenshot())
        background, text = (np.quantile(pixels, q, axis=0) for q in (0.5, 0.999))
        assert luminance(background) < 0.1 and contrast(background, text) >= 7
    # Figures keep their own paper; the darkest pixels are their text
    for cell in read_notebook(LESSON).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert image.convert("RGBA").getextrema()[3] == (255, 255), "a figure lets through"
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
                paper, ink = (np.quantile(pixels, q, axis=0) for q in (0.999, 0.001))
                assert contrast(paper, ink) >= 4.5
    assert page.problems == []


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)


def test_an_exported_page_shows_formulas_and_plays_its_pictures(page, tmp_path):
    """Lesson 02 has formulas; its neighbour answers to a click."""
    for path in sorted(LESSON.parent.glob("0[12]_*.ipynb")):
        text = to_html(read_notebook(path))
        (tmp_path / f"{path.stem}.html").write_text(text, encoding="utf-8")
    shutil.copytree(LESSON.parent / "images", tmp_path / "images")
    page.goto((tmp_path / "02_diffusion_from_first_principles.html").as_uri())
    boxes = [formula.bounding_box() for formula in page.locator("math").all()]
    assert len(boxes) > 20 and all(box["width"] > 0 and box["height"] > 0 for box in boxes)
    assert "$" not in page.locator(".jp-RenderedMarkdown").first.inner_text()
    unloaded = "all => all.filter(image => !image.naturalWidth).length"
    assert page.locator("img").evaluate_all(unloaded) == 0
    assert any(moves(page, image) for image in page.locator(".jp-OutputArea img").all()[:8])
    page.get_by_role("link", name=re.compile("^01 ·")).first.click()
    page.wait_for_url("**/01_convolutions_for_video.html")
    assert page.locator("h1").first.inner_text().startswith("01 ·")
    assert page.problems == []


def moves(page, image):
    """Whether a picture looks different within a second."""
    first = image.screenshot()
    for _ in range(5):
        page.wait_for_timeout(200)
        if image.screenshot() != first:
            return True
    return False
