"""Lesson 03's exercise 3.4, the leak test: every plausible mistake gets the message meant for it."""

import pytest
import torch

from course_lib.lab.checks import Wrong
from course_lib.exercises.lesson_03 import leak
from course_lib.exercises.lesson_03_leak import verify_leak
from course_lib.nn.attention import apart
from course_lib.nn.unet import VideoUNet


def noise(clip, k):
    return clip[:, :, k] + 3 * torch.randn(
        clip[:, :, k].shape, generator=torch.Generator().manual_seed(k)
    ).to(clip)


def hidden_from(alone, k):
    return ~apart(alone)[0, :, k]


def compare(after, before):
    return (after - before).abs().amax(dim=(0, 1, 3, 4))


def leak_test(
    frames=lambda alone: range(4),
    change=noise,
    difference=compare,
    counts=hidden_from,
    worst=torch.amax,
):
    """A leak test with parts to replace. frames: that are changed. counts: which output frames."""

    def run(network, clip, alone):
        before, found = network(clip, alone), [torch.zeros(())]
        for k in frames(alone[0]):
            changed = clip.clone()
            changed[:, :, k] = change(clip, k)
            found += [*difference(network(changed, alone), before)[counts(alone, k)]]
        return worst(torch.stack([one.double() for one in found]), 0)

    return run


def others(alone, k):
    return torch.arange(alone.shape[1]) != k


def everybody(alone, k):
    return torch.ones_like(alone[0])


def itself(alone, k):
    return ~others(alone, k)


def into_the_clip(alone, k):
    return hidden_from(alone, k) & ~alone[0]


def into_pictures(alone, k):
    return hidden_from(alone, k) & alone[0]


def clip_and_pictures(alone, k):
    return alone[0] != alone[0, k]


def first_frames(alone, k):
    return hidden_from(alone, k) & (torch.arange(4) < 2)


def by_means(after, before):
    return (after - before).mean(dim=(0, 1, 3, 4)).abs()


def signed(after, before):
    return (after - before).amax(dim=(0, 1, 3, 4))


def pictures_at_once(network, clip, alone):
    changed = (
        clip
        + 3
        * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)).to(clip)
        * alone[0, :, None, None]
    )
    return (network(changed, alone) - network(clip, alone)).abs().max()


def hidden_at_once(network, clip, alone):
    """For every output frame, all that it must not see at once."""
    fresh = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)).to(clip)
    before, worst = network(clip, alone), 0.0
    for j, allowed in enumerate(apart(alone)[0]):
        after = network(torch.where(allowed[:, None, None], clip, fresh), alone)
        worst = max(worst, float((after - before)[:, :, j].abs().max()))
    return worst


def without_a_clone(network, clip, alone):
    before, worst = network(clip, alone), 0.0
    for k in range(clip.shape[2]):
        clip[:, :, k] += 1
        worst = max(
            worst, (compare(network(clip, alone), before) * hidden_from(alone, k)).max().item()
        )
    return worst


def of_what_is_hidden(network, clip, alone):
    before, changes = network(clip, alone), []
    for k in range(clip.shape[2]):
        changed = clip.clone()
        changed[:, :, k] = noise(clip, k)
        changes.append(compare(network(changed, alone), before)[hidden_from(alone, k)])
    return torch.cat(changes).max()


def in_one_batch(network, clip, alone):
    clips = clip.repeat(4, 1, 1, 1, 1)
    for k in range(4):
        clips[k, :, k] = noise(clip, k)[0]
    change = (network(clips, alone.expand(4, -1)) - network(clip, alone)).abs().amax(dim=(1, 3, 4))
    return float((change * ~apart(alone)[0].T).max())


LEAKS = [
    (leak_test(counts=others), "You count frames of the clip, which may see each other"),
    (leak_test(counts=itself), "the change of the very frame that you changed"),
    (leak_test(counts=everybody), "for an honest network. That is"),
    (
        leak_test(difference=lambda a, b: compare(a, b) + 1),
        "for an honest network. No output frame changed",
    ),
    (pictures_at_once, "You changed frames 2 and 3 at once, and some frames may see one of them"),
    (
        lambda network, clip, alone: (network(clip + 1, alone) - clip).abs().max(),
        "for an honest network",
    ),
    (
        lambda network, clip, alone: (network(clip + 1, alone), 1.0)[1],
        "the change that you made in the input",
    ),
    (leak_test(lambda alone: []), "never saw a clip other than the one"),
    (lambda network, clip, alone: 0.0, "network was never called"),
    (
        leak_test(counts=into_pictures),
        "in which the clip sees the pictures. When you changed frame 2, output frame",
    ),
    (
        leak_test(counts=into_the_clip),
        "in which the pictures see the clip. When you changed frame 0, output frame",
    ),
    (
        leak_test(counts=clip_and_pictures),
        "in which the pictures see each other. When you changed frame 2, output frame",
    ),
    (
        leak_test(counts=first_frames),
        "in which the pictures see the clip. When you changed frame 0, output frame",
    ),
    (
        leak_test(lambda alone: alone.nonzero()[:, 0].tolist()),
        "in which the pictures see the clip. You never changed frames 0 and 1",
    ),
    (
        leak_test(lambda alone: (~alone).nonzero()[:, 0].tolist()),
        "sees the pictures. You never changed frames 2 and 3",
    ),
    (
        lambda n, clip, alone: leak_test(lambda alone: range(3))(n, clip.float(), alone),
        "frame. You never changed frame 3",
    ),
    (leak_test(lambda alone: range(3)), "the very last frame. You never changed frame 3"),
    (leak_test(lambda alone: range(1, 4)), "the very first frame. You never changed frame 0"),
    (
        leak_test(change=lambda clip, k: clip[:, :, k] + 5),
        "A constant added to a frame is subtracted again",
    ),
    (
        leak_test(change=lambda clip, k: 0.9 * clip[:, :, k]),
        "lost: let it be as large as the clip's own numbers",
    ),
    (leak_test(change=lambda clip, k: -clip[:, :, k]), "A flipped sign"),
    (
        leak_test(change=lambda clip, k: clip[:, :, k].flip(-1)),
        "Frames that only trade places, or turn",
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
        "each frame's mean before it lets all see all. When you changed frame",
    ),
    (leak_test(difference=signed), "the mean square of all numbers. When you changed frame"),
    (
        leak_test(difference=lambda a, b: (a - b).amin(dim=(0, 1, 3, 4)), worst=torch.amin),
        "Changes go both ways",
    ),
    (
        of_what_is_hidden,
        "A clip without pictures: nothing is hidden, so the answer is 0. Yours stopped with RuntimeError",
    ),
    (without_a_clone, "has changed `clip` itself"),
    (lambda network, clip, alone: network(clip, ~alone).max(), "and `alone` as you were given it"),
    (
        lambda network, clip, alone: network(clip).max(),
        "alone is bool (1, f), as you were given it. It got None",
    ),
    (
        lambda network, clip, alone: network(clip[:, :, :2], alone).max(),
        "leave its place. It got tensor of shape (1, 2, 2",
    ),
    (
        lambda network, clip, alone: compare(network(clip + 1, alone), clip),
        "one number, the largest change. You returned t",
    ),
    (
        lambda network, clip, alone: leak(network, clip, alone) > 0,
        "one number, the largest change. You returned False",
    ),
    (lambda network, clip, alone: (network(clip, alone), None)[1], "is a `return` missing?"),
]


@pytest.mark.parametrize(("attempt", "message"), LEAKS)
def test_a_mistake_gets_its_message(attempt, message):
    with pytest.raises(Wrong) as wrong:
        list(verify_leak(attempt))
    assert message in str(wrong.value), str(wrong.value)


OTHERS = [
    hidden_at_once,
    in_one_batch,
    leak_test(),
    leak_test(change=lambda clip, k: 10 * noise(clip, k)),
    lambda network, clip, alone: leak(network, clip.float(), alone),
]


@pytest.mark.parametrize("attempt", OTHERS)
def test_other_right_answers_pass(attempt):
    assert list(verify_leak(attempt))


def test_the_courses_network_does_not_leak_and_one_without_its_mask_does():
    torch.manual_seed(0)
    unet = VideoUNet(widths=(32,), attention=(True,)).double().eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if "temporal.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    clip, alone, t = (
        torch.randn(1, 3, 4, 8, 8).double(),
        torch.tensor([[False, False, True, True]]),
        torch.tensor([500]),
    )
    assert leak(lambda clip, alone: unet(clip, t, alone=alone).sample, clip, alone) < 1e-12
    assert leak(lambda clip, alone: unet(clip, t).sample, clip, alone) > 1e-3
