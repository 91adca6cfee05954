"""Wrong answers to exercises 7.2, 7.3 and 7.6 of lesson 07, and the message that each gets."""

import torch
from torch import nn

from course_lib.exercises.lesson_07 import given_frames

# 7.2


def hooked(hook, register="register_forward_hook", remove=True, twice=False):
    """An answer with its hook, and how that is registered, to replace."""

    def attempt(unet, part, layer, images):
        def bound(module, args, output=None):
            return hook(layer, args, output)

        handles = [getattr(part, register)(bound) for _ in range(1 + twice)]
        out = unet(images)
        for handle in handles[: len(handles) if remove else 0]:
            handle.remove()
        return out

    return attempt


def drop_result(layer, args, output):
    layer(output)


def in_place(layer, args, output):
    return output.copy_(layer(output))


def removed_at_once(unet, part, layer, images):
    part.register_forward_hook(lambda module, args, output: layer(output)).remove()
    return unet(images)


def registered_late(unet, part, layer, images):
    out = unet(images)
    part.register_forward_hook(lambda module, args, output: layer(output)).remove()
    return out


def one_of_two_removed(unet, part, layer, images):
    handles = [part.register_forward_hook(lambda m, a, output: layer(output)) for _ in range(2)]
    handles[0].remove()
    return unet(images)


def rebuilt(unet, part, layer, images):
    """Puts another module in the part's place, and leaves it there."""
    for module in unet.modules():
        for name, child in module.named_children():
            if child is part:
                setattr(module, name, nn.Sequential(part, layer))
                return unet(images)


def wrapped_forward(unet, part, layer, images):
    """Another way: right, though a hook is safer."""
    forward = part.forward
    part.forward = lambda x: layer(forward(x))
    out = unet(images)
    del part.forward
    return out


HOOKS = [
    (
        hooked(lambda layer, args, _: (layer(args[0]),), "register_forward_pre_hook"),
        "The layer stands in front of the part: a pre-hook",
    ),
    (hooked(drop_result), "is `return layer(output)` missing inside of the hook?"),
    (hooked(lambda layer, args, out: layer(out), remove=False), "the hook is still registered"),
    (one_of_two_removed, "the hook is still registered"),
    (hooked(in_place), "has changed `images` itself"),
    (hooked(lambda layer, args, out: layer(args[0])), "You gave the layer the part's input"),
    (hooked(lambda layer, args, out: out + layer(out)), "the part counts twice"),
    (hooked(lambda layer, args, out: layer(out), twice=True), "The layer was applied twice"),
    (lambda unet, part, layer, images: layer(unet(images)), "behind the whole network"),
    (lambda unet, part, layer, images: unet(images), "the layer was never called"),
    (removed_at_once, "the layer was never called"),
    (registered_late, "the layer was never called"),
    (rebuilt, "unet is another network afterwards"),
    (lambda unet, part, layer, images: None, "Is a `return` missing?"),
]

# 7.3

CHOICES = [
    (lambda: "a", "each row has its own mean and variance"),
    (lambda: "b", "the variance is a mean of *squares*"),
    (lambda: "d", "If only it complained!"),
    (lambda: "C", 'Return one letter, "a", "b", "c" or "d"'),
    (lambda: 8, "Return one letter"),
    (lambda: None, "Is a `return` missing?"),
]

# 7.6


def placed(fill="zeros", first=0, step=0, mask_first=False, invert=False):
    """Mask and channels, with parts to replace."""

    def attempt(given, num_frames, stride):
        b, c, n, h, w = given.shape
        places = (first + (stride + step) * torch.arange(n)).clamp(max=num_frames - 1)
        mask = torch.zeros(b, num_frames, dtype=torch.bool)
        mask[:, places] = True
        frames = getattr(torch, fill)(b, c, num_frames, h, w).to(given)
        frames[:, :, places] = given
        mask = ~mask if invert else mask
        channel = mask[:, None, :, None, None].expand(b, 1, num_frames, h, w).to(given)
        parts = [channel, frames] if mask_first else [frames, channel]
        return mask, torch.cat(parts, dim=1)

    return attempt


def last_of_each_stride(given, num_frames, stride):
    mask = (torch.arange(num_frames) % stride == stride - 1).expand(len(given), -1)
    return mask, given_frames(given, num_frames, stride)[1]


def every_next_one(given, num_frames, stride):
    mask = (torch.arange(num_frames) % (stride + 1) == 0).expand(len(given), -1)
    return mask, given_frames(given, num_frames, stride)[1]


def held(given, num_frames, stride):
    mask, channels = given_frames(given, num_frames, stride)
    frames = given.repeat_interleave(stride, dim=2)[:, :, :num_frames]
    return mask, torch.cat([frames, channels[:, -1:]], dim=1)


def changed(change):
    def attempt(given, num_frames, stride):
        return change(*given_frames(given, num_frames, stride))

    return attempt


def inverted_channel(mask, channels):
    return mask, torch.cat([channels[:, :-1], 1 - channels[:, -1:]], dim=1)


def given_in_place(given, num_frames, stride):
    given += 1
    return given_frames(given - 1, num_frames, stride)


GIVEN = [
    (placed(invert=True), "the mask is inverted"),
    (placed(fill="randn"), "frames that are not given hold other values than 0 (noise?)"),
    (placed(fill="ones"), "frames that are not given hold other values than 0"),
    (placed(mask_first=True), "The mask is the first channel. It comes last"),
    (last_of_each_stride, "off by one. The first given frame is frame 0"),
    (every_next_one, "off by one in the stride"),
    (placed(first=1), "given frames (x) are x...x...x...x, in your mask .x...x...x..x"),
    (held, "You repeat each given frame until the next one"),
    (changed(lambda mask, channels: (mask, channels[:, :-1])), "The mask is missing"),
    (changed(inverted_channel), "the channel has it inverted"),
    (changed(lambda mask, channels: (channels, mask)), "The order is mask, channels"),
    (changed(lambda mask, channels: (mask[0], channels)), "Each clip has its own row"),
    (changed(lambda mask, channels: (mask.T, channels)), "the mask is to be (b, f)"),
    (changed(lambda mask, channels: (mask.float(), channels)), "the mask is to be booleans"),
    (changed(lambda mask, channels: channels), "expected (mask, channels)"),
    (lambda given, num_frames, stride: None, "Is a `return` missing?"),
    (given_in_place, "has changed `given` itself"),
]
