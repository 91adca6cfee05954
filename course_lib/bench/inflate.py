"""Inflated U-Nets against diffusers' video U-Nets with equal weights: training and sampling steps.

Style animatediff is compared with UNetMotionModel, style modelscope with UNet3DConditionModel;
their outputs are equal, so that only the implementations differ. video-ldm, which the course ships,
has no counterpart and is compared with both. Then a clip of mini-video; in bfloat16 also with a
compiled U-Net, which takes one to two minutes before the first clip.
"""

from collections.abc import Callable

import torch
from diffusers import UNetMotionModel
from torch import Tensor, nn

from course_lib import runtime, zoo
from course_lib.bench.timing import (
    BenchmarkRow,
    Contender,
    compile_seconds,
    contender_rows,
    dtype_name,
    fast_dtypes,
    interleaved_timings,
    quartiles,
)
from course_lib.nn.compilation import compile_for_inference
from course_lib.nn.convert_diffusers import to_motion_model, to_unet3d
from course_lib.nn.inflate import inflate
from course_lib.nn.profiling import count_parameters
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, build_unet

# As mini-sd is used; guidance makes two clips of one
BATCH_SIZE = 2
NUM_FRAMES = 16
LATENT_SIZE = 8
TEXT_DIM = 128
CONVERTERS = {"animatediff": to_motion_model, "modelscope": to_unet3d}
PAIRS = (
    ("animatediff", "UNetMotionModel"),
    ("modelscope", "UNet3DConditionModel"),
    ("video-ldm", "UNetMotionModel"),
    ("video-ldm", "UNet3DConditionModel"),
)
SECONDS_PER_CASE = 40
NUM_INFERENCE_STEPS = 25
TARGET_SECONDS = {"float32": 6, "bfloat16": 3}  # for one clip
PIPELINE = "TextToVideoPipeline"
COMPILED = f"{PIPELINE}, compiled"


def networks() -> dict[str, nn.Module]:
    """Styles inflated from an untrained mini-sd, and diffusers' classes with equal weights."""
    torch.manual_seed(0)
    image_unet = build_unet(sample_size=LATENT_SIZE, cross_attention_dim=TEXT_DIM)
    nets: dict[str, nn.Module] = {}
    for style, convert in CONVERTERS.items():
        unet = inflate(image_unet, style)
        for parameter in unet.temporal.parameters():  # as if trained; zeros might be cheaper
            nn.init.normal_(parameter, std=0.02)
        converted = convert(unet)
        nets |= {style: unet, type(converted).__name__: converted}
    nets["video-ldm"] = inflate(image_unet, "video-ldm")
    return {name: net.to(runtime.device()).train() for name, net in nets.items()}


def random_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text for all networks."""
    latents = torch.randn(
        (BATCH_SIZE, LATENT_CHANNELS, NUM_FRAMES, LATENT_SIZE, LATENT_SIZE),
        generator=torch.Generator().manual_seed(0),
    )
    text = torch.randn((BATCH_SIZE, 32, TEXT_DIM), generator=torch.Generator().manual_seed(1))
    device = runtime.device()
    return latents.to(device), torch.tensor([100, 700]).to(device), text.to(device)


def make_contender(
    net: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> Contender:
    """UNetMotionModel needs the text of every frame; its pipeline's repetition is timed as well."""
    if not isinstance(net, UNetMotionModel):
        return Contender(net, inputs, dtype=dtype)

    def call(latents: Tensor, t: Tensor, text: Tensor) -> object:
        return net(latents, t, text.repeat_interleave(latents.shape[2], dim=0))

    return Contender(net, inputs, call, dtype)


def freeze_image_model(net: nn.Module) -> None:
    """Train the temporal layers only."""
    temporal = ("temporal.", "motion_modules.", "temp_", "transformer_in.")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(any(part in name for part in temporal))


# Name of a step, the contender's method, preparation of a network; sampling is without dropout
STEPS: tuple[tuple[str, str, Callable[[nn.Module], object]], ...] = (
    ("sampling step", "sampling_step", lambda net: net.eval()),
    ("training step", "training_step", lambda net: net.train()),
    ("training step, image model frozen", "training_step", freeze_image_model),
)


def bench_inflate() -> list[BenchmarkRow]:
    """Sampling, training all weights, training temporal layers only, and a clip of mini-video."""
    nets = networks()
    inputs = random_inputs()
    rows = []
    for dtype in fast_dtypes():
        contenders = {name: make_contender(net, inputs, dtype) for name, net in nets.items()}
        shape = f"{BATCH_SIZE}x16x{NUM_FRAMES}x{LATENT_SIZE}x{LATENT_SIZE}"
        for step, method, prepare in STEPS:
            for net in nets.values():
                prepare(net)
            rows += contender_rows(
                contenders,
                method,
                PAIRS,
                benchmark="inflate",
                case=f"{shape} {dtype_name(dtype)} {step}",
                budget_s=SECONDS_PER_CASE,
                note=lambda name, _: f"{count_parameters(nets[name]):,} parameters",
            )
        for net in nets.values():
            net.requires_grad_(True)
        rows += clip_rows(dtype)
    return rows


def clip_rows(
    dtype: torch.dtype, num_inference_steps: int = NUM_INFERENCE_STEPS
) -> list[BenchmarkRow]:
    """Seconds from a prompt to its clip; in bfloat16 also with a compiled U-Net.

    Args:
        dtype: of the weights, as in diffusers' pipelines; autocast would cast frozen weights at
            every step.
        num_inference_steps: of sampling.
    """
    pipe = zoo.load("mini-video", device=runtime.device())
    pipe.to(dtype)

    def clip_fn(unet: nn.Module) -> Callable[[], Tensor]:
        def generate() -> Tensor:
            pipe.unet = unet
            return pipe.generate(
                ["a tiger moving left on grass"],
                num_inference_steps=num_inference_steps,
                generator=torch.Generator().manual_seed(0),
            )

        return generate

    functions = {PIPELINE: clip_fn(pipe.unet)}
    notes = {PIPELINE: ""}
    if dtype == torch.bfloat16:
        compiled = clip_fn(compile_for_inference(pipe.unet))
        first = compile_seconds(compiled, COMPILED)
        if first is not None:
            functions[COMPILED] = compiled
            notes[COMPILED] = f"first clip after {first:.0f} s"
    times = interleaved_timings(functions, repeats=7, budget_s=SECONDS_PER_CASE)
    name = dtype_name(dtype)
    case = f"mini-video, {num_inference_steps} steps with guidance, one clip of {NUM_FRAMES} frames"
    rows = []
    for contender, note in notes.items():
        low, seconds, high = quartiles(times[contender])
        target = TARGET_SECONDS[name]
        ratios = (target / seconds, target / high, target / low)
        row = (f"{case}, 64x64, {name}", contender, seconds, "s", f"target {target} s", *ratios)
        rows.append(BenchmarkRow("inflate", *row, note))
    return rows
