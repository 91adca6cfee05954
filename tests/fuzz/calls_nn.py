"""Valid calls of course_lib.nn."""

import functools

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from course_lib.nn import (
    classifier,
    convolution,
    inflate,
    temporal,
    temporal_decoder,
    unet,
    video_resnet,
)
from tests.fuzz.args import B, C, F, I, N, R, X, Y
from tests.fuzz.harness import add, resolve

VIDEO = "b c f h w"
BROADCASTS = "second_axis_of_1 third_axis_of_1"
NARROW = {"b": 2, "c": 8, "h": 4, "w": 4}


@functools.cache
def build(name, **kwargs):
    """A layer in evaluation mode whose weights are all drawn, none of them zero."""
    torch.manual_seed(0)
    module = resolve(name)(**kwargs).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.requires_grad_(False)


class Heads(dict):
    """A dict that `functools.cache` takes as an argument."""

    def __hash__(self):
        return hash(tuple(self.items()))


@functools.cache
def image_unet():
    torch.manual_seed(0)
    sizes = {"block_out_channels": (32, 64), "cross_attention_dim": 6, "attention_head_dim": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(sample_size=8, layers_per_block=1, **sizes, **blocks)
    return unet.eval().requires_grad_(False)


@functools.cache
def inflated(style="video-ldm"):
    style_kwargs = {"video-ldm": {"head_dim": 4}, "animatediff": {"num_heads": 4, "num_frames": 8}}
    model = inflate.inflate(image_unet(), style, **style_kwargs.get(style, {}))
    torch.manual_seed(1)
    for parameter in model.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


@functools.cache
def vae():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    sizes = {"block_out_channels": (8,), "latent_channels": 4, "norm_num_groups": 4}
    return AutoencoderKL(**blocks, **sizes).eval().requires_grad_(False)


def layer(name, args, method="forward", **init):
    """Register the forward pass of a layer."""

    def call(**kwargs):
        return getattr(build(name, **init), method)(**kwargs)

    add(f"{name}.{method}", call, **args)


QKV = {
    "query": F("b k n d", n=4),
    "key": F("b k m d"),
    "value": F("b k m d", scale=0.5),
    "bias": F("*masked n m", masked=3, n=4, allows=BROADCASTS),
}
add("nn.attention.attention", **QKV)
add(
    "nn.attention.attention_weights",
    query=F("b k n d"),
    key=F("b k m d"),
    bias=F("*masked n m", masked=3, allows=BROADCASTS),
)
TRAILING = [[False, False, False, True]] * 2
add("nn.attention.joint_training_mask", is_image=B("b f", TRAILING))
add("nn.attention.mask_to_bias", mask=B("*shape", shape=4), dtype=torch.float32)
video = F(VIDEO, **NARROW)
layer("nn.attention.SpatialAttention", {"video": video}, channels=8, head_dim=4)
CROSS = {"channels": 8, "cross_attention_dim": 6, "head_dim": 4}
layer("nn.attention.CrossAttention", {"video": video, "text": F("b l d", b=2)}, **CROSS)
index = F("b f", b=2, scale=5)
for method in ("forward", "weights"):
    layer(
        "nn.attention.TemporalAttention",
        {"video": video, "mask": B("b f f", [[[True] * 4] * 4] * 2), "frame_index": index},
        method, channels=8, head_dim=4, positions="rotary",
    )  # fmt: skip
layer(
    "nn.attention.TemporalAttention", {"video": video}, channels=8, head_dim=4, positions="relative"
)
add("nn.attention.SpatialAttention", channels=N(8), head_dim=N(4))
add("nn.attention.CrossAttention", channels=N(8), cross_attention_dim=N(6), head_dim=N(4))
add(
    "nn.attention.TemporalAttention",
    channels=N(8), head_dim=N(4), positions=C("relative"), max_distance=N(5, low=0),
)  # fmt: skip

SMALL_NET = {"channels": (4, 4, 8, 8), "size": 16, "heads": Heads({"motion": 3})}
for method in ("forward", "features"):
    layer("nn.classifier.VideoClassifier", {"video": F("b 3 f 16 16")}, method, **SMALL_NET)
add(
    "nn.classifier.VideoClassifier",
    lambda **kwargs: classifier.VideoClassifier(
        channels=(4, 4, 8, 8), heads={"motion": 3}, **kwargs
    ),
    kind=C("r2plus1d_narrow"), stem_kernel=N(3), size=N(16), texture_weight=R(0.5, 0),
)  # fmt: skip

add("nn.convolution.same_padding", kernel_size=X(lambda: (3, 5, 5)), dilation=X(lambda: (1, 2, 2)))
add(
    "nn.convolution.output_length",
    length=N(9), kernel_size=N(3), stride=N(2), padding=N(1, low=0), dilation=N(2),
)  # fmt: skip
add(
    "nn.convolution.r2plus1d_midplanes",
    in_channels=N(8),
    out_channels=N(16),
    kernel_t=N(3),
    kernel_s=N(3),
)
add("nn.convolution.group_norm", channels=N(12), max_groups=N(8))
IN_OUT = {"in_channels": N(3), "out_channels": N(5)}
ODD = N(3)
for name, options in {
    "FrameConv2d": {"kernel_size": ODD, "stride": N(2), "bias": Y()},
    "Conv3d": {
        "kernel_size": ODD,
        "stride": N(2),
        "dilation": N(2),
        "bias": Y(),
        "padding": C("same"),
    },
    "R2Plus1DConv": {"kernel_t": ODD, "kernel_s": ODD, "stride": N(2), "midplanes": N(4)},
    "SeparableConv3d": {"kernel_t": ODD, "kernel_s": ODD},
    "Pseudo3DConv": {"kernel_t": ODD, "kernel_s": ODD, "stride": N(2)},
    "CausalConv3d": {"kernel_size": ODD, "stride": N(2), "dilation": N(2), "pad_mode": C("zeros")},
}.items():
    add(f"nn.convolution.{name}", **IN_OUT, **options)
    layer(f"nn.convolution.{name}", {"video": F("b 3 f h w")}, in_channels=3, out_channels=5)


def call_chunk(chunk, cache):
    return build("nn.convolution.CausalConv3d", in_channels=3, out_channels=5).forward_chunk(
        chunk, cache
    )


add(
    "nn.convolution.CausalConv3d.forward_chunk",
    call_chunk,
    chunk=F("b 3 f h w"),
    cache=F("b 3 2 h w"),
)
add(
    "nn.convolution.Pseudo3DConv.from_conv2d",
    lambda kernel_t: convolution.Pseudo3DConv.from_conv2d(
        torch.nn.Conv2d(3, 5, 3, padding=1), kernel_t
    ),
    kernel_t=ODD,
)
add("nn.convolution.inflate_kernel", weight=F("b c k k_2"), kernel_t=ODD, mode=C("center"))

add("nn.inflate.inflate", lambda style: inflate.inflate(image_unet(), style), style=C("modelscope"))
FORWARD = {
    "sample": F("b 4 f h w", b=2, f=3),
    "timestep": I("b", [10, 900], allows="fractions first_axis_of_1 no_first_axis"),
    "encoder_hidden_states": F("b l 6", b=2),
}
for style in ("video-ldm", "animatediff"):
    add(
        "nn.inflate.InflatedUNet.forward",
        lambda style=style, **kwargs: inflated(style)(**kwargs).sample,
        **FORWARD,
        temporal_scale=R(0.5),
        **{"frame_index": F("b f", b=2, f=3, scale=5)} if style == "video-ldm" else {},
        is_image=B("b f", [[False, False, True]] * 2),
    )
RESIDUALS = [(32, 8), (32, 8), (32, 4), (64, 4)]


def call_control(first, mid, **kwargs):
    down = [torch.ones(6, c, s, s) for c, s in RESIDUALS]
    residuals = {"down_block_additional_residuals": [first, *down[1:]]}
    return inflated()(**kwargs, **residuals, mid_block_additional_residual=mid).sample


add(
    "nn.inflate.InflatedUNet.forward", call_control,
    {"first": "down_block_additional_residuals", "mid": "mid_block_additional_residual"},
    **FORWARD, first=F("6 32 8 8"), mid=F("6 64 4 4", allows="None"),
)  # fmt: skip

layer("nn.positions.RelativePositionBias", {"num_frames": N(4, low=0)}, num_heads=2, max_distance=3)
add("nn.positions.RelativePositionBias", num_heads=N(2), max_distance=N(3, low=0))
REF = X(lambda: torch.zeros(1))
for name in ("rotary_angles", "sinusoidal_embedding"):
    even = N(6)
    add(f"nn.positions.{name}", positions=N(5, low=0), dim=even, ref=REF)
    add(f"nn.positions.{name}", positions=F("b f", scale=4), dim=even, ref=REF)
add(
    "nn.positions.apply_rotary_emb",
    x=F("*batch f d", batch=3),
    positions=F("*positions f", positions=3, scale=4),
)
add("nn.positions.coord_features", h=N(4), w=N(5), ref=REF)

SIZES = X(lambda: (3, 3, 3))
add("nn.profiling.receptive_field", kernel_sizes=SIZES, strides=X(lambda: (1, 2, 1)))
add(
    "nn.profiling.conv_flops",
    channels=X(lambda: (3, 5)), kernel_size=SIZES, output_size=SIZES, batch_size=N(2), groups=N(1),
)  # fmt: skip
add("nn.profiling.count_parameters", module=X(lambda: torch.nn.Linear(2, 3)))
layer("nn.temporal.TemporalConvBlock", {"video": video}, channels=8, norm_groups=4)
layer(
    "nn.temporal.TemporalTransformer", {"video": video},
    channels=8, num_heads=2, head_dim=4, norm_groups=4, max_frames=8,
)  # fmt: skip
layer(
    "nn.temporal.TemporalResBlock",
    {"video": F(VIDEO, **NARROW | {"c": 32}), "temb": F("b f d", b=2)},
    channels=32,
    temb_channels=6,
)
text = F("b l d", b=2)
layer(
    "nn.temporal.TextCrossAttentionBlock",
    {"video": video, "text": text, "frame_index": index}, **CROSS,
)  # fmt: skip
layer(
    "nn.temporal.TemporalTextBlock",
    {"video": video, "text": text, "frame_index": index},
    channels=8, head_dim=4, cross_attention_dim=6,
)  # fmt: skip
layer(
    "nn.temporal.FrameConditioningConv",
    {"video": video, "cond_channels": F("b 5 f h w", **NARROW)}, cond_channels=5, channels=8,
)  # fmt: skip
add(
    "nn.temporal.AlphaBlend.forward",
    lambda video: temporal.AlphaBlend(
        build("nn.temporal.TemporalConvBlock", channels=8, norm_groups=4)
    ).eval()(video),
    video=video,
)
for name, init in {
    "TemporalConvBlock": {"norm_groups": N(4)},
    "TemporalTransformer": {
        "num_heads": N(2),
        "head_dim": N(4),
        "norm_groups": N(4),
        "max_frames": N(8),
        "num_layers": N(1),
    },
    "TemporalResBlock": {"temb_channels": N(6)},
    "TextCrossAttentionBlock": {"cross_attention_dim": N(6), "head_dim": N(4)},
    "TemporalTextBlock": {
        "head_dim": N(4),
        "positions": C("sinusoidal"),
        "cross_attention_dim": N(6),
    },
    "FrameConditioningConv": {"cond_channels": N(5)},
}.items():
    add(f"nn.temporal.{name}", channels=N(32), **init)


@functools.cache
def temporal_vae():
    model = temporal_decoder.inflate_decoder(vae())
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


add("nn.temporal_decoder.inflate_decoder", vae=X(vae))
add(
    "nn.temporal_decoder.TemporalAutoencoder.encode",
    lambda video: temporal_vae().encode(video), video=F("b 3 f h w", b=2),
)  # fmt: skip
add(
    "nn.temporal_decoder.TemporalAutoencoder.decode",
    lambda **kwargs: temporal_vae().decode(**kwargs),
    latents=F("b 4 f h w", b=2), temporal_scale=R(0.5),
)  # fmt: skip
add("nn.texture.laplacian_band_std", video=F("b c f 16 16"))

UNET = {"block_out_channels": (8, 16), "attention_levels": (False, True), "head_dim": 4}
EXTRAS = {
    "temporal_positions": "rotary",
    "frame_embedding": True,
    "cond_channels": 2,
    "fps_embedding": True,
    "noise_aug_embedding": True,
}
add(
    "nn.unet.VideoUNet.forward",
    lambda **kwargs: build("nn.unet.VideoUNet", cross_attention_dim=6, **EXTRAS, **UNET)(**kwargs),
    sample=F("b 3 f h w", b=2), timestep=I("b", [10, 900], allows="fractions"),
    encoder_hidden_states=F("b l d", b=2), fps=F("b", value=[8.0, 4.0]),
    cond_channels=F("b 2 f h w", b=2), noise_aug_level=F("b", b=2, value=[0.1, 0.3]),
    is_image=B("b f", TRAILING), frame_index=F("b f", b=2, scale=5),
)  # fmt: skip
add(
    "nn.unet.VideoUNet",
    lambda **kwargs: unet.VideoUNet(**UNET | kwargs),
    in_channels=N(3), out_channels=N(3), cond_channels=N(2, low=0), layers_per_block=N(1),
    cross_attention_dim=N(6), head_dim=N(4), temporal_positions=C("relative"), patch_size=N(2),
    refiner_channels=N(8), frame_embedding=Y(), coord_embedding=Y(), fps_embedding=Y(),
)  # fmt: skip
add("nn.utils.fold_frames", video=F(VIDEO))
add("nn.utils.unfold_frames", frames=F("6 c h w"), num_frames=N(3))
add("nn.utils.num_trailing_images", is_image=B("b f", TRAILING), b=N(2), f=N(4))

add(
    "nn.video_resnet.video_resnet",
    lambda **kwargs: video_resnet.video_resnet(channels=(4, 4, 8, 8), **kwargs),
    kind=C("r3d"), num_classes=N(3), in_channels=N(3), stem_kernel=N(3),
)  # fmt: skip
add(
    "nn.video_resnet.VideoResNet.forward",
    lambda video: build(
        "nn.video_resnet.video_resnet", kind="r3d", num_classes=3, channels=(4, 4, 8, 8)
    )(video),
    video=F("b 3 f h w", h=16, w=16),
)
add(
    "nn.video_resnet.make_conv",
    conv_type=C("3d"), in_channels=N(3), out_channels=N(4), norm=torch.nn.BatchNorm3d,
    stride=X(lambda: (1, 2)), kernel_s=N(3),
)  # fmt: skip
add(
    "nn.video_resnet.BasicBlock",
    conv_type=C("3d"), in_channels=N(3), out_channels=N(4), stride=N(2), norm=torch.nn.BatchNorm3d,
)  # fmt: skip
layer(
    "nn.video_resnet.BasicBlock", {"x": F("b 3 f h w")},
    conv_type="3d", in_channels=3, out_channels=4, stride=2, norm=torch.nn.BatchNorm3d,
)  # fmt: skip
