"""The perceptual loss of the autoencoders: distance of mini-clip's feature maps.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv 1801.03924, here without learned weights.
"""

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel

from course_lib import zoo
from course_lib.metrics import perceptual_distance

PERCEPTUAL_WEIGHT = 0.02  # the squared error of pixels has weight 1


def perceptual_loss(
    pred: Float[Tensor, "b 3 64 64"], images: Float[Tensor, "b 3 64 64"]
) -> Float[Tensor, ""]:
    """Mean perceptual distance to images in [-1, 1]."""
    clip = zoo.load_cached("mini-clip", images.device)
    maps, reference = (clip_feature_maps(clip, part) for part in (pred, images))
    return perceptual_distance(maps, reference).mean()


def clip_feature_maps(
    clip: CLIPModel, images: Float[Tensor, "b 3 64 64"]
) -> list[Float[Tensor, "b d y x"]]:
    """Patch features of every layer of CLIP's image encoder, without the class token.

    Args:
        clip: the model.
        images: in [-1, 1].
    """
    layers = clip.vision_model(images, output_hidden_states=True).hidden_states[1:]
    grid = clip.config.vision_config.image_size // clip.config.vision_config.patch_size
    return [layer[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)) for layer in layers]
