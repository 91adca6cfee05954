"""The checks of exercises 7.4, zero initialisation, and 7.5, a learned alpha.

Solutions and hints are in `lesson_07.py`. The output is not enough: the checks look at gradients
and take steps of descent.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.lab.checks import (
    CLOSE,
    IncorrectAnswer,
    call,
    call_on_copies,
    describe_value,
    randn,
    require,
)

# 7.4 ----------------------------------------------------------------------------------------------


def _layers() -> list[tuple[str, nn.Module, Tensor]]:
    """Layers that may end a temporal layer: name, layer, input."""
    torch.manual_seed(0)  # the caller keeps the random state
    return [
        ("nn.Linear(6, 4)", nn.Linear(6, 4), randn(80, 3, 6).float()),
        (
            "nn.Conv3d(4, 4, (3, 1, 1))",
            nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)),
            randn(81, 2, 4, 5, 2, 2).float(),
        ),
        ("nn.Linear(5, 5, bias=False)", nn.Linear(5, 5, bias=False), randn(82, 3, 5).float()),
    ]


def _check_output(layer: nn.Module, before: dict[str, Tensor], x: Tensor, case: str) -> None:
    with torch.no_grad():
        out = layer(x)
    weight, bias, size = layer.weight, layer.bias, out.abs().max()
    require(
        out.isfinite().all(),
        f"{case}: it returns nan or infinity. Fill weight and bias with zeros.",
    )
    if size == 0:
        return
    require(
        not all(torch.equal(value, before[name]) for name, value in layer.named_parameters()),
        f"{case}: no number in the layer has changed. `p = …` only gives a name to another "
        "tensor; nn.init.zeros_(p) fills the one that is there.",
    )
    require(
        weight.any() or bias is None,
        f"{case}: the weight is zero, the bias is not: it still returns {size:.2g} for every "
        "input. Public code of two well-known video models has this bug.",
    )
    require(
        bias is None or bias.any(),
        f"{case}: the bias is zero, the weight is not: it returns up to {size:.2g}.",
    )
    amount = "is small but not zero" if size < 0.01 else "is not zero"
    require(False, f"{case}: the output {amount}, up to {size:.2g}. It has to be 0, not nearly 0.")


def _check_zero_module(attempt: Callable, layer: nn.Module, x: Tensor, case: str) -> None:
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    try:
        result = call(attempt, layer)
    except (AttributeError, TypeError) as error:
        if layer.bias is not None or "NoneType" not in str(error):
            raise
        raise IncorrectAnswer(
            f"{case}: this layer has no bias, layer.bias is None. layer.parameters() has what "
            "there is."
        ) from error
    require(
        result is layer,
        f"{case}: you returned {describe_value(result)}, not the layer that you were given. "
        "Change its numbers in place.",
    )
    require(
        dict(layer.named_parameters()).keys() == before.keys(),
        f"{case}: its parameters were {', '.join(sorted(before))}, and now there are others. "
        "Leave them as they are (what is gone cannot learn), and fill them with zeros.",
    )
    _check_output(layer, before, x, case)
    frozen = [name for name, parameter in layer.named_parameters() if not parameter.requires_grad]
    require(
        not frozen,
        f"{case}: zero, but {' and '.join(frozen)} cannot learn (requires_grad is False): it "
        "would stay zero for ever.",
    )
    layer.zero_grad()
    (layer(x) - 1).square().sum().backward()
    dead = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    require(
        not dead,
        f"{case}: zero, but no gradient reaches {' and '.join(dead)}: with a factor of 0 in "
        "front, the gradient has it too. The numbers themselves are to be 0.",
    )


def verify_zero_module(attempt: Callable) -> Iterator[str]:
    """Checks a linear layer, a temporal convolution, and a layer without bias."""
    with torch.random.fork_rng(devices=[]):
        for i, (case, layer, x) in enumerate(_layers()):
            _check_zero_module(attempt, layer, x, case)
            if i == 0:
                yield f"{case}: the output is 0 for every input, and weight and bias get a gradient"
        yield "a temporal convolution too, and a layer that has no bias"


# 7.5 ----------------------------------------------------------------------------------------------


class _Layer(nn.Module):
    """A temporal layer as in lesson 07: what it adds is zero at first, unless asked otherwise."""

    def __init__(self, is_zero: bool = True):
        super().__init__()
        self.mix = nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0))
        self.out = nn.Conv3d(3, 3, 1)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = 0.5 * randn(83 + i, *parameter.shape).float()
        for parameter in self.out.parameters() if is_zero else ():
            nn.init.zeros_(parameter)

    def forward(self, video: Tensor) -> Tensor:
        return video + self.out(self.mix(video).tanh())


def _build(attempt: Callable, layer: _Layer) -> tuple[nn.Module, nn.Parameter]:
    """The student's module around a layer, and its own parameter."""
    blend = call(attempt, layer)
    require(
        isinstance(blend, nn.Module),
        f"AlphaBlend(layer) is to be an nn.Module; it is {describe_value(blend)}. class "
        "AlphaBlend(nn.Module): …",
    )
    layer_ids = {id(parameter) for parameter in layer.parameters()}
    own = [parameter for parameter in blend.parameters() if id(parameter) not in layer_ids]
    require(
        layer_ids <= {id(parameter) for parameter in blend.parameters()},
        "The layer's weights are not among blend.parameters(), so that no optimizer would find "
        "them: self.layer = layer, and the layer itself, no copy.",
    )
    require(
        own,
        "blend.parameters() has nothing of its own: a plain tensor is neither trained nor saved. "
        "nn.Parameter makes one that is.",
    )
    shapes = ", ".join(str(tuple(parameter.shape)) for parameter in own)
    require(
        len(own) == 1 and own[0].numel() == 1,
        "One number decides how much of the layer is taken; yours has parameters of shape "
        f"{shapes}.",
    )
    return blend, own[0]


def _forward(blend: nn.Module, video: Tensor) -> Tensor:
    """The module's output; neither the video nor its own parameters may be changed by the call."""
    before = copy.deepcopy(blend.state_dict())
    out = call_on_copies(blend, video=video)
    require(
        isinstance(out, Tensor) and out.shape == video.shape,
        f"blend(video) is to have the video's shape, {tuple(video.shape)}; got "
        f"{describe_value(out)}.",
    )
    require(
        all(torch.equal(value, before[name]) for name, value in blend.state_dict().items()),
        "A call of forward has changed the parameters (a function that ends in _?). Parameters "
        "are changed by the optimizer, or a checkpoint and its replay disagree.",
    )
    return out


def _backward(blend: nn.Module, video: Tensor) -> None:
    blend.zero_grad()
    error = (_forward(blend, video) - 2 * video.flip(2)).square().sum()
    require(
        error.requires_grad,
        "blend(video) has no graph: neither layer nor alpha would ever get a gradient. Is there a "
        "detach, an .item() or torch.no_grad() on the way?",
    )
    error.backward()


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().max() > 0)


def _check_learning(attempt: Callable, video: Tensor) -> None:
    """Takes two steps of descent: the layer moves in the first, alpha in the second."""
    layer = _Layer()
    blend, alpha = _build(attempt, layer)
    off = (_forward(blend, video) - video).abs().max()
    require(
        off <= CLOSE,
        f"The layer adds nothing yet, and still blend(video) differs from video by {off:.2g}. "
        "alpha and 1 - alpha have to add up to 1.",
    )
    _backward(blend, video)
    last = layer.out.weight
    require(
        last.grad is not None,
        "No gradient reaches the layer. Is it called in forward, and its output not detached?",
    )
    require(
        layer.mix.weight.any(),
        "You have set all of the layer to zero, and what multiplies zeros by zeros never learns. "
        "Only its last part may be zero, see 7.4, and it is already: leave the layer as it is.",
    )
    require(
        _has_gradient(last),
        "The layer's gradient is exactly 0: the factor 1 - alpha is 0 at first, and the gradient "
        "has it too. The layer adds nothing anyway, so alpha need not be 1.",
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.01 * parameter.grad
    _backward(blend, video)
    require(
        _has_gradient(alpha),
        "The layer has changed, and alpha still gets no gradient. Does it come out of the "
        "parameter without .data, .item() or torch.no_grad()?",
    )


def _check_range(attempt: Callable, video: Tensor) -> None:
    layer = _Layer(is_zero=False)
    blend, alpha = _build(attempt, layer)
    with torch.no_grad():
        moved, shares = layer(video) - video, []
        for number in (-60.0, -3.0, 0.0, 3.0, 60.0):
            alpha.fill_(number)
            added = _forward(blend, video) - video
            share = (added * moved).sum() / moved.square().sum()  # of the layer
            require(
                (added - share * moved).abs().max() <= CLOSE,
                "blend(video) is to lie between video and layer(video): alpha · video + (1 - "
                "alpha) · layer(video), one alpha for all.",
            )
            shares.append(share.item())
    first, last, extreme = shares[0], shares[-1], max(shares, key=lambda share: abs(share - 0.5))
    require(
        -CLOSE <= extreme <= 1 + CLOSE,
        f"With the parameter at 60 or -60, the layer's share is {extreme:.4g}: alpha has left the "
        "range from 0 to 1. A sigmoid keeps it there.",
    )
    require(
        first >= last,
        "The larger your parameter, the more of the layer. alpha is the share of the video as it "
        "was: alpha · video + (1 - alpha) · layer(video).",
    )
    require(
        first >= 1 - CLOSE and last <= CLOSE,
        f"With the parameter at -60 and 60, the layer's share is {first:.4g} and {last:.4g}. "
        "alpha is to reach from 0, all layer, to 1, all video.",
    )
    alpha.data.fill_(3.0)
    _backward(blend, video)
    require(
        _has_gradient(alpha),
        "With the parameter at 3, alpha gets no gradient any more: clamp cuts it off, and once it "
        "has left the range it never comes back. A sigmoid has a slope there.",
    )


def verify_alpha_blend(attempt: Callable) -> Iterator[str]:
    """Checks the initial output, two steps of descent, then alpha from one end to the other."""
    video = randn(90, 2, 3, 4, 2, 2).float()
    with torch.random.fork_rng(devices=[]):
        _check_learning(attempt, video)
        yield (
            "at first the video as it was; the layer learns from the first step on, alpha from the "
            "second"
        )
        _check_range(attempt, video)
    yield (
        "at any value of the parameter: between all video and all layer, with a gradient where a "
        "clamp has none"
    )
