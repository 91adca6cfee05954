"""Small float64 image U-Nets of the configurations that are inflated, for several test files."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from course_lib.nn.inflate import inflate

BLOCK_TYPES = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CONFIGS = {
    # Convolutions around transformers, the same number of heads on every level
    "SD 1": {"attention_head_dim": 4},
    # Linear layers around transformers, heads of one dimension
    "SD 2": {
        "attention_head_dim": (4, 8),
        "use_linear_projection": True,
        "cross_attention_dim": 40,
    },
    # Transformers of several blocks, a first level without, and a second text embedding
    "SDXL": {
        "attention_head_dim": (4, 8),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    },
    # Like mini-sd: attention on all levels; class and text conditioning
    "classes": {
        "attention_head_dim": (2, 4),
        "num_class_embeds": 3,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
}
STYLE_KWARGS = {"video-ldm": {"head_dim": 8}, "animatediff": {"num_heads": 4, "num_frames": 8}}


def image_unet(name, seed=0, **changes):
    torch.manual_seed(seed)
    small = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "cross_attention_dim": 24,
    }
    return UNet2DConditionModel(**small | BLOCK_TYPES | CONFIGS[name] | changes).double().eval()


def inputs(name, b=2, f=4, size=8, seed=0):
    """Arguments of `forward` for a video U-Net of this configuration."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    kwargs = {
        "sample": randn(b, 4, f, size, size),
        "timestep": torch.tensor([10, 500, 900])[:b],
        "encoder_hidden_states": randn(b, 7, CONFIGS[name].get("cross_attention_dim", 24)),
    }
    if name == "SDXL":
        kwargs["added_cond_kwargs"] = {"text_embeds": randn(b, 12), "time_ids": randn(b, 6)}
    if name == "classes":
        kwargs["class_labels"] = torch.tensor([0, 2, 1])[:b]
    return kwargs


def apply_per_frame(unet, kwargs):
    """The image model's predictions, frame by frame."""
    sample = kwargs["sample"]
    cond = {name: value for name, value in kwargs.items() if name != "sample"}
    with torch.no_grad():
        frames = [unet(frame, **cond).sample for frame in sample.unbind(2)]
    return torch.stack(frames, dim=2)


def randomize_temporal(unet, seed=1):
    """The inflated U-Net with random temporal layers, which are the identity no longer."""
    torch.manual_seed(seed)
    for parameter in unet.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    return unet


def make(style, config, **changes):
    """An inflated U-Net whose temporal layers are the identity."""
    return inflate(image_unet(config, **changes), style, **STYLE_KWARGS.get(style, {}))


def predict(unet, kwargs, **more):
    with torch.no_grad():
        return unet(**kwargs | more).sample


def assert_same(out, expected, atol=1e-12):
    torch.testing.assert_close(out, expected, rtol=0, atol=atol)
