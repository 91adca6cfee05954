"""Frame consistency: does a video look like one film? Three published definitions that do not agree.

All of them are cosines between embeddings of frames, by any image encoder, and all give a frozen video 1.0: read them
beside a measure of motion. At the TGVE 2023 challenge the most consistent entry was the one that people liked least.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course_lib.metrics.clipwise import ClipMeans
from course_lib.validation import check_net, check_video
from course_lib.metrics.text import encode_frames


def frame_consistency(frames: Float[Tensor, "b f d"]) -> dict[str, Float[Tensor, "b"]]:
    """The three definitions, in float64; frames: embeddings of any length, at least two frames.

    all_pairs: mean cosine over all pairs of different frames (Tune-A-Video: Wu et al. 2023; the TGVE 2023 challenge).
    consecutive: mean over neighbours (Gen-1: Esser et al. 2023; FateZero; TokenFlow). Motion drives distant
    frames apart, so it is mostly above the first.
    vbench: mean over frames from the second on of (cos to the one before + cos to the first) / 2, each clipped at 0
    (VBench: Huang et al. 2024, subject and background consistency).

    Raises ValueError for a single frame.
    """
    count = frames.shape[1]
    if count < 2:
        raise ValueError(f"frames: expected at least 2, got {count}")
    unit = F.normalize(frames.double(), dim=-1)
    cosine = torch.einsum("bfd,bgd->bfg", unit, unit)
    before, first = cosine.diagonal(offset=1, dim1=1, dim2=2), cosine[:, 0, 1:]
    same = cosine.diagonal(dim1=1, dim2=2).sum(dim=1)
    return {
        "all_pairs": (cosine.sum(dim=(1, 2)) - same) / (count * (count - 1)),
        "consecutive": before.mean(dim=1),
        "vbench": ((before.clamp(min=0) + first.clamp(min=0)) / 2).mean(dim=1),
    }


class FrameConsistency(ClipMeans):
    """`frame_consistency` under its three names: all_pairs, consecutive, vbench; mean over clips.

    metric = FrameConsistency(clip_encoder.image, "mini-clip")
    """

    higher_is_better = True

    def __init__(self, encode: Callable[[Tensor], Tensor], name: str) -> None:
        """encode: from images (n, c, h, w) in [-1, 1] to (n, d), such as `ClipEncoder.image`. name: of the encoder.

        Raises ValueError for a net in training mode.
        """
        keys = ("all_pairs", "consecutive", "vbench")
        super().__init__({key: f"frame_consistency_{key}[{name}]" for key in keys})
        check_net("encode", encode)
        self.encode = encode

    def update(self, video: Tensor) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], at least two frames. Raises ValueError for bad input."""
        check_video("video", video, min_frames=2)
        self._keep(**frame_consistency(encode_frames(self.encode, "video", video)))
