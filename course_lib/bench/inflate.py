"""Inflated U-Nets beside diffusers' own video U-Nets with the very same weights: a training step, a step of sampling.

Style animatediff meets UNetMotionModel, style modelscope UNet3DConditionModel; their answers are equal, so that only
the way there is compared. video-ldm, which the course ships, has no counterpart and stands beside both. Last, a clip of
mini-video; in bfloat16 also with its U-Net through torch.compile, which takes one to two minutes before the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNetMotionModel
from torch import Tensor, nn

from course_lib import runtime, zoo
from course_lib.bench.timing import Row, alternate, compare, compile_seconds, quartiles
from course_lib.nn.compilation import compiled
from course_lib.nn.profiling import count_parameters
from course_lib.nn.convert_diffusers import to_motion_model, to_unet3d
from course_lib.nn.inflate import inflate
from course_lib.papers.latent_diffusion import build_unet

BATCH, FRAMES, SIZE, WORDS, TEXT = (
    2,
    16,
    8,
    32,
    128,
)  # as mini-sd is used: two clips, of which guidance makes one
STYLES = {"animatediff": to_motion_model, "modelscope": to_unet3d}
SECONDS_A_CASE = 40
STEPS, TARGETS = 25, {"float32": 6, "bfloat16": 3}  # of sampling; seconds for a clip
PIPELINE = "TextToVideoPipeline"
COMPILED = f"{PIPELINE}, compiled"


@dataclass(frozen=True)
class Subject:
    """A video U-Net, what it is given, and the arithmetic."""

    net: nn.Module
    given: dict[str, Tensor]
    half: bool

    def answer(self) -> Tensor:
        """The network's prediction."""
        with torch.autocast(runtime.device().type, torch.bfloat16, enabled=self.half):
            text = self.given["encoder_hidden_states"]
            if isinstance(
                self.net, UNetMotionModel
            ):  # its pipeline repeats the text, so that counts as its own time
                text = text.repeat_interleave(FRAMES, dim=0)
            return self.net(self.given["sample"], self.given["timestep"], text).sample

    def train(self) -> None:
        """Forward, backward; the update is the same for all and left out."""
        self.net.zero_grad(set_to_none=True)
        self.answer().float().square().mean().backward()

    def sample(self) -> None:
        """One step of sampling."""
        with torch.no_grad():
            self.answer()


def networks() -> dict[str, nn.Module]:
    """Each style inflated from one image U-Net of mini-sd's shape, and diffusers' classes with the same weights."""
    torch.manual_seed(0)
    image, nets = build_unet(size=SIZE, text_width=TEXT), {}
    for style, to in STYLES.items():
        ours = inflate(image, style)
        for (
            parameter
        ) in ours.temporal.parameters():  # as if trained: no layer may get by with zeros
            nn.init.normal_(parameter, std=0.02)
        theirs = to(ours)
        nets |= {style: ours, type(theirs).__name__: theirs}
    nets["video-ldm"] = inflate(image, "video-ldm")
    return {name: net.to(runtime.device()).train() for name, net in nets.items()}


def bench_inflate() -> list[Row]:
    """Training all weights, training layers over time alone, and sampling; bfloat16 where the machine is fast at it."""
    nets, rows = networks(), []
    given = {
        "sample": torch.randn(
            BATCH, 16, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0)
        ),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(
            BATCH, WORDS, TEXT, generator=torch.Generator().manual_seed(1)
        ),
    }
    given = {name: value.to(runtime.device()) for name, value in given.items()}
    for half in (False, True)[: 1 + (runtime.dtype(runtime.device()) == torch.bfloat16)]:
        case = f"{BATCH}x16x{FRAMES}x{SIZE}x{SIZE} {'bfloat16' if half else 'float32'}"
        subjects = {name: Subject(net, given, half) for name, net in nets.items()}
        for net in nets.values():
            net.eval()  # sampling is without dropout, which some of these have
        rows += timed(
            subjects,
            {name: subject.sample for name, subject in subjects.items()},
            f"{case} sampling step",
        )
        for net in nets.values():
            net.train()
        rows += timed(
            subjects,
            {name: subject.train for name, subject in subjects.items()},
            f"{case} training step",
        )
        for net in nets.values():
            freeze_image(net)
        frozen = f"{case} training step, image model frozen"
        rows += timed(subjects, {name: subject.train for name, subject in subjects.items()}, frozen)
        for net in nets.values():
            net.requires_grad_(True)
        rows += clip_rows(half)
    return rows


def clip_rows(half: bool, steps: int = STEPS) -> list[Row]:
    """Seconds from a sentence to its clip. half: with weights in bfloat16, as diffusers' pipelines are used; autocast
    would cast weights that want no gradient anew at every step. Then once more with the U-Net compiled.
    """
    pipe = zoo.load("mini-video", device=runtime.device())
    if half:
        pipe.to(torch.bfloat16)

    def draws(unet: nn.Module) -> Callable[[], Tensor]:
        def draw() -> Tensor:
            pipe.unet = unet
            return pipe.draw(
                ["a tiger moving left on grass"],
                steps=steps,
                generator=torch.Generator().manual_seed(0),
            )

        return draw

    functions, notes = {PIPELINE: draws(pipe.unet)}, {PIPELINE: ""}
    if half:
        functions[COMPILED] = draws(compiled(pipe.unet))
        first = compile_seconds(functions[COMPILED], COMPILED)
        if first is None:
            del functions[COMPILED]
        else:
            notes[COMPILED] = f"the first after {first:.0f} s"
    times = alternate(functions, repeats=7, budget_s=SECONDS_A_CASE)
    kind = "bfloat16" if half else "float32"
    case = f"mini-video, {steps} steps with guidance, one clip of {FRAMES} frames, 64x64, {kind}"
    return [
        against_target(case, name, times[name], TARGETS[kind], notes[name]) for name in functions
    ]


def against_target(case: str, subject: str, times: Sequence[float], target: int, note: str) -> Row:
    """Seconds beside what they ought to be at most."""
    low, seconds, high = quartiles(times)
    ratios = (target / seconds, target / high, target / low)
    return Row("inflate", case, subject, seconds, "s", f"target {target} s", *ratios, note)


def freeze_image(net: nn.Module) -> None:
    """Leave gradients to layers over time alone."""
    words = ("temporal.", "motion_modules.", "temp_", "transformer_in.")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(any(word in name for word in words))


def timed(
    subjects: dict[str, Subject], functions: dict[str, Callable[[], None]], case: str
) -> list[Row]:
    """A row for each style beside its own peer, and for video-ldm beside both."""
    times = alternate(functions, repeats=9, budget_s=SECONDS_A_CASE)
    pairs = {"animatediff": ["UNetMotionModel"], "modelscope": ["UNet3DConditionModel"]}
    pairs["video-ldm"] = ["UNetMotionModel", "UNet3DConditionModel"]
    return [
        compare(
            times,
            ours,
            peer,
            benchmark="inflate",
            case=case,
            note=f"{count_parameters(subjects[ours].net):,} parameters",
        )
        for ours, peers in pairs.items()
        for peer in peers
    ]
