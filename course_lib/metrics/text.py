"""Video against words: CLIP similarity and the published scores that are made of it.

An encoder is any object with `image`, from images (n, c, h, w) in [-1, 1] to (n, d), and `text`, from prompts to
(n, d): `ClipEncoder` makes one of any CLIP checkpoint. Scores of two encoders cannot be compared, so the name of the
encoder is part of the name of the score.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import normalize
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from course_lib.metrics.clipwise import ClipMeans
from course_lib.validation import check_features, check_images, check_net, check_pair, check_video
from course_lib.metrics.score import Score
from course_lib.runtime import no_progress_bars


@runtime_checkable
class TextImageEncoder(Protocol):
    """What the scores of this file need: one space for images and words."""

    def image(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [-1, 1] to (n, d)."""

    def text(self, prompts: list[str]) -> Tensor:
        """n prompts to (n, d)."""


class ClipEncoder:
    """A transformers CLIPModel as an encoder: the course's mini-clip or a published checkpoint.

        encoder = ClipEncoder.from_pretrained("openai/clip-vit-large-patch14")

    Images are resized and cropped by the processor, as floats. Published pipelines resize 8-bit images, and
    round on the way; pixels differ from theirs by about one grey level, more only at extreme contrast.
    """

    def __init__(
        self, model: Any, tokenizer: Any, processor: Any, *, truncate: bool = False
    ) -> None:
        """model, tokenizer, processor: CLIPModel in evaluation mode, CLIPTokenizer, CLIPImageProcessor.

        truncate: cut prompts that are too long for the model, as torchmetrics does, rather than refuse them.
        Raises ValueError for a model in training mode, or one that looks for another end-of-text token than the
        tokenizer writes: it would read every prompt's embedding at the same wrong place.
        """
        check_net("model", model)
        # 2 is what old checkpoints say; transformers then takes the largest id, which in them is the end of text
        expected = model.config.text_config.eos_token_id
        found = len(tokenizer) - 1 if expected == 2 else expected
        if found != tokenizer.eos_token_id:
            raise ValueError(
                f"model: expected text_config.eos_token_id = {tokenizer.eos_token_id}, the tokenizer's, got {expected}"
            )
        self.model, self.tokenizer, self.processor, self.truncate = (
            model,
            tokenizer,
            processor,
            truncate,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, truncate: bool = False) -> "ClipEncoder":
        """Load all three parts from a folder such as `zoo.path("mini-clip")`, or from the hub; float32, no gradients.

        folder: path, or name on the hub. truncate: as above. Raises what transformers raises for a folder it misses.
        """
        with no_progress_bars():
            model = (
                CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
            )
        parts = (CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder))
        return cls(model, *parts, truncate=truncate)

    @torch.no_grad()
    def image(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Embed images in [-1, 1], not normalised to length 1; they stay on their device, which must be the model's.

        Raises ValueError for bad input.
        """
        check_images("images", images)
        unit = list((images.float() + 1) / 2)
        steps = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        pixels = self.processor(images=unit, **steps)["pixel_values"].clamp(
            0, 1
        )  # bicubic resizing overshoots
        if self.processor.do_normalize:
            pixels = normalize(pixels, self.processor.image_mean, self.processor.image_std)
        return self.model.get_image_features(
            pixel_values=pixels.to(self.model.dtype)
        ).pooler_output.float()

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        """Embed prompts, not normalised to length 1. Raises ValueError for a prompt with more tokens than fit."""
        longest = self.model.config.text_config.max_position_embeddings
        cut = {"truncation": True, "max_length": longest} if self.truncate else {}
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt", **cut)
        lengths = tokens["attention_mask"].sum(dim=1)
        if lengths.max() > longest:
            raise ValueError(
                f"prompts: expected at most {longest} tokens, got {lengths.max()} in {prompts[lengths.argmax()]!r}"
            )
        tokens = tokens.to(self.model.device)
        output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return output.pooler_output.float()


def encode_frames(
    encode: Callable[[Tensor], Tensor], name: str, video: Tensor
) -> Float[Tensor, "b f d"]:
    """Embed every frame by `encode`, from images (n, c, h, w) to (n, d); float64, length 1, on the CPU.

    name: of the argument that holds the video (b, c, f, h, w), for messages.
    Raises ValueError for bad input, or embeddings that are not (n, d), not finite or zero.
    """
    check_video(name, video)
    check_net("encoder", encode)
    with torch.no_grad():
        embedded = encode(rearrange(video, "b c f h w -> (b f) c h w"))
    return _directions(f"encoder({name})", embedded, len(video) * video.shape[2]).unflatten(
        0, (len(video), -1)
    )


def encode_prompts(
    encoder: TextImageEncoder, name: str, prompts: Sequence[str], count: int
) -> Float[Tensor, "b d"]:
    """Embed prompts; float64, length 1, on the CPU. name: of the argument, for messages. count: how many are expected.

    Raises ValueError for another number of prompts, or embeddings as in `encode_frames`.
    """
    if isinstance(prompts, str) or len(prompts) != count:
        found = "one string" if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"{name}: expected a list of {count} prompts, one per clip, got {found}")
    with torch.no_grad():
        embedded = encoder.text(list(prompts))
    return _directions(f"encoder({name})", embedded, count)


def _directions(name: str, embedded: Tensor, count: int) -> Float[Tensor, "n d"]:
    check_features(name, embedded)
    if len(embedded) != count:
        raise ValueError(f"{name}: expected {count} rows, got {len(embedded)}")
    embedded = embedded.cpu().double()
    if not embedded.any(dim=1).all():
        raise ValueError(f"{name}: expected embeddings with a direction, got one that is all zero")
    return F.normalize(embedded, dim=1)


def clip_similarity(
    encoder: TextImageEncoder, video: Tensor, prompts: Sequence[str]
) -> Float[Tensor, "b f"]:
    """Cosine of every frame with the prompt of its clip; in [-1, 1]. All text scores are made of these.

    video: (b, c, f, h, w) in [-1, 1]. prompts: one per clip. Raises ValueError for bad input. Radford et al. 2021.
    """
    frames = encode_frames(encoder.image, "video", video)
    words = encode_prompts(encoder, "prompts", prompts, len(video))
    return torch.einsum("bfd,bd->bf", frames, words)


class TextAlignment(ClipMeans):
    """Does the video show what the prompt says? Three published forms of one cosine, `clip_similarity`.

    clipsim: its mean over frames (CLIPSIM: Wu et al. 2021, GODIVA).
    clipscore: mean over frames of 2.5 · max(cos, 0), each frame an image (CLIP-S: Hessel et al. 2021, section 3).
    clipscore_torchmetrics: max(100 · mean cos, 0), the maximum taken last, over all clips.
    """

    higher_is_better = True

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        """encoder: see the top of the file. name: of the encoder, for the scores."""
        keys = ("clipsim", "clipscore", "clipscore_torchmetrics")
        super().__init__({key: f"{key}[{name}]" for key in keys})
        self.encoder = encoder

    def update(self, video: Tensor, prompts: Sequence[str]) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1]; one prompt per clip. Raises ValueError for bad input."""
        cosine = clip_similarity(self.encoder, video, prompts)
        mean = cosine.mean(dim=1)
        self._keep(
            clipsim=mean,
            clipscore=2.5 * cosine.clamp(min=0).mean(dim=1),
            clipscore_torchmetrics=100 * mean,
        )

    def compute(self) -> dict[str, Score]:
        """The three scores, by the keys above. Raises ValueError before the first clip."""
        scores = self.means()
        last = scores["clipscore_torchmetrics"]
        interval = last.interval and tuple(max(end, 0.0) for end in last.interval)
        return scores | {
            "clipscore_torchmetrics": last._replace(value=max(last.value, 0.0), interval=interval)
        }


class DirectionalSimilarity(ClipMeans):
    """Did an edit change the video the way it changes the words? cos(edited - source, target - source), mean of frames.

    Embeddings have length 1 before they are subtracted. StyleGAN-NADA (Gal et al. 2022) trains on it, InstructPix2Pix
    (Brooks et al. 2023) measures by it, in its clip_similarity.py: there as here, a frame that did not change has no
    direction and counts as 0.
    """

    higher_is_better = True

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        """encoder: see the top of the file. name: of the encoder, for the score."""
        super().__init__({"directional": f"directional_similarity[{name}]"})
        self.encoder = encoder

    def update(
        self,
        source: Tensor,
        edited: Tensor,
        source_prompts: Sequence[str],
        target_prompts: Sequence[str],
    ) -> None:
        """Add a batch; source, edited: (b, c, f, h, w) in [-1, 1]; prompts: what each shows, one per clip.

        Raises ValueError for bad input, or a pair of prompts that mean the same to the encoder.
        """
        check_pair(("source", "edited"), source, edited)
        before, after = (
            encode_frames(self.encoder.image, *x) for x in (("source", source), ("edited", edited))
        )
        said = encode_prompts(self.encoder, "source_prompts", source_prompts, len(source))
        wanted = encode_prompts(self.encoder, "target_prompts", target_prompts, len(source))
        _refuse_same(source_prompts, target_prompts, (wanted - said).norm(dim=1))
        self._keep(
            directional=F.cosine_similarity(after - before, (wanted - said)[:, None], dim=-1).mean(
                dim=1
            )
        )


class FrameAccuracy(ClipMeans):
    """Share of frames that the encoder finds closer to the target prompt than to the source's; ties count.

    FateZero (Qi et al. 2023), in the form of its frame_acc_tem_con.py; mean over clips of each clip's share.
    """

    higher_is_better = True

    def __init__(self, encoder: TextImageEncoder, name: str) -> None:
        """encoder: see the top of the file. name: of the encoder, for the score."""
        super().__init__({"accuracy": f"frame_accuracy[{name}]"})
        self.encoder = encoder

    def update(
        self, edited: Tensor, source_prompts: Sequence[str], target_prompts: Sequence[str]
    ) -> None:
        """Add a batch; edited: (b, c, f, h, w) in [-1, 1]; prompts: before and after the edit, one per clip.

        Raises ValueError for bad input, or a pair of prompts that mean the same to the encoder.
        """
        frames = encode_frames(self.encoder.image, "edited", edited)
        said = encode_prompts(self.encoder, "source_prompts", source_prompts, len(edited))
        wanted = encode_prompts(self.encoder, "target_prompts", target_prompts, len(edited))
        _refuse_same(source_prompts, target_prompts, (wanted - said).norm(dim=1))
        old, new = (torch.einsum("bfd,bd->bf", frames, words) for words in (said, wanted))
        self._keep(accuracy=(new >= old).double().mean(dim=1))


def _refuse_same(
    source: Sequence[str], target: Sequence[str], distance: Float[Tensor, "b"]
) -> None:
    for before, after, length in zip(source, target, distance.tolist(), strict=True):
        if length < 1e-6:
            raise ValueError(
                f"target_prompts: expected another meaning than {before!r}, got {after!r}"
            )
