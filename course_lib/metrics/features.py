"""Feature networks, and metrics that collect features of real and generated videos.

A video feature net is any callable from videos (b, c, f, h, w) to features (b, d); the functions
`frame_features` and `mean_frame_features` make one from an image net. FID and FVD are distances
between such features: of Inception and I3D (see `external`), or of the course's own networks.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from course_lib.metrics.score import Score, VideoMetric
from course_lib.nn.utils import fold_frames
from course_lib.validation import check_count, check_net, check_tensor, check_video, require

VideoNet = Callable[
    [Tensor], Tensor
]  # (b, c, f, h, w) to (b, d), or to (n, d) with several rows per clip
ImageNet = Callable[[Tensor], Tensor]  # (b, c, h, w) to (b, d)


def frame_features(net: ImageNet) -> VideoNet:
    """Turn an image net into a video net with one sample per frame.

    Args:
        net: images (n, c, h, w) to features (n, d).

    Returns:
        Callable from videos (b, c, f, h, w) to features (b·f, d).

    Raises:
        ValueError: for a net in training mode.
    """
    check_net("net", net)
    return partial(_frame_features, net)  # not a lambda, which pickle refuses


def _frame_features(net: ImageNet, video: Tensor) -> Tensor:
    return net(fold_frames(video))


def mean_frame_features(net: ImageNet) -> VideoNet:
    """Turn an image net into a video net by averaging over frames, which ignores their order.

    Args:
        net: images (n, c, h, w) to features (n, d).

    Returns:
        Callable from videos (b, c, f, h, w) to features (b, d).

    Raises:
        ValueError: for a net in training mode.
    """
    check_net("net", net)
    return partial(_mean_frame_features, net)


def _mean_frame_features(net: ImageNet, video: Tensor) -> Tensor:
    return _frame_features(net, video).unflatten(0, (len(video), -1)).mean(1)


def extract_features(net: VideoNet, video: Tensor) -> Float[Tensor, "n d"]:
    """Features of a batch of videos, without gradient.

    Args:
        net: video feature net.
        video: (b, c, f, h, w) in [-1, 1], on the device of the net.

    Returns:
        Features in float64 on the CPU, since some accelerators have no float64.

    Raises:
        ValueError: for bad input, a net in training mode, or features that are not (n, d).
    """
    check_video("video", video)
    check_net("net", net)
    with torch.no_grad():
        features = net(video)
    check_tensor("net(video)", features, "(n, d)")
    return features.cpu().double()


def check_feature_sets(real: Tensor, generated: Tensor, min_samples: int) -> None:
    """Check two feature sets.

    Args:
        real: expected to be (n, d), floating point and finite.
        generated: expected to be (m, d), likewise.
        min_samples: smallest n and m.

    Raises:
        ValueError: if one of them is anything else.
    """
    for name, features in (("real", real), ("generated", generated)):
        check_tensor(name, features, "(n, d)")
        check_count(f"{name}: samples", len(features), min_samples)
    d = real.shape[1]
    require(generated.shape[1] == d, "generated", f"the width of real, {d}", generated.shape[1])


def check_width(rows: Float[Tensor, "n d"], previous: Sequence[Tensor]) -> None:
    """Raises ValueError for rows of another width than those that a metric has."""
    is_same = not len(previous) or previous[0].shape[-1] == rows.shape[1]
    require(is_same, "net(video)", "features of one width in all batches", "another width")


def cat_rows(rows: list[Tensor] | Tensor) -> Num[Tensor, "n d"]:
    """Concatenate a list state of a metric; torchmetrics may have done so across processes.

    Args:
        rows: tensors (n_i, d); an empty list gives (0, 0).
    """
    return dim_zero_cat(rows) if len(rows) else torch.zeros(0, 0, dtype=torch.float64)


class RealVsGenerated(VideoMetric):
    """Base class of distances between real and generated videos: the features of both sets.

    Args:
        net: video feature net; it runs on its own device.
        name: name of the net, for the score.
        cache_real: whether `reset` keeps the real features, to compare many models with them.

    Raises:
        ValueError: for a net in training mode.
    """

    def __init__(self, net: VideoNet, name: str, *, cache_real: bool = False) -> None:
        super().__init__()
        check_net("net", net)
        self.net = net
        self.net_name = name
        self.cache_real = cache_real
        self.add_state("real", [], "cat")
        self.add_state("generated", [], "cat")

    def update(self, video: Tensor, real: Any) -> None:
        """Add a batch to one of the two sets.

        A call, `metric(video, real)`, also returns the distance between this batch and all samples
        of the other set.

        Args:
            video: (b, c, f, h, w) in [-1, 1].
            real: True or False, whether the videos are real or generated.

        Raises:
            ValueError: see `extract_features`; or for features of another width than before.
        """
        require(isinstance(real, bool | np.bool_), "real", "True or False", repr(real))
        features = self._rows(extract_features(self.net, video).to(self.device))
        for previous in (self.real, self.generated):
            check_width(features, previous)
        name = "real" if real else "generated"
        setattr(self, name, self._join([*getattr(self, name), features]))

    def _rows(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
        """What the state holds of a batch."""
        return features

    def _join(self, rows: list[Tensor]) -> list[Tensor]:
        """The rows of one set, or fewer that serve as well."""
        return rows

    def _batch_value(self, batch: VideoMetric) -> Any:
        batch = copy.copy(batch)
        for name in ("real", "generated"):
            if not getattr(batch, name):  # a batch has samples of one set only
                setattr(batch, name, getattr(self, name))
        return batch.compute()

    def _sides(self) -> dict[str, Float[Tensor, "n d"]]:
        return {"real samples": cat_rows(self.real), "generated samples": cat_rows(self.generated)}

    def reset(self) -> None:
        """Remove all samples, or with `cache_real` only the generated ones."""
        real = self.real
        super().reset()
        if self.cache_real:
            self.real = real


class FeatureBank(RealVsGenerated):
    """Features of both sets, unchanged, so that one pass of the net serves several distances.

        bank = FeatureBank(net, "features")
        bank.update(clips, real=True)
        bank.update(samples, real=False)
        real, generated = bank.compute()

    It needs 8·n·d bytes; `frechet.FrechetDistance` needs at most 16·d² for any number of samples.
    """

    min_samples = 1  # in each set

    def features(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """Real and generated features.

        Raises:
            ValueError: for fewer than `min_samples` in a set.
        """
        sides = self._sides()
        for name, rows in sides.items():
            check_count(name, len(rows), self.min_samples)
        return tuple(sides.values())

    def compute(self) -> Any:
        """Real and generated features; a subclass returns its scores. Raises as `features`."""
        return self.features()

    def _score(self, name: str, value: float) -> Score:
        return Score(f"{name}[{self.net_name}]", value, min(map(len, self.features())))
