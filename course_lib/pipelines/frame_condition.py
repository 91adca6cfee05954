"""Given frames: masks, the condition, how a model is made to keep them, and loops built on that.

Reads top to bottom: masks, the condition, the replacement method, reconstruction guidance, longer
videos, frame interpolation.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 3.1.
Song et al. 2021, "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, section 5
(replacement).
Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818, sections 3.2 (prediction) and 3.3
(interpolation).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from course_lib.diffusion import (
    Model,
    alpha_sigma_at,
    convert_prediction,
    get_prediction_type,
)
from course_lib.validation import check_float, check_int, check_number, check_same_shape, require

ForwardOperator = Callable[[Tensor], Tensor]  # y = A(x0) of an inverse problem; differentiable


def first_frames_mask(num_frames: int, num_cond_frames: int) -> Bool[Tensor, "f"]:
    """Mask of given frames: the first `num_cond_frames` of `num_frames`, 0 or more.

    Raises:
        ValueError: for other numbers.
    """
    check_int("num_frames", num_frames, 1)
    check_int("num_cond_frames", num_cond_frames, 0, num_frames)
    return torch.arange(num_frames) < num_cond_frames


def every_nth_frame_mask(num_frames: int, stride: int) -> Bool[Tensor, "f"]:
    """Mask of given frames: every `stride`-th of `num_frames`, beginning with the first.

    Raises:
        ValueError: for numbers that are no integers above 0.
    """
    check_int("num_frames", num_frames, 1)
    check_int("stride", stride, 1)
    return torch.arange(num_frames) % stride == 0


@dataclass(frozen=True)
class FrameCondition:
    """Frames that are given, and which ones they are.

    Args:
        frames: clean frames or latents (b, c, f, h, w); values outside the mask do not matter.
        mask: True where a frame is given, (b, f).

    Raises:
        ValueError: for another number of axes, another dtype, or a mask of another shape.
    """

    frames: Float[Tensor, "b c f h w"]
    mask: Bool[Tensor, "b f"]

    def __post_init__(self):
        check_float("frames", self.frames, "(b, c, f, h, w)")
        expected = (len(self.frames), self.frames.shape[2])
        if self.mask.shape != expected or self.mask.dtype != torch.bool:
            got = f"{tuple(self.mask.shape)} {self.mask.dtype}"
            raise ValueError(f"mask: expected booleans {expected}, got {got}")

    @classmethod
    def none(cls, like: Float[Tensor, "b c f h w"]) -> "FrameCondition":
        """No frame is given, for videos of the shape of `like`."""
        mask = torch.zeros(len(like), like.shape[2], dtype=torch.bool, device=like.device)
        return cls(torch.zeros_like(like), mask)

    @classmethod
    def prefix(cls, video: Float[Tensor, "b c n h w"], num_frames: int) -> "FrameCondition":
        """The first n of `num_frames` frames are given.

        Raises:
            ValueError: the video has more frames than `num_frames`, or is no batch of videos.
        """
        check_float("video", video, "(b, c, n, h, w)")
        check_int("num_frames", num_frames, 1)
        b, _, n, _, _ = video.shape
        if n > num_frames:
            raise ValueError(f"video: expected at most {num_frames} frames, got {n}")
        frames = F.pad(video, (0, 0, 0, 0, 0, num_frames - n))
        mask = first_frames_mask(num_frames, n).to(video.device)
        return cls(frames, mask.expand(b, -1))

    @classmethod
    def keyframes(cls, keyframes: Float[Tensor, "b c n h w"], stride: int) -> "FrameCondition":
        """Every `stride`-th of stride · (n - 1) + 1 frames is given, the last one too.

        Raises:
            ValueError: for anything but a batch of videos and an integer above 0.
        """
        check_float("keyframes", keyframes, "(b, c, n, h, w)")
        check_int("stride", stride, 1)
        b, c, n, h, w = keyframes.shape
        num_frames = stride * (n - 1) + 1
        frames = keyframes.new_zeros(b, c, num_frames, h, w)
        frames[:, :, ::stride] = keyframes
        mask = every_nth_frame_mask(num_frames, stride).to(keyframes.device)
        return cls(frames, mask.expand(b, -1))

    @property
    def pixel_mask(self) -> Bool[Tensor, "b 1 f 1 1"]:
        """The mask with axes for channels and pixels, to broadcast against frames."""
        return self.mask[:, None, :, None, None]

    def to(self, like: Tensor) -> "FrameCondition":
        """The condition on the device and in the dtype of a tensor."""
        return FrameCondition(self.frames.to(like), self.mask.to(like.device))

    def channels(self) -> Float[Tensor, "b channels f h w"]:
        """Conditioning channels of a U-Net: the given frames, zeros elsewhere, and the mask.

        Blattmann et al. 2023, section 3.2. Returns c + 1 channels.
        """
        b, _, f, h, w = self.frames.shape
        mask = self.pixel_mask.to(self.frames).expand(b, 1, f, h, w)
        return torch.cat([torch.where(self.pixel_mask, self.frames, 0), mask], dim=1)

    def paste(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """The video with the given frames in place of its own.

        Raises:
            ValueError: for another shape than that of the frames, or integers.
        """
        check_float("video", video)
        check_same_shape("video", video, "frames", self.frames)
        given = self.to(video)
        return torch.where(given.pixel_mask, given.frames, video)


def check_condition(condition: FrameCondition, shape: tuple[int, ...]) -> None:
    """Check given frames against the latents of which they are a part.

    Args:
        condition: frames that are given; values outside the mask do not matter.
        shape: of the latents.

    Raises:
        ValueError: for frames of another shape, and for NaN or infinity in given frames.
    """
    got, name = tuple(condition.frames.shape), "frame_condition"
    require(got == shape, name, f"frames {shape}, with a row for each prompt", got)
    given = torch.where(condition.pixel_mask, condition.frames, 0)
    require(given.isfinite().all(), name, "finite frames", "NaN or infinity")


def replacement_method(model: Model, scheduler: Any, condition: FrameCondition) -> Model:
    """The model with its x0 of given frames replaced by these frames. Song et al. 2021.

    A sampler then leads the given frames along q(x_s | x_t, x0), from which Ho et al. 2022 sample
    them (section 3.1); the other frames see them at their own noise level.

    Args:
        model: (x, t, cond) to a prediction of the scheduler's type.
        scheduler: gives noise levels and prediction type.
        condition: frames of the shape of x.

    Raises:
        ValueError: when called, for frames of another shape.
    """
    prediction_type = get_prediction_type(scheduler)

    def wrapped(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        # Broadcasting would silently give all videos the same frames
        check_same_shape("condition", condition.frames, "x", x)
        level = alpha_sigma_at(scheduler, t)
        pred = convert_prediction(model(x, t, cond).to(x.dtype), x, level, prediction_type)
        x0 = condition.paste(pred.x0)
        return convert_prediction(x0, x, level, "sample").as_type(prediction_type)

    return wrapped


def reconstruction_guidance(
    model: Model,
    scheduler: Any,
    observed: Float[Tensor, "b *axes"],
    operator: ForwardOperator,
    reconstruction_weight: float | int = 2.0,
) -> Model:
    """The model led to where its own x0 agrees with an observation. Ho et al. 2022, eqs. 7 and 8.

    x0 - w_r · alpha / 2 · ∇ ‖observed - A(x0)‖², with the gradient by x_t, through the network.

    Args:
        model, scheduler: as for `replacement_method`.
        observed: y, what is known of the clean video.
        operator: A, from a video to that part of it, such as `lambda video: video[:, :, :8]`.
        reconstruction_weight: w_r; 0 changes nothing, but still pays for the gradient.

    Raises:
        ValueError: for a weight that is negative or not finite, or integers as observations; when
            called, if A(x0) has another shape than `observed`.
    """
    check_float("observed", observed)
    check_number("reconstruction_weight", reconstruction_weight, at_least=0.0)
    prediction_type = get_prediction_type(scheduler)

    def wrapped(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        level = alpha_sigma_at(scheduler, t)
        with torch.enable_grad():  # samplers switch gradients off
            x = x.detach().requires_grad_()
            pred = model(x, t, cond).to(x.dtype)
            x0 = convert_prediction(pred, x, level, prediction_type).x0
            measured = operator(x0)
            check_same_shape("observed", observed, "operator(x0)", measured)
            error = (observed.to(x) - measured).square().sum()
            (gradient,) = torch.autograd.grad(error, x)
        alpha, _ = level.like(x)
        x0 = (x0 - reconstruction_weight * alpha / 2 * gradient).detach()
        return convert_prediction(x0, x.detach(), level, "sample").as_type(prediction_type)

    return wrapped


def condition_on_frames(
    model: Model,
    scheduler: Any,
    condition: FrameCondition,
    reconstruction_weight: float | int | None = 2.0,
) -> Model:
    """The model for videos of which some frames are given. Ho et al. 2022, section 3.1.

    Args:
        model, scheduler, condition: as for `replacement_method`, which is always applied.
        reconstruction_weight: of `reconstruction_guidance`, applied before it; None leaves it out.

    Raises:
        ValueError: as these two.
    """
    if reconstruction_weight is not None:
        mask = condition.pixel_mask
        # Zeros at unknown frames on both sides: they add nothing to the squared error
        observed = torch.where(mask, condition.frames, 0)
        model = reconstruction_guidance(
            model,
            scheduler,
            observed,
            lambda video: torch.where(mask.to(video.device), video, 0),
            reconstruction_weight,
        )
    return replacement_method(model, scheduler, condition)


def downsample_operator(factor: int) -> ForwardOperator:
    """From a video to one of lower resolution: the mean of factor x factor pixels.

    Raises:
        ValueError: the factor is no integer above 0; from the operator: integer videos.
    """
    check_int("factor", factor, 1)

    def downsample(video: Tensor) -> Tensor:
        check_float("video", video)
        return F.avg_pool3d(video, (1, factor, factor))

    return downsample


def extend_autoregressively(
    sample_block: Callable[[FrameCondition], Tensor],
    video: Float[Tensor, "b c f h w"],
    *,
    num_frames: int,
    num_cond_frames: int,
) -> Float[Tensor, "b c num_frames h w"]:
    """A longer video, block by block: each block is given the last frames so far.

    Ho et al. 2022, section 3.1; Blattmann et al. 2023, section 3.2 (prediction model).

    Args:
        sample_block: samples a block of f frames under a condition.
        video: the beginning, pixels or latents; a block is as long as it.
        num_frames: length of the result, more than f.
        num_cond_frames: frames that each block is given, 1 to f - 1.

    Raises:
        ValueError: for another `num_frames` or `num_cond_frames`, for anything but a batch of
            videos, and for a block of another shape.
    """
    check_float("video", video, "(b, c, f, h, w)")
    block_len = video.shape[2]
    require(block_len > 1, "video", "at least 2 frames", block_len)
    check_int("num_cond_frames", num_cond_frames, 1, block_len - 1)
    check_int("num_frames", num_frames, block_len + 1)
    while video.shape[2] < num_frames:
        condition = FrameCondition.prefix(video[:, :, -num_cond_frames:], block_len)
        block = sample_block(condition)
        check_same_shape("sample_block", block, "a block", condition.frames)
        video = torch.cat([video, block[:, :, num_cond_frames:].to(video)], dim=2)
    return video[:, :, :num_frames]


def interpolate_keyframes(
    sample_block: Callable[[FrameCondition, Tensor], Tensor],
    keyframes: Float[Tensor, "b c n h w"],
    *,
    factor: int,
    window_size: int,
    keyframe_spacing: float | int,
) -> Float[Tensor, "b c frames h w"]:
    """Videos of factor · (n - 1) + 1 frames, of which every factor-th is a key frame.

    Windows of a few key frames are filled in all at once; the last key frame of a window is the
    first of the next. Blattmann et al. 2023, section 3.3 (interpolation model).

    Args:
        sample_block: samples the windows (b · windows, the windows of a video being neighbours)
            under a condition and a frame index (b · windows, frames).
        keyframes: pixels or latents.
        factor: distance between key frames, in frames of the result.
        window_size: key frames of a window, 2 or more; n - 1 is a multiple of window_size - 1.
        keyframe_spacing: time from one key frame to the next, in the unit of the frame index.

    Raises:
        ValueError: for another `window_size`, a factor or spacing that is not positive, anything
            but a batch of videos, and blocks of another shape.
    """
    check_float("keyframes", keyframes, "(b, c, n, h, w)")
    check_int("factor", factor, 1)
    check_int("window_size", window_size, 2)
    check_number("keyframe_spacing", keyframe_spacing, above=0.0)
    b, _, n, _, _ = keyframes.shape
    if n < window_size or (n - 1) % (window_size - 1):
        expected = f"2 or more, with one less a divisor of {n} - 1"
        raise ValueError(f"window_size: expected {expected}; got {window_size}")
    windows = keyframes.unfold(2, window_size, window_size - 1)  # b c windows h w window_size
    num_windows = windows.shape[2]
    windows = windows.permute(0, 2, 1, 5, 3, 4).flatten(0, 1)  # (b windows) c window_size h w
    condition = FrameCondition.keyframes(windows, factor)
    num_frames = condition.frames.shape[2]
    frame_index = (torch.arange(num_frames) * keyframe_spacing / factor).expand(len(windows), -1)
    blocks = sample_block(condition, frame_index)
    check_same_shape("sample_block", blocks, "the windows", condition.frames)
    frames = blocks[:, :, :-1].unflatten(0, (b, num_windows))  # the next window has the last frame
    frames = frames.transpose(1, 2).flatten(2, 3)  # b c (windows · (num_frames - 1)) h w
    return torch.cat([frames, keyframes[:, :, -1:].to(frames)], dim=2)
