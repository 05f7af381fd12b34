"""IndexChoice: the compressed keys that an index chooses, as the family's module does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from server.model.blocks.compressed_attention.short_periods import PERIOD, TOP_K, short_periods
from server.model.blocks.errors import UnsupportedLayerError

if TYPE_CHECKING:
    from server.model.blocks.compressed_attention.parts import CompressedAttentionParts


@dataclass(frozen=True)
class IndexChoice:
    """The choices for each token of one sequence, with the short periods of a trial."""

    chosen: np.ndarray[Any, np.dtype[np.int32]]  # (tokens, k) in order; -1 where a token sees fewer
    scores: torch.Tensor  # float32 (tokens, compressed keys)
    period: int
    top_k: int

    @classmethod
    def of(cls, parts: CompressedAttentionParts, rows: torch.Tensor) -> Self:
        """Run the module that chooses.

        Args:
            parts: of the attention.
            rows: that it got, ``(tokens, hidden)``.
        """
        assert parts.index is not None
        indexer, scores = parts.index.module, list[torch.Tensor]()
        hook = indexer.scorer.register_forward_hook(lambda *call: scores.append(call[-1][0].float()))
        try:
            with short_periods(indexer), torch.inference_mode():
                query_inputs = parts.query_norm.module(parts.query_down(rows))
                positions = torch.arange(len(rows))
                found = indexer(rows[None], query_inputs[None], positions[None], None, parts.module.layer_idx)[0]
                period, top_k = int(getattr(indexer, PERIOD)), int(getattr(indexer, TOP_K))
        finally:
            hook.remove()
        return cls(found.sort(1).values.to(torch.int32).numpy(), scores[-1], period, top_k)

    def check(self, chosen: np.ndarray[Any, np.dtype[np.int32]], tolerance: float) -> None:
        """Raise ``UnsupportedLayerError`` if others were chosen for a token whose scores are not near each other.

        Args:
            chosen: as here.
            tolerance: of scores, relative to a token's largest.
        """
        for token, (own, other) in enumerate(zip(self.chosen, chosen, strict=True)):
            num_seen = (token + 1) // self.period
            if num_seen <= self.top_k:
                continue
            ranked = self.scores[token, :num_seen].sort(descending=True).values
            is_steady = ranked[self.top_k - 1] - ranked[self.top_k] > tolerance * ranked.abs().max()
            if is_steady and not np.array_equal(own, other):
                raise UnsupportedLayerError("its index chooses other compressed keys than the kernels do")
