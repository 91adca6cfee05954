"""A short fine-tune: which parameters move, what the loss is made of, and that it overfits."""

import math

import pytest
import torch

from course_lib.papers.video_ldm import build_unet
from course_lib.recipes.finetune import finetune


@pytest.fixture
def parts(untrained_diffusion):
    return untrained_diffusion()


def images(n=4, seed=0):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(parts, latents, text, **kwargs):
    """Losses, and the trained U-Net."""
    unet = kwargs.pop("unet", parts.unet)
    kwargs = {"trainable": unet.parameters(), "num_steps": 3, "lr": 1e-3} | kwargs
    kwargs = {"generator": torch.Generator().manual_seed(0), "mixed_precision": "no"} | kwargs
    steps = finetune(unet, parts.scheduler, latents, text, **kwargs)
    return [step.loss for step in steps], unet


def test_only_the_chosen_parameters_move(parts):
    text = parts.encode_prompt(["a tiger"])
    before = {name: value.clone() for name, value in parts.unet.named_parameters()}
    chosen = {name: p for name, p in parts.unet.named_parameters() if "attn2.to_k" in name}
    run(parts, images(), text, trainable=chosen.values(), weight_decay=0.0)
    moved = {name for name, p in parts.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(chosen)
    assert not any(parameter.requires_grad for parameter in parts.unet.parameters())


def test_four_images_are_overfitted(parts):
    text = parts.encode_prompt(["a tiger", "a lion", "an owl", "a pig"])
    losses, _ = run(parts, images(), text, num_steps=60, lr=3e-3, lr_schedule="constant")
    first, last = (sum(part) / 10 for part in (losses[:10], losses[-10:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("frame_conditioning", [False, True])
def test_one_video_is_trained_on(parts, frame_conditioning):
    video = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    unet = build_unet(
        parts.unet, temporal_cross_attention=False, frame_conditioning=frame_conditioning
    )
    text = parts.encode_prompt(["a tiger"])
    trainable = list(unet.temporal.parameters())
    before = [parameter.clone() for parameter in trainable]
    losses, _ = run(parts, video, text, unet=unet, trainable=trainable, batch_size=2)
    assert len(losses) == 3
    assert any(not torch.equal(p, old) for p, old in zip(trainable, before, strict=True))


def test_the_generator_reproduces_a_run(untrained_diffusion):
    def losses(seed):
        parts = untrained_diffusion()
        text = parts.encode_prompt(["a tiger"])
        return run(parts, images(), text, generator=torch.Generator().manual_seed(seed))[0]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_the_prior_adds_its_own_loss(untrained_diffusion):
    def first_loss(latents, **kwargs):
        parts = untrained_diffusion()
        text = parts.encode_prompt(["a tiger"])
        prior = kwargs.pop("prior", None)
        if prior is not None:
            kwargs["prior"] = (prior, parts.encode_prompt(["an animal"]))
        return run(parts, latents, text, **kwargs)[0][0]

    instance = first_loss(images())
    both = first_loss(images(), prior=images(seed=1), prior_weight=1.0)
    double = first_loss(images(), prior=images(seed=1), prior_weight=2.0)
    assert both > instance
    assert double - instance == pytest.approx(2 * (both - instance), rel=1e-4)


def test_a_prior_without_weight_is_none(untrained_diffusion):
    def trained(**kwargs):
        parts = untrained_diffusion()
        text = parts.encode_prompt(["a tiger"])
        if kwargs:
            kwargs["prior"] = (images(seed=1), text)
        losses, unet = run(parts, images(), text, **kwargs)
        return losses, unet.state_dict()

    losses, weights = trained()
    prior_losses, prior_weights = trained(prior_weight=0.0)
    assert losses == prior_losses
    assert all(torch.equal(value, prior_weights[name]) for name, value in weights.items())


def test_items_are_taken_in_turn(parts):
    batches = []
    parts.unet.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    text = torch.arange(3.0)[:, None, None].expand(-1, 32, 32).contiguous()
    run(parts, images(3), text, batch_size=2)
    assert [batch[:, 0, 0].tolist() for batch in batches] == [[0, 1], [2, 0], [1, 2]]


def test_bad_arguments_are_refused(parts):
    text = parts.encode_prompt(["a tiger"])
    with pytest.raises(ValueError, match="trainable: expected parameters of the model, got none"):
        run(parts, images(), text, trainable=[])
    other = torch.nn.Linear(2, 2).parameters()
    with pytest.raises(ValueError, match="trainable: expected parameters of the model, got 2 that"):
        run(parts, images(), text, trainable=other)
    for weight in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="prior_weight: expected a finite number at least 0"):
            run(parts, images(), text, prior_weight=weight)
    for size in (0, -1):
        message = f"batch_size: expected an integer of at least 1, got {size}"
        with pytest.raises(ValueError, match=message):
            run(parts, images(), text, batch_size=size)
    with pytest.raises(ValueError, match="latents: expected at least 1, got 0"):
        run(parts, images()[:0], text)
    with pytest.raises(ValueError, match="prior.1.: expected at least 1, got 0"):
        run(parts, images(), text, prior=(images(), text[:0]))
