"""One file per shipped checkpoint, and the engine that runs them all: `python -m course_lib.recipes NAME`."""

from course_lib.recipes import features, judge, mini_clip
from course_lib.recipes.recipe import Recipe, Settings, run_recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (judge.RECIPE, *features.RECIPES, mini_clip.RECIPE)}

__all__ = ["RECIPES", "Recipe", "Settings", "run_recipe"]
