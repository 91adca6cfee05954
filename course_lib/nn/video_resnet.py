"""Small video classifiers that differ only in where their convolutions see time.

| kind     | stem and groups of blocks                                                 | Tran et al. |
|----------|---------------------------------------------------------------------------|-------------|
| f-r2d    | 2D per frame, frames averaged at the end: blind to their order            | f-R2D       |
| r2d      | 2D; the frames are channels of the first convolution, which ends time     | R2D         |
| mc3      | 3D in the stem and the first group, 2D per frame after                    | MC3         |
| rmc3     | 2D per frame in the stem and the first group, 3D after                    | rMC3        |
| r3d      | 3D everywhere                                                             | R3D         |
| r2plus1d | (2+1)D everywhere, each with the parameters of its 3D counterpart         | R(2+1)D     |
| lean     | 3D in the stem, (2+1)D after, no wider between its halves than at its end | here        |

Source: Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition", section 3 and
figure 1. torchvision's VideoResNet fixes the widths at 64 to 512 and the norm at BatchNorm3d, so this is its
architecture written anew: r3d and mc3 load its weights as they are. Its r2plus1d_18 computes the middle width
once for both convolutions of a block (6 % fewer parameters than R3D); here each convolution has its own.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.convolution import Conv3d, R2Plus1DConv

Kind = Literal["f-r2d", "r2d", "mc3", "rmc3", "r3d", "r2plus1d", "lean"]
Norm = Callable[[int], nn.Module]

# How the stem and each of the four groups of blocks convolve
LAYOUTS = {
    "f-r2d": ("2d", "2d", "2d", "2d", "2d"),
    "r2d": ("2d", "2d", "2d", "2d", "2d"),
    "mc3": ("3d", "3d", "2d", "2d", "2d"),
    "rmc3": ("2d", "2d", "3d", "3d", "3d"),
    "r3d": ("3d", "3d", "3d", "3d", "3d"),
    "r2plus1d": ("2+1d", "2+1d", "2+1d", "2+1d", "2+1d"),
    "lean": ("3d", "lean", "lean", "lean", "lean"),
}


def convolution(
    how: str,
    in_channels: int,
    out_channels: int,
    norm: Norm,
    stride: tuple[int, int] = (1, 1),
    space: int = 3,
) -> nn.Module:
    """One convolution without bias (a norm follows): "2d" (1 x d x d), "3d" (3 x d x d), "2+1d" or "lean".

    stride: (frames, pixels); "2d" leaves the frames alone. space: d, pixels.
    """
    frames, pixels = stride
    if how in ("2+1d", "lean"):
        middle = out_channels if how == "lean" else None
        return R2Plus1DConv(
            in_channels, out_channels, 3, space, stride=stride, middle=middle, norm=norm
        )
    if how == "2d":
        kernel, stride = (1, space, space), (1, pixels, pixels)
    else:
        kernel, stride = (3, space, space), (frames, pixels, pixels)
    return Conv3d(in_channels, out_channels, kernel, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; the first may halve frames and pixels. He et al. 2016, section 3.3."""

    def __init__(self, how: str, in_channels: int, out_channels: int, stride: int, norm: Norm):
        super().__init__()
        first = convolution(how, in_channels, out_channels, norm, (stride, stride))
        second = convolution(how, out_channels, out_channels, norm)
        self.conv1 = nn.Sequential(first, norm(out_channels), nn.ReLU())
        self.conv2 = nn.Sequential(second, norm(out_channels))
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            strides = (1 if how == "2d" else stride, stride, stride)
            shortcut = Conv3d(in_channels, out_channels, 1, stride=strides, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(out_channels))

    def forward(
        self, x: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class VideoResNet(nn.Module):
    """Stem, four groups of basic blocks (all but the first halve frames and pixels), mean, linear layer.

    The arguments are those of `video_resnet`, which is what to call.
    """

    def __init__(
        self,
        layout: Sequence[str],
        num_classes: int,
        widths: Sequence[int],
        layers: Sequence[int],
        in_channels: int,
        stem_kernel: int,
        stem_stride: tuple[int, int],
        norm: Norm,
        folded_frames: int | None,
    ):
        super().__init__()
        self.in_channels, self.folded_frames = in_channels, folded_frames
        channels = in_channels if folded_frames is None else in_channels * folded_frames
        stem = convolution(layout[0], channels, widths[0], norm, stem_stride, stem_kernel)
        self.stem = nn.Sequential(stem, norm(widths[0]), nn.ReLU())
        before, groups = widths[0], []
        for group, (width, blocks) in enumerate(zip(widths, layers, strict=True)):
            how, stride = layout[group + 1], 1 if group == 0 else 2
            first = BasicBlock(how, before, width, stride, norm)
            rest = [BasicBlock(how, width, width, 1, norm) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(first, *rest))
            before = width
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.fc = nn.Linear(before, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d"]:
        """What the last linear layer sees: one vector per clip, `widths[-1]` wide, averaged over f, h, w."""
        if video.shape[1] != self.in_channels:
            raise ValueError(
                f"video: expected {self.in_channels} channels, got shape {tuple(video.shape)}"
            )
        if self.folded_frames is not None:
            if video.shape[2] != self.folded_frames:
                raise ValueError(
                    f"video: r2d was built for {self.folded_frames} frames, got {video.shape[2]}"
                )
            video = rearrange(video, "b c f h w -> b (f c) 1 h w")
        x = self.stem(video)  # (b, widths[0], f, h/2, w/2) with the usual stem
        x = self.layer1(x)
        x = self.layer2(x)  # from here on each group halves h and w, and f where it sees time
        x = self.layer3(x)
        x = self.layer4(x)  # (b, widths[3], f/8 or f, h/16, w/16) with the usual stem
        return x.mean(dim=(2, 3, 4))

    def forward(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b classes"]:
        return self.fc(self.features(video))


def video_resnet(
    kind: Kind,
    num_classes: int,
    *,
    widths: Sequence[int] = (16, 32, 64, 128),
    layers: Sequence[int] = (1, 1, 1, 1),
    in_channels: int = 3,
    frames: int | None = None,
    stem_kernel: int = 3,
    stem_stride: tuple[int, int] = (1, 2),
    norm: Norm = nn.BatchNorm3d,
) -> VideoResNet:
    """A video classifier of one of the kinds above, randomly initialised: (b, c, f, h, w) to (b, classes).

    widths, layers: channels and blocks of each of the four groups; (64, 128, 256, 512) and (2, 2, 2, 2) make
    the 18-layer nets of the paper. frames: clip length, for "r2d" only; the other kinds take any length.
    stem_kernel: pixels, 7 in the paper for 112 x 112. stem_stride: (frames, pixels);
    the stem halves the picture unless told otherwise. norm: makes a layer from a
    number of channels; `group_norm` (nn.convolution) makes a clip's result independent of its batch.
    Raises ValueError for an unknown kind, not four widths and layers, or `frames` missing or superfluous.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")
    if len(widths) != 4 or len(layers) != 4:
        raise ValueError(f"widths, layers: expected 4 numbers each, got {widths} and {layers}")
    if (kind == "r2d") != (frames is not None):
        need = "the clip length for 'r2d'" if kind == "r2d" else f"None for {kind!r}"
        raise ValueError(f"frames: expected {need}, got {frames}")
    return VideoResNet(
        LAYOUTS[kind],
        num_classes,
        widths,
        layers,
        in_channels,
        stem_kernel,
        stem_stride,
        norm,
        frames,
    )
