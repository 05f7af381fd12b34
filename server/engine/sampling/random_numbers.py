"""Uniform random numbers for the tokens of a sequence, reproducible from its seed. Torch-free."""

from __future__ import annotations

from functools import lru_cache

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniforms(seeds: list[int], positions: list[int]) -> list[float]:
    """Return a number in ``[0, 1)`` for each pair of a seed and a position; each depends on its pair only.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): each seed is a stream
    of its own, and the position is the index in it.

    Args:
        seeds: any integers; only their low 64 bits count.
        positions: from 0.
    """
    # For the few rows of a step, Python's integers are faster than NumPy's.
    return [
        (_mix(_of_seed(seed) + (position + 1) * GOLDEN & _MASK) >> 11) * 2.0**-53
        for seed, position in zip(seeds, positions, strict=True)
    ]


@lru_cache(maxsize=1024)
def _of_seed(seed: int) -> int:
    return _mix(seed & _MASK)


def _mix(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)
