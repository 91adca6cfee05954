"""What a clip of the Emoji World lacks, compared with its nearest renderings.

See `nearest` for the search. The pose of every frame, put together, says how the subject moves;
what no pose and no animation frame explains is morphing.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course_lib.metrics.clipwise import PerClipMetric
from course_lib.metrics.image import perceptual_distance
from course_lib.metrics.nearest import RENDER_SIZE, NearestRenderings, nearest_renderings
from course_lib.nn.utils import fold_frames
from course_lib.validation import (
    check_choice,
    check_net,
    check_number,
    check_same_shape,
    check_tensor,
    check_video,
    require,
)
from course_lib.world import MOTIONS, parse_caption
from course_lib.world.sprites import EXTENT, SPRITE_SIZE

SAME_SUBJECT_PSNR = 16.0  # dB; few wrong subjects fit better (measured: docs/decisions.md)
# Coordinates that change linearly with time, by motion; the others stand still
LINEAR_X = ("moving left", "moving right")
LINEAR_Y = ("moving up", "moving down")
HOP_SECONDS = (0.75, 1.05)  # of "bouncing", as in `world.motions`


def morphing(video: Tensor, nearest: NearestRenderings) -> Float[Tensor, "b"]:
    """Change of the subject from frame to frame that neither pose nor animation explains.

    The difference between frame and nearest rendering is brought into the sprite's coordinates.
    There a part that is always wrong stays the same, and one that comes and goes changes.

    Args:
        video: (b, 3, f, h, w) in [-1, 1].
        nearest: its nearest renderings.

    Returns:
        Root mean square change over the subject's texels, colours in [0, 1]; NaN for one frame.

    Raises:
        ValueError: bad videos, or others than those of `nearest`.
    """
    check_video("video", video)
    check_same_shape("video", video, "nearest.video", nearest.video)
    b, _, f = video.shape[:3]
    residual = (video.detach().cpu().float() - nearest.video) / 2
    inside = _to_sprite(fold_frames(torch.ones_like(residual[:, :1])), nearest.pose)
    coverage = _to_sprite(fold_frames(nearest.alpha), nearest.pose) * inside
    change = _to_sprite(fold_frames(residual), nearest.pose).unflatten(0, (b, f)).diff(dim=1)
    coverage = coverage.unflatten(0, (b, f))
    both = torch.minimum(coverage[:, 1:], coverage[:, :-1])  # b f-1 1 64 64
    squares = (change.square() * both).sum(dim=(1, 2, 3, 4))
    return (squares / (3 * both.sum(dim=(1, 2, 3, 4)))).sqrt()


def _to_sprite(images: Float[Tensor, "bf c h w"], pose: Float[Tensor, "b f 4"]) -> Tensor:
    """Frames sampled at the texels of their sprites: the inverse of `world.place_sprites`."""
    x, y, size, angle = pose.flatten(0, 1).unbind(-1)
    cos, sin = angle.cos() * size / EXTENT, angle.sin() * size / EXTENT
    matrix = torch.stack([cos, -sin, x, sin, cos, y], dim=-1).view(-1, 2, 3)
    shape = [len(images), images.shape[1], SPRITE_SIZE, SPRITE_SIZE]
    grid = F.affine_grid(matrix, shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def path_error(pose: Tensor, motion: str, fps: float | int = 8) -> Float[Tensor, ""]:
    """Distance of the subject's centre from the nearest path of a motion.

    The paths are those of `world.motions`: a centre that stands still, moves evenly along one axis,
    moves to or from the middle as the subject grows, or bounces.

    Args:
        pose: x and y in [-1, 1], size and angle, one row per frame.
        motion: a name from `MOTIONS`.
        fps: frames per second.

    Returns:
        Root mean square over frames, in pixels of a 64 x 64 frame.

    Raises:
        ValueError: bad poses, an unknown motion, or fps that is not positive.
    """
    check_tensor("pose", pose, "(f, 4)")
    require(pose.shape[1] == 4, "pose", "(f, 4)", tuple(pose.shape))
    check_choice("motion", motion, MOTIONS)
    check_number("fps", fps, above=0.0)
    x, y, size = pose[:, :3].double().unbind(dim=1)
    t = torch.arange(len(pose), dtype=torch.float64) / fps
    constant = torch.ones_like(t)[None, :, None]  # 1 f 1
    linear = torch.stack([torch.ones_like(t), t], dim=1)[None]
    if motion in ("growing", "shrinking"):  # towards the middle, as the frame fills
        bases_x = bases_y = (1 - size)[None, :, None]
    else:
        bases_x = linear if motion in LINEAR_X else constant
        bases_y = linear if motion in LINEAR_Y else constant
    if motion == "bouncing":
        bases_y = _bounces(t)
    error = _fit_error(x, bases_x) + _fit_error(y, bases_y)
    return (error / len(pose)).sqrt() * (RENDER_SIZE / 2)


def _bounces(t: Float[Tensor, "f"]) -> Float[Tensor, "n f 2"]:
    """Heights of a bouncing subject, of many periods and phases, up to an affine map."""
    period = torch.linspace(*HOP_SECONDS, 48, dtype=t.dtype)[:, None, None]
    phase = torch.linspace(0, 1, 97, dtype=t.dtype)[:-1, None]
    curve = torch.sin(math.pi * (t / period + phase)).abs().flatten(0, 1)
    return torch.stack([torch.ones_like(curve), curve], dim=2)


def _fit_error(values: Float[Tensor, "f"], bases: Float[Tensor, "n f k"]) -> Float[Tensor, ""]:
    """Squared error of the best of n least-squares fits."""
    target = values[None, :, None].expand(len(bases), -1, -1)
    weights = torch.linalg.lstsq(bases, target).solution
    return (bases @ weights - target).square().sum(dim=(1, 2)).min()


class RenderingDistance(PerClipMetric):
    """Distance of clips from the nearest renderings of their prompts, means over clips.

    psnr: PSNR inside the rendered subject in dB, mean over frames. Low for missing or melted parts.
    subject_kept: fraction of clips in which the subject of the prompt explains every frame: no
        frame is below 16 dB.
    path_error: root mean square distance of the subject's centre from the nearest path of the
        prompt's motion in pixels; without a motion, or with one frame, there is none.
    morphing: see `morphing`; with one frame there is none.
    perceptual: `perceptual_distance` of frames and renderings, with a net only.

    Args:
        net: images (n, 3, h, w) in [-1, 1] to a list of feature maps; None leaves out "perceptual".
        name: name of the net.
        fps: frames per second.

    Raises:
        ValueError: a net in training mode, or fps that is not positive.
    """

    def __init__(
        self,
        net: Callable[[Tensor], Sequence[Tensor]] | None = None,
        name: str = "",
        fps: float | int = 8,
    ) -> None:
        names = {
            "psnr": "nearest_rendering_psnr",
            "subject_kept": f"subject_kept_{SAME_SUBJECT_PSNR:g}db",
            "path_error": f"path_error_fps{fps:g}",
            "morphing": "morphing_rms",
        }
        if net is not None:
            check_net("net", net)
            names["perceptual"] = f"nearest_rendering_perceptual[{name}]"
        check_number("fps", fps, above=0.0)
        super().__init__(names, {"psnr": "dB", "path_error": "px"})
        self.net = net
        self.fps = fps

    def update(self, video: Tensor, prompts: Sequence[str]) -> None:
        """Add a batch; arguments and errors as in `nearest_renderings`."""
        nearest = nearest_renderings(video, prompts)
        motions = [parse_caption(prompt)["motion"] for prompt in prompts]
        no_path = torch.tensor(torch.nan, dtype=torch.float64)
        path_errors = [
            no_path if motion is None or len(pose) == 1 else path_error(pose, motion, self.fps)
            for pose, motion in zip(nearest.pose, motions, strict=True)
        ]
        values = {
            "psnr": nearest.psnr.mean(dim=1),
            "subject_kept": (nearest.psnr >= SAME_SUBJECT_PSNR).all(dim=1).double(),
            "path_error": torch.stack(path_errors),
            "morphing": morphing(video, nearest),
        }
        if self.net is not None:
            check_net("net", self.net)
            with torch.no_grad():
                maps = [self.net(fold_frames(x.to(video))) for x in (video, nearest.video)]
            values["perceptual"] = perceptual_distance(*maps).unflatten(0, (len(video), -1)).mean(1)
        self._append(**values)
