"""Lesson 07's experiments: that arms see the same clips, what may learn in which, and what is measured."""

import pytest
import torch

from course_lib import zoo
from course_lib.claims import inflation
from course_lib.diffusion import level_at
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.world import part_of

pytestmark = pytest.mark.usefixtures("tiny")


def test_half_of_the_subjects_are_in_no_clip():
    assert not set(inflation.FILMED) & set(inflation.PICTURED)
    assert len(inflation.FILMED) == len(inflation.PICTURED) == 12
    _, captions = inflation._data(0)
    assert all(any(name in caption for name in inflation.FILMED) for caption in captions)
    for subjects in (inflation.FILMED, inflation.PICTURED):
        scenes = inflation._real(subjects, 30, 0).scenes
        assert {scene.subject for scene in scenes} <= set(subjects)
        assert {scene.motion for scene in scenes} == set(inflation.MOTIONS)
        assert all(part_of(scene.subject, scene.motion) == "seen" for scene in scenes)


def test_arms_see_the_same_clips_and_noise(monkeypatch):
    seen, real_fit = [], inflation.fit

    def fit(model, batch, loss, **options):
        seen.append([batch(number) for number in range(2)])
        return real_fit(model, batch, loss, **options)

    monkeypatch.setattr(inflation, "fit", fit)
    for arm in (inflation.ALONE, inflation.NOTHING, inflation.DEAF):
        inflation.learned(arm, 0, 2)
    latents, _ = inflation._data(0)
    for alone, nothing, deaf in zip(*seen, strict=True):
        for name in ("x_t", "t", "target", "frame_index"):
            assert torch.equal(alone[name], nothing[name]) and torch.equal(alone[name], deaf[name])
        assert torch.equal(alone["text"], nothing["text"])
        width = deaf["text"].shape[-1]  # what the tower says; the others are told the words as well
        assert (
            torch.equal(alone["text"][..., :width], deaf["text"])
            and alone["text"].shape[-1] == 2 * width
        )
        signal, noise = level_at(inflation.mini_video.SCHEDULE, alone["t"]).beside(alone["x_t"])
        clean = signal * alone["x_t"] - noise * alone["target"]
        assert all((latents - clip).abs().amax(dim=(1, 2, 3, 4)).min() < 1e-3 for clip in clean)


ARMS = [
    inflation.ALONE,
    inflation.DEAF,
    inflation.TUNED,
    inflation.WORDLESS,
    inflation.EVERYTHING,
    inflation.NOTHING,
]


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_frozen_stays_and_the_rest_learns(arm):
    torch.manual_seed(3)
    first = inflation.build(arm).state_dict()
    after = inflation.learned(arm, 3, 3)[0].state_dict()
    image = zoo.load("mini-sd").unet.state_dict()
    began = all(torch.equal(first[f"spatial.{name}"], value) for name, value in image.items())
    moved = {
        name for name, value in image.items() if not torch.equal(after[f"spatial.{name}"], value)
    }
    assert began == (arm != inflation.NOTHING)
    projections = {name for name in image if "attn2.to_k" in name or "attn2.to_v" in name}
    nothing: set[str] = set()
    frozen = dict.fromkeys((inflation.ALONE, inflation.DEAF, inflation.WORDLESS), nothing)
    expected = (frozen | {inflation.TUNED: projections}).get(arm, set(image))
    assert projections and moved == expected
    assert any(
        not torch.equal(after[name], value)
        for name, value in first.items()
        if name.startswith("temporal.")
    )


@torch.no_grad()
def test_layers_told_no_words_are_as_large_and_hear_nothing():
    heard = {}
    for arm in (inflation.ALONE, inflation.WORDLESS):
        unet = inflation.build(arm).eval()
        torch.manual_seed(4)
        for parameter in unet.temporal.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        width = (
            unet.text_width // 2
        )  # the image model reads the first half, the layers over time all of it
        text = torch.randn(1, 32, 2 * width)
        other = torch.cat([text[..., :width], torch.randn(1, 32, width)], dim=-1)
        clip, size = (
            torch.randn(1, 16, 4, 8, 8),
            sum(parameter.numel() for parameter in unet.parameters()),
        )
        said = [
            unet(clip, 500, some, frame_index=inflation.INDEX[None]).sample
            for some in (text, other)
        ]
        heard[arm] = (size, (said[0] - said[1]).abs().max().item())
    assert heard[inflation.WORDLESS] == (heard[inflation.ALONE][0], 0)
    assert heard[inflation.ALONE][1] > 1e-3


def test_clips_are_as_far_from_themselves_as_nothing_and_from_others_further():
    clips, other = (inflation._real(inflation.FILMED, 12, seed).video for seed in (0, 1))
    near, far = inflation.distances(clips, clips), inflation.distances(clips.flip(2), other)
    for name in ("FVD", "FID of frames"):
        assert abs(near[name]) < 1e-3 < far[name]
    backwards = inflation.distances(clips.flip(2), clips)
    assert abs(backwards["FID of frames"]) < 1e-3 < backwards["FVD"]  # frames have no order


@pytest.mark.parametrize("arm", [inflation.ALONE, inflation.NOTHING])
def test_every_arm_is_measured(arm):
    found = inflation._run(arm, 0, 0.001)
    for claim in inflation.CLAIMS:
        assert claim.metric in found or claim.run is inflation._decoded
    assert all(0 <= value <= 1 for name, value in found.items() if "right" in name)


def test_the_decoder_is_measured_with_its_layers_on_and_off(monkeypatch):
    load, decoder = zoo.load, inflate_decoder(zoo.load("mini-vae"))
    for parameter in decoder.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    monkeypatch.setattr(
        inflation.zoo, "load", lambda name: decoder if name == "temporal-vae" else load(name)
    )
    apart, together = "frame by frame", "together"
    off, on = (inflation._decoded(arm, 0, 0.001) for arm in (apart, together))
    assert off["changes, times the film's own"] == pytest.approx(1.0, abs=0.3)
    assert on["FVD"] != pytest.approx(off["FVD"])
    for found in (off, on):
        assert found["flicker"] == pytest.approx(abs(found["changes, times the film's own"] - 1))
    shaken = inflation._decoded(inflation.SHAKEN[apart], 0, 0.001)
    assert shaken["flicker"] > off["flicker"] + 0.3
    assert inflation._decoded(inflation.SHAKEN[together], 0, 0.001)["flicker"] != pytest.approx(
        shaken["flicker"]
    )
