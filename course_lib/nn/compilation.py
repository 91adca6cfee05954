"""A network through torch.compile, for sampling: weights become constants, packed once, and small steps are fused."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def compiled(net: N) -> N:
    """The same network, which answers in half to two thirds of the time once it has been compiled for a minute or two.

    net: it stays as it is, and its weights are shared. Every shape of call is compiled for itself when it first comes,
    under torch.no_grad and with the weights of that moment as constants: load adapters and choose device and dtype
    before. Needs a C++ compiler, on a GPU Triton; without, the first call raises RuntimeError.
    """
    fast = copy.copy(net)
    forward = torch.compile(fast.forward, dynamic=False)

    def frozen(*args: Any, **options: Any) -> Any:
        # Weights become constants. As an option of torch.compile it would come too late
        with torch._inductor.config.patch(freezing=True):
            return forward(*args, **options)

    fast.forward = frozen
    return fast
