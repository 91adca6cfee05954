"""Lesson 03: joint training on images, temporal positions, temporal and reconstruction guidance.

Two claims train small networks from scratch, without text, on a small part of the world. The others
generate clips with the shipped vdm.
"""

from functools import cache

import torch
from torch import Tensor, nn

from course_lib import zoo
from course_lib.claims.common import (
    WORLD_SUBSET,
    Training,
    denoiser_loss,
    frame_fid,
    fvd,
    load_clips,
    pixel_video_scheduler,
    scaled,
    seconds_per_step,
    shared_run,
    train_model,
)
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.diffusion import (
    add_noise,
    alpha_sigma_at,
    convert_prediction,
    make_noisy_batch,
    sample,
    sample_noise,
)
from course_lib.evaluation import prompt_accuracy
from course_lib.nn.unet import VideoUNet
from course_lib.pipelines.unet_adapter import unet_denoiser
from course_lib.recipes import vdm

NUM_FRAMES = 8  # half of vdm's, in the same two seconds
CLIP_KWARGS = {"size": vdm.SIZE, "num_frames": NUM_FRAMES, "fps": 4, **WORLD_SUBSET}
TRAINING = Training(2048, batch_size=16, num_steps=800, lr=1e-3, warmup=50, ema_decay=0.99)
BLOCK_OUT_CHANNELS = (64, 96)
NUM_SAMPLES = 256
NUM_INFERENCE_STEPS = 25
PROBE_TIMESTEP = 500  # at which a clip is compared with its shuffle

# value: number of images appended to every training clip
IMAGES_ARMS = (
    Arm("no_images", "no images", 0),
    Arm("images_4", "4 images", 4),
    Arm("images_8", "8 images", 8),
)
# value: kind of temporal positions
POSITION_ARMS = (
    Arm("relative", "relative positions", "relative"),
    Arm("none", "no positions", "none"),
)


def build_model(temporal_positions: str) -> VideoUNet:
    """A small network for clips of 32x32 pixels, without text.

    Args:
        temporal_positions: see `nn.attention.TemporalAttention`.
    """
    return VideoUNet(
        block_out_channels=BLOCK_OUT_CHANNELS,
        attention_levels=(True, True),
        patch_size=4,
        temporal_positions=temporal_positions,
    )


def _real_videos(seed: int, scale: float) -> Tensor:
    """Videos of the test split (n, 3, 8, 32, 32)."""
    num_samples = scaled(NUM_SAMPLES, scale, 16)
    return load_clips("test", num_samples, 1000 + seed, **CLIP_KWARGS).video


@cache
def train_arm(
    temporal_positions: str, num_images: int, seed: int, scale: float
) -> tuple[VideoUNet, float]:
    """A network trained on clips with images appended to each, and its seconds per step.

    The images are frames of other training clips, so that no arm has more data. Equal seeds give
    equal clips, timesteps and noise for every number of images.

    Args:
        temporal_positions: see `build_model`.
        num_images: appended to every clip.
        seed: of weights and batches.
        scale: fraction of the steps.
    """
    torch.manual_seed(seed)
    model = build_model(temporal_positions)
    video = load_clips("train", TRAINING.num_examples, seed, **CLIP_KWARGS).video
    scheduler = pixel_video_scheduler()

    def make_batch(generator: torch.Generator) -> dict[str, Tensor]:
        clips = video[torch.randint(len(video), (TRAINING.batch_size,), generator=generator)]
        noisy = make_noisy_batch(scheduler, clips, generator)
        if not num_images:
            return noisy._asdict()
        shape = (len(clips), num_images)
        rows = torch.randint(len(video), shape, generator=generator)
        frames = torch.randint(NUM_FRAMES, shape, generator=generator)
        images = video[rows, :, frames].transpose(1, 2)  # b 3 n h w
        noisy_images = make_noisy_batch(scheduler, images, generator, timesteps=noisy.t)
        is_image = torch.arange(NUM_FRAMES + num_images) >= NUM_FRAMES
        return noisy._asdict() | {
            "x_t": torch.cat([noisy.x_t, noisy_images.x_t], dim=2),
            "target": torch.cat([noisy.target, noisy_images.target], dim=2),
            "is_image": is_image.expand(len(clips), -1),
        }

    history = train_model(model, make_batch, denoiser_loss(), TRAINING, seed=seed, scale=scale)
    return model, seconds_per_step(history)


@shared_run
def _run_joint_training(arm: Arm, seed: int, scale: float) -> Metrics:
    model, seconds = train_arm("relative", arm.value, seed, scale)
    real = _real_videos(seed, scale)
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for x in sample_noise(real.shape, generator).split(32):
        *_, last = sample(
            unet_denoiser(model),
            pixel_video_scheduler(),
            x.to(model.device),
            num_inference_steps=NUM_INFERENCE_STEPS,
            generator=generator,
        )
        clips.append(last.x.float().cpu().clamp(-1, 1))
    video = torch.cat(clips)
    return {
        "fvd": fvd(video, real),
        "frame_fid": frame_fid(video[:, :, [1, 6]], real[:, :, [1, 6]]),
        "seconds_per_training_step": seconds,
    }


@torch.no_grad()
def shuffle_discrimination(net: nn.Module, video: Tensor, generator: torch.Generator) -> Metrics:
    """How often the error is smaller on a clip than on its frames in another order.

    Ties count half. Clip and shuffle have the same noise in the same frames and are compared frame
    by frame, so that they differ only in which frames are neighbours.

    Args:
        net: a video U-Net that predicts v, without text.
        video: clips (n, 3, f, h, w).
        generator: of order and noise.
    """
    scheduler = pixel_video_scheduler()
    order = torch.randperm(video.shape[2], generator=generator)
    noise = sample_noise(video.shape, generator)
    t = torch.tensor([PROBE_TIMESTEP])
    level = alpha_sigma_at(scheduler, t)
    model = unet_denoiser(net)
    errors = []
    for frames in (torch.arange(video.shape[2]), order):
        chunks = zip(video[:, :, frames].split(32), noise[:, :, frames].split(32), strict=True)
        for clips, eps in chunks:
            x_t = add_noise(scheduler, clips, eps, t).to(net.device)
            pred = model(x_t, t.expand(len(x_t)).to(net.device), None)
            x0 = convert_prediction(pred, x_t, level, "v_prediction").x0.cpu()
            errors.append((x0 - clips).square().mean(dim=(1, 2, 3, 4)).double())
    original, shuffled = torch.cat(errors).chunk(2)
    tie = (original - shuffled).abs() < 1e-4 * original  # rounding of sums in another order
    share = torch.where(tie, 0.5, (original < shuffled).double()).mean()
    return {
        "shuffle_discrimination": share.item(),
        "shuffle_error_ratio": (shuffled / original).mean().item(),
    }


def _run_positions(arm: Arm, seed: int, scale: float) -> Metrics:
    model, _ = train_arm(arm.value, 0, seed, scale)
    generator = torch.Generator().manual_seed(seed)
    return shuffle_discrimination(model, _real_videos(seed, scale), generator)


NUM_GUIDED = 64


# value: scale of temporal guidance at low noise; None: text guidance throughout
GUIDANCE_ARMS = (
    Arm("text_guidance", "text guidance", None),
    Arm("temporal_guidance", "text guidance then temporal guidance", vdm.TEMPORAL_GUIDANCE_SCALE),
)
CAPTION_KWARGS = {"size": 8, "num_frames": 1, **vdm.WORLD_KWARGS}  # tiny: only captions are used


def _run_guidance(arm: Arm, seed: int, scale: float) -> Metrics:
    """Clips of the two hardest motions; equal seeds give equal prompts and noise."""
    num_samples = scaled(NUM_GUIDED, scale, 4)
    clips = load_clips("test", 10 * num_samples, 1000 + seed, **CAPTION_KWARGS)
    pairs = zip(clips.captions, clips.scenes, strict=True)
    hard = [caption for caption, scene in pairs if scene.motion in vdm.HARD_MOTIONS]
    prompts = hard[:num_samples]
    video = vdm.generate(
        zoo.load_cached("vdm"),
        prompts,
        torch.Generator().manual_seed(seed),
        temporal_guidance_scale=arm.value,
    )
    accuracy = prompt_accuracy(video, prompts)
    return {key: accuracy[key] for key in ("motion_accuracy", "subject_accuracy")}


NUM_EXTENDED = 24
EXTENDED_NUM_FRAMES = 40
NEW_FRAMES_PER_BLOCK = vdm.NUM_FRAMES - vdm.NUM_COND_FRAMES


# value: weight of reconstruction guidance; None: replacement method only
CONDITIONING_ARMS = (
    Arm("replacement", "replacement", None),
    Arm("reconstruction", "reconstruction guidance", vdm.RECONSTRUCTION_WEIGHT),
)


def seam_ratio(video: Tensor) -> float:
    """Frame difference where two blocks meet, relative to elsewhere after the first block.

    Only every fourth difference counts: at 32 frames per second, an emoji's own image changes with
    every fourth frame.

    Args:
        video: (b, 3, f, h, w) at 32 frames per second.
    """
    diffs = video.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))[vdm.NUM_FRAMES - 1 :: 4]
    is_seam = torch.arange(len(diffs)) * 4 % NEW_FRAMES_PER_BLOCK == 0
    return (diffs[is_seam].mean() / diffs[~is_seam].mean()).item()


def _run_extension(arm: Arm, seed: int, scale: float) -> Metrics:
    """Clips at 32 frames per second, extended; both arms begin with the same first block."""
    num_samples = scaled(NUM_EXTENDED, scale, 4)
    prompts = load_clips("test", num_samples, 1000 + seed, **CAPTION_KWARGS).captions
    num_frames = EXTENDED_NUM_FRAMES if scale == 1 else vdm.NUM_FRAMES + NEW_FRAMES_PER_BLOCK
    video = vdm.generate(
        zoo.load_cached("vdm"),
        prompts,
        torch.Generator().manual_seed(seed),
        fps=32,
        num_frames=num_frames,
        reconstruction_weight=arm.value,
    )
    first, last = (
        prompt_accuracy(part, prompts)["subject_accuracy"]
        for part in (video[:, :, :16], video[:, :, -16:])
    )
    return {
        "seam_ratio": seam_ratio(video),
        "subject_accuracy/first_16_frames": first,
        "subject_accuracy/last_16_frames": last,
    }


_TRAINED = (
    f"{TRAINING.num_examples} clips of {NUM_FRAMES} frames of 32x32 pixels, "
    f"{len(WORLD_SUBSET['subjects'])} subjects, {len(WORLD_SUBSET['backgrounds'])} backgrounds, "
    f"no text; {TRAINING.num_steps} steps of {TRAINING.batch_size} clips, v-prediction, vdm's "
    f"schedule, a VideoUNet with channels {BLOCK_OUT_CHANNELS} on patches of 4x4 pixels"
)
CLAIMS = (
    Claim(
        id="joint-training-helps-video",
        lesson="03",
        source="Ho et al. 2022, Video Diffusion Models, section 4.3.1 and table 4",
        statement="After equally many training steps on the same clips, a video model has a lower "
        "FVD if 4 images are appended to every clip than with no images.",
        arms=IMAGES_ARMS,
        run=_run_joint_training,
        metric="fvd",
        metric_label="FVD",
        lower_is_better=True,
        better="images_4",
        worse="no_images",
        setup=f"{_TRAINED}; the images are frames of random clips of the same set; {NUM_SAMPLES} "
        f"generated clips, {NUM_INFERENCE_STEPS} steps of DDIM, FVD on features/video",
    ),
    Claim(
        id="temporal-positions",
        lesson="03",
        source="this course; attention without positions ignores order: Vaswani et al. 2017, "
        "section 3.5",
        statement="With relative positions, temporal attention can tell a clip from its shuffled "
        "frames; with no positions it cannot.",
        arms=POSITION_ARMS,
        run=_run_positions,
        metric="shuffle_discrimination",
        metric_label="clips distinguished from their shuffle",
        unit="%",
        chance=0.5,
        better="relative",
        worse="none",
        setup=f"{_TRAINED}; {NUM_SAMPLES} clips of the test split at timestep {PROBE_TIMESTEP}; a "
        "clip counts if the predicted x0 has a smaller error than for its shuffle, whose noise is "
        "shuffled with the frames; ties count half",
    ),
    Claim(
        id="temporal-guidance-helps-motion",
        lesson="03",
        source="Hyung et al. 2024, Spatiotemporal Skip Guidance; here the weak prediction treats "
        "frames as images",
        statement="With temporal guidance at low noise (guidance away from the frame-independent "
        "prediction), clips show the requested motion more often than with text guidance at all "
        "timesteps.",
        arms=GUIDANCE_ARMS,
        run=_run_guidance,
        metric="motion_accuracy",
        metric_label="motion accuracy (judge)",
        unit="%",
        better="temporal_guidance",
        worse="text_guidance",
        setup=f"vdm, {NUM_GUIDED} captions of the test split with the motions spinning and "
        f"bouncing; {vdm.NUM_INFERENCE_STEPS} steps of DDIM, text guidance scale "
        f"{vdm.GUIDANCE_SCALE:g}; below timestep {vdm.TEMPORAL_GUIDANCE_BELOW}, temporal guidance "
        f"with scale {vdm.TEMPORAL_GUIDANCE_SCALE:g}; motions recognised by the judge",
        seeds=(0, 1, 2, 3, 4),
    ),
    Claim(
        id="reconstruction-beats-replacement",
        lesson="03",
        source="Ho et al. 2022, Video Diffusion Models, sections 3.1 and 4.3.3",
        statement="Clips that are extended with reconstruction guidance change less abruptly "
        "where blocks meet than clips that are extended by replacement.",
        arms=CONDITIONING_ARMS,
        run=_run_extension,
        metric="seam_ratio",
        metric_label="frame difference at block boundaries, relative to elsewhere",
        lower_is_better=True,
        better="reconstruction",
        worse="replacement",
        setup=f"vdm, {NUM_EXTENDED} captions of the test split, 16 frames at 32 frames per "
        f"second, extended to {EXTENDED_NUM_FRAMES} frames by {NEW_FRAMES_PER_BLOCK} at a time; "
        f"{vdm.NUM_INFERENCE_STEPS} steps of DDIM, vdm's own guidance, reconstruction weight "
        f"{vdm.RECONSTRUCTION_WEIGHT:g}",
    ),
)
