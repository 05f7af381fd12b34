"""EmbeddingRows: the embeddings of tokens as native layers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from server.model.quantised.embedding import QuantisedEmbedding


class EmbeddingRows:
    """Looks tokens up in a table of embeddings.

    Args:
        module: the embedding.
        scale: of its rows.
    """

    def __init__(self, module: Any, scale: float):
        self._module, self._scale = module, scale
        self._is_half, self._numbers = False, None
        if not isinstance(module, QuantisedEmbedding):
            table = module.weight.detach()
            self._is_half = table.dtype == torch.bfloat16  # numpy has no such numbers
            self._numbers = (table.view(torch.uint16) if self._is_half else table).numpy(force=True)

    def write(self, token_ids: Sequence[int], hidden: npt.NDArray[np.float32]) -> None:
        """Write the rows of tokens, ``(tokens, hidden)``."""
        if self._numbers is None:
            hidden[:] = self._module.table.rows_at(torch.tensor(token_ids)).numpy()
        elif self._is_half:  # the upper halves of float32 numbers
            numbers = hidden.view(np.uint32)
            numbers[:] = self._numbers[token_ids]
            np.left_shift(numbers, 16, out=numbers)
        else:
            hidden[:] = self._numbers[token_ids]
        if self._scale != 1.0:
            hidden *= self._scale
