"""Exercises of lesson 07, inflating a latent model: their checks, hints and reference solutions.

The oracles are loops over frames. A mistake is known by the numbers it leads to on the check's own input. The checks of
7.4 and 7.5, of layers that have to learn, are in `lesson_07_layers.py`.
"""

import torch
from torch import Tensor, nn

from course_lib.lab.checks.compare import Wrong, brief
from course_lib.lab.checks.engine import Exercise, call
from course_lib.exercises.lesson_03_time import untouched
from course_lib.exercises.lesson_07_layers import verify_blend, verify_silence
from course_lib.lab.checks.mistakes import CLOSE, as_tensor, judge, normal

# 7.1 ------------------------------------------------------------------------------------------------------------------


def frame_by_frame(unet, video, t, text):
    """What an image model says of every frame: clips (b, c, f, h, w), a timestep and a text (l, d) for each clip."""
    b, _, f, _, _ = video.shape
    frames = video.transpose(1, 2).flatten(0, 1)  # b f c h w, then (b f) c h w
    answer = unet(frames, t.repeat_interleave(f), text.repeat_interleave(f, dim=0))
    return answer.unflatten(0, (b, f)).transpose(1, 2)


class _ImageModel:
    """Answers by picture, timestep and text, each in a way of its own; refuses what no image model takes."""

    def __call__(self, pictures: Tensor, t: Tensor, text: Tensor) -> Tensor:
        if not isinstance(pictures, Tensor) or pictures.ndim != 4:
            raise Wrong(
                f"unet takes pictures (n, c, h, w); it got {brief(pictures)}. Frames go into the batch."
            )
        for name, one, ndim in (("t", t, 1), ("text", text, 3)):
            if not isinstance(one, Tensor) or one.ndim != ndim or len(one) != len(pictures):
                raise Wrong(
                    f"unet wants a {name} for each of {len(pictures)} pictures; it got {brief(one)}."
                )
        shift = t.to(pictures) + 10 * text.mean(dim=(1, 2)).to(pictures)
        slope = (
            torch.arange(pictures[0].numel()).reshape(pictures.shape[1:]).to(pictures)
        )  # no two places are alike
        return pictures.sin() + 0.01 * slope + shift[:, None, None, None]

    def __repr__(self) -> str:
        return "an image model"


def _fold_mistakes(
    unet: _ImageModel, video: Tensor, t: Tensor, text: Tensor
) -> list[tuple[Tensor, str]]:
    b, c, f, h, w = video.shape
    frames, times, texts = (
        video.transpose(1, 2).flatten(0, 1),
        t.repeat_interleave(f),
        text.repeat_interleave(f, dim=0),
    )
    bare, right = video.reshape(b * f, c, h, w), unet(frames, times, texts)
    by_frame = unet(video.permute(2, 0, 1, 3, 4).flatten(0, 1), times, texts)  # (f b) c h w
    back = lambda rows: rows.unflatten(0, (b, f)).transpose(1, 2)  # noqa: E731
    cut = ("reshape(b * f, c, h, w) moves no number: what the model sees as a picture is made of channels of several "
           "frames. First transpose(1, 2).")  # fmt: skip
    return [
        (back(unet(frames, t.repeat(f), texts)), "The timesteps are tiled, 0 1 0 1, but frames of a clip stand side by "
         "side: repeat_interleave."),
        (back(unet(frames, times, text.repeat(f, 1, 1))), "The texts are tiled, 0 1 0 1, but frames of a clip stand "
         "side by side: repeat_interleave."),
        (back(unet(frames, t.repeat(f), text.repeat(f, 1, 1))), "Timesteps and texts are tiled, 0 1 0 1, but frames of "
         "a clip stand side by side: repeat_interleave."),
        (by_frame.unflatten(0, (f, b)).permute(1, 2, 0, 3, 4), "Your rows are (f, b), all clips' first frames first: "
         "then t and text have to be tiled, `repeat`. Or put the frames of a clip side by side: transpose(1, 2)."),
        (unet(bare, times, texts).reshape(video.shape), cut),
        (back(unet(bare, times, texts)), cut),
        (right.reshape(video.shape), "The way in is right. On the way back, frames and channels have to change places: "
         ".unflatten(0, (b, f)), then transpose(1, 2)."),
        (right.unflatten(0, (f, b)).permute(1, 2, 0, 3, 4), "On the way back you read the rows as (f, b). Frames of a "
         "clip stand side by side: (b, f)."),
        (right.unflatten(0, (b, f)), "That is (b, f, c, h, w): the last transpose is missing."),
        (right, "The frames are still in the batch: .unflatten(0, (b, f)), then transpose(1, 2)."),
        (torch.stack([unet(video[:, :, 0], t, text)] * f, dim=2), "Every frame got the answer to the first."),
    ]  # fmt: skip


def _verify_frame_by_frame(attempt):
    for b, c, f, h, w in ((2, 3, 4, 5, 6), (3, 4, 2, 3, 3), (1, 2, 5, 4, 4), (2, 3, 1, 4, 4)):
        video, t, text = (
            normal(75, b, c, f, h, w),
            torch.tensor([3, 70, 500])[:b],
            normal(76, b, 4, 2),
        )
        unet, given, told = (
            _ImageModel(),
            (video.clone(), t.clone(), text.clone()),
            f"a video {(b, c, f, h, w)}",
        )
        expected = torch.stack([unet(video[:, :, frame], t, text) for frame in range(f)], dim=2)
        judge(call(attempt, unet, *given), expected, _fold_mistakes(unet, video, t, text), told)
        for name, before, after in zip(
            ("video", "t", "text"), (video, t, text), given, strict=True
        ):
            untouched(after, before, name)
        if (b, f) == (2, 4):
            yield f"{told}: every frame's answer as in a loop, with its own clip's timestep and text"
    yield "other clips too, one clip alone, and clips of a single frame"


# 7.2 ------------------------------------------------------------------------------------------------------------------


def texts_of_frames(empty, prompt, f):
    """The text of every frame under guidance: first all frames without a prompt, then all with; (2·b·f, l, d)."""
    return torch.cat([empty, prompt]).repeat_interleave(f, dim=0)


def _verify_texts(attempt):
    for b, f in ((2, 3), (3, 2), (1, 4)):
        empty, prompt = normal(73, b, 5, 4), normal(74, b, 5, 4)
        names = [f"empty {k}" for k in range(b)] + [f"prompt {k}" for k in range(b)]
        known, given = torch.cat([empty, prompt]), (empty.clone(), prompt.clone())
        right, told = (
            [k for k in range(2 * b) for _ in range(f)],
            f"{b} clip{'s' * (b > 1)} of {f} frames",
        )
        got = as_tensor(call(attempt, *given, f))
        if not isinstance(got, Tensor) or got.shape != (2 * b * f, 5, 4):
            raise Wrong(
                f"{told}: expected (2·b·f, l, d), here {(2 * b * f, 5, 4)}; got {brief(got)}."
            )
        rows = [(known - row).abs().amax(dim=(1, 2)) for row in got]
        if any(to.min() > CLOSE for to in rows):
            raise Wrong(
                f"{told}: some rows are nobody's text. Repeat texts as they are, (l, d) each."
            )
        found = [int(to.argmin()) for to in rows]
        if found != right:
            row = next(
                k for k, (mine, want) in enumerate(zip(found, right, strict=True)) if mine != want
            )
            shown = f"row {row} is the text {names[found[row]]!r}, expected {names[right[row]]!r}"
            raise Wrong(f"{told}: {shown}. {_texts_message(found, b, f)}")
        for name, before, after in zip(("empty", "prompt"), (empty, prompt), given, strict=True):
            untouched(after, before, name)
        if (b, f) == (2, 3):
            yield f"{told}: every frame has its own clip's text, in the half that it belongs to"
    yield "also other numbers of clips and frames"


def _texts_message(found: list[int], b: int, f: int) -> str:
    first, second = list(range(b)), list(range(b, 2 * b))
    each = lambda clips: [k for k in clips for _ in range(f)]  # noqa: E731
    pairs = [k for pair in zip(first, second, strict=True) for k in pair]
    tiled = "That is `repeat`, which tiles: each frame gets the next clip's text, and nothing complains."
    known = [
        ((first + second) * f, f"{tiled} Moreover the halves are mixed."),
        (first * f + second * f, tiled),
        (each(second + first), "The halves are swapped: `guided`, as diffusers, takes the empty one first."),
        (second * f + first * f, f"{tiled} And the halves are swapped."),
        (each(pairs), "Each clip's two texts stand together. But the batch is all clips without a prompt, then all "
         "clips with one: torch.cat([x, x])."),
        (pairs * f, "Each frame's two texts stand together. First comes the half without prompts, all of it."),
    ]  # fmt: skip
    return next(
        (say for rows, say in known if rows == found),
        "First the empty half, clip after clip; then the other.",
    )


# 7.3 ------------------------------------------------------------------------------------------------------------------


def per_frame(norm, video):
    """A norm of pictures (n, c, h, w), over each frame of clips (b, c, f, h, w) by itself."""
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)
    return norm(frames).reshape(b, f, c, h, w).transpose(1, 2)


def _norm(c: int) -> nn.GroupNorm:
    """Two groups, with a weight and a bias as if trained."""
    norm = nn.GroupNorm(2, c, dtype=torch.float64)
    norm.weight.data, norm.bias.data = 1 + 0.3 * normal(70, c), normal(71, c)
    return norm.requires_grad_(False)


def _norm_mistakes(norm: nn.GroupNorm, video: Tensor) -> list[tuple[Tensor, str]]:
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)
    right = norm(frames).reshape(b, f, c, h, w)
    bare = ("You cut (b, c, f, h, w) into (b·f, c, h, w) without moving the axes: the shape is right, but channels and "
            "frames are mixed. First transpose(1, 2).")  # fmt: skip
    cut = norm(video.reshape(b * f, c, h, w))
    return [
        (norm(video), "GroupNorm takes a clip as it is, and then its mean and variance are those of all frames "
         "together: a bright frame darkens the others, and a picture in joint training speaks to the clip."),
        (cut.reshape(video.shape), bare),
        (cut.reshape(b, f, c, h, w).transpose(1, 2), bare),
        (right, "That is (b, f, c, h, w): the last transpose is missing."),
        (norm(frames), "The frames are still in the batch: .reshape(b, f, c, h, w), then transpose(1, 2)."),
        (norm(frames).reshape(video.shape), "The way in is right. On the way back, first .reshape(b, f, c, h, w), then "
         "transpose(1, 2): frames are the outer axis now."),
        (norm(video.permute(2, 0, 1, 3, 4).flatten(0, 1)).reshape(b, f, c, h, w).transpose(1, 2), "On the way in the "
         "rows are (f, b), on the way back you read them as (b, f): frames get each other's clips."),
        (video, "That is the video as it was: the norm is not in it."),
    ]  # fmt: skip


def _verify_per_frame(attempt):
    for b, c, f, h, w in ((2, 4, 3, 5, 2), (1, 6, 4, 2, 2), (3, 4, 1, 3, 3)):
        # Frames of unequal brightness, or the mistake would hardly show
        video = (
            normal(72, b, c, f, h, w) * torch.linspace(1, 3, f)[:, None, None]
            + torch.arange(f)[:, None, None]
        )
        norm, given, told = _norm(c), video.clone(), f"a video {(b, c, f, h, w)}"
        expected = torch.stack([norm(video[:, :, frame]) for frame in range(f)], dim=2)
        judge(call(attempt, norm, given), expected, _norm_mistakes(norm, video), told)
        untouched(given, video, "video")
        if b == 2:
            yield f"{told}: as a loop over its frames gives it"
    yield "other clips too, and clips of a single frame"


# 7.4 ------------------------------------------------------------------------------------------------------------------


def silence(layer):
    """The layer, with nothing to say at first: weight and bias are zero, and both may learn."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# 7.5 ------------------------------------------------------------------------------------------------------------------


class Blend(nn.Module):
    """alpha · video + (1 - alpha) · layer(video), with an alpha between 0 and 1 that learns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, video):
        alpha = self.mix_factor.sigmoid()
        return alpha * video + (1 - alpha) * self.layer(video)


EXERCISES = (
    Exercise(
        "7.1", "A film through a picture model", 15, 3, _verify_frame_by_frame,
        ("Three things go in, for every frame: its picture, its clip's timestep, its clip's text.",
         "video.transpose(1, 2).flatten(0, 1) has the frames of a clip side by side. So equal timesteps have to stand "
         "side by side too: repeat_interleave.",
         "Back: .unflatten(0, (b, f)), and frames and channels change places."),
        frame_by_frame,
    ),
    Exercise(
        "7.2", "Whose text is it?", 10, 2, _verify_texts,
        ("Guidance doubles the batch: torch.cat([x, x]), all clips without a prompt, then all clips with one. And then "
         "the frames of each clip go into the batch.",
         "Write down the rows for 2 clips of 3 frames: empty 0, empty 0, empty 0, empty 1, …, prompt 1.",
         "torch.cat first, .repeat_interleave(f, dim=0) then."),
        texts_of_frames,
    ),
    Exercise(
        "7.3", "A norm that minds its own frame", 10, 2, _verify_per_frame,
        ("The norm takes pictures. So every frame has to become a row of its batch.",
         "video.transpose(1, 2) is (b, f, c, h, w); now .reshape(b * f, c, h, w) keeps every frame whole.",
         "Back: .reshape(b, f, c, h, w), then transpose(1, 2) once more."),
        per_frame,
    ),
    Exercise(
        "7.4", "Nothing to say, at first", 5, 1, verify_silence,
        ("A linear layer and a convolution give weight · x + bias. When is that zero for every x?",
         "layer.parameters() are all of them, and nn.init.zeros_ fills one with zeros, in place.",
         "Both stay parameters that may learn: no requires_grad_(False), no factor of 0 in front."),
        silence,
    ),
    Exercise(
        "7.5", "An alpha that learns", 15, 3, verify_blend,
        ("alpha = nn.Parameter(torch.ones(1)) leaves the image model alone. But at alpha = 1, what is the gradient of "
         "alpha · video + (1 - alpha) · layer(video) by the layer's weights?",
         "The layer is silent at first, see 7.4. Then any alpha leaves the image model alone, for example a half.",
         "To stay between 0 and 1 whatever it learns: alpha = self.mix_factor.sigmoid(), of a parameter that begins "
         "at 0."),
        Blend,
    ),
)  # fmt: skip
