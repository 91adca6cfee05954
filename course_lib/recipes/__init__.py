"""One file per shipped checkpoint, and what runs them: `python -m course_lib.recipes NAME`.

| file               | content                                                                |
|--------------------|------------------------------------------------------------------------|
| `recipe`, `card`   | what a recipe is, how it is run, and the model card it writes          |
| `diffusion_recipe` | what the recipes of diffusion models share                             |
| `latent_cache`     | training items that are rendered or encoded once                       |
| `curriculum`       | training in phases, and clips at several frame rates                   |
| `perceptual`       | the perceptual loss of the autoencoders                                |
| `finetune`         | a short fine-tune on a few images or one video                         |

The other files are recipes; they import none of each other, only checkpoints through `zoo`.
"""

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
from course_lib.recipes.recipe import Recipe, TrainConfig, run_recipe

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

__all__ = ["RECIPES", "Recipe", "TrainConfig", "run_recipe"]
