"""The experiments on a handful of clips; nothing of it stays in their caches."""

import pytest

from course_lib.claims import convolution, diffusion, inflation, latents, metrics, motion_words, vdm

CACHED = (convolution._recognise, metrics._bias, metrics.real, diffusion._guided, latents._data)
CACHED += (vdm._data, vdm.learned, vdm._drawn, vdm._vdm, motion_words._data, motion_words._text)
CACHED += (inflation._data, inflation._run, inflation._films)


@pytest.fixture
def tiny(monkeypatch):
    whole = convolution.left_or_right
    for name, value in {"TRAIN_CLIPS": 24, "TEST_CLIPS": 12, "BATCH": 4}.items():
        monkeypatch.setattr(convolution, name, value)
    monkeypatch.setattr(
        convolution, "left_or_right", lambda split, count, seed: whole(split, min(count, 16), seed)
    )
    for name, value in {"LEAST": 12, "COUNTS": (16, 32, 48), "DRAWS": 3}.items():
        monkeypatch.setattr(metrics, name, value)
    for name, value in {"POINTS": 32, "BATCH": 8, "WALK": 4, "LEAST": 8, "FEW": 2}.items():
        monkeypatch.setattr(diffusion, name, value)
    draw = diffusion.pixel_ddpm.draw
    monkeypatch.setattr(
        diffusion.pixel_ddpm, "draw", lambda *given, **how: draw(*given, **{**how, "steps": 2})
    )
    for name, value in {"PICTURES": 8, "BATCH": 2, "WALK": 2, "WIDTHS": (32, 32)}.items():
        monkeypatch.setattr(latents, name, value)
    for name, value in {"CLIPS": 6, "BATCH": 2, "WALK": 2, "WIDTHS": (32, 32)}.items():
        monkeypatch.setattr(vdm, name, value)
    for name, value in {"CLIPS": 6, "BATCH": 2, "WIDTHS": (32, 32)}.items():
        monkeypatch.setattr(motion_words, name, value)
    for name, value in {"CLIPS": 6, "BATCH": 2, "WALK": 2}.items():
        monkeypatch.setattr(inflation, name, value)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()
