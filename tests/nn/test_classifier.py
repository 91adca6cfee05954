"""The travelling classifier: heads, sizes, round trip through a folder, temperatures."""

import pytest
import torch

from course_lib.nn.classifier import VideoClassifier
from course_lib.nn.texture import texture

SMALL = {"widths": (8, 8, 16, 16), "heads": {"subject": 5, "motion": 3}, "size": 32}


def make(**changes):
    torch.manual_seed(0)
    return VideoClassifier(**{**SMALL, **changes}).eval()


def clips(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 32, 32), (1, 3, 16, 64, 64), (3, 3, 1, 32, 32), (2, 3, 5, 24, 40)]
)
def test_any_clip_gets_an_answer_from_every_head(shape):
    answers = make()(clips(*shape))
    assert {name: tuple(logits.shape) for name, logits in answers.items()} == {
        "subject": (shape[0], 5),
        "motion": (shape[0], 3),
    }


@pytest.mark.parametrize("kind", ["lean", "r3d", "f-r2d"])
def test_survives_a_folder(tmp_path, kind):
    model = make(kind=kind, stem_kernel=7, stem_stride=(1, 4))
    model.temperature("subject").fill_(2.0)
    model.temperature("motion").fill_(0.5)
    model.save_pretrained(tmp_path)
    again = VideoClassifier.from_pretrained(tmp_path)
    video = clips(2, 3, 4, 32, 32)
    for name, logits in model(video).items():
        torch.testing.assert_close(again(video)[name], logits, rtol=0, atol=0)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".json"] == [
        ".safetensors"
    ]


def test_a_clip_does_not_depend_on_its_batch():
    model, video = make(), clips(3, 3, 4, 32, 32)
    torch.testing.assert_close(
        model(video)["subject"][1:2], model(video[1:2])["subject"], rtol=0, atol=1e-5
    )


def test_other_sizes_are_resized_with_antialiasing():
    model, large = make(), clips(1, 3, 4, 64, 64)
    frames = torch.nn.functional.interpolate(
        large[0].transpose(0, 1), (32, 32), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(model.features(large), model.features(frames.transpose(0, 1)[None]))


def test_temperature_divides_the_logits_and_leaves_the_answer():
    model, video = make(), clips(4, 3, 4, 32, 32)
    before = model(video)
    model.temperature("subject").fill_(4.0)
    after = model(video)
    torch.testing.assert_close(after["subject"] * 4, before["subject"])
    torch.testing.assert_close(after["motion"], before["motion"])


def test_time_is_seen_but_by_the_2d_kind():
    video = clips(2, 3, 8, 32, 32)
    shuffled = video[:, :, torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])]
    for kind, blind in (("f-r2d", True), ("lean", False), ("r3d", False)):
        gap = (make(kind=kind).features(video) - make(kind=kind).features(shuffled)).abs().max()
        assert (gap < 1e-5) == blind, kind


def test_texture_stands_beside_what_the_heads_see_and_changes_no_answer(tmp_path):
    plain, model, video = make(), make(texture=20.0), clips(2, 3, 4, 32, 32)
    features = model.features(video)
    torch.testing.assert_close(
        features, torch.cat([plain.features(video), 20 * texture(video)], dim=1)
    )
    torch.testing.assert_close(model(video), plain(video))
    plain.register_to_config(texture=20.0)  # as `finish` of a recipe does
    plain.save_pretrained(tmp_path)
    torch.testing.assert_close(VideoClassifier.from_pretrained(tmp_path).features(video), features)


@pytest.mark.parametrize("heads", [None, {}])
def test_no_heads_are_refused(heads):
    with pytest.raises(ValueError, match="heads: expected at least one name"):
        VideoClassifier(heads=heads)
