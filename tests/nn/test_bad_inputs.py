"""Arguments that would give a wrong result without a message are refused, and named."""

import pytest
import torch

from course_lib.nn import convolution as conv
from course_lib.nn import profiling
from course_lib.nn.attention import (
    CrossAttention,
    SpatialAttention,
    TemporalAttention,
    attention,
    joint_training_mask,
    mask_to_bias,
)
from course_lib.nn.classifier import VideoClassifier
from course_lib.nn.inflate import inflate
from course_lib.nn.positions import RelativePositionBias, coord_features, sinusoidal_embedding
from course_lib.nn.temporal import TemporalTransformer
from course_lib.nn.temporal_decoder import TemporalAutoencoder
from course_lib.nn.texture import laplacian_band_std
from course_lib.nn.unet import VideoUNet
from course_lib.nn.utils import fold_frames, num_trailing_images, unfold_frames
from course_lib.nn.video_resnet import video_resnet
from tests.nn.inflated import STYLE_KWARGS, image_unet, inputs, make

NAN = float("nan")
SMALL = {"block_out_channels": (8, 8), "attention_levels": (False, True), "head_dim": 8}
OPTIONS = {"fps_embedding": True, "noise_aug_embedding": True, "frame_embedding": True}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("in_channels", 0),
        ("out_channels", 0),
        ("cond_channels", -1),
        ("layers_per_block", 0),
        ("cross_attention_dim", 0),
        ("head_dim", 0),
        ("patch_size", 0),
        ("block_out_channels", (8, 0)),
    ],
)
def test_sizes_of_a_video_unet(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least"):
        VideoUNet(**SMALL | {name: value})
    with pytest.raises(ValueError, match="block_out_channels: expected a level, got none"):
        VideoUNet(block_out_channels=(), attention_levels=())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample", torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8)),
        ("sample", torch.zeros(3, 2, 8, 8)),
        ("sample", torch.zeros(2, 3, 0, 8, 8)),
        ("timestep", torch.tensor([1])),
        ("timestep", torch.tensor(1)),
        ("timestep", torch.tensor([[1], [2]])),
        ("timestep", torch.tensor([True, False])),
        ("fps", torch.tensor([8.0])),
        ("fps", torch.tensor([[8.0], [8.0]])),
        ("noise_aug_level", torch.tensor([1, 2, 3])),
        ("frame_index", torch.zeros(2, 1)),
        ("frame_index", torch.zeros(2)),
        ("is_image", torch.zeros(2, 2, dtype=torch.long)),
        ("is_image", torch.zeros(1, 2, dtype=torch.bool)),
    ],
)
def test_arguments_of_a_video_unet(name, value):
    unet = VideoUNet(**SMALL, **OPTIONS)
    kwargs = {"sample": torch.zeros(2, 3, 2, 8, 8), "timestep": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=f"{name}: expected"):
        unet(**kwargs | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample", torch.zeros(2, 4, 4, 8, 8, dtype=torch.long)),
        ("sample", torch.zeros(4, 4, 8, 8)),
        ("sample", torch.zeros(2, 4, 0, 8, 8)),
        ("encoder_hidden_states", torch.zeros(2, 7, 24, dtype=torch.long)),
        ("encoder_hidden_states", torch.zeros(1, 7, 24)),
        ("encoder_hidden_states", torch.zeros(7, 24)),
        ("timestep", NAN),
        ("timestep", torch.tensor([1, 2, 3])),
        ("timestep", torch.tensor([[1], [2]])),
        ("timestep", torch.tensor([True, False])),
        ("temporal_scale", NAN),
        ("temporal_scale", float("inf")),
        ("class_labels", torch.tensor([1])),
        ("class_labels", torch.tensor(1)),
        ("frame_index", torch.zeros(2, 4, dtype=torch.bool)),
        ("frame_index", torch.zeros(4)),
        ("is_image", torch.zeros(2, 4, dtype=torch.uint8)),
        ("is_image", torch.zeros(4, dtype=torch.bool)),
    ],
)
def test_arguments_of_an_inflated_unet(name, value):
    unet, kwargs = make("video-ldm", "classes"), inputs("classes")
    with pytest.raises(ValueError, match=f"{name}: (expected|must mark)"):
        unet(**kwargs | {name: value})


@pytest.mark.parametrize(
    ("style", "name", "value"),
    [
        ("video-ldm", "head_dim", 0),
        ("video-ldm", "temporal_cross_attention_dim", 0),
        ("video-ldm", "cond_channels", -1),
        ("modelscope", "head_dim", 0),
        ("animatediff", "num_heads", 0),
        ("animatediff", "num_frames", 0),
        ("animatediff", "num_layers", 0),
    ],
)
def test_sizes_of_temporal_layers(style, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        inflate(image_unet("SD 1"), style, **STYLE_KWARGS.get(style, {}) | {name: value})


IMAGE, VIDEO = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 3, 4, 4)
BOOL = torch.ones(2, 3, 3, dtype=torch.bool)
CASES = {
    "spatial attention": ("video", lambda: SpatialAttention(8, 8)(IMAGE)),
    "temporal attention": ("video", lambda: TemporalAttention(8, 8)(IMAGE)),
    "its weights": ("video", lambda: TemporalAttention(8, 8).weights(IMAGE)),
    "one mask": ("mask", lambda: TemporalAttention(8, 8)(VIDEO, BOOL[:1])),
    "integer mask": ("mask", lambda: TemporalAttention(8, 8)(VIDEO, BOOL.long())),
    "one index": (
        "frame_index",
        lambda: TemporalAttention(8, 8, "rotary")(VIDEO, None, torch.zeros(1, 3)),
    ),
    "cross-attention": ("video", lambda: CrossAttention(8, 6, 8)(IMAGE, torch.zeros(2, 5, 6))),
    "one text": ("text", lambda: CrossAttention(8, 6, 8)(VIDEO, torch.zeros(1, 5, 6))),
    "no heads": ("head_dim", lambda: SpatialAttention(8, 0)),
    "odd heads": ("head_dim", lambda: TemporalAttention(9, 3, "rotary")),
    "odd channels": ("channels", lambda: TemporalAttention(9, 3, "sinusoidal")),
    "mask as bias": ("bias", lambda: attention(*[torch.zeros(2, 1, 3, 4)] * 3, BOOL[0])),
    "integer images": ("is_image", lambda: joint_training_mask(torch.zeros(2, 3).long())),
    "mask of integers": ("mask", lambda: mask_to_bias(BOOL.long(), torch.float32)),
    "trailing integers": ("is_image", lambda: num_trailing_images(BOOL[0].long(), 3, 3)),
    "fold an image": ("video", lambda: fold_frames(IMAGE)),
    "unfold": ("num_frames", lambda: unfold_frames(IMAGE, 3)),
    "unfold 0": ("num_frames", lambda: unfold_frames(IMAGE, 0)),
    "distance": ("max_distance", lambda: RelativePositionBias(2, -1)),
    "odd embedding": ("dim", lambda: sinusoidal_embedding(3, 5, VIDEO)),
    "no rows": ("h", lambda: coord_features(0, 3, VIDEO)),
    "2d of an image": ("video", lambda: conv.FrameConv2d(8, 8)(IMAGE)),
    "3d of an image": ("video", lambda: conv.Conv3d(8, 8)(IMAGE)),
    "3d of integers": ("video", lambda: conv.Conv3d(8, 8)(VIDEO.long())),
    "causal of an image": ("chunk", lambda: conv.CausalConv3d(8, 8)(IMAGE)),
    "causal stride": ("stride", lambda: conv.CausalConv3d(8, 8, stride=0)),
    "stride": ("stride", lambda: conv.output_length(4, 3, 0)),
    "midplanes": ("in_channels", lambda: conv.r2plus1d_midplanes(0, 3)),
    "3D kernel": ("weight", lambda: conv.inflate_kernel(torch.zeros(1, 1, 3, 3, 3), 3)),
    "receptive field": ("strides", lambda: profiling.receptive_field([3, 3], [1, 0])),
    "flops": ("batch_size", lambda: profiling.conv_flops((1, 1), (3, 3), (4, 4), 0)),
    "layers": ("num_layers", lambda: TemporalTransformer(32, 1, 8, num_layers=0)),
    "frames": ("max_frames", lambda: TemporalTransformer(32, 1, 8, max_frames=0)),
    "texture": ("video", lambda: laplacian_band_std(torch.zeros(2, 3, 8, 8))),
    "texture of integers": ("video", lambda: laplacian_band_std(VIDEO.long())),
    "blocks": (
        "blocks_per_stage",
        lambda: video_resnet("r3d", 2, blocks_per_stage=(1, 0, 1, 1)),
    ),
    "channels": ("channels", lambda: video_resnet("r3d", 2, channels=(8, 8, 0, 8))),
    "classes": ("num_classes", lambda: video_resnet("r3d", 0)),
    "class of a head": (r"heads\['a'\]", lambda: VideoClassifier(heads={"a": 0})),
    "size": ("size", lambda: VideoClassifier(heads={"a": 2}, size=0)),
    "texture weight": (
        "texture_weight",
        lambda: VideoClassifier(heads={"a": 2}, texture_weight=NAN),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_and_helpers(name):
    argument, call = CASES[name]
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        call()


def test_arguments_of_a_classifier_and_a_resnet():
    classifier = VideoClassifier(heads={"a": 2}, channels=(8, 8, 8, 8), size=16)
    resnet = video_resnet("r3d", 2, channels=(8, 8, 8, 8))
    for call in (classifier, classifier.features, resnet, resnet.features):
        for wrong in (torch.zeros(3, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16).byte()):
            with pytest.raises(ValueError, match="video: expected"):
                call(wrong)


def test_arguments_of_a_temporal_autoencoder():
    vae = TemporalAutoencoder(
        {
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        }
    )
    latents = torch.zeros(1, 4, 2, 4, 4)
    for wrong in (latents[0], latents.long()):
        with pytest.raises(ValueError, match="latents: expected"):
            vae.decode(wrong)
    for wrong in (torch.zeros(3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 8).byte()):
        with pytest.raises(ValueError, match="video: expected"):
            vae.encode(wrong)
    with pytest.raises(ValueError, match="temporal_scale: expected a finite number, got nan"):
        vae.decode(latents, NAN)
