"""torch.compile for sampling: frozen weights and fused operations."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def compile_for_inference(model: M) -> M:
    """Returns a compiled copy of a model, about 1.5 to 2 times as fast after a minute or two.

    Every new input shape is compiled when it first occurs, under `torch.no_grad`, with the current
    weights as constants: load adapters and choose device and dtype before.

    Args:
        model: stays as it is; the copy shares its weights.

    Raises:
        RuntimeError: at the first call, without a C++ compiler (on a GPU: Triton).
    """
    compiled = copy.copy(model)
    forward = torch.compile(compiled.forward, dynamic=False)

    def frozen_forward(*args: Any, **kwargs: Any) -> Any:
        # Makes constants of the weights; as an option of torch.compile it would have no effect
        with torch._inductor.config.patch(freezing=True):
            return forward(*args, **kwargs)

    compiled.forward = frozen_forward
    return compiled
