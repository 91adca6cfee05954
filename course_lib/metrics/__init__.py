"""How good is a video? Each metric states its conventions in its name and runs on any net it is given.

| file           | what it compares                      | metrics                                                    |
|----------------|---------------------------------------|------------------------------------------------------------|
| `score`        |                                       | what every metric returns                                  |
| `inputs`       |                                       | what every metric refuses                                  |
| `image`        | a video with its reference            | PSNR, SSIM, perceptual distance                            |
| `features`     |                                       | features of real and generated video, taken once           |
| `frechet`      | two sets of features, as Gaussians    | Fréchet distance (FID, FVD) and its limit for many samples |
| `distribution` | two sets of features                  | KID, precision and recall; Inception Score                 |
| `external`     |                                       | the nets of published FID and FVD, from a user's files     |
| `clipwise`     | clip by clip                          | means over clips and shares, with 95 % intervals           |
| `text`         | a video with words                    | CLIPSIM, CLIPScore, directional similarity, frame accuracy |
| `consistency`  | the frames of a video                 | frame consistency in three definitions                     |
| `flow`         |                                       | optical flow: estimated, exact, and warping by it          |
| `motion`       | the frames of a video                 | warping error, flicker, smoothness, dynamic degree         |
| `trajectory`   | a video with a path                   | the subject's centres, trajectory error                    |
| `judge`        | a video with its prompt               | accuracy per attribute, calibration, AUROC                 |

A metric is a `torchmetrics.Metric`: `update` with batches, `compute` a `Score` or a dict of them, `reset`. It adds up
in float64, does not depend on the batching and joins the counts of several processes. Beside it stands the function
that it streams, which is what a lesson shows. Networks are arguments, never fetched.

What comes in is checked by `inputs`, with ValueError; so the annotation there is a plain `Tensor`, and exact inside.
"""

from course_lib.metrics.clipwise import ClipMeans, mean_score, share_score
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
from course_lib.metrics.features import FeatureBank, extract, frame_features, mean_frame_features
from course_lib.metrics.flow import both_flows, estimate_flow, exact_flows, raft_flow, visible, warp
from course_lib.metrics.frechet import (
    Extrapolation,
    FrechetDistance,
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
from course_lib.metrics.prompt_accuracy import (
    Confusion,
    PromptAccuracy,
    auroc,
    expected_calibration_error,
    part_of_prompt,
)
from course_lib.metrics.motion import (
    DynamicDegree,
    Flicker,
    Smoothness,
    WarpingError,
    dynamic_degree,
    warping_error,
)
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
    "ClipMeans",
    "Confusion",
    "DirectionalSimilarity",
    "DistributionScores",
    "DynamicDegree",
    "Extrapolation",
    "FeatureBank",
    "Flicker",
    "FrameAccuracy",
    "FrameConsistency",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "PerceptualDistance",
    "PrecisionRecall",
    "PromptAccuracy",
    "Score",
    "Smoothness",
    "TextAlignment",
    "TextImageEncoder",
    "TrajectoryError",
    "WarpingError",
    "auroc",
    "both_flows",
    "centres",
    "clip_similarity",
    "dynamic_degree",
    "estimate_flow",
    "exact_flows",
    "expected_calibration_error",
    "extract",
    "frame_consistency",
    "frame_features",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "i3d_features",
    "inception_features",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "mean_frame_features",
    "mean_score",
    "part_of_prompt",
    "perceptual_distance",
    "precision_recall",
    "psnr",
    "raft_flow",
    "share_score",
    "ssim",
    "ssim_map",
    "subject_centres",
    "subject_masks",
    "visible",
    "warp",
    "warping_error",
]
