"""Lesson 06's "On the real thing", run as it stands in the notebook.

It runs on small random weights in the layout of Stable Diffusion 1.5.
"""

import ast
from pathlib import Path

import nbformat
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from course_lib import runtime
from course_lib.lab import show
from course_lib.recipes.mini_clip import build_tokenizer

# the stand-in has mini-clip's tokenizer, which does not know the words of photographs
pytestmark = pytest.mark.filterwarnings("ignore:prompts. words that the tokenizer")

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "06_clip_and_latent_diffusion.ipynb"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def sources(notebook=NOTEBOOK):
    return [
        cell.source
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "code"
    ]


def loading_cell():
    """The one cell that loads Stable Diffusion 1.5 by its id."""
    (cell,) = [
        source for source in sources() if "StableDiffusionPipeline.from_pretrained" in source
    ]
    return cell


def defined_before(notebook=NOTEBOOK):
    """What the notebook imports and defines; nothing that loads, generates or shows is run."""
    names = {"device": torch.device("cpu")}
    for source in sources(notebook):
        kept = [node for node in ast.parse(source).body if isinstance(node, DEFINITIONS)]
        exec(compile(ast.Module(kept, []), str(notebook), "exec"), names)
    return names


def stable_diffusion_1_5(steps_taken):
    """Every option of its configs that changes what the code does; only sizes are small."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        hidden_act="quick_gelu",
        max_position_embeddings=77, vocab_size=len(tokenizer), **ids,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=32,
        attention_head_dim=8,
        block_out_channels=(32, 32, 64, 64), down_block_types=("CrossAttnDownBlock2D",) * 3 + (
            "DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=4, layers_per_block=2, sample_size=128, scaling_factor=0.18215,
        norm_num_groups=8,
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000,
        set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
    )  # fmt: skip
    unet.register_forward_hook(lambda *_: steps_taken.append(1))
    return StableDiffusionPipeline(
        vae,
        CLIPTextModel(text).eval(),
        tokenizer,
        unet.eval(),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


@pytest.fixture
def gpu_runtime(monkeypatch):
    """A machine that reports a GPU runtime and a reachable hub, but computes on the CPU."""
    monkeypatch.setattr(runtime, "profile", lambda: "gpu")
    monkeypatch.setattr(runtime, "hub_available", lambda: True)
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))


def test_it_runs_on_weights_of_that_layout(monkeypatch, gpu_runtime):
    loaded, shown, steps_taken = [], [], []

    def from_pretrained(name, dtype, **options):
        loaded.append((name, options))
        return stable_diffusion_1_5(steps_taken).to(dtype)

    def record(images, captions=None, columns=None, **options):
        shown.append((images, list(captions)))

    names = defined_before()
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(show, "show_images", record)
    exec(compile(loading_cell(), str(NOTEBOOK), "exec"), names)

    assert loaded == [
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            {"safety_checker": None, "requires_safety_checker": False},
        )
    ]
    (images, prompts), (maps, tokens) = shown
    assert images.shape == (2, 3, 128, 128) and len(prompts) == 2  # factor 8
    assert maps.shape == (6, 3, 128, 128)
    assert tokens == [
        piece.removesuffix("</w>") for piece in build_tokenizer().tokenize(prompts[0])[:6]
    ]
    for values in (images, maps):
        assert (
            values.isfinite().all()
            and values.min() >= -1
            and values.max() <= 1
            and values.std() > 0.01
        )
    assert len(steps_taken) == 26  # PNDM takes one more than requested


def test_it_generates_what_its_own_pipeline_generates(gpu_runtime):
    """The scheduler as Stable Diffusion 1.5 ships it, PNDM, included."""
    names = defined_before()
    pipeline = stable_diffusion_1_5([])
    pipeline.set_progress_bar_config(disable=True)
    prompts, noise = (
        ["a tiger", "a sea"],
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
    )
    options = {"num_inference_steps": 6, "guidance_scale": 7.5, "latents": noise}
    course = names["LatentDiffusion"].from_pipeline(pipeline)
    ours = course.generate(prompts, generator=torch.Generator(), **options)
    theirs = pipeline(prompts, output_type="pt", **options).images * 2 - 1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_laptop_only_prints_what_it_would_show(monkeypatch, capsys):
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it loads")
    )
    exec(compile(loading_cell(), str(NOTEBOOK), "exec"), {"runtime": runtime})
    assert "Stable Diffusion 1.5" in capsys.readouterr().out
