"""Text scores: the encoder against transformers, the scores against loops and torchmetrics."""

import socket
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from course_lib import runtime
from course_lib.metrics import (
    ClipEncoder,
    DirectionalSimilarity,
    FrameAccuracy,
    FrameConsistency,
    TextAlignment,
    clip_similarity,
)

PROMPTS = ["a red ring", "a tiger", "two blue hearts"]


@pytest.fixture(scope="module")
def tokenizer():
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24
    )


def tiny_clip(tokenizer, image_size=32, **text):
    """A random CLIPModel; keywords go to its text config."""
    torch.manual_seed(0)
    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, **ids, **shared, **text}
    vision = {"image_size": image_size, "patch_size": 8, **shared}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    for parameter in model.parameters():  # small initial weights would make all embeddings alike
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def processor(size=32):
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return ClipEncoder(tiny_clip(tokenizer), tokenizer, processor())


def levels(b=3, f=2, size=32, seed=0):
    """Video on full grey levels, so that 8-bit pipelines see the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, 3, f, size, size), generator=generator, dtype=torch.uint8)


def as_video(grey):
    return grey.double() / 127.5 - 1


def flat(grey):
    return list(grey.permute(0, 2, 1, 3, 4).flatten(0, 1))


# The encoder


class Recorder(nn.Module):
    """Stands for a CLIPModel and hands back the pixels it was shown."""

    def __init__(self, tokenizer):
        super().__init__()
        self.config = SimpleNamespace(
            text_config=SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        )
        self.dtype = torch.float32

    def get_image_features(self, pixel_values):
        return SimpleNamespace(pooler_output=pixel_values.flatten(1))


LEVEL = 1 / 255 / 0.26  # one grey level, after division by CLIP's standard deviation


@pytest.mark.parametrize(
    ("size", "tolerance"), [(32, 1e-5), (40, 1.1 * LEVEL), (24, 1.1 * LEVEL), (130, 1.1 * LEVEL)]
)
def test_pixels_are_those_of_the_8_bit_pipeline_but_for_its_rounding(tokenizer, size, tolerance):
    grey = (
        nn.functional.interpolate(levels(size=6).double(), (2, size, size), mode="trilinear")
        .round()
        .byte()
    )
    expected = processor()(images=flat(grey), return_tensors="pt")["pixel_values"]
    pixels = ClipEncoder(Recorder(tokenizer).eval(), tokenizer, processor()).image(
        torch.stack([image.float() / 127.5 - 1 for image in flat(grey)])
    )
    assert expected.shape == (6, 3, 32, 32)
    assert (pixels - expected.flatten(1)).abs().max() <= tolerance


def test_embeddings_are_those_of_the_model(encoder, tokenizer):
    grey = levels()
    inputs = CLIPProcessor(processor(), tokenizer)(
        text=PROMPTS, images=flat(grey)[:3], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        expected = encoder.model(**inputs)
    images = torch.stack([image.float() / 127.5 - 1 for image in flat(grey)[:3]])
    for result, other in (
        (encoder.image(images), expected.image_embeds),
        (encoder.text(PROMPTS), expected.text_embeds),
    ):
        assert torch.allclose(result / result.norm(dim=1, keepdim=True), other, atol=1e-5)


def test_a_folder_makes_the_same_encoder(encoder, tmp_path):
    for part in (encoder.model, encoder.tokenizer, encoder.processor):
        part.save_pretrained(tmp_path)
    again = ClipEncoder.from_pretrained(tmp_path)
    images, words = torch.rand(2, 3, 40, 32) * 2 - 1, ["a tiger", "a bus"]
    torch.testing.assert_close(again.image(images), encoder.image(images), rtol=0, atol=0)
    torch.testing.assert_close(again.text(words), encoder.text(words), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())


def test_prompts_differ_and_their_company_does_not_matter(encoder):
    together = encoder.text(PROMPTS)
    assert torch.cdist(together, together).add(torch.eye(3)).min() > 0.05
    single = torch.cat([encoder.text([prompt]) for prompt in PROMPTS])
    assert torch.allclose(together, single, atol=1e-5)


def test_a_model_that_looks_for_another_end_of_text_is_refused(tokenizer):
    trap = tiny_clip(tokenizer, eos_token_id=3)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    alike = trap.get_text_features(**tokens).pooler_output
    assert (alike - alike[0]).abs().max() < 1e-6  # the trap: every prompt is the same to this model
    with pytest.raises(
        ValueError, match="model: expected text_config.eos_token_id = 513, the tokenizer's, got 3"
    ):
        ClipEncoder(trap, tokenizer, processor())


def test_old_checkpoints_with_their_wrong_id_are_read_as_transformers_reads_them(tokenizer):
    old, new = tiny_clip(tokenizer, eos_token_id=2), tiny_clip(tokenizer)
    result, expected = (
        ClipEncoder(model, tokenizer, processor()).text(PROMPTS) for model in (old, new)
    )
    assert torch.allclose(result, expected, atol=1e-6)


def test_long_prompts_are_refused_or_cut(encoder, tokenizer):
    long = "a very long description of it"
    with pytest.raises(
        ValueError, match="prompts: expected at most 24 tokens, got 26 in 'a very long"
    ):
        encoder.text(["a", long])
    cutting = ClipEncoder(encoder.model, tokenizer, processor(), truncate=True)
    short = tokenizer(long, truncation=True, max_length=24)["input_ids"]
    with torch.no_grad():
        expected = encoder.model.get_text_features(torch.tensor([short])).pooler_output
    assert torch.allclose(cutting.text([long]), expected, atol=1e-6)


def test_training_mode_is_refused(tokenizer):
    with pytest.raises(ValueError, match="model: expected a network in evaluation mode"):
        ClipEncoder(tiny_clip(tokenizer).train(), tokenizer, processor())


def test_the_image_side_alone_measures_consistency(encoder):
    metric = FrameConsistency(encoder.image, "tiny")
    metric.update(as_video(levels())[:, :, :1].expand(-1, -1, 4, -1, -1))
    for score in metric.compute().values():
        assert score.value == pytest.approx(1, abs=1e-5)


# Scores of an encoder with planted embeddings: a frame's colour, and the numbers in a prompt


class Planted:
    def image(self, images):
        return images[:, :, 0, 0]

    def text(self, prompts):
        return torch.tensor([[float(number) for number in prompt.split()] for prompt in prompts])


def frames(*clips):
    """Video of plain colours: clips[i][t] is the colour of frame t, except for a dark corner."""
    colours = torch.tensor(clips, dtype=torch.float64)  # (b, f, 3)
    video = colours.permute(0, 2, 1)[..., None, None].repeat(1, 1, 1, 2, 2)
    video[..., 1, 1] = -1
    return video


def measured(metric, *arguments):
    metric.update(*arguments)
    return metric.compute()


@given(st.integers(0, 10**6))
def test_three_scores_from_one_cosine(seed):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(3, 4, 3, generator=generator).double() * 2 - 1
    words = torch.rand(3, 3, generator=generator) * 2 - 1
    prompts = [" ".join(str(number) for number in row.tolist()) for row in words]
    cosines = [
        [float(x @ w / (x.norm() * w.norm())) for x in clip]
        for clip, w in zip(colours, words.double(), strict=True)
    ]
    result = clip_similarity(Planted(), frames(*colours.tolist()), prompts)
    assert torch.allclose(result, torch.tensor(cosines, dtype=torch.float64), atol=1e-6)
    scores = measured(TextAlignment(Planted(), "planted"), frames(*colours.tolist()), prompts)
    every = [value for clip in cosines for value in clip]
    mean = sum(every) / len(every)
    assert scores["clipsim"].value == pytest.approx(mean, abs=1e-6)
    assert scores["clipscore"].value == pytest.approx(
        2.5 * sum(max(x, 0) for x in every) / len(every), abs=1e-6
    )
    assert scores["clipscore_torchmetrics"].value == pytest.approx(max(100 * mean, 0), abs=1e-4)
    assert scores["clipscore_torchmetrics"].interval[0] >= 0
    assert scores["clipsim"].name == "clipsim[planted]" and scores["clipsim"].n == 3


def test_where_the_maximum_is_taken_matters():
    half = frames([[1, 0, 0], [-1, 0, 0]])  # one frame fits perfectly, one is the opposite
    scores = measured(TextAlignment(Planted(), "planted"), half, ["1 0 0"])
    assert {key: score.value for key, score in scores.items()} == pytest.approx(
        {"clipsim": 0, "clipscore": 1.25, "clipscore_torchmetrics": 0}
    )


class Unwrapped(nn.Module):
    """torchmetrics 1.9 expects get_*_features to return tensors, as transformers 4 did."""

    def __init__(self, model, sign):
        super().__init__()
        self.model, self.config, self.sign = model, model.config, sign

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, tokens, mask):
        return self.sign * self.model.get_text_features(tokens, mask).pooler_output


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_torchmetrics_clip_score(encoder, tokenizer, sign):
    grey = levels(seed=4)
    reference = CLIPScore(
        lambda: (Unwrapped(encoder.model, sign), CLIPProcessor(processor(), tokenizer))
    )
    with torch.no_grad():
        reference.update(flat(grey), [prompt for prompt in PROMPTS for _ in range(2)])
    signed = SimpleNamespace(image=encoder.image, text=lambda prompts: sign * encoder.text(prompts))
    scores = measured(TextAlignment(signed, "tiny"), as_video(grey), PROMPTS)
    assert scores["clipscore_torchmetrics"].value == pytest.approx(
        float(reference.compute()), abs=1e-3
    )
    assert 100 * scores["clipsim"].value == pytest.approx(float(reference.score) / 6, abs=1e-3)
    assert abs(scores["clipsim"].value) > 0.02  # so that one of the signs is cut off at 0


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (1, 1, 1)])
def test_batches_do_not_matter(encoder, sizes):
    metric, start = TextAlignment(encoder, "tiny"), 0
    video = as_video(levels())
    for size in sizes:
        metric.update(video[start : start + size], PROMPTS[start : start + size])
        start += size
    full = measured(TextAlignment(encoder, "tiny"), video, PROMPTS)
    for key, score in metric.compute().items():
        assert score.value == pytest.approx(full[key].value, rel=1e-4, abs=1e-5)
        assert score.interval == pytest.approx(full[key].interval, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([0, 1, 0], 1.0),  # the image changed as the words did
        ([1, 0, 0], 0.0),  # it did not change
        ([0, 0, 1], 0.5),  # it changed into something else: cos of (-1, 0, 1) and (-1, 1, 0)
        ([0, 0.1, 0], 1.0),  # how bright it is has no say: embeddings have length 1 first
    ],
)
def test_directional_similarity_of_planted_edits(after, expected):
    before, edited = frames([[1, 0, 0], [1, 0, 0]]), frames([after, after])
    score = measured(
        DirectionalSimilarity(Planted(), "planted"), before, edited, ["2 0 0"], ["0 3 0"]
    )
    assert score.value == pytest.approx(expected, abs=1e-7)
    assert score.name == "directional_similarity[planted]"
    back = measured(
        DirectionalSimilarity(Planted(), "planted"), before, edited, ["0 3 0"], ["2 0 0"]
    )
    assert back.value == pytest.approx(-expected, abs=1e-7)


def test_directional_similarity_is_a_mean_over_frames_then_clips():
    before = frames([[1, 0, 0]] * 2, [[1, 0, 0]] * 2)
    edited = frames([[0, 1, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]])
    metric = DirectionalSimilarity(Planted(), "planted")
    metric.update(before, edited, ["1 0 0"] * 2, ["0 1 0"] * 2)
    assert metric.per_clip()["directional"].tolist() == pytest.approx([0.5, 1.0])


def test_frame_accuracy_counts_frames_and_ties():
    edited = frames([[1, 0, 0], [0, 1, 0], [0.1, 0.9, 0], [0.5, 0.5, 0]], [[1, 0, 0]] * 4)
    metric = FrameAccuracy(Planted(), "planted")
    metric.update(edited, ["1 0 0"] * 2, ["0 1 0"] * 2)
    assert metric.per_clip()["accuracy"].tolist() == [0.75, 0.0]
    assert str(metric.compute()).startswith("frame_accuracy[planted] 0.375 [")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda v: clip_similarity(Planted(), v, ["1 0 0"]),
            "prompts: expected a list of 2 prompts, one per clip, got 1",
        ),
        (
            lambda v: clip_similarity(Planted(), v, "1 0 0"),
            "prompts: expected a list of 2 prompts, .* got one string",
        ),
        (
            lambda v: clip_similarity(Planted(), v, ["0 0 0"] * 2),
            r"encoder\(prompts\): expected embeddings with",
        ),
        (
            lambda v: clip_similarity(Planted(), v * 2, ["1 0 0"] * 2),
            r"video: expected values in \[-1, 1\]",
        ),
        (
            lambda v: DirectionalSimilarity(Planted(), "").update(
                v, v[:, :, :1], ["1 0 0"] * 2, ["0 1 0"] * 2
            ),
            "edited: expected the shape of source",
        ),
        (
            lambda v: DirectionalSimilarity(Planted(), "").update(
                v, v, ["1 0 0"] * 2, ["0 1 0", "2 0 0"]
            ),
            "expected different embeddings, got identical ones of '1 0 0' and '2 0 0'",
        ),
        (
            lambda v: FrameAccuracy(Planted(), "").update(v, ["1 0 0"] * 2, ["1 0 0"] * 2),
            "source_prompts, target_prompts: expected different embeddings",
        ),
        (lambda v: TextAlignment(Planted(), "").compute(), "clips: expected at least 1, got 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(frames([[1, 0, 0]] * 2, [[0, 1, 0]] * 2))


@pytest.mark.parametrize("is_online", [False, True])
def test_only_the_hub_setting_lets_a_name_go_to_the_network(encoder, monkeypatch, is_online):
    calls = []
    parts = (encoder.model, encoder.tokenizer, encoder.processor)
    for cls, part in zip((CLIPModel, CLIPTokenizer, CLIPImageProcessor), parts, strict=True):
        load = lambda _, part=part, **kwargs: calls.append(kwargs["local_files_only"]) or part  # noqa: E731
        monkeypatch.setattr(cls, "from_pretrained", load)
    monkeypatch.setattr(runtime, "hub_available", lambda: is_online)
    ClipEncoder.from_pretrained(Path("mistyped"))
    ClipEncoder.from_pretrained(Path(__file__).parent)
    assert calls == 3 * [not is_online] + 3 * [True]


@pytest.mark.parametrize("folder", ["no-such-folder", "no/such", Path("no/such/folder")])
def test_a_mistyped_folder_makes_no_request(folder, monkeypatch):
    connect = Mock(side_effect=AssertionError("a request"))
    monkeypatch.delenv("COURSE_HUB", raising=False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError):
        ClipEncoder.from_pretrained(folder)
