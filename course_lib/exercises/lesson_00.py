"""Exercises of lesson 00: the order of a video's axes, and what happens if two are exchanged.

A video's values encode clip, frame and channel, so a check can tell which frame went where.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from course_lib.lab.checks import (
    Exercise,
    IncorrectAnswer,
    Recorder,
    assert_matches,
    call,
    call_on_copies,
    describe_value,
    diagnose,
    fold_mistakes,
    require,
    unfold_mistakes,
)
from course_lib.world import Scene, load_video, render


def coded_video(b: int, f: int) -> Tensor:
    """A video (b, 3, f, 2, 3) of values clip + frame / 10 + channel / 100 + pixel / 1000."""
    clip, frame, channel = torch.arange(b), torch.arange(f), torch.arange(3)
    code = clip[:, None, None] + frame / 10 + channel[:, None] / 100  # (b, c, f)
    pixel = torch.arange(6.0).reshape(2, 3)
    return code[..., None, None] + pixel / 1000


# 0.1 fold the frames into the batch, and back


def apply_per_frame(image_function, video):
    """Apply a function of images (n, c, h, w) to every frame of a video (b, c, f, h, w)."""
    b = len(video)
    images = rearrange(video, "b c f h w -> (b f) c h w")
    images = image_function(images)
    return rearrange(images, "(b f) c h w -> b c f h w", b=b)


def _image_function(function: Callable, expected: tuple[int, ...]) -> Recorder:
    def validate(images: object) -> None:
        text = f"image_function takes images (b f) c h w, here {expected}; it was given: "
        require(isinstance(images, Tensor) and images.ndim == 4, text + describe_value(images))

    return Recorder("image_function", function, validate)


def verify_apply_per_frame(attempt: Callable) -> Iterator[str]:
    """Checks the images on their way in, the clips on their way out, then changed sizes."""
    video = coded_video(b=2, f=4)
    double = _image_function(lambda images: 2 * images, (8, 3, 2, 3))
    result = call(attempt, double, video)
    double.require_call()
    num_calls = len(double.calls)
    require(
        num_calls == 1,
        f"image_function was called {num_calls} times. Fold the frames into the batch and call it "
        "once: one big call keeps the machine busy, many small ones do not.",
    )
    images = rearrange(video, "b c f h w -> (b f) c h w")
    diagnose(double.calls[0][0], images, fold_mistakes(video), "the images for image_function")
    yield "the image function is called once, with 8 images, frame by frame and clip after clip"
    diagnose(result, 2 * video, unfold_mistakes(2 * images, 4), "the clips that come back")
    yield "they come back as clips (b, c, f, h, w)"
    yield from _verify_other_sizes(attempt)


def _verify_other_sizes(attempt: Callable) -> Iterator[str]:
    video = coded_video(b=3, f=5)
    mean = _image_function(lambda images: images.mean((1, 2, 3), keepdim=True), (15, 3, 2, 3))
    try:
        result = attempt(mean, video)
    except RuntimeError as error:
        raise IncorrectAnswer(
            "It stops if the image function changes the images' size (here from 3 channels of 2x3 "
            "pixels to 1 of 1x1). Take c, h and w from what comes out of it, not from the video. "
            f"torch says: {error}"
        ) from error
    assert_matches(
        result,
        apply_per_frame(mean, video),
        "with an image function that changes channels and size, the result",
        input=video,
    )
    yield "the image function may change channels and size"
    video = coded_video(b=1, f=1)
    assert_matches(
        call(attempt, _image_function(lambda images: 2 * images, (1, 3, 2, 3)), video),
        2 * video,
        "one clip of one frame",
        input=video,
    )
    yield "one clip of one frame works too"


# 0.2 from a video file to the course's format


def pixels_to_video(pixels):
    """Pixels (f, h, w, c), uint8, as a clip (c, f, h, w), float32 in [-1, 1]."""
    video = pixels.permute(3, 0, 1, 2)  # f h w c -> c f h w
    return video.float() / 127.5 - 1


def verify_pixels_to_video(attempt: Callable) -> Iterator[str]:
    """Checks a small clip of random pixels, then two frames of real film."""
    pixels = torch.randint(
        0, 256, (2, 4, 5, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    pixels[0, 0, 0] = 0
    pixels[1, 3, 4] = 255
    expected = pixels_to_video(pixels)
    result = call_on_copies(attempt, pixels=pixels)
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        assert_matches(result, expected, "the video")
    yield "the axes are (c, f, h, w), of the right sizes"
    require(
        result.dtype != torch.uint8,
        "The result is still uint8, integers from 0 to 255. The course's videos are float32.",
    )
    diagnose(result, expected, _pixel_mistakes(pixels), "the video")
    assert_matches(result, expected, "the video", input=pixels)
    yield "black is -1, white is 1, and every pixel is in its place"
    film = load_video("puck", start=0.2, num_frames=2, size=32)
    pixels = film.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert_matches(call(attempt, pixels), film, "two frames of the puck film", input=pixels)
    yield "two frames of real film come out as load_video gives them"


def _pixel_mistakes(pixels: Tensor) -> list[tuple[Tensor, str]]:
    moved = pixels.permute(3, 0, 1, 2)
    wraps = "uint8 wraps round at 256 (2 * 200 is 144). Turn it into float before you calculate."
    return [
        (moved.float(), "The values still run from 0 to 255. Map 0 to -1 and 255 to 1."),
        (moved / 255, "The values run from 0 to 1. The course's videos run from -1 (black) to 1 "
                      "(white)."),
        (moved / 255 - 1, "The values run from -1 to 0: the range from black to white is 2 wide, "
                          "not 1."),
        (moved / 127.5, "The values run from 0 to 2: the middle grey should be 0. Subtract 1."),
        (moved / 128 - 1, "White becomes 0.992 instead of 1. Pixels end at 255: divide by half "
                          "of that."),
        (moved / 255 - 0.5, "The values run from -0.5 to 0.5. The course's videos run from -1 to "
                            "1."),
        (moved * 2 / 255 - 1, wraps),
        ((moved * 2 - 255) / 255, wraps),
        ((moved * 2 - 1) / 255, wraps),
        (pixels.reshape(moved.shape) / 127.5 - 1,
         "The shape and the range are right, but the pixels are scrambled: reshape or view cuts "
         "the numbers up in the order in which they lie in memory. To move an axis, use permute."),
    ]  # fmt: skip


# 0.3 how fast does it go?


def horizontal_velocity(mask):
    """Mean velocity (b,) of the masked subject, in pixels per frame; mask (b, 1, f, h, w), bool."""
    weight = mask.float()  # (b, 1, f, h, w)
    x = torch.arange(mask.shape[-1])  # the column of each pixel
    centre = (weight * x).sum((-2, -1)) / weight.sum((-2, -1))  # (b, 1, f)
    steps = centre[..., 1:] - centre[..., :-1]  # (b, 1, f - 1)
    return steps.mean((1, 2))  # (b,)


VELOCITY_TOLERANCE = 0.06  # pixels per frame: a mask has integer pixels, the path has not


def verify_horizontal_velocity(attempt: Callable) -> Iterator[str]:
    """Compares with the paths that the world itself used."""
    motions = ("moving right", "moving left", "moving up", "standing still")
    scenes = [Scene("red circle", motion, "white", 4 + i) for i, motion in enumerate(motions)]
    _check_velocity(attempt, scenes, 8)
    yield "a circle that goes right, left, up and nowhere: within 0.06 pixels per frame of its path"
    _check_velocity(attempt, [Scene("rabbit", "moving left", "grass", 9)], 6)
    yield "a single clip of a rabbit, with another number of frames"


def _check_velocity(attempt: Callable, scenes: list[Scene], num_frames: int) -> None:
    clips = render(scenes, num_frames=num_frames, static_sprites=True)
    result = call(attempt, clips.mask)
    reference = horizontal_velocity(clips.mask)
    path = clips.path[..., 0]  # (b, f), from -1 at the left border to 1 at the right one
    exact = (path[:, -1] - path[:, 0]) * clips.mask.shape[-1] / 2 / (num_frames - 1)
    if isinstance(result, Tensor) and result.shape == exact.shape and torch.isfinite(result).all():
        result = result.float().cpu()
        if (result - exact).abs().max() < VELOCITY_TOLERANCE:
            return
        got, true = (", ".join(f"{v:.2f}" for v in x.tolist()) for x in (result, exact))
        for wrong, message in _velocity_mistakes(clips.mask, reference, num_frames):
            require(
                not ((result - wrong).abs().max() < 1e-3 * max(1, float(wrong.abs().max()))),
                f"{message} Got {got}; the world says {true} pixels per frame.",
            )
    assert_matches(
        result,
        reference,
        "the velocities of " + ", ".join(scene.motion for scene in scenes),
        input=clips.mask,
        atol=VELOCITY_TOLERANCE,
    )


def _velocity_mistakes(mask: Tensor, right: Tensor, f: int) -> list[tuple[Tensor, str]]:
    steps = f"{f} frames have {f - 1} steps"
    return [
        (horizontal_velocity(mask.mT), "That is the vertical velocity: h counts down, w to the "
                                       "right."),
        (right * (f - 1) / f, f"{steps}, but you divided by {f}."),
        (right * (f - 1), f"That is the way from the first to the last frame. {steps}: divide by "
                          f"{f - 1}."),
        (-right, "The sign is flipped: later minus earlier, and w grows to the right."),
        (right.abs(), "That is the speed. A velocity has a sign: to the left is negative."),
        (right * 2 / mask.shape[-1], "That is in coordinates from -1 to 1. Multiply by half the "
                                     "width for pixels."),
        (right * 8, "That is pixels per second (8 frames a second). The exercise wants pixels "
                    "per frame."),
        (torch.zeros_like(right), "That is zero for every clip. Are the centres taken in each "
                                  "frame separately?"),
    ]  # fmt: skip


# 0.4 find the bug


def tint_clips(video, colour):
    """Add to every clip (b, 3, f, h, w) its own colour (b, 3)."""
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)  # (b f) c h w
    shift = colour.repeat_interleave(f, dim=0)  # (b f) c: 0 0 0 … 1 1 1 …, like the frames
    frames = (frames + shift[:, :, None, None]).clamp(-1, 1)
    return frames.reshape(b, f, c, h, w).transpose(1, 2)  # b c f h w


def verify_tint_clips(attempt: Callable) -> Iterator[str]:
    """Checks one clip, then three without a tint (the unfolding bug), then with (the other)."""
    colours = torch.rand(3, 3, generator=torch.Generator().manual_seed(4)) * 0.5
    video = coded_video(b=3, f=4) / 4 - 1  # within [-1, -0.3]: no tint reaches white
    clip = video[:1], colours[:1]
    assert_matches(call(attempt, *clip), tint_clips(*clip), "a batch of one clip", input=video[:1])
    yield "a batch of one clip is tinted right"
    plain = call(attempt, video, torch.zeros(3, 3))
    case = "three clips with a tint of zero"
    if not isinstance(plain, Tensor) or plain.shape != video.shape:
        assert_matches(plain, video, case)
    for clip, frame in ((0, 1), (1, 0), (2, 3)):
        code = float((plain[clip, 0, frame, 0, 0] + 1) * 4)  # clip + frame / 10
        origin = f"frame {round(code % 1 * 10)} of clip {int(code)}"
        require(
            abs(code - (clip + frame / 10)) < 1e-3,
            "With a tint of zero, three clips should come back as they are, but frame "
            f"{frame} of clip {clip} is now what was {origin}. The frames were folded as (b f): "
            "are they unfolded in the same order?",
        )
    assert_matches(plain, video, case)
    yield "with three clips, every frame stays in its own clip"
    diagnose(
        call(attempt, video, colours),
        tint_clips(video, colours),
        [
            (
                video + colours.repeat(4, 1).reshape(3, 4, 3).transpose(1, 2)[..., None, None],
                "Frame 1 of clip 0 has the colour of clip 1. repeat counts the colours "
                "0 1 2 0 1 2 …; the folded frames belong to clips 0 0 0 0 1 1 1 1 …: which other "
                "function repeats like that?",
            )
        ],
        "three clips and three tints",
    )
    yield "each clip has its own colour, in all of its frames"


EXERCISES = (
    Exercise(
        "0.1", "Fold the frames into the batch, and back", 4, 1, verify_apply_per_frame,
        (
            "Three steps: clips to images, call image_function once, images to clips.",
            'einops says it in words: rearrange(video, "b c f h w -> (b f) c h w"). '
            "Without it: permute f to stand next to b, then reshape.",
            "On the way back the sizes c, h, w may be new; only b is needed: "
            'rearrange(images, "(b f) c h w -> b c f h w", b=len(video)).',
        ),
        apply_per_frame,
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
             "The mean column: (mask * torch.arange(w)).sum over h and w, divided by mask.sum "
             "over h and w.",
            "A velocity is the mean step from each frame to the next: f frames have f - 1 steps.",
        ),
        horizontal_velocity,
    ),
    Exercise(
        "0.4", "Find the bug", 5, 2, verify_tint_clips,
        (
             "There are two, and a batch of one clip hides both. After each line, ask which clip "
             "image 1 belongs to.",
            "Print torch.arange(2).repeat(3) and torch.arange(2).repeat_interleave(3).",
            "Folded as (b f), the images must be unfolded with b first: reshape(b, f, …).",
        ),
        tint_clips,
    ),
)  # fmt: skip
