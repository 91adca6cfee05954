"""Networks from a user's files: their input, and the errors without them; with stand-in files."""

import warnings

import pytest
import torch
from torch import nn

from course_lib.metrics import (
    FrechetDistance,
    external,
    frame_features,
    i3d_features,
    inception_features,
)
from course_lib.validation import to_uint8


class FakeI3D(nn.Module):
    """Has the arguments of the published file; returns means, or 0 unless called correctly."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        if x.dtype != torch.uint8:
            return torch.zeros(x.shape[0], 3)
        return self.drop(
            x.float().mean((3, 4))[:, :, 0] * float(rescale and resize and return_features)
        )


@pytest.fixture
def i3d_file(tmp_path):
    with warnings.catch_warnings():
        # torch.jit is deprecated, but the published file needs it
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(FakeI3D()).save(str(tmp_path / "i3d.pt"))
    return tmp_path / "i3d.pt"


class FakeInception:
    """Stands for torchmetrics' Inception; remembers what it was made with and fed."""

    def __init__(self, *made, **options):
        self.made, self.options = made, options
        FakeInception.last = self

    def to(self, device):
        self.device = device
        return self

    def __call__(self, images):
        self.fed = images
        return images.float().mean(dim=(2, 3)) @ torch.ones(3, 2048)


@pytest.fixture
def inception_file(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "NoTrainInceptionV3", FakeInception)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_bytes_are_the_nearest():
    every = torch.arange(256)
    assert torch.equal(to_uint8(every / 127.5 - 1), every.to(torch.uint8))
    assert to_uint8(torch.tensor([-1.0005, 1.0005, 0.0, -0.0079])).tolist() == [
        0,
        255,
        128,
        126,
    ]


def test_i3d_gets_bytes_and_does_the_rest(i3d_file):
    video = torch.rand(2, 3, 10, 4, 4) * 2 - 1
    result = i3d_features(i3d_file)(video)
    expected = to_uint8(video).float().mean(dim=(3, 4))[:, :, 0]
    torch.testing.assert_close(result, expected)  # and no dropout: it is in evaluation mode
    metric = FrechetDistance(i3d_features(str(i3d_file)), "i3d", ddof=0)
    metric.update(video, real=True)
    metric.update(-video, real=False)
    assert metric.compute().name == "frechet_ddof0[i3d]" and metric.compute().value > 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 9, 4, 4), "video: expected at least 10 frames, got 9"),
        ((2, 1, 10, 4, 4), "video: expected 3 channels, got 1"),
        ((3, 10, 4, 4), r"video: expected \(b, c, f, h, w\)"),
    ],
)
def test_what_i3d_cannot_take_is_refused(i3d_file, shape, message):
    with pytest.raises(ValueError, match=message):
        i3d_features(i3d_file)(torch.zeros(shape))


def test_inception_gets_bytes_and_no_antialiasing(inception_file):
    net = inception_features(inception_file)
    made = FakeInception.last
    assert made.made == ("inception-v3-compat", ["2048"], str(inception_file)) and made.options == {
        "antialias": False
    }
    images = torch.rand(2, 3, 5, 5) * 2 - 1
    assert net(images).shape == (2, 2048)
    assert torch.equal(made.fed, to_uint8(images))
    assert frame_features(net)(torch.zeros(2, 3, 4, 5, 5)).shape == (8, 2048)
    with pytest.raises(ValueError, match="images: expected 3 channels, got 4"):
        net(torch.zeros(1, 4, 5, 5))


def test_a_file_with_code_in_it_is_not_run(inception_file, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weight": Trap()}, inception_file)
    with pytest.raises(Exception, match="Weights only load failed"):
        inception_features(inception_file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("load", "what"),
    [
        (inception_features, "weights-inception.*torch-fidelity's releases"),
        (i3d_features, "i3d_torchscript.pt.*StyleGAN-V"),
    ],
)
def test_a_missing_file_says_what_it_would_be(load, what, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"path: expected .*{what}.*there is no file .*absent.pt"
    ):
        load(tmp_path / "absent.pt")
