"""Lesson 07's "On the real thing", run as it stands in the notebook, on small random weights.

They have the layouts of Stable Diffusion 1.5 and of AnimateDiff's motion adapter. The reference is
diffusers' own AnimateDiffPipeline.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, StableDiffusionPipeline

from course_lib import runtime
from course_lib.diffusion import sample_noise
from course_lib.lab import show
from tests.exercises.test_lesson_06_real_thing import defined_before, sources, stable_diffusion_1_5

# the stand-in has mini-clip's tokenizer, which does not know the words of photographs
pytestmark = pytest.mark.filterwarnings("ignore:prompts. words that the tokenizer")

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "07_inflating_a_latent_model.ipynb"
STEPS = 4


def loading_cell():
    """The one cell that loads a motion adapter."""
    (cell,) = [source for source in sources(NOTEBOOK) if "MotionAdapter.from_pretrained" in source]
    return cell


def motion_adapter():
    """As guoyww/animatediff-motion-adapter-v1-5-2, but small; its layers are not zero."""
    torch.manual_seed(1)
    adapter = MotionAdapter(
        block_out_channels=(32, 32, 64, 64), motion_layers_per_block=2,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=8, motion_norm_num_groups=32, motion_max_seq_length=32,
        use_motion_mid_block=True,
    )  # fmt: skip
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def test_it_generates_what_the_pipeline_made_for_it_generates(monkeypatch):
    loaded, shown = [], []

    def loads(make):
        def from_pretrained(name, dtype, **options):
            loaded.append(name)
            return make().to(dtype=dtype)

        return from_pretrained

    monkeypatch.setattr(runtime, "profile", lambda: "gpu")
    monkeypatch.setattr(runtime, "hub_available", lambda: True)
    monkeypatch.setattr(runtime, "dtype", lambda device=None: torch.float32)
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", loads(lambda: stable_diffusion_1_5([]))
    )
    monkeypatch.setattr(MotionAdapter, "from_pretrained", loads(motion_adapter))
    monkeypatch.setattr(
        show, "show_video", lambda video, prompts, **_: shown.append((video, prompts))
    )
    names = defined_before(NOTEBOOK)
    quick = loading_cell().replace("steps=25", f"steps={STEPS}")
    assert quick != loading_cell()
    exec(compile(quick, str(NOTEBOOK), "exec"), names)
    assert loaded == [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "guoyww/animatediff-motion-adapter-v1-5-2",
    ]
    ((video, prompts),) = shown
    assert video.shape == (1, 3, 16, 128, 128) and len(prompts) == 1

    image = stable_diffusion_1_5([])
    scheduler = DDIMScheduler.from_config(names["scheduler"].config)
    parts = (
        image.vae,
        image.text_encoder,
        image.tokenizer,
        image.unet,
        motion_adapter(),
        scheduler,
    )
    theirs = AnimateDiffPipeline(*parts)
    theirs.set_progress_bar_config(disable=True)
    # The course's pipeline starts from `sample_noise`; theirs is given the same
    start = sample_noise((1, 4, 16, 16, 16), torch.Generator().manual_seed(7))
    frames = theirs(
        prompts[0], latents=start, num_inference_steps=STEPS, guidance_scale=7.5, output_type="pt"
    ).frames
    torch.testing.assert_close(video, frames.transpose(1, 2) * 2 - 1, atol=2e-3, rtol=0)


def test_a_laptop_only_prints_what_it_would_show(monkeypatch, capsys):
    monkeypatch.setattr(MotionAdapter, "from_pretrained", lambda *_, **__: pytest.fail("it loads"))
    exec(compile(loading_cell(), str(NOTEBOOK), "exec"), {"runtime": runtime})
    assert "AnimateDiff" in capsys.readouterr().out
