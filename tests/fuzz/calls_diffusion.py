"""Valid calls of course_lib.diffusion."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from course_lib.diffusion import GaussianMixture, sampling
from course_lib.diffusion.objective import NoisyBatch, Prediction, make_noisy_batch
from course_lib.diffusion.schedule import AlphaSigma
from tests.fuzz.args import C, F, G, I, N, R, X
from tests.fuzz.harness import add

SHAPE = "b c f h w"
SMALL = {"h": 4, "w": 4}


def half(x, t, cond=None):
    """A model: a fraction of its input."""
    return 0.5 * x


def shifted(x, t, cond):
    """A model that uses its conditioning."""
    return 0.5 * x + 0.1 * cond.float().reshape(len(cond), *[1] * (x.ndim - 1))


def mixture():
    return GaussianMixture(torch.tensor([[0.0, 1.0], [1.0, -1.0]]), torch.tensor([0.5, 0.7]))


scheduler = X(lambda: DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
ancestral = X(lambda: DDPMScheduler(clip_sample=False))
level = X(lambda: AlphaSigma(torch.tensor([0.8]), torch.tensor([0.6])))
# The schedule is interpolated, and one timestep serves all rows: both are documented
t = I("b", [10, 500, 900], allows="fractions first_axis_of_1")
steps = N(3, high=1000)
correlation = R(0.5, 0, 1)

for name in ("ddpm", "ddim"):
    add(
        f"diffusion.ancestral.{name}",
        model=half, scheduler=ancestral if name == "ddpm" else scheduler, x=F(SHAPE, **SMALL),
        num_inference_steps=steps, generator=G(), frame_correlation=correlation,
        **{} if name == "ddpm" else {"eta": R(0.5, 0, 1)},
    )  # fmt: skip
add(
    "diffusion.sampling.sample",
    model=half,
    scheduler=scheduler,
    x=F("b *axes", value=torch.linspace(-1, 1, 144).view(3, 3, 4, 2, 2)),
    num_inference_steps=steps,
    generator=G(),
    eta=R(0.5, 0, 1),
)
add(
    "diffusion.sampling.sample",
    lambda **kwargs: sampling.sample(
        model=shifted, scheduler=FlowMatchEulerDiscreteScheduler(), **kwargs
    ),
    x=F("b d"), cond=X(lambda: torch.ones(3)), num_inference_steps=steps, generator=G(),
)  # fmt: skip
add(
    "diffusion.guidance.drop_conditioning",
    cond=F("b l d"), uncond=F("l d"), drop_prob=R(0.5, 0, 1), generator=G(),
)  # fmt: skip
guided = {"guidance_scale": R(2.0, 0), "guidance_rescale": R(0.5, 0, 1)}
add(
    "diffusion.guidance.classifier_free_guidance",
    cond_pred=F(SHAPE, **SMALL), uncond_pred=F(SHAPE, scale=0.5, **SMALL), **guided,
)  # fmt: skip
add(
    "diffusion.guidance.classifier_free_guidance",
    cond_pred=F(SHAPE, **SMALL), uncond_pred=F(SHAPE, scale=0.5, **SMALL),
    guidance_scale=F("b", value=[1.0, 2.0, 3.0], allows="first_axis_of_1 no_first_axis"),
)  # fmt: skip


def call_cfg(uncond, cond, x, **kwargs):
    from course_lib.diffusion.guidance import cfg_model

    return cfg_model(shifted, uncond, **kwargs)(x, torch.tensor([5.0] * 3), cond)


add("diffusion.guidance.cfg_model", call_cfg, x=F("b d"), cond=F("b"), uncond=F("1"), **guided)


def call_switch(boundary_timestep):
    from course_lib.diffusion.guidance import switch_at

    model = switch_at(half, lambda x, t, cond: -x, boundary_timestep)
    return model(torch.ones(2, 3), torch.tensor([400, 400]), None)


add("diffusion.guidance.switch_at", call_switch, boundary_timestep=R(500.0))
add(
    "diffusion.guidance.dynamic_thresholding",
    x0=F("b *axes", axes=6, scale=3),
    percentile=R(0.9, 0, 1),
    max_value=R(2.0, 1, allows="infinity"),
)

add(
    "diffusion.ideal.GaussianMixture",
    means=F("k *axes", k=2, axes=6),
    stds=F("k", value=[0.5, 0.7]),
    weights=F("k", value=[0.3, 0.7]),
)
for method in ("denoise", "score", "log_density"):
    add(
        f"diffusion.ideal.GaussianMixture.{method}",
        lambda method=method, **kwargs: getattr(mixture(), method)(**kwargs),
        x_t=F("b 2"), level=level,
    )  # fmt: skip
add(
    "diffusion.ideal.GaussianMixture.denoise",
    lambda **kwargs: mixture().denoise(**kwargs),
    x_t=F("b 2"),
    level=level,
    weights=F(
        "b 2", allows="no_first_axis first_axis_of_1", value=[[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]]
    ),
)
add(
    "diffusion.ideal.GaussianMixture.sample",
    lambda **kwargs: mixture().sample(**kwargs),
    num_samples=N(5), generator=G(),
)  # fmt: skip
add("diffusion.ideal.empirical_distribution", data=F("n *axes", axes=6))
add("diffusion.ideal.isotropic_gaussian", mean=F("*axes", axes=6), std=R(0.5, 1e-9))
add(
    "diffusion.ideal.probability_flow_solution",
    mixture=X(lambda: GaussianMixture(torch.tensor([[0.5, 1.0]]), torch.tensor([0.5]))),
    x=F("b 2"), start=level, end=X(lambda: AlphaSigma(torch.tensor([0.9]), torch.tensor([0.4]))),
)  # fmt: skip


def call_denoiser(x, t):
    from course_lib.diffusion.ideal import ideal_denoiser

    return ideal_denoiser(mixture(), DDIMScheduler())(x, t, None)


add("diffusion.ideal.ideal_denoiser", call_denoiser, x=F("b 2"), t=t)

add(
    "diffusion.noise.sample_noise",
    shape=X(lambda: (2, 3, 4, 4, 4)), generator=G(), frame_correlation=correlation,
)  # fmt: skip
add(
    "diffusion.noise.check_noise_args",
    shape=X(lambda: (2, 3, 4, 4, 4)), generator=G(), frame_correlation=correlation,
)  # fmt: skip
add(
    "diffusion.noise.offset_noise",
    noise=F("b c *axes", axes=16),
    noise_offset=R(0.1, 0),
    generator=G(),
)

for name in ("add_noise", "prediction_target"):
    add(
        f"diffusion.objective.{name}",
        scheduler=scheduler, x0=F(SHAPE, **SMALL), eps=F(SHAPE, scale=0.5, **SMALL), t=t,
    )  # fmt: skip
add(
    "diffusion.objective.convert_prediction",
    pred=F(SHAPE, **SMALL), x_t=F(SHAPE, scale=0.5, **SMALL), level=level,
    prediction_type=C("epsilon"),
)  # fmt: skip
add(
    "diffusion.objective.Prediction.as_type",
    lambda **kwargs: Prediction(
        torch.ones(2, 3), torch.zeros(2, 3), AlphaSigma(torch.tensor([0.8]), torch.tensor([0.6]))
    ).as_type(**kwargs),
    prediction_type=C("v_prediction"),
)  # fmt: skip
add("diffusion.objective.min_snr_weights", scheduler=scheduler, t=t, snr_gamma=R(5.0, 1e-9))
add(
    "diffusion.objective.make_noisy_batch",
    scheduler=scheduler, x0=F(SHAPE, **SMALL), generator=G(), snr_gamma=R(5.0, 1e-9),
    noise_offset=R(0.1, 0), frame_correlation=correlation, timesteps=t,
)  # fmt: skip


def call_loss(pred):
    from course_lib.diffusion.objective import denoising_loss

    batch = make_noisy_batch(
        DDIMScheduler(), torch.ones(3, 6), torch.Generator().manual_seed(0), snr_gamma=5
    )
    assert isinstance(batch, NoisyBatch)
    return denoising_loss(pred, batch)


add("diffusion.objective.denoising_loss", call_loss, pred=F("3 6"))


add(
    "diffusion.sampler_step.prepare_scheduler",
    scheduler=scheduler, num_inference_steps=steps, x=F("b d"),
)  # fmt: skip
for name in ("alpha_sigma_at", "snr"):
    add(f"diffusion.schedule.{name}", scheduler=scheduler, t=t)
