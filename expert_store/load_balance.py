"""Load balance of each layer: how evenly recent tokens are spread over its experts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOKENS_PER_EXPERT = 64  # of a complete window, on average
OVERLOAD = 4.0  # times the mean of the layer

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerBalance:
    """Load balance of one layer over a window of tokens.

    Attributes:
        cv: coefficient of variation: standard deviation of the tokens by expert over their mean; 0 if all are equal.
        max_over_mean: tokens of the busiest expert over the mean.
        dead: experts without a token.
        overloaded: experts with more than ``OVERLOAD`` times the mean, the busiest first.
    """

    layer: int
    cv: float
    max_over_mean: float
    dead: tuple[int, ...]
    overloaded: tuple[int, ...]


class LoadBalance:
    """Measures the load balance over windows of tokens, one after the other. Thread-safe.

    A window is complete when an expert has had ``TOKENS_PER_EXPERT`` tokens on average, so that an even router leaves
    no expert of it without one.

    Args:
        num_experts: number of experts of each MoE layer.
    """

    def __init__(self, num_experts: Mapping[int, int]):
        self._num_experts = dict(num_experts)
        self._window_tokens = TOKENS_PER_EXPERT * sum(num_experts.values())
        self._begin: Counts | int = 0  # counts at the beginning of the current window
        self._recent: tuple[LayerBalance, ...] = ()
        self._lock = threading.Lock()  # guards the fields above

    def recent(self, tokens: Counts) -> tuple[LayerBalance, ...]:
        """Return the balance of the last complete window; empty before the first. It is the same object until the next.

        Args:
            tokens: tokens of each expert since the start, ``(layers, experts)``; a layer may have fewer experts.
        """
        with self._lock:
            counts = tokens - self._begin
            if counts.sum() >= self._window_tokens:
                self._recent = tuple(
                    _balance(layer, row[:num])
                    for (layer, num), row in zip(self._num_experts.items(), counts, strict=True)
                )
                self._begin = tokens.copy()
            return self._recent


def _balance(layer: int, counts: Counts) -> LayerBalance:
    mean = counts.mean()
    if not mean:  # no token came to the layer
        return LayerBalance(layer, 0.0, 0.0, tuple(range(len(counts))), ())
    busiest_first = np.argsort(-counts, kind="stable")
    return LayerBalance(
        layer,
        cv=float(counts.std() / mean),
        max_over_mean=float(counts.max() / mean),
        dead=tuple(np.flatnonzero(counts == 0).tolist()),
        overloaded=tuple(each for each in busiest_first.tolist() if counts[each] > OVERLOAD * mean),
    )
