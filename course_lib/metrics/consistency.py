"""Frame consistency, in three published definitions that do not agree.

All three are cosines between image embeddings of frames, and all give a frozen video 1.0, so report
a motion metric with them. In the TGVE 2023 challenge the most consistent entry was the least liked.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course_lib.metrics.clipwise import PerClipMetric
from course_lib.metrics.text import check_directions, encode_frames
from course_lib.validation import check_count, check_net, check_tensor, check_video


def frame_consistency(frames: Tensor) -> dict[str, Float[Tensor, "b"]]:
    """Consistency of every clip, in float64.

    Args:
        frames: embeddings (b, f, d) of at least two frames; their length does not matter.

    Returns:
        all_pairs: mean cosine over all pairs of different frames (Tune-A-Video: Wu et al. 2023;
            TGVE 2023 challenge).
        consecutive: mean cosine of neighbouring frames (Gen-1: Esser et al. 2023; FateZero;
            TokenFlow). Motion makes distant frames differ, so it mostly exceeds all_pairs.
        vbench: mean over frames t > 0 of (cos(t, t-1) + cos(t, 0)) / 2, each cosine clipped at 0
            (VBench: Huang et al. 2024, subject and background consistency).

    Raises:
        ValueError: for bad input, a single frame, or an embedding that is zero.
    """
    check_tensor("frames", frames, "(b, f, d)")
    num_frames = frames.shape[1]
    check_count("frames", num_frames, 2)
    check_directions("frames", frames)
    unit = F.normalize(frames.double(), dim=-1)
    cosine = torch.einsum("bfd,bgd->bfg", unit, unit)
    previous = cosine.diagonal(offset=1, dim1=1, dim2=2)  # (b, f-1)
    first = cosine[:, 0, 1:]  # (b, f-1)
    trace = cosine.diagonal(dim1=1, dim2=2).sum(dim=1)
    return {
        "all_pairs": (cosine.sum(dim=(1, 2)) - trace) / (num_frames * (num_frames - 1)),
        "consecutive": previous.mean(dim=1),
        "vbench": ((previous.clamp(min=0) + first.clamp(min=0)) / 2).mean(dim=1),
    }


class FrameConsistency(PerClipMetric):
    """Mean over clips of `frame_consistency`, with its keys all_pairs, consecutive and vbench.

        metric = FrameConsistency(clip_encoder.image, "mini-clip")

    Args:
        encode: images (n, c, h, w) in [-1, 1] to embeddings (n, d), such as `ClipEncoder.image`.
        name: name of the encoder.

    Raises:
        ValueError: for a net in training mode.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], name: str) -> None:
        keys = ("all_pairs", "consecutive", "vbench")
        super().__init__({key: f"frame_consistency_{key}[{name}]" for key in keys})
        check_net("encode", encode)
        self.encode = encode

    def update(self, video: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], at least two frames.

        Raises:
            ValueError: for bad input.
        """
        check_video("video", video, min_frames=2)
        self._append(**frame_consistency(encode_frames(self.encode, "video", video)))
