"""Valid calls of course_lib.pipelines."""

import torch
from diffusers import DDIMScheduler

from course_lib.pipelines import frame_condition, text_encoder, unet_adapter
from course_lib.pipelines.frame_condition import FrameCondition
from tests.fuzz.args import C, F, G, I, N, P, R, X, Y
from tests.fuzz.harness import add
from tests.fuzz.systems import image_system, video_pipeline

VIDEO = "b c f h w"
SMALL = {"b": 2, "h": 4, "w": 4}


def half(x, t, cond=None):
    return 0.5 * x


def condition():
    frames = torch.linspace(-1, 1, 2 * 3 * 2 * 16).view(2, 3, 2, 4, 4)
    return FrameCondition.prefix(frames, 4)


PROMPTS = P(2, allows="one_string one_row_fewer one_row_more")
add(
    "pipelines.batch.expand_prompts",
    prompt=PROMPTS,
    negative_prompt=P(2, allows="one_string one_row_fewer"),
    num_videos_per_prompt=N(2),
)
add("pipelines.batch.check_generators", generator=G(), num_rows=N(2, high=2))

add(
    "pipelines.frame_condition.first_frames_mask",
    num_frames=N(5),
    num_cond_frames=N(2, low=0, high=5),
)
add("pipelines.frame_condition.every_nth_frame_mask", num_frames=N(5), stride=N(2))
video = F(VIDEO, **SMALL)
add(
    "pipelines.frame_condition.FrameCondition.none",
    lambda like: FrameCondition.none(like),
    like=video,
)
add(
    "pipelines.frame_condition.FrameCondition.prefix",
    lambda **kwargs: FrameCondition.prefix(**kwargs),
    video=video, num_frames=N(6, low=4),
)  # fmt: skip
add(
    "pipelines.frame_condition.FrameCondition.keyframes",
    lambda **kwargs: FrameCondition.keyframes(**kwargs),
    keyframes=video, stride=N(2),
)  # fmt: skip
add(
    "pipelines.frame_condition.FrameCondition.paste",
    lambda video: condition().paste(video), video=F("2 3 4 4 4"),
)  # fmt: skip
add(
    "pipelines.frame_condition.FrameCondition.to",
    lambda like: condition().to(like), like=F(VIDEO, **SMALL),
)  # fmt: skip


def model_call(wrap):
    """Calls the model that a wrapper gives."""

    def call(x, t, **kwargs):
        return wrap(**kwargs)(x, t, None)

    return call


T = I("b", [10, 900], allows="fractions first_axis_of_1")
X_T = F("2 3 4 4 4")
ddim = DDIMScheduler(prediction_type="v_prediction")
add(
    "pipelines.frame_condition.replacement_method",
    model_call(lambda: frame_condition.replacement_method(half, ddim, condition())), x=X_T, t=T,
)  # fmt: skip
add(
    "pipelines.frame_condition.reconstruction_guidance",
    model_call(lambda **kwargs: frame_condition.reconstruction_guidance(
        half, ddim, operator=lambda x: x[:, :, :2], **kwargs)),
    x=X_T, t=T, observed=F("2 3 2 4 4"), reconstruction_weight=R(2.0, 0),
)  # fmt: skip
add(
    "pipelines.frame_condition.condition_on_frames",
    model_call(
        lambda **kwargs: frame_condition.condition_on_frames(half, ddim, condition(), **kwargs)
    ),
    x=X_T,
    t=T,
    reconstruction_weight=R(2.0, 0),
)
add(
    "pipelines.frame_condition.downsample_operator",
    lambda factor, video: frame_condition.downsample_operator(factor)(video),
    factor=N(2),
    video=video,
)
add(
    "pipelines.frame_condition.extend_autoregressively",
    lambda **kwargs: frame_condition.extend_autoregressively(
        lambda condition: condition.frames + 0.1, **kwargs
    ),
    video=video, num_frames=N(7, low=4), num_cond_frames=N(2, high=3),
)  # fmt: skip
add(
    "pipelines.frame_condition.interpolate_keyframes",
    lambda **kwargs: frame_condition.interpolate_keyframes(
        lambda condition, index: condition.frames + 0.1, **kwargs
    ),
    keyframes=video, factor=N(2), window_size=N(2, low=2, high=4), keyframe_spacing=R(1.0, 1e-9),
)  # fmt: skip

vae = X(lambda: image_system().vae)
images, small_latents = F("b 3 h w", b=2, h=16, w=16), F("b 4 y x", b=2)
generator = G(allows="None")
add("pipelines.latents.encode", vae=vae, images=images, generator=generator)
add("pipelines.latents.decode", vae=vae, latents=small_latents)
add(
    "pipelines.latents.encode_video",
    vae=vae, video=F("b 3 f h w", b=1, f=2, h=16, w=16), generator=generator,
)  # fmt: skip
add("pipelines.latents.decode_video", vae=vae, latents=F("b 4 f y x", b=1, f=2))


def encoder():
    system = image_system()
    return text_encoder.TextEncoder(system.text_encoder, system.tokenizer)


ANY = P(allows="one_row_fewer one_row_more")
add("pipelines.text_encoder.TextEncoder", lambda prompts: encoder()(prompts), prompts=ANY)
add(
    "pipelines.text_encoder.TextEncoder.tokenize",
    lambda prompts: encoder().tokenize(prompts),
    prompts=ANY,
)
add(
    "pipelines.text_encoder.TextEncoder.encode",
    lambda tokens: encoder().encode(tokens), tokens=I("b 32", high=40, b=2),
)  # fmt: skip

add(
    "pipelines.unet_adapter.check_inputs",
    lambda names: unet_adapter.check_inputs(video_pipeline().unet, names),
    names=X(lambda: ["frame_index"]),
)
add("pipelines.unet_adapter.accepted_inputs", unet=X(lambda: video_pipeline().unet))
TEXT = F("b l 64", b=2)
add(
    "pipelines.unet_adapter.unet_denoiser",
    lambda x, t, text, cond_channels, temporal_scale: unet_adapter.unet_denoiser(
        video_pipeline().unet, temporal_scale=temporal_scale
    )(x, t, {"text": text, "cond_channels": cond_channels}),
    x=F("b 4 f y x", b=2, f=2),
    t=I("b", [10, 900], allows="fractions first_axis_of_1"),
    text=TEXT,
    cond_channels=F("b 5 f y x", b=2, f=2),
    temporal_scale=R(0.5),
)
add(
    "pipelines.unet_adapter.temporal_guidance",
    lambda x, t, guidance_scale: unet_adapter.temporal_guidance(
        half, guidance_scale, lambda x, t, cond: 0.1 * x
    )(x, t, None),
    x=F("b c f y x", b=2), t=T, guidance_scale=R(2.0, 0),
)  # fmt: skip


def method(name):
    return lambda **kwargs: getattr(video_pipeline(), name)(**kwargs)


TWO = P(1, allows="one_string one_row_fewer one_row_more")
STEPS = {"num_inference_steps": N(1, high=1000), "generator": G(allows="None")}
GUIDANCE = {"guidance_scale": R(2.0, 0), "guidance_rescale": R(0.3, 0, 1)}
SAMPLING = {
    "prompt": TWO,
    "height": N(16, allows="None"),
    "width": N(16, allows="None"),
    "num_frames": N(2),
    **STEPS,
}
PIPE = "pipelines.text_to_video.TextToVideoPipeline"
add(
    f"{PIPE}.__call__",
    lambda output_type="pt", return_dict=False, **kwargs: video_pipeline()(
        output_type=output_type, return_dict=return_dict, **kwargs
    ),
    **SAMPLING, output_type=C("pt"), return_dict=Y(False),
)  # fmt: skip
add(
    f"{PIPE}.sample_iter", method("sample_iter"), prompt=P(2), latents=F("b 4 f y x", b=2, f=2),
    **STEPS, **GUIDANCE, negative_prompt=P(2, allows="one_string"),
    frame_index=F("b f", b=2, f=2), temporal_scale=R(0.5), temporal_guidance_scale=R(2.0, 0),
    temporal_guidance_below=R(500.0, 0),
)  # fmt: skip
add(f"{PIPE}.generate", method("generate"), **SAMPLING, num_videos_per_prompt=N(2))
add(f"{PIPE}.sample_latents", method("sample_latents"), **SAMPLING)
LATENTS = F("b 4 f y x", b=1, f=2)
add(
    f"{PIPE}.extend_autoregressively", method("extend_autoregressively"),
    prompt=P(1), latents=LATENTS, num_frames=N(3, low=2), num_cond_frames=N(1, high=1), **STEPS,
)  # fmt: skip
add(
    f"{PIPE}.interpolate_keyframes", method("interpolate_keyframes"),
    prompt=P(1), keyframes=LATENTS, factor=N(2), window_size=N(2, low=2, high=2),
    keyframe_spacing=R(1.0, 1e-9), **STEPS,
)  # fmt: skip
add(f"{PIPE}.encode_prompt", method("encode_prompt"), prompts=ANY)
add(f"{PIPE}.decode_latents", method("decode_latents"), latents=LATENTS)
