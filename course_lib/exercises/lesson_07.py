"""Exercises of lesson 07, inflating a latent model: checks, hints and reference solutions.

The references are loops over frames. The checks of 7.4 and 7.5, of layers that have to learn, are
in `lesson_07_layers.py`.
"""

import torch
from torch import Tensor, nn

from course_lib.exercises.lesson_07_layers import verify_alpha_blend, verify_zero_module
from course_lib.lab.checks import (
    Exercise,
    Mistake,
    Recorder,
    as_tensor,
    call_on_copies,
    cfg_order_mistakes,
    describe_value,
    diagnose,
    diagnose_order,
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


def cfg_text_per_frame(uncond, cond, num_frames):
    """The text of every frame under guidance, (2·b·f, l, d): all frames without a prompt first."""
    return torch.cat([uncond, cond]).repeat_interleave(num_frames, dim=0)


def _verify_cfg_text_per_frame(attempt):
    for b, f in ((2, 3), (3, 2), (1, 4)):
        uncond, cond = randn(73, b, 5, 4), randn(74, b, 5, 4)
        letters = "abc"[:b] + "ABC"[:b]
        case = (
            f"{b} clip{'s' * (b > 1)} of {f} frames (A: the first clip's prompt, a: its empty one)"
        )
        result = as_tensor(call_on_copies(attempt, uncond=uncond, cond=cond, num_frames=f))
        require(
            isinstance(result, Tensor) and result.shape == (2 * b * f, 5, 4),
            f"{case}: expected (2·b·f, l, d), that is {(2 * b * f, 5, 4)}; got "
            f"{describe_value(result)}.",
        )
        diagnose_order(
            result,
            dict(zip(letters, torch.cat([uncond, cond]), strict=True)),
            "".join(letter * f for letter in letters),
            cfg_order_mistakes(letters[:b], letters[b:], f),
            case,
            "none of the texts. Repeat texts as they are, (l, d) each.",
        )
        yield f"{case}: every frame has its own clip's text, in the half that it belongs to"


# 7.3 ----------------------------------------------------------------------------------------------


def framewise_norm(norm, video):
    """A norm of images (n, c, h, w), for each frame of a video (b, c, f, h, w) by itself."""
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)
    return norm(frames).reshape(b, f, c, h, w).transpose(1, 2)


def _verify_framewise_norm(attempt):
    for b, c, f, h, w in ((2, 4, 3, 5, 2), (1, 6, 4, 2, 2), (3, 4, 1, 3, 3)):
        norm = nn.GroupNorm(2, c, dtype=torch.float64).requires_grad_(False)
        norm.weight += 0.3 * randn(70, c)
        norm.bias += randn(71, c)
        # Frames of unequal brightness, or the mistake would hardly show
        brightness, contrast = torch.arange(f), torch.linspace(1, 3, f)
        video = randn(72, b, c, f, h, w) * contrast[:, None, None] + brightness[:, None, None]
        mistakes = [
            (norm(video), "GroupNorm takes a clip as it is, and then its mean and variance are "
                          "those of all frames together: a bright frame darkens the others, and "
                          "in joint training an image leaks into the video."),
            *per_frame_mistakes(norm, video),
            (video, "That is the video as it was: the norm is not in it."),
        ]  # fmt: skip
        expected = torch.stack([norm(frame) for frame in video.unbind(2)], dim=2)
        case = f"a video {(b, c, f, h, w)}"
        diagnose(call_on_copies(attempt, norm=norm, video=video), expected, mistakes, case)
        yield f"{case}: as a loop over its frames gives it"


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
        "7.2", "Whose text is it?", 10, 2, _verify_cfg_text_per_frame,
        ("Guidance doubles the batch: torch.cat([x, x]), all clips without a prompt, then all "
         "clips with one. And then the frames of each clip go into the batch.",
         "Write down the rows for 2 clips of 3 frames: uncond 0, uncond 0, uncond 0, uncond 1, "
         "…, cond 1.",
         "torch.cat first, .repeat_interleave(num_frames, dim=0) then."),
        cfg_text_per_frame,
    ),
    Exercise(
        "7.3", "A norm for each frame", 10, 2, _verify_framewise_norm,
        ("The norm takes images. So every frame has to become a row of its batch.",
         "video.transpose(1, 2) is (b, f, c, h, w); now .reshape(b * f, c, h, w) keeps every "
         "frame in one piece.",
         "Back: .reshape(b, f, c, h, w), then transpose(1, 2) once more."),
        framewise_norm,
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
)  # fmt: skip
