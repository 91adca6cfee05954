"""A U-Net for video that sees space and time one after the other: the network of Video Diffusion Models.

An image U-Net, to which every frame is a picture of its own, with attention over time wherever it has attention over
space. At first that attention adds nothing: the network is its own image network, frame by frame.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 3.
Saharia et al. 2022, "Imagen", arXiv 2205.11487 (extra channels, noise-conditioning augmentation).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.attention import (
    WAVES,
    SpatialAttention,
    TemporalAttention,
    TextAttention,
    apart,
    place_waves,
)

GROUPS = 8  # of every GroupNorm, whose statistics are those of one frame


class Circumstances(NamedTuple):
    """What every block is told: a vector for each frame of each clip, the text, and which frame may see which."""

    embedding: Float[Tensor, "bf d"]
    text: Float[Tensor, "b *each l d"] | None
    mask: Bool[Tensor, "b f f"] | None


class Stage(nn.Module):
    """A residual block of 1x3x3 convolutions, then attention over space, text and time, if it has any.

    embedding: width of the vector that carries timestep and the like. text_width: None for no text.
    """

    def __init__(
        self, channels_in: int, channels: int, embedding: int, attention: bool, text_width: int | None,
        head_width: int, positions: str,
    ):  # fmt: skip
        super().__init__()
        groups = {"groups": math.gcd(GROUPS, channels_in), "groups_out": math.gcd(GROUPS, channels)}
        self.residual = ResnetBlock2D(
            in_channels=channels_in,
            out_channels=channels,
            temb_channels=embedding,
            time_embedding_norm="scale_shift",
            **groups,
        )
        self.spatial = SpatialAttention(channels, head_width) if attention else None
        self.textual = (
            TextAttention(channels, text_width, head_width) if attention and text_width else None
        )
        self.temporal = TemporalAttention(channels, head_width, positions) if attention else None
        self.gradient_checkpointing = False  # diffusers' enable_gradient_checkpointing sets it

    def forward(
        self, frames: Float[Tensor, "bf c_in h w"], told: Circumstances, b: int
    ) -> Float[Tensor, "bf c h w"]:
        """b: how many clips the frames belong to."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._forward, frames, told, b)
        return self._forward(frames, told, b)

    def _forward(self, frames: Tensor, told: Circumstances, b: int) -> Tensor:
        frames = self.residual(frames, told.embedding)
        if self.temporal is None:
            return frames
        video = frames.unflatten(0, (b, -1)).transpose(1, 2)  # b c f h w, nothing is copied
        video = self.spatial(video)
        if self.textual is not None:
            video = self.textual(video, told.text)
        video = self.temporal(video, told.mask)
        return video.transpose(1, 2).flatten(0, 1)


class Grow(Upsample2D):
    """diffusers' doubling of height and width, then a 3x3 convolution, as one convolution of four 2x2 kernels.

    Of three neighbours among doubled pixels two are equal, so what the kernel does with them is added up first: 16
    products for a place instead of 36, and no large picture in between. Forward and backward, 96 to 32 channels, 32
    frames of 16 x 16 to 32 x 32 on two cores: 26 ms, diffusers' 67.
    """

    def forward(
        self, frames: Float[Tensor, "n c_in h w"], output_size: Sequence[int]
    ) -> Float[Tensor, "n c h_out w_out"]:
        """output_size: twice that of the frames, or of an odd size one less."""
        _, _, h, w = frames.shape
        if tuple(output_size) != (2 * h, 2 * w):
            return super().forward(frames, output_size=tuple(output_size))
        kernels = _halves(_halves(self.conv.weight, 2), 4)  # row, column: c c_in 2 2 each
        kernels = kernels.transpose(0, 1).flatten(0, 2)  # (2 2 c) c_in 2 2
        found = F.conv2d(
            frames, kernels, self.conv.bias.repeat(4), padding=1
        )  # n (2 2 c) (h + 1) (w + 1)
        found = found.unflatten(1, (2, 2, -1))
        # An upper row of the large picture sees the place above and its own, a lower one its own and the one below
        rows = [
            torch.stack(
                [found[:, row, column, :, row : row + h, column : column + w] for column in (0, 1)],
                dim=-1,
            )
            for row in (0, 1)
        ]  # n c h w 2
        return (
            torch.stack(rows, dim=3).flatten(4).flatten(2, 3)
        )  # n c h 2 w 2, then n c (2 h) (2 w)


def _halves(kernel: Tensor, axis: int) -> Tensor:
    """A kernel of three taps along an axis as two of two taps, on a new first axis: for the first and the second of
    two equal pixels.
    """
    first, middle, last = kernel.unbind(axis)
    return torch.stack(
        [torch.stack([first, middle + last], axis), torch.stack([first + middle, last], axis)]
    )


class TextSummary(nn.Module):
    """One vector of a whole text: learned questions look at its words. At first it is zero.

    width: of the text's vectors. embedding: of the summary.
    """

    def __init__(self, width: int, embedding: int, head_width: int):
        super().__init__()
        self.questions = nn.Parameter(
            torch.randn(embedding // head_width, 1, head_width)
        )  # heads 1 d
        self.norm = nn.LayerNorm(width)
        self.to_kv = nn.Linear(width, 2 * embedding, bias=False)
        self.to_out = nn.Linear(embedding, embedding)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, text: Float[Tensor, "n l d"]) -> Float[Tensor, "n embedding"]:
        heads, _, width = self.questions.shape
        k, v = (
            self.to_kv(self.norm(text)).unflatten(-1, (2, heads, width)).permute(2, 0, 3, 1, 4)
        )  # n heads l d
        questions = self.questions.to(k).expand(len(text), -1, -1, -1)
        return self.to_out(F.scaled_dot_product_attention(questions, k, v).flatten(1))


class Detail(nn.Module):
    """A last look at single pixels, for a network that sees patches: it corrects the answer. At first it adds nothing.

    A patch of 4 x 4 pixels holds 48 numbers of noise, and a network that is to say what of them is noise has to carry
    them all through. Without a last look vdm left an error of 0.07 (median) where the noise beside the signal was 0.3.

    channels_in: of what the network is given. channels: in between. channels_out: of its answer. embedding: as `Stage`;
    it scales and shifts channels: Perez et al. 2018, "FiLM", arXiv 1709.07871. Raises ValueError for no channels.
    """

    def __init__(self, channels_in: int, channels: int, channels_out: int, embedding: int):
        super().__init__()
        if channels < 1:
            raise ValueError(
                f"detail: expected at least 1 channel, or None for no last look, got {channels}"
            )
        self.look = nn.Conv2d(channels_in + channels_out, channels, 3, padding=1)
        self.compare = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 4 * channels)
        self.say = nn.Conv2d(channels, channels_out, 3, padding=1)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def forward(
        self,
        frames: Float[Tensor, "bf c_in h w"],
        answer: Float[Tensor, "bf c_out h w"],
        embedding: Float[Tensor, "bf d"],
    ) -> Float[Tensor, "bf c_out h w"]:
        """frames: what the network was given. answer: what it said of them."""
        scale, shift, scale_2, shift_2 = self.modulate(F.silu(embedding))[..., None, None].chunk(
            4, dim=1
        )
        found = F.silu(self.look(torch.cat([frames, answer], dim=1)) * (1 + scale) + shift)
        found = F.silu(self.compare(found) * (1 + scale_2) + shift_2)
        return answer + self.say(found)


class VideoUNet(ModelMixin, ConfigMixin):
    """(noisy clip, timestep, text …) to a prediction of the clip's shape, for any number of frames.

    in_channels: of what is denoised. out_channels: None for as many. extra_channels: of `extra`, see `forward`.
    widths: channels per level, multiples of head_width where there is attention; every level but the last halves the
    frame. layers: stages per level, down and up. attention: whether a level has attention over space, text and time,
    one for each level. text_width: of the text's vectors; None for a network without text. positions: in time, see
    `TemporalAttention`. patch: pixels of a side that are taken together, as channels; 1 for none. detail: channels of
    a last look at single pixels, see `Detail`, at least 1; None for none. frame_index: whether frames are told their
    number, from 0, at first without effect too. places: whether patches are told where they are, see `place_waves`.
    frame_rate, noise_level: whether it is told these. Raises ValueError for levels that do not match, widths,
    or detail.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        extra_channels: int = 0,
        widths: Sequence[int] = (64, 128, 256),
        layers: int = 1,
        attention: Sequence[bool] = (False, True, True),
        text_width: int | None = None,
        head_width: int = 32,
        positions: str = "relative",
        patch: int = 1,
        detail: int | None = None,
        frame_index: bool = False,
        places: bool = False,
        frame_rate: bool = False,
        noise_level: bool = False,
    ):
        super().__init__()
        if len(widths) != len(attention):
            raise ValueError(
                f"attention: expected one for each of {len(widths)} widths, got {len(attention)}"
            )
        embedding, square = 2 * widths[0], patch**2

        def stage(channels_in: int, channels: int, attends: bool) -> Stage:
            return Stage(
                channels_in, channels, embedding, attends, text_width, head_width, positions
            )

        self.waves = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = TimestepEmbedding(widths[0], embedding)
        self.embed_index = TimestepEmbedding(widths[0], embedding) if frame_index else None
        if frame_index:
            nn.init.zeros_(
                self.embed_index.linear_2.weight
            )  # it is to begin as its own image network
            nn.init.zeros_(self.embed_index.linear_2.bias)
        self.embed_rate = TimestepEmbedding(widths[0], embedding) if frame_rate else None
        self.embed_level = TimestepEmbedding(widths[0], embedding) if noise_level else None
        self.summary = TextSummary(text_width, embedding, head_width) if text_width else None
        self.mix = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        nn.init.zeros_(self.mix[-1].weight)
        nn.init.zeros_(self.mix[-1].bias)
        self.conv_in = nn.Conv2d((in_channels + extra_channels) * square, widths[0], 3, padding=1)
        self.embed_place = nn.Conv2d(4 * len(WAVES), widths[0], 1) if places else None
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for level, (width, attends) in enumerate(zip(widths, attention, strict=True)):
            last = level == len(widths) - 1
            self.down.append(
                nn.ModuleList(stage(width if k else before, width, attends) for k in range(layers))
            )
            self.shrink.append(
                nn.Identity() if last else Downsample2D(width, use_conv=True, name="op")
            )
            self.up.append(nn.ModuleList(stage(2 * width, width, attends) for _ in range(layers)))
            self.grow.append(
                nn.Identity()
                if last
                else Grow(widths[level + 1], use_conv=True, out_channels=width)
            )
            before = width
        self.middle = stage(widths[-1], widths[-1], attention[-1])
        self.norm_out = nn.GroupNorm(math.gcd(GROUPS, widths[0]), widths[0])
        self.conv_out = nn.Conv2d(widths[0], (out_channels or in_channels) * square, 3, padding=1)
        self.finish = (
            None  # by the name `detail` diffusers would answer with the configuration's number
        )
        if detail is not None:
            seen, said = in_channels + extra_channels, out_channels or in_channels
            self.finish = Detail(seen, detail, said, embedding)

    def forward(
        self,
        sample: Float[Tensor, "b c f h w"],
        timestep: Real[Tensor, "b"],
        encoder_hidden_states: Float[Tensor, "b *each l d"] | None = None,
        *,
        frame_rate: Real[Tensor, "b"] | None = None,
        extra: Float[Tensor, "b c_extra f h w"] | None = None,
        noise_level: Real[Tensor, "b"] | None = None,
        alone: Bool[Tensor, "b f"] | None = None,
        frame_index: Real[Tensor, "b numbers"] | None = None,
    ) -> UNet3DConditionOutput:
        """Returns an output whose `sample` is the prediction, (b, c_out, f, h, w).

        sample: noisy, h and w multiples of `patch`. timestep: one for each clip. encoder_hidden_states: the text,
        (b, l, d), or (b, f, l, d) if frames have texts of their own. frame_rate: frames per second; None: unknown.
        extra: clean channels beside the noisy ones, such as given frames with their mask, or a clip of lower
        resolution, made large. noise_level: how much noise was added to `extra`. alone: which frames are pictures of
        their own, as in joint training: no layer lets them see others, or others them. frame_index: the number of each
        frame in its clip, if these are not all of it; None for 0, 1, ….
        Raises ValueError for a size that is not whole patches, for what a configuration needs and did not get, and for
        what it got and does not know.
        """
        self._check(sample, encoder_hidden_states, frame_rate, extra, noise_level, frame_index)
        b, _, f, h, w = sample.shape
        told = Circumstances(
            self._embedding(
                timestep,
                encoder_hidden_states,
                frame_rate,
                noise_level,
                frame_index,
                f,
                alone,
                sample.dtype,
            ),
            encoder_hidden_states,
            None if alone is None else apart(alone),
        )
        video = sample if extra is None else torch.cat([sample, extra], dim=1)
        pixels = video.transpose(1, 2).flatten(0, 1)  # (b f) c h w
        patches = self.conv_in(F.pixel_unshuffle(pixels, self.config.patch))
        if self.embed_place is not None:
            patches = patches + self.embed_place(place_waves(*patches.shape[-2:], like=patches))
        patches = self.conv_out(F.silu(self.norm_out(self._walk(patches, told, b))))
        frames = F.pixel_shuffle(patches, self.config.patch)
        if self.finish is not None:
            frames = self.finish(pixels, frames, told.embedding)
        return UNet3DConditionOutput(sample=frames.unflatten(0, (b, f)).transpose(1, 2))

    def _walk(self, frames: Tensor, told: Circumstances, b: int) -> Tensor:
        """Down, across and up again; what each stage on the way down has found is seen again on the way up."""
        kept = []
        for stages, shrink in zip(self.down, self.shrink, strict=True):
            for stage in stages:
                frames = stage(frames, told, b)
                kept.append(frames)
            frames = shrink(frames)
        frames = self.middle(frames, told, b)
        for stages, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            if isinstance(grow, Grow):
                frames = grow(frames, output_size=kept[-1].shape[-2:])  # odd sizes were rounded up
            for stage in stages:
                frames = stage(torch.cat([frames, kept.pop()], dim=1), told, b)
        return frames

    def _embedding(
        self,
        timestep,
        text,
        frame_rate,
        noise_level,
        frame_index,
        f: int,
        alone,
        dtype: torch.dtype,
    ) -> Float[Tensor, "bf d"]:
        """One vector for each frame, of everything that is not a picture.

        Its parts meet in `mix` before a block reads them: where something is depends on motion and frame together.
        """
        embedding = self.embed_time(self.waves(timestep).to(dtype))  # b d
        for embed, number in ((self.embed_rate, frame_rate), (self.embed_level, noise_level)):
            if number is not None:
                embedding = embedding + embed(self.waves(number).to(dtype))
        embedding = embedding[:, None].expand(-1, f, -1)  # b f d
        if text is not None:
            each = text if text.ndim == 4 else text[:, None]  # b (f or 1) l d
            embedding = embedding + self.summary(each.flatten(0, 1).to(dtype)).unflatten(
                0, each.shape[:2]
            )
        if self.embed_index is not None and (
            f > 1 or frame_index is not None
        ):  # a picture has no place in a clip
            if frame_index is None:
                frame_index = torch.arange(f, device=timestep.device).expand(len(timestep), -1)
            index = self.embed_index(self.waves(frame_index.flatten()).to(dtype)).unflatten(
                0, frame_index.shape
            )
            embedding = embedding + (
                index if alone is None else index.masked_fill(alone[..., None], 0)
            )
        embedding = embedding.flatten(0, 1)  # (b f) d
        return embedding + self.mix(embedding)

    def _check(self, sample, text, frame_rate, extra, noise_level, frame_index) -> None:
        config, (b, channels, f, h, w) = self.config, sample.shape
        if channels != config.in_channels or f < 1:
            raise ValueError(
                f"sample: expected {config.in_channels} channels and frames, got {tuple(sample.shape)}"
            )
        if h % config.patch or w % config.patch:
            raise ValueError(
                f"sample: expected height and width divisible by {config.patch}, got {h} x {w}"
            )
        if (text is None) != (config.text_width is None):
            wanted = "none" if config.text_width is None else f"a text of width {config.text_width}"
            raise ValueError(f"encoder_hidden_states: expected {wanted}, got {_shape(text)}")
        if text is not None and (
            text.shape[-1] != config.text_width or text.shape[:-2] not in ((b,), (b, f))
        ):
            known = f"({b}, l, {config.text_width}) or ({b}, {f}, l, {config.text_width})"
            raise ValueError(f"encoder_hidden_states: expected {known}, got {_shape(text)}")
        if frame_index is not None and frame_index.shape != (b, f):
            raise ValueError(f"frame_index: expected ({b}, {f}), got {_shape(frame_index)}")
        wanted = (b, config.extra_channels, f, h, w) if config.extra_channels else None
        if (None if extra is None else tuple(extra.shape)) != wanted:
            raise ValueError(f"extra: expected {wanted or 'none'}, got {_shape(extra)}")
        for name, number in (
            ("frame_rate", frame_rate),
            ("noise_level", noise_level),
            ("frame_index", frame_index),
        ):
            if number is not None and not config[name]:
                raise ValueError(
                    f"{name}: this network was made without; expected None, got {number}"
                )


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))
