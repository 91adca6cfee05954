"""The factorised video U-Net of Video Diffusion Models.

An image U-Net that treats every frame as an image, with temporal attention after each spatial
attention. Initially the temporal attention adds nothing: the network is an image network.

Ho et al. 2022, "Video Diffusion Models", arXiv 2204.03458, section 3.
Saharia et al. 2022, "Imagen", arXiv 2205.11487 (conditioning channels and their augmentation).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.attention import joint_training_mask
from course_lib.nn.kernels import FusedUpsample2D, guard_convolutions
from course_lib.nn.positions import COORD_FREQUENCIES, coord_features
from course_lib.nn.unet_blocks import NORM_GROUPS, AttentionPool, PixelRefiner, UNetBlock
from course_lib.nn.utils import (
    CheckpointingMixin,
    check_conditioning,
    check_is_image,
    check_sizes,
    fold_frames,
    unfold_frames,
    zero_module,
)
from course_lib.validation import check_float, check_int, require


class VideoUNet(CheckpointingMixin, ModelMixin, ConfigMixin):
    """(noisy video, timestep, text …) to a prediction, for any number of frames.

    Attributes:
        accepts: the video-specific arguments of `forward` that this configuration takes.

    Args:
        in_channels: channels of the noisy video.
        out_channels: channels of the prediction; None for `in_channels`.
        cond_channels: channels of the condition that is concatenated with the noisy video.
        block_out_channels: channels per level, multiples of `head_dim` where there is attention;
            every level but the last halves the frame size.
        layers_per_block: blocks per level, down and up.
        attention_levels: for each level, whether it has attention.
        cross_attention_dim: dimension of the text embeddings; None for a network without text.
        head_dim: channels per attention head.
        temporal_positions: see `TemporalAttention`.
        patch_size: pixels of a side that are folded into channels; 1 for none.
        refiner_channels: hidden channels of the `PixelRefiner`; None for none.
        frame_embedding: whether to embed the index of each frame, initially without effect.
        coord_embedding: whether to embed the position in the frame, see `coord_features`.
        fps_embedding: whether to embed the frame rate.
        noise_aug_embedding: whether to embed the noise level of the conditioning channels.

    Raises:
        ValueError: for levels that do not match, and sizes that are not integers above 0.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        cond_channels: int = 0,
        block_out_channels: Sequence[int] = (64, 128, 256),
        layers_per_block: int = 1,
        attention_levels: Sequence[bool] = (False, True, True),
        cross_attention_dim: int | None = None,
        head_dim: int = 32,
        temporal_positions: str = "relative",
        patch_size: int = 1,
        refiner_channels: int | None = None,
        frame_embedding: bool = False,
        coord_embedding: bool = False,
        fps_embedding: bool = False,
        noise_aug_embedding: bool = False,
    ):
        super().__init__()
        if len(block_out_channels) != len(attention_levels):
            raise ValueError(
                f"attention_levels: expected one per level, {len(block_out_channels)}, "
                f"got {len(attention_levels)}"
            )
        self._check_sizes()
        optional = {
            "cond_channels": cond_channels,
            "fps": fps_embedding,
            "frame_index": frame_embedding,
            "noise_aug_level": noise_aug_embedding,
        }
        self.accepts = frozenset({"is_image", *(name for name, used in optional.items() if used)})
        self._build_embeddings()
        in_channels += cond_channels
        channels = block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.coord_embed = (
            nn.Conv2d(4 * len(COORD_FREQUENCIES), channels, 1) if coord_embedding else None
        )
        self._build_blocks()
        out_channels = self.config.in_channels if out_channels is None else out_channels
        self.norm_out = nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels)
        self.conv_out = nn.Conv2d(channels, out_channels * patch_size**2, 3, padding=1)
        self.refiner = None
        if refiner_channels is not None:
            self.refiner = PixelRefiner(in_channels, refiner_channels, out_channels, 2 * channels)
        guard_convolutions(self)

    def _check_sizes(self) -> None:
        require(len(self.config.block_out_channels) > 0, "block_out_channels", "a level", "none")
        names = ("block_out_channels", "in_channels", "out_channels", "layers_per_block")
        names += ("cross_attention_dim", "head_dim", "patch_size")
        check_sizes(**{name: self.config[name] for name in names})
        check_int("cond_channels", self.config.cond_channels, 0)

    def _build_embeddings(self) -> None:
        """Layers of `_embed`; no module may have the name of a configuration entry."""
        config, channels = self.config, self.config.block_out_channels[0]
        dim = 2 * channels
        self.time_proj = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels, dim)
        self.frame_embed = TimestepEmbedding(channels, dim) if config.frame_embedding else None
        if config.frame_embedding:
            zero_module(self.frame_embed.linear_2)
        self.fps_embed = TimestepEmbedding(channels, dim) if config.fps_embedding else None
        noise_aug = config.noise_aug_embedding
        self.noise_aug_embed = TimestepEmbedding(channels, dim) if noise_aug else None
        text_dim = config.cross_attention_dim
        self.text_pool = AttentionPool(text_dim, dim, config.head_dim) if text_dim else None
        self.cond_mlp = nn.Sequential(
            nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), zero_module(nn.Linear(dim, dim))
        )

    def _build_blocks(self) -> None:
        """Blocks, down- and upsamplers; all lists begin with the finest level."""
        config = self.config
        widths, num_layers = config.block_out_channels, config.layers_per_block

        def block(in_channels: int, channels: int, has_attention: bool) -> UNetBlock:
            return UNetBlock(
                in_channels,
                channels,
                2 * widths[0],
                has_attention,
                config.cross_attention_dim,
                config.head_dim,
                config.temporal_positions,
            )

        self.down_blocks, self.downsamplers = nn.ModuleList(), nn.ModuleList()
        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        channels = widths[0]
        for level, has_attention in enumerate(config.attention_levels):
            width, is_last = widths[level], level == len(widths) - 1
            inputs = [channels] + [width] * (num_layers - 1)
            self.down_blocks.append(nn.ModuleList(block(c, width, has_attention) for c in inputs))
            self.downsamplers.append(
                nn.Identity() if is_last else Downsample2D(width, use_conv=True, name="op")
            )
            inputs = [2 * width] * num_layers
            self.up_blocks.append(nn.ModuleList(block(c, width, has_attention) for c in inputs))
            self.upsamplers.append(
                nn.Identity()
                if is_last
                else FusedUpsample2D(widths[level + 1], use_conv=True, out_channels=width)
            )
            channels = width
        self.mid_block = block(channels, channels, config.attention_levels[-1])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        fps: Tensor | None = None,
        cond_channels: Tensor | None = None,
        noise_aug_level: Tensor | None = None,
        is_image: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> UNet3DConditionOutput:
        """Predicts; the output's `sample` is (b, c_out, f, h, w).

        Args:
            sample: noisy video, (b, c, f, h, w), h and w multiples of `patch_size`.
            timestep: one per clip, (b,), like `fps` and `noise_aug_level`.
            encoder_hidden_states: text embeddings per clip, (b, l, d), or per frame, (b, f, l, d).
            fps: frames per second; None means unknown.
            cond_channels: (b, c_cond, f, h, w), channels without noise, such as given frames and
                their mask, or an upsampled video of lower resolution.
            noise_aug_level: timestep of the noise that was added to `cond_channels`.
            is_image: (b, f), frames that are independent images (joint training); temporal
                attention neither reaches nor leaves them.
            frame_index: time of each frame (b, f), in the unit of training; fractions are
                allowed, None means 0, 1, 2 ….

        Raises:
            ValueError: for frames that are not whole patches, and for arguments that the
                configuration needs or does not take.
        """
        given = {"fps": fps, "noise_aug_level": noise_aug_level, "frame_index": frame_index}
        self._check(sample, timestep, encoder_hidden_states, cond_channels, is_image, given)
        num_frames = sample.shape[2]
        temb = self._embed(
            timestep, encoder_hidden_states, is_image, num_frames, given, sample.dtype
        )
        mask = None if is_image is None else joint_training_mask(is_image)
        video = sample if cond_channels is None else torch.cat([sample, cond_channels], dim=1)
        pixels = fold_frames(video)
        h = self.conv_in(F.pixel_unshuffle(pixels, self.config.patch_size))
        if self.coord_embed is not None:
            h = h + self.coord_embed(coord_features(*h.shape[-2:], h))
        h = self._run_blocks(h, num_frames, temb, encoder_hidden_states, mask)
        h = self.conv_out(F.silu(self.norm_out(h)))
        pred = F.pixel_shuffle(h, self.config.patch_size)
        if self.refiner is not None:
            pred = self.refiner(pixels, pred, temb)
        return UNet3DConditionOutput(sample=unfold_frames(pred, num_frames))

    def _run_blocks(self, h: Tensor, *block_args: Any) -> Float[Tensor, "bf c h w"]:
        """The U: blocks on the way up also take the features of those on the way down."""
        skips = []
        for blocks, downsampler in zip(self.down_blocks, self.downsamplers, strict=True):
            for block in blocks:
                h = block(h, *block_args)
                skips.append(h)
            h = downsampler(h)
        h = self.mid_block(h, *block_args)
        for blocks, upsampler in zip(self.up_blocks[::-1], self.upsamplers[::-1], strict=True):
            if isinstance(upsampler, FusedUpsample2D):
                h = upsampler(h, output_size=skips[-1].shape[-2:])  # odd sizes were rounded up
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), *block_args)
        return h

    def _embed(
        self,
        timestep: Tensor,
        text: Tensor | None,
        is_image: Tensor | None,
        num_frames: int,
        given: dict[str, Tensor | None],
        dtype: torch.dtype,
    ) -> Float[Tensor, "bf d"]:
        """One embedding per frame: a sum that `cond_mlp` mixes, as position depends on motion."""
        temb = self.time_embedding(self.time_proj(timestep).to(dtype))  # b d
        for embed, name in ((self.fps_embed, "fps"), (self.noise_aug_embed, "noise_aug_level")):
            if given[name] is not None:
                temb = temb + embed(self.time_proj(given[name]).to(dtype))
        temb = temb[:, None].expand(-1, num_frames, -1)  # b f d
        if text is not None:
            text = text if text.ndim == 4 else text[:, None]  # b (f or 1) l d
            pooled = self.text_pool(text.flatten(0, 1).to(dtype))
            temb = temb + pooled.unflatten(0, text.shape[:2])
        index = given["frame_index"]
        # A single frame without an index is an image, which has no position in a clip
        if self.frame_embed is not None and (num_frames > 1 or index is not None):
            if index is None:
                index = torch.arange(num_frames, device=timestep.device).expand(len(timestep), -1)
            pos = self.frame_embed(self.time_proj(index.flatten()).to(dtype))
            pos = pos.unflatten(0, index.shape)  # b f d
            temb = temb + (pos if is_image is None else pos.masked_fill(is_image[..., None], 0))
        temb = temb.flatten(0, 1)  # (b f) d
        return temb + self.cond_mlp(temb)

    def _check(
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor | None,
        cond_channels: Tensor | None,
        is_image: Tensor | None,
        given: dict[str, Tensor | None],
    ) -> None:
        config = self.config
        check_float("sample", sample, "(b, c, f, h, w)")
        b, channels, f, h, w = sample.shape
        if channels != config.in_channels or min(sample.shape) < 1:
            raise ValueError(
                f"sample: expected {config.in_channels} channels and frames, got {_shape(sample)}"
            )
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(
                f"sample: expected height and width divisible by {config.patch_size}, got {h} x {w}"
            )
        check_conditioning("timestep", timestep, (b,))
        for name, value in (("encoder_hidden_states", text), ("cond_channels", cond_channels)):
            if value is not None:
                check_float(name, value)
        if is_image is not None:
            check_is_image(is_image, b, f)
        dim = config.cross_attention_dim
        fits = text is None or (text.shape[-1] == dim and text.shape[:-2] in ((b,), (b, f)))
        if (text is None) != (dim is None) or not fits:
            expected = None if dim is None else f"({b}, l, {dim}) or ({b}, {f}, l, {dim})"
            raise ValueError(f"encoder_hidden_states: expected {expected}, got {_shape(text)}")
        for name, value in given.items():
            if value is not None and name not in self.accepts:
                expected = f"None, since this VideoUNet was built without {name}"
                raise ValueError(f"{name}: expected {expected}; got {_shape(value)}")
            if value is not None:
                check_conditioning(name, value, (b, f) if name == "frame_index" else (b,))
        expected = (b, config.cond_channels, f, h, w) if config.cond_channels else None
        if _shape(cond_channels) != expected:
            raise ValueError(f"cond_channels: expected {expected}, got {_shape(cond_channels)}")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
