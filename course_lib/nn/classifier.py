"""A video classifier that travels: one trunk, any number of named heads, saved and loaded like any diffusers model.

The judge and the feature nets are of this class. A picture is a clip of one frame.
"""

from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.convolution import group_norm
from course_lib.nn.texture import texture
from course_lib.nn.video_resnet import video_resnet


class VideoClassifier(ModelMixin, ConfigMixin):
    """A residual video net with GroupNorm and one linear layer per head on its pooled features.

    kind, widths, layers, stem_kernel, stem_stride: the trunk, see `video_resnet`.
    heads: from a head's name to its number of outputs.
    size: pixels; clips of another size are resized to it first, so that all sizes are seen by the same eyes.
    texture: by how much the nine numbers of `nn.texture` are multiplied that `features` appends; 0 for none of them.
    temperatures: per head, what its outputs are divided by; 1 until something fits them.
    Raises ValueError for no heads and whatever `video_resnet` refuses.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "lean",
        heads: Mapping[str, int] | None = None,
        widths: Sequence[int] = (16, 32, 64, 128),
        layers: Sequence[int] = (1, 1, 1, 1),
        stem_kernel: int = 3,
        stem_stride: Sequence[int] = (1, 2),
        size: int = 64,
        texture: float = 0.0,
    ):
        super().__init__()
        if not heads:
            raise ValueError(
                f"heads: expected at least one name with its number of outputs, got {heads}"
            )
        stem = {"stem_kernel": stem_kernel, "stem_stride": tuple(stem_stride)}
        self.trunk = video_resnet(kind, 1, widths=widths, layers=layers, norm=group_norm, **stem)
        self.trunk.fc = nn.Identity()
        self.classify = nn.ModuleDict(
            {name: nn.Linear(widths[-1], outputs) for name, outputs in heads.items()}
        )
        self.register_buffer("temperatures", torch.ones(len(heads)))
        # by alphabet: config.json sorts its keys, so the order of `heads` does not survive a folder
        self.slots = {name: slot for slot, name in enumerate(sorted(heads))}

    def temperature(self, head: str) -> Float[Tensor, ""]:
        """What the outputs of a head are divided by; a view, to be changed in place."""
        return self.temperatures[self.slots[head]]

    def features(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d"]:
        """One vector per clip: what the heads see, `widths[-1]` wide, and the texture if there is a weight for it.

        video: in [-1, 1], any frames, any size.
        """
        video = self._resized(video)
        learned, weight = self.trunk.features(video), self.config.texture
        return torch.cat([learned, weight * texture(video)], dim=1) if weight else learned

    def _resized(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h_new w_new"]:
        b, c, f, h, w = video.shape
        size = self.config.size
        if (h, w) == (size, size):
            return video
        frames = video.transpose(1, 2).flatten(0, 1)  # (b f) c h w
        # antialias matters when shrinking; without it, thin outlines flicker
        frames = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
        return frames.unflatten(0, (b, f)).transpose(1, 2)

    def forward(self, video: Float[Tensor, "b c f h w"]) -> dict[str, Float[Tensor, "b outputs"]]:
        """Calibrated logits by head.

        video: in [-1, 1], any frames, any size.
        """
        x = self.trunk.features(self._resized(video))
        return {name: head(x) / self.temperature(name) for name, head in self.classify.items()}
