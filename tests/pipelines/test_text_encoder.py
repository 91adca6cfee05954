"""The text encoder against transformers' own CLIP."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from course_lib.pipelines.text_encoder import TextEncoder

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
    with pytest.raises(ValueError, match="prompts: expected at least one, got an empty list"):
        encoder([])
