"""Any video U-Net as a model of `diffusion`: (x, t, cond) to a prediction; and temporal guidance.

The U-Nets of `nn` list their optional inputs in the attribute `accepts`. Another kind of
conditioning, such as ControlNet's residuals, wraps or extends `unet_denoiser`.

Hyung et al. 2024, "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling",
arXiv 2411.18664.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.diffusion import Model, cfg_model, classifier_free_guidance
from course_lib.pipelines.batch import check_rows
from course_lib.pipelines.frame_condition import FrameCondition, check_condition
from course_lib.validation import check_int, check_number, require

# diffusers' U-Nets that expect the text once per frame
TEXT_PER_FRAME = ("UNetMotionModel",)


def accepted_inputs(unet: nn.Module) -> frozenset[str]:
    """Optional inputs of a video U-Net.

    Returns:
        A subset of "fps", "noise_aug_level", "frame_index", "is_image", "cond_channels" and
        "temporal_scale"; empty for a U-Net that takes sample, timestep and text only, as those of
        diffusers.
    """
    return getattr(unet, "accepts", frozenset())


def check_inputs(unet: nn.Module, names: Iterable[str]) -> None:
    """Refuse optional inputs that a U-Net does not take.

    Raises:
        ValueError: names the first of them.
    """
    accepts = accepted_inputs(unet)
    for name in names:
        if name not in accepts:
            takes = ", ".join(sorted(accepts)) or "sample, timestep and text only"
            raise ValueError(
                f"{name}: this {type(unet).__name__} does not take it; it takes {takes}"
            )


def in_channels(unet: nn.Module) -> int:
    """Channels of the latents of a video U-Net, without those of a condition."""
    return getattr(unet, "spatial", unet).config.in_channels


def latent_shape(
    unet: nn.Module,
    vae_scale_factor: int,
    size: tuple[Any, ...],
    latents: Tensor | None = None,
    frame_condition: Any = None,
) -> tuple[int, ...]:
    """Shape of the latents (b, c, f, y, x) that a video U-Net denoises.

    Args:
        unet: decides the channels, and a height or width that is None.
        vae_scale_factor: pixels per latent.
        size: rows, frames, height and width in pixels.
        latents, frame_condition: what is given; their frames and sizes count instead.

    Raises:
        ValueError: for numbers that are no integers above 0, sizes that the factor does not divide,
            none for a U-Net that was made for no size, and latents or given frames that do not
            fit.
    """
    num_rows, num_frames, *height_and_width = size
    check_int("num_frames", num_frames, 1)
    made_for = getattr(unet, "spatial", unet).config.get("sample_size")
    made_for = made_for if isinstance(made_for, list | tuple) else (made_for, made_for)
    got, is_valid = type(frame_condition).__name__, isinstance(frame_condition, FrameCondition)
    require(frame_condition is None or is_valid, "frame_condition", "a FrameCondition", got)
    shape = [num_rows, in_channels(unet), num_frames]
    like = latents if frame_condition is None else frame_condition.frames
    for name, pixels, default in zip(("height", "width"), height_and_width, made_for, strict=True):
        if pixels is not None:
            check_int(name, pixels, 1)
            if pixels % vae_scale_factor:
                expected = f"a multiple of {vae_scale_factor} pixels"
                raise ValueError(f"{name}: expected {expected}, got {pixels}")
        elif default is None and like is None:
            raise ValueError(f"{name}: expected pixels, since the U-Net has no sample_size")
        shape.append(default if pixels is None else pixels // vae_scale_factor)
    if like is not None:
        shape[2:] = like.shape[2:]
    if latents is not None:
        check_rows("latents", latents, *shape[:2])
    if frame_condition is not None:
        check_condition(frame_condition, tuple(shape if latents is None else latents.shape))
    return tuple(shape)


def shared_inputs(
    unet: nn.Module,
    shape: tuple[int, ...],
    frame_index: Tensor | None = None,
    fps: Any = None,
) -> dict[str, Tensor]:
    """Inputs of a video U-Net that the two halves of guidance share.

    Args:
        unet: the U-Net.
        shape: of the latents, (b, c, f, y, x).
        frame_index: time of each frame, (b, f).
        fps: frames per second of all videos.

    Raises:
        ValueError: for inputs that the U-Net does not take, or that do not fit.
    """
    inputs: dict[str, Tensor] = {}
    if frame_index is not None:
        expected, got = (shape[0], shape[2]), tuple(frame_index.shape)
        require(got == expected, "frame_index", f"(b, f) = {expected}", got)
        require(frame_index.isfinite().all(), "frame_index", "finite values", "NaN or infinity")
        inputs["frame_index"] = frame_index.to(unet.device)
    if fps is not None:
        check_number("fps", fps, above=0.0)
        inputs["fps"] = torch.full(shape[:1], float(fps), device=unet.device)
    check_inputs(unet, inputs)
    return inputs


def unet_denoiser(unet: nn.Module, **unet_kwargs: Any) -> Model:
    """A video U-Net as a model: (x (b, c, f, h, w), t (b,), cond) to a prediction of x's shape.

    Weights and text may be in half precision while x stays in float32, so that rounding does not
    accumulate over the steps.

    Args:
        unet: a VideoUNet, an InflatedUNet, or diffusers' UNet3DConditionModel or UNetMotionModel.
        unet_kwargs: inputs of every call, such as temporal_scale.

    Returns:
        The model. Its `cond` is a mapping with "text" (b, l, d) or (b, f, l, d) and other optional
        inputs by name, or None for a U-Net without text.

    Raises:
        ValueError: for `unet_kwargs` that the U-Net does not take.
    """
    check_inputs(unet, unet_kwargs)
    text_per_frame = type(unet).__name__ in TEXT_PER_FRAME

    def model(x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        inputs = dict(cond or {})
        text = inputs.pop("text", None)
        dtype = x.dtype if text is None else text.dtype
        if "cond_channels" in inputs:
            inputs["cond_channels"] = inputs["cond_channels"].to(dtype)
        if text_per_frame:
            text = text.repeat_interleave(x.shape[2], dim=0)  # (b f) l d
        return unet(x.to(dtype), t, text, **inputs, **unet_kwargs).sample

    return model


def frame_independent_denoiser(unet: nn.Module) -> Model | None:
    """The weak model of temporal guidance: an inflated U-Net without its temporal layers.

    Returns:
        None for a U-Net that makes this prediction itself, by `is_image`, which joint training on
        images and videos teaches it; see `temporal_guidance`.

    Raises:
        ValueError: the U-Net makes no frame-independent prediction.
    """
    accepts = accepted_inputs(unet)
    if "temporal_scale" in accepts:
        return unet_denoiser(unet, temporal_scale=0)
    if "is_image" not in accepts:
        name = type(unet).__name__
        raise ValueError(
            f"temporal_guidance_scale: expected None, since {name} makes no frame-independent "
            "prediction; got a scale"
        )
    return None


def temporal_guidance(
    model: Model, guidance_scale: float | int, spatial_model: Model | None = None
) -> Model:
    """Guidance away from the frame-independent prediction: spatial + scale · (full - spatial).

    Hyung et al. 2024 skip layers to weaken the network. Here the weak prediction treats frames as
    unrelated images.

    Args:
        model: the full model on videos (b, c, f, h, w).
        guidance_scale: 0 or more; 1 is the model itself, at its own cost.
        spatial_model: the frame-independent model, such as
            `unet_denoiser(unet, temporal_scale=0)` of an inflated U-Net. None: `model` was trained
            jointly on images and videos and takes "is_image"; both predictions then come from one
            pass over twice the rows.

    Raises:
        ValueError: for a scale that is negative or not finite; when called, if `cond` already has
            "is_image" and the function has to set it.
    """
    check_number("guidance_scale", guidance_scale, at_least=0.0)
    if guidance_scale == 1:
        return model
    if spatial_model is not None:
        return lambda x, t, cond: classifier_free_guidance(
            model(x, t, cond), spatial_model(x, t, cond), guidance_scale
        )

    def guided(x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        inputs = dict(cond or {})
        if "is_image" in inputs:
            raise ValueError("cond: expected no 'is_image', temporal guidance sets it; got one")
        is_image = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        wrapped = cfg_model(model, inputs | {"is_image": is_image}, guidance_scale)
        return wrapped(x, t, inputs | {"is_image": ~is_image})

    return guided
