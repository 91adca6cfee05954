"""Does it move, and does it move well? Warping error, flicker, smoothness, dynamic degree.

No single one of them will do: a frozen video has no warping error, no flicker and perfect smoothness. Read them beside
the dynamic degree, which a frozen video fails.
"""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.metrics.clipwise import ClipMeans, share_score
from course_lib.metrics.flow import (
    METHODS,
    Estimator,
    both_flows,
    check_flow,
    estimate_flow,
    visible,
    warp,
)
from course_lib.validation import check_video
from course_lib.metrics.score import Score

GIVEN = "exact"
VBENCH_SPEED, VBENCH_SIDE, VBENCH_FPS = (
    6.0,
    256,
    8,
)  # pixels per frame, at this shorter side, at these frames/s
VBENCH_TOP, VBENCH_PAIRS = 0.05, 4 / 16  # share of the pixels, pairs per frame


def _estimator(flow: str | Estimator, name: str | None) -> tuple[Estimator | None, str]:
    """What the argument `flow` of a metric means: an estimator, or None where the caller gives the flow; and a name."""
    if not isinstance(flow, str):
        if name is None:
            raise ValueError("name: expected a name for the estimator given as flow, got None")
        return flow, name
    if flow != GIVEN and flow not in METHODS:
        raise ValueError(
            f"flow: expected {GIVEN}, {', '.join(METHODS)} or a function; got {flow!r}"
        )
    return (None if flow == GIVEN else partial(estimate_flow, method=flow)), name or flow


def warping_error(
    video: Tensor, forward: Float[Tensor, "b 2 steps h w"], backward: Float[Tensor, "b 2 steps h w"]
) -> Float[Tensor, "b"]:
    """Mean squared difference between frame t and frame t + 1 brought back along the flow, where t is `visible`.

    E = mean over t of Σ M |warp(V_{t+1}, f_t) - V_t|² / Σ M, sums over pixels and channels, intensities in [0, 1]. A
    step in which nothing is visible counts as 0, as in the authors' code. Lai et al. 2018, evaluation of temporal
    stability, in the form of their evaluate_WarpError.py.

    video: (b, c, f, h, w) in [-1, 1], at least two frames. forward, backward: see `flow`; for an edited video, those
    of its source. Float64. Raises ValueError for bad input.
    """
    check_video("video", video, min_frames=2, min_size=2)
    check_flow("forward", forward, video)
    check_flow("backward", backward, video)
    unit, forward, backward = (video.double() + 1) / 2, forward.double(), backward.double()
    mask = visible(forward, backward)  # (b, 1, f-1, h, w)
    difference = warp(unit[:, :, 1:], forward) - unit[:, :, :-1]
    squares = (difference.square() * mask).sum(dim=(1, 3, 4))  # (b, f-1)
    seen = mask.sum(dim=(1, 3, 4)) * video.shape[1]
    return (squares / seen.clamp(min=1)).mean(dim=1)


class WarpingError(ClipMeans):
    """`warping_error`, mean over clips, named after where the flow came from."""

    higher_is_better = False

    def __init__(self, flow: str | Estimator = "ilk", name: str | None = None) -> None:
        """flow: "ilk" or "tvl1" to estimate it from each video, "exact" to hand it to `update`, or an estimator.

        name: of the flow, for the score; needed for an estimator, and where a flow that is handed over is not exact.
        Raises ValueError for an unknown flow.
        """
        estimator, label = _estimator(flow, name)
        super().__init__({"error": f"warping_error[{label}]"})
        self.estimator = estimator

    def update(self, video: Tensor, flows: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], at least two frames.

        flows: forward and backward, from `exact_flows`, or `both_flows` of the video that this one is an edit of; only
        with flow="exact". Raises ValueError for bad input, flows missing or not wanted.
        """
        check_video("video", video, min_frames=2, min_size=2)
        if (flows is None) != (self.estimator is not None):
            wanted = (
                "forward and backward flow"
                if self.estimator is None
                else "none, since the metric estimates them"
            )
            raise ValueError(f"flows: expected {wanted}, got {'none' if flows is None else 'some'}")
        flows = both_flows(video, self.estimator) if flows is None else flows
        self._keep(error=warping_error(*(x.detach().to(self.device) for x in (video, *flows))))


class Flicker(ClipMeans):
    """How much neighbouring frames differ, pixel by pixel; mean over clips.

    vbench: (255 - mean |I_t - I_{t+1}|) / 255 on grey levels 0 … 255 (VBench: Huang et al. 2024, temporal flickering),
    here without rounding to whole levels. VBench applies it to scenes that should stand still: motion lowers it too.
    difference: mean |I_t - I_{t+1}| of intensities in [0, 1]; 1 - vbench, for those who want less to be better.
    """

    higher_is_better = None

    def __init__(self) -> None:
        """No settings."""
        super().__init__({"vbench": "flicker_vbench", "difference": "frame_difference_mean_abs"})

    def update(self, video: Tensor) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], at least two frames. Raises ValueError for bad input."""
        check_video("video", video, min_frames=2)
        difference = (
            video.detach().to(self.device).double().diff(dim=2).abs().mean(dim=(1, 2, 3, 4)) / 2
        )
        self._keep(vbench=1 - difference, difference=difference)


class Smoothness(ClipMeans):
    """How well every second frame follows from its neighbours: 1 - mean |I_t - (I_{t-1} + I_{t+1}) / 2| for odd t.

    Intensities in [0, 1]; mean over clips. VBench's motion smoothness (Huang et al. 2024) with the plain mean in the
    place of its interpolation network, so it also falls with honest motion: compare videos that move alike.
    """

    higher_is_better = True

    def __init__(self) -> None:
        """No settings."""
        super().__init__({"smoothness": "smoothness_linear"})

    def update(self, video: Tensor) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], at least three frames.

        Of an even number of frames the last is not used. Raises ValueError for bad input.
        """
        check_video("video", video, min_frames=3)
        video = video.detach().to(self.device).double()
        kept, dropped = video[:, :, ::2], video[:, :, 1:-1:2]
        between = (kept[:, :, :-1] + kept[:, :, 1:]) / 2
        self._keep(smoothness=1 - (dropped - between).abs().mean(dim=(1, 2, 3, 4)) / 2)


def dynamic_degree(
    flow: Float[Tensor, "b 2 steps h w"],
    fps: float | int = VBENCH_FPS,
    speed: float | int = VBENCH_SPEED,
) -> tuple[Bool[Tensor, "b"], Float[Tensor, "b"]]:
    """Whether each clip moves, and how fast, in pixels per frame.

    The speed of a step is the mean length of its 5 % longest flow vectors. A clip moves if at least round(4 · f/16)
    steps are faster than `speed` · min(h, w)/256 pixels, more by 8/fps below 8 frames a second; with VBench's speed of
    6, at 64 x 64 pixels and 8 frames a second, 4 of the 15 steps must exceed 1.5 pixels. VBench: Huang et al. 2024,
    dynamic degree, in the form of its code. The second answer is the mean speed of all steps.

    That is fast: by exact flow a third of the world's travelling subjects and all growing ones count as static. A
    speed of 2 tells everything that moves from what stands still.

    flow: forward, two steps at least, 20 pixels at least. fps: below 12; VBench takes only every round(fps/8)-th frame.
    Raises ValueError for less, another fps, or a speed that is not positive.
    """
    steps, h, w = flow.shape[2:]
    threshold = _pace(fps, speed) * min(h, w) / VBENCH_SIDE
    top = int(h * w * VBENCH_TOP)
    if steps < 2 or top < 1:
        raise ValueError(
            f"flow: expected at least 2 steps and 20 pixels, got {steps} steps of {w} x {h} pixels"
        )
    length = flow.double().square().sum(dim=1).sqrt().flatten(2)  # (b, steps, pixels)
    fastest = length.topk(top, dim=-1).values.mean(dim=-1)  # (b, steps)
    moves = (fastest > threshold).sum(dim=1) >= round(VBENCH_PAIRS * (steps + 1))
    return moves, fastest.mean(dim=1)


def _pace(fps: float | int, speed: float | int) -> float:
    """Pixels per step that count as moving, on a frame with a shorter side of 256."""
    if not 0 < fps < 1.5 * VBENCH_FPS:
        raise ValueError(
            f"fps: expected above 0 and below 12, as VBench thins out videos to about 8, got {fps}"
        )
    if not speed > 0:
        raise ValueError(f"speed: expected a positive number of pixels per frame, got {speed}")
    return max(1.0, VBENCH_FPS / fps) * speed


class DynamicDegree(ClipMeans):
    """`dynamic_degree`: moving, the share of clips that move, with Wilson's interval; speed, mean over clips."""

    higher_is_better = True

    def __init__(
        self,
        flow: str | Estimator = "ilk",
        name: str | None = None,
        *,
        fps: float | int = VBENCH_FPS,
        speed: float | int = VBENCH_SPEED,
    ) -> None:
        """flow, name: as for `WarpingError`. fps: of the videos. speed: that counts as moving; it enters the name.

        Raises ValueError for an unknown flow, fps outside (0, 12), or a speed that is not positive.
        """
        _pace(fps, speed)
        estimator, label = _estimator(flow, name)
        rule = "vbench" if speed == VBENCH_SPEED else f"speed{speed:g}"
        names = {"moving": f"dynamic_degree_{rule}[{label}]", "speed": f"flow_top5_mean[{label}]"}
        super().__init__(names, {"speed": "px/frame"})
        self.estimator, self.fps, self.threshold = estimator, fps, speed

    def update(self, video: Tensor, flow: Tensor | None = None) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1], at least three frames.

        flow: forward, only with flow="exact". Raises ValueError for bad input, flow missing or not wanted.
        """
        check_video("video", video, min_frames=3)
        if (flow is None) != (self.estimator is not None):
            wanted = (
                "a forward flow"
                if self.estimator is None
                else "none, since the metric estimates it"
            )
            raise ValueError(f"flow: expected {wanted}, got {'none' if flow is None else 'one'}")
        flow = self.estimator(video) if flow is None else flow
        check_flow("flow", flow, video)
        moves, speed = dynamic_degree(flow.detach().to(self.device), self.fps, self.threshold)
        self._keep(moving=moves.double(), speed=speed)

    def compute(self) -> dict[str, Score]:
        """The two scores. Raises ValueError before the first clip."""
        moves = self.per_clip()["moving"]
        return self.means() | {
            "moving": share_score(self.names["moving"], int(moves.sum()), len(moves))
        }
