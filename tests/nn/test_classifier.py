"""The video classifier: heads, frame sizes, saving and loading, temperatures."""

import pytest
import torch

from course_lib.nn.classifier import VideoClassifier
from course_lib.nn.texture import laplacian_band_std

SMALL = {"channels": (8, 8, 16, 16), "heads": {"subject": 5, "motion": 3}, "size": 32}


def make(**changes):
    torch.manual_seed(0)
    return VideoClassifier(**{**SMALL, **changes}).eval()


def rand_clips(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 32, 32), (1, 3, 16, 64, 64), (3, 3, 1, 32, 32), (2, 3, 5, 24, 40)]
)
def test_every_head_gives_logits_for_any_clip(shape):
    logits = make()(rand_clips(*shape))
    assert {name: tuple(x.shape) for name, x in logits.items()} == {
        "subject": (shape[0], 5),
        "motion": (shape[0], 3),
    }


@pytest.mark.parametrize("kind", ["r2plus1d_narrow", "r3d", "f-r2d"])
def test_saving_and_loading(tmp_path, kind):
    model = make(kind=kind, stem_kernel=7, stem_stride=(1, 4))
    model.temperature("subject").fill_(2.0)
    model.temperature("motion").fill_(0.5)
    model.save_pretrained(tmp_path)
    loaded = VideoClassifier.from_pretrained(tmp_path)
    video = rand_clips(2, 3, 4, 32, 32)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, logits in model(video).items():  # not to the bit: memory is aligned differently
        torch.testing.assert_close(loaded(video)[name], logits)
    suffixes = [path.suffix for path in tmp_path.iterdir() if path.suffix != ".json"]
    assert suffixes == [".safetensors"]


def test_a_clip_does_not_depend_on_its_batch():
    model, video = make(), rand_clips(3, 3, 4, 32, 32)
    single = model(video[1:2])["subject"]
    torch.testing.assert_close(model(video)["subject"][1:2], single, rtol=0, atol=1e-5)


def test_other_sizes_are_resized_with_antialiasing():
    model, large = make(), rand_clips(1, 3, 4, 64, 64)
    frames = torch.nn.functional.interpolate(
        large[0].transpose(0, 1), (32, 32), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(model.features(large), model.features(frames.transpose(0, 1)[None]))


def test_temperature_divides_the_logits_of_its_head():
    model, video = make(), rand_clips(4, 3, 4, 32, 32)
    before = model(video)
    model.temperature("subject").fill_(4.0)
    after = model(video)
    torch.testing.assert_close(after["subject"] * 4, before["subject"])
    torch.testing.assert_close(after["motion"], before["motion"])


def test_only_the_2d_kind_is_blind_to_the_order_of_frames():
    video = rand_clips(2, 3, 8, 32, 32)
    shuffled = video[:, :, torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])]
    for kind, blind in (("f-r2d", True), ("r2plus1d_narrow", False), ("r3d", False)):
        gap = (make(kind=kind).features(video) - make(kind=kind).features(shuffled)).abs().max()
        assert (gap < 1e-5) == blind, kind


def test_texture_is_appended_to_the_features_and_changes_no_logits(tmp_path):
    plain, model, video = make(), make(texture_weight=20.0), rand_clips(2, 3, 4, 32, 32)
    features = model.features(video)
    expected = torch.cat([plain.features(video), 20 * laplacian_band_std(video)], dim=1)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(model(video), plain(video))
    plain.register_to_config(texture_weight=20.0)  # as after training
    plain.save_pretrained(tmp_path)
    torch.testing.assert_close(VideoClassifier.from_pretrained(tmp_path).features(video), features)


@pytest.mark.parametrize("heads", [None, {}])
def test_no_heads_are_refused(heads):
    with pytest.raises(ValueError, match="heads: expected at least one name"):
        VideoClassifier(heads=heads)
