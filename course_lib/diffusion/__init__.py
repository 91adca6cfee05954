"""Diffusion without networks: what a denoiser learns, how its answers become samples, and how good they could be.

| file        | what it is about                                                                              |
|-------------|-----------------------------------------------------------------------------------------------|
| `objective` | noise levels, ε, x0 and v and the ways between them, min-SNR, noise, one training example      |
| `guidance`  | text dropout, classifier-free guidance with rescale, dynamic thresholding                       |
| `sampling`  | generators over any diffusers scheduler; DDPM and DDIM by hand                                 |
| `exact`     | optimal denoisers of finite data and Gaussian mixtures: the oracle                             |

The schedule and what is predicted come from a diffusers scheduler (`alphas_cumprod`, `config.prediction_type`). A model
is any callable (x, t, conditioning) to a prediction; nothing here knows an architecture. Data are videos
(b, c, f, h, w), or anything else whose first axis is the batch.
"""

from course_lib.diffusion.ideal import Mixture, finite_data, gaussian, ode_solution, optimal_model
from course_lib.diffusion.guidance import (
    drop_conditioning,
    dynamic_threshold,
    guide,
    guided,
    in_turn,
)
from course_lib.diffusion.objective import (
    CLEAN,
    PREDICTION_TYPES,
    Estimate,
    Example,
    Level,
    Model,
    add_noise,
    denoising_loss,
    ends_without_signal,
    estimate,
    initial_noise,
    level_at,
    min_snr_weights,
    offset_noise,
    prediction_type,
    snr,
    target,
    training_example,
    zero_terminal_snr,
)
from course_lib.diffusion.sampling import Step, ddim, ddpm, sample

__all__ = [
    "CLEAN",
    "PREDICTION_TYPES",
    "Estimate",
    "Example",
    "Level",
    "Mixture",
    "Model",
    "Step",
    "add_noise",
    "ddim",
    "ddpm",
    "denoising_loss",
    "drop_conditioning",
    "dynamic_threshold",
    "ends_without_signal",
    "estimate",
    "finite_data",
    "gaussian",
    "guide",
    "guided",
    "in_turn",
    "initial_noise",
    "level_at",
    "min_snr_weights",
    "ode_solution",
    "offset_noise",
    "optimal_model",
    "prediction_type",
    "sample",
    "snr",
    "target",
    "training_example",
    "zero_terminal_snr",
]
