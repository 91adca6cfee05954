"""Lesson 06's exercises: every reference solution passes, every plausible mistake gets the message meant for it.

The mistakes in 6.2 and 6.3, the autoencoder's, are in `test_lesson_06_latents.py`.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from transformers import CLIPConfig, CLIPModel

from course_lib.lab.checks import Wrong, check, engine, present
from course_lib.exercises.lesson_06 import (
    EXERCISES,
    attention_map,
    contrastive_loss,
    guided_batch,
    images_of,
    latents_of,
)

BY_ID = {exercise.id: exercise for exercise in EXERCISES}
SOLUTIONS = {exercise.id: exercise.solution for exercise in EXERCISES} | {
    "6.2": (latents_of, images_of)
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
    (clip(product=lambda a, b: (a / a.norm()) @ (b / b.norm()).T), "the length of the whole table"),
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
    (clip(loss=lambda x: x), "Asked for: the loss, one number"),
    (
        clip(loss=lambda x: F.cross_entropy(x, pairs(x), reduction="none")),
        "Asked for: the loss, one number",
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
    (looks(scale=lambda d, heads: (heads * d) ** -0.5), "You took the root of heads · d = 12"),
    (looks(scale=lambda d, heads: 1 / d), "you divided by d"),
    (looks(scale=lambda d, heads: d**0.5), "you multiplied"),
    (looks(lambda x, heads: x.reshape(len(x), -1, heads).permute(2, 0, 1)), "into (d, heads)"),
    (looks(lambda x, heads: x.reshape(heads, len(x), -1)), "cuts the table across the pixels"),
    (looks(end=lambda x: x.mean(0).softmax(1)), "averaged the heads before the softmax"),
    (one_wide_head, "one head as wide as all"),
    (looks(end=lambda x: x.sum(0).softmax(1)), "one head as wide as all"),
    (looks(end=lambda x: x.softmax(2)), "every head's map, (heads, n, l)"),
    (looks(end=lambda x: x.softmax(2).transpose(0, 1)), "(n, heads, l)"),
    (looks(end=lambda x: x.softmax(2).sum(0)), "you summed the heads"),
    (looks(end=lambda x: x.softmax(2).mean(2)), "You averaged over the tokens"),
    (looks(end=lambda x: x.softmax(2).mean(1)), "You averaged over the pixels"),
    (looks(end=lambda x: x.softmax(2)[0]), "the first head alone"),
    (looks(end=lambda x: x.softmax(2)[-1]), "the last head alone"),
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
    return torch.cat(guided_batch(embeddings, empty, k).chunk(2)[::-1])


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
    (swapped, "The halves are swapped: the pipeline"),
    (
        lambda e, empty, k: torch.cat(tiled(e, empty, k).chunk(2)[::-1]),
        "swapped, and the prompts are tiled",
    ),
    (with_empties(lambda p, k: 1), "The empty prompt is there once"),
    (with_empties(lambda p, k: p), "One empty prompt a prompt"),
    (with_empties(lambda p, k: k), "The empty prompt is there k times"),
    (with_empties(lambda p, k: 0), "The empty prompts are missing."),
    (lambda e, empty, k: e.repeat(k, 1, 1), "missing, and the prompts are tiled"),
    (lambda e, empty, k: guided_batch(e, empty, 1), "images_per_prompt does not enter"),
    (
        lambda e, empty, k: guided_batch(e, empty, 1).repeat(k, 1, 1),
        "You repeated the finished batch",
    ),
    (taking_turns, "An empty prompt stands before every image"),
    (lambda e, empty, k: taking_turns(e, empty, 1).repeat(k, 1, 1), "take turns"),
    (prompt_after_prompt, "Each prompt follows its own empty ones"),
    (along_the_tokens, "Row 6 is none of the prompts"),
    (joined(torch.cat, 1), "one text of 8 tokens"),
    (joined(torch.cat, 2), "shape is (6, 4, 10)"),
    (joined(torch.stack, 0), "you stacked two batches"),
    (lambda e, empty, k: guided_batch(e, empty, k)[:0], "you returned no rows"),
    (lambda e, empty, k: None, "Is a `return` missing?"),
]


ALL = {"6.1": LOSSES, "6.4": MAPS, "6.5": BATCHES}
MUTANTS = [(identifier, *mutant) for identifier, mutants in ALL.items() for mutant in mutants]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_solution_passes(exercise):
    state = torch.get_rng_state()
    assert len(list(exercise.verify(SOLUTIONS[exercise.id]))) >= 2
    assert torch.equal(state, torch.get_rng_state()), (
        "a check leaves the student's random numbers alone"
    )
    assert len(exercise.hints) >= 3 and 5 <= exercise.minutes <= 15


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(Wrong) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def by_numpy(images, texts, logit_scale):
    a, b = (x.numpy().astype("float64") for x in (images, texts))
    a, b = (x / (x**2).sum(1, keepdims=True) ** 0.5 for x in (a, b))
    logits = float(logit_scale.exp()) * a @ b.T
    logits = logits - logits.max()  # both softmaxes allow it
    return float(by_hand(torch.from_numpy(logits)))


def by_sdpa(query, key, heads):
    split = [heads_first(x, heads) for x in (query, key)]
    eye = torch.eye(len(key)).to(query).expand(heads, -1, -1)
    return F.scaled_dot_product_attention(*split, eye).mean(0)


def by_loop(query, key, heads):
    d = query.shape[1] // heads
    maps = [
        (query[:, i : i + d] @ key[:, i : i + d].T / d**0.5).softmax(-1)
        for i in range(0, heads * d, d)
    ]
    return sum(maps).float() / heads


def as_diffusers_does(embeddings, empty, k):
    p, l, d = embeddings.shape  # noqa: E741
    text = embeddings.repeat(1, k, 1).view(p * k, l, d)
    return torch.cat([empty.repeat(p, k, 1).view(p * k, l, d), text])


OTHERS = [
    ("6.1", by_numpy),
    ("6.1", clip(loss=lambda x: F.cross_entropy(torch.cat([x, x.T]), pairs(x).repeat(2)).item())),
    (
        "6.1",
        clip(
            loss=lambda x: (
                sum(F.cross_entropy(way, torch.eye(len(x)).to(x)) for way in (x, x.T)) / 2
            )
        ),
    ),
    ("6.1", clip(loss=lambda x: -(x.log_softmax(0) + x.log_softmax(1)).trace() / len(x) / 2)),
    ("6.4", by_sdpa),
    ("6.4", by_loop),
    ("6.4", lambda query, key, heads: attention_map(query, key, heads).tolist()),
    ("6.5", as_diffusers_does),
    (
        "6.5",
        lambda e, empty, k: torch.cat(
            [empty] * len(e) * k + [row[None] for row in e for _ in range(k)]
        ).float(),
    ),
    ("6.5", lambda e, empty, k: torch.cat([empty.expand_as(e), e]).repeat_interleave(k, dim=0)),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


def stub(*_):
    raise NotImplementedError("Exercise 6.2: your code here")


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_nonsense_never_stops_a_notebook(exercise, monkeypatch):
    shown = []
    monkeypatch.setattr(present, "display", shown.append)
    monkeypatch.setattr(engine, "_progress", {})
    values = (
        None,
        3,
        "x",
        [],
        {},
        torch.zeros(0),
        torch.ones(2, 3),
        (1, 2),
        [torch.ones(2), torch.ones(3)],
        1j,
    )
    for function in (
        *(lambda *_, value=value: value for value in values),
        lambda *_: 1 / 0,
        lambda: 1,
        "text",
        7,
    ):
        check(exercise.id, (function, function) if exercise.id == "6.2" else function)
        assert "not right yet" in repr(shown[-1]) or "stopped with an error" in repr(shown[-1])
    for attempt in (None, (stub, stub) if exercise.id == "6.2" else stub):
        engine._progress.clear()
        check(exercise.id, attempt)
        assert "not attempted yet" in repr(shown[-1])


# The oracles


def test_the_contrastive_loss_is_that_of_a_whole_clip():
    tower = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    text = tower | {
        "vocab_size": 20,
        "max_position_embeddings": 4,
        "eos_token_id": 19,
        "bos_token_id": 18,
    }
    vision = tower | {"image_size": 4, "patch_size": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).eval()
    tokens, pixels = torch.randint(0, 19, (5, 4)), torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
        mine = contrastive_loss(3 * out.image_embeds, 0.2 * out.text_embeds, model.logit_scale)
    torch.testing.assert_close(mine, out.loss)


def test_the_batch_is_that_of_the_pipeline():
    embeddings, empty = torch.randn(3, 4, 5), torch.randn(1, 4, 5)
    parts = SimpleNamespace(text_encoder=None, unet=None)
    text, negative = StableDiffusionPipeline.encode_prompt(
        parts,
        None,
        "cpu",
        2,
        True,
        prompt_embeds=embeddings,
        negative_prompt_embeds=empty.expand(3, -1, -1),
    )
    torch.testing.assert_close(guided_batch(embeddings, empty, 2), torch.cat([negative, text]))
