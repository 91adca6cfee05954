"""Inflated U-Nets to and from diffusers' own video U-Nets: the same weights under other names.

`animatediff` is diffusers' UNetMotionModel, its layers over time a MotionAdapter; `modelscope` is UNet3DConditionModel.
Both directions are strict: a weight that is left over, or missing, is an error.
"""

import inspect
from collections.abc import Mapping

from diffusers import MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch import Tensor

from course_lib.nn.inflate import InflatedUNet, inflate, placed_as
from course_lib.nn.temporal_layouts import places

# The part of a layer's name that says what it hangs behind, and what diffusers calls the layer over time there
MOTION = {"attentions": "motion_modules", "resnets": "motion_modules"}
MODELSCOPE = {"attentions": "temp_attentions", "resnets": "temp_convs", "conv_in": "transformer_in"}


def _expect(unet: InflatedUNet, style: str) -> None:
    if unet.config.style != style:
        raise ValueError(f"unet: expected style {style!r}, got {unet.config.style!r}")


def _names(unet: InflatedUNet, words: Mapping[str, str]) -> dict[str, str]:
    """From our names of weights over time to diffusers'."""
    names = {}
    for ours in unet.temporal.state_dict():
        place, _, rest = ours.partition(".")
        parts = [words.get(part, part) for part in place.split("-")]
        names[ours] = ".".join([*parts, rest])
    return names


# AnimateDiff


def to_motion_adapter(unet: InflatedUNet) -> MotionAdapter:
    """The layers over time as diffusers' MotionAdapter, ready to be saved. Raises ValueError for another style."""
    _expect(unet, "animatediff")
    image, options = unet.spatial.config, unet.config.options or {}
    middle = options.get("middle", True)
    adapter = MotionAdapter(
        block_out_channels=image.block_out_channels,
        motion_layers_per_block=image.layers_per_block,
        motion_transformer_layers_per_block=options.get("layers", 1),
        motion_transformer_layers_per_mid_block=options.get("layers", 1),
        motion_num_attention_heads=options.get("heads", 8),
        motion_max_seq_length=options.get("frames", 32),
        use_motion_mid_block=middle,
    )
    state = unet.temporal.state_dict()
    placed_as(adapter, unet).load_state_dict(
        {theirs: state[ours] for ours, theirs in _names(unet, MOTION).items()}
    )
    return adapter


def load_motion_adapter(unet: InflatedUNet, adapter: MotionAdapter) -> None:
    """Give an inflated U-Net a MotionAdapter's weights.

    unet: of style animatediff, with the adapter's options. Raises ValueError for another style, RuntimeError for
    weights that do not fit.
    """
    _expect(unet, "animatediff")
    names, state = (
        {theirs: ours for ours, theirs in _names(unet, MOTION).items()},
        adapter.state_dict(),
    )
    unet.temporal.load_state_dict(
        {names.get(theirs, theirs): value for theirs, value in state.items()}
    )


def with_motion_adapter(unet: UNet2DConditionModel, adapter: MotionAdapter) -> InflatedUNet:
    """An image U-Net inflated with an adapter's layers over time, such as AnimateDiff's own.

    Raises ValueError for an adapter with its own conv_in (PIA), or different numbers in different places.
    """
    config = adapter.config
    if config.conv_in_channels:
        raise ValueError(
            f"adapter: expected none with a conv_in of its own, got {config.conv_in_channels} channels"
        )
    numbers = {
        "heads": config.motion_num_attention_heads,
        "layers": config.motion_transformer_layers_per_block,
    }
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise ValueError(f"adapter: expected one number of {name} everywhere, got {number}")
    inflated = inflate(
        unet,
        "animatediff",
        frames=config.motion_max_seq_length,
        middle=config.use_motion_mid_block,
        **numbers,
    )
    load_motion_adapter(inflated, adapter)
    return inflated


def to_motion_model(unet: InflatedUNet) -> UNetMotionModel:
    """All of it as diffusers' UNetMotionModel, which wants a text for each frame.

    Raises ValueError for another style.
    """
    model = UNetMotionModel.from_unet2d(unet.spatial, to_motion_adapter(unet), load_weights=False)
    placed_as(model, unet)  # first: with load_weights, doubles would pass through floats
    over_time = unet.temporal.state_dict()
    state = {theirs: over_time[ours] for ours, theirs in _names(unet, MOTION).items()}
    model.load_state_dict(state | unet.spatial.state_dict())
    return model.train(unet.training)


# ModelScope

# What UNet3DConditionModel takes of an image U-Net's configuration, and what it puts into words of its own
_SHARED = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "downsample_padding",
    "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "time_cond_proj_dim",
)  # fmt: skip
_TRANSLATED = (
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
)


def to_unet3d(unet: InflatedUNet) -> UNet3DConditionModel:
    """All of it as diffusers' UNet3DConditionModel.

    Raises ValueError for another style, for heads that are not equally wide everywhere, and for whatever else that
    class cannot express, such as SDXL's conditioning, naming it.
    """
    _expect(unet, "modelscope")
    image = unet.spatial.config
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items():
        if name not in ("self", *_SHARED, *_TRANSLATED) and image[name] != parameter.default:
            raise ValueError(f"unet: UNet3DConditionModel has no {name}, which is {image[name]!r}")
    widths = {place.head_width for place in places(unet.spatial)} | {
        (unet.config.options or {}).get("head_width")
    }
    width, *others = widths - {None}
    if others:
        raise ValueError(
            f"unet: UNet3DConditionModel has heads of one width everywhere, got {sorted(widths - {None})}"
        )
    model = UNet3DConditionModel(
        **{name: image[name] for name in _SHARED},
        down_block_types=[name.replace("2D", "3D") for name in image.down_block_types],
        up_block_types=[name.replace("2D", "3D") for name in image.up_block_types],
        attention_head_dim=width,
    )
    placed_as(model, unet)
    over_time = unet.temporal.state_dict()
    state = {theirs: over_time[ours] for ours, theirs in _names(unet, MODELSCOPE).items()}
    model.load_state_dict(
        state | {name: _linear(name, value) for name, value in unet.spatial.state_dict().items()}
    )
    return model.train(unet.training)


def from_unet3d(model: UNet3DConditionModel) -> InflatedUNet:
    """diffusers' UNet3DConditionModel, such as ModelScope's own, as an inflated U-Net of style modelscope.

    Raises RuntimeError for a weight that is left over or missing.
    """
    config = model.config
    width = config.attention_head_dim  # in the image class a number of that name counts heads
    image = UNet2DConditionModel(
        **{name: config[name] for name in _SHARED},
        down_block_types=[name.replace("3D", "2D") for name in config.down_block_types],
        up_block_types=[name.replace("3D", "2D") for name in config.up_block_types],
        attention_head_dim=[channels // width for channels in config.block_out_channels],
        use_linear_projection=True,
    )
    unet = inflate(placed_as(image, model), "modelscope", head_width=width)
    state = model.state_dict()
    names = _names(unet, MODELSCOPE)
    unet.temporal.load_state_dict({ours: state.pop(theirs) for ours, theirs in names.items()})
    unet.spatial.load_state_dict(state)
    return unet.train(model.training)


def _linear(name: str, value: Tensor) -> Tensor:
    """Stable Diffusion 1 projects into its transformers by 1x1 convolutions, UNet3DConditionModel by linear layers."""
    return (
        value[:, :, 0, 0]
        if name.endswith(("proj_in.weight", "proj_out.weight")) and value.ndim == 4
        else value
    )
