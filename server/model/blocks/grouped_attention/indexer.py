"""NativeKeyBlockIndexer: what chooses blocks of the keys of grouped-query attention, as the native kernels run it."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from server.kernels.native.structures.mixers import KeyBlockIndexer, RopeKind
from server.model.attention.indexer import BLOCK_PARTS, BLOCK_SIZE, LOCAL_BLOCKS, TOP_BLOCKS, find_key_block_indexer
from server.model.blocks.capture import SHARE_CHOSEN
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.index_scores import find_index_rotation
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of
from server.model.blocks.mixer import MixerTrial
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.rotated_rows import rotated, rows_of
from server.model.blocks.workspace import BLOCK

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer


@dataclass(frozen=True)
class KeyBlockIndexerParts:
    """The parts of an indexer that chooses blocks of keys."""

    module: Any
    query: Linear
    key: Linear
    query_norm: Norm
    key_norm: Norm

    @classmethod
    def find(cls, attention: Any) -> Self | None:
        """Return the parts of an attention module's indexer; None if it has none that is known."""
        indexer = find_key_block_indexer(attention)
        if indexer is None:
            return None
        query, key, *others = (getattr(indexer, name) for name in BLOCK_PARTS)
        norms = [norm_of(each) for each in others]
        are_known = all(isinstance(each, LINEARS) and each.bias is None for each in (query, key))
        if not are_known or norms[0] is None or norms[1] is None:
            return None
        return cls(indexer, query, key, norms[0], norms[1])

    @property
    def linears(self) -> tuple[Linear, Linear]:
        """Its projections, in the order of an adapter's places."""
        return self.query, self.key

    @property
    def num_heads(self) -> int:
        return int(self.query.out_features // self.key.out_features)

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in (*self.linears, self.query_norm.module, self.key_norm.module):
            yield from module.parameters()

    def normed(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries and the keys of rows before rotations, ``(heads, tokens, dim)`` and ``(tokens, dim)``."""
        with torch.inference_mode():
            queries = self.query(rows).view(len(rows), self.num_heads, -1)
            return (
                self.query_norm.module(queries).float().transpose(0, 1),
                self.key_norm.module(self.key(rows)).float(),
            )


class NativeKeyBlockIndexer:
    """The indexer of a layer.

    Args:
        parts: of the family's module.
    """

    def __init__(self, parts: KeyBlockIndexerParts):
        self.parts, module = parts, parts.module
        self._kept = KeptTensors()
        self.spec = KeyBlockIndexer(
            query=matrix_of(parts.query),
            key=matrix_of(parts.key),
            query_norm=self._kept.norm(parts.query_norm),
            key_norm=self._kept.norm(parts.key_norm),
            heads=parts.num_heads,
            dim=parts.key.out_features,
            block_size=getattr(module, BLOCK_SIZE),
            top_k=getattr(module, TOP_BLOCKS),
            num_local=getattr(module, LOCAL_BLOCKS),
        )

    @property
    def address(self) -> int:
        return addressof(self.spec)

    def fit(self, mixer: GroupedAttentionMixer, trial: MixerTrial) -> None:
        """Find how keys are rotated by their scores, and compare the kernels' choices with the modules' scores.

        Args:
            mixer: of the layer.
            trial: of the mixer.

        Raises:
            UnsupportedLayerError: the indexer computes something else.
        """
        count, heads = trial.num_tokens, self.spec.heads
        wanted = trial.captured.index_scores
        if wanted is None or wanted.shape != (heads * count, count):
            raise UnsupportedLayerError("its indexer chooses by other scores than one of each head, token and key")
        wanted = wanted.view(heads, count, count)
        scored = torch.ones((count, count), dtype=torch.bool).tril(-self.spec.num_local).expand_as(wanted)
        queries, keys = self.parts.normed(rows_of(trial))

        def scores_of(kind: RopeKind) -> torch.Tensor:
            return (rotated(queries, kind, trial.positions) @ rotated(keys, kind, trial.positions).T)[scored]

        self.spec.rope_kind = find_index_rotation(trial, self.spec.dim, scores_of, wanted[scored])
        self._check_choices(mixer, trial, wanted)

    def bind(self, cache: torch.Tensor) -> None:
        """Keep index keys in this memory."""
        self.spec.cache = cache.data_ptr()

    def for_trial(self, num_tokens: int, top_k: int | None = None) -> TrialKeyBlockIndexer:
        """Return a copy for one sequence whose tokens attend to all keys, and which may choose single keys."""
        return TrialKeyBlockIndexer(self.spec, num_tokens, top_k)

    def _check_choices(self, mixer: GroupedAttentionMixer, trial: MixerTrial, scores: torch.Tensor) -> None:
        """Compare the keys that the kernels choose with those of the highest scores, where rounding does not decide."""
        top_k = max(1, trial.num_tokens // SHARE_CHOSEN)
        own = mixer.for_choice(trial.num_tokens, top_k)
        trial.run(own)
        assert own.indexer is not None
        for token in range(top_k, trial.num_tokens):
            ranked = scores[:, token, : token + 1].sort(1, descending=True)
            margins = ranked.values[:, top_k - 1] - ranked.values[:, top_k]
            finite = ranked.values.where(ranked.values.isfinite(), 0.0)
            for head in (margins > trial.tolerance * finite.abs().amax(1)).nonzero().flatten().tolist():
                wanted = ranked.indices[head, :top_k].sort().values.numpy()
                if not np.array_equal(own.indexer.chosen[token, head], wanted):
                    raise UnsupportedLayerError("its indexer chooses other keys than the kernels do")


class TrialKeyBlockIndexer:
    """A copy of an indexer with memory of its own, for one sequence.

    Args:
        own: its structure.
        num_tokens: of the sequence.
        top_k: keys that it chooses for each token and head; None for as many blocks as ``own``.
    """

    def __init__(self, own: KeyBlockIndexer, num_tokens: int, top_k: int | None):
        spec = self.spec = KeyBlockIndexer.from_buffer_copy(own)
        if top_k is not None:
            spec.block_size, spec.top_k = 1, top_k
        self.chosen = np.full((num_tokens, spec.heads, spec.top_k), -1, dtype=np.int32)
        self._cache = np.zeros((-(-num_tokens // BLOCK) * BLOCK, spec.dim), dtype=np.float32)
        spec.chosen, spec.cache = self.chosen.ctypes.data, self._cache.ctypes.data

    @property
    def address(self) -> int:
        return addressof(self.spec)
