"""Diffusion without networks: noise levels, the objective, guidance, samplers, ideal denoisers.

| file        | contents                                                                       |
|-------------|--------------------------------------------------------------------------------|
| `schedule`  | alpha and sigma at every timestep, prediction types, zero terminal SNR         |
| `noise`     | Gaussian noise, shared between frames or offset per video                      |
| `objective` | targets, conversions between eps, x0, v and flow, min-SNR, noisy batches, loss |
| `guidance`  | conditioning dropout, classifier-free guidance, dynamic thresholding           |
| `sampling`  | sampling with any diffusers scheduler                                          |
| `ancestral` | DDPM and DDIM by hand, DDIM inversion                                          |
| `ideal`     | ideal denoisers of finite data and Gaussian mixtures                           |

The noise schedule and the prediction type come from a diffusers scheduler. A model is any callable
(x, t, cond) to a prediction; nothing here depends on an architecture. Data are videos
(b, c, f, h, w), or anything else whose first axis is the batch.
"""

from course_lib.diffusion.ancestral import ddim, ddpm
from course_lib.diffusion.guidance import (
    cfg_model,
    classifier_free_guidance,
    drop_conditioning,
    dynamic_thresholding,
    switch_at,
)
from course_lib.diffusion.ideal import (
    GaussianMixture,
    empirical_distribution,
    ideal_denoiser,
    isotropic_gaussian,
    probability_flow_solution,
)
from course_lib.diffusion.noise import offset_noise, sample_noise
from course_lib.diffusion.objective import (
    Model,
    NoisyBatch,
    Prediction,
    add_noise,
    convert_prediction,
    denoising_loss,
    make_noisy_batch,
    min_snr_weights,
    prediction_target,
)
from course_lib.diffusion.sampler_step import SamplerStep
from course_lib.diffusion.sampling import sample
from course_lib.diffusion.schedule import (
    CLEAN_LEVEL,
    PREDICTION_TYPES,
    VP_PREDICTION_TYPES,
    AlphaSigma,
    alpha_sigma_at,
    get_prediction_type,
    has_zero_terminal_snr,
    is_flow_matching,
    rescale_to_zero_terminal_snr,
    snr,
)

__all__ = [
    "CLEAN_LEVEL",
    "PREDICTION_TYPES",
    "VP_PREDICTION_TYPES",
    "AlphaSigma",
    "GaussianMixture",
    "Model",
    "NoisyBatch",
    "Prediction",
    "SamplerStep",
    "add_noise",
    "alpha_sigma_at",
    "cfg_model",
    "classifier_free_guidance",
    "convert_prediction",
    "ddim",
    "ddpm",
    "denoising_loss",
    "drop_conditioning",
    "dynamic_thresholding",
    "empirical_distribution",
    "get_prediction_type",
    "has_zero_terminal_snr",
    "ideal_denoiser",
    "is_flow_matching",
    "isotropic_gaussian",
    "make_noisy_batch",
    "min_snr_weights",
    "offset_noise",
    "prediction_target",
    "probability_flow_solution",
    "rescale_to_zero_terminal_snr",
    "sample",
    "sample_noise",
    "snr",
    "switch_at",
]
