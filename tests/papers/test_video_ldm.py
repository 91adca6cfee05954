"""Align your Latents: at first the image model; then diffusers' own pipeline; known frames stay what they are."""

import copy
import warnings

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNet3DConditionModel, UNetMotionModel
from PIL import Image
from torch import nn

from course_lib.diffusion import add_noise, ends_without_signal, level_at
from course_lib.nn.convert_diffusers import to_motion_model, to_unet3d
from course_lib.nn.inflate import InflatedUNet, inflate
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.papers import video_ldm
from course_lib.papers.vdm import read
from course_lib.papers.video_ldm import (
    TextToVideoPipeline,
    as_model,
    beside,
    between,
    build_unet,
    coherent,
    onwards,
)
from tests.nn.inflated import awake

PROMPTS = ["a tiger moving left on a sea background", "a red star spinning on a snow background"]


@pytest.fixture(scope="module")
def image(untrained_diffusion):
    return untrained_diffusion()


def pipeline(image, unet, **changes):
    parts = {**vars(image), "unet": unet.eval().requires_grad_(False), **changes}
    pipe = TextToVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def video(image):
    """A pipeline whose layers over time do something."""
    return pipeline(image, awake(build_unet(image.unet)))


def noise(b=2, f=5, seed=1):
    return torch.randn(b, 4, f, 8, 8, generator=torch.Generator().manual_seed(seed))


# The network and its noise


def test_only_layers_over_time_are_to_be_trained(image):
    unet = build_unet(image.unet)
    assert all(
        p.requires_grad == name.startswith("temporal.") for name, p in unet.named_parameters()
    )
    assert unet.text_width == 64 and image.unet.config.cross_attention_dim == 32
    plain = build_unet(image.unet, hears=False, completes=False)
    assert plain.text_width == 32 and not plain.config.options


def test_the_schedule_is_the_image_models_but_for_its_end(image):
    schedule, own = video_ldm.build_schedule(image.scheduler), image.scheduler
    assert ends_without_signal(schedule) and not ends_without_signal(own)
    first, last = torch.tensor([0]), torch.tensor([999])
    assert level_at(schedule, last).signal.item() == 0
    torch.testing.assert_close(level_at(schedule, first).signal, level_at(own, first).signal)
    assert schedule.config.timestep_spacing == "trailing"


def test_what_is_known_is_beside_the_noise_and_nothing_else():
    latents = noise()
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    found = beside(latents, mask)
    assert found.shape == (2, 5, 5, 8, 8)
    torch.testing.assert_close(found[0, :4, [0, 2]], latents[0, :, [0, 2]])
    torch.testing.assert_close(found[:, 4], mask[:, :, None, None].expand(-1, -1, 8, 8).float())
    assert not found[0, :, [1, 3, 4]].any() and not found[1].any()
    # What stands in unknown frames does not matter, not even if it is no number
    latents[0, :, 1] = torch.nan
    torch.testing.assert_close(beside(latents, mask), found)


# The pipeline


@pytest.mark.parametrize(("hears", "completes"), [(True, True), (False, False)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_untrained_it_draws_the_image_models_pictures(image, hears, completes, scale):
    pipe, x = pipeline(image, build_unet(image.unet, hears=hears, completes=completes)), noise()
    *_, found = pipe.steps(PROMPTS, x, steps=3, scale=scale, generator=torch.Generator())
    for frame in range(x.shape[2]):
        *_, expected = image.steps(
            PROMPTS, latents=x[:, :, frame], steps=3, scale=scale, generator=torch.Generator()
        )
        torch.testing.assert_close(found.x[:, :, frame], expected.x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_draws_what_diffusers_animatediff_pipeline_draws(image, scale):
    ours = awake(inflate(image.unet, "animatediff", heads=4, frames=8))
    theirs, x = to_motion_model(ours), noise()
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1
    )  # unused: theirs has its own
    peer = AnimateDiffPipeline(
        image.vae, image.text_encoder, image.tokenizer, theirs, adapter, image.scheduler
    )
    peer.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": scale, "num_frames": 5}
    expected = peer(
        PROMPTS, negative_prompt=["a boat"] * 2, latents=x.clone(), output_type="latent", **options
    ).frames
    drawn = peer(
        PROMPTS, negative_prompt=["a boat"] * 2, latents=x.clone(), output_type="np", **options
    ).frames
    for unet, negative in ((ours, "a boat"), (theirs, ["a boat"] * 2)):
        assert isinstance(unet, InflatedUNet | UNetMotionModel)
        pipe = pipeline(image, unet)
        found = pipe(
            PROMPTS, negative_prompt=negative, latents=x, output_type="latent", **options
        ).frames
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        frames = pipe(
            PROMPTS, negative_prompt="a boat", latents=x, output_type="np", **options
        ).frames
        np.testing.assert_allclose(frames, drawn, atol=2e-5)


def test_the_dial_leads_from_pictures_to_clips(image, video):
    x = noise()

    def drawn(**options):
        *_, last = video.steps(PROMPTS, x, steps=2, generator=torch.Generator(), **options)
        return last.x

    pictures, half, clips = (drawn(temporal_scale=scale) for scale in (0, 0.5, 1.0))
    *_, expected = image.steps(
        PROMPTS, latents=x[:, :, 1], steps=2, scale=4.0, generator=torch.Generator()
    )
    torch.testing.assert_close(pictures[:, :, 1], expected.x, atol=1e-5, rtol=0)
    torch.testing.assert_close(clips, drawn())
    assert not torch.allclose(half, clips, atol=1e-3) and not torch.allclose(
        half, pictures, atol=1e-3
    )
    theirs = pipeline(image, to_motion_model(inflate(image.unet, "animatediff", heads=4, frames=8)))
    with pytest.raises(
        ValueError, match="temporal_scale: expected 1, only an InflatedUNet has a dial; got 0.5"
    ):
        theirs.steps(PROMPTS, x, generator=torch.Generator(), temporal_scale=0.5)


def test_late_guidance_leads_away_from_frames_alone(image, video):
    x = noise()

    def drawn(**options):
        return [
            step.x
            for step in video.steps(PROMPTS, x, steps=3, generator=torch.Generator(), **options)
        ]

    told = {
        "text": video.text(PROMPTS),
        "extra": beside(x, torch.zeros(len(x), x.shape[2], dtype=torch.bool)),
    }
    t = torch.full((len(x),), 300)
    with torch.no_grad():
        alone = torch.stack(
            [
                video.unet.spatial(x[:, :, f], t, image.text(PROMPTS)).sample
                for f in range(x.shape[2])
            ],
            dim=2,
        )
        together = video.unet(x, t, told["text"], extra=told["extra"]).sample
        found = coherent(video.unet, 3)(x, t, told)
        torch.testing.assert_close(found, alone + 3 * (together - alone), atol=1e-4, rtol=0)
        torch.testing.assert_close(coherent(video.unet, 1)(x, t, told), together)
        torch.testing.assert_close(
            coherent(video.unet, 3, temporal_scale=0)(x, t, told), alone, atol=1e-4, rtol=0
        )
    plain, never, late = drawn(), drawn(coherence=2, late=0), drawn(coherence=2, late=500)
    always = drawn(coherence=1, late=1001)
    torch.testing.assert_close(never[-1], plain[-1])
    torch.testing.assert_close(
        late[0], plain[0]
    )  # at timestep 999 guidance is by text, at 333 no longer
    assert not torch.allclose(late[-1], plain[-1], atol=1e-3)
    torch.testing.assert_close(always[-1], drawn(scale=1)[-1])  # no guidance at all
    output = video(
        PROMPTS, latents=x, num_inference_steps=3, output_type="latent", coherence=2
    ).frames
    torch.testing.assert_close(output, drawn(coherence=2)[-1])
    with pytest.raises(ValueError, match="scale: expected 0 or more, got -1"):
        drawn(coherence=-1)
    theirs = pipeline(image, to_motion_model(inflate(image.unet, "animatediff", heads=4, frames=8)))
    with pytest.raises(
        ValueError, match="coherence: expected None, only an InflatedUNet has layers to leave out"
    ):
        theirs.steps(PROMPTS, x, generator=torch.Generator(), coherence=2)


def test_it_takes_modelscopes_unet(image):
    ours, x = awake(inflate(image.unet, "modelscope")), noise()
    theirs = to_unet3d(ours)
    assert isinstance(theirs, UNet3DConditionModel)
    drawn = [
        pipeline(image, unet.eval())(
            PROMPTS, latents=x, num_inference_steps=2, output_type="latent"
        ).frames
        for unet in (ours, theirs)
    ]
    torch.testing.assert_close(*drawn, atol=2e-5, rtol=0)


def test_layers_over_time_read_the_words_and_the_image_model_what_it_has_learnt_to(image, video):
    tokens = image.tokenizer(
        PROMPTS, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    torch.testing.assert_close(video.text(PROMPTS), read(image.text_encoder, tokens))
    plain = pipeline(image, build_unet(image.unet, hears=False))
    torch.testing.assert_close(plain.text(PROMPTS), image.text(PROMPTS))
    torch.testing.assert_close(video.text(PROMPTS)[..., :32], image.text(PROMPTS))


def test_output_types(video):
    options = {"num_frames": 3, "num_inference_steps": 1}

    def drawn(kind, **more):
        return video(
            PROMPTS, output_type=kind, generator=torch.Generator().manual_seed(0), **options | more
        ).frames

    tensor, array, pictures = drawn("pt"), drawn("np"), drawn("pil")
    assert tensor.shape == (2, 3, 3, 64, 64) and array.shape == (2, 3, 64, 64, 3)
    assert 0 <= tensor.min() < tensor.max() <= 1
    np.testing.assert_allclose(tensor.permute(0, 1, 3, 4, 2).numpy(), array, atol=1e-6)
    assert [len(clip) for clip in pictures] == [3, 3] and all(
        isinstance(one, Image.Image) for one in pictures[0]
    )
    np.testing.assert_allclose(np.asarray(pictures[1][2]) / 255, array[1, 2], atol=0.5 / 255 + 1e-6)
    latents = drawn("latent")
    assert latents.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(
        video.decode(latents).transpose(1, 2) / 2 + 0.5, tensor, atol=1e-5, rtol=0
    )
    assert drawn("latent", height=40, width=96).shape == (2, 4, 3, 5, 12)
    again = video.draw(PROMPTS, frames=3, steps=1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.transpose(1, 2) / 2 + 0.5, tensor, atol=1e-5, rtol=0)
    one = video(PROMPTS[0], output_type="latent", return_dict=False, **options)
    assert isinstance(one, tuple) and one[0].shape == (1, 4, 3, 8, 8)


def test_a_callback_sees_every_step_and_may_change_its_latents(video):
    x, seen = noise(), []

    def watch(pipe, step, t, told):
        seen.append((step, t, told["latents"].clone()))

    options = {"latents": x, "num_inference_steps": 3, "output_type": "latent"}
    plain = video(PROMPTS, callback_on_step_end=watch, **options).frames
    steps = list(video.steps(PROMPTS, x, steps=3, generator=torch.Generator()))
    assert [step for step, _, _ in seen] == [0, 1, 2] and [t for _, t, _ in seen] == [
        step.t for step in steps
    ]
    torch.testing.assert_close(
        torch.stack([part for *_, part in seen]), torch.stack([step.x for step in steps])
    )
    torch.testing.assert_close(plain, seen[-1][2])

    def swap(pipe, step, t, told):
        return {"latents": told["latents"].flip(0)} if step == 2 else {}

    torch.testing.assert_close(
        video(PROMPTS, callback_on_step_end=swap, **options).frames, plain.flip(0)
    )

    def early(pipe, step, t, told):
        return {"latents": told["latents"] * 0} if step == 0 else None

    assert not torch.allclose(video(PROMPTS, callback_on_step_end=early, **options).frames, plain)


def test_a_temporal_decoder_may_take_the_place_of_the_autoencoder(image, video):
    decoder, latents = inflate_decoder(image.vae), noise()
    other = pipeline(image, copy.deepcopy(video.unet), vae=decoder)
    torch.testing.assert_close(other.decode(latents), video.decode(latents), atol=1e-6, rtol=0)
    for parameter in decoder.temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(other.decode(latents), video.decode(latents), atol=1e-3)
    assert other.decode(latents * 100).abs().max() <= 1


def test_it_travels_and_comes_back(image, video, tmp_path):
    video.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TextToVideoPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    options = {"latents": noise(), "num_inference_steps": 2, "output_type": "latent"}
    torch.testing.assert_close(again(PROMPTS, **options).frames, video(PROMPTS, **options).frames)


# Known frames


def told(video, **changes):
    """What a U-Net in the pipeline is told, call by call; it answers as the real one."""
    calls, unet = [], video.unet
    forward = unet.forward

    def watching(sample, timestep, encoder_hidden_states, **rest):
        calls.append(rest)
        return forward(sample, timestep, encoder_hidden_states, **rest)

    return calls, watching


def test_guidance_leads_from_knowing_nothing_to_what_is_known_which_is_kept(video, monkeypatch):
    calls, watching = told(video)
    monkeypatch.setattr(video.unet, "forward", watching)
    known, mask = noise(seed=5), torch.tensor([[True, False, False, False, True]]).expand(2, -1)
    index = torch.arange(5.0).expand(2, -1) / 4
    how = {"frames": 5, "steps": 2, "known": known, "mask": mask, "frame_index": index}
    found = video.latents(PROMPTS, generator=torch.Generator().manual_seed(1), **how)
    torch.testing.assert_close(found[:, :, [0, 4]], known[:, :, [0, 4]])
    assert len(calls) == 2
    for call in calls:
        unknown, shown = call["extra"].chunk(2)
        torch.testing.assert_close(shown, beside(known, mask))
        assert not unknown.any()
        torch.testing.assert_close(call["frame_index"], index.repeat(2, 1))
    free = video.latents(PROMPTS, generator=torch.Generator().manual_seed(1), frames=5, steps=2)
    assert not calls[-1]["extra"].any() and "frame_index" not in calls[-1]
    assert not torch.allclose(
        found[:, :, 1:4], free[:, :, 1:4], atol=1e-3
    )  # the others have seen them


def test_at_every_step_a_sample_has_its_known_frames_at_their_noise_level(video):
    """With DDIM they are signal · known + noise · the same noise throughout; so training has shown them."""
    known, same = noise(seed=5), noise(seed=6)
    mask = torch.tensor([[True, False, False, True, False], [False, True, False, False, True]])
    how = {
        "known": known.masked_fill(~mask[:, None, :, None, None], torch.nan),
        "mask": mask,
        "steps": 5,
    }
    begin = {step.t for step in video.steps(PROMPTS, same, generator=torch.Generator(), steps=5)}
    x = add_noise(video.scheduler, known, same, torch.tensor([max(begin)]))
    walk = [
        (step.t, step.x.clone())
        for step in video.steps(PROMPTS, x, generator=torch.Generator(), **how)
    ]
    for (_, found), (t, _) in zip(walk, walk[1:], strict=False):
        expected = add_noise(video.scheduler, known, same, torch.tensor([t]))
        kept = mask[:, None, :, None, None].expand_as(x)
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)
        assert found.isfinite().all() and (found - expected)[~kept].abs().max() > 0.1


def test_between_key_frames_all_windows_are_filled_in(video, monkeypatch):
    keys, seen = torch.randn(2, 4, 7, 8, 8, generator=torch.Generator().manual_seed(3)), {}

    def invented(prompts, *, frames, known, mask, frame_index, **options):
        seen.update(prompts=prompts, mask=mask, index=frame_index, options=options)
        row = torch.arange(len(prompts))[:, None, None, None, None].float()
        made = row.expand(-1, 4, frames, 8, 8) * 100 + torch.arange(frames)[:, None, None]
        return torch.where(mask[:, None, :, None, None], known, made)

    monkeypatch.setattr(video, "latents", invented)
    found = between(video, PROMPTS, keys, spacing=2.0, steps=3)
    assert found.shape == (2, 4, 25, 8, 8)
    torch.testing.assert_close(found[:, :, ::4], keys)
    assert seen["prompts"] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2 and seen["options"] == {
        "steps": 3,
        "scale": video_ldm.FITTING,
    }
    torch.testing.assert_close(seen["index"], (torch.arange(13) / 2).expand(4, -1))
    assert seen["mask"].int().tolist() == [[1, 0, 0, 0] * 3 + [1]] * 4
    for clip in range(2):
        for frame in range(25):
            if frame % 4:
                expected = (2 * clip + frame // 12) * 100 + frame % 12
                assert (found[clip, :, frame] == expected).all()


def test_a_clip_goes_on_from_its_last_frames(video, monkeypatch):
    clip, seen, scales = noise(f=6), [], []

    def invented(prompts, *, frames, known, mask, **options):
        seen.append((known, mask))
        scales.append(options["scale"])
        made = torch.full((2, 4, frames, 8, 8), float(len(seen)))
        return torch.where(mask[:, None, :, None, None], known, made)

    monkeypatch.setattr(video, "latents", invented)
    onwards(video, PROMPTS, clip, frames=7, past=2, scale=3)
    seen.clear()
    found = onwards(video, PROMPTS, clip, frames=13, past=2)
    assert scales == [3] + [video_ldm.FITTING] * 2
    assert found.shape == (2, 4, 13, 8, 8)
    torch.testing.assert_close(found[:, :, :6], clip)
    assert found[0, 0, 6:, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(seen[0][0][:, :, :2], clip[:, :, 4:])
    assert (
        seen[1][1].int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2 and (seen[1][0][:, :, :2] == 1).all()
    )


def test_bad_input_is_refused(image, video):
    x, generator = noise(), torch.Generator()
    for name, value, message in (
        ("output_type", "gif", "output_type: expected pil, np, pt or latent; got 'gif'"),
        ("height", 36, "height: expected a multiple of 8 pixels, got 36"),
        ("width", 0, "width: expected a multiple of 8 pixels, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            video(PROMPTS, **{name: value})
    plain = pipeline(image, build_unet(image.unet, completes=False))
    with pytest.raises(
        ValueError, match="known: expected none, since this U-Net cannot be shown frames; got some"
    ):
        plain.steps(
            PROMPTS, x, known=x, mask=torch.ones(2, 5, dtype=torch.bool), generator=generator
        )
    for options, message in (
        ({"known": x}, "no mask"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, "no known"),
    ):
        with pytest.raises(
            ValueError, match=f"known, mask: expected both or neither, got {message}"
        ):
            video.steps(PROMPTS, x, generator=generator, **options)
    with pytest.raises(
        ValueError, match="negative: expected one prompt, or one for each of 2; got 3"
    ):
        video(PROMPTS, negative_prompt=["a boat"] * 3, latents=x)
    for keys, window in ((4, 1), (3, 4), (6, 4)):
        with pytest.raises(
            ValueError, match=f"window: expected 2 or more, with one less a divisor of {keys} - 1"
        ):
            between(video, PROMPTS, noise(f=keys), window=window, generator=generator)
    for past in (0, 5):
        with pytest.raises(ValueError, match=f"past: expected 1 to 4 of 5 frames, got {past}"):
            onwards(video, PROMPTS, x, frames=9, past=past, generator=generator)
    with pytest.raises(TypeError, match="mask"):  # what it decides itself cannot be told
        between(
            video,
            PROMPTS,
            noise(f=4),
            mask=torch.ones(2, 13, dtype=torch.bool),
            generator=generator,
        )
    with pytest.raises(ValueError, match="frames: expected more than the 5 that there are, got 5"):
        onwards(video, PROMPTS, x, frames=5, generator=generator)


def test_all_of_it_runs_in_half_precision_and_samples_stay_in_float32(image, video):
    half = pipeline(image, copy.deepcopy(video.unet), vae=copy.deepcopy(image.vae))
    half.to(torch.bfloat16)
    assert half.text(PROMPTS).dtype == torch.bfloat16
    generator, keys = torch.Generator().manual_seed(0), noise(f=4)
    found = between(half, PROMPTS, keys, steps=2, generator=generator)
    expected = between(video, PROMPTS, keys, steps=2, generator=torch.Generator().manual_seed(0))
    assert found.shape == (2, 4, 13, 8, 8) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, :, ::4], keys)
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    longer = onwards(half, PROMPTS, keys, frames=6, past=2, steps=2, generator=generator)
    assert longer.shape == (2, 4, 6, 8, 8) and longer.isfinite().all()
    assert (
        half.draw(PROMPTS, frames=2, steps=1, generator=generator, temporal_scale=0.5).dtype
        == torch.float32
    )
    text, x = torch.zeros(2, 32, 64, dtype=torch.bfloat16), noise()
    extra = beside(x, torch.zeros(2, 5, dtype=torch.bool))
    model = as_model(half.unet)
    assert model(x, torch.tensor([3, 4]), {"text": text, "extra": extra}).dtype == torch.bfloat16


def test_known_frames_decide_the_size(video):
    known = torch.randn(2, 4, 3, 4, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, False]]).expand(2, -1)
    found = video.latents(
        PROMPTS, frames=3, known=known, mask=mask, steps=1, generator=torch.Generator()
    )
    assert found.shape == known.shape
    torch.testing.assert_close(found[:, :, 0], known[:, :, 0])
