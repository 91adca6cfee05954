"""Breaking a clip on purpose, one property at a time: for asking a metric what it notices, and for training a judge.

Every function keeps shape and range and says in numbers how strong it is. `defects` labels what spoils a data set;
here each function is one dial. Pictures first (blur, noise, colour, compression), then time.
"""

import io
from collections.abc import Callable

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as TF

Corruption = Callable[[Tensor, torch.Generator], Tensor]


def _frames(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "n c h w"]:
    return video.transpose(1, 2).flatten(0, 1)  # (b f) c h w


def _clips(frames: Float[Tensor, "n c h w"], b: int) -> Float[Tensor, "b c f h w"]:
    return frames.unflatten(0, (b, -1)).transpose(1, 2)


def blur(video: Float[Tensor, "b c f h w"], sigma: float | int) -> Float[Tensor, "b c f h w"]:
    """Out of focus: every frame under a Gaussian.

    Args:
        video: in [-1, 1].
        sigma: standard deviation in pixels, positive.

    Raises:
        ValueError: a sigma that is not.
    """
    if sigma <= 0:
        raise ValueError(f"sigma: expected a positive number of pixels, got {sigma}")
    reach = min(
        int(np.ceil(3 * sigma)), min(video.shape[-2:]) - 1
    )  # reflection needs more picture than reach
    taps = torch.exp(-(torch.arange(-reach, reach + 1, device=video.device) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(video.dtype).view(1, 1, 1, -1)
    # rows, then columns: torchvision's gaussian_blur gives the same with a square kernel, many times slower
    planes = video.flatten(0, 2)[:, None]  # (b c f) 1 h w
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="reflect"), taps)
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="reflect"), taps.transpose(2, 3))
    return planes.view(video.shape)


def noise(
    video: Float[Tensor, "b c f h w"], std: float | int, generator: torch.Generator
) -> Tensor:
    """Grain: independent normal noise on every value, cut to [-1, 1].

    Args:
        video: in [-1, 1].
        std: standard deviation, in the units of the video.
        generator: on the CPU.
    """
    grain = torch.randn(video.shape, generator=generator).to(video)
    return (video + std * grain).clamp(-1, 1)


def recolour(video: Float[Tensor, "b c f h w"], hue: float | int) -> Float[Tensor, "b c f h w"]:
    """Turn every colour around the colour circle.

    Args:
        video: in [-1, 1], three channels.
        hue: share of the circle, in [-0.5, 0.5]; a third makes red green.
    """
    return _clips(
        TF.adjust_hue(_frames(video).add(1).div(2).clamp(0, 1), float(hue)).mul(2).sub(1),
        len(video),
    )


def jpeg(video: Float[Tensor, "b 3 f h w"], quality: int) -> Float[Tensor, "b 3 f h w"]:
    """Save every frame as a JPEG and read it back.

    Args:
        video: in [-1, 1].
        quality: 1 (worst) to 100.
    """
    bytes_ = _frames(video).add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    read = torch.stack([decode_jpeg(encode_jpeg(frame, quality)) for frame in bytes_])
    return _clips(read.to(video).div(127.5).sub(1), len(video))


def codec(video: Float[Tensor, "b 3 f h w"], crf: int) -> Float[Tensor, "b 3 f h w"]:
    """Compress every clip as H.264 and play it again: unlike JPEG, errors last over frames.

    Args:
        video: in [-1, 1]; height and width even.
        crf: the codec's constant rate factor, 0 (best) to 51 (worst).
    """
    pixels = video.add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    played = [_play(_encode(clip.permute(1, 2, 3, 0).numpy(), crf)) for clip in pixels]  # f h w 3
    return (
        torch.from_numpy(np.stack(played))
        .to(video)
        .div(127.5)
        .sub(1)
        .permute(0, 4, 1, 2, 3)
        .contiguous()
    )


def _encode(pictures: np.ndarray, crf: int) -> io.BytesIO:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.options = {"crf": str(crf)}
        for picture in pictures:
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                )
            )
        out.mux(stream.encode())
    file.seek(0)
    return file


def _play(file: io.BytesIO) -> np.ndarray:
    with av.open(file) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def wobble(
    video: Float[Tensor, "b c f h w"],
    reach: float | int,
    generator: torch.Generator,
    *,
    steady: bool,
) -> Float[Tensor, "b c f h w"]:
    """Look through bad glass: smooth random displacements, the same in all frames of a clip, or new in every frame.

    Both spoil each single frame alike; only the second flickers. After the elastic distortions of Ge et al. 2024, "On
    the Content Bias in Fréchet Video Distance", section 3.

    Args:
        video: in [-1, 1].
        reach: root mean square of the displacement along each axis, in every frame, in pixels.
        generator: on the CPU.
        steady: one glass per clip, not one per frame.
    """
    b, _, f, h, w = video.shape
    coarse = torch.randn(
        b, 1 if steady else f, 2, 5, 5, generator=generator
    )  # a bend every fourth of the picture
    fields = F.interpolate(coarse.flatten(0, 1), (h, w), mode="bicubic", align_corners=True).view(
        b, -1, 2, h, w
    )
    fields = (
        fields / fields.square().mean(dim=(2, 3, 4), keepdim=True).sqrt() * reach
    )  # each frame bent as much
    shift = fields.expand(b, f, 2, h, w).flatten(0, 1).permute(0, 2, 3, 1)  # (b f) h w 2
    straight = F.affine_grid(
        torch.eye(2, 3).expand(b * f, 2, 3), [b * f, 1, h, w], align_corners=False
    )
    grid = (straight + shift * 2 / torch.tensor([w, h])).to(video)
    return _clips(
        F.grid_sample(_frames(video), grid, padding_mode="border", align_corners=False), b
    )


# Time


def freeze(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
    """Show the first frame all the time."""
    return video[:, :, :1].expand_as(video).contiguous()


def reverse(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
    """Play backwards."""
    return video.flip(2)


def shuffle(
    video: Float[Tensor, "b c f h w"], generator: torch.Generator
) -> Float[Tensor, "b c f h w"]:
    """Show each clip's frames in an order of its own that is neither the right one nor its reverse.

    Args:
        video: at least three frames.
        generator: on the CPU.

    Raises:
        ValueError: fewer than three frames.
    """
    f = video.shape[2]
    if f < 3:
        raise ValueError(f"video: shuffling needs at least 3 frames, got {f}")
    straight, orders = torch.arange(f), []
    while len(orders) < len(video):
        order = torch.randperm(f, generator=generator)
        if not torch.equal(order, straight) and not torch.equal(order, straight.flip(0)):
            orders.append(order)
    return (
        torch.stack([clip[:, order] for clip, order in zip(video, orders, strict=True)])
        if orders
        else video
    )


def swap_halves(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
    """Show the second half of each clip before the first: every step but one is right."""
    return video.roll(video.shape[2] // 2, dims=2)


def cut(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
    """Change to the next clip of the batch in the middle.

    Args:
        video: at least two clips of at least two frames.

    Raises:
        ValueError: fewer clips or frames.
    """
    b, _, f = video.shape[:3]
    if b < 2 or f < 2:
        raise ValueError(f"video: a cut needs two clips of two frames, got {b} of {f}")
    return torch.cat([video[:, :, : f // 2], video.roll(-1, dims=0)[:, :, f // 2 :]], dim=2)


CORRUPTIONS: dict[str, Corruption] = {
    "blur": lambda video, generator: blur(video, video.shape[-1] / 43),  # 1.5 pixels of 64
    "noise": lambda video, generator: noise(video, 0.2, generator),
    "colour": lambda video, generator: recolour(video, 0.15),
    "compression": lambda video, generator: codec(video, 40),
    "freeze": lambda video, generator: freeze(video),
    "shuffle": shuffle,
    "reverse": lambda video, generator: reverse(video),
    "cut": lambda video, generator: cut(video),
}
"""By name, at the strength that lesson 16 uses: (video, generator) to video."""
