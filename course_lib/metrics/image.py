"""Frame by frame against a reference: PSNR, SSIM, perceptual distance. Two videos of one shape, and what was lost.

Images take part as videos of one frame: `images[:, :, None]`. All arithmetic is float64, on the device of the metric
(`metric.to(device)`), and sums run over frames, so that the result does not depend on the batching.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from course_lib.validation import check_count, check_net, check_pair
from course_lib.metrics.score import Score

PEAK = 2  # largest difference of two values in [-1, 1]
SSIM_TAPS, SSIM_SIGMA = 11, 1.5  # pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    """Peak signal-to-noise ratio of every frame, in dB: 10 log10(MAX² / MSE) over the frame's channels and pixels.

    video, reference: (b, c, f, h, w) in [-1, 1], so MAX = 2. Equal frames give infinity, as in scikit-image; others
    cap it (`PSNR`). Raises ValueError for bad input or two shapes.
    """
    return _decibels(_frame_errors(video, reference))


def _frame_errors(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    check_pair(("video", "reference"), video, reference)
    return (video.double() - reference.double()).square().mean(dim=(1, 3, 4))


def _decibels(error: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return 10 * torch.log10(PEAK**2 / error)


class PSNR(Metric):
    """PSNR in both conventions, in dB; `compute` returns both, `n` counts frames.

    psnr_frame_mean: mean over frames of each frame's PSNR (video prediction papers); psnr_pooled: PSNR of the mean
    squared error over everything (torchmetrics' default). log is concave, so the first is never below the second.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, cap: float | int | None = None) -> None:
        """cap: largest value of one frame, in dB; it enters the name.

        Without it one equal frame makes the mean infinite. 100 is the convention of code that sets MSE < 1e-10 to
        100 dB. Raises ValueError unless positive.
        """
        super().__init__()
        if cap is not None and cap <= 0:
            raise ValueError(f"cap: expected a positive number of dB or None, got {cap}")
        self.cap = cap
        for state in ("decibels", "squares", "values"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("frames", torch.tensor(0), "sum")

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch; video, reference: (b, c, f, h, w) in [-1, 1]. Raises ValueError as `psnr` does."""
        errors = _frame_errors(video.detach().to(self.device), reference.detach().to(self.device))
        decibels = _decibels(errors)
        self.decibels += (
            decibels.clamp(max=self.cap).sum() if self.cap is not None else decibels.sum()
        )
        self.squares += errors.sum() * (video.numel() / errors.numel())
        self.values += video.numel()
        self.frames += errors.numel()

    def compute(self) -> dict[str, Score]:
        """{"frame_mean": Score, "pooled": Score}. Raises ValueError before the first frame."""
        n = int(self.frames)
        check_count("frames compared", n, 1)
        name = "psnr_frame_mean" + ("" if self.cap is None else f"_cap{self.cap:g}")
        pooled = _decibels(self.squares / self.values)
        return {
            "frame_mean": Score(name, self.decibels.item() / n, n, unit="dB"),
            "pooled": Score("psnr_pooled", pooled.item(), n, unit="dB"),
        }


def ssim_map(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h-10 w-10"]:
    """Structural similarity around every pixel whose 11 x 11 window lies inside the image, in [-1, 1], float64.

    images, reference: in [-1, 1], at least 11 x 11; `ssim` checks that.
    Wang et al. 2004 as published: Gaussian window of 11 pixels and sigma 1.5, population covariance, K1 = 0.01,
    K2 = 0.03. The formula compares brightness too, and brightness has a zero: it is black, so the values are shifted
    to [0, 1] (L = 1) first. On [-1, 1] with L = 2, white against black would give -0.9996 in place of 0.0001.
    """
    x, y = (images.double() + 1) / 2, (reference.double() + 1) / 2
    mean_x, mean_y, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + SSIM_K1**2) / (mean_x**2 + mean_y**2 + SSIM_K1**2)
    return brightness * (2 * covariance + SSIM_K2**2) / (variances + SSIM_K2**2)


def _window_means(images: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h-10 w-10"]:
    """Gaussian mean of every whole window, one axis after the other."""
    offset = torch.arange(SSIM_TAPS, dtype=torch.float64) - SSIM_TAPS // 2
    weights = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).tolist()
    for axis in (-2, -1):
        length = images.shape[axis] - SSIM_TAPS + 1
        # conv2d in float64 takes ten times as long on a CPU as this sum of shifted images
        mean = weights[0] * images.narrow(axis, 0, length)
        for shift, weight in enumerate(weights[1:], start=1):
            mean.add_(images.narrow(axis, shift, length), alpha=weight)
        images = mean
    return images


def ssim(video: Tensor, reference: Tensor) -> Float[Tensor, "b f"]:
    """Structural similarity of every frame: mean of `ssim_map` over channels and windows; 1 for equal frames.

    video, reference: (b, c, f, h, w) in [-1, 1], at least 11 x 11 pixels. Raises ValueError for bad input.
    The channel mean and the valid region are scikit-image's (gaussian_weights=True, use_sample_covariance=False);
    torchmetrics averages over a reflected border too and gives a slightly different number.
    """
    check_pair(("video", "reference"), video, reference, min_size=SSIM_TAPS)
    frames = [rearrange(x, "b c f h w -> b f c h w") for x in (video, reference)]
    # Clip by clip: the five products of a whole batch would not fit the cache
    return torch.stack(
        [ssim_map(*clips).mean(dim=(1, 2, 3)) for clips in zip(*frames, strict=True)]
    )


class SSIM(Metric):
    """Mean over frames of `ssim`; `n` counts frames."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self) -> None:
        """No settings: the paper's form is the only one (Wang et al. 2004)."""
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("frames", torch.tensor(0), "sum")

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch; video, reference: (b, c, f, h, w) in [-1, 1]. Raises ValueError as `ssim` does."""
        values = ssim(video.detach().to(self.device), reference.detach().to(self.device))
        self.total += values.sum()
        self.frames += values.numel()

    def compute(self) -> Score:
        """The mean. Raises ValueError before the first frame."""
        n = int(self.frames)
        check_count("frames compared", n, 1)
        return Score("ssim_gauss11_valid", self.total.item() / n, n)


def perceptual_distance(
    features: Sequence[Float[Tensor, "b ..."]],
    reference: Sequence[Float[Tensor, "b ..."]],
    weights: Sequence[Float[Tensor, "_"]] | None = None,
) -> Float[Tensor, "b"]:
    """LPIPS' formula: sum over layers of the mean over places of w · (f̂ - ĝ)², f̂ and ĝ of length 1 over channels.

    features, reference: one (b, c, …) per layer, of the two images. weights: one (c,) per layer; None is all ones.
    Raises ValueError for different numbers of layers, or of channels and weights. It has a gradient: also a loss.
    Zhang et al. 2018, equation 1, which writes w inside the square; their code, and this, multiply the square by it.
    Lengths have 1e-8 under the root, as in torchmetrics: zero features have no direction.
    """
    count = len(features)
    if not count or len(reference) != count or (weights is not None and len(weights) != count):
        found = f"{count}, {len(reference)} and {'no' if weights is None else len(weights)} weights"
        raise ValueError(
            f"features, reference, weights: expected equally many layers, at least one; got {found}"
        )
    total = 0
    for layer, (first, second) in enumerate(zip(features, reference, strict=True)):
        weight = first.new_ones(first.shape[1]) if weights is None else weights[layer].to(first)
        if first.shape != second.shape or weight.shape != first.shape[1:2]:
            shapes = f"{tuple(first.shape)}, {tuple(second.shape)}, {tuple(weight.shape)}"
            raise ValueError(f"layer {layer}: expected (b, c, …) twice and (c,), got {shapes}")
        difference = (_unit(first) - _unit(second)).square().flatten(2).mean(dim=2)
        total = total + difference @ weight
    return total


def _unit(features: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
    return features / features.square().sum(dim=1, keepdim=True).add(1e-8).sqrt()


class PerceptualDistance(Metric):
    """Mean over frames of `perceptual_distance` on the feature maps of any image net; `n` counts frames.

    Comparable only within one net. With AlexNet and its learned weights the formula is LPIPS v0.1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(
        self,
        net: Callable[[Tensor], Sequence[Tensor]],
        name: str,
        weights: Sequence[Float[Tensor, "_"]] | None = None,
    ) -> None:
        """net: images (b, c, h, w) in [-1, 1] to a list of feature maps (b, c_l, h_l, w_l). name: of the net.

        weights: for `perceptual_distance`; the metric is then called perceptual_weighted.
        Raises ValueError for a net in training mode.
        """
        super().__init__()
        check_net("net", net)
        self.net, self.weights = net, weights
        self.name = f"perceptual{'' if weights is None else '_weighted'}[{name}]"
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("frames", torch.tensor(0), "sum")

    def update(self, video: Tensor, reference: Tensor) -> None:
        """Add a batch; video, reference: (b, c, f, h, w) in [-1, 1], where the net is.

        Raises ValueError for bad input, a net in training mode, or feature maps that do not fit the weights.
        """
        check_pair(("video", "reference"), video, reference)
        check_net("net", self.net)
        with torch.no_grad():
            maps = [self.net(rearrange(x, "b c f h w -> (b f) c h w")) for x in (video, reference)]
        maps = [[layer.to(self.device).double() for layer in layers] for layers in maps]
        distances = perceptual_distance(*maps, self.weights)
        self.total += distances.sum()
        self.frames += distances.numel()

    def compute(self) -> Score:
        """The mean. Raises ValueError before the first frame."""
        n = int(self.frames)
        check_count("frames compared", n, 1)
        return Score(self.name, self.total.item() / n, n)
