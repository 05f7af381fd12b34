"""EmbeddingRows: the embeddings of tokens as native layers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from server.kernels.native.library import Kernels
from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.layers import LayerSpec, NormKind
from server.kernels.native.structures.layers import Norm as RowNorm
from server.kernels.native.structures.matrices import Matrix
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.workspace import Workspace
from server.model.quantised.embedding import QuantisedEmbedding

OF_EMBEDDINGS = ("input_hidden_states_scale", "input_hidden_states_bias")  # parameters of a model's body


class EmbeddingRows:
    """Looks tokens up in a table of embeddings.

    Args:
        module: the embedding.
        scale: of its rows.
        norm: of its rows, before the scale; None if it has none.
    """

    def __init__(self, kernels: Kernels, module: Any, scale: float, norm: Norm | None = None):
        self._kernels, self._module, self.scale = kernels, module, scale
        self._kept = KeptTensors()
        self.norm = RowNorm() if norm is None else self._kept.norm(norm)
        self._normed = None if norm is None else LayerSpec(input_norm=self.norm)
        self._is_quantised = isinstance(module, QuantisedEmbedding)
        self._table = module.table.matrix if self._is_quantised else plain_matrix(module.weight.detach())

    @property
    def readable(self) -> Matrix | None:
        """The table, if the kernels can read its rows."""
        none = np.zeros(0, np.int32)
        is_read = self._table is not None and self._kernels.read_rows(self._table, none.ctypes.data, 0, 0)
        return self._table if is_read else None

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
        if self._normed is not None:
            self._kernels.norm_input(self._normed, call)
            workspace.hidden[:] = workspace.normed
        if self.scale != 1.0:
            workspace.hidden[:] *= self.scale


def norm_of_rows(embedding: nn.Module, size: int, body: Any) -> Norm | None:
    """Return what is done to the rows of an embedding: its norm, or the factors and biases that the body has for them.

    Args:
        embedding: of a model.
        size: of its rows.
        body: of the model.
    """
    factors, bias = (getattr(body, name, None) for name in OF_EMBEDDINGS)
    if factors is not None and bias is not None:
        by = factors.detach().double()
        return Norm(body, by.float(), 0.0, NormKind.AFFINE, (bias.detach().double() * by).float())
    norms = [norm for child in embedding.children() if (norm := norm_of(child, size)) is not None]
    return norms[0] if len(norms) == 1 else None
