"""The two nets that published numbers rest on, from files that a user has: Inception (FID) and I3D (FVD).

    fid = FrechetDistance(frame_features(inception_features("weights-inception-2015-12-05-6726825d.pth")), "inception")
    fvd = FrechetDistance(i3d_features("i3d_torchscript.pt"), "i3d", ddof=0)

Neither file comes with the course, and no lesson needs one. Numbers are comparable between papers only on these very
files, with as many clips, of as many frames, of the same size.
"""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from course_lib.metrics.features import ImageNet, VideoNet
from course_lib.validation import check_images, check_video

I3D_FRAMES = 10  # I3D shortens time by 8 and then averages pairs


def to_bytes(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """[-1, 1] to 0 … 255, rounded to the nearest, as when a picture is saved."""
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def inception_features(path: str | Path, *, device: str | torch.device = "cpu") -> ImageNet:
    """The Inception-v3 of FID: images (b, 3, h, w) in [-1, 1] to (b, 2048), the "pool3" features.

    path: the weights that torch-fidelity converted from the TensorFlow graph of 2015-12-05 (torchvision's Inception is
    another net). device: where it runs. torchmetrics does the work, on bytes, resized to 299 x 299 as TensorFlow 1 did
    (its own default smooths while resizing and gives other numbers). Heusel et al. 2017.
    Raises FileNotFoundError, ModuleNotFoundError without the package torch-fidelity, and what `torch.load` raises for a
    file that holds more than tensors.
    """
    _check_file(
        path,
        "the Inception weights, weights-inception-2015-12-05-6726825d.pth, from torch-fidelity's releases",
    )
    torch.load(
        path, weights_only=True
    )  # torch-fidelity's own loader would run code hidden in the file
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False).to(device)

    def features(images: Tensor) -> Tensor:
        check_images("images", images)
        _check_rgb("images", images)
        return net(to_bytes(images.to(device)))

    return features


def i3d_features(path: str | Path, *, device: str | torch.device = "cpu") -> VideoNet:
    """The I3D of FVD: videos (b, 3, f, h, w) in [-1, 1] to (b, 400), the logits for Kinetics-400; at least 10 frames.

    path: the TorchScript file that came with StyleGAN-V. It takes bytes and does its own resizing to 224 x 224 and
    scaling. device: where it runs. Unterthiner et al. 2018; covariance in that code: ddof 0.
    Raises FileNotFoundError, and what `torch.jit.load` raises for another kind of file.
    """
    _check_file(
        path, "I3D as TorchScript, i3d_torchscript.pt, to which the StyleGAN-V repository links"
    )
    with warnings.catch_warnings():
        # torch.jit is deprecated, but the net that FVD is defined on exists only in its format
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.load(str(path), map_location=device).eval()

    def features(video: Tensor) -> Tensor:
        check_video("video", video, min_frames=I3D_FRAMES)
        _check_rgb("video", video)
        return net(to_bytes(video.to(device)), rescale=True, resize=True, return_features=True)

    return features


def _check_file(path: str | Path, what: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected {what}; there is no file {path}")


def _check_rgb(name: str, values: Tensor) -> None:
    if values.shape[1] != 3:
        raise ValueError(f"{name}: expected 3 channels, got {values.shape[1]}")
