"""A table of embeddings that stays quantised: looking up tokens dequantises their rows alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from server.model.quantised.linear import LinearFormat, QuantisedLinear, QuantisedMatrix


class QuantisedEmbedding(nn.Embedding):
    """The class of such an embedding; methods of its own class, such as one that scales rows, come before these."""

    _tables: tuple[QuantisedMatrix, ...]  # the one table, in a tuple: if the head's, it is registered there alone
    _dtype: torch.dtype

    @property
    def table(self) -> QuantisedMatrix:
        """The matrix ``(vocabulary, hidden)``."""
        return self._tables[0]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """NaN in the table's shape, which take no memory, since models ask for its dtype and device alone."""
        device = next(self.table.buffers()).device
        numbers: Any = torch.full((), torch.nan, dtype=self._dtype, device=device)
        shown = numbers.expand(self.num_embeddings, self.embedding_dim)
        shown._is_hf_initialized = True  # noqa: SLF001  keeps transformers from initialising it
        return shown  # type: ignore[no-any-return]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """Return the rows of tokens in the dtype of the model."""
        return self.table.rows_at(input.flatten()).to(self._dtype).view(*input.shape, self.embedding_dim)


def quantise_embedding(module: nn.Embedding, matrix_format: LinearFormat, head: Any = None) -> QuantisedMatrix:
    """Make an embedding a ``QuantisedEmbedding``, and return its table, which is to be filled.

    Args:
        module: on the meta device.
        head: the linear layer that has the same weights, if there is one; it is replaced by the table.
    """
    dtype, own = module.weight.dtype, type(module)
    table: QuantisedMatrix
    if head is None:
        table = QuantisedMatrix(module.num_embeddings, module.embedding_dim, matrix_format, dtype)
    else:
        table = QuantisedLinear(head, matrix_format)
    del module.weight
    parents = (QuantisedEmbedding,) if own is nn.Embedding else (own, QuantisedEmbedding)
    embedding: Any = module
    embedding.__class__ = type(f"Quantised{own.__name__}", parents, {})
    embedding._dtype, embedding._tables = dtype, (table,)  # noqa: SLF001
    embedding.own_table = table if head is None else None
    return table


def embedded_rows(module: Any, places: torch.Tensor) -> torch.Tensor:
    """Return rows of an embedding's table in float32."""
    if isinstance(module, QuantisedEmbedding):
        return module.table.rows_at(places)
    found: torch.Tensor = module.weight[places]
    return found.float()
