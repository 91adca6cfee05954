"""Optical flow as colour: hue for direction, saturation for speed (Baker et al., IJCV 2011)."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.utils import flow_to_image

from course_lib.validation import check_number


def flow_to_rgb(
    flow: Float[Tensor, "n 2 h w"], max_flow: float | int | None = None
) -> UInt8[Tensor, "n 3 h w"]:
    """Colours 0 to 255 of a flow field; no motion is white.

    Args:
        flow: (rightward, downward) pixels.
        max_flow: speed in pixels with full saturation, and of everything faster. None means the
            highest in `flow`.

    Raises:
        ValueError: `max_flow` is negative or not finite.
    """
    if max_flow is not None:
        check_number("max_flow", max_flow, at_least=0)
    flow = flow.float()
    if max_flow is None:
        return flow_to_image(flow)
    speed = flow.norm(dim=1, keepdim=True)
    flow = torch.where(speed > max_flow, flow * (max_flow / speed), flow)
    # torchvision scales by the highest speed: one extra field provides it
    reference = torch.zeros_like(flow[:1])
    reference[:, 0] = max_flow
    return flow_to_image(torch.cat([flow, reference]))[:-1]
