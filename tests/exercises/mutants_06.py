"""Wrong answers to the exercises of lesson 06, and the message that each gets."""

import torch
import torch.nn.functional as F

from course_lib.exercises.lesson_06 import (
    EXERCISES,
    cfg_text_batch,
    decode_latents,
    encode_to_latents,
)

BY_ID = {exercise.id: exercise for exercise in EXERCISES}
SOLUTIONS = {exercise.id: exercise.solution for exercise in EXERCISES} | {
    "6.2": (encode_to_latents, decode_latents)
}


# 6.1


def pairs(logits):
    return torch.arange(len(logits))


def symmetric(logits, reduction="mean", target=pairs):
    """The sum of both directions."""
    labels = target(logits)
    return sum(F.cross_entropy(way, labels, reduction=reduction) for way in (logits, logits.T))


def cosines(images, texts, dim=1):
    return F.normalize(images, dim=dim) @ F.normalize(texts, dim=dim).T


def clip(scale=torch.exp, product=cosines, loss=lambda logits: symmetric(logits) / 2):
    """A contrastive loss with parts to replace."""
    return lambda images, texts, logit_scale: loss(scale(logit_scale) * product(images, texts))


def by_hand(logits, small=0.0):
    odds = logits.exp()
    return (
        -sum((odds / odds.sum(dim, keepdim=True) + small).diagonal().log().mean() for dim in (0, 1))
        / 2
    )


def clamped(logits):
    return -sum(logits.softmax(dim).diagonal().clamp(min=1e-6).log().mean() for dim in (0, 1)) / 2


def probabilities_as_logits(logits):
    return sum(F.cross_entropy(way.softmax(1), pairs(logits)) for way in (logits, logits.T)) / 2


LOSSES = [
    (clip(product=lambda a, b: a @ b.T), "The features are not of length one"),
    (
        clip(product=lambda a, b: a @ F.normalize(b, dim=1).T),
        "The image features are not of length one",
    ),
    (
        clip(product=lambda a, b: F.normalize(a, dim=1) @ b.T),
        "The text features are not of length one",
    ),
    (clip(product=lambda a, b: cosines(a, b, dim=0)), "norms over the batch"),
    (
        clip(product=lambda a, b: (a / a.norm()) @ (b / b.norm()).T),
        "the length of the entire table",
    ),
    (
        clip(product=lambda a, b: (a / a.square().sum(1, True)) @ (b / b.square().sum(1, True)).T),
        "a root is missing",
    ),
    (clip(product=lambda a, b: a.softmax(1) @ b.softmax(1).T), "A softmax makes a row sum to one"),
    (clip(scale=lambda s: s), "the parameter is its logarithm"),
    (clip(scale=lambda s: (-s).exp()), "you divide by it"),
    (clip(scale=lambda s: 1 / s), "you divide by its logarithm"),
    (clip(scale=lambda s: 1), "it is missing"),
    (clip(scale=lambda s: (2 * s).exp()), "twice"),
    (clip(loss=lambda x: F.cross_entropy(x, pairs(x))), "Every text must find its image too"),
    (clip(loss=lambda x: F.cross_entropy(x.T, pairs(x))), "Every image must find its text too"),
    (
        clip(loss=lambda x: -x.log_softmax(0).diagonal().mean()),
        "Every image must find its text too",
    ),
    (clip(loss=symmetric), "not their sum"),
    (clip(loss=lambda x: symmetric(x, "sum") / 2), "You sum over the pairs. "),
    (clip(loss=lambda x: symmetric(x, "sum")), "over the pairs and over the two directions"),
    (clip(loss=lambda x: symmetric(x) / 2 / len(x)), "only the n pairs count"),
    (clip(loss=lambda x: -symmetric(x) / 2), "The sign is flipped"),
    (
        clip(loss=lambda x: symmetric(x, target=lambda x: pairs(x) * 0) / 2),
        "the first text as its label",
    ),
    (clip(loss=lambda x: symmetric(x, target=lambda x: pairs(x).flip(0)) / 2), "run backwards"),
    (clip(loss=lambda x: symmetric(x, target=lambda x: (pairs(x) + 1) % len(x)) / 2), "off by one"),
    (clip(loss=probabilities_as_logits), "you gave it probabilities"),
    (
        clip(loss=lambda x: -(x - x.logsumexp((0, 1))).diagonal().mean()),
        "one softmax over all n² pairs",
    ),
    (
        clip(loss=lambda x: F.binary_cross_entropy_with_logits(x, torch.eye(len(x)).to(x))),
        "a yes or no for every pair",
    ),
    (clip(loss=lambda x: -x.diagonal().mean()), "Only the right pairs enter"),
    (clip(loss=lambda x: x), "The loss is one number"),
    (
        clip(loss=lambda x: F.cross_entropy(x, pairs(x), reduction="none")),
        "The loss is one number",
    ),
    (clip(loss=by_hand), "too large for float32"),
    (
        clip(loss=lambda x: by_hand(x.double()).float() if x.dtype == torch.double else by_hand(x)),
        "exp(-200) is 0",
    ),
    (clip(loss=lambda x: by_hand(x - x.max() / 2, 1e-8)), "A constant inside the logarithm"),
    (clip(loss=clamped), "A constant inside the logarithm, or a clamp"),
    (lambda images, texts, logit_scale: None, "Is a `return` missing?"),
    (lambda images, texts, logit_scale: "low", "expected the number"),
]


# 6.4


def heads_first(x, heads):
    return x.reshape(len(x), heads, -1).transpose(0, 1)


def looks(split=heads_first, scale=lambda d, heads: d**-0.5, end=lambda x: x.softmax(2).mean(0)):
    """An attention map with parts to replace."""

    def look(query, key, heads):
        logits = split(query, heads) @ split(key, heads).mT
        return end(logits * scale(query.shape[1] // heads, heads))

    return look


def one_wide_head(query, key, heads):
    return (query @ key.T / query.shape[1] ** 0.5).softmax(1)


MAPS = [
    (looks(end=lambda x: x.softmax(1).mean(0)), "the softmax runs over the pixels"),
    (looks(end=lambda x: x.softmax(0).mean(0)), "the softmax runs over the heads"),
    (looks(scale=lambda d, heads: 1), "that is missing"),
    (looks(scale=lambda d, heads: (heads * d) ** -0.5), "You took the root of num_heads · d = 12"),
    (looks(scale=lambda d, heads: 1 / d), "you divided by d"),
    (looks(scale=lambda d, heads: d**0.5), "you multiplied"),
    (looks(lambda x, heads: x.reshape(len(x), -1, heads).permute(2, 0, 1)), "into (d, num_heads)"),
    (looks(lambda x, heads: x.reshape(heads, len(x), -1)), "cuts the table across the pixels"),
    (looks(end=lambda x: x.mean(0).softmax(1)), "averaged the heads before the softmax"),
    (one_wide_head, "one head as wide as all"),
    (looks(end=lambda x: x.sum(0).softmax(1)), "one head as wide as all"),
    (looks(end=lambda x: x.softmax(2)), "every head's map, (num_heads, n, l)"),
    (looks(end=lambda x: x.softmax(2).transpose(0, 1)), "(n, num_heads, l)"),
    (looks(end=lambda x: x.softmax(2).sum(0)), "you summed the heads"),
    (looks(end=lambda x: x.softmax(2).mean(2)), "You averaged over the tokens"),
    (looks(end=lambda x: x.softmax(2).mean(1)), "You averaged over the pixels"),
    (looks(end=lambda x: x.softmax(2)[0]), "only the first head"),
    (looks(end=lambda x: x.softmax(2)[-1]), "only the last head"),
    (looks(end=lambda x: x.softmax(2).amax(0)), "the largest of the heads"),
    (looks(end=lambda x: x.mean(0)), "the softmax is missing"),
    (looks(end=lambda x: x.softmax(2).mean(0).T), "(tokens, pixels)"),
    (lambda query, key, heads: None, "Is a `return` missing?"),
    (lambda query, key, heads: {"map": 1}, "expected a tensor"),
]


# 6.5


def tiled(embeddings, empty, k):
    return torch.cat([empty.repeat(len(embeddings) * k, 1, 1), embeddings.repeat(k, 1, 1)])


def swapped(embeddings, empty, k):
    return torch.cat(cfg_text_batch(embeddings, empty, k).chunk(2)[::-1])


def with_empties(count):
    """The prompts in the right order after `count(p, k)` empty ones."""
    return lambda e, empty, k: torch.cat(
        [empty.repeat(count(len(e), k), 1, 1), e.repeat_interleave(k, dim=0)]
    )


def taking_turns(embeddings, empty, k):
    return torch.cat([row for e in embeddings for _ in range(k) for row in (empty, e[None])])


def prompt_after_prompt(embeddings, empty, k):
    return torch.cat(
        [row for e in embeddings for row in (empty.repeat(k, 1, 1), e.repeat(k, 1, 1))]
    )


def along_the_tokens(embeddings, empty, k):
    rows = embeddings.repeat_interleave(k, dim=1).reshape(-1, *embeddings.shape[1:])
    return torch.cat([empty.repeat(len(rows), 1, 1), rows])


def joined(join, dim):
    return lambda e, empty, k: join(
        [empty.repeat(len(e) * k, 1, 1), e.repeat_interleave(k, dim=0)], dim
    )


BATCHES = [
    (tiled, "you returned ∅∅∅∅∅∅ABCABC, expected ∅∅∅∅∅∅AABBCC"),
    (tiled, "`repeat`, which tiles"),
    (swapped, "The halves are swapped: guidance"),
    (
        lambda e, empty, k: torch.cat(tiled(e, empty, k).chunk(2)[::-1]),
        "prompt. And the rows are tiled",
    ),
    (with_empties(lambda p, k: 1), "The empty prompt is there once"),
    (with_empties(lambda p, k: p), "One empty prompt per prompt"),
    (with_empties(lambda p, k: k), "The empty prompt is there k times"),
    (with_empties(lambda p, k: 0), "The unconditional half is missing."),
    (lambda e, empty, k: e.repeat(k, 1, 1), "missing, and the prompts are tiled"),
    (lambda e, empty, k: cfg_text_batch(e, empty, 1), "images_per_prompt does not enter"),
    (
        lambda e, empty, k: cfg_text_batch(e, empty, 1).repeat(k, 1, 1),
        "You repeated the finished batch",
    ),
    (taking_turns, "Before every conditional row stands"),
    (lambda e, empty, k: taking_turns(e, empty, 1).repeat(k, 1, 1), "take turns"),
    (prompt_after_prompt, "Each prompt's two kinds of rows"),
    (along_the_tokens, "row 6 is none of the prompts"),
    (joined(torch.cat, 1), "one text of 8 tokens"),
    (joined(torch.cat, 2), "shape is (6, 4, 10)"),
    (joined(torch.stack, 0), "you stacked two batches"),
    (lambda e, empty, k: cfg_text_batch(e, empty, k)[:0], "you returned nothing"),
    (lambda e, empty, k: None, "Is a `return` missing?"),
]
