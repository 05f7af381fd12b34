"""NativePoolIndexer: what chooses pools of the keys of grouped-query attention, as the native kernels run it."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.mixers import PoolIndexer, RopeKind
from server.model.attention.indexer import (
    POOL_HEADS,
    POOL_PARTS,
    POOL_SIZE,
    TOP_POOLS,
    few_pools,
    find_pool_indexer,
)
from server.model.blocks.capture import SHARE_CHOSEN, LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.index_scores import find_index_rotation
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of, no_matrix
from server.model.blocks.mixer import MixerTrial
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.rotated_rows import rotated, rows_of
from server.model.blocks.workspace import BLOCK

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer


@dataclass(frozen=True)
class PoolIndexerParts:
    """The parts of an indexer that chooses pools of keys."""

    module: Any
    both: Linear  # of queries, and of the key behind them
    query_norm: Norm
    key_norm: Norm  # of means

    @classmethod
    def find(cls, attention: Any) -> Self | None:
        """Return the parts of an attention module's indexer; None if it has none that is known."""
        indexer = find_pool_indexer(attention)
        if indexer is None:
            return None
        both, *others = (getattr(indexer, name) for name in POOL_PARTS)
        norms = [norm_of(each) for each in others]
        if not isinstance(both, LINEARS) or both.bias is not None or norms[0] is None or norms[1] is None:
            return None
        return cls(indexer, both, norms[0], norms[1])

    @property
    def num_heads(self) -> int:
        return int(getattr(self.module, POOL_HEADS))

    @property
    def dim(self) -> int:
        return len(self.key_norm.weight)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.module.parameters()

    def normed(self, rows: torch.Tensor, pool: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries of rows and the means of their pools before rotations.

        Returns:
            ``(heads, tokens, dim)`` and ``(pools, dim)``.
        """
        count = len(rows) // pool
        with torch.inference_mode():
            queries, keys = self.both(rows).split([self.num_heads * self.dim, self.dim], -1)
            means = keys[: count * pool].view(count, pool, -1).float().mean(1).to(keys.dtype)
            queries = self.query_norm.module(queries.reshape(len(rows), self.num_heads, -1))
            return queries.float().transpose(0, 1), self.key_norm.module(means).float()


class NativePoolIndexer:
    """The indexer of a layer.

    Args:
        parts: of the family's module.
    """

    def __init__(self, parts: PoolIndexerParts):
        self.parts, module = parts, parts.module
        self._kept = KeptTensors()
        size = parts.num_heads * parts.dim
        self.spec = PoolIndexer(
            query=matrix_of(parts.both),
            key=no_matrix(),
            query_norm=self._kept.norm(parts.query_norm),
            key_norm=self._kept.norm(parts.key_norm),
            heads=parts.num_heads,
            dim=parts.dim,
            pool=getattr(module, POOL_SIZE),
            top_k=getattr(module, TOP_POOLS),
        )
        if isinstance(parts.both, nn.Linear):  # a step that chooses nothing needs no queries
            weight = parts.both.weight.detach()
            pieces = [plain_matrix(piece) for piece in (weight[:size], weight[size:])]
            if pieces[0] is not None and pieces[1] is not None:
                self.spec.query, self.spec.key = pieces

    @property
    def address(self) -> int:
        return addressof(self.spec)

    @property
    def most_keys(self) -> int:
        """The keys that a token attends to, at most."""
        return int((self.spec.top_k + 1) * self.spec.pool - 1)

    def kept_numbers(self, rotary_dim: int) -> int:
        """Return the numbers of a token in the cache.

        Args:
            rotary_dim: numbers of a head that the attention rotates.
        """
        return int(self.spec.dim) + (0 if self.spec.rope_kind == RopeKind.NONE else rotary_dim)

    def fit(self, mixer: GroupedAttentionMixer, trial: MixerTrial) -> None:
        """Find how keys are rotated by their scores, and compare the kernels' choices with the modules'.

        Args:
            mixer: of the layer.
            trial: of the mixer.

        Raises:
            UnsupportedLayerError: the indexer computes something else.
        """
        choice = self.choice_of(trial.captured)
        pool, count = choice.pool, trial.num_tokens
        wanted = trial.captured.index_scores
        if wanted is None or wanted.shape != (count - pool + 1, count // pool):
            raise UnsupportedLayerError("its indexer chooses by other scores than one of each token and pool")
        tokens, ends = torch.arange(pool - 1, count), torch.arange(1, count // pool + 1) * pool
        seen = ends <= tokens.unsqueeze(1) + 1
        queries, means = self.parts.normed(rows_of(trial), pool)
        starts = means.repeat_interleave(pool, 0)  # so that each has the position of its first token there

        def scores_of(kind: RopeKind) -> torch.Tensor:
            keys = rotated(starts, kind, trial.positions)[::pool]
            return (rotated(queries, kind, trial.positions) @ keys.T).relu().sum(0)[pool - 1 :][seen]

        self.spec.rope_kind = find_index_rotation(trial, self.spec.dim, scores_of, wanted[seen])
        own = mixer.for_choice(count, choice)
        trial.run(own)
        assert own.pools is not None
        scores = wanted.masked_fill(~seen, -torch.inf)
        for token in range((choice.top_k + 1) * pool - 1, count):
            ranked = scores[token - pool + 1, : (token + 1) // pool].sort(descending=True).values
            is_steady = ranked[choice.top_k - 1] - ranked[choice.top_k] > trial.tolerance * ranked.abs().max()
            number = choice.top_k * pool + (token + 1) % pool
            if is_steady and not np.array_equal(own.pools.chosen[token, :number], choice.chosen[token, :number]):
                raise UnsupportedLayerError("its indexer chooses other keys than the kernels do")

    def choice_of(self, captured: LayerCapture) -> PoolChoice:
        """Return what the family's module chose in a capture."""
        return PoolChoice.of(captured, self.parts.module)

    def bind(self, cache: torch.Tensor) -> None:
        """Keep index keys in this memory."""
        self.spec.cache = cache.data_ptr()


@dataclass(frozen=True)
class PoolChoice:
    """The choice of an indexer of pools in a capture, which has fewer and smaller pools."""

    pool: int
    top_k: int
    chosen: np.ndarray[Any, np.dtype[np.int32]]  # (tokens, keys at most), positions in order; then zeros

    @classmethod
    def of(cls, captured: LayerCapture, module: Any) -> Self:
        """Return the choice of a layer's capture.

        Args:
            captured: a call of the layer.
            module: the indexer.

        Raises:
            UnsupportedLayerError: its tokens attend to something else.
        """
        masks = None if captured.options is None else getattr(captured.options.chosen, "masks", None)
        if masks is None or len(masks) != 1 or len(masks[0]) != 1:
            raise UnsupportedLayerError("its attention takes other keys than those that an indexer chose")
        pool, top_k = few_pools(module, max(1, len(captured.given) // SHARE_CHOSEN))
        most = (top_k + 1) * pool - 1
        chosen = np.zeros((len(masks[0][0]), most), dtype=np.int32)
        for row, mask in zip(chosen, masks[0][0], strict=True):
            places = mask.nonzero().flatten().numpy()
            if len(places) > most:
                raise UnsupportedLayerError("its tokens attend to more keys than an indexer chooses")
            row[: len(places)] = places
        return cls(pool, top_k, chosen)


class TrialPoolIndexer:
    """A copy of an indexer with memory of its own, for one sequence.

    Args:
        own: its structure.
        choice: that of a capture, of whose pools it chooses as many.
        is_given: whether tokens attend to what was chosen there.
        rotary_dim: numbers of a head that the attention rotates.
    """

    def __init__(self, own: PoolIndexer, choice: PoolChoice, rotary_dim: int, *, is_given: bool):
        spec = self.spec = PoolIndexer.from_buffer_copy(own)
        spec.pool, spec.top_k, spec.is_given = choice.pool, choice.top_k, int(is_given)
        self.chosen = choice.chosen if is_given else np.full_like(choice.chosen, -1)
        num_rows = -(-len(self.chosen) // BLOCK) * BLOCK
        self._cache = np.zeros((num_rows, spec.dim + rotary_dim), dtype=np.float32)
        spec.chosen, spec.cache = self.chosen.ctypes.data, self._cache.ctypes.data

    @property
    def address(self) -> int:
        return addressof(self.spec)
