"""Lesson 03: CLIP's text encoder hides motion words from a video model; token embeddings keep them.

A small network is trained on pure noise and captions, so that the text is all it can learn from.
"""

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib import zoo
from course_lib.claims.common import (
    WORLD_SUBSET,
    Training,
    denoiser_loss,
    load_clips,
    pixel_video_scheduler,
    scaled,
    train_model,
)
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.diffusion import (
    NoisyBatch,
    alpha_sigma_at,
    convert_prediction,
    make_noisy_batch,
)
from course_lib.nn.unet import VideoUNet
from course_lib.pipelines.unet_adapter import unet_denoiser
from course_lib.recipes import vdm
from course_lib.world import MOTIONS, Clips

TRAINING = Training(2048, batch_size=32, num_steps=400, lr=1e-3, warmup=30)
BLOCK_OUT_CHANNELS = (64, 64)
NUM_TEST = 256
ENCODER_DIM = 128  # width of the text encoder's states
FULL_TEXT_DIM = 256  # states and token embeddings


CLIP_KWARGS = {"size": vdm.SIZE, **WORLD_SUBSET}

# value: number of text features that the network gets; the others are zero, so that all networks
# have the same size
ARMS = (
    Arm("encoder_states", "encoder states", ENCODER_DIM),
    Arm("encoder_states_and_embeddings", "encoder states and token embeddings", FULL_TEXT_DIM),
)


def encode_text(prompts: list[str]) -> Tensor:
    """States and token embeddings (b, l, 256) of mini-clip's text encoder, on the CPU."""
    return zoo.load_text_encoder(token_embeddings=True)(prompts).cpu()


def pure_noise_batch(
    clips: Float[Tensor, "b 3 f h w"],
    frames: Int[Tensor, "n"],
    text: Float[Tensor, "b l d"],
    arm: Arm,
    generator: torch.Generator,
) -> tuple[NoisyBatch, dict[str, Tensor]]:
    """Frames of clips at the last timestep, where nothing is left of them, and the conditioning.

    Args:
        clips: in [-1, 1].
        frames: indices of the frames to take.
        text: states and token embeddings.
        arm: decides which text features are kept.
        generator: of the noise.
    """
    scheduler = pixel_video_scheduler()
    kept = text * (torch.arange(text.shape[-1]) < arm.value)
    last_timestep = torch.full((len(clips),), len(scheduler.alphas_cumprod) - 1)
    noisy = make_noisy_batch(scheduler, clips[:, :, frames], generator, timesteps=last_timestep)
    return noisy, {"text": kept, "frame_index": frames.expand(len(clips), -1)}


def train_arm(arm: Arm, seed: int, scale: float) -> VideoUNet:
    """A network that has learnt what captions tell about clips.

    Args:
        arm: of `ARMS`.
        seed: of data, weights and noise; equal seeds give equal clips, frames and noise.
        scale: fraction of the steps.
    """
    clips = load_clips("train", TRAINING.num_examples, seed, **CLIP_KWARGS)
    text = encode_text(clips.captions)
    torch.manual_seed(seed)
    model = VideoUNet(
        block_out_channels=BLOCK_OUT_CHANNELS,
        attention_levels=(True,) * len(BLOCK_OUT_CHANNELS),
        cross_attention_dim=FULL_TEXT_DIM,
        patch_size=4,
        frame_embedding=True,
        coord_embedding=True,
    )

    def make_batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(text), (TRAINING.batch_size,), generator=generator)
        first = int(torch.randint(vdm.FRAME_STRIDE, (), generator=generator))
        frames = torch.arange(first, vdm.NUM_FRAMES, vdm.FRAME_STRIDE)
        noisy, cond = pure_noise_batch(clips.video[rows], frames, text[rows], arm, generator)
        return noisy._asdict() | cond

    train_model(model, make_batch, denoiser_loss(), TRAINING, seed=seed, scale=scale)
    return model


@torch.no_grad()
def motion_word_sensitivity(
    net: nn.Module, arm: Arm, clips: Clips, generator: torch.Generator
) -> Metrics:
    """Error with the correct motion word in the caption against the mean of the eight wrong ones.

    Args:
        net: a video U-Net that predicts v.
        arm: the one that the network was trained for.
        clips: of the test split, 16 frames.
        generator: of the noise, which is the same for all words.
    """
    frames = torch.arange(1, vdm.NUM_FRAMES, vdm.FRAME_STRIDE)
    state = generator.get_state()
    errors = []
    for motion in MOTIONS:
        captions = [
            caption.replace(f" {scene.motion} on ", f" {motion} on ")
            for caption, scene in zip(clips.captions, clips.scenes, strict=True)
        ]
        generator.set_state(state)
        noisy, cond = pure_noise_batch(clips.video, frames, encode_text(captions), arm, generator)
        inputs = send_to_device((noisy.x_t, noisy.t, cond), net.device)
        pred = unet_denoiser(net)(*inputs).cpu().float()
        level = alpha_sigma_at(pixel_video_scheduler(), noisy.t)
        x0 = convert_prediction(pred, noisy.x_t, level, "v_prediction").x0
        errors.append((x0 - clips.video[:, :, frames]).square().mean(dim=(1, 2, 3, 4)).double())
    error = torch.stack(errors, dim=1)  # b, number of motions
    target = torch.tensor([MOTIONS.index(scene.motion) for scene in clips.scenes])
    correct = error[torch.arange(len(target)), target]
    wrong = (error.sum(dim=1) - correct) / (len(MOTIONS) - 1)
    return {
        "error_reduction": (1 - correct.mean() / wrong.mean()).item(),
        "motion_identification": (error.argmin(dim=1) == target).double().mean().item(),
        "error_correct_word": correct.mean().item(),
    }


def _run(arm: Arm, seed: int, scale: float) -> Metrics:
    model = train_arm(arm, seed, scale)
    clips = load_clips("test", scaled(NUM_TEST, scale, 16), 1000 + seed, **CLIP_KWARGS)
    generator = torch.Generator().manual_seed(seed)
    return motion_word_sensitivity(model, arm, clips, generator)


CLAIMS = (
    Claim(
        id="token-embeddings-carry-motion-words",
        lesson="03",
        source="this course; the paper's text encoder is BERT, trained on text: Ho et al. 2022, "
        "section 4.3",
        statement="A video model learns motion words faster from the states and the token "
        "embeddings of CLIP's text encoder than from its states only.",
        arms=ARMS,
        run=_run,
        metric="error_reduction",
        metric_label="relative error reduction by the correct motion word",
        unit="%",
        better="encoder_states_and_embeddings",
        worse="encoder_states",
        setup=f"{TRAINING.num_examples} clips of 32x32 pixels, {len(WORLD_SUBSET['subjects'])} "
        f"subjects, {len(WORLD_SUBSET['backgrounds'])} backgrounds, every fourth frame, pure "
        f"noise; {TRAINING.num_steps} steps of {TRAINING.batch_size} clips, a VideoUNet with "
        f"channels {BLOCK_OUT_CHANNELS} and embeddings of position and frame index; {NUM_TEST} "
        "clips of the test split, each denoised with its own motion word and with the eight "
        "others; text encoder of mini-clip",
    ),
)
