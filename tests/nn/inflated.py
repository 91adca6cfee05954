"""Image U-Nets of the shapes that are inflated, small and in float64, for several test files."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn

ENDS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SHAPES = {
    # Convolutions around transformers, as many heads on every level
    "SD 1": {"attention_head_dim": 4},
    # Linear layers around them, heads of one width
    "SD 2": {
        "attention_head_dim": (4, 8),
        "use_linear_projection": True,
        "cross_attention_dim": 40,
    },
    # Transformers of several blocks, first a level without, and a second kind of text
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
    # As mini-sd: attention on all levels; a class beside the text
    "classes": {
        "attention_head_dim": (2, 4),
        "num_class_embeds": 3,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
}


def image_unet(shape, seed=0, **changes):
    torch.manual_seed(seed)
    small = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "cross_attention_dim": 24,
    }
    return UNet2DConditionModel(**small | ENDS | SHAPES[shape] | changes).double().eval()


def inputs(shape, b=2, f=4, size=8, seed=0):
    """What a video U-Net of this shape is given, by name."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*axes):
        return torch.randn(*axes, dtype=torch.float64, generator=generator)

    given = {
        "sample": normal(b, 4, f, size, size),
        "timestep": torch.tensor([10, 500, 900])[:b],
        "encoder_hidden_states": normal(b, 7, SHAPES[shape].get("cross_attention_dim", 24)),
    }
    if shape == "SDXL":
        given["added_cond_kwargs"] = {"text_embeds": normal(b, 12), "time_ids": normal(b, 6)}
    if shape == "classes":
        given["class_labels"] = torch.tensor([0, 2, 1])[:b]
    return given


def frame_by_frame(unet, given):
    """The image model's answers."""
    sample, rest = (
        given["sample"],
        {name: value for name, value in given.items() if name != "sample"},
    )
    with torch.no_grad():
        return torch.stack(
            [unet(sample[:, :, k], **rest).sample for k in range(sample.shape[2])], dim=2
        )


def awake(unet, seed=1):
    """The inflated U-Net, its layers over time no longer the identity."""
    torch.manual_seed(seed)
    for parameter in unet.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    return unet
