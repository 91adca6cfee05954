"""Counter-based random numbers: the same on every machine, in any order, for any batch.

The numbers of a `torch.Generator` depend on the device and on how many were generated before. A
clip must be a pure function of its scene, so every continuous choice is a hash of (scene, name of
the choice).
"""

import zlib

import numpy as np

from course_lib.validation import require

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def hash_u64(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integers to uint64, elementwise and with broadcasting.

    Args:
        keys: non-negative integers or integer arrays that broadcast together; their order matters.

    Returns:
        uint64 array of the broadcast shape, at least one-dimensional.

    Raises:
        ValueError: a key that is not a non-negative integer below 2**64.

    Source: SplitMix64 finaliser; Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators".
    """
    arrays = [np.asarray(key) for key in keys]
    for key in arrays:  # a cast would round fractions and wrap negative numbers
        is_valid = key.dtype.kind in "iu" and not (key < 0).any()
        require(is_valid, "keys", "non-negative integers below 2**64", key)
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        for key in arrays:
            state = (state ^ key.astype(np.uint64)) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def hash_uniform(
    name: str, *keys: int | np.ndarray, low: float | int = 0, high: float | int = 1
) -> np.ndarray:
    """Uniform float64 numbers in [low, high) that depend only on `name` and `keys`.

    Args:
        name: the choice ("speed"); different names give independent numbers.
        keys: integers or arrays, as in `hash_u64`.
        low: lower end of the range.
        high: upper end of the range, exclusive.
    """
    bits = hash_u64(zlib.crc32(name.encode()), *keys)
    return low + (high - low) * (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
