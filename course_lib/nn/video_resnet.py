"""Small video classifiers that differ only in which of their convolutions extend over time.

| kind            | stem and stages                                                  | Tran et al. |
|-----------------|------------------------------------------------------------------|-------------|
| f-r2d           | 2D per frame, averaged over frames: blind to their order         | f-R2D       |
| r2d             | 2D; the frames are channels of the first convolution             | R2D         |
| mc3             | 3D in the stem and the first stage, 2D per frame after           | MC3         |
| rmc3            | 2D per frame in the stem and the first stage, 3D after           | rMC3        |
| r3d             | 3D everywhere                                                    | R3D         |
| r2plus1d        | (2+1)D everywhere, each with the parameters of its 3D form       | R(2+1)D     |
| r2plus1d_narrow | 3D in the stem, (2+1)D after, with as many midplanes as outputs  | ours        |

Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition", section 3
and figure 1. torchvision's VideoResNet has fixed channels (64 to 512) and BatchNorm3d; this is the
same architecture, and r3d and mc3 load its weights. Its r2plus1d_18 computes the midplanes once for
both convolutions of a block (6 % fewer parameters than R3D); here each convolution has its own.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.convolution import Conv3d, R2Plus1DConv
from course_lib.nn.utils import check_sizes
from course_lib.validation import check_float

Kind = Literal["f-r2d", "r2d", "mc3", "rmc3", "r3d", "r2plus1d", "r2plus1d_narrow"]
Norm = Callable[[int], nn.Module]

# The convolutions of the stem and of each of the four stages
STAGE_TYPES = {
    "f-r2d": ("2d",) * 5,
    "r2d": ("2d",) * 5,
    "mc3": ("3d", "3d", "2d", "2d", "2d"),
    "rmc3": ("2d", "2d", "3d", "3d", "3d"),
    "r3d": ("3d",) * 5,
    "r2plus1d": ("2+1d",) * 5,
    "r2plus1d_narrow": ("3d", *("narrow 2+1d",) * 4),
}


def make_conv(
    conv_type: str,
    in_channels: int,
    out_channels: int,
    norm: Norm,
    stride: tuple[int, int] = (1, 1),
    kernel_s: int = 3,
) -> nn.Module:
    """One convolution without bias, since a norm follows.

    Args:
        conv_type: "2d" (1 x d x d), "3d" (3 x d x d), "2+1d" or "narrow 2+1d".
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm: norm of a (2+1)D convolution, from its number of channels.
        stride: (frames, pixels); "2d" keeps all frames.
        kernel_s: kernel size d in pixels.
    """
    if conv_type in ("2+1d", "narrow 2+1d"):
        midplanes = out_channels if conv_type == "narrow 2+1d" else None
        return R2Plus1DConv(
            in_channels, out_channels, 3, kernel_s, stride=stride, midplanes=midplanes, norm=norm
        )
    kernel_t, stride_t = (1, 1) if conv_type == "2d" else (3, stride[0])
    kernel_size, strides = (kernel_t, kernel_s, kernel_s), (stride_t, stride[1], stride[1])
    return Conv3d(in_channels, out_channels, kernel_size, stride=strides, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016, section 3.3).

    Args:
        conv_type: see `make_conv`.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution, in frames and pixels.
        norm: makes a norm from a number of channels.
    """

    def __init__(
        self, conv_type: str, in_channels: int, out_channels: int, stride: int, norm: Norm
    ):
        super().__init__()
        first = make_conv(conv_type, in_channels, out_channels, norm, (stride, stride))
        second = make_conv(conv_type, out_channels, out_channels, norm)
        self.conv1 = nn.Sequential(first, norm(out_channels), nn.ReLU())
        self.conv2 = nn.Sequential(second, norm(out_channels))
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            strides = (1 if conv_type == "2d" else stride, stride, stride)
            shortcut = Conv3d(in_channels, out_channels, 1, stride=strides, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(out_channels))

    def forward(
        self, x: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class VideoResNet(nn.Module):
    """Stem, four stages of basic blocks, mean over frames and pixels, linear layer.

    All stages but the first halve frames and pixels. Made by `video_resnet`, whose arguments it
    takes.
    """

    def __init__(
        self,
        stage_types: Sequence[str],
        num_classes: int,
        channels: Sequence[int],
        blocks_per_stage: Sequence[int],
        in_channels: int,
        stem_kernel: int,
        stem_stride: tuple[int, int],
        norm: Norm,
        folded_frames: int | None,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.folded_frames = folded_frames
        in_planes = in_channels * (folded_frames or 1)
        stem = make_conv(stage_types[0], in_planes, channels[0], norm, stem_stride, stem_kernel)
        self.stem = nn.Sequential(stem, norm(channels[0]), nn.ReLU())
        in_planes, stages = channels[0], []
        for k, (planes, num_blocks) in enumerate(zip(channels, blocks_per_stage, strict=True)):
            conv_type = stage_types[k + 1]
            first = BasicBlock(conv_type, in_planes, planes, 1 if k == 0 else 2, norm)
            rest = [BasicBlock(conv_type, planes, planes, 1, norm) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            in_planes = planes
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(in_planes, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, video: Tensor) -> Float[Tensor, "b d"]:
        """The input of the last layer: `channels[-1]` numbers per clip, means over f, h and w."""
        check_float("video", video, "(b, c, f, h, w)")
        if video.shape[1] != self.in_channels:
            raise ValueError(
                f"video: expected {self.in_channels} channels, got shape {tuple(video.shape)}"
            )
        if self.folded_frames is not None:
            if video.shape[2] != self.folded_frames:
                raise ValueError(
                    f"video: expected {self.folded_frames} frames, the length that r2d was built "
                    f"for, got {video.shape[2]}"
                )
            video = rearrange(video, "b c f h w -> b (f c) 1 h w")
        x = self.stem(video)  # b channels[0] f h/2 w/2 with the default stem
        x = self.layer1(x)
        x = self.layer2(x)  # from here on each stage halves h and w, and f unless it is 2D
        x = self.layer3(x)
        x = self.layer4(x)  # b channels[3] f/8 h/16 w/16
        return x.mean(dim=(2, 3, 4))

    def forward(self, video: Tensor) -> Float[Tensor, "b classes"]:
        return self.fc(self.features(video))


def video_resnet(
    kind: Kind,
    num_classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 128),
    blocks_per_stage: Sequence[int] = (1, 1, 1, 1),
    in_channels: int = 3,
    num_frames: int | None = None,
    stem_kernel: int = 3,
    stem_stride: tuple[int, int] = (1, 2),
    norm: Norm = nn.BatchNorm3d,
) -> VideoResNet:
    """A randomly initialised video classifier of one of the kinds above.

    Args:
        kind: architecture.
        num_classes: number of outputs.
        channels: of the four stages; (64, 128, 256, 512) in the paper.
        blocks_per_stage: of the four stages; (2, 2, 2, 2) in the paper's 18-layer networks.
        in_channels: channels of the video.
        num_frames: clip length, for "r2d" only; the other kinds take any length.
        stem_kernel: pixels; 7 in the paper, for frames of 112 x 112.
        stem_stride: (frames, pixels).
        norm: makes a norm from a number of channels; with `nn.convolution.group_norm` the result
            of a clip does not depend on its batch.

    Raises:
        ValueError: for an unknown kind, not four channels and blocks, `num_frames` missing or
            superfluous, or numbers that are not integers above 0.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")
    if len(channels) != 4 or len(blocks_per_stage) != 4:
        raise ValueError(
            f"channels, blocks_per_stage: expected 4 numbers each, got {channels} and "
            f"{blocks_per_stage}"
        )
    if (kind == "r2d") != (num_frames is not None):
        expected = "the clip length for 'r2d'" if kind == "r2d" else f"None for {kind!r}"
        raise ValueError(f"num_frames: expected {expected}, got {num_frames}")
    check_sizes(channels=channels, blocks_per_stage=blocks_per_stage, stem_stride=stem_stride)
    check_sizes(num_classes=num_classes, in_channels=in_channels, num_frames=num_frames)
    return VideoResNet(
        STAGE_TYPES[kind],
        num_classes,
        channels,
        blocks_per_stage,
        in_channels,
        stem_kernel,
        stem_stride,
        norm,
        num_frames,
    )
