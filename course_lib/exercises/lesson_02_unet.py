"""The checks of exercises 2.6, the timestep embedding, and 2.7, a U-Net's skip connections.

The reference of 2.6 is diffusers' `get_timestep_embedding`. Solutions are in `lesson_02.py`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from torch.nn import functional as F

from course_lib.lab.checks import (
    IncorrectAnswer,
    Mistake,
    as_tensor,
    call,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    randn,
    require,
)

# 2.6 ----------------------------------------------------------------------------------------------


def embedding_mistakes(t: Tensor, dim: int) -> list[Mistake]:
    """What likely mistakes in 2.6 return for timesteps (b,) and an even width."""
    half = dim // 2
    k, t = torch.arange(half).float(), t.float()[:, None]  # float32, as a student has it

    def embed(frequencies: Tensor) -> Tensor:
        angles = t * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    angles = t * 10000 ** (-k / (half - 1))
    sin, cos = angles.sin(), angles.cos()
    axis = "join them along dim=1, so that every timestep keeps one row, (b, dim)."
    once = (
        "All your frequencies but the first are too low: k / (half - 1) runs from 0 to 1, and "
        "frequency k is 10000 to the power of minus that."
    )
    return [
        (torch.cat([cos, sin], dim=1), "Sines and cosines are swapped: here the sines come first "
                                       "(diffusers' flip_sin_to_cos puts the cosines first)."),
        (torch.stack([sin, cos], dim=2).flatten(1), "You interleave sines and cosines, as in the "
                                                    "first Transformer. Here all sines come first, "
                                                    "then all cosines."),
        (torch.cat([sin, cos], dim=0), f"You joined sines and cosines along the batch: {axis}"),
        (torch.stack([sin, cos], dim=1), "You stacked sines and cosines on an axis of their own: "
                                         f"{axis}"),
        (torch.stack([sin, cos], dim=0), "You stacked sines and cosines on an axis of their own: "
                                         f"{axis}"),
        (sin, "The cosines are missing: half of the numbers are sines, half cosines."),
        (cos, "The sines are missing: half of the numbers are sines, half cosines."),
        (embed(10000 ** (-k / half)), "Your frequencies stop one short of 1/10,000: you divide by "
                                      "half, which is the form of the lesson. Here k / (half - 1) "
                                      "reaches 1."),
        (embed(10000 ** (-(k + 1) / half)), "Your frequencies begin one too late: the first k is "
                                            "0, whose frequency is 1."),
        (embed(10000 ** (-(k + 1) / (half - 1))), "Your frequencies begin one too late: the first "
                                                  "k is 0, whose frequency is 1."),
        (embed(10000 ** (-k / (dim - 1))), "You divide k by dim - 1. There are only half as many "
                                           "frequencies as numbers: half - 1."),
        (embed(10000 ** (-k / dim)), "You divide k by dim. There are only half as many frequencies "
                                     "as numbers: half - 1."),
        (embed(10000 ** (-(k // (half - 1)))), "All frequencies but the last are 1: // rounds "
                                               "k / (half - 1) down to 0. Divide by /."),
        (embed(10000 ** (k / (half - 1))), "A minus is missing in the exponent: your frequencies "
                                           "grow from 1 to 10,000 instead of falling."),
        (embed(-math.log(10000) * k / (half - 1)), "The exponential is missing: -log(10000) · k / "
                                                   "(half - 1) is the logarithm of the frequency."),
        (embed(k / (half - 1) / 10000), f"The exponent is missing: you divide by 10000. {once}"),
        (embed(1 - k / (half - 1) * (1 - 1e-4)), "Your frequencies fall in equal steps, not by an "
                                                 "equal factor: k / (half - 1) is an exponent."),
        (embed(torch.exp(-k / (half - 1))), "log(10000) is missing in the exponent: your "
                                            "frequencies end at 1/e instead of 1/10,000."),
        (embed(2 * math.pi * 10000 ** (-k / (half - 1))), "There is no 2π in this embedding: the "
                                                          "angle is t times the frequency."),
        (embed(10000 ** (-k / (half - 1)) / 1000), "You divide t by 1000. The embedding takes the "
                                                   "timestep as it is, 0 to 999."),
    ]  # fmt: skip


def verify_timestep_embedding(attempt: Callable) -> Iterator[str]:
    """Checks one timestep, a batch, and a usual width."""
    for case, timesteps, dim in (
        ("t = 3 in dim = 8 numbers", [3], 8),
        ("t = 0, 1, 500, 999 in dim = 8 numbers", [0, 1, 500, 999], 8),
        ("t = 7, 40, 650 in dim = 64 numbers", [7, 40, 650], 64),
    ):
        t = torch.tensor(timesteps)
        expected = get_timestep_embedding(t, dim)
        result = call_on_copies(attempt, t=t, dim=dim)
        diagnose(result, expected, embedding_mistakes(t, dim), case)
        yield f"{case}: as diffusers' get_timestep_embedding"


# 2.7 ----------------------------------------------------------------------------------------------


class _Layer:
    """A layer with fixed random weights that says what is wrong with its input.

    Attributes:
        name: for messages.
        resize: factor of height and width, after the channels are mixed: 0.5, 1 or 2.
        num_skip: channels of its skip; 0 for a layer that has none.
        sources: the layers that its input and its skip come from, if it has a skip.
        output: what the last call returned.
        calls: number of calls.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        channels: tuple[int, int],
        num_skip: int = 0,
        resize: float | int = 1,
    ):
        self.name, self.num_skip, self.resize = name, num_skip, resize
        self.in_channels = channels[0]
        self.weight = randn(seed, channels[1], channels[0] + num_skip)
        self.sources: tuple[_Layer, _Layer] | None = None
        self.output: Tensor | None = None
        self.calls = 0

    def __repr__(self) -> str:
        return f"<the layer {self.name}>"

    def __call__(self, x: Tensor) -> Tensor:
        """Mixes channels, (b, c, h, w) to (b, c', h', w'), and then resizes.

        Raises:
            IncorrectAnswer: unless the input has this layer's channels.
        """
        self.calls += 1
        needed = self.weight.shape[1]
        is_image = isinstance(x, Tensor) and x.ndim == 4
        require(is_image, f"{self.name} takes a tensor (b, c, h, w); it got {describe_value(x)}.")
        if x.shape[1] != needed:
            self._explain_channels(x, needed)
        weight = self.weight.to(x) / needed**0.5
        x = torch.einsum("oc,bchw->bohw", weight, x).tanh()
        if self.resize == 2:
            x = F.interpolate(x, scale_factor=2)
        elif self.resize == 0.5:
            x = F.avg_pool2d(x, 2)
        self.output = x
        return x

    def _explain_channels(self, x: Tensor, needed: int) -> None:
        got = f"{self.name} takes {needed} channels; it got {tuple(x.shape)}."
        require(self.sources, f"{got} On the way down, and in the middle, a layer takes what the "
                "layer before it returned, and no skip.")  # fmt: skip
        needs = (
            f"{got} On the way up a layer takes the {self.in_channels} channels that come from "
            f"below and the {self.num_skip} of its skip, joined by torch.cat along dim=1."
        )
        below, skip = (source.output for source in self.sources)
        require(below is None or not is_close(x, below), f"{needs} The skip is missing.")
        added = below is not None and skip is not None and below.shape == skip.shape
        require(not added or not is_close(x, below + skip), f"{needs} You added the two. U-Nets "
                "that add exist, but that is another design: what comes from below and what was "
                "skipped can no longer be told apart, and the layer needs fewer "
                "weights.")  # fmt: skip
        raise IncorrectAnswer(needs)


def _connect(down: list[_Layer], middle: _Layer, up: list[_Layer]) -> tuple:
    for layer, below, skip in zip(up, [middle, *up], reversed(down), strict=False):
        layer.sources = below, skip
    return down, middle, up


def flat_unet(depth: int) -> tuple[list[_Layer], _Layer, list[_Layer]]:
    """Layers of one resolution and one width, so that every wrong order goes through."""
    down = [_Layer(f"down[{i}]", 70 + i, (4, 4)) for i in range(depth)]
    up = [_Layer(f"up[{i}]", 80 + i, (4, 4), 4) for i in range(depth)]
    return _connect(down, _Layer("middle", 90, (4, 4)), up)


def real_unet() -> tuple[list[_Layer], _Layer, list[_Layer]]:
    """Layers that halve and double, with more channels further down."""
    down = [_Layer("down[0]", 71, (3, 4)), _Layer("down[1]", 72, (4, 6), resize=0.5),
            _Layer("down[2]", 73, (6, 8), resize=0.5)]  # fmt: skip
    up = [_Layer("up[0]", 81, (8, 6), 8, resize=2), _Layer("up[1]", 82, (6, 4), 6, resize=2),
          _Layer("up[2]", 83, (4, 3), 4)]  # fmt: skip
    return _connect(down, _Layer("middle", 91, (8, 8)), up)


def _join(h: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([h, skip], dim=1)


def _run(
    x: Tensor,
    parts: tuple,
    choose: Callable = lambda states, i, h: states[-1 - i],
    join: Callable = _join,
    see_middle: bool = True,
) -> Tensor:
    """A U-Net's forward pass; choose: the i-th skip, from x and all outputs on the way down."""
    down, middle, up = parts
    states = [x]
    for layer in down:
        states.append(layer(states[-1]))
    h = middle(states[-1]) if see_middle else states[-1]
    for i, layer in enumerate(up):
        h = layer(join(h, choose(states, i, h)))
    return h


def skip_mistakes(x: Tensor, parts: tuple) -> list[Mistake]:
    """What likely mistakes in 2.7 return, for layers of one resolution and one width."""

    run = partial(_run, x, parts)

    def swapped(h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, h], dim=1)

    fifo = "first in, first out: the first layer on the way up gets the first skip"
    return [
        (run(lambda s, i, h: s[1 + i]), f"The skips come {fifo}. It must get the last one, which "
                                        "has its resolution: skips.pop(), not skips.pop(0)."),
        (run(lambda s, i, h: s[1 + i], swapped), f"The skips come {fifo}, and they stand before "
                                                 "what comes from below. It is last in, first "
                                                 "out, and the skip behind."),
        (run(join=swapped), "The skip stands before what comes from below. The weights know which "
                            "channel is which: torch.cat([x, skip], dim=1)."),
        (run(lambda s, i, h: s[-2 - i]), "Each skip is the input of a layer on the way down. Keep "
                                         "its output."),
        (run(lambda s, i, h: s[i]), "Each skip is the input of a layer on the way down, first in, "
                                    "first out. Keep outputs, and take the last one first."),
        (run(lambda s, i, h: s[-1]), "Every layer on the way up gets the same skip, the last one. "
                                     "Take it off the list: skips.pop()."),
        (run(lambda s, i, h: s[1]), "Every layer on the way up gets the same skip, the first one. "
                                    "Each has its own."),
        (run(lambda s, i, h: h), "Each layer on the way up gets what comes from below twice. That "
                                 "fits, but the skip is missing: the output of the layer on the "
                                 "way down."),
        (run(lambda s, i, h: torch.zeros_like(h)), "You join zeros in place of the skips: they "
                                                   "fit, and carry nothing."),
        (run(see_middle=False), "The middle is missing: middle(x) comes between down and up."),
    ]  # fmt: skip


def verify_unet_forward(attempt: Callable) -> Iterator[str]:
    """Checks layers of one width, where any order fits, then a U-Net that halves and doubles."""
    for case, parts, x in (
        ("three layers down and three up, of one width and resolution", flat_unet(3),
         randn(75, 2, 4, 3, 3)),
        ("two layers down and two up", flat_unet(2), randn(76, 1, 4, 2, 5)),
        ("three layers of three resolutions", real_unet(), randn(77, 2, 3, 8, 8)),
    ):  # fmt: skip
        down, middle, up = parts
        expected = _run(x, parts)
        mistakes = skip_mistakes(x, parts) if len({layer.resize for layer in down}) == 1 else []
        for layer in (*down, middle, *up):
            layer.calls = 0
            layer.output = None
        copies = [*down], [*up]
        clone = x.clone()
        result = as_tensor(call(attempt, clone, copies[0], middle, copies[1]))
        require(torch.equal(clone, x), f"{case}: your function has changed x itself, which its "
                "caller still needs.")  # fmt: skip
        require(copies == (down, up), f"{case}: your function has changed the lists of layers. "
                "Pop from the list of skips only.")  # fmt: skip
        if not is_close(result, expected):
            _require_calls([*down, middle, *up], case)
        diagnose(result, expected, mistakes, case)
        yield f"right for {case}"


def _require_calls(layers: list[_Layer], case: str) -> None:
    for layer in layers:
        require(layer.calls != 0, f"{case}: {layer.name} was never called.")
        times = f"{case}: {layer.name} was called {layer.calls} times, expected once."
        require(layer.calls == 1, times)
