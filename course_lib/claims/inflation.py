"""Lesson 07: image pretraining, a frozen image model, text in temporal layers, a temporal decoder.

Except for the decoder, the claims share a set of small trainings. An inflated mini-sd learns from
clips of half of the subjects, and generates clips of these and of the other half, which it knows
from images only.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from course_lib import zoo
from course_lib.claims.common import (
    BACKGROUNDS,
    Training,
    denoiser_loss,
    frame_fid,
    fvd,
    load_clips,
    scaled,
    seconds_per_step,
    shared_run,
    train_model,
)
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.diffusion import drop_conditioning, make_noisy_batch
from course_lib.evaluation import prompt_accuracy
from course_lib.nn.inflate import InflatedUNet
from course_lib.nn.temporal import TextCrossAttentionBlock
from course_lib.papers.latent_diffusion import build_unet as build_image_unet
from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines.latents import encode_video
from course_lib.recipes import mini_video, temporal_vae
from course_lib.world import SUBJECTS_24, Clips

VIDEO_SUBJECTS = SUBJECTS_24[::2]
IMAGE_ONLY_SUBJECTS = SUBJECTS_24[1::2]
MOTIONS = ("standing still", "growing", "shrinking", "spinning")  # the quickest to learn
FRAME_STRIDE = 4  # every fourth frame shows a motion as well as all sixteen do
NUM_FRAMES = 4
WORLD_KWARGS = {
    "num_frames": NUM_FRAMES,
    "fps": 8 // FRAME_STRIDE,
    "backgrounds": BACKGROUNDS,
    "motions": MOTIONS,
}
FRAME_INDEX = torch.arange(NUM_FRAMES) * float(FRAME_STRIDE)  # in 1/8 s, see recipes.mini_video
TRAINING = Training(2048, batch_size=16, num_steps=250, lr=1e-3, warmup=30, ema_decay=0.98)
NUM_SAMPLES = 256
NUM_INFERENCE_STEPS = 10
GUIDANCE_SCALE = 4.0


@dataclass(frozen=True)
class TrainingArm(Arm):
    """How a video model is built and trained; the temporal layers are trained in every arm.

    Attributes:
        text_in_temporal: the temporal layers have cross-attention to the prompt.
        null_text: that cross-attention always gets the empty prompt.
        trainable: the image model's parameters with one of these in their name are trained, too.
        pretrained: the image model is mini-sd; False: an untrained U-Net of the same shape.
    """

    text_in_temporal: bool = True
    null_text: bool = False
    trainable: tuple[str, ...] = ()
    pretrained: bool = True


TEMPORAL_ONLY = TrainingArm("temporal_only", "temporal layers")
FULL_FINETUNE = TrainingArm("full_finetune", "all weights", trainable=("",))
FROM_SCRATCH = TrainingArm("from_scratch", "from scratch", trainable=("",), pretrained=False)
TEXT_ARMS = (
    TEMPORAL_ONLY,
    TrainingArm("temporal_no_text", "temporal layers without text", text_in_temporal=False),
    TrainingArm(
        "temporal_no_text_kv_tuned",
        "temporal layers without text; text projections trained",
        text_in_temporal=False,
        trainable=(".attn2.to_k.", ".attn2.to_v."),
    ),
    TrainingArm("temporal_null_text", "temporal layers with empty text", null_text=True),
)


@cache
@torch.no_grad()
def _data(seed: int) -> tuple[Tensor, list[str]]:
    """Latents of clips of the training split (n, c, 4, 8, 8), and their captions."""
    clips = load_clips(
        "train", TRAINING.num_examples, seed, subjects=VIDEO_SUBJECTS, **WORLD_KWARGS
    )
    vae = zoo.load_cached("mini-vae")
    latents = [encode_video(vae, chunk).cpu() for chunk in clips.video.split(16)]
    return torch.cat(latents), clips.captions


def build_arm(arm: TrainingArm) -> InflatedUNet:
    """The video U-Net of an arm, before training."""
    image_unet = zoo.load("mini-sd").unet if arm.pretrained else build_image_unet()
    unet = build_unet(
        image_unet, temporal_cross_attention=arm.text_in_temporal, frame_conditioning=False
    )
    for name, parameter in unet.spatial.named_parameters():
        parameter.requires_grad_(any(part in name for part in arm.trainable))
    if arm.null_text:
        null_text = mini_video.build_pipeline(unet).encode_prompt([""])
        for layer in unet.modules():
            if isinstance(layer, TextCrossAttentionBlock):  # called with video, text, others
                layer.register_forward_pre_hook(
                    lambda _, args: (args[0], null_text.to(args[1]).expand_as(args[1]), *args[2:])
                )
    return unet


def train_arm(arm: TrainingArm, seed: int, scale: float) -> tuple[InflatedUNet, float]:
    """The trained video U-Net of an arm, and its seconds per training step.

    Args:
        arm: see `TrainingArm`.
        seed: of the weights and of the batches; equal seeds give equal clips, timesteps and noise.
        scale: fraction of the steps.
    """
    torch.manual_seed(seed)
    model = build_arm(arm)
    latents, captions = _data(seed)
    pipeline = mini_video.build_pipeline(model)
    text = pipeline.encode_prompt(captions).cpu()
    null_text = pipeline.encode_prompt([""]).cpu()
    scheduler = mini_video.scheduler()

    def make_batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (TRAINING.batch_size,), generator=generator)
        # The larger of two timesteps: motion is decided where noise is high
        shape = (2, len(rows))
        t = torch.randint(len(scheduler.alphas_cumprod), shape, generator=generator).amax(dim=0)
        noisy = make_noisy_batch(scheduler, latents[rows], generator, timesteps=t)
        cond = drop_conditioning(text[rows], null_text, 0.1, generator)
        return noisy._asdict() | {"text": cond, "frame_index": FRAME_INDEX.expand(len(rows), -1)}

    history = train_model(model, make_batch, denoiser_loss(), TRAINING, seed=seed, scale=scale)
    return model, seconds_per_step(history)


def real_clips(subjects: tuple[str, ...], num_clips: int, seed: int) -> Clips:
    """Clips of the test split."""
    return load_clips("test", num_clips, 1000 + seed, subjects=subjects, **WORLD_KWARGS)


def generate(model: InflatedUNet, captions: list[str], seed: int) -> Tensor:
    """Every fourth frame (n, 3, 4, 64, 64) in [-1, 1] of a clip for each caption."""
    return mini_video.generate(
        model,
        captions,
        torch.Generator().manual_seed(seed),
        num_frames=NUM_FRAMES,
        frame_index=FRAME_INDEX.expand(len(captions), -1),
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
    )


def hold_frames(video: Tensor) -> Tensor:
    """Every frame repeated four times; judge and features/video know 16 frames at 8 per second."""
    return video.repeat_interleave(FRAME_STRIDE, dim=2)


@shared_run
def _run_training(arm: TrainingArm, seed: int, scale: float) -> Metrics:
    """Half of the evaluated clips show subjects of the training clips, half the other subjects."""
    num_clips = max(16, round(NUM_SAMPLES * scale) // 2)
    model, seconds = train_arm(arm, seed, scale)
    metrics: Metrics = {"seconds_per_training_step": seconds}
    for name, subjects in (
        ("video_subjects", VIDEO_SUBJECTS),
        ("image_only_subjects", IMAGE_ONLY_SUBJECTS),
    ):
        real = real_clips(subjects, num_clips, seed)
        video = generate(model, real.captions, seed)
        accuracy = prompt_accuracy(hold_frames(video), real.captions)
        metrics[f"fvd/{name}"] = fvd(hold_frames(video), hold_frames(real.video))
        metrics[f"frame_fid/{name}"] = frame_fid(video, real.video)
        for key in ("subject_accuracy", "motion_accuracy", "all_attributes_accuracy"):
            metrics[f"{key}/{name}"] = accuracy[key]
    return metrics


NUM_RECONSTRUCTIONS = 256


# value: standard deviation of the noise on latents, factor of the decoder's temporal layers
DECODER_ARMS = (
    Arm("per_frame", "image decoder", (0.0, 0)),
    Arm("joint", "temporal decoder", (0.0, 1)),
)
NOISY_LATENT_ARMS = (
    Arm("per_frame_noisy", "image decoder", (temporal_vae.LATENT_NOISE_STD, 0)),
    Arm("joint_noisy", "temporal decoder", (temporal_vae.LATENT_NOISE_STD, 1)),
)


@torch.no_grad()
def _run_decoder(arm: Arm, seed: int, scale: float) -> Metrics:
    """Real videos against their reconstructions."""
    video = load_clips("test", scaled(NUM_RECONSTRUCTIONS, scale, 8), 1000 + seed).video
    recon = temporal_vae.reconstruct(zoo.load("temporal-vae"), video, *arm.value)
    ratio = temporal_vae.mean_frame_diff(recon) / temporal_vae.mean_frame_diff(video)
    return {"fvd": fvd(recon, video), "frame_diff_ratio": ratio, "flicker": abs(ratio - 1)}


_TRAINED = (
    f"{TRAINING.num_examples} training clips of {len(VIDEO_SUBJECTS)} subjects on "
    f"{len(BACKGROUNDS)} backgrounds that stand still, grow, shrink or spin; every fourth frame, "
    f"as latents of mini-vae; {TRAINING.num_steps} steps of {TRAINING.batch_size} clips, AdamW "
    f"with learning rate {TRAINING.lr:g}, v-prediction, mini-sd's schedule with zero terminal "
    f"SNR, inflation style video-ldm; {NUM_SAMPLES} generated clips, half of them of "
    f"{len(IMAGE_ONLY_SUBJECTS)} subjects that mini-sd knows from images and that no training "
    f"clip shows; {NUM_INFERENCE_STEPS} steps of DDIM, guidance scale {GUIDANCE_SCALE:g}; judge "
    "and features/video get every frame four times"
)
_DECODED = (
    f"{NUM_RECONSTRUCTIONS} clips of the test split, encoded by mini-vae, decoded by temporal-vae "
    "with its temporal layers on or off"
)
_ALIGN = "Blattmann et al. 2023, Align your Latents"
CLAIMS = (
    Claim(
        id="image-pretraining-helps",
        lesson="07",
        source=_ALIGN,
        statement="After equally many training steps on the same clips, a video model that starts "
        "from a pretrained image model has a lower FVD than one that is trained from scratch.",
        arms=(FULL_FINETUNE, FROM_SCRATCH),
        run=_run_training,
        metric="fvd/video_subjects",
        metric_label="FVD, subjects in training clips",
        lower_is_better=True,
        better="full_finetune",
        worse="from_scratch",
        setup=f"{_TRAINED}; all weights are trained in both arms",
    ),
    Claim(
        id="frozen-image-model-keeps-quality",
        lesson="07",
        source=_ALIGN,
        statement="If only the temporal layers are trained, frames of subjects that no training "
        "clip shows stay closer to real ones than if all weights are trained.",
        arms=(TEMPORAL_ONLY, FULL_FINETUNE),
        run=_run_training,
        metric="frame_fid/image_only_subjects",
        metric_label="FID of frames, image-only subjects",
        lower_is_better=True,
        better="temporal_only",
        worse="full_finetune",
        setup=_TRAINED,
    ),
    Claim(
        id="image-subjects-and-motion-compose",
        lesson="07",
        source="Singer et al. 2022, Make-A-Video; " + _ALIGN,
        statement="A pretrained image model with trained temporal layers generates correct clips "
        "of subjects that it knows from images only; a video model trained from scratch does so "
        "less often.",
        arms=(TEMPORAL_ONLY, FROM_SCRATCH),
        run=_run_training,
        metric="all_attributes_accuracy/image_only_subjects",
        metric_label="all attributes correct, image-only subjects",
        unit="%",
        better="temporal_only",
        worse="from_scratch",
        setup=f"{_TRAINED}; from scratch, all weights are trained",
    ),
    Claim(
        id="temporal-layers-need-text",
        lesson="07",
        source="this course; text-to-video with the temporal layers of " + _ALIGN,
        statement="On top of an image model that was trained on captions without motion words, "
        "temporal layers with their own cross-attention to the prompt follow motion words more "
        "often than temporal layers without it.",
        arms=TEXT_ARMS,
        run=_run_training,
        metric="motion_accuracy/video_subjects",
        metric_label="motion accuracy, subjects in training clips",
        unit="%",
        chance=1 / len(MOTIONS),
        better="temporal_only",
        worse="temporal_no_text",
        setup=f"{_TRAINED}; the first three seeds left the claim open, and two were added",
        seeds=(0, 1, 2, 3, 4),
        added_seeds=2,
    ),
    Claim(
        id="temporal-decoder-fvd",
        lesson="07",
        source=_ALIGN,
        statement="Videos that a decoder with temporal layers reconstructs have a lower FVD to "
        "the originals than videos that the image decoder reconstructs frame by frame.",
        arms=DECODER_ARMS,
        run=_run_decoder,
        metric="fvd",
        metric_label="FVD to the originals",
        lower_is_better=True,
        better="joint",
        worse="per_frame",
        setup=f"{_DECODED}; FVD on features/video",
    ),
    Claim(
        id="temporal-decoder-reduces-flicker",
        lesson="07",
        source="this course, after " + _ALIGN,
        statement="If every frame's latents carry independent noise, videos from a decoder with "
        "temporal layers flicker less than videos from the image decoder.",
        arms=NOISY_LATENT_ARMS,
        run=_run_decoder,
        metric="flicker",
        metric_label="flicker with noisy latents",
        lower_is_better=True,
        better="joint_noisy",
        worse="per_frame_noisy",
        setup=f"{_DECODED}; noise of standard deviation {temporal_vae.LATENT_NOISE_STD:g} on the "
        "latents; flicker is |r - 1|, where r is the mean frame difference relative to the "
        "originals'",
    ),
)
