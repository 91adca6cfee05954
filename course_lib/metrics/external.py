"""The two networks behind published FID and FVD, loaded from files that the user provides.

    inception = inception_features("weights-inception-2015-12-05-6726825d.pth")
    fid = FrechetDistance(frame_features(inception), "inception")
    fvd = FrechetDistance(i3d_features("i3d_torchscript.pt"), "i3d", ddof=0)

The course ships neither file, and no lesson needs one. Published numbers are comparable only with
these files, and with equal numbers of clips and frames at equal size.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from course_lib.metrics.features import ImageNet, VideoNet
from course_lib.validation import check_images, check_video, require, to_uint8

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
I3D_MIN_FRAMES = 10  # I3D downsamples time by 8 and then averages pairs


def inception_features(path: str | Path, *, device: str | torch.device = "cpu") -> ImageNet:
    """Inception-v3 of FID: images (b, 3, h, w) in [-1, 1] to "pool3" features (b, 2048).

    torchmetrics converts to 8 bits and resizes to 299 x 299 as TensorFlow 1 does. (Its default
    resizing has an antialiasing filter, and gives other numbers.) Heusel et al. 2017.

    Args:
        path: weights that torch-fidelity converted from the TensorFlow graph of 2015-12-05.
            torchvision's Inception is another network.
        device: device of the network.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: without the package torch-fidelity.
        Exception: what `torch.load` raises for a file that contains more than tensors.
    """
    _check_file(path, f"{INCEPTION_FILE} from torch-fidelity's releases")
    torch.load(path, weights_only=True)  # torch-fidelity's own loader would run pickled code
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False).to(device)
    return partial(_inception_features, net, device)


def _inception_features(net: Callable, device: str | torch.device, images: Tensor) -> Tensor:
    check_images("images", images)
    _check_rgb("images", images)
    return net(to_uint8(images.to(device)))


def i3d_features(path: str | Path, *, device: str | torch.device = "cpu") -> VideoNet:
    """I3D of FVD: videos (b, 3, f, h, w) in [-1, 1] to Kinetics-400 logits (b, 400).

    The network takes 8-bit videos of at least 10 frames, and resizes them to 224 x 224 itself.
    Unterthiner et al. 2018; the StyleGAN-V code computes the covariance with ddof 0.

    Args:
        path: TorchScript file that came with StyleGAN-V.
        device: device of the network.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: from `torch.jit.load`, for another kind of file.
    """
    _check_file(path, "i3d_torchscript.pt, to which the StyleGAN-V repository links")
    with warnings.catch_warnings():
        # torch.jit is deprecated, but FVD's network exists only in this format
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.load(str(path), map_location=device).eval()
    return partial(_i3d_features, net, device)


def _i3d_features(net: Callable, device: str | torch.device, video: Tensor) -> Tensor:
    check_video("video", video, min_frames=I3D_MIN_FRAMES)
    _check_rgb("video", video)
    return net(to_uint8(video.to(device)), rescale=True, resize=True, return_features=True)


def _check_file(path: str | Path, expected: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected {expected}; there is no file {path}")


def _check_rgb(name: str, pixels: Tensor) -> None:
    require(pixels.shape[1] == 3, name, "3 channels", pixels.shape[1])
