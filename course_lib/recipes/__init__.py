"""One file per shipped checkpoint, and the engine that runs them all: `python -m course_lib.recipes NAME`."""

from course_lib.recipes import (
    features,
    judge,
    mini_clip,
    mini_sd,
    mini_vae,
    mini_video,
    pixel_ddpm,
    temporal_vae,
    vdm,
)
from course_lib.recipes.recipe import Recipe, Settings, run_recipe

_ALL = (
    judge.RECIPE,
    *features.RECIPES,
    mini_clip.RECIPE,
    pixel_ddpm.RECIPE,
    mini_vae.RECIPE,
    mini_sd.RECIPE,
    vdm.RECIPE,
    mini_video.RECIPE,
    temporal_vae.RECIPE,
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}

__all__ = ["RECIPES", "Recipe", "Settings", "run_recipe"]
