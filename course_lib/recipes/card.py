"""The model card of a checkpoint: Markdown with the YAML header that the Hugging Face Hub reads."""

import json
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

GLOSSARY = {
    "all_attributes_accuracy": "`subject_accuracy`, `motion_accuracy` and `background_accuracy` "
    "are the shares of samples in which the course's classifier, `judge`, sees what the prompt "
    "names, and "
    "`all_attributes_accuracy` that in which it sees all of it.",
    "_over_real_floor": "`…_over_real_floor` is a Fréchet distance divided by the distance between "
    "two sets of real samples; 1 is as good as real.",
    "nearest_rendering/": "`nearest_rendering/…` compares the first samples, up to 2,048 frames, "
    "with the real pictures that are nearest to them among all renderings of their prompts: PSNR "
    "inside the subject; share of clips in which the subject explains every frame; distance from "
    "the nearest path of the motion; change that neither pose nor animation explains (root mean "
    "square, of 1).",
}


def card_text(
    metadata: Mapping[str, Any],
    reached: Mapping[str, bool],
    notes: str,
    hub_metadata: Mapping[str, str],
) -> str:
    """The model card.

    Args:
        metadata: the content of evaluation.json. "provenance", if there is one, is printed next to
            the command.
        reached: metric → whether it reached its target.
        notes: intended use and limits, Markdown.
        hub_metadata: library_name, pipeline_tag and base_model, as far as they apply.
    """
    metrics = metadata["evaluation"]
    scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    sections = [
        f"---\n{_header(metadata['name'], scalars, hub_metadata)}\n---",
        f"# {metadata['name']}",
        metadata["summary"],
        "## Evaluation",
        _table_heading(metadata),
        _table(metadata, scalars, reached),
        *(text for key, text in GLOSSARY.items() if any(key in name for name in metrics)),
        f"## Use and limits\n\n{notes.strip()}" if notes.strip() else "",
        "## Recipe",
        f"```\n{metadata['command']}\n```",
        metadata.get("provenance", ""),
        "\n".join(_facts(metadata)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _header(name: str, scalars: Mapping[str, Any], hub_metadata: Mapping[str, str]) -> str:
    results = [
        EvalResult(
            task_type=hub_metadata.get("pipeline_tag", "other"),
            dataset_type="emoji-world",
            dataset_name="Emoji World",
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in scalars.items()
    ]
    data = ModelCardData(
        license="apache-2.0", model_name=name, eval_results=results or None, **hub_metadata
    )
    return data.to_yaml()


def _table_heading(metadata: Mapping[str, Any]) -> str:
    with_intervals = any(name.endswith("_interval") for name in metadata["evaluation"])
    brackets = "; 95 % intervals in brackets" if with_intervals else ""
    return f"On {metadata['evaluated_on']}, with the stored weights{brackets}."


def _table(
    metadata: Mapping[str, Any], scalars: Mapping[str, Any], reached: Mapping[str, bool]
) -> str:
    rows = ["| metric | value | target | |", "|---|---:|---:|---|"]
    for name, value in scalars.items():
        cells = [name, _format(value), "", ""]
        if (interval := metadata["evaluation"].get(f"{name}_interval")) is not None:
            cells[1] += f" ({_format(interval[0])} to {_format(interval[1])})"
        if name in reached:
            comparison, target = metadata["targets"][name]
            cells[2] = f"{comparison} {_format(target)}"
            cells[3] = "reached" if reached[name] else "missed"
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _facts(metadata: Mapping[str, Any]) -> list[str]:
    config = {name: v for name, v in metadata["config"].items() if v not in (None, {})}
    runs = f"{metadata['minutes']:.1f} minutes of training, {metadata['processes']} process(es)"
    facts = [
        f"{metadata['parameters']:,} parameters, {_size_note(metadata)} in half precision "
        "(safetensors)",
        f"{runs}; {metadata['machine']}",
        f"evaluated on {metadata['measured_on']}" if "measured_on" in metadata else "",
        ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()),
        ", ".join(f"{name} {json.dumps(value)}" for name, value in config.items()),
    ]
    return [f"- {fact}" for fact in facts if fact]


def _size_note(metadata: Mapping[str, Any]) -> str:
    trained = metadata.get("trained_parameters", metadata["parameters"])
    if trained == metadata["parameters"]:
        return "stored"
    return f"of which {trained:,} were trained and are stored here,"


def _format(value: float | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else str(value)
