"""Text-video metrics: CLIP similarity, and the published scores based on it.

An encoder is any object with `image`, from images (n, c, h, w) in [-1, 1] to (n, d), and `text`,
from n prompts to (n, d): `ClipEncoder` makes one of any CLIP checkpoint. Scores of different
encoders are not comparable, so the encoder's name is part of the score's name.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import normalize
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from course_lib import runtime
from course_lib.metrics.clipwise import PerClipMetric
from course_lib.metrics.score import Score
from course_lib.nn.utils import fold_frames
from course_lib.validation import (
    check_images,
    check_net,
    check_pair,
    check_prompts,
    check_tensor,
    check_video,
    require,
)


@runtime_checkable
class TextImageEncoder(Protocol):
    """An encoder of images and prompts into one embedding space."""

    def image(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [-1, 1] to embeddings (n, d)."""

    def text(self, prompts: list[str]) -> Tensor:
        """Prompts to embeddings (n, d)."""


class ClipEncoder:
    """A transformers CLIPModel as an encoder: the course's mini-clip or a published checkpoint.

        encoder = ClipEncoder.from_pretrained("openai/clip-vit-large-patch14")

    The processor resizes and crops images as floats. Published pipelines resize 8-bit images; their
    rounding changes pixels by about one grey level, more only at extreme contrast.

    Args:
        model: CLIPModel in evaluation mode.
        tokenizer: CLIPTokenizer.
        processor: CLIPImageProcessor.
        truncate: cut prompts that are too long, as torchmetrics does, instead of refusing them.

    Raises:
        ValueError: for a model in training mode, or one with another end-of-text token than the
            tokenizer: it would take every prompt's embedding from the wrong position.
    """

    def __init__(
        self, model: Any, tokenizer: Any, processor: Any, *, truncate: bool = False
    ) -> None:
        check_net("model", model)
        # Old checkpoints have 2; transformers then takes the largest id, their end of text
        eos_id = model.config.text_config.eos_token_id
        require(
            tokenizer.eos_token_id == (len(tokenizer) - 1 if eos_id == 2 else eos_id),
            "model",
            f"text_config.eos_token_id = {tokenizer.eos_token_id}, the tokenizer's",
            eos_id,
        )
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.truncate = truncate

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, truncate: bool = False) -> "ClipEncoder":
        """Load model, tokenizer and processor, in float32 and without gradients.

        Args:
            folder: folder such as `zoo.path("mini-clip")`, or a name on the Hub: one that is
                in its cache, or with `COURSE_HUB=1` any.
            truncate: see the class.

        Raises:
            OSError: from transformers, if there is no such folder.
        """
        is_local = Path(folder).is_dir() or not runtime.hub_available()
        with runtime.no_progress_bars():
            model = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=is_local
            )
        return cls(
            model.eval().requires_grad_(False),
            CLIPTokenizer.from_pretrained(folder, local_files_only=is_local),
            CLIPImageProcessor.from_pretrained(folder, local_files_only=is_local),
            truncate=truncate,
        )

    @torch.no_grad()
    def image(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Embed images; the embeddings are not normalised.

        Args:
            images: (n, c, h, w) in [-1, 1], on the device of the model.

        Raises:
            ValueError: for bad input.
        """
        check_images("images", images)
        unit = list((images.float() + 1) / 2)
        kwargs = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        # Bicubic resizing overshoots
        pixels = self.processor(images=unit, **kwargs)["pixel_values"].clamp(0, 1)
        if self.processor.do_normalize:
            pixels = normalize(pixels, self.processor.image_mean, self.processor.image_std)
        output = self.model.get_image_features(pixel_values=pixels.to(self.model.dtype))
        return output.pooler_output.float()

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        """Embed prompts; the embeddings are not normalised.

        Raises:
            ValueError: for a prompt that is too long, unless the encoder truncates.
        """
        max_length = self.model.config.text_config.max_position_embeddings
        kwargs = {"truncation": True, "max_length": max_length} if self.truncate else {}
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt", **kwargs)
        lengths = tokens["attention_mask"].sum(dim=1)
        require(
            lengths.max() <= max_length,
            "prompts",
            f"at most {max_length} tokens",
            f"{lengths.max()} in {prompts[lengths.argmax()]!r}",
        )
        tokens = tokens.to(self.model.device)
        output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return output.pooler_output.float()


def encode_frames(
    encode: Callable[[Tensor], Tensor], name: str, video: Tensor
) -> Float[Tensor, "b f d"]:
    """Embed every frame; float64 of length 1, on the CPU.

    Args:
        encode: images (n, c, h, w) to embeddings (n, d).
        name: argument of the caller that holds the video, for messages.
        video: (b, c, f, h, w) in [-1, 1].

    Raises:
        ValueError: for bad input, or embeddings that are not (n, d), not finite or zero.
    """
    check_video(name, video)
    check_net("encoder", encode)
    with torch.no_grad():
        embeddings = encode(fold_frames(video))
    unit = _unit_embeddings(f"encoder({name})", embeddings, len(video) * video.shape[2])
    return unit.unflatten(0, (len(video), -1))  # (b, f, d)


def encode_prompts(
    encoder: TextImageEncoder, name: str, prompts: Sequence[str], num_prompts: int
) -> Float[Tensor, "b d"]:
    """Embed prompts; float64 of length 1, on the CPU.

    Args:
        encoder: see the module's docstring.
        name: argument of the caller that holds the prompts, for messages.
        prompts: one per clip.
        num_prompts: expected number of prompts.

    Raises:
        ValueError: for another number of prompts, or embeddings as in `encode_frames`.
    """
    check_prompts(name, prompts, num_prompts)
    with torch.no_grad():
        embeddings = encoder.text(list(prompts))
    return _unit_embeddings(f"encoder({name})", embeddings, num_prompts)


def _unit_embeddings(name: str, embeddings: Tensor, num_rows: int) -> Float[Tensor, "n d"]:
    check_tensor(name, embeddings, "(n, d)")
    require(len(embeddings) == num_rows, name, f"{num_rows} rows", len(embeddings))
    check_directions(name, embeddings)
    return F.normalize(embeddings.cpu().double(), dim=1)


def check_directions(name: str, embeddings: Tensor) -> None:
    """Raises ValueError if an embedding, along the last axis, is zero: it has no cosine."""
    has_direction = embeddings.any(dim=-1).all()
    require(has_direction, name, "embeddings with a direction", "one that is all zero")


def clip_similarity(
    encoder: TextImageEncoder, video: Tensor, prompts: Sequence[str]
) -> Float[Tensor, "b f"]:
    """Cosine of every frame with its clip's prompt, in [-1, 1] (Radford et al. 2021).

    Args:
        encoder: see the module's docstring.
        video: (b, c, f, h, w) in [-1, 1].
        prompts: one per clip.

    Raises:
        ValueError: for bad input.
    """
    frames = encode_frames(encoder.image, "video", video)
    text = encode_prompts(encoder, "prompts", prompts, len(video))
    return torch.einsum("bfd,bd->bf", frames, text)


class TextAlignment(PerClipMetric):
    """Agreement of videos with their prompts: three published forms of `clip_similarity`.

    clipsim: mean over frames (CLIPSIM: Wu et al. 2021, GODIVA).
    clipscore: mean over frames of 2.5 · max(cos, 0) (CLIP-S: Hessel et al. 2021, section 3).
    clipscore_torchmetrics: max(100 · mean cos, 0), with the maximum after the mean over all clips.

    Args:
        encoder: see the module's docstring.
        name: name of the encoder, for the scores.
    """

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        keys = ("clipsim", "clipscore", "clipscore_torchmetrics")
        super().__init__({key: f"{key}[{name}]" for key in keys})
        self.encoder = encoder

    def update(self, video: Tensor, prompts: Sequence[str]) -> None:
        """Add a batch; arguments and errors as in `clip_similarity`."""
        cosine = clip_similarity(self.encoder, video, prompts)
        mean = cosine.mean(dim=1)
        self._append(
            clipsim=mean,
            clipscore=2.5 * cosine.clamp(min=0).mean(dim=1),
            clipscore_torchmetrics=100 * mean,
        )

    def compute(self) -> dict[str, Score]:
        scores = self.means()
        last = scores["clipscore_torchmetrics"]
        interval = last.interval and tuple(max(end, 0.0) for end in last.interval)
        last = last._replace(value=max(last.value, 0.0), interval=interval)
        return scores | {"clipscore_torchmetrics": last}


class DirectionalSimilarity(PerClipMetric):
    """Agreement of an edit with the change of its prompt: cos(edited - source, target - source).

    Mean over frames and then over clips; embeddings have length 1 before the subtraction.
    StyleGAN-NADA (Gal et al. 2022) trains with it, InstructPix2Pix (Brooks et al. 2023) evaluates
    with it. As in the latter's clip_similarity.py, a frame that did not change counts as 0.

    Args:
        encoder: see the module's docstring.
        name: name of the encoder, for the score.
    """

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        super().__init__({"directional": f"directional_similarity[{name}]"})
        self.encoder = encoder

    def update(
        self,
        source: Tensor,
        edited: Tensor,
        source_prompts: Sequence[str],
        target_prompts: Sequence[str],
    ) -> None:
        """Add a batch.

        Args:
            source: (b, c, f, h, w) in [-1, 1].
            edited: the same shape and range.
            source_prompts: description of each source clip.
            target_prompts: description of each edited clip.

        Raises:
            ValueError: for bad input, or a pair of prompts with identical embeddings.
        """
        check_pair(("source", "edited"), source, edited)
        source_frames = encode_frames(self.encoder.image, "source", source)
        edited_frames = encode_frames(self.encoder.image, "edited", edited)
        source_emb, target_emb = _encode_edit(
            self.encoder, source_prompts, target_prompts, len(source)
        )
        text_change = (target_emb - source_emb)[:, None]  # (b, 1, d)
        cosine = F.cosine_similarity(edited_frames - source_frames, text_change, dim=-1)
        self._append(directional=cosine.mean(dim=1))


class FrameAccuracy(PerClipMetric):
    """Fraction of frames at least as close to the target prompt as to the source prompt.

    Mean over clips of each clip's fraction. FateZero (Qi et al. 2023), as in its
    frame_acc_tem_con.py.

    Args:
        encoder: see the module's docstring.
        name: name of the encoder, for the score.
    """

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        super().__init__({"accuracy": f"frame_accuracy[{name}]"})
        self.encoder = encoder

    def update(
        self, edited: Tensor, source_prompts: Sequence[str], target_prompts: Sequence[str]
    ) -> None:
        """Add a batch.

        Args:
            edited: (b, c, f, h, w) in [-1, 1].
            source_prompts: description of each clip before the edit.
            target_prompts: description of each clip after it.

        Raises:
            ValueError: for bad input, or a pair of prompts with identical embeddings.
        """
        frames = encode_frames(self.encoder.image, "edited", edited)
        prompt_embs = _encode_edit(self.encoder, source_prompts, target_prompts, len(edited))
        source, target = (torch.einsum("bfd,bd->bf", frames, emb) for emb in prompt_embs)
        self._append(accuracy=(target >= source).double().mean(dim=1))


def _encode_edit(
    encoder: TextImageEncoder,
    source_prompts: Sequence[str],
    target_prompts: Sequence[str],
    num_prompts: int,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Embeddings of the prompts before and after an edit, checked to differ."""
    source = encode_prompts(encoder, "source_prompts", source_prompts, num_prompts)
    target = encode_prompts(encoder, "target_prompts", target_prompts, num_prompts)
    distance, i = (target - source).norm(dim=1).min(dim=0)
    require(
        distance >= 1e-6,
        "source_prompts, target_prompts",
        "different embeddings",
        f"identical ones of {source_prompts[i]!r} and {target_prompts[i]!r}",
    )
    return source, target
