"""What the recipes of diffusion models share."""

import pytest
import torch

from course_lib.recipes.diffusion_recipe import (
    batch_generator,
    batch_rows,
    generate_in_chunks,
    noisy_batch_loss,
)

CPU = torch.device("cpu")


def test_a_batch_has_random_numbers_of_its_own():
    first, again, other = (torch.rand(3, generator=batch_generator(5, n)) for n in (2, 2, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.rand(3, generator=batch_generator(6, 2)))


def test_batches_take_rows_in_turn():
    assert [*batch_rows(0, 3), *batch_rows(1, 3)] == list(range(6))


def test_samples_are_generated_a_few_at_a_time_with_their_own_arguments():
    calls = []

    def generate(prompts, scale, offset):
        calls.append((list(prompts), scale))
        return torch.tensor([float(len(prompt)) for prompt in prompts]) * scale + offset

    out = generate_in_chunks(
        generate, ["a", "bb", "ccc"], chunk_size=2, device=CPU, scale=2, offset=torch.arange(3)
    )
    assert out.tolist() == [2.0, 5.0, 8.0]
    assert calls == [(["a", "bb"], 2), (["ccc"], 2)]


def test_the_loss_passes_the_conditioning_on():
    ones = torch.ones(2)
    batch = {"x_t": torch.zeros(2, 3), "t": ones, "target": torch.ones(2, 3), "weight": ones}
    batch |= {"text": torch.tensor(3.0), "fps": torch.tensor(2.0)}

    def denoiser(model):
        return lambda x, t, cond: x + cond["text"] * cond["fps"]

    model, generator = torch.nn.Identity(), torch.Generator()
    assert noisy_batch_loss(denoiser)(model, batch, generator) == 25

    def text_denoiser(model):
        return lambda x, t, text: x + text

    assert noisy_batch_loss(text_denoiser, "text")(model, batch, generator) == 4


@pytest.mark.parametrize(
    ("name", "prompts", "chunk_size"), [("prompts", [], 2), ("chunk_size", ["a"], 0)]
)
def test_nothing_to_generate_is_refused(name, prompts, chunk_size):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        generate_in_chunks(torch.zeros, prompts, chunk_size=chunk_size, device=CPU)
