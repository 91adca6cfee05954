"""The pages of docs/ are true: places in the code exist, tables are those of the stored results."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib import diffusion
from course_lib.metrics import frechet_distance
from course_lib.nn.attention import attention
from course_lib.nn.utils import fold_frames, unfold_frames

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
NOTATION = ROOT / "docs" / "notation.md"
CHEAT_SHEET = ROOT / "docs" / "cheat_sheet.md"


def table_rows(page):
    """The rows of the tables of five columns, without their heads."""
    rows = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0] not in ("term", "symbol", "---"):
            rows.append(cells)
    return rows


def glossary_rows():
    return table_rows(GLOSSARY)


def resolve(place):
    """The module or attribute of course_lib that a glossary entry names."""
    parts = place.split(".")
    for k in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(["course_lib", *parts[:k]]))
        except ModuleNotFoundError:
            continue
        for name in parts[k:]:
            is_field = name in getattr(target, "__annotations__", {})
            target = name if is_field else getattr(target, name)
        return target
    raise AssertionError(f"there is no {place}")


@pytest.mark.parametrize("row", glossary_rows(), ids=lambda row: row[0])
def test_glossary_entries_are_complete_and_lead_into_the_code(row):
    _, chinese, meaning, lessons, place = row
    assert re.search(r"[\u4e00-\u9fff]", chinese) and meaning.endswith(".")
    assert all(0 <= int(lesson) <= 17 for lesson in lessons.split(", "))
    resolve(place.strip("`"))


def test_the_glossary_is_sorted_and_has_no_term_twice():
    terms = [row[0].lower() for row in glossary_rows()]
    assert len(terms) >= 40 and len(set(terms)) == len(terms)


def test_a_place_that_does_not_exist_is_noticed():
    with pytest.raises((AssertionError, AttributeError)):
        resolve("nn.attention.NoSuchLayer")


@pytest.mark.parametrize("row", table_rows(NOTATION), ids=lambda row: row[0])
def test_symbols_are_complete_and_lead_into_the_code(row):
    symbol, meaning, shape, place, lessons = row
    assert symbol and meaning and shape
    assert all(0 <= int(lesson) <= 17 for lesson in lessons.split(", "))
    resolve(place.strip("`"))


def test_no_symbol_has_two_rows():
    symbols = [row[0] for row in table_rows(NOTATION)]
    assert len(symbols) >= 45 and len(set(symbols)) == len(symbols)


@pytest.fixture(scope="module")
def sheet():
    """The names that the blocks of the cheat sheet define when they run in order."""
    text = CHEAT_SHEET.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    namespace = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(CHEAT_SHEET), "exec"), namespace)
    return namespace


def sheet_level(sheet, suffix=""):
    values = (sheet[f"{name}{suffix}"] for name in ("alpha", "sigma"))
    return diffusion.AlphaSigma(*(torch.tensor([value], dtype=torch.float64) for value in values))


@pytest.mark.parametrize(
    ("prediction_type", "given", "others"),
    [
        ("sample", "x0", {"eps": "eps_from_x0", "v": "v_from_x0"}),
        ("epsilon", "eps", {"x0": "x0_from_eps", "v": "v_from_eps"}),
        ("v_prediction", "v", {"x0": "x0_from_v", "eps": "eps_from_v"}),
        ("flow_prediction", "u", {"x0": "x0_from_u", "eps": "eps_from_u"}),
    ],
)
def test_conversions_of_the_cheat_sheet(sheet, prediction_type, given, others):
    """Round trips, and equality with the library."""
    level = sheet_level(sheet)
    out = diffusion.convert_prediction(sheet[given], sheet["x_t"], level, prediction_type)
    for name, formula in others.items():
        torch.testing.assert_close(sheet[formula], sheet[name])
        torch.testing.assert_close(sheet[formula], getattr(out, name))


def cheat_scheduler(sheet):
    """DDIM with two timesteps, the levels s and t of the cheat sheet."""
    alpha_bar = [sheet["alpha_s"] ** 2, sheet["alpha"] ** 2]
    betas = [1 - alpha_bar[0], 1 - alpha_bar[1] / alpha_bar[0]]
    return DDIMScheduler(
        num_train_timesteps=2, trained_betas=betas, clip_sample=False, set_alpha_to_one=False
    )


def test_steps_of_the_cheat_sheet(sheet):
    scheduler = cheat_scheduler(sheet)
    scheduler.set_timesteps(2)
    eps, x_t = sheet["eps"], sheet["x_t"]
    ddim = scheduler.step(eps, 1, x_t, eta=0.0).prev_sample
    torch.testing.assert_close(sheet["ddim_step"], ddim, atol=1e-5, rtol=1e-5)
    z = torch.randn_like(eps)
    ddpm = scheduler.step(eps, 1, x_t, eta=1.0, variance_noise=z).prev_sample
    ours = sheet["step"](sheet["x0"], eps, z, eta=1)
    torch.testing.assert_close(ours, ddpm, atol=1e-5, rtol=1e-5)


def test_our_samplers_take_the_step_of_the_cheat_sheet(sheet):
    scheduler = cheat_scheduler(sheet)

    def model(x, t, cond):
        return sheet["eps"]

    first = next(diffusion.ddim(model, scheduler, sheet["x_t"], num_inference_steps=2))
    torch.testing.assert_close(first.x, sheet["ddim_step"], atol=1e-5, rtol=1e-5)


def test_weights_and_guidance_of_the_cheat_sheet(sheet):
    t = torch.tensor([1])
    types = {"sample": "x0", "epsilon": "eps", "v_prediction": "v"}
    for prediction_type, name in types.items():
        scheduler = DDIMScheduler.from_config(
            cheat_scheduler(sheet).config, prediction_type=prediction_type
        )
        assert diffusion.snr(scheduler, t).item() == pytest.approx(sheet["snr"], rel=1e-5)
        for gamma in (1.0, 5.0):
            weight = diffusion.min_snr_weights(scheduler, t, gamma).item()
            divisor = {"x0": 1, "eps": sheet["snr"], "v": sheet["snr"] + 1}[name]
            assert weight == pytest.approx(min(sheet["snr"], gamma) / divisor, rel=1e-5)
            if gamma == sheet["gamma"]:
                assert weight == pytest.approx(sheet[f"weight_{name}"], rel=1e-5)
    preds = sheet["cond_pred"], sheet["uncond_pred"]
    guided = diffusion.classifier_free_guidance(*preds, sheet["guidance_scale"])
    torch.testing.assert_close(sheet["guided"], guided)


def test_folding_and_attention_of_the_cheat_sheet(sheet):
    images = fold_frames(sheet["video"])
    assert torch.equal(sheet["images"], images)
    assert torch.equal(unfold_frames(images, sheet["f"]), sheet["video"])
    expected = attention(sheet["query"], sheet["key"], sheet["value"])
    torch.testing.assert_close(sheet["weights"] @ sheet["value"], expected)


def test_the_distance_of_the_cheat_sheet(sheet):
    x, y = torch.randn(40, 5).double(), 1.5 * torch.randn(30, 5).double() + 0.3
    assert sheet["frechet"](x, y).item() == pytest.approx(frechet_distance(x, y))


@pytest.mark.parametrize("name", ["notation", "cheat_sheet"])
def test_the_architecture_page_leads_to_the_tables(name):
    assert f"({name}.md)" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["results", "performance"])
def test_pages_are_those_of_the_stored_numbers(name):
    stored = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert stored == getattr(write_docs(), f"{name}_page")(), "run python tools/write_docs.py"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0359, "0.0359"),
        (2.664, "2.66"),
        (228.4, "228"),
        (3160.0, "3,160"),
        (2e-11, "2e-11"),
    ],
)
def test_numbers_are_short(value, text):
    assert write_docs().number(value) == text


def test_the_readme_quotes_claims_as_they_are():
    """Every claim that the README names exists, with the verdict given there."""
    import json

    records = json.loads((ROOT / "data" / "claims.json").read_text(encoding="utf-8"))
    verdicts = {record["id"]: record["verdict"] for record in records}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"\| `([a-z0-9-]+)` \| ([^|]+) \|$", readme, re.MULTILINE)
    assert len(quoted) == 5
    assert all(verdicts[claim] == verdict.strip() for claim, verdict in quoted)
