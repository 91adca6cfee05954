"""Features of real and generated videos, taken once and kept: what every distance between distributions starts from.

A feature net is any callable from videos (b, c, f, h, w) to (b, d), or through `frame_features` an image net. FID and
FVD are such distances on a named net: Inception and I3D (`external`), or the course's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from course_lib.validation import check_count, check_features, check_net, check_video

VideoNet = Callable[
    [Tensor], Tensor
]  # (b, c, f, h, w) to (b, d), or (n, d) where a clip gives several samples
ImageNet = Callable[[Tensor], Tensor]  # (b, c, h, w) to (b, d)


def frame_features(net: ImageNet) -> VideoNet:
    """The image net as a video net for which each frame is a sample: (b, c, f, h, w) to (b·f, d).

    Raises ValueError for a net in training mode.
    """
    check_net("net", net)
    return lambda video: net(rearrange(video, "b c f h w -> (b f) c h w"))


def mean_frame_features(net: ImageNet) -> VideoNet:
    """The image net as a video net: mean over frames, (b, c, f, h, w) to (b, d), blind to the order of the frames.

    Raises ValueError for a net in training mode.
    """
    check_net("net", net)

    def features(video: Tensor) -> Tensor:
        each = net(rearrange(video, "b c f h w -> (b f) c h w"))
        return reduce(each, "(b f) d -> b d", "mean", b=len(video))

    return features


def extract(net: VideoNet, video: Tensor) -> Float[Tensor, "n d"]:
    """What `net` says of `video` (b, c, f, h, w), in float64 and without gradient.

    The video stays where it is, which must be where the net is; the features go to the CPU, since float64 does not
    exist on every accelerator. Raises ValueError for bad input, a net in training mode or features that are not (n, d).
    """
    check_video("video", video)
    check_net("net", net)
    with torch.no_grad():
        features = net(video)
    check_features("net(video)", features)
    return features.cpu().double()


def stacked(rows: list[Tensor] | Tensor) -> Float[Tensor, "n d"]:
    """A metric's list of rows as one matrix; torchmetrics may have joined it already, across processes.

    rows: each (n_i, d); none gives (0, 0).
    """
    return dim_zero_cat(rows) if len(rows) else torch.zeros(0, 0, dtype=torch.float64)


class TwoSided(Metric):
    """What all distances between real and generated video share: one net, two sides, kept as lists of rows."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, net: VideoNet, name: str, *, keep_real: bool = False) -> None:
        """net: videos to features; it runs where it is. name: of the net, for the score.

        keep_real: `reset` forgets only the generated side, for many models against the same data.
        Raises ValueError for a net in training mode.
        """
        super().__init__()
        check_net("net", net)
        self.net, self.net_name, self.keep_real = net, name, keep_real
        self.add_state("real", [], "cat")
        self.add_state("generated", [], "cat")

    def update(self, video: Tensor, real: bool) -> None:
        """Add a batch to one side; video: (b, c, f, h, w) in [-1, 1]. Raises ValueError as `extract` does."""
        self._keep(self.real if real else self.generated, extract(self.net, video).to(self.device))

    def _keep(self, rows: list[Tensor], features: Float[Tensor, "n d"]) -> None:
        rows.append(features)

    def _sides(self) -> dict[str, Float[Tensor, "n d"]]:
        return {"real samples": stacked(self.real), "generated samples": stacked(self.generated)}

    def reset(self) -> None:
        """Forget everything, or with `keep_real` only the generated side."""
        kept = list(self.real)
        super().reset()
        if self.keep_real:
            self.real = kept


class FeatureBank(TwoSided):
    """Features of both sides, exactly as they came: one pass of the net serves any number of distances.

        bank = FeatureBank(net, "features")
        bank.update(clips, real=True)
        bank.update(samples, real=False)
        real, generated = bank.compute()

    Memory: 8·n·d bytes. `frechet.FrechetDistance` needs no more than 16·d² however many samples there are.
    """

    needed = 1  # samples on each side

    def features(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """Real, generated. Raises ValueError for too few samples, with the number needed."""
        real, generated = self._sides().items()
        for name, rows in (real, generated):
            check_count(name, len(rows), self.needed)
        return real[1], generated[1]

    def compute(self) -> Any:
        """Real and generated features. Raises ValueError as `features` does."""
        return self.features()
