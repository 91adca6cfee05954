"""The shipped checkpoints: load one by name, read its card, verify its files.

    from course_lib import zoo

    judge = zoo.load("judge")
    print(zoo.card("judge").evaluation)

A checkpoint is a folder `data/checkpoints/<name>/` in the format of its library (diffusers or
transformers, weights as safetensors, never pickle) with a model card in `README.md` and its metrics
in `evaluation.json`. `data/checkpoints/SHA256SUMS` lists all files but the cards; `sha256sum -c`
reads it too. Two kinds of checkpoints have no complete model in their folder:

- An alias (mini-vae is mini-sd's autoencoder) has a card and metrics; see `registry.ALIASES`.
- A delta (mini-video extends mini-sd; a LoRA, a ControlNet or a text embedding would) has only its
  additional weights, and `base.json` with the base's name and the checksums of the base files that
  it needs; see `deltas`.
"""

from course_lib.zoo.checksums import CARD_FILE, CHECKSUMS_FILE, EVALUATION_FILE, PICKLE_SUFFIXES
from course_lib.zoo.deltas import (
    BASE_FILE,
    BASE_PARTS,
    DELTA_KINDS,
    EMBEDDING_WEIGHTS_NAME,
    LORA_WEIGHTS_NAME,
    TEMPORAL_WEIGHTS_NAME,
    load_temporal_layers,
    save_controlnet,
    save_lora,
    save_temporal_layers,
    save_text_embedding,
    write_base,
)
from course_lib.zoo.registry import (
    ALIASES,
    COURSE_CLASSES,
    Card,
    card,
    default_root,
    load,
    load_cached,
    load_text_encoder,
    names,
    path,
    verify,
)
from course_lib.zoo.store import store

__all__ = [
    "ALIASES",
    "BASE_FILE",
    "BASE_PARTS",
    "CARD_FILE",
    "CHECKSUMS_FILE",
    "COURSE_CLASSES",
    "DELTA_KINDS",
    "EMBEDDING_WEIGHTS_NAME",
    "EVALUATION_FILE",
    "LORA_WEIGHTS_NAME",
    "PICKLE_SUFFIXES",
    "TEMPORAL_WEIGHTS_NAME",
    "Card",
    "card",
    "default_root",
    "load",
    "load_cached",
    "load_temporal_layers",
    "load_text_encoder",
    "names",
    "path",
    "save_controlnet",
    "save_lora",
    "save_temporal_layers",
    "save_text_embedding",
    "store",
    "verify",
    "write_base",
]
