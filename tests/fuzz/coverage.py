"""Which public functions and classes have an example call, and why the others have none."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "course_lib"
# Not called by a notebook's code, or, as `exercises`, only with a student's answers
OTHER_ROOMS = ("bench", "claims", "exercises")

# Dotted name, with wildcards: why there is no example
CHECKED_ABOVE = "called by its own room only, with what a public function has checked"
NO_INPUT = "takes no argument that can be wrong"
RESULT = "a result or a setting, made by other functions"
OBJECTS = "takes models or schedulers only; hostile objects are out of scope"
TRAINS = "a part of one recipe, called by its own training; minutes of work"
NOT_FUZZED: dict[str, str] = {
    "diffusion.objective.NoisyBatch": RESULT,
    "diffusion.objective.check_like": CHECKED_ABOVE,
    "diffusion.objective.evaluate_model": CHECKED_ABOVE,
    "diffusion.sampler_step.*": CHECKED_ABOVE,
    "diffusion.schedule.AlphaSigma": RESULT,
    "diffusion.schedule.append_dims": CHECKED_ABOVE,
    "diffusion.schedule.is_flow_matching": OBJECTS,
    "diffusion.schedule.train_timesteps": OBJECTS,
    "diffusion.schedule.has_zero_terminal_snr": OBJECTS,
    "diffusion.schedule.get_prediction_type": OBJECTS,
    "diffusion.schedule.rescale_to_zero_terminal_snr": OBJECTS,
    "evaluation.predict_logits": CHECKED_ABOVE,
    "evaluation.frechet_report": "a minute of work; its parts are called one by one",
    "files.*": "called with paths that public functions have made",
    "lab.checks.*": "called with a student's answers: tests/exercises",
    "lab.claim_plot.show_claim": "shows a record of the ledger",
    "lab.conv_animations.slide_*": "draws an animation of fixed size in a lesson",
    "lab.gallery.*": "runs notebooks",
    "lab.offline_page.*": "runs notebooks",
    "lab.page_layout.*": CHECKED_ABOVE,
    "lab.pipeline_output.*": CHECKED_ABOVE,
    "lab.show.PngImage": RESULT,
    "lab.show.show_figure": OBJECTS,
    "lab.style.apply_style": NO_INPUT,
    "lab.widgets.*": "takes a function and shows what it returns",
    "metrics.clipwise.PerClipMetric": "an abstract class",
    "metrics.external.*": "loads networks of gigabytes that the course does not ship",
    "metrics.features.check_*": CHECKED_ABOVE,
    "metrics.frechet.Gaussian": RESULT,
    "metrics.frechet.FrechetInfinity": RESULT,
    "metrics.nearest.NearestRenderings": RESULT,
    "metrics.prompt_accuracy.Confusion": RESULT,
    "metrics.score.*": RESULT,
    "metrics.text.TextImageEncoder": "a protocol",
    "metrics.trajectory.drop_specks": CHECKED_ABOVE,
    "metrics.text.ClipEncoder": OBJECTS,
    "metrics.text.check_directions": CHECKED_ABOVE,
    "nn.compilation.compile_for_inference": OBJECTS,
    "nn.convert_diffusers.*": OBJECTS,
    "nn.kernels.*": CHECKED_ABOVE,
    "nn.profiling.count_flops": OBJECTS,
    "nn.temporal.SharedTextAttnProcessor": CHECKED_ABOVE,
    "nn.temporal_layouts.*": CHECKED_ABOVE,
    "nn.unet_blocks.*": CHECKED_ABOVE,
    "nn.utils.*": CHECKED_ABOVE,
    "nn.video_context.*": CHECKED_ABOVE,
    "pipelines.batch.*": CHECKED_ABOVE,
    "pipelines.frame_condition.check_condition": CHECKED_ABOVE,
    "pipelines.text_to_video.VideoPipelineOutput": RESULT,
    "pipelines.unet_adapter.*": OBJECTS,
    "recipes.card.card_text": RESULT,
    "recipes.curriculum.*": TRAINS,
    "recipes.diffusion_recipe.*": TRAINS,
    "recipes.features.*": TRAINS,
    "recipes.judge.*": TRAINS,
    "recipes.latent_cache.LatentCache": TRAINS,
    "recipes.mini_clip.*": TRAINS,
    "recipes.mini_sd.*": TRAINS,
    "recipes.mini_vae.*": TRAINS,
    "recipes.mini_video.*": TRAINS,
    "recipes.perceptual.*": TRAINS,
    "recipes.pixel_ddpm.*": TRAINS,
    "recipes.recipe.*": TRAINS,
    "recipes.temporal_vae.*": TRAINS,
    "recipes.vdm.*": TRAINS,
    "runtime.*": NO_INPUT,
    "training.checks.check_args": CHECKED_ABOVE,
    "training.loop.TrainStep": RESULT,
    "training.run.*": CHECKED_ABOVE,
    "training.sharding.*": CHECKED_ABOVE,
    "training.state.*": "tests/training/test_state_file.py damages the files themselves",
    "validation.require": "takes a condition",
    "validation.check_provided": "takes anything",
    "validation.check_net": OBJECTS,
    "world.backgrounds.paint": CHECKED_ABOVE,
    "world.checks.*": CHECKED_ABOVE,
    "world.defects.CorruptedClips": RESULT,
    "world.film.list_videos": NO_INPUT,
    "world.hashing.*": CHECKED_ABOVE,
    "world.motions.path": CHECKED_ABOVE,
    "world.rendering.*": CHECKED_ABOVE,
    "world.sprites.*": CHECKED_ABOVE,
    "world.subjects.*": CHECKED_ABOVE,
    "zoo.checksums.*": CHECKED_ABOVE,
    "zoo.deltas.*": OBJECTS,
    "zoo.journal.*": CHECKED_ABOVE,
    "zoo.registry.*": CHECKED_ABOVE,
}


def public_names() -> Iterator[str]:
    """Dotted names of all public functions and classes, without the package's own name."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in OTHER_ROOMS or any(part.startswith("_") for part in parts):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield ".".join([*parts, node.name])


def has_example(name: str, examples: list[str]) -> bool:
    """Whether a function, a class or one of its methods is called by an example."""
    return any(other == name or other.startswith((f"{name}.", f"{name} (")) for other in examples)


def reason_without(name: str) -> str:
    """Why a name has no example, or ""."""
    return next((text for key, text in NOT_FUZZED.items() if fnmatchcase(name, key)), "")


def missing(examples: list[str]) -> list[str]:
    """Public names without an example and without a reason."""
    names = public_names()
    return [name for name in names if not has_example(name, examples) and not reason_without(name)]


def superfluous(examples: list[str]) -> list[str]:
    """Reasons that no public name needs."""
    names = [name for name in public_names() if not has_example(name, examples)]
    return [key for key in NOT_FUZZED if not any(fnmatchcase(name, key) for name in names)]
