"""Lesson 06's exercises: solutions pass, every likely mistake gets its own message.

The mistakes in 6.2 and 6.3, the autoencoder's, are in `test_lesson_06_latents.py`.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from transformers import CLIPConfig, CLIPModel

from course_lib.exercises import check
from course_lib.exercises.lesson_06 import (
    EXERCISES,
    attention_map,
    cfg_text_batch,
    contrastive_loss,
    decode_latents,
    encode_to_latents,
)
from course_lib.lab.checks import IncorrectAnswer, engine, present
from tests.exercises.mutants_06 import BATCHES, LOSSES, MAPS, by_hand, clip, heads_first, pairs

BY_ID = {exercise.id: exercise for exercise in EXERCISES}
SOLUTIONS = {exercise.id: exercise.solution for exercise in EXERCISES} | {
    "6.2": (encode_to_latents, decode_latents)
}


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
    with pytest.raises(IncorrectAnswer) as wrong:
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
    torch.testing.assert_close(cfg_text_batch(embeddings, empty, 2), torch.cat([negative, text]))
