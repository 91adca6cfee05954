"""The checks of exercises 7.2, a layer behind a module, and 7.3, a prediction.

Solutions and hints are in `lesson_07.py`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.lab.checks import (
    Mistake,
    call,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    randn,
    require,
)

# 7.2 ----------------------------------------------------------------------------------------------


class _Layer(nn.Module):
    """A temporal layer that adds something, and counts how often it was called."""

    def __init__(self):
        super().__init__()
        self.num_calls = 0

    def forward(self, features: Tensor) -> Tensor:
        self.num_calls += 1
        return features + features.roll(1, dims=0).sin() + 0.5


def _nets() -> list[tuple[str, nn.Module, str]]:
    """Networks and a part's name: in the middle, at the end, one that returns its input."""
    torch.manual_seed(0)  # the caller keeps the random state

    def conv(a, b):
        return nn.Conv2d(a, b, 3, padding=1, dtype=torch.float64).requires_grad_(False)

    inner = nn.Sequential(conv(4, 4), nn.SiLU())
    return [
        ("a part inside of a block", nn.Sequential(conv(3, 4), inner, conv(4, 2)), "1.0"),
        ("the last part", nn.Sequential(conv(3, 4), nn.SiLU(), conv(4, 3)), "2"),
        ("a part that returns its input as it is", nn.Sequential(nn.Dropout(), conv(3, 3)), "0"),
    ]


def _run(unet: nn.Module, part: nn.Module, images: Tensor, hook: Callable, pre: bool = False):
    """The network's output under a hook."""
    register = part.register_forward_pre_hook if pre else part.register_forward_hook
    handle = register(hook)
    try:
        return unet(images)
    finally:
        handle.remove()


def _insertion_mistakes(unet: nn.Module, part: nn.Module, images: Tensor) -> list[Mistake]:
    layer, plain = _Layer(), unet(images)
    lost = "what the part has computed is lost. The hook gets (module, args, output): use output."
    added = "layer(output) holds output already. Added to it once more, the part counts twice."
    return [
        (_run(unet, part, images, lambda m, args: (layer(args[0]),), pre=True),
         "The layer stands in front of the part: a pre-hook changes what goes in. "
         "register_forward_hook comes after the part, and its hook gets the output."),
        (_run(unet, part, images, lambda m, args, out: layer(args[0])),
         f"You gave the layer the part's input, so {lost}"),
        (_run(unet, part, images, lambda m, args, out: out + layer(out)), added),
        (_run(unet, part, images, lambda m, args, out: layer(layer(out))),
         "The layer was applied twice. Is the hook registered twice, or still there from an "
         "earlier call?"),
        (layer(plain), "The layer stands behind the whole network, not behind the part: register "
                       "the hook on `part`."),
    ]  # fmt: skip


def _check_plain(result: object, plain: Tensor, layer: _Layer, case: str) -> None:
    """An output without the layer has two causes, which the layer's calls tell apart."""
    if not is_close(result, plain):
        return
    require(
        layer.num_calls,
        f"{case}: the output is that of unet alone, and the layer was never called. Register the "
        "hook before unet(images), and remove it only after.",
    )
    require(
        False,
        f"{case}: the layer was called, but the output is that of unet alone. A hook that returns "
        "None changes nothing: is `return layer(output)` missing inside of the hook?",
    )


def _check_left_alone(unet: nn.Module, before: dict, images: Tensor, plain: Tensor, case: str):
    """The network is to be the same as before the call."""
    hooks = [
        module for module in unet.modules() if module._forward_hooks or module._forward_pre_hooks
    ]
    require(
        not hooks,
        f"{case}: the hook is still registered, and every later unet(images) goes through the "
        "layer too (a second call of your function through two). register_forward_hook returns a "
        "handle; handle.remove() ends it.",
    )
    require(
        dict(unet.named_modules()) == before and is_close(unet(images), plain),
        f"{case}: the output is right, but unet is another network afterwards. A hook needs no "
        "change of its modules.",
    )


def verify_call_with_layer(attempt: Callable) -> Iterator[str]:
    """Checks the output, that the hook is gone afterwards, and that the input is unchanged."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for i, (case, unet, name) in enumerate(_nets()):
            unet.eval()
            images, part, layer = randn(60 + i, 4, 3, 5, 5), unet.get_submodule(name), _Layer()
            plain, before = unet(images), dict(unet.named_modules())
            expected = _run(unet, part, images, lambda m, args, out: _Layer()(out))
            mistakes = _insertion_mistakes(unet, part, images)
            result = call_on_copies(attempt, unet=unet, part=part, layer=layer, images=images)
            _check_plain(result, plain, layer, case)
            diagnose(result, expected, mistakes, case)
            _check_left_alone(unet, before, images, plain, case)
            yield f"{case}: the layer follows it, and afterwards unet is as it was"


# 7.3 ----------------------------------------------------------------------------------------------

OUTLIER_REASONS = {
    "a": "That is what happens if the frames lie in the batch, as in 7.1: each row has its own "
    "mean and variance. Here frames are an axis of one clip, like height and width, and the norm "
    "takes all of these together.",
    "b": "Each frame is one of six for the mean. But the variance is a mean of *squares*: the "
    "loud frame brings 400 where the others bring 1 each.",
    "d": "It asks for (n, c, ...) with any number of axes behind the channels, so it takes a clip "
    "without a word. If only it complained!",
}


def verify_outlier_prediction(attempt: Callable) -> Iterator[str]:
    """Checks a letter; each wrong one gets a reason."""
    choice = call(attempt)
    if isinstance(choice, np.ndarray) and choice.ndim == 0:
        choice = choice.item()
    require(
        type(choice) is str and choice in ("a", "b", "c", "d"),
        f'Return one letter, "a", "b", "c" or "d"; got {describe_value(choice)}.',
    )
    require(choice == "c", f"Not {choice}. {OUTLIER_REASONS.get(choice)}")
    yield "(5 · 1 + 400) / 6 is 67.5, its root 8.2: the five quiet frames are divided by that"
    yield "now run the next cell and see whether it is so"
