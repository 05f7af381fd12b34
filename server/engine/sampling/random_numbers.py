"""Uniform random numbers for the tokens of a sequence, reproducible from its seed. Torch-free."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(seeds: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    """Return a number in ``[0, 1)`` for each pair of a seed and a position; each depends on its pair only.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): each seed is a stream
    of its own, and the position is the index in it.

    Args:
        seeds: any integers; only their low 64 bits count.
        positions: from 0.
    """
    state = _mix(np.array([seed & _MASK for seed in seeds], np.uint64))
    steps = np.array(positions, np.uint64) + np.uint64(1)
    return (_mix(state + steps * GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
