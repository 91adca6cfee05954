"""Lesson 00, start here: the order of a video's axes, and what goes wrong when two of them trade places.

Inputs are small and coded: a video's value says which clip, frame and channel it comes from, so a check can
say what landed where.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from course_lib.lab.checks import Exercise, Wrong, brief, call, same
from course_lib.world import Scene, load_film, render


def coded_video(b: int, f: int) -> Tensor:
    """A video (b, 3, f, 2, 3) whose value is clip + frame / 10 + channel / 100 + a little for the place."""
    clip, frame, channel = torch.arange(b), torch.arange(f), torch.arange(3)
    code = clip[:, None, None] + frame / 10 + channel[:, None] / 100  # (b, c, f)
    place = torch.arange(6.0).reshape(2, 3) / 10_000
    return code[..., None, None] + place


def require_video(result: object, expected: Tensor, what: str) -> Tensor:
    """`result` as a float tensor of `expected`'s shape; otherwise says what it is instead."""
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        same(result, expected, what)
    return result


# 0.1 fold the frames into the batch, and back


def frame_by_frame(image_function, video):
    """Apply a function of images (n, c, h, w) to every frame of a video (b, c, f, h, w), in one call."""
    b = len(video)
    images = rearrange(video, "b c f h w -> (b f) c h w")
    images = image_function(images)
    return rearrange(images, "(b f) c h w -> b c f h w", b=b)


@dataclass
class ImageFunction:
    """Doubles the values, or (`shrinks`) averages the channels and every 2x3 block; remembers what it was given."""

    expected: tuple[int, ...]
    shrinks: bool = False
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise Wrong(
                f"image_function takes images (b f) c h w, here {self.expected}; it was given: {brief(images)}."
            )
        self.given.append(images)
        return images.mean((1, 2, 3), keepdim=True) if self.shrinks else 2 * images

    def __repr__(self) -> str:
        return "an image function"


def verify_frame_by_frame(attempt: Callable) -> Iterator[str]:
    """Looks at the images on their way in, at the clips on their way out, and at changed sizes."""
    video = coded_video(b=2, f=4)
    look = ImageFunction((8, 3, 2, 3))
    result = call(attempt, look, video)
    _judge_fold(look.given, video)
    yield "the image function is called once, with 8 images, frame by frame and clip after clip"
    _judge_unfold(result, 2 * video)
    yield "they come back as clips (b, c, f, h, w)"

    video = coded_video(b=3, f=5)
    look = ImageFunction((15, 3, 2, 3), shrinks=True)
    expected = frame_by_frame(look, video)
    try:
        result = attempt(look, video)
    except RuntimeError as error:
        raise Wrong(
            "It stops if the image function changes the images' size (here from 3 channels of 2x3 pixels to 1 of "
            f"1x1). Take c, h and w from what comes out of it, not from the video. torch says: {error}"
        ) from error
    same(
        result,
        expected,
        "with an image function that changes channels and size, the result",
        input=video,
    )
    yield "the image function may change channels and size"
    video = coded_video(b=1, f=1)
    same(
        call(attempt, ImageFunction((1, 3, 2, 3)), video),
        2 * video,
        "one clip of one frame",
        input=video,
    )
    yield "one clip of one frame works too"


def _judge_fold(given: list[Tensor], video: Tensor) -> None:
    b, c, f, h, w = video.shape
    if not given:
        raise Wrong("image_function was never called: the result must come from it.")
    if len(given) > 1:
        raise Wrong(
            f"image_function was called {len(given)} times. Fold the frames into the batch and call it once: "
            "one big call keeps the machine busy, many small ones do not."
        )
    images, right = given[0], rearrange(video, "b c f h w -> (b f) c h w")
    if images.shape == right.shape:
        if torch.equal(images, video.reshape(b * f, c, h, w)):
            raise Wrong(
                "The images have the right shape but are no frames: image 0 has red from frame 0, 'green' that is "
                "the red of frame 1, and 'blue' that is the red of frame 2. reshape cuts the numbers up in the order "
                "in which they lie in memory; it never moves an axis. Bring f beside b first."
            )
        if torch.equal(images, rearrange(video, "b c f h w -> (f b) c h w")):
            raise Wrong(
                "Every image is a frame, but they come in the order (f b): image 1 is frame 0 of clip 1. "
                "The course folds as (b f): image 1 is frame 1 of clip 0."
            )
    same(images, right, "the images given to image_function", input=video)


def _judge_unfold(result: object, expected: Tensor) -> None:
    b, c, f, h, w = expected.shape
    if isinstance(result, Tensor) and result.ndim == 4:
        raise Wrong(
            f"got images of shape {tuple(result.shape)}: now unfold them into clips {tuple(expected.shape)}."
        )
    images = rearrange(expected, "b c f h w -> (b f) c h w")
    if isinstance(result, Tensor) and result.shape == expected.shape:
        if torch.equal(result, images.reshape(b, c, f, h, w)):
            raise Wrong(
                "The clips have the right shape, but the axes c and f were cut in the wrong places on the way back. "
                "Split the images into (b, f, c, h, w), then permute: reshape alone never moves an axis."
            )
        if torch.equal(result, rearrange(images, "(f b) c h w -> b c f h w", b=b)):
            raise Wrong(
                "Folded as (b f), unfolded as (f b): clip 0 now has every second frame of both clips."
            )
    same(result, expected, "the clips that come back")


# 0.2 from a video file to the course's format


def pixels_to_video(pixels):
    """Pixels (f, h, w, c), uint8, as a clip (c, f, h, w), float32 in [-1, 1]."""
    video = pixels.permute(3, 0, 1, 2)  # f h w c -> c f h w
    return video.float() / 127.5 - 1


def verify_pixels_to_video(attempt: Callable) -> Iterator[str]:
    """A small clip of known pixels, then two frames of real film."""
    pixels = torch.randint(
        0, 256, (2, 4, 5, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    pixels[0, 0, 0], pixels[1, 3, 4] = 0, 255
    before = pixels.clone()
    expected = pixels_to_video(pixels)
    result = require_video(call(attempt, pixels), expected, "the video")
    if not torch.equal(pixels, before):
        raise Wrong(
            "Your function has changed the pixels that it was given. Make a new tensor instead."
        )
    yield "the axes are (c, f, h, w), of the right sizes"
    _judge_pixels(result, pixels, expected)
    yield "black is -1, white is 1, and every pixel is in its place"
    film = load_film("puck", start=0.2, frames=2, size=32)
    pixels = film.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    same(call(attempt, pixels), film, "two frames of the puck film", input=pixels)
    yield "two frames of real film come out as load_film gives them"


def _judge_pixels(result: Tensor, pixels: Tensor, expected: Tensor) -> None:
    if result.dtype == torch.uint8:
        raise Wrong(
            "The result is still uint8, whole numbers from 0 to 255. The course's videos are float32."
        )
    places = pixels.permute(3, 0, 1, 2)
    wrapped = [places * 2 - 255, places * 2 - 1]  # the arithmetic of uint8
    mistakes = [
        (places.float(), "The values still run from 0 to 255. Map 0 to -1 and 255 to 1."),
        (places / 255, "The values run from 0 to 1. The course's videos run from -1 (black) to 1 (white)."),
        (places / 255 - 1, "The values run from -1 to 0: the range from black to white is 2 wide, not 1."),
        (places / 127.5, "The values run from 0 to 2: the middle grey should be 0. Subtract 1."),
        (places / 128 - 1, "White becomes 0.992 instead of 1. Pixels end at 255: divide by half of that."),
        (places / 255 - 0.5, "The values run from -0.5 to 0.5. The course's videos run from -1 to 1."),
        (places * 2 / 255 - 1, "uint8 wraps round at 256 (2 * 200 is 144). Turn it into float before you calculate."),
        *((bad / 255, "uint8 wraps round at 256 (2 * 200 is 144). Turn it into float before you calculate.")
          for bad in wrapped),
    ]  # fmt: skip
    for wrong, message in mistakes:
        if torch.allclose(result.float(), wrong.float(), atol=1e-5):
            raise Wrong(message)
    if torch.allclose(result.float(), pixels.reshape(expected.shape) / 127.5 - 1, atol=1e-5):
        raise Wrong(
            "The shape and the range are right, but the pixels are scrambled: reshape or view cuts the numbers up in "
            "the order in which they lie in memory. To move an axis, use permute."
        )
    same(result, expected, "the video", input=pixels)


# 0.3 how fast does it go?


def horizontal_velocity(mask):
    """Mean velocity (b,) of the masked subject, in pixels per frame; mask (b, 1, f, h, w), bool."""
    weight = mask.float()  # (b, 1, f, h, w)
    x = torch.arange(mask.shape[-1])  # the column of each pixel
    centre = (weight * x).sum((-2, -1)) / weight.sum((-2, -1))  # (b, 1, f)
    steps = centre[..., 1:] - centre[..., :-1]  # (b, 1, f - 1)
    return steps.mean((1, 2))  # (b,)


VELOCITY_TOLERANCE = 0.06  # pixels per frame: a mask has whole pixels, the path has not


def verify_horizontal_velocity(attempt: Callable) -> Iterator[str]:
    """Against the paths that the world itself used."""
    motions = ("moving right", "moving left", "moving up", "standing still")
    _judge_velocity(
        attempt,
        [Scene("red circle", motion, "white", 4 + i) for i, motion in enumerate(motions)],
        8,
    )
    yield "a circle that goes right, left, up and nowhere: within 0.06 pixels per frame of its exact path"
    _judge_velocity(attempt, [Scene("rabbit", "moving left", "grass", 9)], 6)
    yield "a single clip of a rabbit, with another number of frames"


def _judge_velocity(attempt: Callable, scenes: list[Scene], frames: int) -> None:
    clips = render(scenes, frames=frames, frozen=True)
    result, reference = call(attempt, clips.mask), horizontal_velocity(clips.mask)
    exact = _path_velocity(clips.path, axis=0)
    what = "the velocities of " + ", ".join(scene.motion for scene in scenes)
    if isinstance(result, Tensor) and result.shape == exact.shape and torch.isfinite(result).all():
        result = result.float().cpu()
        if (result - exact).abs().max() < VELOCITY_TOLERANCE:
            return
        numbers = ", ".join(f"{value:.2f}" for value in result.tolist())
        truth = ", ".join(f"{value:.2f}" for value in exact.tolist())
        seen = f" Got {numbers}; the world says {truth} pixels per frame."
        for wrong, message in _velocity_mistakes(clips.mask, reference, frames):
            if (result - wrong).abs().max() < 1e-3 * max(1, float(wrong.abs().max())):
                raise Wrong(message + seen)
    same(result, reference, what, input=clips.mask, atol=VELOCITY_TOLERANCE)


def _path_velocity(path: Tensor, axis: int, size: int = 64) -> Tensor:
    """Mean velocity along x (0) or y (1) in pixels per frame; a path has coordinates from -1 to 1."""
    return (path[:, -1, axis] - path[:, 0, axis]) * size / 2 / (path.shape[1] - 1)


def _velocity_mistakes(mask: Tensor, right: Tensor, frames: int) -> list[tuple[Tensor, str]]:
    between = f"Between {frames} frames lie {frames - 1} steps"
    return [
        (
            horizontal_velocity(mask.transpose(-1, -2)),
            "That is the vertical velocity: h counts down, w to the right.",
        ),
        (right * (frames - 1) / frames, f"{between}, but you divided by {frames}."),
        (
            right * (frames - 1),
            f"That is the whole way from first to last frame. {between}: divide by {frames - 1}.",
        ),
        (-right, "The sign is flipped: later minus earlier, and w grows to the right."),
        (right.abs(), "That is the speed. A velocity has a sign: to the left is negative."),
        (
            right * 2 / mask.shape[-1],
            "That is in coordinates from -1 to 1. Multiply by half the width for pixels.",
        ),
        (right * 8, "That is pixels per second (8 frames a second). Asked for: per frame."),
        (
            torch.zeros_like(right),
            "That is zero for every clip. Are the centres taken in each frame separately?",
        ),
    ]


# 0.4 find the bug


def mended_tint(video, colour):
    """Add to every clip (b, 3, f, h, w) its own colour (b, 3)."""
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)  # (b f) c h w
    shift = colour.repeat_interleave(f, dim=0)  # (b f) c: 0 0 0 … 1 1 1 …, like the frames
    frames = (frames + shift[:, :, None, None]).clamp(-1, 1)
    return frames.reshape(b, f, c, h, w).transpose(1, 2)  # b c f h w


def verify_tint(attempt: Callable) -> Iterator[str]:
    """One clip first, then three without any tint (finds the unfolding bug), then with (finds the other)."""
    generator = torch.Generator().manual_seed(4)
    colours = torch.rand(3, 3, generator=generator) * 0.5
    video = coded_video(b=3, f=4) / 4 - 1  # within [-1, -0.3]: no tint reaches white
    one = video[:1], colours[:1]
    same(call(attempt, *one), mended_tint(*one), "a batch of one clip", input=video[:1])
    yield "a batch of one clip is tinted right"
    plain = require_video(
        call(attempt, video, torch.zeros(3, 3)), video, "three clips with a tint of zero"
    )
    for clip, frame in ((0, 1), (1, 0), (2, 3)):
        came = (plain[clip, 0, frame, 0, 0] + 1) * 4  # clip + frame / 10
        if abs(float(came) - (clip + frame / 10)) > 1e-3:
            raise Wrong(
                "With a tint of zero, three clips should come back as they are, but frame "
                f"{frame} of clip {clip} is now what was frame {round(float(came) % 1 * 10)} of clip {int(came)}. "
                "The frames were folded as (b f): are they unfolded in the same order?"
            )
    same(plain, video, "three clips with a tint of zero")
    yield "with three clips, every frame stays in its own clip"
    result, expected = call(attempt, video, colours), mended_tint(video, colours)
    mixed = video + colours.repeat(4, 1).reshape(3, 4, 3).transpose(1, 2)[..., None, None]
    if (
        isinstance(result, Tensor)
        and result.shape == mixed.shape
        and torch.allclose(result, mixed, atol=1e-5)
    ):
        raise Wrong(
            "Frame 1 of clip 0 has the colour of clip 1. repeat counts the colours 0 1 2 0 1 2 …; the folded frames "
            "belong to clips 0 0 0 0 1 1 1 1 …: which other function repeats like that?"
        )
    same(result, expected, "three clips, each with its own tint", input=video)
    yield "each clip has its own colour, in all of its frames"


EXERCISES = (
    Exercise(
        "0.1", "Fold the frames into the batch, and back", 4, 1, verify_frame_by_frame,
        (
            "Three steps: clips to images, call image_function once, images to clips.",
            'einops says it in words: rearrange(video, "b c f h w -> (b f) c h w"). '
            "Without it: permute f to stand beside b, then reshape.",
            "On the way back the sizes c, h, w may be new; only b is needed: "
            'rearrange(images, "(b f) c h w -> b c f h w", b=len(video)).',
        ),
        frame_by_frame,
    ),
    Exercise(
        "0.2", "From a video file to the course's format", 2, 1, verify_pixels_to_video,
        (
            "Two jobs: the axes, and the range. permute moves axes.",
            "Where does each new axis come from? c was axis 3, f was axis 0.",
            "0 must become -1 and 255 must become 1: divide by 127.5, then subtract 1.",
        ),
        pixels_to_video,
    ),
    Exercise(
        "0.3", "How fast does it go?", 5, 2, verify_horizontal_velocity,
        (
            "Where is the subject in one frame? At the mean column of the mask's pixels.",
            "The mean column: (mask * torch.arange(w)).sum over h and w, divided by mask.sum over h and w.",
            "A velocity is the mean step from each frame to the next: f frames have f - 1 steps.",
        ),
        horizontal_velocity,
    ),
    Exercise(
        "0.4", "Find the bug", 5, 2, verify_tint,
        (
            "There are two, and a batch of one clip hides both. After each line, ask which clip image 1 belongs to.",
            "Print torch.arange(2).repeat(3) and torch.arange(2).repeat_interleave(3).",
            "Folded as (b f), the images must be unfolded with b first: reshape(b, f, …).",
        ),
        mended_tint,
    ),
)  # fmt: skip
