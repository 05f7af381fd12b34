"""Hidden states of a prompt's tokens to one vector."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .request import GenerationFailedError, Pooling

NOT_FINITE = "the model computed hidden states that are not finite numbers; try --dtype float32"


class Pool:
    """Takes a prompt's hidden states chunk by chunk; how they were cut changes no bit of the result."""

    def __init__(self, pooling: Pooling):
        self.pooling = pooling
        self.restart()

    def num_hidden(self, num_tokens: int, *, reaches_end: bool) -> int:
        """Of how many of a chunk's last tokens the hidden states are needed."""
        return num_tokens if self.pooling == "mean" else int(reaches_end)

    def restart(self) -> None:
        """The prompt is computed from its beginning, for the first time or anew."""
        self._sum: npt.NDArray[np.float64] | None = None  # (hidden,)
        self._num_tokens = 0

    def add(self, hidden: torch.Tensor) -> None:
        """Take those of a chunk, float32 ``(tokens, hidden)``."""
        if self._sum is None:
            self._sum = np.zeros(hidden.shape[1])
        for row in hidden.numpy():  # token after token, whatever came together
            self._sum += row
        self._num_tokens += len(hidden)

    def result(self) -> npt.NDArray[np.float32]:
        """The mean, or the last one: ``(hidden,)``.

        Raises:
            GenerationFailedError: it is not finite.
        """
        assert self._sum is not None
        pooled = (self._sum / self._num_tokens).astype(np.float32)
        if not np.isfinite(pooled).all():
            raise GenerationFailedError(NOT_FINITE)
        return pooled
