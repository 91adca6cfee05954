"""VDM: joint training, and conditioning by the gradient against Gaussian clips, for which everything is known."""

import pytest
import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from course_lib.diffusion import estimate, initial_noise, level_at, sample
from course_lib.papers.vdm import (
    as_model,
    build_schedule,
    build_unet,
    coherent,
    every,
    extend,
    first,
    read,
    reconstruction,
    replacement,
    shrunk,
    with_frames,
    with_pictures,
)

SCHEDULE = DDIMScheduler.from_config(build_schedule(shift=1).config, clip_sample=False)
RHO = 0.9  # correlation of neighbouring frames of the Gaussian clips


def covariance(frames):
    places = torch.arange(frames)
    return RHO ** (places[:, None] - places[None]).abs().double()


def gaussian_model(x, t, conditioning):
    """The optimal denoiser of clips of one pixel, Gaussian, neighbouring frames correlated: a first-order process."""
    level, cov = level_at(SCHEDULE, t), covariance(x.shape[2]).to(x)
    signal, noise = (part[:1].to(x) for part in level)  # all rows are at one level
    gain = signal * cov @ torch.linalg.inv(signal**2 * cov + noise**2 * torch.eye(len(cov)).to(x))
    x0 = torch.einsum("fg,bcghw->bcfhw", gain, x)
    return estimate("sample", x0, x, level).of("v_prediction")


def test_the_schedule_is_diffusers_cosine_shifted():
    cosine = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    assert torch.equal(build_schedule(shift=1).alphas_cumprod.double(), cosine)
    shifted = build_schedule(shift=4).alphas_cumprod.double()
    ratio = (cosine / (1 - cosine) / (shifted / (1 - shifted))).sqrt()
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, 4), atol=0.01, rtol=0
    )  # signal / noise, at every timestep
    with pytest.raises(ValueError, match="shift: expected a positive number, got 0"):
        build_schedule(shift=0)


def test_what_is_read_is_the_tower_s_last_layer_and_its_words():
    """transformers' own CLIP, untrained: the words are its embeddings, token and place, normalised."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tower = CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=6, **sizes)).eval()
    tokens = torch.randint(20, (3, 6))
    with torch.no_grad():
        said, expected = read(tower, tokens), tower(tokens).last_hidden_state
        words = (
            tower.get_input_embeddings()(tokens)
            + tower.get_submodule("embeddings.position_embedding").weight
        )
    assert said.shape == (3, 6, 16)
    torch.testing.assert_close(said[..., :8], expected)
    torch.testing.assert_close(
        said[..., 8:],
        (words - words.mean(-1, True)) / (words.var(-1, False, keepdim=True) + 1e-5).sqrt(),
    )


def real_clips(count, frames, generator):
    noise = torch.randn(count, 1, frames, 1, 1, generator=generator, dtype=torch.float64)
    return torch.einsum("fg,bcghw->bcfhw", torch.linalg.cholesky(covariance(frames)), noise)


def continued(weight, count=1000):
    """Last known frame and first new one, (count,) each, of clips of which two frames of four are known."""
    generator = torch.Generator().manual_seed(0)
    known = real_clips(count, 4, generator)
    model = with_frames(gaussian_model, SCHEDULE, known, first(4, 2), weight)
    x = initial_noise(known.shape, generator, dtype=torch.float64)
    *_, last = sample(model, SCHEDULE, x, steps=40, generator=generator)
    torch.testing.assert_close(last.x[:, :, :2], known[:, :, :2], atol=1e-4, rtol=0)
    return known[:, 0, 1, 0, 0], last.x[:, 0, 2, 0, 0]


def slope(before, after):
    """Of the regression of one on the other: RHO for real clips."""
    return ((before * after).sum() / before.square().sum()).item()


def test_reconstruction_goes_on_where_replacement_hardly_knows_what_was_before():
    """Section 3.1: replacement is wrong even with a perfect denoiser, and the gradient mends it."""
    without, guided = slope(*continued(None)), slope(*continued(3.0))
    assert without < 0.65 * RHO
    assert guided == pytest.approx(RHO, abs=0.12)


def test_weight_zero_is_replacement():
    torch.testing.assert_close(continued(0, count=5)[1], continued(None, count=5)[1])


def test_reconstruction_is_the_papers_equation():
    """Equation 7 by hand: for a linear denoiser x0 = A x the gradient of |known - x0_a|² is -2 A_aᵀ (known - A_a x)."""
    t, generator = torch.tensor([300, 700]), torch.Generator().manual_seed(0)
    x, known = (
        torch.randn(2, 1, 4, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    for row in range(2):
        one, time, seen = x[row : row + 1], t[row : row + 1], known[row : row + 1, :, :2]
        level = level_at(SCHEDULE, time)
        signal, noise = level.signal.item(), level.noise.item()
        gain = (
            signal
            * covariance(4)
            @ torch.linalg.inv(
                signal**2 * covariance(4) + noise**2 * torch.eye(4, dtype=torch.float64)
            )
        )
        plain = gain @ one[0, 0, :, 0, 0]
        gradient = -2 * gain[:2].T @ (seen[0, 0, :, 0, 0] - plain[:2])
        expected = plain - 1.5 * signal / 2 * gradient
        model = reconstruction(gaussian_model, SCHEDULE, seen, lambda clip: clip[:, :, :2], 1.5)
        found = estimate("v_prediction", model(one, time, None), one, level).x0[0, 0, :, 0, 0]
        torch.testing.assert_close(found, expected)


def test_rows_do_not_lead_each_other():
    """The error is a sum: a batch is as good as its rows one by one."""
    generator = torch.Generator().manual_seed(0)
    x, known = (
        torch.randn(3, 1, 4, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    t = torch.tensor([400] * 3)
    together = with_frames(gaussian_model, SCHEDULE, known, first(4, 2))(x, t, None)
    for row in range(3):
        one = slice(row, row + 1)
        alone = with_frames(gaussian_model, SCHEDULE, known[one], first(4, 2))(x[one], t[one], None)
        torch.testing.assert_close(together[one], alone)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_replacement_says_of_known_frames_what_is_known(kind):
    scheduler = DDIMScheduler.from_config(SCHEDULE.config, prediction_type=kind)
    x, known, t = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.tensor([100, 900])
    said = torch.randn(x.shape)
    model = replacement(lambda *_: said, scheduler, known, every(4, 2))
    answer, level = model(x, t, None), level_at(scheduler, t)
    x0 = estimate(kind, answer, x, level).x0
    torch.testing.assert_close(x0[:, :, ::2], known[:, :, ::2], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(answer[:, :, 1::2], said[:, :, 1::2], atol=1e-3, rtol=1e-3)


def test_super_resolution_by_the_gradient_agrees_with_the_small_clip():
    """Space: independent pixels, of which the means of four are known; the result has these means, unguided has not."""

    def white(x, t, conditioning):  # the optimal denoiser of white noise
        level = level_at(SCHEDULE, t)
        signal, _ = level.beside(x)
        return estimate("sample", signal * x, x, level).of("v_prediction")

    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, 1, 2, 4, 4, generator=generator) / 2
    x = initial_noise((4, 1, 2, 8, 8), generator)
    errors = []
    for weight in (0.0, 8.0):
        model = reconstruction(white, SCHEDULE, small, shrunk(2), weight)
        *_, last = sample(model, SCHEDULE, x, steps=50, generator=generator)
        errors.append((shrunk(2)(last.x) - small).square().mean())
    assert errors[1] < 0.1 * errors[0]


def test_masks_of_frames():
    assert first(4, 2).tolist() == [True, True, False, False]
    assert every(5, 2).tolist() == [True, False, True, False, True]


def test_a_longer_clip_begins_as_it_was_and_every_block_follows_from_the_last():
    generator = torch.Generator().manual_seed(0)
    clip = real_clips(1000, 4, generator)
    with torch.no_grad():
        longer = extend(
            gaussian_model,
            SCHEDULE,
            clip,
            None,
            frames=9,
            past=2,
            weight=3.0,
            steps=40,
            generator=generator,
        )
    assert longer.shape == (1000, 1, 9, 1, 1) and torch.equal(longer[:, :, :4], clip)
    line = longer[:, 0, :, 0, 0]
    for seam in (4, 6, 8):
        assert slope(line[:, seam - 1], line[:, seam]) == pytest.approx(RHO, abs=0.15)


def test_extend_shows_the_end_of_the_clip_to_each_block():
    shown = []

    def watching(x, t, conditioning):
        shown.append(conditioning)
        return torch.zeros_like(x)

    clip = torch.arange(5.0).view(1, 1, 5, 1, 1)
    longer = extend(
        watching,
        SCHEDULE,
        clip,
        "told",
        frames=8,
        past=3,
        weight=None,
        steps=2,
        generator=torch.Generator(),
    )
    assert shown == ["told"] * 4 and longer.shape[2] == 8


def test_extend_refuses_what_it_cannot_do():
    options = {"steps": 1, "generator": torch.Generator()}
    clip = torch.zeros(1, 1, 4, 1, 1)
    for past in (0, 4):
        with pytest.raises(ValueError, match=f"past: expected 1 to 3 of 4 frames, got {past}"):
            extend(gaussian_model, SCHEDULE, clip, None, frames=8, past=past, **options)
    with pytest.raises(ValueError, match="frames: expected more than the 4 that there are, got 4"):
        extend(gaussian_model, SCHEDULE, clip, None, frames=4, past=2, **options)


def test_pictures_are_appended_with_their_own_texts():
    video, text = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 5, 6)
    pictures, captions = torch.randn(2, 2, 3, 8, 8), torch.randn(2, 2, 5, 6)
    together, told = with_pictures(video, text, pictures, captions)
    assert torch.equal(together[:, :, :4], video)
    for k in range(2):
        assert torch.equal(together[:, :, 4 + k], pictures[:, k])
        assert torch.equal(told["text"][:, 4 + k], captions[:, k])
    assert all(torch.equal(told["text"][:, k], text) for k in range(4))
    assert told["alone"].tolist() == [[False] * 4 + [True] * 2] * 2


def test_joint_training_answers_for_clip_and_pictures_as_if_they_had_come_apart():
    torch.manual_seed(0)
    unet = build_unet(6, widths=(32, 32)).double().eval()
    for name, parameter in unet.named_parameters():
        if "temporal.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    video, text = torch.randn(1, 3, 4, 16, 16).double(), torch.randn(1, 5, 6).double()
    pictures, captions = torch.randn(1, 2, 3, 16, 16).double(), torch.randn(1, 2, 5, 6).double()
    x, told = with_pictures(video, text, pictures, captions)
    model, t = as_model(unet), torch.tensor([500])
    together = model(x, t, told)
    torch.testing.assert_close(together[:, :, :4], model(video, t, {"text": text}))
    for k in range(2):
        alone = model(pictures[:, k, :, None], t, {"text": captions[:, k]})
        torch.testing.assert_close(together[:, :, 4 + k : 5 + k], alone)


def test_a_coherent_model_goes_away_from_frames_alone():
    calls = []

    def model(x, t, told):
        """Optimal for correlated frames, or for frames alone, as it is told."""
        calls.append(told)
        cov = covariance(x.shape[2])
        gains = {
            False: cov @ torch.linalg.inv(cov + torch.eye(len(cov))),
            True: 0.5 * torch.eye(len(cov)).double(),
        }
        rows = [
            torch.einsum("fg,cghw->cfhw", gains[bool(alone[0])], row)
            for row, alone in zip(x, told["alone"], strict=True)
        ]
        return torch.stack(rows)

    x, t, rate = (
        torch.randn(2, 3, 4, 2, 2).double(),
        torch.tensor([500, 500]),
        torch.full((2,), 8.0),
    )
    found = coherent(model, 3)(x, t, {"frame_rate": rate})
    assert len(calls) == 1 and calls[0]["frame_rate"].tolist() == [8] * 4
    assert calls[0]["alone"].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    cov = covariance(4)
    together = torch.einsum("fg,bcghw->bcfhw", cov @ torch.linalg.inv(cov + torch.eye(4)), x)
    torch.testing.assert_close(found, x / 2 + 3 * (together - x / 2))
    assert coherent(model, 1) is model
    with pytest.raises(ValueError, match="scale: expected 0 or more, got -1"):
        coherent(model, -1)
    with pytest.raises(ValueError, match="conditioning: expected none of 'alone'"):
        coherent(model, 3)(x, t, {"alone": torch.ones(2, 4, dtype=torch.bool)})


def test_a_network_that_is_still_its_own_image_network_has_nothing_to_go_away_from():
    torch.manual_seed(0)
    unet = build_unet(6, widths=(32, 32)).double().eval().requires_grad_(False)
    x, t, told = (
        torch.randn(1, 3, 4, 16, 16).double(),
        torch.tensor([500]),
        {"text": torch.randn(1, 5, 6).double()},
    )
    plain = as_model(unet)(x, t, told)
    torch.testing.assert_close(
        coherent(as_model(unet), 5)(x, t, told), plain, rtol=1e-10, atol=1e-10
    )
    for name, parameter in unet.named_parameters():
        if "temporal.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    changed = as_model(unet)(x, t, told)
    assert (coherent(as_model(unet), 5)(x, t, told) - changed).abs().max() > 0.1


def test_without_text_there_is_nothing_to_tell():
    unet = build_unet(None, widths=(32, 32)).eval()
    x, t = torch.randn(1, 3, 2, 8, 8), torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(as_model(unet)(x, t, None), unet(x, t).sample)
        rate = {"frame_rate": torch.tensor([16.0])}
        assert torch.equal(as_model(unet)(x, t, rate), unet(x, t, **rate).sample)
