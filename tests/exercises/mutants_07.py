"""Wrong answers to the exercises of lesson 07, and the message that each gets."""

import copy

import torch
from torch import nn

from course_lib.exercises.lesson_07 import EXERCISES, zero_module

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


# 7.1


def folded(video):
    b, c, f, h, w = video.shape
    return video.transpose(1, 2).reshape(b * f, c, h, w)


def fold(
    times=lambda t, f: t.repeat_interleave(f),
    texts=lambda x, f: x.repeat_interleave(f, dim=0),
    go=folded,
    back=None,
):
    """A video through an image model, with parts to replace."""

    def attempt(unet, video, t, text):
        b, _, f, _, _ = video.shape
        pred = unet(go(video), times(t, f), texts(text, f))
        return pred.unflatten(0, (b, f)).transpose(1, 2) if back is None else back(pred, video)

    return attempt


def bare(video):
    return video.reshape(-1, video.shape[1], *video.shape[3:])


def frames_outside(unet, video, t, text):
    """Another order, (f b), kept to the end: as right."""
    b, _, f, _, _ = video.shape
    pred = unet(video.permute(2, 0, 1, 3, 4).flatten(0, 1), t.repeat(f), text.repeat(f, 1, 1))
    return pred.unflatten(0, (f, b)).permute(1, 2, 0, 3, 4)


FOLD = [
    (fold(times=lambda t, f: t.repeat(f)), "The timesteps are tiled"),
    (fold(texts=lambda x, f: x.repeat(f, 1, 1)), "The texts are tiled"),
    (
        fold(times=lambda t, f: t.repeat(f), texts=lambda x, f: x.repeat(f, 1, 1)),
        "Timesteps and texts are tiled",
    ),
    (fold(go=bare), "an image gets channels of several frames"),
    (
        fold(go=bare, back=lambda a, x: a.reshape(x.shape)),
        "an image gets channels of several frames",
    ),
    (
        fold(back=lambda a, x: a.reshape(x.shape)),
        "The way in is right. On the way back, reshape cuts",
    ),
    (
        fold(back=lambda a, x: a.unflatten(0, (x.shape[2], len(x))).permute(1, 2, 0, 3, 4)),
        "you read the images as (f, b)",
    ),
    (
        fold(
            go=lambda x: x.permute(2, 0, 1, 3, 4).flatten(0, 1),
            back=lambda a, x: a.unflatten(0, (x.shape[2], len(x))).permute(1, 2, 0, 3, 4),
        ),
        "then t and text have to be tiled",
    ),
    (fold(back=lambda a, x: a.unflatten(0, (len(x), -1))), "the last transpose is missing"),
    (fold(back=lambda a, x: a), "still in the batch"),
    (fold(times=lambda t, f: t), "unet wants a t for each of 8 images"),
    (fold(texts=lambda x, f: x), "unet wants a text for each of 8 images"),
    (lambda unet, x, t, text: unet(x, t, text), "unet takes images (n, c, h, w)"),
    (
        lambda unet, x, t, text: torch.stack([unet(x[:, :, 0], t, text)] * x.shape[2], dim=2),
        "the prediction for the first",
    ),
    (lambda unet, x, t, text: None, "Is a `return` missing?"),
]

# 7.4


def only(name):
    def attempt(layer):
        part = getattr(layer, name)
        if part is not None:
            nn.init.zeros_(part)
        return layer

    return attempt


def frozen(layer):
    return zero_module(layer).requires_grad_(False)


def nearly(layer):
    for parameter in layer.parameters():
        parameter.data *= 1e-4
    return layer


def without_bias(layer):
    zero_module(layer)
    layer.bias = None
    return layer


def times_nothing(layer):
    layer.register_forward_hook(lambda module, args, output: 0 * output)
    return layer


def with_nan(layer):
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    return layer


def halved(layer):
    for parameter in layer.parameters():
        parameter.data /= 2
    return layer


def with_a_bias(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


SILENCE = [
    (only("weight"), "the weight is zero, the bias is not: it still returns"),
    (only("bias"), "the bias is zero, the weight is not"),
    (frozen, "weight and bias cannot learn"),
    (nearly, "the output is small but not zero"),
    (lambda layer: layer, "no number in the layer has changed"),
    (halved, "the output is not zero"),
    (with_a_bias, "this layer has no bias"),
    (without_bias, "its parameters were bias, weight, and now there are others"),
    (times_nothing, "no gradient reaches weight and bias"),
    (with_nan, "it returns nan or infinity"),
    (lambda layer: zero_module(copy.deepcopy(layer)), "not the layer that you were given"),
    (lambda layer: nn.Identity(), "you returned a Identity module"),
    (lambda layer: zero_module(layer) and None, "Is a `return` missing?"),
]

# 7.5


class Mix(nn.Module):
    """A blend with parts to replace."""

    start, alpha = 0.0, staticmethod(torch.sigmoid)

    def __init__(self, layer):
        super().__init__()
        self.layer, self.number = layer, nn.Parameter(torch.full((1,), self.start))

    def forward(self, video):
        alpha = self.alpha(self.number)
        return alpha * video + (1 - alpha) * self.layer(video)


class AllImage(Mix):
    start, alpha = 1.0, staticmethod(lambda number: number)


class Free(Mix):
    start, alpha = 0.5, staticmethod(lambda number: number)


class Clamped(Mix):
    start, alpha = 0.5, staticmethod(lambda number: number.clamp(0, 1))


class ClampedInPlace(Mix):
    start = 1.0

    def forward(self, video):
        with torch.no_grad():
            self.number.sub_(0.1).clamp_(0, 1)
        return self.number * video + (1 - self.number) * self.layer(video)


class ClampedAtHalf(ClampedInPlace):
    """As published: at first, nothing is out of the range."""

    start = 0.5

    def forward(self, video):
        with torch.no_grad():
            self.number.clamp_(0, 1)
        return self.number * video + (1 - self.number) * self.layer(video)


class Lerp(Mix):
    def forward(self, video):
        return torch.lerp(self.layer(video), video, self.number.sigmoid())


class Uncalled(Mix):
    def forward(self, video):
        return video + 0 * self.number


class DetachedLayer(Mix):
    def forward(self, video):
        return video + (1 - self.number.sigmoid()) * (self.layer(video) - video).detach()


class Cubed(Mix):
    def forward(self, video):
        moved = self.layer(video) - video
        return video + (1 - self.number.sigmoid()) * (moved + moved**3)


class Cut(Mix):
    def forward(self, video):
        return super().forward(video)[:, :1]


class InPlace(Mix):
    def forward(self, video):
        return super().forward(video.mul_(2) / 2)


class Turned(Mix):
    alpha = staticmethod(lambda number: 1 - number.sigmoid())


class Detached(Mix):
    alpha = staticmethod(lambda number: number.item() * 0 + torch.tensor(0.5))


class HalfWay(Mix):
    alpha = staticmethod(lambda number: 0.5 + 0.5 * number.sigmoid())


class NotOne(Mix):
    def forward(self, video):
        return video + (1 - self.number.sigmoid()) * self.layer(video)


class Sum(Mix):
    def forward(self, video):
        return video + (1 - self.number.sigmoid()) * (self.layer(video) - video) ** 3


class NoParameter(Mix):
    def __init__(self, layer):
        super().__init__(layer)
        del self.number
        self.number = torch.zeros(1)


class Many(Mix):
    def __init__(self, layer):
        super().__init__(layer)
        self.number = nn.Parameter(torch.zeros(3, 1, 1, 1))


class Copied(Mix):
    def __init__(self, layer):
        super().__init__(copy.deepcopy(layer))


class Zeroed(Mix):
    def __init__(self, layer):
        super().__init__(zero_module(layer))


BLEND = [
    (Zeroed, "You have set all of the layer to zero"),
    (AllImage, "The layer's gradient is exactly 0"),
    (Free, "alpha has left the range"),
    (Clamped, "clamp cuts it off"),
    (ClampedInPlace, "has changed the parameters"),
    (ClampedAtHalf, "has changed the parameters"),
    (Uncalled, "No gradient reaches the layer"),
    (DetachedLayer, "No gradient reaches the layer"),
    (Cubed, "is to lie between video and layer(video)"),
    (Cut, "is to have the video's shape"),
    (InPlace, "has changed `video` itself"),
    (Turned, "The larger your parameter, the more of the layer"),
    (Detached, "alpha still gets no gradient"),
    (HalfWay, "alpha is to reach from 0, all layer, to 1, all video"),
    (NotOne, "have to add up to 1"),
    (Sum, "The layer's gradient is exactly 0"),
    (NoParameter, "nothing of its own"),
    (Many, "yours has parameters of shape (3, 1, 1, 1)"),
    (Copied, "The layer's weights are not among blend.parameters()"),
    (lambda layer: layer.forward, "is to be an nn.Module"),
]
