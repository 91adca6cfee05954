"""VDM: its schedule, joint training on videos and images, temporal guidance, longer videos."""

import inspect
from math import inf, nan

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib.papers.vdm import (
    append_images,
    build_scheduler,
    build_unet,
    extend_autoregressively,
)
from course_lib.pipelines import frame_condition
from course_lib.pipelines.unet_adapter import temporal_guidance, unet_denoiser
from tests.pipelines.test_frame_condition import (
    RHO,
    SCHEDULER,
    covariance,
    gaussian_model,
    real_videos,
    slope,
)


def randomize_temporal(unet):
    for name, parameter in unet.named_parameters():
        if "temporal_attn.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return unet


def small_unet(cross_attention_dim=6):
    torch.manual_seed(0)
    return build_unet(cross_attention_dim, block_out_channels=(32, 32)).double().eval()


def test_the_schedule_is_diffusers_cosine_shifted():
    cosine = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    assert torch.equal(build_scheduler(snr_shift=1).alphas_cumprod.double(), cosine)
    shifted = build_scheduler(snr_shift=4).alphas_cumprod.double()
    ratio = (cosine / (1 - cosine) / (shifted / (1 - shifted))).sqrt()  # of alpha / sigma
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="snr_shift: expected a finite number above 0, got 0"):
        build_scheduler(snr_shift=0)
    for shift in (nan, inf, -1, True):
        with pytest.raises(ValueError, match="snr_shift: expected a finite number above 0"):
            build_scheduler(snr_shift=shift)
    with pytest.raises(ValueError, match="num_train_timesteps: expected an integer"):
        build_scheduler(num_train_timesteps=0)


def test_images_are_appended_with_their_own_texts():
    video, text = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 5, 6)
    images, captions = torch.randn(2, 2, 3, 8, 8), torch.randn(2, 2, 5, 6)
    frames, cond = append_images(video, text, images, captions)
    assert torch.equal(frames[:, :, :4], video)
    for k in range(2):
        assert torch.equal(frames[:, :, 4 + k], images[:, k])
        assert torch.equal(cond["text"][:, 4 + k], captions[:, k])
    assert all(torch.equal(cond["text"][:, k], text) for k in range(4))
    assert cond["is_image"].tolist() == [[False] * 4 + [True] * 2] * 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("video", lambda x: x[0], "video: expected .* needs a batch axis"),
        ("images", lambda x: x.byte(), "images: expected floating point"),
        ("images", lambda x: x[:, 0], "images: expected"),
        ("images", lambda x: x[:1], "images: expected 2 rows"),
        ("text", lambda x: x[:1], "text: expected 2 rows"),
        ("captions", lambda x: x[:, :1], r"captions: expected one for each of the \(2, 2\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, change, message):
    tensors = {
        "video": torch.zeros(2, 3, 4, 8, 8),
        "text": torch.zeros(2, 5, 6),
        "images": torch.zeros(2, 2, 3, 8, 8),
        "captions": torch.zeros(2, 2, 5, 6),
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        inspect.unwrap(append_images)(**tensors | {name: change(tensors[name])})


def test_joint_training_equals_separate_passes():
    unet = randomize_temporal(small_unet())
    video, text = torch.randn(1, 3, 4, 16, 16).double(), torch.randn(1, 5, 6).double()
    images, captions = torch.randn(1, 2, 3, 16, 16).double(), torch.randn(1, 2, 5, 6).double()
    x, cond = append_images(video, text, images, captions)
    model, t = unet_denoiser(unet), torch.tensor([500])
    joint = model(x, t, cond)
    torch.testing.assert_close(joint[:, :, :4], model(video, t, {"text": text}))
    for k in range(2):
        single = model(images[:, k, :, None], t, {"text": captions[:, k]})
        torch.testing.assert_close(joint[:, :, 4 + k : 5 + k], single)


def test_temporal_guidance_leads_away_from_the_frame_independent_prediction():
    calls = []

    def model(x, t, cond):
        """Optimal for correlated frames, or for independent ones, by `is_image`."""
        calls.append(cond)
        cov = covariance(x.shape[2])
        gains = {
            False: cov @ torch.linalg.inv(cov + torch.eye(len(cov))),
            True: 0.5 * torch.eye(len(cov)).double(),
        }
        rows = [
            torch.einsum("fg,cghw->cfhw", gains[bool(is_image[0])], row)
            for row, is_image in zip(x, cond["is_image"], strict=True)
        ]
        return torch.stack(rows)

    x, t = torch.randn(2, 3, 4, 2, 2).double(), torch.tensor([500, 500])
    fps = torch.full((2,), 8.0)
    out = temporal_guidance(model, 3)(x, t, {"fps": fps})
    assert len(calls) == 1 and calls[0]["fps"].tolist() == [8] * 4
    assert calls[0]["is_image"].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    cov = covariance(4)
    full = torch.einsum("fg,bcghw->bcfhw", cov @ torch.linalg.inv(cov + torch.eye(4)), x)
    torch.testing.assert_close(out, x / 2 + 3 * (full - x / 2))
    assert temporal_guidance(model, 1) is model
    with pytest.raises(ValueError, match="guidance_scale: .* at least 0, got -1"):
        temporal_guidance(model, -1)
    with pytest.raises(ValueError, match="cond: expected no 'is_image'"):
        temporal_guidance(model, 3)(x, t, {"is_image": torch.ones(2, 4, dtype=torch.bool)})


def test_temporal_guidance_changes_nothing_at_initialisation():
    unet = small_unet().requires_grad_(False)
    x, t = torch.randn(1, 3, 4, 16, 16).double(), torch.tensor([500])
    cond = {"text": torch.randn(1, 5, 6).double()}
    model = unet_denoiser(unet)
    guided = temporal_guidance(model, 5)
    torch.testing.assert_close(guided(x, t, cond), model(x, t, cond), rtol=1e-10, atol=1e-10)
    randomize_temporal(unet)
    assert (guided(x, t, cond) - model(x, t, cond)).abs().max() > 0.1


def test_a_unet_without_text():
    unet = build_unet(None, block_out_channels=(32, 32)).eval()
    x, t = torch.randn(1, 3, 2, 8, 8), torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(unet_denoiser(unet)(x, t, None), unet(x, t).sample)
        fps = {"fps": torch.tensor([16.0])}
        assert torch.equal(unet_denoiser(unet)(x, t, fps), unet(x, t, **fps).sample)


def test_a_longer_video_keeps_its_beginning_and_every_block_follows_the_last():
    generator = torch.Generator().manual_seed(0)
    video = real_videos(1000, 4, generator)
    with torch.no_grad():
        longer = extend_autoregressively(
            gaussian_model,
            SCHEDULER,
            video,
            None,
            num_frames=9,
            num_cond_frames=2,
            reconstruction_weight=3.0,
            num_inference_steps=40,
            generator=generator,
        )
    assert longer.shape == (1000, 1, 9, 1, 1) and torch.equal(longer[:, :, :4], video)
    line = longer[:, 0, :, 0, 0]
    for seam in (4, 6, 8):
        assert slope(line[:, seam - 1], line[:, seam]) == pytest.approx(RHO, abs=0.15)


def test_every_block_has_the_same_conditioning():
    conds = []

    def model(x, t, cond):
        conds.append(cond)
        return torch.zeros_like(x)

    longer = extend_autoregressively(
        model,
        SCHEDULER,
        torch.arange(5.0).view(1, 1, 5, 1, 1),
        "cond",
        num_frames=8,
        num_cond_frames=3,
        reconstruction_weight=None,
        num_inference_steps=2,
        generator=torch.Generator(),
    )
    assert conds == ["cond"] * 4 and longer.shape[2] == 8


def test_a_longer_video_begins_with_a_batch_of_videos():
    extend = inspect.unwrap(extend_autoregressively)
    kwargs = {"num_frames": 8, "num_inference_steps": 2, "generator": torch.Generator()}
    extend_clip = inspect.unwrap(frame_condition.extend_autoregressively)
    for video, message in (
        (torch.zeros(1, 5, 1, 1), "video: expected .* needs a batch axis"),
        (torch.zeros(1, 1, 5, 1, 1).byte(), "video: expected floating point"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame_condition, "extend_autoregressively", extend_clip)
            with pytest.raises(ValueError, match=message):
                extend(gaussian_model, SCHEDULER, video, None, **kwargs)
