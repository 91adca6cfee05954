"""Exercises of lesson 07, inflating a latent model: checks, hints and reference solutions.

The checks of 7.2 and 7.3 are in `lesson_07_insertion.py`, those of 7.4 and 7.5, of layers that have
to learn, in `lesson_07_layers.py`, and that of 7.6 in `lesson_07_given.py`.
"""

import torch
from torch import Tensor, nn

from course_lib.exercises.lesson_07_given import verify_given_frames
from course_lib.exercises.lesson_07_insertion import (
    verify_call_with_layer,
    verify_outlier_prediction,
)
from course_lib.exercises.lesson_07_layers import verify_alpha_blend, verify_zero_module
from course_lib.lab.checks import (
    Exercise,
    Mistake,
    Recorder,
    call_on_copies,
    describe_value,
    diagnose,
    per_frame_mistakes,
    randn,
    require,
)

# 7.1 ----------------------------------------------------------------------------------------------


def apply_per_frame(unet, video, t, text):
    """An image model's prediction per frame; video (b, c, f, h, w), t (b,), text (b, l, d)."""
    b, _, f, _, _ = video.shape
    frames = video.transpose(1, 2).flatten(0, 1)  # b f c h w, then (b f) c h w
    pred = unet(frames, t.repeat_interleave(f), text.repeat_interleave(f, dim=0))
    return pred.unflatten(0, (b, f)).transpose(1, 2)


def _predict(images: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Depends on image, timestep and text, each in its own way; no two pixels are alike."""
    shift = t.to(images) + 10 * text.mean(dim=(1, 2)).to(images)
    slope = torch.arange(images[0].numel()).reshape(images.shape[1:]).to(images)
    return images.sin() + 0.01 * slope + shift[:, None, None, None]


def _validate_call(images: object, t: object, text: object) -> None:
    require(
        isinstance(images, Tensor) and images.ndim == 4,
        f"unet takes images (n, c, h, w); it got {describe_value(images)}. Frames go into the "
        "batch.",
    )
    for name, rows, ndim in (("t", t, 1), ("text", text, 3)):
        require(
            isinstance(rows, Tensor) and rows.ndim == ndim and len(rows) == len(images),
            f"unet wants a {name} for each of {len(images)} images; it got {describe_value(rows)}.",
        )


def _frame_mistakes(video: Tensor, t: Tensor, text: Tensor) -> list[Mistake]:
    b, _, f, _, _ = video.shape
    times, texts = t.repeat_interleave(f), text.repeat_interleave(f, dim=0)
    tiled_t, tiled_text = t.repeat(f), text.repeat(f, 1, 1)
    frames = video.transpose(1, 2).flatten(0, 1)
    frames_first = _predict(video.permute(2, 0, 1, 3, 4).flatten(0, 1), times, texts)
    tiled = "tiled, 0 1 0 1, but frames of a clip stand side by side: repeat_interleave."
    mistakes = [
        (_predict(frames, *rows).unflatten(0, (b, f)).transpose(1, 2), f"{names} are {tiled}")
        for names, *rows in (
            ("The timesteps", tiled_t, texts),
            ("The texts", times, tiled_text),
            ("Timesteps and texts", tiled_t, tiled_text),
        )
    ]
    return [
        *mistakes,
        (frames_first.unflatten(0, (f, b)).permute(1, 2, 0, 3, 4),
         "Your rows are (f, b), all clips' first frames first: then t and text have to be tiled, "
         "`repeat`. Or put the frames of a clip side by side: transpose(1, 2)."),
        *per_frame_mistakes(lambda images: _predict(images, times, texts), video),
        (torch.stack([_predict(video[:, :, 0], t, text)] * f, dim=2),
         "Every frame got the prediction for the first."),
    ]  # fmt: skip


def _verify_apply_per_frame(attempt):
    for shape in ((2, 3, 4, 5, 6), (3, 4, 2, 3, 3), (1, 2, 5, 4, 4), (2, 3, 1, 4, 4)):
        video, text = randn(75, *shape), randn(76, shape[0], 4, 2)
        t = torch.tensor([3, 70, 500])[: shape[0]]
        unet = Recorder("unet", _predict, _validate_call)
        diagnose(
            call_on_copies(attempt, unet=unet, video=video, t=t, text=text),
            torch.stack([_predict(frame, t, text) for frame in video.unbind(2)], dim=2),
            _frame_mistakes(video, t, text),
            f"a video {shape}",
        )
        yield f"a video {shape}: as in a loop over frames, with each clip's timestep and text"


# 7.2 ----------------------------------------------------------------------------------------------


def call_with_layer(unet, part, layer, images):
    """unet(images) with a layer behind one of its modules; afterwards unet is as it was."""
    # What a forward hook returns takes the place of the module's output
    handle = part.register_forward_hook(lambda module, args, output: layer(output))
    try:
        return unet(images)
    finally:  # also if unet raises an error: a hook that stays changes every later call
        handle.remove()


# 7.3 ----------------------------------------------------------------------------------------------


def predict_outlier():
    """The variance is a mean of squares, over all frames: (5 · 1 + 400) / 6 = 67.5, root 8.2."""
    return "c"


# 7.4 ----------------------------------------------------------------------------------------------


def zero_module(layer):
    """The layer with zero output at first: weight and bias are zero, and both can learn."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# 7.5 ----------------------------------------------------------------------------------------------


class AlphaBlend(nn.Module):
    """alpha · video + (1 - alpha) · layer(video), with an alpha between 0 and 1 that learns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, video):
        alpha = self.mix_factor.sigmoid()
        return alpha * video + (1 - alpha) * self.layer(video)


# 7.6 ----------------------------------------------------------------------------------------------


def given_frames(given, num_frames, stride):
    """Mask (b, f) and channels (b, c + 1, f, h, w); given frames are 0, stride, 2 · stride, …"""
    b, c, n, h, w = given.shape
    # Zeros and a mask, because a frame of zeros may be given too
    channels = given.new_zeros(b, c + 1, num_frames, h, w)
    mask = torch.zeros(b, num_frames, dtype=torch.bool)
    places = stride * torch.arange(n)
    mask[:, places] = True
    channels[:, :c, places] = given
    channels[:, c, places] = 1
    return mask, channels


EXERCISES = (
    Exercise(
        "7.1", "A video through an image model", 15, 3, _verify_apply_per_frame,
        ("Three things go in, for every frame: its image, its clip's timestep, its clip's text.",
         "video.transpose(1, 2).flatten(0, 1) has the frames of a clip side by side. So equal "
         "timesteps have to stand side by side too: repeat_interleave.",
         "Back: .unflatten(0, (b, f)), then exchange frames and channels."),
        apply_per_frame,
    ),
    Exercise(
        "7.2", "A layer behind a module", 15, 3, verify_call_with_layer,
        ("part.register_forward_hook(hook): from then on hook(module, args, output) is called "
         "after each call of part, and what it returns takes the place of output.",
         "The hook has one line: return layer(output). It is registered before unet(images).",
         "handle = part.register_forward_hook(hook); out = unet(images); handle.remove(); return "
         "out."),
        call_with_layer,
    ),
    Exercise(
        "7.3", "Predict first: one loud frame", 3, 1, verify_outlier_prediction,
        ("Which axes does the norm average over, if frames are an axis behind the channels?",
         "The variance of all frames together is the mean of their squares. Write it down for "
         "five frames with squares of 1 and one with squares of 400.",
         "(5 · 1 + 400) / 6 is about 67. By what are the quiet frames divided?"),
        predict_outlier,
    ),
    Exercise(
        "7.4", "Zero output at first", 5, 1, verify_zero_module,
        ("A linear layer and a convolution give weight · x + bias. When is that zero for every x?",
         "layer.parameters() are all of them, and nn.init.zeros_ fills one with zeros, in place.",
         "Both stay parameters that can learn: no requires_grad_(False), no factor of 0 in front."),
        zero_module,
    ),
    Exercise(
        "7.5", "An alpha that learns", 15, 3, verify_alpha_blend,
        ("alpha = nn.Parameter(torch.ones(1)) leaves the image model as it is. But at alpha = 1, "
         "what is the gradient of alpha · video + (1 - alpha) · layer(video) by the layer's "
         "weights?",
         "The layer adds nothing at first, see 7.4. Then any alpha leaves the image model as it "
         "is, for example a half.",
         "To stay between 0 and 1 whatever it learns: alpha = self.mix_factor.sigmoid(), of a "
         "parameter that begins at 0."),
        AlphaBlend,
    ),
    Exercise(
        "7.6", "Which frames are given?", 15, 2, verify_given_frames,
        ("Given frame number k is frame k · stride of the clip. stride 1 is a clip to continue.",
         "Begin with zeros: torch.zeros(b, num_frames, dtype=torch.bool) and "
         "given.new_zeros(b, c + 1, num_frames, h, w).",
         "places = stride * torch.arange(n); mask[:, places] = True, and the same places of the "
         "channels get the frames (channels 0 to c - 1) and a 1 (channel c)."),
        given_frames,
    ),
)  # fmt: skip
