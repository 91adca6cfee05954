"""An image autoencoder whose decoder sees time: frames are encoded one by one, and decoded together.

Decoded alone, frames of a clip flicker wherever their latents do. Align your Latents puts convolutions over time into
the decoder and trains those alone, so that latents, and every model of them, stay as they are. At first they add
nothing.

Blattmann et al. 2023, "Align your Latents", arXiv 2304.08818.
"""

from typing import Any

from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.inflate import Behind, Call, key_of, placed_as, public
from course_lib.nn.temporal import TemporalConv


class TemporalAutoencoder(ModelMixin, ConfigMixin):
    """An AutoencoderKL for clips; `inflate_decoder` makes one with trained weights.

    spatial_config: of the AutoencoderKL.
    """

    @register_to_config
    def __init__(self, spatial_config: dict[str, Any]):
        super().__init__()
        self.spatial = AutoencoderKL.from_config(spatial_config)
        self.temporal = nn.ModuleDict()
        self._call = Call()
        decoder = self.spatial.decoder
        blocks = {"mid_block": decoder.mid_block} | {
            f"up_blocks.{k}": block for k, block in enumerate(decoder.up_blocks)
        }
        for name, block in blocks.items():
            for k, resnet in enumerate(block.resnets):
                layer = TemporalConv(resnet.out_channels, self.spatial.config.norm_num_groups)
                self.temporal[key_of(f"{name}.resnets.{k}")] = layer
                resnet.register_forward_hook(Behind(layer, self._call), with_kwargs=True)

    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c f y x"]:
        """Clips in [-1, 1] to latents of about unit variance, frame by frame, by the posterior's mean."""
        frames = video.transpose(1, 2).flatten(0, 1).to(self.dtype)  # (b f) 3 h w
        latents = (
            self.spatial.encode(frames).latent_dist.mode() * self.spatial.config.scaling_factor
        )
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2)

    def decode(
        self, latents: Float[Tensor, "b c f y x"], temporal_scale: float | int = 1.0
    ) -> Float[Tensor, "b 3 f h w"]:
        """Latents to clips, all frames of a clip together; not clamped, so that training may look beyond.

        temporal_scale: how much of what the layers over time add is added; at 0 frames are decoded one by one.
        """
        b, _, f, _, _ = latents.shape
        self._call.open(b, f, scale=temporal_scale)
        frames = latents.transpose(1, 2).flatten(0, 1).to(self.dtype)  # (b f) c y x
        try:
            frames = self.spatial.decode(frames / self.spatial.config.scaling_factor).sample
        finally:
            self._call.close()
        return frames.unflatten(0, (b, f)).transpose(1, 2)


def inflate_decoder(vae: AutoencoderKL) -> TemporalAutoencoder:
    """An image autoencoder as one for clips, which at first decodes frame by frame; the image one is copied."""
    inflated = placed_as(TemporalAutoencoder(public(vae.config)), vae)
    inflated.spatial.load_state_dict(vae.state_dict())
    return inflated.train(vae.training)
