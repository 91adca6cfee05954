"""Motion metrics: warping error, flicker, smoothness and dynamic degree.

None of them is enough on its own: a frozen video has no warping error, no flicker and perfect
smoothness. Report them with the dynamic degree, which a frozen video fails.
"""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.metrics.clipwise import PerClipMetric, proportion_score
from course_lib.metrics.flow import (
    METHODS,
    Estimator,
    bidirectional_flow,
    check_flow,
    estimate_flow,
    non_occluded_mask,
    warp,
)
from course_lib.metrics.score import Score
from course_lib.validation import check_number, check_provided, check_tensor, check_video, require

PROVIDED = "exact"  # value of `flow` if the caller of `update` provides the flow
IF_PROVIDED = f"flow={PROVIDED!r}"
VBENCH_SPEED = 6.0  # pixels per frame, at the next two values
VBENCH_SIDE = 256  # pixels, shorter side
VBENCH_FPS = 8
VBENCH_TOP_FRACTION = 0.05  # of the pixels
VBENCH_MOVING_FRACTION = 4 / 16  # of the frames


def _resolve_estimator(flow: str | Estimator, name: str | None) -> tuple[Estimator | None, str]:
    """Estimator of the setting `flow` (None if the caller provides the flow), and its name."""
    if not isinstance(flow, str):
        require(name is not None, "name", "a name for the estimator given as flow", name)
        return flow, name
    if flow == PROVIDED:
        return None, name or flow
    require(flow in METHODS, "flow", f"{PROVIDED}, {', '.join(METHODS)} or a function", repr(flow))
    return partial(estimate_flow, method=flow), name or flow


def warping_error(video: Tensor, forward: Tensor, backward: Tensor) -> Float[Tensor, "b"]:
    """Mean squared difference of frame t and the warped frame t + 1, over non-occluded pixels.

    E = mean over t of Σ M |warp(V_{t+1}, f_t) - V_t|² / Σ M, with sums over pixels and channels and
    intensities in [0, 1]. A step without non-occluded pixels counts as 0. Lai et al. 2018, as in
    their evaluate_WarpError.py.

    Args:
        video: (b, c, f, h, w) in [-1, 1], at least two frames.
        forward: forward flow; for an edited video, that of its source.
        backward: backward flow, likewise.

    Returns:
        Error of every clip, float64.

    Raises:
        ValueError: for bad input.
    """
    check_video("video", video, min_frames=2, min_size=2)
    check_flow("forward", forward, video)
    check_flow("backward", backward, video)
    unit, forward, backward = (video.double() + 1) / 2, forward.double(), backward.double()
    mask = non_occluded_mask(forward, backward)  # (b, 1, f-1, h, w)
    difference = warp(unit[:, :, 1:], forward) - unit[:, :, :-1]
    squares = (difference.square() * mask).sum(dim=(1, 3, 4))  # (b, f-1)
    counts = mask.sum(dim=(1, 3, 4)) * video.shape[1]
    return (squares / counts.clamp(min=1)).mean(dim=1)


class WarpingError(PerClipMetric):
    """Mean over clips of `warping_error`; the score is named after the source of the flow.

    Args:
        flow: "ilk" or "tvl1" to estimate it from each video, "exact" to pass it to `update`, or an
            estimator.
        name: name of the flow, for the score; required for an estimator, and advisable if the flow
            passed to `update` is not exact.

    Raises:
        ValueError: for an unknown flow.
    """

    def __init__(self, flow: str | Estimator = "ilk", name: str | None = None) -> None:
        estimator, label = _resolve_estimator(flow, name)
        super().__init__({"error": f"warping_error[{label}]"})
        self.estimator = estimator

    def update(self, video: Tensor, flows: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], at least two frames.
            flows: forward and backward flow, only with flow="exact": from `ground_truth_flow`, or
                `bidirectional_flow` of the video that this one is an edit of.

        Raises:
            ValueError: for bad input, or flows that are missing or superfluous.
        """
        check_video("video", video, min_frames=2, min_size=2)
        check_provided("flows", flows, IF_PROVIDED, self.estimator is None)
        flows = bidirectional_flow(video, self.estimator) if flows is None else flows
        self._append(error=warping_error(*(x.detach().to(self.device) for x in (video, *flows))))


class Flicker(PerClipMetric):
    """Mean absolute difference of neighbouring frames, over pixels and then over clips.

    vbench: (255 - mean |I_t - I_{t+1}|) / 255 on grey levels 0 … 255, without rounding to whole
    levels (VBench: Huang et al. 2024, temporal flickering). VBench uses it for static scenes only,
    since motion lowers it too.
    difference: mean |I_t - I_{t+1}| of intensities in [0, 1], which is 1 - vbench.
    """

    def __init__(self) -> None:
        super().__init__({"vbench": "flicker_vbench", "difference": "frame_difference_mean_abs"})

    def update(self, video: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], at least two frames.

        Raises:
            ValueError: for bad input.
        """
        check_video("video", video, min_frames=2)
        steps = video.detach().to(self.device).double().diff(dim=2)
        difference = steps.abs().mean(dim=(1, 2, 3, 4)) / 2
        self._append(vbench=1 - difference, difference=difference)


class Smoothness(PerClipMetric):
    """Agreement of odd frames with the mean of their neighbours.

    1 - mean |I_t - (I_{t-1} + I_{t+1}) / 2| of intensities in [0, 1]; mean over clips. This is
    VBench's motion smoothness (Huang et al. 2024) with a plain mean instead of its interpolation
    network. True motion lowers it too, so compare videos with similar motion.
    """

    def __init__(self) -> None:
        super().__init__({"smoothness": "smoothness_linear"})

    def update(self, video: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], at least three frames; of an even number the last is
                not used.

        Raises:
            ValueError: for bad input.
        """
        check_video("video", video, min_frames=3)
        video = video.detach().to(self.device).double()
        even = video[:, :, ::2]
        odd = video[:, :, 1:-1:2]
        interpolated = (even[:, :, :-1] + even[:, :, 1:]) / 2
        self._append(smoothness=1 - (odd - interpolated).abs().mean(dim=(1, 2, 3, 4)) / 2)


def dynamic_degree(
    flow: Tensor, fps: float | int = VBENCH_FPS, min_speed: float | int = VBENCH_SPEED
) -> tuple[Bool[Tensor, "b"], Float[Tensor, "b"]]:
    """Whether each clip moves, and how fast.

    The speed of a step is the mean length of its 5 % longest flow vectors. A clip moves if at least
    round(4 · f/16) steps exceed min_speed · min(h, w)/256 pixels, times 8/fps below 8 frames/s.
    VBench: Huang et al. 2024, dynamic degree, as in its code.

    VBench's speed of 6 is fast (1.5 pixels per frame at 64 x 64): by exact flow, a third of the
    world's travelling subjects and all growing ones count as static. A speed of 2 separates
    everything that moves from static subjects.

    Args:
        flow: forward flow (b, 2, steps, h, w) of at least 2 steps and 20 pixels.
        fps: frame rate, below 12; VBench takes only every round(fps/8)-th frame.
        min_speed: pixels per frame on a frame with a shorter side of 256.

    Returns:
        Whether each clip moves, and the mean speed of its steps in pixels per frame.

    Raises:
        ValueError: for a smaller flow, integers, NaN, another fps, or a speed that is not
            positive.
    """
    check_tensor("flow", flow, "(b, 2, steps, h, w)")
    require(flow.shape[1] == 2, "flow", "(x, y) in dim 1", tuple(flow.shape))
    steps, h, w = flow.shape[2:]
    threshold = _speed_threshold(fps, min_speed) * min(h, w) / VBENCH_SIDE
    top = int(h * w * VBENCH_TOP_FRACTION)
    require(
        steps >= 2 and top >= 1,
        "flow",
        "at least 2 steps and 20 pixels",
        f"{steps} steps of {w} x {h} pixels",
    )
    length = flow.double().square().sum(dim=1).sqrt().flatten(2)  # (b, steps, pixels)
    fastest = length.topk(top, dim=-1).values.mean(dim=-1)  # (b, steps)
    min_steps = round(VBENCH_MOVING_FRACTION * (steps + 1))
    return (fastest > threshold).sum(dim=1) >= min_steps, fastest.mean(dim=1)


def _speed_threshold(fps: float | int, min_speed: float | int) -> float:
    """Smallest speed of a moving step, in pixels per step on a frame with a shorter side of 256."""
    check_number("fps", fps, above=0.0, below=1.5 * VBENCH_FPS)  # VBench subsamples to about 8
    check_number("min_speed", min_speed, above=0.0)
    return max(1.0, VBENCH_FPS / fps) * min_speed


class DynamicDegree(PerClipMetric):
    """`dynamic_degree`, under two keys.

    moving: proportion of clips that move, with Wilson's interval.
    speed: mean speed over clips, in pixels per frame.

    Args:
        flow: see `WarpingError`.
        name: see `WarpingError`.
        fps: frame rate of the videos.
        min_speed: see `dynamic_degree`; part of the score's name.

    Raises:
        ValueError: for an unknown flow, fps outside (0, 12), or a speed that is not positive.
    """

    def __init__(
        self,
        flow: str | Estimator = "ilk",
        name: str | None = None,
        *,
        fps: float | int = VBENCH_FPS,
        min_speed: float | int = VBENCH_SPEED,
    ) -> None:
        _speed_threshold(fps, min_speed)
        estimator, label = _resolve_estimator(flow, name)
        rule = "vbench" if min_speed == VBENCH_SPEED else f"speed{min_speed:g}"
        names = {"moving": f"dynamic_degree_{rule}[{label}]", "speed": f"flow_top5_mean[{label}]"}
        super().__init__(names, {"speed": "px/frame"})
        self._separate(f"fps {fps:g}")
        self.estimator = estimator
        self.fps = fps
        self.min_speed = min_speed

    def update(self, video: Tensor, flow: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], at least three frames.
            flow: forward flow, only with flow="exact".

        Raises:
            ValueError: for bad input, or a flow that is missing or superfluous.
        """
        check_video("video", video, min_frames=3)
        check_provided("flow", flow, IF_PROVIDED, self.estimator is None)
        flow = self.estimator(video) if flow is None else flow
        check_flow("flow", flow, video)
        moves, speed = dynamic_degree(flow.detach().to(self.device), self.fps, self.min_speed)
        self._append(moving=moves.double(), speed=speed)

    def compute(self) -> dict[str, Score]:
        moves = self.per_clip()["moving"]
        moving = proportion_score(self.names["moving"], int(moves.sum()), len(moves))
        return self.means() | {"moving": moving}
