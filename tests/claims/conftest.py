"""The experiments on a handful of clips; caches are emptied before and after."""

from dataclasses import replace

import pytest

from course_lib.claims import (
    common,
    convolution,
    diffusion,
    inflation,
    latents,
    metrics,
    motion_words,
    vdm,
)

CACHED = (
    common.load_clips,
    convolution._run_recognition,
    convolution.noisy_motion_clips,
    diffusion._run_guidance,
    inflation._data,
    inflation._run_training,
    latents._data,
    metrics._distances_by_size,
    vdm.train_arm,
    vdm._run_joint_training,
)
CONSTANTS = {
    convolution: {"NUM_TEST": 12},
    metrics: {"MIN_CLIPS": 12, "SAMPLE_SIZES": (16, 32, 48), "NUM_DRAWS": 3},
    diffusion: {"NUM_POINTS": 32, "NUM_INFERENCE_STEPS": 4, "MIN_SAMPLES": 8, "FEW_STEPS": 2},
    latents: {"NUM_INFERENCE_STEPS": 2, "BLOCK_OUT_CHANNELS": (32, 32)},
    vdm: {"NUM_INFERENCE_STEPS": 2, "BLOCK_OUT_CHANNELS": (32, 32)},
    motion_words: {"BLOCK_OUT_CHANNELS": (32, 32)},
    inflation: {"NUM_INFERENCE_STEPS": 2},
}
TRAINING_SIZES = {  # number of examples, batch size
    (convolution, "TRAINING"): (24, 4),
    (convolution, "LEFT_RIGHT_TRAINING"): (16, 4),
    (diffusion, "TRAINING"): (0, 8),
    (latents, "TRAINING"): (8, 2),
    (vdm, "TRAINING"): (6, 2),
    (motion_words, "TRAINING"): (6, 2),
    (inflation, "TRAINING"): (6, 2),
}


@pytest.fixture
def tiny(monkeypatch):
    for module, constants in CONSTANTS.items():
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    for (module, name), (num_examples, batch_size) in TRAINING_SIZES.items():
        training = getattr(module, name)
        small = replace(training, num_examples=num_examples, batch_size=batch_size)
        monkeypatch.setattr(module, name, small)
    generate = diffusion.pixel_ddpm.generate
    monkeypatch.setattr(
        diffusion.pixel_ddpm,
        "generate",
        lambda *args, **kwargs: generate(*args, **{**kwargs, "num_inference_steps": 2}),
    )
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def batches(monkeypatch):
    """The first two batches of every training, in order; training itself goes on."""
    recorded = []
    fit = common.fit

    def recording_fit(model, make_batch, loss_fn, **kwargs):
        recorded.append([make_batch(index) for index in range(2)])
        return fit(model, make_batch, loss_fn, **kwargs)

    monkeypatch.setattr(common, "fit", recording_fit)
    return recorded
