"""mini-clip: a CLIP of the Emoji World, in the format of transformers.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.3. Trained on the base subset only: without the 12 novel emoji and held-out pairs. Its
text encoder conditions mini-sd; its image encoder is a similarity metric.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from course_lib.recipes.recipe import Recipe, TrainConfig, save_fp16
from course_lib.validation import require
from course_lib.world import (
    BACKGROUNDS,
    BASE_EMOJI,
    COLOURED_SHAPES,
    COLOURS,
    HELD_OUT_SHAPES,
    MOTIONS,
    SHAPES,
    Clips,
    Sampler,
    Scene,
    World,
    caption,
    image_caption,
    render,
    subset_of,
)
from course_lib.world.backgrounds import BACKGROUND_INDEX
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.hashing import hash_u64
from course_lib.world.subjects import SUBJECT_INDEX, is_rotation_symmetric

IMAGE_SIZE = 64
PATCH_SIZE = 8
HIDDEN_SIZE = 128
NUM_LAYERS = 4
NUM_HEADS = 4
MAX_TOKENS = 32  # the longest caption with an unknown subject, spelt in letters, still fits
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
GROUP_SIZE = 4  # captions of a group differ in one word


def vocabulary_captions() -> list[str]:
    """All captions whose words are tokens: those without a novel emoji."""
    return [
        template.format(a_subject=f"a {subject}", motion=motion, background=background)
        for subject in BASE_EMOJI + COLOURED_SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
        for template in VIDEO_TEMPLATES + IMAGE_TEMPLATES
    ]


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with this world's words as tokens; other words are spelt."""
    texts = vocabulary_captions()
    words = sorted(
        {word for text in texts for word in text.replace(",", "").split()} | {"an", "in"}
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(byte + "</w>" for byte in alphabet)]  # inside a word, or at its end
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=10**5,
        min_frequency=1,
        end_of_word_suffix="</w>",
        special_tokens=letters,  # a fixed order: the trainer breaks ties by it
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(words)], trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    # All 256 bytes, then the merges in order, so any text can be tokenized
    pieces = [*letters, *("".join(pair) for pair in merges), START_TOKEN, END_TOKEN]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    # The keyword `vocab_file` would be ignored and leave a tokenizer of two tokens
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


_tokenizer = cache(build_tokenizer)


def tokenize(texts: Sequence[str]) -> Int[Tensor, "b l"]:
    """Token ids, all rows 32 long, padded with the end token as in Stable Diffusion.

    Raises:
        ValueError: one string in place of a list.
    """
    require(not isinstance(texts, str), "texts", "a list", f"one string, {texts!r}")
    kwargs = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return _tokenizer()(list(texts), **kwargs).input_ids


def build_model() -> CLIPModel:
    """The untrained CLIP: a vision transformer on 64 patches and a causal text transformer."""
    tokenizer = _tokenizer()
    transformer = {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 4 * HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "projection_dim": HIDDEN_SIZE,
    }
    # Without eos_token_id the text encoder pools the first token, the same for every prompt
    special_ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    text = transformer | sizes | special_ids
    vision = transformer | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=HIDDEN_SIZE))


def hard_negative_groups(number: int, batch_size: int) -> list[Scene]:
    """Scenes of one batch in groups of four: a scene, another background, two hard negatives.

    The hard negatives of a coloured shape have its colour and another shape, and its shape and
    another colour; those of an emoji are other emoji. In-batch contrast then covers every word;
    with random batches shapes were learned far worse than colours (docs/decisions.md). Every second
    group is about a coloured shape. Only scenes of the base subset.

    Args:
        number: of the batch.
        batch_size: scenes, a multiple of 4.
    """
    samplers = (Sampler("train", seed=11), Sampler("train", seed=12, subjects=COLOURED_SHAPES))
    num_groups = batch_size // GROUP_SIZE
    scenes = []
    for group in range(number * num_groups, (number + 1) * num_groups):
        first, *others = (samplers[group % 2](GROUP_SIZE * group + k) for k in range(GROUP_SIZE))
        choices = [int(hash_u64(5, group, k)[0] >> np.uint64(1)) for k in range(3)]
        backgrounds = [name for name in BACKGROUNDS if name != first.background]
        background = backgrounds[choices[0] % len(backgrounds)]
        scenes += [first, replace(first, background=background, variant=others[0].variant)]
        for names, choice, other in zip(
            hard_negatives(first), choices[1:], others[1:], strict=True
        ):
            subject = names[choice % len(names)]
            scenes.append(replace(first, subject=subject, variant=other.variant))
    return scenes


def hard_negatives(scene: Scene) -> tuple[list[str], list[str]]:
    """Similar subjects of the base subset for a scene's motion.

    For a coloured shape: those of its colour, and those of its shape; for an emoji twice all emoji.
    """
    colour, _, shape = scene.subject.partition(" ")
    candidates = BASE_EMOJI, BASE_EMOJI
    if scene.subject in COLOURED_SHAPES:
        candidates = [f"{colour} {name}" for name in SHAPES], [f"{c} {shape}" for c in COLOURS]

    def is_valid(subject: str) -> bool:
        exists = not (scene.motion == "spinning" and is_rotation_symmetric(subject))
        return exists and subject != scene.subject and subset_of(subject, scene.motion) == "base"

    return tuple([name for name in names if is_valid(name)] for names in candidates)


def make_batch(number: int, config: TrainConfig) -> dict[str, Tensor]:
    """One global batch.

    "pixel_values" (b, 3, 64, 64) in [-1, 1]; "input_ids" (b, 32), half of the captions with a
    motion; "positive_ids" (b,), equal for equal subject and background.
    """
    scenes = hard_negative_groups(number, config.batch_size)
    images = render(scenes, size=IMAGE_SIZE, num_frames=1, random_time_offset=True).video
    templates = [int(hash_u64(6, number, i)[0] % np.uint64(8)) for i in range(len(scenes))]
    texts = [
        (caption if template < 4 else image_caption)(scene, template % 4)
        for scene, template in zip(scenes, templates, strict=True)
    ]
    positive_ids = [
        SUBJECT_INDEX[s.subject] * len(BACKGROUNDS) + BACKGROUND_INDEX[s.background] for s in scenes
    ]
    return {
        "pixel_values": images[:, :, 0],
        "input_ids": tokenize(texts),
        "positive_ids": torch.tensor(positive_ids),
    }


def multi_positive_clip_loss(
    logits: Float[Tensor, "n n"], positive_ids: Int[Tensor, "n"]
) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy with several positives per row.

    Args:
        logits: scaled cosine similarities, images by captions.
        positive_ids: rows with equal numbers are positives of each other.
    """
    positive = (positive_ids[:, None] == positive_ids[None, :]).float()
    target = positive / positive.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss_fn(model: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """`multi_positive_clip_loss` of one batch; each of several processes contrasts its own rows."""
    out = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    return multi_positive_clip_loss(out.logits_per_image.float(), batch["positive_ids"])


def save(model: CLIPModel, folder: Path) -> None:
    """Write model, tokenizer and image processor for `from_pretrained` of each."""
    save_fp16(model, folder)
    _tokenizer().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    # Pixels in [0, 1] become [-1, 1]
    scaling = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    CLIPImageProcessor(size=size, crop_size=size, **scaling).save_pretrained(folder)


@torch.no_grad()
def embed_pairs(model: CLIPModel, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images (b, c, h, w) and of captions."""
    encoders = (model.get_image_features, images), (model.get_text_features, tokenize(texts))
    embeddings = []
    for encode, inputs in encoders:
        parts = [encode(batch.to(model.device)).pooler_output for batch in inputs.split(128)]
        embeddings.append(F.normalize(torch.cat(parts).float().cpu(), dim=-1))
    return tuple(embeddings)


def distinct_scenes(world: World, num_images: int) -> Clips:
    """Images of a world, no two with the same subject and background."""
    index_of: dict[tuple[str, str], int] = {}
    for index in itertools.count():
        scene = world.sampler(index)
        index_of.setdefault((scene.subject, scene.background), index)
        if len(index_of) == num_images:
            return world.batch(index_of.values())


def retrieval(
    model: CLIPModel, images: Clips, texts: Sequence[str], group_size: int = 64
) -> dict[str, float]:
    """Recall@1 in groups: how often the own caption, or the own image, is the nearest.

    Args:
        model: the CLIP.
        images: clips of one frame, a multiple of `group_size`.
        texts: their captions.
        group_size: number of candidates.
    """
    image, text = embed_pairs(model, images.video[:, :, 0], texts)
    groups = (embeddings.unflatten(0, (-1, group_size)) for embeddings in (image, text))
    cosine = torch.einsum("gid,gjd->gij", *groups)
    own = torch.arange(group_size)
    return {
        "image_to_text": (cosine.argmax(2) == own).double().mean().item(),
        "text_to_image": (cosine.argmax(1) == own).double().mean().item(),
    }


def evaluate(model: CLIPModel, config: TrainConfig) -> Mapping[str, Any]:
    """Retrieval on the test split, and zero-shot classification of shapes and backgrounds."""

    def world(**kwargs: Any) -> World:
        return World("test", num_frames=1, random_time_offset=True, **kwargs)

    num_images = config.eval_samples
    images = distinct_scenes(world(), num_images)
    captions = {
        "recall_at_1": images.image_captions,
        "recall_at_1_with_motion": images.captions,
    }
    metrics = {
        f"{name}/{direction}": recall
        for name, texts in captions.items()
        for direction, recall in retrieval(model, images, texts).items()
    }
    shape_worlds = {
        "base": world(subjects=COLOURED_SHAPES),
        "held_out": world(subset="composed", subjects=HELD_OUT_SHAPES),
    }
    for name, shape_world in shape_worlds.items():
        accuracy = zero_shot_shapes(model, shape_world.batch(range(num_images)))
        metrics[f"zero_shot_shape_accuracy/{name}"] = accuracy
    accuracy = zero_shot_backgrounds(model, world().batch(range(num_images)))
    return metrics | {"zero_shot_background_accuracy": accuracy}


def zero_shot_shapes(model: CLIPModel, images: Clips) -> float:
    """Accuracy among captions of all 48 coloured shapes on the image's own background."""
    prompts = [f"a {shape} on a {b} background" for b in BACKGROUNDS for shape in COLOURED_SHAPES]
    image, text = embed_pairs(model, images.video[:, :, 0], prompts)
    background = torch.tensor([BACKGROUND_INDEX[scene.background] for scene in images.scenes])
    candidates = text.unflatten(0, (len(BACKGROUNDS), -1))[background]  # b 48 d
    cosine = torch.einsum("bd,bsd->bs", image, candidates)
    target = torch.tensor([COLOURED_SHAPES.index(scene.subject) for scene in images.scenes])
    return (cosine.argmax(1) == target).double().mean().item()


def zero_shot_backgrounds(model: CLIPModel, images: Clips) -> float:
    """Accuracy among captions of the image's own subject on all ten backgrounds."""
    prompts = [f"a {s.subject} on a {b} background" for s in images.scenes for b in BACKGROUNDS]
    image, text = embed_pairs(model, images.video[:, :, 0], prompts)
    candidates = text.unflatten(0, (-1, len(BACKGROUNDS)))  # b 10 d
    cosine = torch.einsum("bd,bsd->bs", image, candidates)
    target = torch.tensor([BACKGROUND_INDEX[scene.background] for scene in images.scenes])
    return (cosine.argmax(1) == target).double().mean().item()


RECIPE = Recipe(
    name="mini-clip",
    summary="Embeds images and captions of the Emoji World in one space, as CLIP does.",
    build_model=build_model,
    make_batch=make_batch,
    loss_fn=loss_fn,
    save=save,
    evaluate=evaluate,
    configs={
        profile: TrainConfig(
            4500,
            batch_size,
            lr=1e-3,
            warmup=200,
            weight_decay=0.05,
            ema_decay=0.998,
            eval_samples=768,
        )
        for profile, batch_size in (("cpu", 128), ("gpu", 512))
    }
    | {"ci": TrainConfig(3, batch_size=8, lr=1e-3, eval_samples=64)},
    targets={
        "recall_at_1/image_to_text": (">=", 0.95),
        "recall_at_1/text_to_image": (">=", 0.95),
        "zero_shot_shape_accuracy/base": (">=", 0.9),
    },
    hub_metadata={
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
    },
    notes="""
`CLIPModel`, `CLIPTokenizer` and `CLIPImageProcessor` of transformers load this folder. Images have
64 x 64 pixels. The model was trained on single frames of the base subset: it does not know the 12
novel emoji, and has not seen held-out shapes. Half of its captions named a motion, which a single
frame cannot show, so its embeddings carry no motion. Unknown words are spelt in syllables and
letters; 32 tokens hold every caption.

`recall_at_1` is retrieval among 64 candidates, without or `_with_motion` in the captions;
`zero_shot_shape_accuracy` is the accuracy among 48 coloured shapes, of which the `held_out` ones
were never trained on; `zero_shot_background_accuracy` is the accuracy among 10 backgrounds.
""",
)
