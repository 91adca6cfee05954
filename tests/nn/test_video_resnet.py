"""Video classifiers against torchvision, and what each kind depends on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import video as torchvision_video

from course_lib.nn.convolution import group_norm
from course_lib.nn.profiling import count_parameters
from course_lib.nn.video_resnet import STAGE_TYPES, video_resnet

FULL = {"channels": (64, 128, 256, 512), "blocks_per_stage": (2, 2, 2, 2), "stem_kernel": 7}
SMALL = {"channels": (4, 8, 8, 16)}


def clip(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(kind, num_frames=4, **options):
    torch.manual_seed(0)
    model = video_resnet(
        kind, 5, num_frames=num_frames if kind == "r2d" else None, **{**SMALL, **options}
    )
    torch.nn.init.normal_(
        model.fc.weight
    )  # as built it is nearly 0, and every net would seem blind
    return model


@pytest.mark.parametrize("kind, builder", [("r3d", "r3d_18"), ("mc3", "mc3_18")])
def test_full_width_loads_torchvisions_weights_and_agrees(kind, builder):
    theirs = getattr(torchvision_video, builder)(num_classes=5).eval()
    ours = video_resnet(kind, 5, **FULL).eval()
    ours.load_state_dict(theirs.state_dict())
    video = clip(1, 3, 4, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(video), theirs(video))


@pytest.mark.parametrize(
    "options", [FULL, {}, {"blocks_per_stage": (2, 1, 1, 1), "channels": (24, 48, 96, 192)}]
)
def test_r3d_and_r2plus1d_have_equal_parameters(options):
    with torch.device("meta"):
        r3d, r2plus1d = (
            count_parameters(video_resnet(kind, 400, **options)) for kind in ("r3d", "r2plus1d")
        )
    assert abs(r2plus1d / r3d - 1) < 0.01


def test_parameters_of_the_paper_in_millions():
    # Table 2: R2D 11.4, MC3 11.7, R3D 33.4, R(2+1)D 33.3
    with torch.device("meta"):
        counts = {
            kind: count_parameters(
                video_resnet(kind, 400, num_frames=8 if kind == "r2d" else None, **FULL)
            )
            / 1e6
            for kind in STAGE_TYPES
        }
    assert counts["r2d"] == pytest.approx(11.4, abs=0.1)
    assert counts["mc3"] == pytest.approx(11.7, abs=0.1)
    assert counts["r3d"] == pytest.approx(33.4, abs=0.1)
    assert counts["r2plus1d"] == pytest.approx(33.3, abs=0.2)


@pytest.mark.parametrize("kind", STAGE_TYPES)
def test_which_kinds_depend_on_the_order_of_frames(kind):
    model, video = net(kind, num_frames=6).double().eval(), clip(1, 3, 6, 16, 16).double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    difference = (model(video[:, :, order]) - model(video)).abs().max()
    assert difference < 1e-9 if kind == "f-r2d" else difference > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_per_frame_net_is_the_mean_of_its_frames_and_cannot_tell_left_from_right(training):
    model = (
        net("f-r2d", norm=group_norm if not training else torch.nn.BatchNorm3d)
        .double()
        .train(training)
    )
    video = clip(2, 3, 4, 16, 16).double()
    torch.testing.assert_close(model(video.flip(2)), model(video))
    if not training:
        single = net("f-r2d").double().eval()
        frames = torch.stack([single(video[:, :, f : f + 1]) for f in range(4)]).mean(0)
        torch.testing.assert_close(single(video), frames)


@pytest.mark.parametrize("kind", STAGE_TYPES)
@settings(max_examples=4, deadline=None)
@given(
    batch=st.integers(0, 2),
    frames=st.integers(1, 3),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
)
def test_any_clip_size(kind, batch, frames, size):
    model = net(kind, frames).eval()
    video = clip(batch, 3, frames, *size)
    assert model(video).shape == (batch, 5)
    assert model.features(video).shape == (batch, 16)


def test_group_norm_makes_a_clip_independent_of_its_batch():
    model, video = net("r2plus1d", norm=group_norm), clip(3, 3, 4, 16, 16)
    assert not any(isinstance(layer, torch.nn.BatchNorm3d) for layer in model.modules())
    torch.testing.assert_close(model(video)[:1], model(video[:1]))


@pytest.mark.parametrize("kind", STAGE_TYPES)
def test_every_parameter_gets_a_gradient(kind):
    model = net(kind)
    model(clip(2, 3, 4, 32, 32)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: video_resnet("r3d", 5, channels=(8, 8)),
            r"channels, blocks_per_stage: expected 4 numbers each, got \(8, 8\)",
        ),
        (
            lambda: video_resnet("r2d", 5),
            "num_frames: expected the clip length for 'r2d', got None",
        ),
        (
            lambda: video_resnet("r3d", 5, num_frames=8),
            "num_frames: expected None for 'r3d', got 8",
        ),
        (
            lambda: net("r2d", 4)(torch.zeros(1, 3, 5, 8, 8)),
            "video: expected 4 frames, the length that r2d was built for, got 5",
        ),
        (
            lambda: net("r3d")(torch.zeros(1, 4, 3, 8, 8)),
            r"video: expected 3 channels, got shape \(1, 4, 3",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
