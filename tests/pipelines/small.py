"""What the tests of this folder share."""

import torch

from course_lib.pipelines.text_to_video import TextToVideoPipeline

PROMPTS = ["a tiger moving left on a sea background", "a red star spinning on a snow background"]


def build_pipeline(system, unet, **changes):
    parts = {**vars(system), "unet": unet.eval().requires_grad_(False), **changes}
    pipe = TextToVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(b=2, f=5, seed=1):
    return torch.randn(b, 4, f, 8, 8, generator=torch.Generator().manual_seed(seed))
