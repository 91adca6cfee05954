"""The cache of training items: which chunks are made, and which rows come back."""

import pytest
import torch

from course_lib.recipes.latent_cache import LatentCache


@pytest.fixture
def cache():
    made = []

    def make_chunk(indices):
        made.append(indices)
        values = torch.tensor(indices)
        return {"value": values, "square": values**2}

    cache = LatentCache(make_chunk, chunk_size=4, num_chunks=3)
    cache.made = made
    return cache


def test_items_come_in_the_order_of_their_indices(cache):
    items = cache[torch.tensor([5, 0, 11, 5])]
    assert items["value"].tolist() == [5, 0, 11, 5]
    assert items["square"].tolist() == [25, 0, 121, 25]


def test_a_chunk_is_made_once_and_only_when_needed(cache):
    assert cache.made == []
    for _ in range(2):
        cache[torch.tensor([9, 10])]
    assert cache.made == [range(8, 12)]


def test_after_the_last_item_comes_the_first(cache):
    assert len(cache) == 12
    assert cache[torch.tensor([11, 12, 25])]["value"].tolist() == [11, 0, 1]
    assert len(cache.made) == 2


@pytest.mark.parametrize("name", ["chunk_size", "num_chunks"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_a_cache_without_items_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1, got"):
        LatentCache(dict, **{"chunk_size": 4, "num_chunks": 3} | {name: value})
