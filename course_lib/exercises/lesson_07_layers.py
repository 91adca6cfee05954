"""Lesson 07's checks of layers that begin as nothing and have to learn: 7.4, silence, and 7.5, alpha.

Solutions and hints are in `lesson_07.py`. What a layer says is not enough: it is asked for gradients, and takes steps.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import call
from course_lib.exercises.lesson_03_time import untouched
from course_lib.lab.checks.mistakes import CLOSE, normal

# 7.4 ------------------------------------------------------------------------------------------------------------------


def _layers() -> list[tuple[str, nn.Module, Tensor]]:
    """What may end a layer over time: its name, the layer, an input."""
    torch.manual_seed(0)  # the reader's numbers are kept by whoever calls
    return [
        ("nn.Linear(6, 4)", nn.Linear(6, 4), normal(80, 3, 6).float()),
        (
            "nn.Conv3d(4, 4, (3, 1, 1))",
            nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)),
            normal(81, 2, 4, 5, 2, 2).float(),
        ),
        ("nn.Linear(5, 5, bias=False)", nn.Linear(5, 5, bias=False), normal(82, 3, 5).float()),
    ]


def _judge_silence(
    got: object, layer: nn.Module, before: dict[str, Tensor], x: Tensor, told: str
) -> None:
    if got is None:
        raise Wrong(f"{told}: got None. Is a `return layer` missing?")
    if got is not layer:
        raise Wrong(
            f"{told}: you returned {brief(got)}, not the layer that you were given. Change its numbers in place."
        )
    if {name for name, _ in layer.named_parameters()} != set(before):
        raise Wrong(f"{told}: its parameters were {', '.join(sorted(before))}, and now there are others. Leave them as "
                    "they are (what is gone, cannot learn), and fill them with zeros.")  # fmt: skip
    with torch.no_grad():
        said = layer(x)
    weight, bias = layer.weight, layer.bias
    if not said.isfinite().all():
        raise Wrong(f"{told}: it says nan or infinity. Fill weight and bias with zeros.")
    if said.abs().max() > 0:
        if all(torch.equal(value, before[name]) for name, value in layer.named_parameters()):
            raise Wrong(f"{told}: no number in the layer has changed. `p = …` only gives a name to another tensor; "
                        "nn.init.zeros_(p) fills the one that is there.")  # fmt: skip
        if not weight.any() and bias is not None:
            raise Wrong(f"{told}: the weight is zero, the bias is not: it still says {said.abs().max():.2g} to every "
                        "input. Public code of two well-known video models has this bug.")  # fmt: skip
        if bias is not None and not bias.any():
            raise Wrong(
                f"{told}: the bias is zero, the weight is not: it says up to {said.abs().max():.2g}."
            )
        much = "a little" if said.abs().max() < 0.01 else "something"
        raise Wrong(
            f"{told}: it still says {much}, up to {said.abs().max():.2g}. Nothing is 0, not nearly 0."
        )
    frozen = [name for name, parameter in layer.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise Wrong(f"{told}: silent, but {' and '.join(frozen)} may not learn (requires_grad is False): it would stay "
                    "silent for ever.")  # fmt: skip
    layer.zero_grad()
    (layer(x) - 1).square().sum().backward()
    dead = [
        name
        for name, parameter in layer.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    if dead:
        raise Wrong(f"{told}: silent, but no gradient reaches {' and '.join(dead)}: with a factor of 0 in front, the "
                    "gradient has it too. The numbers themselves are to be 0.")  # fmt: skip


def verify_silence(attempt: Callable) -> Iterator[str]:
    """A linear layer, a convolution over time, and one that has no bias."""
    with torch.random.fork_rng(devices=[]):
        for number, (told, layer, x) in enumerate(_layers()):
            before = {name: value.detach().clone() for name, value in layer.named_parameters()}
            try:
                got = call(attempt, layer)
            except (AttributeError, TypeError) as error:
                if layer.bias is None and "NoneType" in str(error):
                    raise Wrong(f"{told}: this layer has no bias, layer.bias is None. layer.parameters() has what "
                                "there is.") from error  # fmt: skip
                raise
            _judge_silence(got, layer, before, x, told)
            if number == 0:
                yield f"{told}: it says 0 to every input, and weight and bias get a gradient"
        yield "a convolution over time too, and a layer that has no bias"


# 7.5 ------------------------------------------------------------------------------------------------------------------


class _Layer(nn.Module):
    """A layer over time as lesson 07 has them: what it adds is zero at first."""

    def __init__(self, silent: bool = True):
        super().__init__()
        self.mix = nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0))
        self.out = nn.Conv3d(3, 3, 1)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = 0.5 * normal(83 + number, *parameter.shape).float()
        if silent:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, video: Tensor) -> Tensor:
        return video + self.out(self.mix(video).tanh())


def _made(attempt: Callable, layer: _Layer) -> tuple[nn.Module, list[nn.Parameter]]:
    """The student's module around a layer, and the parameters that are its own."""
    blend = call(attempt, layer)
    if not isinstance(blend, nn.Module):
        raise Wrong(
            f"Blend(layer) is to be an nn.Module; it is {brief(blend)}. class Blend(nn.Module): …"
        )
    theirs = {id(parameter) for parameter in layer.parameters()}
    if not theirs <= {id(parameter) for parameter in blend.parameters()}:
        raise Wrong("The layer's weights are not among blend.parameters(), so that no optimizer would find them: "
                    "self.layer = layer, and the layer itself, no copy.")  # fmt: skip
    own = [parameter for parameter in blend.parameters() if id(parameter) not in theirs]
    if not own:
        raise Wrong("blend.parameters() has nothing of its own: a plain tensor is neither trained nor saved. "
                    "nn.Parameter makes one that is.")  # fmt: skip
    if sum(parameter.numel() for parameter in own) != 1:
        shapes = ", ".join(str(tuple(parameter.shape)) for parameter in own)
        raise Wrong(
            f"One number decides how much of the layer is taken; yours has parameters of shape {shapes}."
        )
    return blend, own


def _said(blend: nn.Module, video: Tensor) -> Tensor:
    """What it makes of a video; neither that nor its own parameters may be changed by it."""
    given, before = video.clone(), copy.deepcopy(blend.state_dict())
    got = call(blend, given)
    if not isinstance(got, Tensor) or got.shape != video.shape:
        raise Wrong(
            f"blend(video) is to have the video's shape, {tuple(video.shape)}; got {brief(got)}."
        )
    untouched(given, video, "video")
    if any(not torch.equal(value, before[name]) for name, value in blend.state_dict().items()):
        raise Wrong("A call of forward has changed the parameters (a function that ends in _?). Parameters are changed "
                    "by the optimizer, or a checkpoint and its replay disagree.")  # fmt: skip
    return got


def _backward(blend: nn.Module, video: Tensor) -> None:
    blend.zero_grad()
    error = (_said(blend, video) - 2 * video.flip(2)).square().sum()
    if not error.requires_grad:
        raise Wrong("blend(video) has no graph: neither layer nor alpha would ever get a gradient. Is there a detach, "
                    "an .item() or torch.no_grad() on the way?")  # fmt: skip
    error.backward()


def _judge_learning(attempt: Callable, video: Tensor) -> None:
    """Two steps of descent: the layer moves in the first, alpha in the second."""
    layer = _Layer()
    blend, (own,) = _made(attempt, layer)
    off = (_said(blend, video) - video).abs().max()
    if off > CLOSE:
        raise Wrong(f"The layer adds nothing yet, and still blend(video) differs from video by {off:.2g}. alpha and "
                    "1 - alpha have to add up to 1.")  # fmt: skip
    _backward(blend, video)
    if layer.out.weight.grad is None:
        raise Wrong(
            "No gradient reaches the layer. Is it called in forward, and what it says not detached?"
        )
    if not layer.mix.weight.any():
        raise Wrong("You have set all of the layer to zero, and what multiplies zeros by zeros never learns. Only its "
                    "end may be zero, see 7.4, and it is already: leave the layer as it is.")  # fmt: skip
    if not layer.out.weight.grad.abs().max() > 0:
        raise Wrong("The layer's gradient is exactly 0: the factor 1 - alpha is 0 at first, and the gradient has it "
                    "too. The layer adds nothing anyway, so alpha need not be 1.")  # fmt: skip
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.01 * parameter.grad
    _backward(blend, video)
    if own.grad is None or not own.grad.abs().max() > 0:
        raise Wrong("The layer has learnt something, and alpha still gets no gradient. Does it come out of the "
                    "parameter without .data, .item() or torch.no_grad()?")  # fmt: skip


def _judge_range(attempt: Callable, video: Tensor) -> None:
    """From one end to the other the result stays between the video and what the layer makes of it."""
    layer = _Layer(silent=False)
    blend, (own,) = _made(attempt, layer)
    with torch.no_grad():
        moved, shares = layer(video) - video, []
        for number in (-60.0, -3.0, 0.0, 3.0, 60.0):
            own.fill_(number)
            added = _said(blend, video) - video
            share = (added * moved).sum() / moved.square().sum()  # of the layer
            if (added - share * moved).abs().max() > CLOSE:
                raise Wrong("blend(video) is to lie between video and layer(video): alpha · video + (1 - alpha) · "
                            "layer(video), one alpha for all.")  # fmt: skip
            shares.append(share.item())
    if max(shares) > 1 + CLOSE or min(shares) < -CLOSE:
        raise Wrong(f"With the parameter at 60 or -60, the layer's share is {max(shares, key=abs):.4g}: alpha has left "
                    "the range from 0 to 1. A sigmoid keeps it there.")  # fmt: skip
    if shares[0] < shares[-1]:
        raise Wrong("The larger your parameter, the more of the layer. alpha is the share of the video as it was: "
                    "alpha · video + (1 - alpha) · layer(video).")  # fmt: skip
    if shares[0] < 1 - CLOSE or shares[-1] > CLOSE:
        raise Wrong(f"With the parameter at -60 and 60, the layer's share is {shares[0]:.4g} and {shares[-1]:.4g}. "
                    "alpha is to reach from 0, all layer, to 1, all video.")  # fmt: skip
    own.data.fill_(3.0)
    _backward(blend, video)
    if not own.grad.abs().max() > 0:
        raise Wrong("With the parameter at 3, alpha gets no gradient any more: clamp cuts it off, and what has once "
                    "left the range never comes back. A sigmoid has a slope there.")  # fmt: skip


def verify_blend(attempt: Callable) -> Iterator[str]:
    """What it is at first, two steps of descent, then from one end of alpha to the other."""
    video = normal(90, 2, 3, 4, 2, 2).float()
    with torch.random.fork_rng(devices=[]):
        _judge_learning(attempt, video)
        yield "at first the video as it was; the layer learns from the first step on, alpha from the second"
        _judge_range(attempt, video)
    yield "whatever the parameter: between all video and all layer, with a gradient where a clamp has none"
