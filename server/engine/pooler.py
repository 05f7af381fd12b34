"""Pooling of the hidden states of a prompt's tokens into one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from server.engine.interface import GenerationFailedError, Pooling

if TYPE_CHECKING:
    import torch

Vector = npt.NDArray[np.float32]
NOT_FINITE = "the model computed hidden states that are not finite numbers; try --dtype float32"


class Pooler:
    """Pools the hidden states of one prompt, chunk by chunk. The result does not depend on how chunks are cut."""

    def __init__(self, pooling: Pooling):
        self.pooling = pooling
        self.restart()

    def num_hidden(self, num_tokens: int, *, reaches_end: bool) -> int:
        """Return the number of a chunk's last tokens whose hidden states are needed."""
        if self.pooling == "classify":
            return 0
        return num_tokens if self.pooling == "mean" else int(reaches_end)

    def restart(self) -> None:
        """Begin with the prompt's first token, for the first time or again."""
        self._sum: npt.NDArray[np.float64] | None = None  # (hidden,)
        self._num_tokens = 0

    def add(self, hidden: torch.Tensor) -> None:
        """Add the hidden states of a chunk, float32 ``(tokens, hidden)``."""
        if self._sum is None:
            self._sum = np.zeros(hidden.shape[1])
        for row in hidden.numpy():  # one by one, so that the cut of chunks changes no bit
            self._sum += row
        self._num_tokens += len(hidden)

    def result(self) -> Vector:
        """Return the mean, or the last hidden state, ``(hidden,)``.

        Raises:
            GenerationFailedError: it is not finite.
        """
        assert self._sum is not None
        return finite((self._sum / self._num_tokens).astype(np.float32))


def finite(vector: Vector) -> Vector:
    """Return a vector.

    Raises:
        GenerationFailedError: it is not finite.
    """
    if not np.isfinite(vector).all():
        raise GenerationFailedError(NOT_FINITE)
    return vector
