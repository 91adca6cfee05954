"""mini-clip: one space for pictures and sentences, in the format of the CLIP that everybody knows.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.3. It never
sees the 12 novel emoji or a held-out pair. Its text tower will steer mini-sd; its image tower measures likeness.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
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

from course_lib.papers import latent_diffusion
from course_lib.recipes.recipe import Recipe, Settings, save_half
from course_lib.world import (
    BACKGROUNDS,
    HELD_OUT_SHAPES,
    MOTIONS,
    Clips,
    Sampler,
    Scene,
    World,
    caption,
    image_caption,
    part_of,
    render,
)
from course_lib.world.backgrounds import BACKGROUND_INDEX
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from course_lib.world.hashing import mix
from course_lib.world.subjects import (
    COLOURED_SHAPES,
    COLOURS,
    SEEN_EMOJI,
    SHAPES,
    SUBJECT_INDEX,
    looks_round,
)

SIZE, PATCH, WIDTH, LAYERS, HEADS = 64, 8, 128, 4, 4
TOKENS = 32  # the longest prompt, ends included: "a video of a birthday cake …" in letters and syllables still fits
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # pixels in [0, 1] become the course's [-1, 1]
START, END = "<|startoftext|>", "<|endoftext|>"
FAMILY = 4  # captions that differ in one word stand in the same batch


def captions_to_read() -> list[str]:
    """Every sentence whose words mini-clip should know: all but those with a novel emoji."""
    return [
        template.format(a_subject=f"a {subject}", motion=motion, background=background)
        for subject in SEEN_EMOJI + COLOURED_SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
        for template in VIDEO_TEMPLATES + IMAGE_TEMPLATES
    ]


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer over this world's words: every word of a caption is one token, others are spelt."""
    words = sorted(
        {word for text in captions_to_read() for word in text.replace(",", "").split()}
        | {"an", "in"}
    )
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*bytes_, *(byte + "</w>" for byte in bytes_)]  # inside a word, or at its end
    # Byte-pair merges are learned as CLIP's were: each word ends in a mark of its own
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    # Letters named beforehand keep their order: the trainer breaks ties by it, and its own changes from run to run
    options = {"end_of_word_suffix": "</w>", "special_tokens": letters, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=10**5, min_frequency=1, **options)
    learner.train_from_iterator([" ".join(words)], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # Any text can be written: all 256 bytes, inside a word or at its end, then the merges in their order
    pieces = [*letters, *("".join(pair) for pair in merges), START, END]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    # by keyword `vocab`: `vocab_file` would be ignored and leave a tokenizer of two tokens
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def build() -> CLIPModel:
    """The untrained CLIP: a vision transformer on 64 patches and a causal text transformer, projected to 128."""
    tokenizer = build_tokenizer()
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    # Without eos_token_id the text tower would pool the first token, which is the same for every prompt
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": SIZE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokenize(texts: Sequence[str]) -> Tensor:
    """Token ids (b, l) of fixed length, ends marked and padded with the end mark, as Stable Diffusion does.

    texts: b sentences. Raises ValueError for one string.
    """
    return latent_diffusion.tokenize(_tokenizer(), texts)


@cache
def _tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def families(number: int, count: int) -> list[Scene]:
    """Scenes in families of four: one, the same on another background, and two relatives on the same.

    The relatives of a coloured shape have its colour and another form, its form and another colour; those of an emoji
    are any other emoji. Contrast between neighbours is what forces the model to read every word: where forms met only
    by chance, it told all colours apart and 58 % of the forms. Every second family is of shapes, for the same reason.
    Only what generators may see.
    """
    scenes, samplers = (
        [],
        (Sampler("train", seed=11), Sampler("train", seed=12, subjects=COLOURED_SHAPES)),
    )
    for family in range(count // FAMILY):
        index = number * (count // FAMILY) + family
        first, *others = (samplers[index % 2](FAMILY * index + k) for k in range(FAMILY))
        draw = [int(mix(5, index, k)[0] >> np.uint64(1)) for k in range(3)]
        elsewhere = [name for name in BACKGROUNDS if name != first.background][
            draw[0] % (len(BACKGROUNDS) - 1)
        ]
        scenes += [first, Scene(first.subject, first.motion, elsewhere, others[0].variant)]
        for names, chance, other in zip(relatives(first), draw[1:], others[1:], strict=True):
            scenes.append(
                Scene(names[chance % len(names)], first.motion, first.background, other.variant)
            )
    return scenes


def relatives(scene: Scene) -> tuple[list[str], list[str]]:
    """Subjects like a scene's that are seen in its motion: of a shape, in its colour and of its form; else emoji."""
    colour, _, form = scene.subject.partition(" ")
    both = SEEN_EMOJI, SEEN_EMOJI
    if scene.subject in COLOURED_SHAPES:
        both = [f"{colour} {name}" for name in SHAPES], [f"{name} {form}" for name in COLOURS]

    def seen(subject: str) -> bool:
        exists = not (scene.motion == "spinning" and looks_round(subject))
        return exists and subject != scene.subject and part_of(subject, scene.motion) == "seen"

    return tuple([name for name in names if seen(name)] for names in both)


def batches(number: int, settings: Settings) -> dict[str, Tensor]:
    """One global batch: "pixel_values" (b, 3, 64, 64) in [-1, 1], "input_ids" (b, 32), half of the captions with a
    motion, and "meaning" (b,), equal where subject and background are.
    """
    scenes = families(number, settings.batch)
    images = render(scenes, size=SIZE, frames=1, anytime=True).video[:, :, 0]  # b c h w
    words = [int(mix(6, number, i)[0] % np.uint64(8)) for i in range(len(scenes))]
    texts = [
        caption(scene, word % 4) if word < 4 else image_caption(scene, word % 4)
        for scene, word in zip(scenes, words, strict=True)
    ]
    meaning = [
        SUBJECT_INDEX[s.subject] * len(BACKGROUNDS) + BACKGROUND_INDEX[s.background] for s in scenes
    ]
    return {"pixel_values": images, "input_ids": tokenize(texts), "meaning": torch.tensor(meaning)}


def contrast(logits: Float[Tensor, "n n"], meaning: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy, but pairs of the same meaning are all right answers, not wrong ones.

    logits: scaled cosines, pictures by captions. meaning: equal numbers for equal captions.
    """
    same = (meaning[:, None] == meaning[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """`contrast` of one batch. Of several processes, each contrasts its own rows."""
    out = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    return contrast(out.logits_per_image.float(), batch["meaning"])


def save(model: CLIPModel, folder: Path) -> None:
    """Write model, tokenizer and image processor into one folder, as `from_pretrained` of each expects."""
    save_half(model, folder)
    _tokenizer().save_pretrained(folder)
    square = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessor(
        size=square, crop_size=square, image_mean=list(MEAN), image_std=list(STD)
    )
    processor.save_pretrained(folder)


# After training


@torch.no_grad()
def embed(model: CLIPModel, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures (b, c, h, w) and of captions."""
    image = [
        model.get_image_features(some.to(model.device)).pooler_output for some in images.split(128)
    ]
    text = [
        model.get_text_features(some.to(model.device)).pooler_output
        for some in tokenize(texts).split(128)
    ]
    return tuple(F.normalize(torch.cat(parts).float().cpu(), dim=-1) for parts in (image, text))


def distinct(world: World, count: int) -> Clips:
    """`count` pictures of a world, no two with the same subject and background."""
    seen: dict[tuple[str, str], int] = {}
    for index in itertools.count():
        scene = world.sampler(index)
        seen.setdefault((scene.subject, scene.background), index)
        if len(seen) == count:
            return world.batch(seen.values())


def retrieval(
    model: CLIPModel, pictures: Clips, texts: Sequence[str], group: int = 64
) -> dict[str, float]:
    """R@1 within groups of 64: the share of pictures whose own caption is nearest, and of captions likewise."""
    image, text = embed(model, pictures.video[:, :, 0], texts)
    cosine = torch.einsum("gid,gjd->gij", *(x.unflatten(0, (-1, group)) for x in (image, text)))
    own = torch.arange(group)
    return {
        "picture to caption": (cosine.argmax(2) == own).double().mean().item(),
        "caption to picture": (cosine.argmax(1) == own).double().mean().item(),
    }


def evaluate(model: CLIPModel, settings: Settings) -> Mapping[str, Any]:
    """What the card prints: retrieval among 64 on the test split, and one-word contrasts."""
    count = 64 if settings.steps < 100 else 768
    pictures = distinct(World("test", frames=1, anytime=True), count)
    found = {
        f"R@1 of 64, {way}": value
        for way, value in retrieval(model, pictures, pictures.image_captions).items()
    }
    with_motion = retrieval(model, pictures, pictures.captions)
    found |= {
        f"R@1 of 64, {way}, motion in the caption": value for way, value in with_motion.items()
    }
    worlds = {
        "seen": World("test", frames=1, anytime=True, subjects=COLOURED_SHAPES),
        "held-out": World(
            "test", frames=1, anytime=True, part="composed", subjects=HELD_OUT_SHAPES
        ),
    }
    for name, world in worlds.items():
        found[f"{name} colour x shape, right among 48"] = among_shapes(
            model, world.batch(range(count))
        )
    pictures = World("test", frames=1, anytime=True).batch(range(count))
    return found | {"background, right among 10": among_backgrounds(model, pictures)}


def among_shapes(model: CLIPModel, pictures: Clips) -> float:
    """Share of pictures for which the right of all 48 coloured shapes fits best, on the picture's own background."""
    prompts = [f"a {shape} on a {b} background" for b in BACKGROUNDS for shape in COLOURED_SHAPES]
    image, text = embed(model, pictures.video[:, :, 0], prompts)
    own = torch.tensor([BACKGROUND_INDEX[scene.background] for scene in pictures.scenes])
    cosine = torch.einsum("bd,bsd->bs", image, text.unflatten(0, (len(BACKGROUNDS), -1))[own])
    right = torch.tensor([COLOURED_SHAPES.index(scene.subject) for scene in pictures.scenes])
    return (cosine.argmax(1) == right).double().mean().item()


def among_backgrounds(model: CLIPModel, pictures: Clips) -> float:
    """Share of pictures for which, of ten captions with the right subject, the one with its background fits best."""
    prompts = [
        f"a {scene.subject} on a {b} background" for scene in pictures.scenes for b in BACKGROUNDS
    ]
    image, text = embed(model, pictures.video[:, :, 0], prompts)
    cosine = torch.einsum("bd,bsd->bs", image, text.unflatten(0, (-1, len(BACKGROUNDS))))
    right = torch.tensor([BACKGROUND_INDEX[scene.background] for scene in pictures.scenes])
    return (cosine.argmax(1) == right).double().mean().item()


RECIPE = Recipe(
    name="mini-clip",
    about="Puts pictures and captions of the Emoji World into one space, as CLIP does.",
    build=build,
    batches=batches,
    loss=loss,
    save=save,
    evaluate=evaluate,
    settings={
        "cpu": Settings(steps=4500, batch=128, lr=1e-3, warmup=200, weight_decay=0.05, ema=0.998),
        "gpu": Settings(steps=4500, batch=512, lr=1e-3, warmup=200, weight_decay=0.05, ema=0.998),
        "ci": Settings(steps=3, batch=8, lr=1e-3),
    },
    bars={
        **{
            f"R@1 of 64, {way}": (">=", 0.95)
            for way in ("picture to caption", "caption to picture")
        },
        "seen colour x shape, right among 48": (">=", 0.9),
    },
    notes="""
`transformers.CLIPModel`, `CLIPTokenizer` and `CLIPImageProcessor` load this folder. Pictures are 64 x 64. It learned
from single frames of the parts of the world that generators may see: it does not know the 12 novel emoji, nor has it
seen a held-out shape. Half of its captions named a motion, which a single frame cannot show: its embeddings say
nothing about motion. Unknown words are spelt in syllables and letters; 32 tokens hold every caption.
""",
)
