"""Metrics against scipy, scikit-image and torchmetrics: time, and how far the results differ."""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance

from course_lib.bench.timing import BenchmarkRow, compare, timed_with_results
from course_lib.metrics import frechet_distance, psnr, ssim
from course_lib.nn.utils import fold_frames

FEATURE_DIM = 1024
NUM_SAMPLES = 2048  # the convention of FVD
NUM_FEW_SAMPLES = 128  # fewer than FEATURE_DIM
VIDEO_SHAPE = (4, 3, 8, 64, 64)
ROUNDS = 5
SECONDS_PER_CASE = 8  # scipy's square root takes some seconds


def random_features(num_samples: int, seed: int) -> Tensor:
    """Correlated features (n, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(FEATURE_DIM, FEATURE_DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_samples, FEATURE_DIM, generator=generator, dtype=torch.float64)
    return noise @ (mix / FEATURE_DIM**0.5) + 0.1 * seed


def frechet_scipy(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance with the matrix square root of the product of covariances, as is usual."""
    (m1, s1), (m2, s2) = (
        (x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real.numpy(), generated.numpy())
    )
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(root))


def frechet_torchmetrics(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance with the eigenvalues of the product, which is not symmetric."""
    net = nn.Identity()
    net.num_features = real.shape[1]
    metric = FrechetInceptionDistance(net, normalize=True)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute().item()


def peer_rows(
    case: str, functions: Mapping[str, Callable[[], float]], repeats: int
) -> list[BenchmarkRow]:
    """The first function against each of the others, with the relative difference of results."""
    times, results = timed_with_results(functions, repeats, SECONDS_PER_CASE)
    contender, *peers = functions
    rows = []
    for peer in peers:
        note = f"relative difference {abs(results[contender] / results[peer] - 1):.1e}"
        rows.append(compare(times, contender, peer, benchmark="metrics", case=case, note=note))
    return rows


def frechet_rows() -> list[BenchmarkRow]:
    """For many samples, and for fewer samples than dimensions."""
    peers = {"scipy sqrtm": frechet_scipy, "torchmetrics": frechet_torchmetrics}
    few_peers = {"torchmetrics": frechet_torchmetrics}
    rows = []
    for num_samples, others in ((NUM_SAMPLES, peers), (NUM_FEW_SAMPLES, few_peers)):
        features = random_features(num_samples, 0), random_features(num_samples, 1)
        functions = {
            name: lambda distance=distance, features=features: distance(*features)
            for name, distance in {"frechet_distance": frechet_distance, **others}.items()
        }
        rows += peer_rows(f"{num_samples} features of width {FEATURE_DIM}", functions, ROUNDS)
    return rows


def image_rows() -> list[BenchmarkRow]:
    """Mean over frames of PSNR, and of SSIM as in the paper; in float64, skimage frame by frame."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(VIDEO_SHAPE, generator=generator, dtype=torch.float64)
    video = uniform * 2 - 1
    noise = torch.randn(VIDEO_SHAPE, generator=generator, dtype=torch.float64)
    noisy = (video + 0.2 * noise).clamp(-1, 1)
    images, noisy_images = ((fold_frames(x) + 1) / 2 for x in (video, noisy))
    paper_kwargs = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "channel_axis": 0,
    }

    def skimage_mean(metric: Callable, **kwargs: object) -> float:
        pairs = zip(images.numpy(), noisy_images.numpy(), strict=True)
        return float(np.mean([metric(*pair, data_range=1.0, **kwargs) for pair in pairs]))

    def torchmetrics_ssim() -> float:
        _, full = structural_similarity_index_measure(
            noisy_images, images, data_range=1.0, return_full_image=True
        )
        return full[..., 5:-5, 5:-5].mean().item()

    def torchmetrics_psnr() -> float:
        metric = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
        metric.update(noisy_images, images)
        return metric.compute().item()

    case = "x".join(map(str, VIDEO_SHAPE))
    ssim_functions = {
        "ssim": lambda: ssim(noisy, video).mean().item(),
        "scikit-image": lambda: skimage_mean(structural_similarity, **paper_kwargs),
        "torchmetrics": torchmetrics_ssim,
    }
    psnr_functions = {
        "psnr": lambda: psnr(noisy, video).mean().item(),
        "scikit-image": lambda: skimage_mean(peak_signal_noise_ratio),
        "torchmetrics": torchmetrics_psnr,
    }
    return peer_rows(case, ssim_functions, ROUNDS) + peer_rows(case, psnr_functions, 4 * ROUNDS)


def bench_metrics() -> list[BenchmarkRow]:
    """SSIM, PSNR and Fréchet distance against the libraries' own."""
    return image_rows() + frechet_rows()
