"""Where is the subject, and does it go where it should? Centres found without a network, and the error against a path.

Coordinates are those of `world.Clips.path`: x, y in [-1, 1] from the left and top border of the frame to the other.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from course_lib.metrics.clipwise import ClipMeans
from course_lib.validation import check_video

BORDER, GIVEN = "border", "given"
RING = 1 / 32  # width of the border that shows the background, as a share of the frame
LEVELS = 64  # the border's colours are counted alike if they agree to 1/64
APART = 0.06  # distance of a colour from all of these, in RGB of [0, 1]^3, that makes a pixel the subject's
SMALLEST = 0.01  # share of the frame that a subject covers at least
PART = 0.1  # share of the largest piece that another piece must have to belong to the subject


def subject_masks(video: Tensor) -> Bool[Tensor, "b 1 f h w"]:
    """Where the subject is: what has no colour of the frame's border.

    The colours along the border, each the median over time, stand for the background. What differs from all of them,
    by a majority of 3 x 3 pixels, is the subject, in one piece or several; small specks (stars, flakes) are not.
    video: (b, c, f, h, w) in [-1, 1], at least 16 x 16 pixels. A frame without a subject has an empty mask.

    Made for the Emoji World: one subject, away from the border most of the time, a still background without other
    things in it. It loses parts of the subject that have the background's colours (a swan on grey squares), and knows
    nothing of shadows, camera motion or a second subject. Raises ValueError for bad input.
    """
    check_video("video", video, min_size=16)
    frames = ((video.detach().cpu().float() + 1) / 2).permute(0, 2, 3, 4, 1)  # (b, f, h, w, c)
    return torch.from_numpy(np.stack([_masks_of_clip(clip) for clip in frames])[:, None])


def _masks_of_clip(clip: Float[Tensor, "f h w c"]) -> Bool[np.ndarray, "f h w"]:
    h, w = clip.shape[1:3]
    ring = max(1, round(RING * min(h, w)))
    border = torch.ones(h, w, dtype=torch.bool)
    border[ring : h - ring, ring : w - ring] = False
    colours = clip[:, border].quantile(
        0.5, dim=0
    )  # a subject passes the border, the background stays
    colours = ((colours * LEVELS).round() / LEVELS).unique(dim=0)
    distance = torch.cdist(clip.flatten(0, 2), colours).amin(dim=1).view(clip.shape[:3])
    return np.stack([_pieces(frame) for frame in (distance > APART).numpy()])


def _pieces(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without specks: its large connected pieces."""
    square = np.ones((3, 3), dtype=bool)
    labels, count = ndimage.label(ndimage.median_filter(mask, 3), square)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0  # the background
    return (sizes >= max(SMALLEST * mask.size, PART * sizes.max()))[labels]


def centres(masks: Bool[Tensor, "b 1 f h w"]) -> Float[Tensor, "b f 2"]:
    """Middle of the bounding box of every mask, (x, y) in [-1, 1]; NaN for an empty one. Float64.

    The box and not the centre of gravity: a sprite's path leads its box, and its mass may lie on one side.
    """
    middles = []
    for axis, size in ((-2, masks.shape[-1]), (-1, masks.shape[-2])):  # columns, then rows
        there = masks[:, 0].any(dim=axis).double()  # (b, f, size)
        first, last = there.argmax(dim=-1), size - 1 - there.flip(-1).argmax(dim=-1)
        middle = (first + last + 1) / size - 1  # from pixel centres to [-1, 1]
        middles.append(middle.double().where(there.any(dim=-1), torch.nan))
    return torch.stack(middles, dim=-1)


def subject_centres(video: Tensor) -> Float[Tensor, "b f 2"]:
    """Centre of the subject in every frame, (x, y) in [-1, 1]; NaN where none is seen. See `subject_masks`.

    On the world's own clips, against the path, the mean error is 0.9 pixels at 64 x 64 (2.3 where the subject spins,
    since its box then turns about another point than the sprite), and under 2 pixels in nine clips of ten.
    """
    return centres(subject_masks(video))


class TrajectoryError(ClipMeans):
    """Distance between the subject's centre and the path it should take, in pixels; mean over frames, then clips.

    absolute: the distance itself. shape: after both tracks were moved to the same mean, so that a constant offset (a
    sprite whose middle is not its box's) does not count. seen: share of frames with a subject in sight; the others
    have no distance, and a clip without any has no error: read the three together.
    """

    higher_is_better = False

    def __init__(self, masks: str = BORDER) -> None:
        """masks: "border" to find the subject by `subject_masks`, "given" to say in `update` where it is.

        Raises ValueError for anything else.
        """
        if masks not in (BORDER, GIVEN):
            raise ValueError(f"masks: expected {BORDER!r} or {GIVEN!r}, got {masks!r}")
        names = {
            "absolute": "trajectory_error_absolute",
            "shape": "trajectory_error_shape",
            "seen": "subject_seen",
        }
        super().__init__(
            {key: f"{name}[{masks}]" for key, name in names.items()},
            {"absolute": "px", "shape": "px"},
        )
        self.given = masks == GIVEN

    def update(self, video: Tensor, path: Tensor, masks: Tensor | None = None) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1].

        path: (b, f, 2) or more, x and y in [-1, 1] first, as `world.Clips.path`. masks: (b, 1, f, h, w) bool, where the
        subject is; only with masks="given". Raises ValueError for bad input, masks missing or not wanted.
        """
        check_video("video", video)
        b, _, f, h, w = video.shape
        if path.ndim != 3 or tuple(path.shape[:2]) != (b, f) or path.shape[2] < 2:
            raise ValueError(
                f"path: expected (b, f, 2) or more = {(b, f, 2)}, got {tuple(path.shape)}"
            )
        if not path.isfinite().all():
            raise ValueError("path: expected finite values, got NaN or infinity")
        if (masks is not None) != self.given:
            wanted, got = ("some", "none") if self.given else ("none", "some")
            raise ValueError(f"masks: expected {wanted}, got {got}")
        if masks is not None and (
            masks.dtype != torch.bool or tuple(masks.shape) != (b, 1, f, h, w)
        ):
            raise ValueError(
                f"masks: expected bool of {(b, 1, f, h, w)}, got {masks.dtype} of {tuple(masks.shape)}"
            )
        found = (subject_centres(video) if masks is None else centres(masks)).cpu()
        away = (found - path[..., :2].cpu().double()) * found.new_tensor(
            [w / 2, h / 2]
        )  # (b, f, 2) pixels
        centred = away - away.nanmean(dim=1, keepdim=True)
        absolute, shape = (x.norm(dim=-1).nanmean(dim=1) for x in (away, centred))
        self._keep(
            absolute=absolute, shape=shape, seen=(~found[..., 0].isnan()).double().mean(dim=1)
        )
