"""The experiments on a handful of clips; nothing of it stays in their caches."""

import pytest

from course_lib.claims import convolution, metrics

CACHED = (convolution._recognise, metrics._bias, metrics.real)


@pytest.fixture
def tiny(monkeypatch):
    whole = convolution.left_or_right
    for name, value in {"TRAIN_CLIPS": 24, "TEST_CLIPS": 12, "BATCH": 4}.items():
        monkeypatch.setattr(convolution, name, value)
    monkeypatch.setattr(convolution, "left_or_right", lambda split, count, seed: whole(split, min(count, 16), seed))
    for name, value in {"LEAST": 12, "COUNTS": (16, 32, 48), "DRAWS": 3}.items():
        monkeypatch.setattr(metrics, name, value)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()
