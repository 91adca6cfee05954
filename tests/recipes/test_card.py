"""The model card: its header, its table, and what it tells about the weights."""

import pytest
from huggingface_hub import ModelCard

from course_lib import zoo
from course_lib.recipes import RECIPES
from course_lib.recipes.card import card_text
from course_lib.recipes.recipe import check_targets

METADATA = {
    "name": "x",
    "summary": "y",
    "command": "z",
    "config": {},
    "minutes": 1.0,
    "processes": 1,
    "machine": "m",
    "versions": {},
    "parameters": 12_000,
    "evaluated_on": "8 samples of the test split",
    "evaluation": {},
    "targets": {},
}


def card(notes="", hub_metadata=None, **changes):
    metadata = METADATA | changes
    return card_text(metadata, check_targets(metadata), notes, hub_metadata or {})


def test_a_card_without_targets_and_notes():
    text = card(parameters=1000, evaluation={"a": 1, "b": [1, 2]})
    assert "with the stored weights.\n" in text
    assert "| a | 1 |  |  |" in text
    assert "| b |" not in text
    assert "limits" not in text
    assert "1,000 parameters" in text


def test_a_card_tells_how_much_was_trained():
    note = "- 12,000 parameters, of which 3,000 were trained and are stored here, in half precision"
    assert note in card(trained_parameters=3_000)
    everything = "- 12,000 parameters, stored in half precision"
    assert everything in card(trained_parameters=12_000)
    assert everything in card()


def test_a_card_shows_intervals_with_their_metrics():
    evaluation = {"right": 0.97, "right_interval": [0.96, 0.98], "n": 5}
    text = card(evaluation=evaluation, targets={"right": [">=", 0.9]})
    assert "| right | 0.97 (0.96 to 0.98) | >= 0.9 | reached |" in text
    assert "| n | 5 |" in text
    assert "with the stored weights; 95 % intervals in brackets." in text


def test_provenance_follows_the_command():
    text = card(provenance="These weights are not one run of this command.")
    assert "```\nz\n```\n\nThese weights are not one run of this command.\n" in text


def test_the_header_is_the_hubs():
    hub_metadata = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "base_model": "mini-sd",
    }
    text = card(hub_metadata=hub_metadata, evaluation={"fvd/guided": 1.5, "range": [1.0, 2.0]})
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-video")
    assert data.base_model == "mini-sd"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("fvd/guided", 1.5)
    assert result.dataset_split == "test"


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_cards_follow_from_their_metadata(name):
    recipe = RECIPES[name]
    shipped = zoo.card(name)
    metadata = shipped.metadata
    assert {key: tuple(target) for key, target in metadata["targets"].items()} == recipe.targets
    expected = card_text(metadata, check_targets(metadata), recipe.notes, recipe.hub_metadata)
    assert shipped.text == expected
