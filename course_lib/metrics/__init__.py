"""Video metrics. Each states its conventions in its name, and runs with any network it is given.

| file              | input                     | metrics                                        |
|-------------------|---------------------------|------------------------------------------------|
| `score`           |                           | result type and base class of all metrics      |
| `intervals`       | independent values        | mean with Student's t interval                 |
| `clipwise`        | one number per clip       | means and proportions with 95 % intervals      |
| `image`           | video, reference          | PSNR, SSIM, perceptual distance                |
| `features`        | real and generated videos | features, collected once                       |
| `frechet`         | two feature sets          | Fréchet distance (FID, FVD), FID∞              |
| `distribution`    | two feature sets          | KID, precision and recall; Inception Score     |
| `external`        | the user's weight files   | networks of published FID and FVD              |
| `text`            | video, prompts            | CLIPSIM, CLIPScore, edit metrics               |
| `consistency`     | frames of a video         | frame consistency in three definitions         |
| `flow`            | video                     | optical flow: estimates, ground truth, warping |
| `motion`          | frames of a video         | warping error, flicker, dynamic degree         |
| `trajectory`      | video, path               | subject centres, trajectory error              |
| `prompt_accuracy` | video, prompts            | accuracy per attribute, calibration, AUROC     |
| `nearest`         | video, prompts            | the real pictures nearest to the frames        |
| `rendering`       | video, prompts            | missing parts, wrong paths, morphing           |

A metric is a `torchmetrics.Metric`: `update` takes a batch, `compute` returns a `Score` or a dict
of scores, `reset` starts again. Metrics accumulate in float64, do not depend on the batch size, and
combine the states of several processes. Most are plain functions too. Networks are arguments, never
downloaded.

`course_lib.validation` checks all input and raises ValueError. So these arguments are annotated as
plain `Tensor`; results and internal functions are annotated with their axes.
"""

from course_lib.metrics.clipwise import PerClipMetric, mean_score, proportion_score
from course_lib.metrics.consistency import FrameConsistency, frame_consistency
from course_lib.metrics.distribution import (
    DistributionScores,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
    precision_recall,
)
from course_lib.metrics.external import i3d_features, inception_features
from course_lib.metrics.features import (
    FeatureBank,
    extract_features,
    frame_features,
    mean_frame_features,
)
from course_lib.metrics.flow import (
    bidirectional_flow,
    estimate_flow,
    ground_truth_flow,
    non_occluded_mask,
    raft_flow,
    warp,
)
from course_lib.metrics.frechet import (
    FrechetDistance,
    FrechetInfinity,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
)
from course_lib.metrics.image import (
    PSNR,
    SSIM,
    PerceptualDistance,
    perceptual_distance,
    psnr,
    ssim,
    ssim_map,
)
from course_lib.metrics.intervals import mean_interval
from course_lib.metrics.motion import (
    DynamicDegree,
    Flicker,
    Smoothness,
    WarpingError,
    dynamic_degree,
    warping_error,
)
from course_lib.metrics.nearest import NearestRenderings, nearest_renderings
from course_lib.metrics.prompt_accuracy import (
    Confusion,
    PromptAccuracy,
    auroc,
    expected_calibration_error,
    subset_of_prompt,
)
from course_lib.metrics.rendering import RenderingDistance, morphing, path_error
from course_lib.metrics.score import Score
from course_lib.metrics.text import (
    ClipEncoder,
    DirectionalSimilarity,
    FrameAccuracy,
    TextAlignment,
    TextImageEncoder,
    clip_similarity,
)
from course_lib.metrics.trajectory import TrajectoryError, centres, subject_centres, subject_masks

__all__ = [
    "PSNR",
    "SSIM",
    "ClipEncoder",
    "Confusion",
    "DirectionalSimilarity",
    "DistributionScores",
    "DynamicDegree",
    "FeatureBank",
    "Flicker",
    "FrameAccuracy",
    "FrameConsistency",
    "FrechetDistance",
    "FrechetInfinity",
    "InceptionScore",
    "KernelDistance",
    "NearestRenderings",
    "PerClipMetric",
    "PerceptualDistance",
    "PrecisionRecall",
    "PromptAccuracy",
    "RenderingDistance",
    "Score",
    "Smoothness",
    "TextAlignment",
    "TextImageEncoder",
    "TrajectoryError",
    "WarpingError",
    "auroc",
    "bidirectional_flow",
    "centres",
    "clip_similarity",
    "dynamic_degree",
    "estimate_flow",
    "expected_calibration_error",
    "extract_features",
    "frame_consistency",
    "frame_features",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "ground_truth_flow",
    "i3d_features",
    "inception_features",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "mean_frame_features",
    "mean_interval",
    "mean_score",
    "morphing",
    "nearest_renderings",
    "non_occluded_mask",
    "path_error",
    "perceptual_distance",
    "precision_recall",
    "proportion_score",
    "psnr",
    "raft_flow",
    "ssim",
    "ssim_map",
    "subject_centres",
    "subject_masks",
    "subset_of_prompt",
    "warp",
    "warping_error",
]
