"""Valid calls of course_lib.papers."""

import torch

from course_lib.papers import ddpm, latent_diffusion, vdm
from tests.fuzz.args import C, F, G, I, N, P, R, X
from tests.fuzz.harness import add
from tests.fuzz.systems import image_system

WIDTHS = X(lambda: (32, 32))
T = I("b", [10, 900], allows="fractions first_axis_of_1 no_first_axis")


def class_unet():
    torch.manual_seed(0)
    return ddpm.build_unet(3, 8, (32, 32, 32)).eval().requires_grad_(False)


add(
    "papers.ddpm.build_unet",
    num_classes=N(3),
    sample_size=N(8),
    block_out_channels=X(lambda: (32,) * 3),
)
for paper in ("ddpm", "latent_diffusion", "vdm"):
    more = {"snr_shift": R(4.0, 1e-9), "num_train_timesteps": N(20)} if paper == "vdm" else {}
    add(f"papers.{paper}.build_scheduler", prediction_type=C("v_prediction"), **more)
add("papers.ddpm.null_class", unet=X(class_unet))
add(
    "papers.ddpm.unet_denoiser",
    lambda x, t, cond: ddpm.unet_denoiser(class_unet())(x, t, cond),
    x=F("b 3 8 8", b=2), t=T, cond=I("b", [0, 3], allows="first_axis_of_1 no_first_axis"),
)  # fmt: skip
add(
    "papers.ddpm.training_batch",
    scheduler=X(ddpm.build_scheduler), images=F("b c h w"), classes=I("b", [0, 1, 2]),
    null_class=X(lambda: torch.tensor([3])), generator=G(), cond_drop_prob=R(0.5, 0, 1),
)  # fmt: skip
add(
    "papers.latent_diffusion.build_autoencoder",
    lambda **kwargs: latent_diffusion.build_autoencoder((8, 8), **kwargs),
    latent_channels=N(4), sample_size=N(16),
)  # fmt: skip
add(
    "papers.latent_diffusion.build_unet",
    latent_channels=N(4), sample_size=N(4), block_out_channels=WIDTHS, cross_attention_dim=N(32),
    head_dim=N(32),
)  # fmt: skip
add(
    "papers.latent_diffusion.unet_denoiser",
    lambda x, t, text: latent_diffusion.unet_denoiser(image_system().unet)(x, t, text),
    x=F("b 4 y x", b=2), t=T, text=F("b l 32", b=2),
)  # fmt: skip
SYSTEM = "papers.latent_diffusion.LatentDiffusion"
STEPS = {"num_inference_steps": N(1, high=1000), "generator": G()}
for method in ("sample_iter", "generate"):
    add(
        f"{SYSTEM}.{method}",
        lambda method=method, **kwargs: getattr(image_system(), method)(**kwargs),
        prompts=P(2), latents=F("b 4 y x", b=2, allows="None"), **STEPS, guidance_scale=R(2.0, 0),
        guidance_rescale=R(0.3, 0, 1), negative_prompt=X(lambda: "a cat"),
    )  # fmt: skip
add(
    f"{SYSTEM}.encode_prompt",
    lambda prompts: image_system().encode_prompt(prompts),
    prompts=P(allows="one_row_fewer one_row_more"),
)  # fmt: skip

add(
    "papers.vdm.build_unet",
    cross_attention_dim=N(16), block_out_channels=WIDTHS, patch_size=N(2),
)  # fmt: skip
add(
    "papers.vdm.append_images",
    video=F("b c f h w", b=2), text=F("b l d", b=2), images=F("b n c h w", b=2, n=2),
    captions=F("b n l d", b=2, n=2),
)  # fmt: skip
add(
    "papers.vdm.extend_autoregressively",
    lambda **kwargs: vdm.extend_autoregressively(
        lambda x, t, cond: 0.5 * x, vdm.build_scheduler(), cond=None, **kwargs
    ),
    video=F("b c f h w", b=2, h=4, w=4), num_frames=N(6, low=4), num_cond_frames=N(2, high=3),
    reconstruction_weight=R(2.0, 0), num_inference_steps=N(2, high=1000), generator=G(),
)  # fmt: skip
add("papers.video_ldm.build_unet", image_unet=X(lambda: image_system().unet))
add("papers.video_ldm.build_scheduler", image_scheduler=X(latent_diffusion.build_scheduler))
