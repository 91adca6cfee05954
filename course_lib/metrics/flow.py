"""Optical flow: estimated without a trained network or with one, exact from the world, and what to do with it.

A flow is (b, 2, f-1, h, w) in pixels, (x, y) in dim 1, as in `world.Clips.flow`. Forward: where a point of frame t
lies in frame t + 1, on frame t's pixels. Backward: where a point of frame t + 1 lay in frame t, on frame t + 1's.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from skimage.registration import optical_flow_ilk, optical_flow_tvl1
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from course_lib.validation import check_video
from course_lib.world import Clips

Estimator = Callable[[Tensor], Tensor]  # video (b, c, f, h, w) to forward flow

METHODS = {"ilk": optical_flow_ilk, "tvl1": optical_flow_tvl1}
GREY = (0.2125, 0.7154, 0.0721)  # of red, green, blue: skimage.color.rgb2gray
RAFT_SMALLEST, RAFT_MULTIPLE = 128, 8  # pixels


def estimate_flow(video: Tensor, method: str = "ilk") -> Float[Tensor, "b 2 steps h w"]:
    """Forward flow by scikit-image, with its default settings; on the CPU, float32.

    video: (b, c, f, h, w) in [-1, 1], c = 1 or 3, at least two frames. method: "ilk" (iterative Lucas-Kanade: Le
    Besnerais & Champagnat 2005) or "tvl1" (Zach et al. 2007; slower, a little better at borders).
    Flat areas have no flow to see: there both follow their surroundings. Raises ValueError for bad input.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
    check_video("video", video, min_frames=2, min_size=16)
    if video.shape[1] not in (1, 3):
        raise ValueError(f"video: expected 1 or 3 channels, got {video.shape[1]}")
    unit = (video.detach().cpu().float() + 1) / 2
    weights = unit.new_tensor(GREY if video.shape[1] == 3 else (1.0,))
    grey = torch.einsum("bcfhw,c->bfhw", unit, weights).numpy()
    pairs = [(clip[t], clip[t + 1]) for clip in grey for t in range(len(clip) - 1)]
    flows = np.stack(
        [METHODS[method](*pair)[::-1] for pair in pairs]
    )  # row, column: the other way round
    return rearrange(torch.from_numpy(flows), "(b f) c h w -> b c f h w", b=len(video))


def raft_flow(weights: Path | str, *, large: bool = False) -> Estimator:
    """RAFT (Teed & Deng 2020) as an estimator, from a file of torchvision's weights; nothing is downloaded.

    weights: a state dict of torchvision's raft_small, or raft_large if `large`: .pth as torchvision publishes it, read
    without running what a pickle may hold, or .safetensors. Videos smaller than 128 pixels, or whose sides 8 does not
    divide, are enlarged (bilinear) for the network, and the flow brought back to the video's own pixels.
    Raises ValueError where there is no such file.
    """
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"weights: expected a file with torchvision's RAFT weights, found none at {path}"
        )
    tensors = (
        load_file(path)
        if path.suffix == ".safetensors"
        else torch.load(path, "cpu", weights_only=True)
    )
    net = (raft_large if large else raft_small)(weights=None).eval().requires_grad_(False)
    net.load_state_dict(tensors)
    return partial(_raft, net)


@torch.no_grad()
def _raft(net: torch.nn.Module, video: Tensor) -> Float[Tensor, "b 2 steps h w"]:
    check_video("video", video, min_frames=2)
    net.to(video.device)
    size = video.shape[-2:]
    fine = [max(RAFT_SMALLEST, -(-side // RAFT_MULTIPLE) * RAFT_MULTIPLE) for side in size]
    frames = rearrange(video.detach().float(), "b c f h w -> (b f) c h w")
    frames = F.interpolate(frames, fine, mode="bilinear").unflatten(0, (len(video), -1))
    flow = net(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))[-1]
    # in pixels of the enlarged frame, x first
    flow = F.interpolate(flow, size, mode="bilinear") * flow.new_tensor(
        [size[1] / fine[1], size[0] / fine[0]]
    ).view(1, 2, 1, 1)
    return rearrange(flow, "(b f) c h w -> b c f h w", b=len(video))


def both_flows(
    video: Tensor, estimator: Estimator = estimate_flow
) -> tuple[Float[Tensor, "b 2 steps h w"], Float[Tensor, "b 2 steps h w"]]:
    """Forward and backward flow of a video by `estimator`; the second is the forward flow of the film run backwards."""
    return estimator(video), estimator(video.flip(2)).flip(2)


def exact_flows(
    clips: Clips,
) -> tuple[Float[Tensor, "b 2 steps h w"], Float[Tensor, "b 2 steps h w"]]:
    """Forward and backward flow of clips of the Emoji World, exact where `clips.flow_exact`."""
    turned = dataclasses.replace(
        clips, video=clips.video.flip(2), path=clips.path.flip(1), alpha=clips.alpha.flip(2)
    )
    return clips.flow, turned.flow.flip(2)


def check_flow(name: str, flow: Tensor, video: Tensor) -> None:
    """Raise ValueError unless `flow` is a finite flow for `video`; name: of the caller's argument."""
    b, _, f, h, w = video.shape
    if tuple(flow.shape) != (b, 2, f - 1, h, w):
        raise ValueError(
            f"{name}: expected (b, 2, f-1, h, w) = {(b, 2, f - 1, h, w)}, got {tuple(flow.shape)}"
        )
    if not flow.is_floating_point():
        raise ValueError(f"{name}: expected floating point, got {flow.dtype}")
    if not flow.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def warp(frames: Float[Tensor, "b c steps h w"], flow: Float[Tensor, "b 2 steps h w"]) -> Tensor:
    """Look up every pixel where the flow sends it: frame t + 1 and the forward flow give frame t again.

    Bilinear; beyond the border the border's value. frames: any channels, at least 2 x 2 pixels. Returns their shape.
    """
    h, w = frames.shape[-2:]
    flow = flow.to(frames.dtype)
    x = torch.arange(w, device=flow.device) + flow[:, 0]  # (b, steps, h, w)
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], dim=-1).flatten(0, 1)
    flat = rearrange(frames, "b c f h w -> (b f) c h w")
    warped = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
    return rearrange(warped, "(b f) c h w -> b c f h w", b=len(frames))


def visible(
    forward: Float[Tensor, "b 2 steps h w"], backward: Float[Tensor, "b 2 steps h w"]
) -> Bool[Tensor, "b 1 steps h w"]:
    """Which pixels of frame t can be found in frame t + 1: not hidden there, and not at the edge of a motion.

    Hidden: forward flow f and backward flow b, looked up where f leads, do not cancel, |f + b|² > 0.01 (|f|² + |b|²)
    + 0.5. Edge: |∇f|² > 0.01 |f|² + 0.002. Lai et al. 2018, in the form of their `detect_occlusion`; after Ruder et al.
    2016.
    """
    back = warp(backward, forward)
    energy, energy_back = (flow.square().sum(dim=1, keepdim=True) for flow in (forward, back))
    hidden = (forward + back).square().sum(dim=1, keepdim=True) > 0.01 * (
        energy + energy_back
    ) + 0.5
    steepness = torch.zeros_like(energy)
    steepness[..., :, :-1] += forward.diff(dim=-1).square().sum(dim=1, keepdim=True)
    steepness[..., :-1, :] += forward.diff(dim=-2).square().sum(dim=1, keepdim=True)
    return ~(hidden | (steepness > 0.01 * energy + 0.002))
