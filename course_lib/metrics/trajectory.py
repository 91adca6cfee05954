"""Subject centres, found without a network, and their distance from a path.

Coordinates are those of `world.Clips.path`: (x, y) in [-1, 1], from the left and top border of the
frame to the right and bottom border.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from course_lib.metrics.clipwise import PerClipMetric
from course_lib.validation import check_provided, check_tensor, check_video, require

BORDER = "border"
GIVEN = "given"
BORDER_WIDTH = 1 / 32  # of the frame; the border shows the background
QUANT_LEVELS = 64  # border colours that agree to 1/64 count as one
COLOUR_THRESHOLD = 0.06  # RGB distance in [0, 1]^3 of a subject's pixel from all border colours
MAX_PATH = 2.0  # half a frame beyond the border; more is a path in pixels
MIN_AREA = 0.01  # of the frame, for a piece of the subject
MIN_PIECE_RATIO = 0.1  # of the largest piece, for a piece of the subject


def subject_masks(video: Tensor) -> Bool[Tensor, "b 1 f h w"]:
    """Masks of the subject: pixels whose colour does not occur at the frame's border.

    The border colours (median over time) stand for the background. Pixels that differ from all of
    them, after a 3 x 3 median filter, are the subject: one or several pieces, without small specks.

    For the Emoji World: one subject, mostly away from the border, in front of a still background
    without other objects. Parts with the background's colours are lost (a swan on grey squares).
    Shadows, camera motion and a second subject are not handled.

    Args:
        video: (b, c, f, h, w) in [-1, 1], at least 16 x 16 pixels.

    Returns:
        Masks; empty for a frame without a subject.

    Raises:
        ValueError: for bad input.
    """
    check_video("video", video, min_size=16)
    frames = ((video.detach().cpu().float() + 1) / 2).permute(0, 2, 3, 4, 1)  # (b, f, h, w, c)
    return torch.from_numpy(np.stack([_masks_of_clip(clip) for clip in frames])[:, None])


def _masks_of_clip(clip: Float[Tensor, "f h w c"]) -> Bool[np.ndarray, "f h w"]:
    h, w = clip.shape[1:3]
    width = max(1, round(BORDER_WIDTH * min(h, w)))
    border = torch.ones(h, w, dtype=torch.bool)
    border[width : h - width, width : w - width] = False
    colours = clip[:, border].quantile(0.5, dim=0)  # a subject at the border is there only briefly
    colours = ((colours * QUANT_LEVELS).round() / QUANT_LEVELS).unique(dim=0)
    distance = torch.cdist(clip.flatten(0, 2), colours).amin(dim=1).view(clip.shape[:3])
    return np.stack([drop_specks(frame) for frame in (distance > COLOUR_THRESHOLD).numpy()])


def drop_specks(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Keep the large connected pieces of a mask, after a 3 x 3 median filter.

    Args:
        mask: of one frame.
    """
    neighbours = np.ones((3, 3), dtype=bool)
    labels, count = ndimage.label(ndimage.median_filter(mask, 3), neighbours)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0  # the background
    return (sizes >= max(MIN_AREA * mask.size, MIN_PIECE_RATIO * sizes.max()))[labels]


def centres(masks: Tensor) -> Float[Tensor, "b f 2"]:
    """Centre of the bounding box of every mask, (x, y) in [-1, 1], float64; NaN for an empty mask.

    The box, not the centre of mass: a path of the world moves the sprite's box.

    Args:
        masks: (b, 1, f, h, w) bool.

    Raises:
        ValueError: for another dtype or shape.
    """
    is_mask = masks.dtype == torch.bool and masks.ndim == 5 and masks.shape[1] == 1
    got = f"{masks.dtype} of {tuple(masks.shape)}"
    require(is_mask and masks.numel() > 0, "masks", "bool of (b, 1, f, h, w)", got)
    coordinates = []
    for axis, size in ((-2, masks.shape[-1]), (-1, masks.shape[-2])):  # columns, then rows
        occupied = masks[:, 0].any(dim=axis).double()  # (b, f, size)
        first = occupied.argmax(dim=-1)
        last = size - 1 - occupied.flip(-1).argmax(dim=-1)
        centre = ((first + last + 1) / size - 1).double()  # pixel centres to [-1, 1]
        coordinates.append(centre.where(occupied.any(dim=-1), torch.nan))
    return torch.stack(coordinates, dim=-1)


def subject_centres(video: Tensor) -> Float[Tensor, "b f 2"]:
    """Centre of the subject in every frame, (x, y) in [-1, 1]; NaN for a frame without a subject.

    Mean error on clips of the world: 0.9 pixels at 64 x 64 (measured: docs/decisions.md). Arguments
    and errors as in `subject_masks`.
    """
    return centres(subject_masks(video))


class TrajectoryError(PerClipMetric):
    """Distance of the subject's centre from a path in pixels, mean over frames and then over clips.

    absolute: the distance.
    shape: the distance after both tracks are moved to the same mean, so a constant offset (a sprite
        off the centre of its box) does not count.
    detected: fraction of frames with a subject. The other frames have no distance, and a clip
        without any has no error, so report all three.

    Args:
        masks: "border" to find the subject by `subject_masks`, "given" to pass masks to `update`.

    Raises:
        ValueError: for other values.
    """

    def __init__(self, masks: str = BORDER) -> None:
        require(masks in (BORDER, GIVEN), "masks", f"{BORDER!r} or {GIVEN!r}", repr(masks))
        names = {
            "absolute": f"trajectory_error_absolute[{masks}]",
            "shape": f"trajectory_error_shape[{masks}]",
            "detected": f"subject_detected[{masks}]",
        }
        super().__init__(names, {"absolute": "px", "shape": "px"})
        self.masks_given = masks == GIVEN

    def update(self, video: Tensor, path: Tensor, masks: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1].
            path: (b, f, 2) or more columns, x and y in [-1, 1] first, as `world.Clips.path`.
            masks: (b, 1, f, h, w) bool, only with masks="given".

        Raises:
            ValueError: for bad input, or masks that are missing or superfluous.
        """
        check_video("video", video)
        b, _, f, h, w = video.shape
        require(
            path.ndim == 3 and path.shape[:2] == (b, f) and path.shape[2] >= 2,
            "path",
            f"(b, f, 2) or more = {(b, f, 2)}",
            tuple(path.shape),
        )
        check_tensor("path", path, "(b, f, 2)")
        farthest = path[..., :2].abs().max().item()
        require(
            farthest <= MAX_PATH,
            "path",
            "x and y in [-1, 1]",
            f"up to {farthest:.4g}; if it is in pixels, use 2 * path / size - 1",
        )
        check_provided("masks", masks, f"masks={GIVEN!r}", self.masks_given)
        if masks is None:
            masks = subject_masks(video)
        require(
            masks.dtype == torch.bool and masks.shape == (b, 1, f, h, w),
            "masks",
            f"bool of {(b, 1, f, h, w)}",
            f"{masks.dtype} of {tuple(masks.shape)}",
        )
        track = centres(masks).cpu()
        half_size = track.new_tensor([w / 2, h / 2])
        offset = (track - path[..., :2].cpu().double()) * half_size  # (b, f, 2) pixels
        centred = offset - offset.nanmean(dim=1, keepdim=True)
        self._append(
            absolute=offset.norm(dim=-1).nanmean(dim=1),
            shape=centred.norm(dim=-1).nanmean(dim=1),
            detected=(~track[..., 0].isnan()).double().mean(dim=1),
        )
