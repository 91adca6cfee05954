"""Lesson 06: diffusion in latents against pixels, and a text encoder against bags of words.

Both claims train small text-to-image models from scratch for a few minutes, on latents of mini-vae
or on pixels. The models are far from converged; what is compared is how far equally many training
images bring them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import runtime, zoo
from course_lib.claims.common import (
    BACKGROUNDS,
    Training,
    denoiser_loss,
    load_clips,
    scaled,
    seconds_per_step,
    train_model,
)
from course_lib.claims.ledger import Arm, Claim, Metrics
from course_lib.diffusion import (
    cfg_model,
    drop_conditioning,
    make_noisy_batch,
    sample,
    sample_noise,
)
from course_lib.evaluation import prompt_accuracy
from course_lib.nn.profiling import count_flops, count_parameters
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, build_scheduler, build_unet
from course_lib.pipelines.latents import decode, encode
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.training import TrainStep
from course_lib.world import HELD_OUT_SHAPES, SUBJECTS_24
from course_lib.world.subjects import COLOURED_SHAPES

TRAINING = Training(4096, batch_size=64, num_steps=600, lr=2e-3, warmup=50, ema_decay=0.98)
BLOCK_OUT_CHANNELS = (64, 128)  # two thirds of mini-sd's
TEXT_DIM = 128  # mini-clip's
NUM_PROMPTS = 256
NUM_INFERENCE_STEPS = 15
GUIDANCE_SCALE = 4.0
IMAGE_KWARGS = {"num_frames": 1, "random_time_offset": True, "backgrounds": BACKGROUNDS}


@dataclass(frozen=True)
class Representation(Arm):
    """Space in which a model works; `value` makes the noise schedule that is usual there.

    Attributes:
        channels: of the U-Net's input.
        size: of the U-Net's input.
        patch_size: pixels are cut into patches of this size; None for latents of mini-vae.
    """

    channels: int = LATENT_CHANNELS
    size: int = 8
    patch_size: int | None = None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, 64, 64) to the U-Net's space."""
        if self.patch_size:
            return F.pixel_unshuffle(images, self.patch_size)
        vae = zoo.load_cached("mini-vae")
        return torch.cat([encode(vae, chunk.to(vae.device)).cpu() for chunk in images.split(64)])

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """The U-Net's space to images (n, 3, 64, 64) in [-1, 1]."""
        if self.patch_size:
            return F.pixel_shuffle(x, self.patch_size).clamp(-1, 1)
        vae = zoo.load_cached("mini-vae")
        return torch.cat([decode(vae, chunk.to(vae.device)).cpu() for chunk in x.split(64)])


def _pixel_scheduler() -> SchedulerMixin:
    """Clips x0 to [-1, 1] while sampling, since pixels are bounded."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


LATENTS = Representation("latents", "latents", build_scheduler)
PIXELS = Representation("pixels", "pixels", _pixel_scheduler, channels=48, size=16, patch_size=4)


def _tokenize(prompts: list[str]) -> Tensor:
    return zoo.load_text_encoder().tokenize(prompts)


class WordEmbedding(nn.Module):
    """Token ids (b, l) to learned vectors (b, l, d), or to their mean (b, 1, d).

    A word has the same vector at every position and next to every other word.

    Args:
        text_encoder: its tokenizer is used.
        average: return the mean over tokens, without the end token that also pads.
    """

    def __init__(self, text_encoder: TextEncoder, average: bool) -> None:
        super().__init__()
        self.average = average
        self.end_token = int(text_encoder.tokenize([""])[0, -1])
        self.embedding = nn.Embedding(len(text_encoder.tokenizer), TEXT_DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.embedding(tokens)
        if not self.average:
            return vectors
        is_word = (tokens != self.end_token)[..., None].to(vectors.dtype)
        return (vectors * is_word).sum(1, keepdim=True) / is_word.sum(1, keepdim=True).clamp(min=1)


class TextToImage(nn.Module):
    """A U-Net and its text encoder: (x, t, {"tokens": (b, l)}) to a prediction.

    Args:
        text_encoder: token ids (b, l) to vectors (b, l, d). A module is trained, a function is not.
        space: of the U-Net.
    """

    def __init__(self, text_encoder: Callable[[Tensor], Tensor], space: Representation) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = build_unet(space.channels, space.size, BLOCK_OUT_CHANNELS)

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        text = self.text_encoder(cond["tokens"])
        return self.unet(x, t, encoder_hidden_states=text).sample


@cache
def _data(seed: int, subjects: tuple[str, ...], space: Representation) -> tuple[Tensor, Tensor]:
    """Encoded images of the training split, and token ids of their captions."""
    clips = load_clips("train", TRAINING.num_examples, seed, subjects=subjects, **IMAGE_KWARGS)
    return space.encode(clips.video[:, :, 0]), _tokenize(clips.image_paraphrases)


def train_text_to_image(
    model: TextToImage, space: Representation, subjects: tuple[str, ...], seed: int, scale: float
) -> list[TrainStep]:
    """Train in place. Equal seeds give equal images, captions and timesteps in every space.

    Args:
        model: the model.
        space: its space.
        subjects: of the training images.
        seed: of the data.
        scale: fraction of the steps.
    """
    x0, tokens = _data(seed, subjects, space)
    scheduler = space.value()
    null_tokens = _tokenize([""])

    def make_batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(x0), (TRAINING.batch_size,), generator=generator)
        cond = drop_conditioning(tokens[rows], null_tokens, 0.1, generator)
        return make_noisy_batch(scheduler, x0[rows], generator)._asdict() | {"tokens": cond}

    loss_fn = denoiser_loss(lambda net: net)
    return train_model(model, make_batch, loss_fn, TRAINING, seed=seed, scale=scale)


def generation_accuracy(
    model: TextToImage, space: Representation, prompts: list[str], seed: int
) -> float:
    """Fraction of prompts whose generated image shows all named attributes.

    Args:
        model: the model.
        space: its space.
        prompts: image captions.
        seed: of the initial noise.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.unet.device
    guided = cfg_model(model.eval(), {"tokens": _tokenize([""]).to(device)}, GUIDANCE_SCALE)
    images = []
    for start in range(0, len(prompts), 64):
        batch = prompts[start : start + 64]
        noise = sample_noise((len(batch), space.channels, space.size, space.size), generator)
        with runtime.autocast(device):
            *_, last = sample(
                guided,
                space.value(),
                noise.to(device),
                {"tokens": _tokenize(batch).to(device)},
                num_inference_steps=NUM_INFERENCE_STEPS,
                generator=generator,
            )
        images.append(space.decode(last.x.float().cpu()))
    return prompt_accuracy(torch.cat(images)[:, :, None], prompts)["all_attributes_accuracy"]


def _prompts(num_prompts: int, seed: int, **world_kwargs: object) -> list[str]:
    return load_clips("test", num_prompts, seed, **IMAGE_KWARGS, **world_kwargs).image_captions


def _run_representation(arm: Representation, seed: int, scale: float) -> Metrics:
    text_encoder = zoo.load_text_encoder()  # before seeding: loading it draws random numbers
    torch.manual_seed(seed)
    model = TextToImage(text_encoder.encode, arm)
    num_parameters = count_parameters(model)
    x = torch.zeros(1, arm.channels, arm.size, arm.size)
    flops = count_flops(model.unet, x, torch.zeros(1), torch.zeros(1, 32, TEXT_DIM))
    history = train_text_to_image(model, arm, SUBJECTS_24, seed, scale)
    prompts = _prompts(scaled(NUM_PROMPTS, scale, 8), 1000 + seed, subjects=SUBJECTS_24)
    return {
        "all_attributes_accuracy": generation_accuracy(model, arm, prompts, seed),
        "gflops_per_image_step": flops / 1e9,
        "seconds_per_training_step": seconds_per_step(history),
        "num_parameters": float(num_parameters),
    }


# value: makes the text encoder of a `TextToImage` from mini-clip's
TEXT_ENCODERS = (
    Arm("text_encoder", "CLIP text encoder", lambda clip: clip.encode),
    Arm(
        "bag_of_words", "bag of words (mean vector)", lambda clip: WordEmbedding(clip, average=True)
    ),
    Arm(
        "set_of_words",
        "set of words (one vector each)",
        lambda clip: WordEmbedding(clip, average=False),
    ),
)


def _run_composition(arm: Arm, seed: int, scale: float) -> Metrics:
    text_encoder = zoo.load_text_encoder()
    torch.manual_seed(seed)
    model = TextToImage(arm.value(text_encoder), LATENTS)
    train_text_to_image(model, LATENTS, COLOURED_SHAPES, seed, scale)
    num_prompts = scaled(NUM_PROMPTS, scale, 8)
    held_out = _prompts(num_prompts, 1000 + seed, subset="composed", subjects=HELD_OUT_SHAPES)
    trained = _prompts(num_prompts, 2000 + seed, subjects=COLOURED_SHAPES)
    return {
        f"all_attributes_accuracy/{name}": generation_accuracy(model, LATENTS, prompts, seed)
        for name, prompts in (("held_out_pairs", held_out), ("trained_pairs", trained))
    }


_TRAINED = (
    f"{TRAINING.num_steps} steps of {TRAINING.batch_size} images from {TRAINING.num_examples} on "
    f"{len(BACKGROUNDS)} backgrounds, v-prediction, a U-Net like mini-sd's with channels "
    f"{BLOCK_OUT_CHANNELS}"
)
_GENERATED = (
    f"{NUM_PROMPTS} captions of the test split, {NUM_INFERENCE_STEPS} steps of DDIM, guidance "
    f"scale {GUIDANCE_SCALE:g}; attributes recognised by the judge"
)
CLAIMS = (
    Claim(
        id="latents-are-cheaper",
        lesson="06",
        source="Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion "
        "Models, section 4.1",
        statement="After equally many training images, diffusion in latents follows more prompts "
        "than diffusion in pixels, with a fraction of the compute.",
        arms=(LATENTS, PIXELS),
        run=_run_representation,
        metric="all_attributes_accuracy",
        metric_label="all attributes correct",
        unit="%",
        better="latents",
        worse="pixels",
        setup=f"{len(SUBJECTS_24)} subjects, {_TRAINED}, on 8x8x16 latents of mini-vae or on "
        "16x16 patches of 4x4 pixels, each with its usual schedule; mini-vae's own training is "
        f"not counted; {_GENERATED}",
    ),
    Claim(
        id="text-encoder-composes",
        lesson="06",
        source="this course; Stable Diffusion (Rombach et al. 2022) uses CLIP's text encoder",
        statement="With CLIP's text encoder, a model generates combinations of colour and shape "
        "that are not in its training data more often than with a bag of words.",
        arms=TEXT_ENCODERS,
        run=_run_composition,
        metric="all_attributes_accuracy/held_out_pairs",
        metric_label="all attributes correct, held-out pairs",
        unit="%",
        better="text_encoder",
        worse="bag_of_words",
        setup=f"coloured shapes only, {_TRAINED}; bag: the mean of learned word vectors; set: a "
        "learned vector for each token, without order; the text encoder is mini-clip's, which was "
        f"not trained on held-out pairs either; {_GENERATED}",
    ),
)
