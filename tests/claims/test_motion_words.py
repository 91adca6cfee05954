"""The experiment about motion words: inputs of the network, and how its sensitivity is measured."""

import pytest
import torch

from course_lib.claims import motion_words
from course_lib.diffusion import alpha_sigma_at, convert_prediction
from course_lib.world import MOTIONS

pytestmark = pytest.mark.usefixtures("tiny")
ENCODER_ARM = motion_words.ARMS[0]


def test_nothing_is_left_of_a_clip_and_the_target_is_the_clip():
    clips = motion_words.load_clips("train", 6, 0, **motion_words.CLIP_KWARGS)
    video, frames = clips.video, torch.tensor([2, 6, 10, 14])
    noisy, cond = motion_words.pure_noise_batch(
        video, frames, torch.ones(6, 5, 256), ENCODER_ARM, torch.Generator().manual_seed(0)
    )
    level = alpha_sigma_at(motion_words.pixel_video_scheduler(), noisy.t)
    assert level.alpha.max() < 1e-4
    x0 = convert_prediction(noisy.target, noisy.x_t, level, "v_prediction").x0
    torch.testing.assert_close(x0, video[:, :, frames], atol=1e-4, rtol=0)
    assert cond["frame_index"].tolist() == [[2, 6, 10, 14]] * 6
    assert cond["text"].sum() == 6 * 5 * 128  # no token embeddings


def test_arms_differ_in_the_token_embeddings_only(batches):
    for arm in motion_words.ARMS:
        motion_words.train_arm(arm, 0, 0.001)
    for states, both in zip(*batches, strict=True):
        assert all(torch.equal(states[key], both[key]) for key in ("x_t", "target", "frame_index"))
        assert torch.equal(states["text"][..., :128], both["text"][..., :128])
        assert not states["text"][..., 128:].any() and both["text"][..., 128:].all()


class IdealNet(torch.nn.Module):
    """Predicts the mean clip of the motion in the caption or, if insensitive, of the first one."""

    device = torch.device("cpu")

    def __init__(self, mean_clips, sensitive):
        super().__init__()
        self.mean_clips = mean_clips
        self.sensitive = sensitive

    def forward(self, x, t, text, frame_index):
        motion = int(text[0, 0, 0]) if self.sensitive else 0
        x0 = self.mean_clips[motion].expand(x.shape)
        level = alpha_sigma_at(motion_words.pixel_video_scheduler(), t)
        return type("Output", (), {"sample": convert_prediction(x0, x, level, "sample").v})


def test_a_sensitive_net_differs_from_an_insensitive_one(monkeypatch):
    clips = motion_words.load_clips("test", 12, 5, **motion_words.CLIP_KWARGS)
    mean_clips = torch.randn(9, 1, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for row, scene in enumerate(clips.scenes):
        clips.video[row] = mean_clips[MOTIONS.index(scene.motion)]

    def encode_text(prompts):
        motions = [
            [k for k, name in enumerate(MOTIONS) if f" {name} " in prompt][0] for prompt in prompts
        ]
        return torch.tensor(motions).float().view(-1, 1, 1).expand(-1, 2, 256)

    monkeypatch.setattr(motion_words, "encode_text", encode_text)
    sensitive, insensitive = (
        motion_words.motion_word_sensitivity(
            IdealNet(mean_clips, is_sensitive),
            ENCODER_ARM,
            clips,
            torch.Generator().manual_seed(0),
        )
        for is_sensitive in (True, False)
    )
    assert sensitive["motion_identification"] == 1 and sensitive["error_reduction"] > 0.99
    assert insensitive["error_reduction"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("arm", motion_words.ARMS, ids=lambda arm: arm.id)
def test_every_arm_is_measured(arm):
    metrics = motion_words._run(arm, 0, 0.001)
    assert 0 <= metrics["motion_identification"] <= 1 and metrics["error_correct_word"] > 0
