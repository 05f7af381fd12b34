"""Projections of a step's tokens that one launch of a block's kernel prepares for attention, on a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from server.kernels.triton.decode_attention import PagedKeys


class ProjectedHeads(Protocol):
    """Queries, keys and values of grouped attention."""

    def prepare(
        self, slots: torch.Tensor, cache: PagedKeys, *, keeps_keys: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write the tokens' keys and values to the cache; return queries, keys, values, ``(heads, tokens, dim)`` each.

        Args:
            slots: of the tokens, int32.
            keeps_keys: False if keys and values are not to be returned; what is returned then is not set.
        """
        ...


class ProjectedLatents(Protocol):
    """Queries and latents of latent attention."""

    def prepare(
        self, slots: torch.Tensor, cache: PagedKeys, to_keys: torch.Tensor | None, *, keeps_rows: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens' rows to the cache; return queries and rows, ``(heads or 1, tokens, rank + rope_dim)``.

        Args:
            slots: of the tokens, int32.
            to_keys: ``(heads, nope_dim, rank)`` absorbs the expansion of latents into queries; None leaves their first
                part unset.
            keeps_rows: False if the rows are not to be returned; what is returned then is not set.
        """
        ...
