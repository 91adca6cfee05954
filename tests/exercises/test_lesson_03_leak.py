"""Lesson 03's exercise 3.4, the leakage test: every likely mistake gets its own message."""

import pytest
import torch

from course_lib.exercises.lesson_03 import temporal_leakage
from course_lib.exercises.lesson_03_leak import verify_temporal_leakage
from course_lib.lab.checks import IncorrectAnswer
from course_lib.nn.attention import joint_training_mask
from course_lib.nn.unet import VideoUNet


def noise(clip, k):
    return clip[:, :, k] + 3 * torch.randn(
        clip[:, :, k].shape, generator=torch.Generator().manual_seed(k)
    ).to(clip)


def hidden_from(is_image, k):
    return ~joint_training_mask(is_image)[0, :, k]


def compare(after, before):
    return (after - before).abs().amax(dim=(0, 1, 3, 4))


def leak_test(
    frames=lambda is_image: range(4),
    change=noise,
    difference=compare,
    counts=hidden_from,
    worst=torch.amax,
):
    """A leak test with parts to replace. frames: that are changed. counts: which output frames."""

    def run(network, clip, is_image):
        before, results = network(clip, is_image), [torch.zeros(())]
        for k in frames(is_image[0]):
            changed = clip.clone()
            changed[:, :, k] = change(clip, k)
            results += [*difference(network(changed, is_image), before)[counts(is_image, k)]]
        return worst(torch.stack([one.double() for one in results]), 0)

    return run


def others(is_image, k):
    return torch.arange(is_image.shape[1]) != k


def everybody(is_image, k):
    return torch.ones_like(is_image[0])


def itself(is_image, k):
    return ~others(is_image, k)


def into_the_clip(is_image, k):
    return hidden_from(is_image, k) & ~is_image[0]


def into_pictures(is_image, k):
    return hidden_from(is_image, k) & is_image[0]


def clip_and_pictures(is_image, k):
    return is_image[0] != is_image[0, k]


def first_frames(is_image, k):
    return hidden_from(is_image, k) & (torch.arange(4) < 2)


def by_means(after, before):
    return (after - before).mean(dim=(0, 1, 3, 4)).abs()


def signed(after, before):
    return (after - before).amax(dim=(0, 1, 3, 4))


def pictures_at_once(network, clip, is_image):
    changed = (
        clip
        + 3
        * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)).to(clip)
        * is_image[0, :, None, None]
    )
    return (network(changed, is_image) - network(clip, is_image)).abs().max()


def hidden_at_once(network, clip, is_image):
    """For every output frame, all that it must not see at once."""
    fresh = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)).to(clip)
    before, worst = network(clip, is_image), 0.0
    for j, allowed in enumerate(joint_training_mask(is_image)[0]):
        after = network(torch.where(allowed[:, None, None], clip, fresh), is_image)
        worst = max(worst, float((after - before)[:, :, j].abs().max()))
    return worst


def without_a_clone(network, clip, is_image):
    before, worst = network(clip, is_image), 0.0
    for k in range(clip.shape[2]):
        clip[:, :, k] += 1
        worst = max(
            worst,
            (compare(network(clip, is_image), before) * hidden_from(is_image, k)).max().item(),
        )
    return worst


def of_what_is_hidden(network, clip, is_image):
    before, changes = network(clip, is_image), []
    for k in range(clip.shape[2]):
        changed = clip.clone()
        changed[:, :, k] = noise(clip, k)
        changes.append(compare(network(changed, is_image), before)[hidden_from(is_image, k)])
    return torch.cat(changes).max()


def in_one_batch(network, clip, is_image):
    clips = clip.repeat(4, 1, 1, 1, 1)
    for k in range(4):
        clips[k, :, k] = noise(clip, k)[0]
    change = (
        (network(clips, is_image.expand(4, -1)) - network(clip, is_image)).abs().amax(dim=(1, 3, 4))
    )
    return float((change * ~joint_training_mask(is_image)[0].T).max())


LEAKS = [
    (leak_test(counts=others), "You count frames of the video, which may see each other"),
    (leak_test(counts=itself), "the change of the very frame that you changed"),
    (leak_test(counts=everybody), "for a network without leakage. That is"),
    (
        leak_test(difference=lambda a, b: compare(a, b) + 1),
        "for a network without leakage. No output frame changed",
    ),
    (pictures_at_once, "You changed frames 2 and 3 at once, and some frames may see one of them"),
    (
        lambda network, clip, is_image: (network(clip + 1, is_image) - clip).abs().max(),
        "for a network without leakage",
    ),
    (
        lambda network, clip, is_image: (network(clip + 1, is_image), 1.0)[1],
        "the change that you made in the input",
    ),
    (leak_test(lambda is_image: []), "never saw a video other than the one"),
    (lambda network, clip, is_image: 0.0, "network was never called"),
    (
        leak_test(counts=into_pictures),
        "in which the video sees the images. When you changed frame 2, output frame",
    ),
    (
        leak_test(counts=into_the_clip),
        "in which the images see the video. When you changed frame 0, output frame",
    ),
    (
        leak_test(counts=clip_and_pictures),
        "in which the images see each other. When you changed frame 2, output frame",
    ),
    (
        leak_test(counts=first_frames),
        "in which the images see the video. When you changed frame 0, output frame",
    ),
    (
        leak_test(lambda is_image: is_image.nonzero()[:, 0].tolist()),
        "in which the images see the video. You never changed frames 0 and 1",
    ),
    (
        leak_test(lambda is_image: (~is_image).nonzero()[:, 0].tolist()),
        "sees the images. You never changed frames 2 and 3",
    ),
    (
        lambda n, clip, is_image: leak_test(lambda is_image: range(3))(n, clip.float(), is_image),
        "frame. You never changed frame 3",
    ),
    (leak_test(lambda is_image: range(3)), "the very last frame. You never changed frame 3"),
    (leak_test(lambda is_image: range(1, 4)), "the very first frame. You never changed frame 0"),
    (
        leak_test(change=lambda clip, k: clip[:, :, k] + 5),
        "A constant added to a frame is subtracted again",
    ),
    (
        leak_test(change=lambda clip, k: 0.9 * clip[:, :, k]),
        "lost: let it be as large as the video's own numbers",
    ),
    (leak_test(change=lambda clip, k: -clip[:, :, k]), "A flipped sign"),
    (
        leak_test(change=lambda clip, k: clip[:, :, k].flip(-1)),
        "Frames that are only exchanged or flipped",
    ),
    (
        leak_test(change=lambda clip, k: clip[:, :, k] * (1 + 1e-9)),
        "a tiny change has a tiny effect",
    ),
    (
        leak_test(change=lambda clip, k: clip[:, :, k] * torch.nan),
        "You returned nan. A weight of 0 times nan",
    ),
    (
        leak_test(difference=by_means),
        "each frame's mean before all see all. When you changed frame",
    ),
    (leak_test(difference=signed), "the mean square of all numbers. When you changed frame"),
    (
        leak_test(difference=lambda a, b: (a - b).amin(dim=(0, 1, 3, 4)), worst=torch.amin),
        "Changes go both ways",
    ),
    (
        of_what_is_hidden,
        "A video without images: nothing is hidden, so the result is 0. Yours stopped with "
        "RuntimeError",
    ),
    (without_a_clone, "has changed `video` itself"),
    (
        lambda network, clip, is_image: network(clip, ~is_image).max(),
        "and `is_image` as you were given it",
    ),
    (
        lambda network, clip, is_image: network(clip).max(),
        "is_image is bool (1, f), as you were given it. It got None",
    ),
    (
        lambda network, clip, is_image: network(clip[:, :, :2], is_image).max(),
        "leave its position. It got tensor of shape (1, 2, 2",
    ),
    (
        lambda network, clip, is_image: compare(network(clip + 1, is_image), clip),
        "one number, the largest change. You returned t",
    ),
    (
        lambda network, clip, is_image: temporal_leakage(network, clip, is_image) > 0,
        "one number, the largest change. You returned False",
    ),
    (lambda network, clip, is_image: (network(clip, is_image), None)[1], "Is a `return` missing?"),
]


@pytest.mark.parametrize(("attempt", "message"), LEAKS)
def test_a_mistake_gets_its_message(attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(verify_temporal_leakage(attempt))
    assert message in str(wrong.value), str(wrong.value)


OTHERS = [
    hidden_at_once,
    in_one_batch,
    leak_test(),
    leak_test(change=lambda clip, k: 10 * noise(clip, k)),
    lambda network, clip, is_image: temporal_leakage(network, clip.float(), is_image),
]


@pytest.mark.parametrize("attempt", OTHERS)
def test_other_right_answers_pass(attempt):
    assert list(verify_temporal_leakage(attempt))


def test_the_courses_network_does_not_leak_and_one_without_its_mask_does():
    torch.manual_seed(0)
    unet = (
        VideoUNet(block_out_channels=(32,), attention_levels=(True,))
        .double()
        .eval()
        .requires_grad_(False)
    )
    for name, parameter in unet.named_parameters():
        if "temporal_attn.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    clip, is_image, t = (
        torch.randn(1, 3, 4, 8, 8).double(),
        torch.tensor([[False, False, True, True]]),
        torch.tensor([500]),
    )
    assert (
        temporal_leakage(
            lambda clip, is_image: unet(clip, t, is_image=is_image).sample, clip, is_image
        )
        < 1e-12
    )
    assert temporal_leakage(lambda clip, is_image: unet(clip, t).sample, clip, is_image) > 1e-3
