"""Counter-based random numbers: the same on every machine, in any order, for any batch.

`torch.Generator` streams depend on the device and on how many numbers were drawn before. A clip must be a pure
function of its scene, so every continuous choice is a hash of (scene, name of the choice) instead.
"""

import zlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integers to uint64, elementwise and broadcast.

    Args:
        keys: non-negative integers or integer arrays that broadcast together; order matters.

    Source: SplitMix64 finaliser, Steele, Lea and Flood 2014 ("Fast splittable pseudorandom number generators").
    """
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(
    name: str, *keys: int | np.ndarray, low: float | int = 0, high: float | int = 1
) -> np.ndarray:
    """Draw uniform float64 numbers in [low, high) that depend only on `name` and `keys`.

    Args:
        name: what is being chosen ("speed"); different names give independent draws.
        keys: integers or arrays, as in `mix`.
        low, high: the range, in the unit of what is chosen.
    """
    bits = mix(zlib.crc32(name.encode()), *keys)
    return low + (high - low) * (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
