"""Prompts to text embeddings: tokenizer and text encoder in one object.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 4.3 (BERT).
Rombach et al. 2022, arXiv 2112.10752, section 3.3 (a text encoder and cross-attention).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase


class TextEncoder:
    """Prompts to embeddings (b, l, d), one vector per token, padding included.

    Args:
        text_encoder: a text model of transformers, such as CLIPTextModel.
        tokenizer: its tokenizer; every prompt is padded or cut to `model_max_length`.
        token_embeddings: append the layer-normalised input embeddings (token and position) to the
            last hidden state, which doubles d. A text encoder trained against images carries no
            motion information; the raw embeddings do.
    """

    def __init__(
        self,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        token_embeddings: bool = False,
    ):
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.token_embeddings = token_embeddings

    @classmethod
    def from_clip(
        cls, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, token_embeddings: bool = False
    ) -> "TextEncoder":
        """The text half of a CLIP model, copied, frozen and in evaluation mode.

        Args:
            clip: the model. tokenizer: its tokenizer.
            token_embeddings: see the class.
        """
        text_encoder = CLIPTextModel(clip.config.text_config)
        text_encoder.load_state_dict(clip.text_model.state_dict())
        text_encoder = text_encoder.to(clip.device, clip.dtype).eval().requires_grad_(False)
        return cls(text_encoder, tokenizer, token_embeddings)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return self.text_encoder.config.hidden_size * (2 if self.token_embeddings else 1)

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Token ids of the prompts, all rows of the length that the encoder was made for.

        Raises:
            ValueError: `prompts` is one string, or empty.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts: expected a list, got one string, {prompts!r}")
        if len(prompts) == 0:
            raise ValueError("prompts: expected at least one, got an empty list")
        return self.tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def encode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Embeddings of token ids, with gradients if the encoder's weights require them."""
        tokens = tokens.to(self.text_encoder.device)
        out = self.text_encoder(tokens, output_hidden_states=self.token_embeddings)
        if not self.token_embeddings:
            return out.last_hidden_state
        inputs = out.hidden_states[0]
        return torch.cat([out.last_hidden_state, F.layer_norm(inputs, inputs.shape[-1:])], dim=-1)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Embeddings of prompts, without gradients and in the encoder's own dtype.

        The empty prompt "" is the null text of classifier-free guidance. Autocast is switched off:
        the text is encoded once for all steps, and sampling should not inherit its rounding.

        Raises:
            ValueError: as `tokenize`.
        """
        with torch.autocast(self.text_encoder.device.type, enabled=False):
            return self.encode(self.tokenize(prompts))
