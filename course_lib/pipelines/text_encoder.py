"""Prompts to text embeddings: tokenizer and text encoder in one object.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 4.3 (BERT).
Rombach et al. 2022, arXiv 2112.10752, section 3.3 (a text encoder and cross-attention).
"""

import itertools
import re
import sys
import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BatchEncoding,
    CLIPModel,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_lib.pipelines.batch import list_prompts
from course_lib.validation import require

MAX_LISTING = 1000  # characters of a warning
# Packages between a user's line and this file; the last two wrap functions in tests
INNER_PACKAGES = ("course_lib", "torch", "jaxtyping", "beartype")


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

    def tokenize(self, prompts: Iterable[str]) -> Int[Tensor, "b l"]:
        """Token ids of the prompts, all rows of the length that the encoder was made for.

        Warns of words that do not fit into this length (the end token does), and of words that the
        tokenizer splits into letters, since they are not in its vocabulary.

        Raises:
            ValueError: `prompts` is one string, or empty, or has something that is no string.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts: expected a list, got one string, {prompts!r}")
        prompts = list_prompts("prompts", prompts)
        out = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        if self.tokenizer.is_fast:  # the others do not say where in the text a token is
            self._warn_of_losses(prompts, out)
        return out.input_ids

    def _warn_of_losses(self, prompts: list[str], out: BatchEncoding) -> None:
        """Warn of what the tokens of prompts do not say."""
        length = out.input_ids.shape[1]
        is_full = (out.attention_mask.sum(dim=1) == length).tolist()
        full = [prompt for prompt, value in zip(prompts, is_full, strict=True) if value]
        limit = f"prompts: expected at most {length} tokens, cut off"
        _warn(limit, [self._cut_text(prompt, length) for prompt in dict.fromkeys(full)])
        words = dict.fromkeys(word for prompt in dict.fromkeys(prompts) for word in prompt.split())
        label = "prompts: words that the tokenizer does not know, split into letters"
        _warn(label, self._unknown_words(list(words)))

    def _cut_text(self, prompt: str, length: int) -> str:
        """The end of a prompt, in whole words, that `length` tokens do not hold; "" if they do."""
        num_tokens = length - self.tokenizer.num_special_tokens_to_add()
        spans = self._tokenize_words([prompt]).offset_mapping[0]
        if len(spans) <= num_tokens:
            return ""
        start, _ = spans[num_tokens]
        cut_word = re.search(r"\S*$", prompt[:start]).group()
        return " ".join((cut_word + prompt[start:]).split())

    def _unknown_words(self, texts: list[str]) -> list[str]:
        """Words without a token, or with tokens mostly of single letters, or bytes of a letter."""
        if not texts:
            return []
        out = self._tokenize_words(texts)
        words = []
        for row, text in enumerate(texts):
            columns = (out.word_ids(row), out.input_ids[row], out.offset_mapping[row])
            for _, group in itertools.groupby(zip(*columns, strict=True), key=lambda part: part[0]):
                _, tokens, spans = zip(*group, strict=True)
                word = text[spans[0][0] : spans[-1][1]]
                # "..." and the "s" of "'s" are no words
                is_word = not word.isascii() or sum(map(str.isalnum, word)) > 1
                num_letters = sum(end - start <= 1 for start, end in spans)
                is_split = len(tokens) > 1 and 2 * num_letters > len(tokens)
                if is_word and (is_split or self.tokenizer.unk_token_id in tokens):
                    words.append(word)
        return words

    def _tokenize_words(self, texts: list[str]) -> BatchEncoding:
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return self.tokenizer(texts, **options)

    def encode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Embeddings of token ids, with gradients if the encoder's weights require them.

        Raises:
            ValueError: token ids without a batch axis.
        """
        require(tokens.ndim == 2, "tokens", "(b, l)", f"shape {tuple(tokens.shape)}")
        tokens = tokens.to(self.text_encoder.device)
        out = self.text_encoder(tokens, output_hidden_states=self.token_embeddings)
        if not self.token_embeddings:
            return out.last_hidden_state
        inputs = out.hidden_states[0]
        return torch.cat([out.last_hidden_state, F.layer_norm(inputs, inputs.shape[-1:])], dim=-1)

    @torch.no_grad()
    def __call__(self, prompts: Iterable[str]) -> Float[Tensor, "b l d"]:
        """Embeddings of prompts, without gradients and in the encoder's own dtype.

        The empty prompt "" is the null text of classifier-free guidance. Autocast is switched off:
        the text is encoded once for all steps, and sampling should not inherit its rounding.

        Raises:
            ValueError: as `tokenize`.
        """
        with torch.autocast(self.text_encoder.device.type, enabled=False):
            return self.encode(self.tokenize(prompts))


def _warn(label: str, texts: Iterable[str]) -> None:
    """One warning with all texts, shown at the line that called this package."""
    listing = ", ".join(dict.fromkeys(text for text in texts if text))
    if not listing:
        return
    listing = listing if len(listing) <= MAX_LISTING else f"{listing[:MAX_LISTING]} …"
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(INNER_PACKAGES):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{label}: {listing}", stacklevel=level)
