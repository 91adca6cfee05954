"""Given frames, against Gaussian videos, for which the optimal denoiser is known exactly."""

import inspect
from math import inf, nan

import pytest
import torch
from diffusers import DDIMScheduler

from course_lib.diffusion import alpha_sigma_at, convert_prediction, sample, sample_noise
from course_lib.papers import vdm
from course_lib.pipelines.frame_condition import (
    FrameCondition,
    condition_on_frames,
    downsample_operator,
    every_nth_frame_mask,
    extend_autoregressively,
    first_frames_mask,
    interpolate_keyframes,
    reconstruction_guidance,
    replacement_method,
)

SCHEDULER = DDIMScheduler.from_config(vdm.build_scheduler(snr_shift=1).config, clip_sample=False)
RHO = 0.9  # correlation of neighbouring frames of the Gaussian videos


def covariance(num_frames):
    positions = torch.arange(num_frames)
    return RHO ** (positions[:, None] - positions[None]).abs().double()


def gaussian_gain(alpha, sigma, num_frames):
    """E[x0 | x_t] = gain · x_t for frames that form a first-order process."""
    cov = covariance(num_frames)
    eye = torch.eye(num_frames, dtype=torch.float64)
    return alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * eye)


def gaussian_model(x, t, cond):
    level = alpha_sigma_at(SCHEDULER, t)
    alpha, sigma = (part[:1] for part in level)  # all rows are at one level
    x0 = torch.einsum("fg,bcghw->bcfhw", gaussian_gain(alpha, sigma, x.shape[2]).to(x), x)
    return convert_prediction(x0, x, level, "sample").as_type("v_prediction")


def real_videos(num_videos, num_frames, generator):
    shape = (num_videos, 1, num_frames, 1, 1)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.einsum("fg,bcghw->bcfhw", torch.linalg.cholesky(covariance(num_frames)), noise)


def prefix_condition(videos, num_cond_frames):
    return FrameCondition.prefix(videos[:, :, :num_cond_frames], videos.shape[2])


def sample_continuation(reconstruction_weight, num_videos=1000):
    """Last given frame and first new one of videos of which two frames of four are given."""
    generator = torch.Generator().manual_seed(0)
    videos = real_videos(num_videos, 4, generator)
    condition = prefix_condition(videos, 2)
    model = condition_on_frames(gaussian_model, SCHEDULER, condition, reconstruction_weight)
    x = sample_noise(videos.shape, generator, dtype=torch.float64)
    *_, last = sample(model, SCHEDULER, x, num_inference_steps=40, generator=generator)
    torch.testing.assert_close(last.x[:, :, :2], videos[:, :, :2], atol=1e-4, rtol=0)
    return videos[:, 0, 1, 0, 0], last.x[:, 0, 2, 0, 0]


def slope(before, after):
    """Slope of the regression of one on the other: RHO for real videos."""
    return ((before * after).sum() / before.square().sum()).item()


# The condition


def test_masks():
    assert first_frames_mask(4, 2).tolist() == [True, True, False, False]
    assert every_nth_frame_mask(5, 2).tolist() == [True, False, True, False, True]


def test_prefix_keyframes_none():
    video = torch.randn(2, 3, 2, 4, 4)
    prefix = FrameCondition.prefix(video, 5)
    assert prefix.frames.shape == (2, 3, 5, 4, 4)
    assert prefix.mask.tolist() == [[True, True, False, False, False]] * 2
    assert torch.equal(prefix.frames[:, :, :2], video) and not prefix.frames[:, :, 2:].any()
    keyframes = FrameCondition.keyframes(video, 3)
    assert keyframes.mask.tolist() == [[True, False, False, True]] * 2
    assert torch.equal(keyframes.frames[:, :, ::3], video)
    assert not FrameCondition.none(video).mask.any()


def test_channels_are_frames_and_mask():
    latents = torch.randn(2, 4, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    channels = FrameCondition(latents, mask).channels()
    assert channels.shape == (2, 5, 5, 8, 8)
    torch.testing.assert_close(channels[0, :4, [0, 2]], latents[0, :, [0, 2]])
    expected = mask[:, :, None, None].expand(-1, -1, 8, 8).float()
    torch.testing.assert_close(channels[:, 4], expected)
    assert not channels[0, :, [1, 3, 4]].any() and not channels[1].any()
    # Values outside the mask do not matter, not even NaN
    latents[0, :, 1] = torch.nan
    torch.testing.assert_close(FrameCondition(latents, mask).channels(), channels)


def test_paste_keeps_the_given_frames():
    frames, video = torch.randn(2, 2, 3, 2, 4, 4)  # b c f h w each
    mask = torch.tensor([[True, False], [False, True]])
    out = FrameCondition(frames, mask).paste(video)
    assert torch.equal(out[0, :, 0], frames[0, :, 0]) and torch.equal(out[0, :, 1], video[0, :, 1])
    assert torch.equal(out[1, :, 1], frames[1, :, 1]) and torch.equal(out[1, :, 0], video[1, :, 0])


@pytest.mark.parametrize(
    ("frames", "mask", "message"),
    [
        (torch.zeros(3, 4, 8, 8), torch.ones(3, 4) > 0, "frames: .* single one needs a batch axis"),
        (torch.zeros(1, 3, 4, 8, 8).int(), torch.ones(1, 4) > 0, "frames: expected floating point"),
        (torch.zeros(2, 3, 4, 8, 8), torch.ones(4) > 0, "mask: expected booleans"),
        (torch.zeros(2, 3, 4, 8, 8), torch.ones(2, 4), "mask: expected booleans"),
    ],
)
def test_bad_conditions_are_refused(frames, mask, message):
    condition = object.__new__(FrameCondition)  # its own check, not the type checker of the tests
    object.__setattr__(condition, "frames", frames)
    object.__setattr__(condition, "mask", mask)
    with pytest.raises(ValueError, match=message):
        condition.__post_init__()


def test_a_prefix_longer_than_the_video_is_refused():
    with pytest.raises(ValueError, match="video: expected at most 3 frames, got 4"):
        FrameCondition.prefix(torch.zeros(1, 3, 4, 8, 8), 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mask, _: mask(6, -1), "num_cond_frames: expected an integer from 0 to 6, got -1"),
        (lambda mask, _: mask(6, 7), "num_cond_frames: expected an integer from 0 to 6, got 7"),
        (lambda mask, _: mask(0, 0), "num_frames: expected an integer of at least 1, got 0"),
        (lambda mask, _: mask(6.0, 1), "num_frames: expected an integer of at least 1, got 6.0"),
        (lambda _, mask: mask(6, -1), "stride: expected an integer of at least 1, got -1"),
        (lambda _, mask: mask(6, 0), "stride: expected an integer of at least 1, got 0"),
        (lambda _, mask: mask(6, 1.5), "stride: expected an integer of at least 1, got 1.5"),
    ],
)
def test_masks_of_other_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(inspect.unwrap(first_frames_mask), inspect.unwrap(every_nth_frame_mask))


def test_one_video_needs_a_batch_axis():
    video = torch.zeros(3, 2, 8, 8)
    for name in ("prefix", "keyframes"):
        build = inspect.unwrap(getattr(FrameCondition, name).__func__)
        argument = {"prefix": "video"}.get(name, name)
        with pytest.raises(ValueError, match=f"{argument}: expected .* needs a batch axis"):
            build(FrameCondition, video, 5)
        with pytest.raises(ValueError, match=f"{argument}: expected floating point"):
            build(FrameCondition, video[None].int(), 5)


def test_frames_are_pasted_into_a_video_of_their_shape():
    condition = prefix_condition(torch.zeros(2, 3, 4, 2, 2), 2)
    paste = inspect.unwrap(FrameCondition.paste)
    for shape in ((1, 3, 4, 2, 2), (2, 3, 1, 2, 2), (3, 4, 2, 2)):
        with pytest.raises(ValueError, match="video: expected the shape of frames"):
            paste(condition, torch.zeros(shape))
    with pytest.raises(ValueError, match="video: expected floating point"):
        paste(condition, torch.zeros(2, 3, 4, 2, 2, dtype=torch.uint8))


# Replacement and reconstruction guidance


@pytest.mark.parametrize("weight", [nan, inf, -1, True])
def test_a_weight_that_is_not_finite_is_refused(weight):
    condition = prefix_condition(torch.zeros(2, 1, 4, 1, 1), 2)
    with pytest.raises(ValueError, match="reconstruction_weight: expected a finite number"):
        condition_on_frames(gaussian_model, SCHEDULER, condition, weight)


def test_observations_are_floats():
    guidance = inspect.unwrap(reconstruction_guidance)
    with pytest.raises(ValueError, match="observed: expected floating point, got torch.uint8"):
        guidance(gaussian_model, SCHEDULER, torch.zeros(1, 1, 4, 1, 1).byte(), lambda x: x)
    with pytest.raises(ValueError, match="factor: expected an integer of at least 1, got 0"):
        downsample_operator(0)


def test_reconstruction_guidance_continues_where_replacement_hardly_does():
    """Section 3.1: replacement is wrong even with a perfect denoiser; the gradient mends it."""
    replaced = slope(*sample_continuation(None))
    guided = slope(*sample_continuation(3.0))
    assert replaced < 0.65 * RHO
    assert guided == pytest.approx(RHO, abs=0.12)


def test_weight_zero_is_replacement():
    expected = sample_continuation(None, num_videos=5)[1]
    torch.testing.assert_close(sample_continuation(0, num_videos=5)[1], expected)


def test_reconstruction_guidance_is_equation_7():
    """By hand: for x0 = A x the gradient of |y - x0_a|² is -2 A_aᵀ (y - A_a x)."""
    t, generator = torch.tensor([300, 700]), torch.Generator().manual_seed(0)
    x, videos = (
        torch.randn(2, 1, 4, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    for row in range(2):
        x_t, time, observed = x[row : row + 1], t[row : row + 1], videos[row : row + 1, :, :2]
        level = alpha_sigma_at(SCHEDULER, time)
        gain = gaussian_gain(level.alpha, level.sigma, 4)
        x0 = gain @ x_t[0, 0, :, 0, 0]
        gradient = -2 * gain[:2].T @ (observed[0, 0, :, 0, 0] - x0[:2])
        expected = x0 - 1.5 * level.alpha / 2 * gradient
        model = reconstruction_guidance(
            gaussian_model, SCHEDULER, observed, lambda video: video[:, :, :2], 1.5
        )
        out = convert_prediction(model(x_t, time, None), x_t, level, "v_prediction")
        torch.testing.assert_close(out.x0[0, 0, :, 0, 0], expected)


def test_rows_do_not_influence_each_other():
    """The error is a sum: a batch equals its rows one by one."""
    generator = torch.Generator().manual_seed(0)
    x, videos = (
        torch.randn(3, 1, 4, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    t = torch.tensor([400] * 3)
    joint = condition_on_frames(gaussian_model, SCHEDULER, prefix_condition(videos, 2))(x, t, None)
    for row in range(3):
        rows = slice(row, row + 1)
        model = condition_on_frames(gaussian_model, SCHEDULER, prefix_condition(videos[rows], 2))
        torch.testing.assert_close(joint[rows], model(x[rows], t[rows], None))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_replacement_predicts_the_given_frames(prediction_type):
    scheduler = DDIMScheduler.from_config(SCHEDULER.config, prediction_type=prediction_type)
    x, frames, t = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.tensor([100, 900])
    pred = torch.randn(x.shape)
    condition = FrameCondition(frames, every_nth_frame_mask(4, 2).expand(2, -1))
    out = replacement_method(lambda *_: pred, scheduler, condition)(x, t, None)
    x0 = convert_prediction(out, x, alpha_sigma_at(scheduler, t), prediction_type).x0
    torch.testing.assert_close(x0[:, :, ::2], frames[:, :, ::2], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(out[:, :, 1::2], pred[:, :, 1::2], atol=1e-3, rtol=1e-3)


def test_what_would_broadcast_is_refused():
    """One video's frames are not those of all; an observation has the operator's shape."""
    x, t = torch.randn(2, 3, 4, 2, 2), torch.tensor([100, 900])
    condition = FrameCondition(torch.randn(1, 3, 4, 2, 2), torch.ones(1, 4, dtype=torch.bool))
    model = replacement_method(lambda x, *_: x, SCHEDULER, condition)
    with pytest.raises(ValueError, match=r"condition: expected the shape of x, \(2, 3, 4, 2, 2\)"):
        model(x, t, None)
    observed = torch.randn(2, 3, 1, 2, 2)
    model = reconstruction_guidance(lambda x, *_: x, SCHEDULER, observed, lambda v: v[:, :, :2])
    with pytest.raises(ValueError, match="observed: expected the shape of operator"):
        model(x, t, None)


def test_super_resolution_by_the_gradient_agrees_with_the_small_video():
    """Independent pixels whose means of four are observed: the result has these means."""

    def white_noise_model(x, t, cond):
        level = alpha_sigma_at(SCHEDULER, t)
        alpha, _ = level.like(x)
        return convert_prediction(alpha * x, x, level, "sample").as_type("v_prediction")

    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, 1, 2, 4, 4, generator=generator) / 2
    x = sample_noise((4, 1, 2, 8, 8), generator)
    downsample = downsample_operator(2)
    errors = []
    for weight in (0.0, 8.0):
        model = reconstruction_guidance(white_noise_model, SCHEDULER, small, downsample, weight)
        *_, last = sample(model, SCHEDULER, x, num_inference_steps=50, generator=generator)
        errors.append((downsample(last.x) - small).square().mean())
    assert errors[1] < 0.1 * errors[0]


# Loops


def test_every_block_is_given_the_last_frames():
    video, conditions = torch.randn(2, 4, 6, 8, 8), []

    def sample_block(condition):
        conditions.append(condition)
        return condition.paste(torch.full((2, 4, 6, 8, 8), float(len(conditions))))

    longer = extend_autoregressively(sample_block, video, num_frames=13, num_cond_frames=2)
    assert longer.shape == (2, 4, 13, 8, 8)
    torch.testing.assert_close(longer[:, :, :6], video)
    assert longer[0, 0, 6:, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(conditions[0].frames[:, :, :2], video[:, :, 4:])
    assert conditions[1].mask.int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2
    assert (conditions[1].frames[:, :, :2] == 1).all()


def test_all_windows_between_key_frames_are_filled_in():
    keyframes = torch.randn(2, 4, 7, 8, 8, generator=torch.Generator().manual_seed(3))
    calls = []

    def sample_block(condition, frame_index):
        calls.append((condition, frame_index))
        row = torch.arange(len(condition.frames))[:, None, None, None, None].float()
        num_frames = condition.frames.shape[2]
        values = row.expand(-1, 4, num_frames, 8, 8) * 100
        return condition.paste(values + torch.arange(num_frames)[:, None, None])

    videos = interpolate_keyframes(
        sample_block, keyframes, factor=4, window_size=4, keyframe_spacing=2.0
    )
    assert videos.shape == (2, 4, 25, 8, 8)
    torch.testing.assert_close(videos[:, :, ::4], keyframes)
    ((condition, frame_index),) = calls
    torch.testing.assert_close(frame_index, (torch.arange(13) / 2).expand(4, -1))
    assert condition.mask.int().tolist() == [[1, 0, 0, 0] * 3 + [1]] * 4
    for row in range(2):
        for frame in range(25):
            if frame % 4:
                expected = (2 * row + frame // 12) * 100 + frame % 12
                assert (videos[row, :, frame] == expected).all()


def test_bad_lengths_are_refused():
    video = torch.zeros(2, 4, 5, 8, 8)
    for num_cond_frames in (0, 5):
        expected = f"num_cond_frames: expected an integer from 1 to 4, got {num_cond_frames}"
        with pytest.raises(ValueError, match=expected):
            extend_autoregressively(
                lambda condition: video, video, num_frames=9, num_cond_frames=num_cond_frames
            )
    with pytest.raises(ValueError, match="num_frames: expected an integer of at least 6, got 5"):
        extend_autoregressively(lambda condition: video, video, num_frames=5, num_cond_frames=2)
    for num_keyframes, window_size in ((3, 4), (6, 4)):
        message = f"window_size: expected 2 or more, with one less a divisor of {num_keyframes} - 1"
        with pytest.raises(ValueError, match=message):
            interpolate_keyframes(
                lambda condition, index: condition.frames,
                torch.zeros(2, 4, num_keyframes, 8, 8),
                factor=4,
                window_size=window_size,
                keyframe_spacing=1.0,
            )


def test_blocks_of_another_shape_are_refused():
    """A block without new frames would never end; one of one video would be given to all."""
    video = torch.zeros(2, 4, 5, 8, 8)
    for block in (video[:, :, :2], video[:1], video[0]):
        with pytest.raises(ValueError, match="sample_block: expected the shape of a block"):
            extend_autoregressively(lambda _, x=block: x, video, num_frames=9, num_cond_frames=2)
        with pytest.raises(ValueError, match="sample_block: expected the shape of the windows"):
            interpolate_keyframes(
                lambda *_, x=block: x, video, factor=2, window_size=5, keyframe_spacing=1.0
            )


def test_loops_need_a_batch_of_videos():
    video = torch.zeros(4, 5, 8, 8)
    extend, interpolate = map(inspect.unwrap, (extend_autoregressively, interpolate_keyframes))
    with pytest.raises(ValueError, match="video: expected .* needs a batch axis"):
        extend(None, video, num_frames=9, num_cond_frames=2)
    with pytest.raises(ValueError, match="video: expected floating point"):
        extend(None, video[None].long(), num_frames=9, num_cond_frames=2)
    for name, value in (("num_frames", 9.5), ("num_frames", nan), ("num_cond_frames", 1.5)):
        kwargs = {"num_frames": 9, "num_cond_frames": 2} | {name: value}
        with pytest.raises(ValueError, match=f"{name}: expected an integer"):
            extend(None, video[None], **kwargs)
    with pytest.raises(ValueError, match="keyframes: expected .* needs a batch axis"):
        interpolate(None, video, factor=2, window_size=5, keyframe_spacing=1.0)
