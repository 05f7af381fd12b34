"""EmbeddingRows: the embeddings of tokens as native layers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from server.kernels.native.library import Kernels
from server.kernels.native.linear import plain_matrix
from server.model.blocks.workspace import Workspace
from server.model.quantised.embedding import QuantisedEmbedding


class EmbeddingRows:
    """Looks tokens up in a table of embeddings.

    Args:
        module: the embedding.
        scale: of its rows.
    """

    def __init__(self, kernels: Kernels, module: Any, scale: float):
        self._kernels, self._module, self._scale = kernels, module, scale
        self._is_quantised = isinstance(module, QuantisedEmbedding)
        self._table = module.table.matrix if self._is_quantised else plain_matrix(module.weight.detach())

    def write(self, token_ids: Sequence[int], workspace: Workspace) -> None:
        """Write the rows of a step's tokens, which the workspace has too, into ``workspace.hidden``."""
        call = workspace.call
        is_read = self._table is not None and self._kernels.read_rows(
            self._table, call.token_ids, len(token_ids), call.hidden
        )
        if not is_read:
            rows = torch.tensor(token_ids)
            found = self._module.table.rows_at(rows) if self._is_quantised else self._module.weight[rows].float()
            workspace.hidden[:] = found.numpy(force=True)
        if self._scale != 1.0:
            workspace.hidden[:] *= self._scale
