"""Metrics that compare each frame with a reference: PSNR, SSIM, perceptual distance.

Images take part as videos of one frame: `images[:, :, None]`. Arithmetic is float64, on the device
of the metric (`metric.to(device)`). Sums run over frames, so the batch size does not matter.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.metrics.score import Score, VideoMetric
from course_lib.nn.utils import fold_frames
from course_lib.validation import (
    check_count,
    check_float,
    check_images,
    check_net,
    check_number,
    check_pair,
    check_same_shape,
    require,
)

PEAK_TO_PEAK = 2  # largest difference of two values in [-1, 1]
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_K1 = 0.01
SSIM_K2 = 0.03


def psnr(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    """Peak signal-to-noise ratio of every frame in dB: 10 log10(MAX² / MSE), with MAX = 2.

    Args:
        video: (b, c, f, h, w) in [-1, 1].
        reference: the same shape and range.

    Returns:
        PSNR over channels and pixels; infinite for equal frames, as in scikit-image.

    Raises:
        ValueError: for bad input.
    """
    return _to_decibels(_frame_mse(video, reference))


def _frame_mse(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    check_pair(("video", "reference"), video, reference)
    return (video.double() - reference.double()).square().mean(dim=(1, 3, 4))


def _to_decibels(mse: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return 10 * torch.log10(PEAK_TO_PEAK**2 / mse)


class PSNR(VideoMetric):
    """PSNR in dB, in both conventions; `n` counts frames.

    frame_mean: mean over frames of the frame's PSNR (papers on video prediction).
    pooled: PSNR of the mean squared error of all frames (torchmetrics' default). The logarithm is
    concave, so frame_mean is never below it.

    Args:
        cap: largest PSNR of a frame in dB, part of the score's name; without it, one equal frame
            makes frame_mean infinite. Code that sets MSE < 1e-10 to 100 dB has `cap=100`.

    Raises:
        ValueError: unless `cap` is None, or positive and finite.
    """

    def __init__(self, cap: float | int | None = None) -> None:
        super().__init__()
        if cap is not None:
            check_number("cap", cap, above=0.0)
        self.cap = cap
        for state in ("decibels", "squares", "values"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("frames", torch.tensor(0), "sum")
        self._separate(f"cap {cap}")

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1].
            reference: the same shape and range.

        Raises:
            ValueError: for bad input.
        """
        mse = _frame_mse(video.detach().to(self.device), reference.detach().to(self.device))
        decibels = _to_decibels(mse)
        decibels = decibels if self.cap is None else decibels.clamp(max=self.cap)
        self.decibels = self.decibels + decibels.sum()
        self.squares = self.squares + mse.sum() * (video.numel() / mse.numel())
        self.values = self.values + video.numel()
        self.frames = self.frames + mse.numel()

    def compute(self) -> dict[str, Score]:
        """Scores under the keys "frame_mean" and "pooled".

        Raises:
            ValueError: before the first frame.
        """
        n = int(self.frames)
        check_count("frames compared", n, 1)
        name = "psnr_frame_mean" + ("" if self.cap is None else f"_cap{self.cap:g}")
        pooled = _to_decibels(self.squares / self.values)
        return {
            "frame_mean": Score(name, self.decibels.item() / n, n, unit="dB"),
            "pooled": Score("psnr_pooled", pooled.item(), n, unit="dB"),
        }


def ssim_map(images: Tensor, reference: Tensor) -> Float[Tensor, "b c h_valid w_valid"]:
    """Structural similarity of every 11 x 11 window inside the image, in [-1, 1], float64.

    Wang et al. 2004 as published: Gaussian window with sigma 1.5, population covariance, K1 = 0.01,
    K2 = 0.03. The formula compares luminance, whose zero is black, so values are shifted to [0, 1]
    (L = 1) first: on [-1, 1] with L = 2, white and black would have -0.9996 instead of 0.0001.

    Args:
        images: (b, c, h, w) in [-1, 1], at least 11 x 11 pixels.
        reference: the same shape and range.

    Raises:
        ValueError: for bad input.
    """
    check_images("images", images)
    check_images("reference", reference)
    check_same_shape("reference", reference, "images", images)
    h, w = images.shape[-2:]
    require(min(h, w) >= SSIM_WINDOW, "images", "at least 11x11 pixels", f"{h}x{w}")
    return _ssim_map(images, reference)


def _ssim_map(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h_valid w_valid"]:
    x, y = (images.double() + 1) / 2, (reference.double() + 1) / 2
    mean_x, mean_y, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_K1**2) / (mean_x**2 + mean_y**2 + SSIM_K1**2)
    return luminance * (2 * covariance + SSIM_K2**2) / (variances + SSIM_K2**2)


def _window_means(images: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h-10 w-10"]:
    """Gaussian mean of every window, by a separable filter."""
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).tolist()
    for axis in (-2, -1):
        length = images.shape[axis] - SSIM_WINDOW + 1
        # A sum of shifted images: conv2d in float64 is slow on a CPU (measured: docs/decisions.md)
        mean = weights[0] * images.narrow(axis, 0, length)
        for shift, weight in enumerate(weights[1:], start=1):
            mean.add_(images.narrow(axis, shift, length), alpha=weight)
        images = mean
    return images


def ssim(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    """Structural similarity of every frame: mean of `ssim_map` over channels and windows.

    This is scikit-image with gaussian_weights=True and use_sample_covariance=False. torchmetrics
    includes a reflected border, and gives slightly different numbers.

    Args:
        video: (b, c, f, h, w) in [-1, 1], at least 11 x 11 pixels.
        reference: the same shape and range.

    Returns:
        SSIM, 1 for equal frames.

    Raises:
        ValueError: for bad input.
    """
    check_pair(("video", "reference"), video, reference, min_size=SSIM_WINDOW)
    frames = [x.transpose(1, 2) for x in (video, reference)]  # b f c h w
    # Clip by clip: the five products of a whole batch would not fit the cache
    maps = [_ssim_map(*clips).mean(dim=(1, 2, 3)) for clips in zip(*frames, strict=True)]
    return torch.stack(maps)


class _FrameMean(VideoMetric):
    """Base class: mean over frames of one number per frame, under `name`; `n` counts frames."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._separate(name)
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("frames", torch.tensor(0), "sum")

    def _append(self, values: Float[Tensor, "*n"]) -> None:
        self.total = self.total + values.sum()
        self.frames = self.frames + values.numel()

    def compute(self) -> Score:
        """The mean over frames.

        Raises:
            ValueError: before the first frame.
        """
        n = int(self.frames)
        check_count("frames compared", n, 1)
        return Score(self.name, self.total.item() / n, n)


class SSIM(_FrameMean):
    """Mean over frames of `ssim`; `n` counts frames."""

    def __init__(self) -> None:
        super().__init__("ssim_gauss11_valid")

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch; arguments and errors as in `ssim`."""
        self._append(ssim(video.detach().to(self.device), reference.detach().to(self.device)))


def perceptual_distance(
    features: Sequence[Tensor],
    reference: Sequence[Tensor],
    weights: Sequence[Float[Tensor, "_"]] | None = None,
) -> Float[Tensor, "b"]:
    """LPIPS formula: sum over layers of the mean over positions of w · (f̂ - ĝ)².

    f̂ and ĝ are the feature maps of the two images, normalised over channels; 1e-8 under the root,
    as in torchmetrics, keeps zero features finite. Zhang et al. 2018, equation 1, has w inside the
    square; their code, and this function, have it outside. Differentiable, so also a loss.

    Args:
        features: one feature map (b, c, …) per layer.
        reference: the same shapes.
        weights: one (c,) per layer; None is all ones.

    Raises:
        ValueError: if the numbers of layers or channels differ, or for integers.
    """
    num_layers = len(features)
    num_weights = num_layers if weights is None else len(weights)
    require(
        num_layers == len(reference) == num_weights > 0,
        "features, reference, weights",
        "equally many layers, at least one",
        f"{num_layers}, {len(reference)} and {'no' if weights is None else num_weights} weights",
    )
    total = 0
    for layer, (first, second) in enumerate(zip(features, reference, strict=True)):
        check_float(f"features[{layer}]", first)
        check_float(f"reference[{layer}]", second)
        weight = first.new_ones(first.shape[1]) if weights is None else weights[layer].to(first)
        require(
            first.shape == second.shape and weight.shape == first.shape[1:2],
            f"layer {layer}",
            "(b, c, …) twice and (c,)",
            f"{tuple(first.shape)}, {tuple(second.shape)}, {tuple(weight.shape)}",
        )
        difference = (_normalize(first) - _normalize(second)).square().flatten(2).mean(dim=2)
        total = total + difference @ weight
    return total


def _normalize(features: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
    return features / features.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()


class PerceptualDistance(_FrameMean):
    """Mean over frames of `perceptual_distance` with any image net; `n` counts frames.

    Values of different nets are not comparable. AlexNet with its learned weights gives LPIPS v0.1.

    Args:
        net: images (n, c, h, w) in [-1, 1] to a list of feature maps (n, c_l, h_l, w_l).
        name: name of the net.
        weights: see `perceptual_distance`; the score's name then has "perceptual_weighted".

    Raises:
        ValueError: for a net in training mode.
    """

    def __init__(
        self,
        net: Callable[[Tensor], Sequence[Tensor]],
        name: str,
        weights: Sequence[Float[Tensor, "_"]] | None = None,
    ) -> None:
        super().__init__(f"perceptual{'' if weights is None else '_weighted'}[{name}]")
        check_net("net", net)
        self.net = net
        self.weights = weights

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1], on the device of the net.
            reference: the same shape and range.

        Raises:
            ValueError: for bad input, a net in training mode, or maps that do not fit the weights.
        """
        check_pair(("video", "reference"), video, reference)
        check_net("net", self.net)
        with torch.no_grad():
            maps = [self.net(fold_frames(x)) for x in (video, reference)]
        maps = [[layer.to(self.device).double() for layer in layers] for layers in maps]
        self._append(perceptual_distance(*maps, self.weights))
