"""The text encoder against transformers' own CLIP."""

import inspect
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)

from course_lib.papers.video_ldm import build_unet
from course_lib.pipelines.text_encoder import TextEncoder
from course_lib.world import BACKGROUNDS, BASE_EMOJI, COLOURED_SHAPES, COLOURS, MOTIONS, SHAPES
from course_lib.world.captions import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from tests.pipelines.small import build_pipeline

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 6,
}


def test_token_embeddings_are_appended_and_normalised(untrained_diffusion):
    tokenizer = untrained_diffusion().tokenizer
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(CLIPTextConfig(**SIZES)).eval()
    tokens = torch.randint(20, (3, 6))
    with torch.no_grad():
        out = TextEncoder(text_encoder, tokenizer, token_embeddings=True).encode(tokens)
        expected = text_encoder(tokens).last_hidden_state
        plain = TextEncoder(text_encoder, tokenizer).encode(tokens)
        position = text_encoder.get_submodule("embeddings.position_embedding").weight
        inputs = text_encoder.get_input_embeddings()(tokens) + position
    assert out.shape == (3, 6, 16)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(out[..., :8], expected)
    std = (inputs.var(-1, False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(out[..., 8:], (inputs - inputs.mean(-1, True)) / std)


@pytest.mark.parametrize("token_embeddings", [False, True])
def test_prompts_are_padded_and_encoded_without_gradients(untrained_diffusion, token_embeddings):
    system = untrained_diffusion()
    encoder = TextEncoder(system.text_encoder, system.tokenizer, token_embeddings)
    prompts = ["a tiger", "a red star on a snow background"]
    tokens = encoder.tokenize(prompts)
    assert tokens.shape == (2, system.tokenizer.model_max_length)
    out = encoder(prompts)
    assert out.shape[-1] == encoder.dim == (64 if token_embeddings else 32)
    assert not out.requires_grad
    torch.testing.assert_close(out, encoder.encode(tokens))


def test_autocast_does_not_round_the_text(untrained_diffusion):
    system = untrained_diffusion()
    encoder = TextEncoder(system.text_encoder, system.tokenizer)
    expected = encoder(["a tiger"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(["a tiger"]), expected)


def test_from_clip_copies_the_text_half(untrained_diffusion):
    torch.manual_seed(0)
    vision = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "num_hidden_layers": 1}
    clip = CLIPModel(CLIPConfig(text_config=SIZES, vision_config=vision, projection_dim=4)).eval()
    tokens = torch.randint(20, (2, 6))
    encoder = TextEncoder.from_clip(clip, untrained_diffusion().tokenizer)
    with torch.no_grad():
        expected = clip.text_model(tokens).last_hidden_state
    torch.testing.assert_close(encoder.encode(tokens), expected)
    assert not any(weight.requires_grad for weight in encoder.text_encoder.parameters())
    assert encoder.text_encoder is not clip.text_model


def test_bad_prompts_are_refused(untrained_diffusion):
    system = untrained_diffusion()
    encoder = TextEncoder(system.text_encoder, system.tokenizer)
    with pytest.raises(ValueError, match="prompts: expected a list, got one string, 'a tiger'"):
        encoder("a tiger")
    with pytest.raises(ValueError, match="prompts: expected one or more strings, got an empty"):
        encoder([])


# What the tokens do not say


@pytest.fixture(scope="module")
def encoder(untrained_diffusion):
    system = untrained_diffusion()
    return TextEncoder(system.text_encoder, system.tokenizer)


def recorded(encoder, prompts):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        tokens = encoder.tokenize(prompts)
    assert (tokens[:, -1] == encoder.tokenizer.eos_token_id).all(), "the end token stays"
    assert all(Path(warning.filename) == Path(__file__) for warning in record)
    return [str(warning.message) for warning in record]


def test_a_prompt_that_is_too_long_keeps_its_end_token_and_what_is_cut_is_named(encoder):
    full = "tiger " * 30
    assert recorded(encoder, [full, ""]) == []
    limit = "prompts: expected at most 32 tokens, cut off: "
    assert recorded(encoder, [full + "lion on  a\ngrass background"]) == [
        limit + "lion on a grass background"
    ]
    # A word of which a part fits is lost, too; texts are named once
    cut, split = recorded(encoder, ["tiger " * 27 + "axolotl spinning"] * 2)
    assert cut == limit + "axolotl spinning"
    assert split.endswith(": axolotl")
    cut, _ = recorded(encoder, ["x" * 5000])
    assert cut == f"{limit}{'x' * (1000)} …"


def test_words_and_scripts_that_the_tokenizer_never_learnt_are_named(encoder):
    label = "prompts: words that the tokenizer does not know, split into letters: "
    prompts = ["Zebra, Ärger, 猫, axolotl", "тигр 🐯", "a tiger and an axolotl", "café"]
    assert recorded(encoder, prompts) == [label + "Ärger, 猫, axolotl, тигр, 🐯, café"]


def test_prompts_of_the_world_are_silent(encoder):
    captions = [
        template.format(a_subject=f"a {subject}", motion=motion, background=background)
        for subject, motion in itertools.zip_longest(
            BASE_EMOJI + COLOURED_SHAPES, MOTIONS, fillvalue="spinning"
        )
        for background in BACKGROUNDS
        for template in VIDEO_TEMPLATES + IMAGE_TEMPLATES
    ]
    assert recorded(encoder, captions) == []
    words = [*COLOURS, *MOTIONS, *SHAPES, "an owl's ... (12) -- video!?", "A TIGER", "\t"]
    assert recorded(encoder, words) == []


def test_a_missing_word_of_a_vocabulary_of_words_is_named(encoder):
    """A tokenizer without letters has one token for all words that it does not know."""
    vocab = {"[UNK]": 0, "[END]": 1, "a": 2, "tiger": 3}
    words = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    names = {"unk_token": "[UNK]", "eos_token": "[END]", "pad_token": "[END]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=4, **names)
    cut, missing = recorded(
        TextEncoder(encoder.text_encoder, tokenizer), ["a lion", "a tiger", "a a a tiger"]
    )
    assert cut.endswith("at most 4 tokens, cut off: tiger")
    assert missing.endswith(": lion")


def test_word_pieces_of_a_large_vocabulary_are_silent(encoder):
    """A rare word of several pieces is read; one that falls apart into letters is not."""
    pieces = ["ax", "olo", "tl</w>", "a</w>"]
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    merges = [("a", "x"), ("o", "l"), ("ol", "o"), ("t", "l</w>")]
    names = [*letters, "ol", *pieces, "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    encoder = TextEncoder(encoder.text_encoder, tokenizer)
    assert recorded(encoder, ["a axolotl"]) == []
    (message,) = recorded(encoder, ["a axolotl quokka"])
    assert message.endswith(": quokka")


def test_every_way_to_encode_prompts_warns_at_the_callers_line(untrained_diffusion):
    system = untrained_diffusion()
    pipe = build_pipeline(system, build_unet(system.unet))
    options = {"num_inference_steps": 1, "generator": torch.Generator()}
    calls = (
        lambda: TextEncoder(system.text_encoder, system.tokenizer)(["axolotl"]),
        lambda: system.encode_prompt(["axolotl"]),
        lambda: system.generate(["axolotl"], **options),
        lambda: system.generate(["a tiger"], negative_prompt="axolotl", **options),
        lambda: pipe.generate("axolotl", num_frames=1, **options),
        lambda: pipe("axolotl", num_frames=1, **options),
        lambda: pipe("a tiger", negative_prompt="axolotl", num_frames=1, **options),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="does not know.*: axolotl$") as record:
            call()
        assert [Path(warning.filename) for warning in record] == [Path(__file__)]


def test_prompts_may_be_any_iterable(encoder):
    expected = encoder.tokenize(["a tiger", "a lion"])
    for prompts in (("a tiger", "a lion"), iter(["a tiger", "a lion"])):
        assert torch.equal(encoder.tokenize(prompts), expected)
    assert torch.equal(encoder.tokenize(np.array(["a tiger", "a lion"])), expected)
    with pytest.raises(ValueError, match="prompts: expected one or more strings, got None"):
        inspect.unwrap(TextEncoder.tokenize)(encoder, ["a tiger", None])
