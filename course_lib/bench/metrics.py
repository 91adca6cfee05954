"""The metrics against scipy, scikit-image and torchmetrics: time, and how far the numbers are apart."""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance

from course_lib.bench.timing import Row, alternate, compare
from course_lib.metrics import frechet_distance, psnr, ssim

WIDTH = 1024
SAMPLES = 2048  # the convention of FVD
FEW = 128  # fewer than WIDTH
CLIPS, FRAMES, PIXELS = 4, 8, 64
ROUNDS = 5
SECONDS_A_CASE = 8  # scipy's square root takes some seconds


def features(n: int, seed: int) -> Tensor:
    """(n, WIDTH) correlated features, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    return torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) @ mix + 0.1 * seed


def by_scipy(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance as it is usually written: the square root of the product of the covariances."""
    (m1, s1), (m2, s2) = (
        (x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real.numpy(), generated.numpy())
    )
    return float(
        ((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    )


def by_torchmetrics(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance by the eigenvalues of the product, which is not symmetric."""
    net = nn.Identity()
    net.num_features = real.shape[1]
    metric = FrechetInceptionDistance(net, normalize=True)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute().item()


def rows_of(
    case: str, subject: str, functions: Mapping[str, Callable[[], float]], repeats: int
) -> list[Row]:
    """One row for every peer of `subject`, with the relative difference of their numbers."""
    values: dict[str, float] = {}

    def remembering(name: str) -> Callable[[], None]:
        return lambda: values.update({name: functions[name]()})

    times = alternate(
        {name: remembering(name) for name in functions}, repeats, budget_s=SECONDS_A_CASE
    )
    rows = []
    for peer in functions:
        if peer != subject:
            note = f"relative difference {abs(values[subject] / values[peer] - 1):.1e}"
            rows.append(compare(times, subject, peer, benchmark="metrics", case=case, note=note))
    return rows


def frechet_rows() -> list[Row]:
    """Ours against the root and the eigenvalues of the product, for many samples and for fewer than dimensions."""
    rows = []
    for n, peers in (
        (SAMPLES, {"scipy sqrtm": by_scipy, "torchmetrics": by_torchmetrics}),
        (FEW, {"torchmetrics": by_torchmetrics}),
    ):
        sides = features(n, 0), features(n, 1)
        forms = {"frechet_distance": frechet_distance, **peers}
        functions = {
            name: lambda form=form, sides=sides: form(*sides) for name, form in forms.items()
        }
        rows += rows_of(f"{n} features of width {WIDTH}", "frechet_distance", functions, ROUNDS)
    return rows


def image_rows() -> list[Row]:
    """Mean over frames of PSNR, and of SSIM in the paper's form; all in float64, scikit-image frame by frame."""
    generator = torch.Generator().manual_seed(0)
    video = (
        torch.rand(CLIPS, 3, FRAMES, PIXELS, PIXELS, generator=generator, dtype=torch.float64) * 2
        - 1
    )
    noisy = (
        video + 0.2 * torch.randn(video.shape, generator=generator, dtype=torch.float64)
    ).clamp(-1, 1)
    images, changed = ((x.transpose(1, 2).flatten(0, 1) + 1) / 2 for x in (video, noisy))
    paper = dict(
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=0,
    )

    def each_frame(metric: Callable, **options: object) -> float:
        pairs = zip(images.numpy(), changed.numpy(), strict=True)
        return float(np.mean([metric(*pair, **options) for pair in pairs]))

    def torchmetrics_ssim() -> float:
        _, full = structural_similarity_index_measure(
            changed, images, data_range=1.0, return_full_image=True
        )
        return full[..., 5:-5, 5:-5].mean().item()

    def torchmetrics_psnr() -> float:
        metric = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
        metric.update(changed, images)
        return metric.compute().item()

    case = f"{CLIPS}x3x{FRAMES}x{PIXELS}x{PIXELS}"
    ssims = {
        "ssim": lambda: ssim(noisy, video).mean().item(),
        "scikit-image": lambda: each_frame(structural_similarity, **paper),
        "torchmetrics": torchmetrics_ssim,
    }
    psnrs = {
        "psnr": lambda: psnr(noisy, video).mean().item(),
        "scikit-image": lambda: each_frame(peak_signal_noise_ratio, data_range=1.0),
        "torchmetrics": torchmetrics_psnr,
    }
    return rows_of(case, "ssim", ssims, ROUNDS) + rows_of(case, "psnr", psnrs, 4 * ROUNDS)


def bench_metrics() -> list[Row]:
    """Fréchet distance, SSIM and PSNR: how many times as fast as the libraries' own, and whether they agree."""
    return image_rows() + frechet_rows()
