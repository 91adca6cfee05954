"""Inflated U-Nets to and from diffusers' own video U-Nets: the same weights under other names.

`animatediff` is diffusers' UNetMotionModel, whose temporal layers are a MotionAdapter; `modelscope`
is UNet3DConditionModel. Both directions are strict: a weight that is left over, or missing, is an
error.
"""

import inspect
from collections.abc import Mapping

from diffusers import (
    ModelMixin,
    MotionAdapter,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from torch import Tensor

from course_lib.nn.inflate import InflatedUNet, inflate
from course_lib.nn.temporal_layouts import insertion_points
from course_lib.nn.utils import to_like

# From a part of an insertion point's name to diffusers' name of the temporal layer there
MOTION_ADAPTER_KEYS = {"attentions": "motion_modules", "resnets": "motion_modules"}
UNET3D_KEYS = {
    "attentions": "temp_attentions",
    "resnets": "temp_convs",
    "conv_in": "transformer_in",
}


def _check_style(unet: InflatedUNet, style: str) -> None:
    if unet.config.style != style:
        raise ValueError(f"unet: expected style {style!r}, got {unet.config.style!r}")


def _key_map(unet: InflatedUNet, names: Mapping[str, str]) -> dict[str, str]:
    """From our names of the temporal weights to diffusers'."""
    keys = {}
    for point, layer in unet.temporal_layers.items():
        diffusers_point = ".".join(names.get(part, part) for part in point.split("."))
        keys |= {f"{point}.{key}": f"{diffusers_point}.{key}" for key in layer.state_dict()}
    return keys


def _load(
    model: ModelMixin, unet: InflatedUNet, names: Mapping[str, str], spatial: dict[str, Tensor]
) -> None:
    """Gives a diffusers model the temporal weights of ours, and the spatial ones as they are."""
    to_like(model, unet)  # before loading: otherwise float64 weights are rounded to float32
    state = unet.temporal.state_dict()
    temporal = {theirs: state[ours] for ours, theirs in _key_map(unet, names).items()}
    model.load_state_dict(temporal | spatial)


# AnimateDiff


def to_motion_adapter(unet: InflatedUNet) -> MotionAdapter:
    """The temporal layers as diffusers' MotionAdapter.

    Raises:
        ValueError: for another style than animatediff.
    """
    _check_style(unet, "animatediff")
    config = unet.spatial.config
    style_kwargs = unet.config.style_kwargs or {}
    num_layers = style_kwargs.get("num_layers", 1)
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_transformer_layers_per_block=num_layers,
        motion_transformer_layers_per_mid_block=num_layers,
        motion_num_attention_heads=style_kwargs.get("num_heads", 8),
        motion_max_seq_length=style_kwargs.get("num_frames", 32),
        use_motion_mid_block=style_kwargs.get("use_mid_block", True),
    )
    _load(adapter, unet, MOTION_ADAPTER_KEYS, {})
    return adapter


def load_motion_adapter(unet: InflatedUNet, adapter: MotionAdapter) -> None:
    """Gives an inflated U-Net the weights of a MotionAdapter.

    Args:
        unet: of style animatediff, with the adapter's options.
        adapter: source of the weights.

    Raises:
        ValueError: for another style.
        RuntimeError: for weights that do not fit.
    """
    _check_style(unet, "animatediff")
    keys = {theirs: ours for ours, theirs in _key_map(unet, MOTION_ADAPTER_KEYS).items()}
    state = adapter.state_dict()
    unet.temporal.load_state_dict({keys.get(key, key): value for key, value in state.items()})


def inflate_with_motion_adapter(unet: UNet2DConditionModel, adapter: MotionAdapter) -> InflatedUNet:
    """Inflates an image U-Net with the temporal layers of an adapter, such as AnimateDiff's.

    `TextToVideoPipeline.from_image_pipeline(pipeline, unet, scheduler)` makes a pipeline of it.
    AnimateDiff was trained on a linear beta schedule, Stable Diffusion's is "scaled_linear": pass
    `DDIMScheduler.from_config(pipeline.scheduler.config, beta_schedule="linear")`.

    Raises:
        ValueError: for an adapter with its own conv_in (PIA), or with different numbers of heads or
            layers per level.
    """
    config = adapter.config
    if config.conv_in_channels:
        raise ValueError(
            f"adapter: expected no conv_in of its own, got {config.conv_in_channels} channels"
        )
    numbers = {
        "num_heads": config.motion_num_attention_heads,
        "num_layers": config.motion_transformer_layers_per_block,
    }
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise ValueError(f"adapter: expected the same {name} on all levels, got {number}")
    inflated = inflate(
        unet,
        "animatediff",
        num_frames=config.motion_max_seq_length,
        use_mid_block=config.use_motion_mid_block,
        **numbers,
    )
    load_motion_adapter(inflated, adapter)
    return inflated


def to_motion_model(unet: InflatedUNet) -> UNetMotionModel:
    """The whole model as diffusers' UNetMotionModel, which takes a text per frame.

    Raises:
        ValueError: for another style than animatediff.
    """
    model = UNetMotionModel.from_unet2d(unet.spatial, to_motion_adapter(unet), load_weights=False)
    _load(model, unet, MOTION_ADAPTER_KEYS, unet.spatial.state_dict())
    return model.train(unet.training)


# ModelScope

# Arguments that UNet3DConditionModel shares with image U-Nets, and those it has in another form
_SHARED = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block",
    "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps",
    "cross_attention_dim", "time_cond_proj_dim",
)  # fmt: skip
_TRANSLATED = (
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
)


def to_unet3d(unet: InflatedUNet) -> UNet3DConditionModel:
    """The whole model as diffusers' UNet3DConditionModel.

    Raises:
        ValueError: for another style than modelscope, heads of different dimensions, and any other
            option that the class lacks, such as SDXL's conditioning.
    """
    _check_style(unet, "modelscope")
    config = unet.spatial.config
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items():
        if name not in ("self", *_SHARED, *_TRANSLATED) and config[name] != parameter.default:
            raise ValueError(f"unet: UNet3DConditionModel has no {name}, got {config[name]!r}")
    head_dims = {point.head_dim for point in insertion_points(unet.spatial)}
    head_dims |= {(unet.config.style_kwargs or {}).get("head_dim")} - {None}
    if len(head_dims) > 1:
        raise ValueError(f"unet: expected one head_dim on all levels, got {sorted(head_dims)}")
    model = UNet3DConditionModel(
        **{name: config[name] for name in _SHARED},
        down_block_types=[name.replace("2D", "3D") for name in config.down_block_types],
        up_block_types=[name.replace("2D", "3D") for name in config.up_block_types],
        attention_head_dim=head_dims.pop(),
    )
    spatial = {key: _linear(key, value) for key, value in unet.spatial.state_dict().items()}
    _load(model, unet, UNET3D_KEYS, spatial)
    return model.train(unet.training)


def from_unet3d(model: UNet3DConditionModel) -> InflatedUNet:
    """diffusers' UNet3DConditionModel, such as ModelScope's, as an inflated U-Net.

    Raises:
        RuntimeError: for a weight that is left over or missing.
    """
    config = model.config
    head_dim = config.attention_head_dim  # in the image class this name is the number of heads
    image_unet = UNet2DConditionModel(
        **{name: config[name] for name in _SHARED},
        down_block_types=[name.replace("3D", "2D") for name in config.down_block_types],
        up_block_types=[name.replace("3D", "2D") for name in config.up_block_types],
        attention_head_dim=[channels // head_dim for channels in config.block_out_channels],
        use_linear_projection=True,
    )
    unet = inflate(to_like(image_unet, model), "modelscope", head_dim=head_dim)
    state = model.state_dict()
    keys = _key_map(unet, UNET3D_KEYS)
    unet.temporal.load_state_dict({ours: state.pop(theirs) for ours, theirs in keys.items()})
    unet.spatial.load_state_dict(state)
    return unet.train(model.training)


def _linear(key: str, value: Tensor) -> Tensor:
    """Stable Diffusion 1's transformers have 1x1 convolutions in place of linear projections."""
    is_conv = key.endswith(("proj_in.weight", "proj_out.weight")) and value.ndim == 4
    return value[:, :, 0, 0] if is_conv else value
