"""The experiment about motion words: what the network sees, and that hearing is measured."""

import pytest
import torch

from course_lib.claims import motion_words
from course_lib.diffusion import estimate, level_at
from course_lib.world import MOTIONS

pytestmark = pytest.mark.usefixtures("tiny")


def test_nothing_is_left_of_a_clip_and_it_is_what_is_asked_for():
    video, moments = motion_words._data("train", 0, 6).video, torch.tensor([2, 6, 10, 14])
    example, told = motion_words.expecting(
        video, moments, torch.ones(6, 5, 256), "tower", torch.Generator().manual_seed(0)
    )
    level = level_at(motion_words.SCHEDULE, example.t)
    assert level.signal.max() < 1e-4
    x0 = estimate("v_prediction", example.target, example.x_t, level).x0
    torch.testing.assert_close(x0, video[:, :, moments], atol=1e-4, rtol=0)
    assert told["frame_index"].tolist() == [[2, 6, 10, 14]] * 6
    assert told["encoder_hidden_states"].sum() == 6 * 5 * 128  # of the words, nothing


def test_arms_see_the_same_but_for_the_words(monkeypatch):
    seen, real_fit = [], motion_words.fit

    def fit(model, batch, loss, **options):
        seen.append([batch(number) for number in range(2)])
        return real_fit(model, batch, loss, **options)

    monkeypatch.setattr(motion_words, "fit", fit)
    for arm in motion_words.ARMS:
        motion_words.learned(arm, 0, 2)
    for tower, both in zip(*seen, strict=True):
        assert all(torch.equal(tower[key], both[key]) for key in ("x_t", "target", "frame_index"))
        text, words = tower["encoder_hidden_states"], both["encoder_hidden_states"]
        assert (
            torch.equal(text[..., :128], words[..., :128])
            and not text[..., 128:].any()
            and words[..., 128:].all()
        )


class Hears(torch.nn.Module):
    """Knows the mean clip of each caption it is told, or, deaf to motion, that of all motions."""

    device = torch.device("cpu")

    def __init__(self, answers, deaf):
        super().__init__()
        self.answers, self.deaf = answers, deaf

    def forward(self, x, t, encoder_hidden_states, frame_index):
        word = 0 if self.deaf else int(encoder_hidden_states[0, 0, 0])
        x0 = self.answers[word].expand(x.shape)
        level = level_at(motion_words.SCHEDULE, t)
        return type("Output", (), {"sample": estimate("sample", x0, x, level).velocity})


def test_who_hears_is_told_from_who_is_deaf(monkeypatch):
    clips = motion_words._data("test", 5, 12)
    answers = torch.randn(9, 1, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for row, scene in enumerate(clips.scenes):
        clips.video[row] = answers[MOTIONS.index(scene.motion)]

    def told(prompts):
        words = [
            [k for k, name in enumerate(MOTIONS) if f" {name} " in prompt][0] for prompt in prompts
        ]
        return {"text": torch.tensor(words).float().view(-1, 1, 1).expand(-1, 2, 256)}

    monkeypatch.setattr(motion_words.vdm, "told", told)
    found = [
        motion_words.heard(Hears(answers, deaf), "tower", clips, torch.Generator().manual_seed(0))
        for deaf in (False, True)
    ]
    assert found[0]["motions told apart"] == 1 and found[0]["error saved by the right word"] > 0.99
    assert found[1]["error saved by the right word"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("arm", motion_words.ARMS)
def test_every_arm_is_measured(arm):
    found = motion_words._run(arm, 0, 0.001)
    assert 0 <= found["motions told apart"] <= 1 and found["error with the right word"] > 0
