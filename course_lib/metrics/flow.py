"""Optical flow: estimates without and with a network, ground truth, and warping.

A flow is (b, 2, f-1, h, w) in pixels, with (x, y) in dim 1, as `world.Clips.flow`. Forward flow: on
the pixels of frame t, where each point is in frame t + 1. Backward flow: on the pixels of frame
t + 1, where each point was in frame t.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from skimage.registration import optical_flow_ilk, optical_flow_tvl1
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.validation import check_float, check_tensor, check_video, require
from course_lib.world import Clips

Estimator = Callable[[Tensor], Tensor]  # video (b, c, f, h, w) to forward flow

METHODS = {"ilk": optical_flow_ilk, "tvl1": optical_flow_tvl1}
LUMA_WEIGHTS = (0.2125, 0.7154, 0.0721)  # of red, green and blue, as in skimage.color.rgb2gray
RAFT_MIN_SIZE = 128  # pixels
RAFT_SIZE_MULTIPLE = 8  # pixels


def estimate_flow(video: Tensor, method: str = "ilk") -> Float[Tensor, "b 2 steps h w"]:
    """Forward flow by scikit-image with its default settings, float32 on the CPU.

    Flat areas have no visible flow; there both methods interpolate from their surroundings.

    Args:
        video: (b, c, f, h, w) in [-1, 1], c = 1 or 3, at least two frames of 16 x 16 pixels.
        method: "ilk" (iterative Lucas-Kanade: Le Besnerais & Champagnat 2005) or "tvl1" (Zach et
            al. 2007; slower, a little better at borders).

    Raises:
        ValueError: for bad input.
    """
    require(method in METHODS, "method", f"one of {', '.join(METHODS)}", repr(method))
    check_video("video", video, min_frames=2, min_size=16)
    require(video.shape[1] in (1, 3), "video", "1 or 3 channels", video.shape[1])
    unit = (video.detach().cpu().float() + 1) / 2
    weights = unit.new_tensor(LUMA_WEIGHTS if video.shape[1] == 3 else (1.0,))
    grey = torch.einsum("bcfhw,c->bfhw", unit, weights).numpy()
    pairs = [(clip[t], clip[t + 1]) for clip in grey for t in range(len(clip) - 1)]
    flows = np.stack([METHODS[method](*pair)[::-1] for pair in pairs])  # (row, column) to (x, y)
    return unfold_frames(torch.from_numpy(flows), video.shape[2] - 1)


def raft_flow(weights: Path | str, *, large: bool = False) -> Estimator:
    """RAFT (Teed & Deng 2020) as an estimator, with torchvision's weights from a local file.

    Videos below 128 pixels, or with sides that 8 does not divide, are enlarged (bilinear) for the
    network; the flow is in pixels of the video.

    Args:
        weights: state dict of torchvision's raft_small, or raft_large; .safetensors, or .pth as
            torchvision publishes it (loaded with weights_only=True).
        large: whether the weights are those of raft_large.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(weights)
    require(path.is_file(), "weights", "a file with torchvision's RAFT weights", f"none at {path}")
    is_safetensors = path.suffix == ".safetensors"
    tensors = load_file(path) if is_safetensors else torch.load(path, "cpu", weights_only=True)
    net = (raft_large if large else raft_small)(weights=None).eval().requires_grad_(False)
    net.load_state_dict(tensors)
    return partial(_raft, net)


@torch.no_grad()
def _raft(net: torch.nn.Module, video: Tensor) -> Float[Tensor, "b 2 steps h w"]:
    check_video("video", video, min_frames=2)
    require(video.shape[1] == 3, "video", "3 channels", video.shape[1])
    net.to(video.device)
    h, w = video.shape[-2:]
    large = [
        max(RAFT_MIN_SIZE, -(-side // RAFT_SIZE_MULTIPLE) * RAFT_SIZE_MULTIPLE) for side in (h, w)
    ]
    frames = fold_frames(video.detach().float())
    frames = F.interpolate(frames, large, mode="bilinear").unflatten(0, (len(video), -1))
    flow = net(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))[-1]  # (b·(f-1), 2, h, w)
    scale = flow.new_tensor([w / large[1], h / large[0]]).view(1, 2, 1, 1)
    flow = F.interpolate(flow, (h, w), mode="bilinear") * scale
    return unfold_frames(flow, video.shape[2] - 1)


def bidirectional_flow(
    video: Tensor, estimator: Estimator = estimate_flow
) -> tuple[Float[Tensor, "b 2 steps h w"], Float[Tensor, "b 2 steps h w"]]:
    """Forward and backward flow of a video; the latter is estimated on the reversed video.

    Args:
        video: (b, c, f, h, w) in [-1, 1].
        estimator: video to forward flow.

    Raises:
        ValueError: for one clip without a batch axis, or what the estimator refuses.
    """
    check_float("video", video, "(b, c, f, h, w)")  # another axis would be reversed
    return estimator(video), estimator(video.flip(2)).flip(2)


def ground_truth_flow(
    clips: Clips,
) -> tuple[Float[Tensor, "b 2 steps h w"], Float[Tensor, "b 2 steps h w"]]:
    """Forward and backward flow of clips of the Emoji World, exact where `clips.flow_exact`."""
    backwards = dataclasses.replace(
        clips, video=clips.video.flip(2), path=clips.path.flip(1), alpha=clips.alpha.flip(2)
    )
    return clips.flow, backwards.flow.flip(2)


def check_flow(name: str, flow: Tensor, video: Tensor) -> None:
    """Check a flow.

    Args:
        name: argument of the caller, for the message.
        flow: expected to be (b, 2, f-1, h, w), floating point and finite.
        video: (b, c, f, h, w), whose flow it is.

    Raises:
        ValueError: if `flow` is anything else.
    """
    b, _, f, h, w = video.shape
    _check_flow_shape(name, flow, (b, 2, f - 1, h, w))


def _check_flow_shape(name: str, flow: Tensor, shape: tuple[int, ...]) -> None:
    require(flow.shape == shape, name, f"(b, 2, f-1, h, w) = {shape}", tuple(flow.shape))
    check_tensor(name, flow, "(b, 2, f-1, h, w)")


def warp(frames: Tensor, flow: Tensor) -> Float[Tensor, "b c steps h w"]:
    """Sample every pixel at its position plus its flow, bilinearly (backward warping).

    Frame t + 1 warped by the forward flow is frame t. Beyond the border the border's value is used.

    Args:
        frames: (b, c, steps, h, w), any channels, at least 2 x 2 pixels.
        flow: (b, 2, steps, h, w), one flow field per frame.

    Returns:
        Warped frames, in the shape and dtype of `frames`.

    Raises:
        ValueError: for other shapes, integers, or a flow that is not finite.
    """
    check_float("frames", frames, "(b, c, steps, h, w)")
    b, _, steps, h, w = frames.shape
    require(min(h, w) >= 2, "frames", "at least 2x2 pixels", f"{h}x{w}")
    _check_flow_shape("flow", flow, (b, 2, steps, h, w))
    return _warp(frames, flow)


def _warp(
    frames: Float[Tensor, "b c steps h w"], flow: Float[Tensor, "b 2 steps h w"]
) -> Float[Tensor, "b c steps h w"]:
    h, w = frames.shape[-2:]
    # Half precision cannot tell neighbouring pixels apart: on a CPU, grid_sample reads beyond them
    dtype = torch.promote_types(frames.dtype, torch.float32)
    flow = flow.to(dtype)
    x = torch.arange(w, device=flow.device) + flow[:, 0]  # (b, steps, h, w)
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]  # (b, steps, h, w)
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], dim=-1).flatten(0, 1)
    flat = fold_frames(frames.to(dtype))
    warped = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
    warped = unfold_frames(warped, frames.shape[2])
    if dtype == frames.dtype:
        return warped
    still = (flow == 0).all(dim=1, keepdim=True)  # exactly the same there, not up to 1e-7
    return torch.where(still, frames, warped.to(frames.dtype))


def non_occluded_mask(forward: Tensor, backward: Tensor) -> Bool[Tensor, "b 1 steps h w"]:
    """Pixels of frame t that are visible in frame t + 1, and not at a motion boundary.

    Occluded: forward flow f and backward flow b, sampled where f points to, do not cancel:
    |f + b|² > 0.01 (|f|² + |b|²) + 0.5. Motion boundary: |∇f|² > 0.01 |f|² + 0.002. Lai et al.
    2018, as in their `detect_occlusion`, after Ruder et al. 2016.

    Args:
        forward: forward flow (b, 2, steps, h, w).
        backward: backward flow, in the same shape.

    Raises:
        ValueError: for other shapes, integers, or a flow that is not finite.
    """
    check_tensor("forward", forward, "(b, 2, steps, h, w)")
    _check_flow_shape("forward", forward, (len(forward), 2, *forward.shape[2:]))
    require(min(forward.shape[-2:]) >= 2, "forward", "at least 2x2 pixels", tuple(forward.shape))
    _check_flow_shape("backward", backward, tuple(forward.shape))
    dtype = torch.promote_types(forward.dtype, torch.float32)
    forward, backward = forward.to(dtype), backward.to(dtype)
    back = _warp(backward, forward)
    energy = forward.square().sum(dim=1, keepdim=True)
    energy_back = back.square().sum(dim=1, keepdim=True)
    residual = (forward + back).square().sum(dim=1, keepdim=True)
    occluded = residual > 0.01 * (energy + energy_back) + 0.5
    gradient = torch.zeros_like(energy)
    gradient[..., :, :-1] += forward.diff(dim=-1).square().sum(dim=1, keepdim=True)
    gradient[..., :-1, :] += forward.diff(dim=-2).square().sum(dim=1, keepdim=True)
    return ~(occluded | (gradient > 0.01 * energy + 0.002))
