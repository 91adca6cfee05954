"""Exercises of lesson 03, Video Diffusion Models: checks, hints and reference solutions.

The references are loops and closed forms. The checks of 3.2 and 3.3 are in `lesson_03_time.py`,
that of 3.4 in `lesson_03_leak.py`, that of 3.5 in `lesson_03_guidance.py`.
"""

import torch
from torch import Tensor

from course_lib.exercises.lesson_03_guidance import verify_reconstruction_guided_x0
from course_lib.exercises.lesson_03_leak import verify_temporal_leakage
from course_lib.exercises.lesson_03_time import (
    verify_apply_over_frames,
    verify_joint_attention_mask,
)
from course_lib.lab.checks import (
    TILED,
    Exercise,
    Mistake,
    as_tensor,
    call_on_copies,
    diagnose,
    diagnose_order,
    randn,
)

# 3.1 ----------------------------------------------------------------------------------------------


def repeat_per_frame(embedding, num_frames):
    """To each frame of every clip the clip's own vector: (b, d) to (b·f, d), clip after clip."""
    return embedding.repeat_interleave(num_frames, dim=0)


def _shape_mistakes(e: Tensor, f: int) -> list[Mistake]:
    """What has another shape than (b·f, d), or numbers that are no clip's vector."""
    b, longer = len(e), "You repeated along axis 1, so every vector grew longer. Clips are axis 0."
    within = (
        "You repeated the numbers within each vector, along axis 1, and cut the result into rows. "
        "Repeat complete rows."
    )
    by_clips = "You repeat b times, the number of clips. A clip has f frames."
    return [
        (e[:, None].expand(-1, f, -1), "That is (b, f, d): the right vectors, with an axis of "
                                       "their own for the frames. In this exercise the frames "
                                       "are in the batch: .flatten(0, 1)."),
        (e.expand(f, -1, -1), "That is (f, b, d), with the frames outside. In this exercise they "
                              "are in the batch, clip after clip: (b·f, d)."),
        (e.repeat(1, f), longer),
        (e.repeat_interleave(f, dim=1), longer),
        (e.repeat_interleave(f), "Without dim, repeat_interleave flattens the table first: dim=0."),
        (e, "That is still one vector for each clip: num_frames does not enter."),
        (e.repeat_interleave(b, dim=0), by_clips),
        (e.repeat(b, 1), by_clips),
        (e.repeat_interleave(f, dim=1).reshape(b * f, -1), within),
        (e.repeat_interleave(f).reshape(f, -1).T.reshape(b * f, -1), within),
        (e.mean(0).expand(b * f, -1), "That is the mean over the clips, for all frames."),
    ]  # fmt: skip


def _verify_repeat_per_frame(attempt):
    for b, f in ((2, 3), (3, 5), (1, 4), (4, 1)):
        embedding, clips = randn(10 + b, b, 6), "0123"[:b]
        case = f"{b} clip{'s' * (b > 1)} of {f} frame{'s' * (f > 1)}"
        mistakes = {
            clips * f: f"{TILED} The shape is right, so no error is raised, and clips get each "
                       "other's timesteps and texts.",
            "0" * b * f: "Every frame got the first clip's vector, which is right only where "
                         "there is one clip.",
            clips[-1] * b * f: "Every frame got the last clip's vector.",
            "".join(clip * f for clip in reversed(clips)): "The clips run backwards.",
            "": "First all frames of clip 0, then all of clip 1.",
        }  # fmt: skip
        result = call_on_copies(attempt, embedding=embedding, num_frames=f)
        rows = as_tensor(result)
        if isinstance(rows, Tensor) and rows.shape == (b * f, 6):
            diagnose_order(
                rows,
                dict(zip(clips, embedding, strict=True)),
                "".join(clip * f for clip in clips),
                mistakes,
                f"{case}, whose vector each row is",
            )
        diagnose(
            result,
            torch.stack([row for row in embedding for _ in range(f)]),
            _shape_mistakes(embedding, f),
            case,
        )
        yield f"{case}: every frame has the vector of its own clip"


# 3.2 ----------------------------------------------------------------------------------------------


def apply_over_frames(video, attend):
    """Apply `attend`, (b·h·w, f, c) to the same shape, to the frames of every pixel of a video."""
    b, c, f, h, w = video.shape
    tokens = video.permute(0, 3, 4, 2, 1).reshape(b * h * w, f, c)
    return attend(tokens).reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2)


# 3.3 ----------------------------------------------------------------------------------------------


def joint_attention_mask(is_image):
    """Which frame may attend to which, (b, f, f): an image only to itself. is_image: (b, f)."""
    is_video = ~is_image
    both = is_video[:, :, None] & is_video[:, None, :]  # both belong to the video
    itself = torch.eye(is_image.shape[1], dtype=torch.bool, device=is_image.device)
    return both | itself


# 3.4 ----------------------------------------------------------------------------------------------


def temporal_leakage(network, video, is_image):
    """The largest change of an output frame by a frame hidden from it; video (1, c, f, h, w)."""
    before = network(video, is_image)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0)).to(video)
    worst = 0.0
    for frame in range(video.shape[2]):
        changed = video.clone()
        changed[:, :, frame] += 3 * noise[:, :, frame]  # strong, and different in every pixel
        change = (network(changed, is_image) - before).abs().amax(dim=(0, 1, 3, 4))  # (f,)
        hidden = is_image[0] | is_image[0, frame]  # if either is an image
        hidden[frame] = False  # but each frame attends to itself
        worst = max(worst, (change * hidden).max().item())
    return worst


# 3.5 ----------------------------------------------------------------------------------------------


def reconstruction_guided_x0(denoise, x_t, cond_frames, cond_mask, alpha, reconstruction_weight):
    """The estimate of x0: given frames as given, the others moved until the estimate fits them.

    Ho et al. 2022, equation 7. cond_mask: (f,), which frames are given.
    """
    with torch.enable_grad():  # samplers record nothing
        x_t = x_t.detach().requires_grad_()
        x0 = denoise(x_t)
        error = (cond_frames - x0)[:, :, cond_mask].square().sum()
        (gradient,) = torch.autograd.grad(error, x_t)
    moved = x0.detach() - reconstruction_weight * alpha / 2 * gradient
    return torch.where(cond_mask[:, None, None], cond_frames, moved)


EXERCISES = (
    Exercise(
        "3.1", "Frames in the batch", 5, 1, _verify_repeat_per_frame,
        ("Write down whose frame stands in each row, for two clips of three frames: 0 0 0 1 1 1.",
         "x.repeat(3, 1) gives the rows 0 1 0 1 0 1. Which function gives 0 0 0 1 1 1?",
         "embedding.repeat_interleave(num_frames, dim=…): along the clips."),
        repeat_per_frame,
    ),
    Exercise(
        "3.2", "Pixels in the batch, frames as the sequence", 10, 2, verify_apply_over_frames,
        ("reshape never moves a number, it only cuts the row of numbers in memory. So first put "
         "the axes in order, with permute: what becomes the batch in front, then f, then c.",
         "In: video.permute(0, 3, 4, 2, 1) is (b, h, w, f, c). Now .reshape(b * h * w, f, c) is "
         "what attend takes.",
         "Back, in reverse: first .reshape(b, h, w, f, c), then a permute to (b, c, f, h, w). "
         "It lists, axis by axis, where each one was: b was 0, c was 4, f was 3 …"),
        apply_over_frames,
    ),
    Exercise(
        "3.3", "Who may attend to whom", 10, 2, verify_joint_attention_mask,
        ("Write the table for two frames and two images, rows for queries, columns for keys: a "
         "block of 2 x 2, and two single cells.",
         "The block: both belong to the video. is_video[:, :, None] is (b, f, 1), the query; "
         "is_video[:, None, :] is (b, 1, f), the key; & makes (b, f, f) of them.",
         "The single cells lie on the diagonal: | torch.eye(f, dtype=torch.bool)."),
        joint_attention_mask,
    ),
    Exercise(
        "3.4", "The leakage test", 15, 3, verify_temporal_leakage,
        ("Run the network on the video as it is. Then for every frame: clone the video, change "
         "only that frame, run again, and compare the outputs frame by frame.",
         "(after - before).abs().amax(dim=(0, 1, 3, 4)) is one number for each output frame. "
         "Which of them count? Those from which the changed one is hidden: not itself, and not "
         "frames of the video among themselves.",
         "How to change a frame: a constant is removed by a layer that subtracts the mean, a "
         "tiny step by one that rounds. Add noise as strong as the video itself, or stronger.",
         "A video without images hides nothing, and the maximum of no numbers is an error: "
         "start from 0.0, or multiply the changes by the mask instead of selecting."),
        temporal_leakage,
    ),
    Exercise(
        "3.5", "Reconstruction guidance", 15, 4, verify_reconstruction_guided_x0,
        ("Four steps: the estimate of x0; how far it is from the given frames, one number; the "
         "gradient of that number by x_t; move, then replace.",
         "Samplers run under torch.no_grad(). with torch.enable_grad(): x_t = "
         "x_t.detach().requires_grad_(), and call denoise inside.",
         "error = (cond_frames - x0)[:, :, cond_mask].square().sum(), and (gradient,) = "
         "torch.autograd.grad(error, x_t).",
         "moved = x0.detach() - reconstruction_weight * alpha / 2 * gradient. cond_mask[:, None, "
         "None] broadcasts over (b, c, f, h, w) in torch.where."),
        reconstruction_guided_x0,
    ),
)  # fmt: skip
