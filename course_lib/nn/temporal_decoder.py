"""An image autoencoder with a temporal decoder: frames are encoded one by one and decoded jointly.

Decoded one by one, frames flicker where their latents do. Align your Latents inserts temporal
convolutions into the decoder and trains only those, so that the latents stay the same. Initially
the convolutions are the identity.

Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818.
"""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.kernels import guard_convolutions
from course_lib.nn.temporal import TemporalConvBlock
from course_lib.nn.utils import (
    CheckpointingMixin,
    fold_frames,
    insert_module,
    strip_private,
    to_like,
    unfold_frames,
)
from course_lib.nn.video_context import ForwardState, VideoContext
from course_lib.validation import check_float, check_number


class TemporalAutoencoder(CheckpointingMixin, ModelMixin, ConfigMixin):
    """An AutoencoderKL for video; `inflate_decoder` makes one with trained weights.

    Attributes:
        spatial: the image autoencoder.
        temporal: the temporal layers, named like the layers of its decoder that they follow.

    Args:
        spatial_config: configuration of the AutoencoderKL.
    """

    @register_to_config
    def __init__(self, spatial_config: dict[str, Any]):
        super().__init__()
        self.spatial = AutoencoderKL.from_config(spatial_config)
        self.temporal = nn.ModuleDict()
        self._context = VideoContext()
        decoder = self.spatial.decoder
        blocks = {"mid_block": decoder.mid_block}
        blocks |= {f"up_blocks.{k}": block for k, block in enumerate(decoder.up_blocks)}
        for name, block in blocks.items():
            for k, resnet in enumerate(block.resnets):
                layer = TemporalConvBlock(resnet.out_channels, self.spatial.config.norm_num_groups)
                insert_module(self.temporal, f"{name}.resnets.{k}", layer)
                hook = partial(self._context.after_layer, layer)
                resnet.register_forward_hook(hook, with_kwargs=True)
        self._checkpointed = [
            module for module in decoder.modules() if hasattr(module, "gradient_checkpointing")
        ]
        guard_convolutions(self)

    def encode(self, video: Tensor) -> Float[Tensor, "b c f y x"]:
        """Encodes every frame by the posterior's mean.

        Args:
            video: (b, 3, f, h, w) in [-1, 1].

        Returns:
            Latents of about unit variance.

        Raises:
            ValueError: for another number of axes, and for integers.
        """
        check_float("video", video, "(b, c, f, h, w)")
        latents = self.spatial.encode(fold_frames(video).to(self.dtype)).latent_dist.mode()
        return unfold_frames(latents * self.spatial.config.scaling_factor, video.shape[2])

    def decode(
        self, latents: Tensor, temporal_scale: float | int = 1.0
    ) -> Float[Tensor, "b 3 f h w"]:
        """Decodes the frames of a clip jointly.

        Args:
            latents: (b, c, f, y, x) of about unit variance.
            temporal_scale: factor of what the temporal layers add; 0 decodes frame by frame.

        Returns:
            Video around [-1, 1], not clamped, so that a loss sees values beyond.

        Raises:
            ValueError: for another number of axes, for integers, and a scale that is not finite.
        """
        check_float("latents", latents, "(b, c, f, y, x)")
        check_number("temporal_scale", temporal_scale)
        if torch.is_grad_enabled():
            self._context.keep_in_recomputation(self._checkpointed)
        num_frames = latents.shape[2]
        frames = fold_frames(latents).to(self.dtype) / self.spatial.config.scaling_factor
        with self._context.active(ForwardState(num_frames, scale=temporal_scale)):
            frames = self.spatial.decode(frames).sample
        return unfold_frames(frames, num_frames)


def inflate_decoder(vae: AutoencoderKL) -> TemporalAutoencoder:
    """Copies an image autoencoder into one for video, which initially decodes frame by frame."""
    inflated = to_like(TemporalAutoencoder(strip_private(vae.config)), vae)
    inflated.spatial.load_state_dict(vae.state_dict())
    return inflated.train(vae.training)
