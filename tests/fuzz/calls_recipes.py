"""Valid calls of the public helpers of course_lib.recipes."""

import copy

import torch
from diffusers import DDIMScheduler

from course_lib.recipes import curriculum, diffusion_recipe
from course_lib.recipes.finetune import finetune
from course_lib.world import Scene
from tests.fuzz.args import F, G, I, N, P, R, X
from tests.fuzz.harness import add
from tests.fuzz.systems import image_system


def tuned(latents, text, **kwargs):
    """Losses of a short fine-tune."""
    unet = copy.deepcopy(image_system().unet)
    weight = unet.conv_out.weight.requires_grad_(True)
    generator = kwargs.pop("generator")
    steps = finetune(
        unet, DDIMScheduler(), latents, text, trainable=[weight], generator=generator,
        num_steps=1, lr=0.01, mixed_precision="no", **kwargs,
    )  # fmt: skip
    return [step.loss for step in steps]


add(
    "recipes.finetune.finetune",
    tuned,
    latents=F("b 4 y x", b=2),
    text=F("b l 32", b=2, allows="first_axis_of_1"),
    generator=G(),
    batch_size=N(2),
    prior_weight=R(1.0, 0),
    snr_gamma=R(5.0, 1e-9),
)
add(
    "recipes.curriculum.render_by_rate",
    lambda **kwargs: [rows.start for rows, _, _ in curriculum.render_by_rate(
        [Scene("tiger", "moving left", "sea")] * 8, **kwargs)],
    num_frames=N(2), size=N(16, low=8),
)  # fmt: skip
add("recipes.diffusion_recipe.batch_generator", seed=N(0, low=0), number=N(3, low=0))
add("recipes.diffusion_recipe.batch_rows", number=N(3, low=0), batch_size=N(4))
add(
    "recipes.diffusion_recipe.generate_in_chunks",
    lambda **kwargs: diffusion_recipe.generate_in_chunks(
        lambda prompts, **_: torch.ones(len(prompts), 2), device=torch.device("cpu"), **kwargs
    ),
    prompts=P(allows="one_row_fewer one_row_more"), chunk_size=N(2),
)  # fmt: skip
add(
    "recipes.mini_clip.multi_positive_clip_loss",
    logits=F("n n"), positive_ids=I("n", [0, 1, 1, 2]),
)  # fmt: skip
add("recipes.mini_clip.tokenize", texts=P(allows="one_row_fewer one_row_more"))
add("recipes.mini_clip.hard_negatives", scene=X(lambda: Scene("tiger", "moving left", "sea")))
add("recipes.vdm.conditioning", prompts=P(2, allows="one_row_fewer one_row_more"), fps=R(8.0, 1e-9))
add("recipes.temporal_vae.mean_frame_diff", video=F("b c f h w", b=2))
add(
    "recipes.perceptual.perceptual_loss",
    pred=F("b 3 64 64", b=2),
    images=F("b 3 64 64", b=2, scale=0.5),
)
