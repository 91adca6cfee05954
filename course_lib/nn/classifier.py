"""A video classifier with several heads, saved and loaded like any diffusers model.

The judge and the feature networks are of this class. An image is a clip of one frame.
"""

from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.convolution import group_norm
from course_lib.nn.texture import laplacian_band_std
from course_lib.nn.utils import check_sizes, fold_frames, unfold_frames
from course_lib.nn.video_resnet import video_resnet
from course_lib.validation import check_float, check_number


class VideoClassifier(ModelMixin, ConfigMixin):
    """A residual video network with GroupNorm and a linear layer per head on its pooled features.

    Attributes:
        head_index: from a head's name to its index in `temperatures`.

    Args:
        kind: architecture of the trunk; it, `channels`, `blocks_per_stage`, `stem_kernel` and
            `stem_stride` are arguments of `video_resnet`.
        heads: from a head's name to its number of classes.
        size: frame size in pixels; videos of another size are resized to it.
        texture_weight: factor of the texture descriptor (`nn.texture`) that `features` appends; 0
            for no descriptor.

    Raises:
        ValueError: for no heads, and see `video_resnet`.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "r2plus1d_narrow",
        heads: Mapping[str, int] | None = None,
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks_per_stage: Sequence[int] = (1, 1, 1, 1),
        stem_kernel: int = 3,
        stem_stride: Sequence[int] = (1, 2),
        size: int = 64,
        texture_weight: float = 0.0,
    ):
        super().__init__()
        if not heads:
            raise ValueError(f"heads: expected at least one name and number, got {heads}")
        check_sizes(size=size, **{f"heads[{name!r}]": number for name, number in heads.items()})
        check_number("texture_weight", texture_weight)
        self.trunk = video_resnet(
            kind,
            1,
            channels=channels,
            blocks_per_stage=blocks_per_stage,
            stem_kernel=stem_kernel,
            stem_stride=tuple(stem_stride),
            norm=group_norm,
        )
        self.trunk.fc = nn.Identity()
        self.head_layers = nn.ModuleDict(
            {name: nn.Linear(channels[-1], num_classes) for name, num_classes in heads.items()}
        )
        self.register_buffer("temperatures", torch.ones(len(heads)))
        # Alphabetical: config.json sorts its keys, so the order of `heads` is not stored
        self.head_index = {name: index for index, name in enumerate(sorted(heads))}

    def temperature(self, head: str) -> Float[Tensor, ""]:
        """The calibration temperature of a head, as a view that can be changed in place."""
        return self.temperatures[self.head_index[head]]

    def features(self, video: Tensor) -> Float[Tensor, "b d"]:
        """The input of the heads and, if `texture_weight` is not 0, the weighted texture.

        Args:
            video: (b, c, f, h, w) in [-1, 1], of any length and size.
        """
        video = self._resize(video)
        features = self.trunk.features(video)
        weight = self.config.texture_weight
        if weight == 0:
            return features
        return torch.cat([features, weight * laplacian_band_std(video)], dim=1)

    def _resize(self, video: Tensor) -> Float[Tensor, "b c f h_new w_new"]:
        check_float("video", video, "(b, c, f, h, w)")
        size = (self.config.size,) * 2
        if video.shape[3:] == size:
            return video
        # antialias matters for smaller sizes: without it, thin outlines flicker
        frames = F.interpolate(fold_frames(video), size, mode="bilinear", antialias=True)
        return unfold_frames(frames, video.shape[2])

    def forward(self, video: Tensor) -> dict[str, Float[Tensor, "b classes"]]:
        """Calibrated logits by head.

        Args:
            video: (b, c, f, h, w) in [-1, 1], of any length and size.
        """
        x = self.trunk.features(self._resize(video))
        return {name: layer(x) / self.temperature(name) for name, layer in self.head_layers.items()}
