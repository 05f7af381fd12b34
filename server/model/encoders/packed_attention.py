"""PackedAttention: attention in both directions within each of the sequences of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.kernels.batch_invariant import torch_functions
from server.model.attention.span_attention import attend_span
from server.model.hooks import AttentionOptions


class PackedAttention:
    """Attention of the sequences that share a row. Each is computed alone, so its bits do not depend on the others.

    Args:
        lengths: tokens of each sequence.
    """

    def __init__(self, lengths: Sequence[int]):
        self._lengths = list(lengths)

    @torch_functions()
    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """See ``TrunkHooks.attend``; nothing is kept."""
        del layer
        parts = [torch.split(tensor, self._lengths, 1) for tensor in (query, key, value)]
        outputs = [
            attend_span(queries.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), options.scaling, options.softcap)[
                0
            ][0]
            for queries, keys, values in zip(*parts, strict=True)
        ]
        return torch.cat(outputs, 1).transpose(0, 1)
