"""NativeIndexer: what chooses the keys of latent attention, as the native kernels run it."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.mixers import HeadScales, Indexer, RopeKind
from server.model.attention.indexer import (
    HEAD_SCALES,
    INPUT_NORM,
    LINEARS,
    NORM,
    POOL_BIAS,
    POOL_GATE,
    TOP_K,
    find_indexer,
    pool_of,
)
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.index_scores import find_index_rotation
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.latent_attention.head_scales import HeadScalesParts
from server.model.blocks.linears import LINEARS as LINEAR_LAYERS
from server.model.blocks.linears import Linear, matrix_of
from server.model.blocks.mixer import MixerTrial
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.rotated_rows import rotated
from server.model.blocks.workspace import Positions

if TYPE_CHECKING:
    from server.model.blocks.latent_attention.mixer import LatentAttentionMixer


@dataclass(frozen=True)
class IndexerParts:
    """The parts of an indexer."""

    module: Any
    query: Linear
    key: Linear
    weights: Linear
    key_norm: Norm
    input_norm: Norm | None = None  # of the attention's rows, which queries take then
    head_scales: HeadScalesParts | None = None  # of queries

    @classmethod
    def find(cls, attention: Any) -> Self | None:
        """Return the parts of an attention module's indexer; None if it has none that is known."""
        indexer = find_indexer(attention)
        if indexer is None:
            return None
        linears = [getattr(indexer, name) for name in LINEARS]
        norm = norm_of(getattr(indexer, NORM))
        if norm is None or not all(isinstance(linear, LINEAR_LAYERS) and linear.bias is None for linear in linears):
            return None
        has_inputs = hasattr(indexer, INPUT_NORM)
        input_norm = norm_of(getattr(indexer, INPUT_NORM)) if has_inputs else None
        head_scales = HeadScalesParts.find(indexer)
        if (has_inputs and input_norm is None) or (hasattr(indexer, HEAD_SCALES) and head_scales is None):
            return None
        query, key, weights = linears
        return cls(indexer, query, key, weights, norm, input_norm, head_scales)

    @property
    def linears(self) -> tuple[Linear, Linear, Linear]:
        """Its projections, in the order of an adapter's places."""
        return self.query, self.key, self.weights

    @property
    def pool(self) -> int:
        """The tokens whose keys it takes together; 0 if it scores each key."""
        return pool_of(self.module)

    @property
    def pool_gate(self) -> nn.Parameter:
        gate: nn.Parameter = getattr(self.module, POOL_GATE)
        return gate

    @property
    def pool_bias(self) -> nn.Parameter:
        bias: nn.Parameter = getattr(self.module, POOL_BIAS)
        return bias

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in (*self.linears, self.key_norm.module):
            yield from module.parameters()
        if self.input_norm is not None:
            yield from self.input_norm.module.parameters()
        if self.head_scales is not None:
            yield from self.head_scales.parameters()
        if self.pool:
            yield from (self.pool_gate, self.pool_bias)

    def scores(
        self,
        rows: torch.Tensor,
        query_inputs: torch.Tensor,
        positions: Positions,
        kind: RopeKind,
        *,
        is_last: bool = False,
    ) -> torch.Tensor:
        """Return what each token gives each key, ``(tokens, tokens or pools)``, but for a factor of all.

        Args:
            rows: of the attention, ``(tokens, hidden)``.
            query_inputs: of the attention's queries.
            kind: of the rotary positions.
            is_last: whether the last numbers of queries and keys are rotated instead of the first.
        """
        heads, dim = self.weights.out_features, self.key.out_features
        with torch.inference_mode():
            if self.input_norm is not None:
                query_inputs = self.input_norm.module(rows)
            queries = self.query(query_inputs).float().view(len(rows), heads, dim).transpose(0, 1)
            key = self.key_norm.module(self.key(rows)).float()
            key = self._pooled(key, rows) if self.pool else key
            weight = getattr(self.weights, "weight", rows)  # quantised layers have none, and take any rows
            weights = self.weights(rows.to(weight.dtype)).float()  # (tokens, heads)
        if self.head_scales is not None:
            queries = queries * self.head_scales.at(range(len(rows))).unsqueeze(-1)
        queries, key = (rotated(each, kind, positions, is_last=is_last) for each in (queries, key))
        products = queries @ key.T
        return torch.einsum("th,hts->ts", weights, products.relu())

    def _pooled(self, keys: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the keys of complete pools, ``(pools, dim)``."""
        count = len(keys) // self.pool
        gates, keys = (
            each[: count * self.pool].view(count, self.pool, -1) for each in (F.linear(rows, self.pool_gate), keys)
        )
        return ((gates.float() + self.pool_bias.float()).softmax(1) * keys).sum(1)


class NativeIndexer:
    """The indexer of a layer, or the choice that it takes from the layer before.

    Args:
        parts: None if it takes a choice.
        top_k: keys that a token attends to, without those of its own pool.
        pool: tokens whose keys are taken together; 0 if each key is scored.
    """

    def __init__(self, parts: IndexerParts | None, top_k: int, pool: int):
        self.parts = parts
        self.spec = spec = Indexer(top_k=top_k, pool=pool, chooses=int(parts is not None))
        self._kept = KeptTensors()
        if parts is None:
            return
        spec.query, spec.key, spec.weights = (matrix_of(linear) for linear in parts.linears)
        spec.heads, spec.dim = parts.weights.out_features, parts.key.out_features
        spec.key_norm = self._kept.norm(parts.key_norm)
        if parts.input_norm is not None:
            spec.query_input_norm, spec.takes_hidden = self._kept.norm(parts.input_norm), 1
        if pool:
            gate = plain_matrix(parts.pool_gate)
            if gate is None:
                raise UnsupportedLayerError(f"its indexer has gates of {parts.pool_gate.dtype}")
            spec.pool_gate, spec.pool_bias = gate, self._kept.keep(parts.pool_bias)
        if parts.head_scales is not None:
            scales = parts.head_scales
            spec.head_scales = HeadScales(self._kept.keep(scales.scales), self._kept.keep(scales.offsets))

    @property
    def chooses(self) -> bool:
        return self.parts is not None

    @property
    def address(self) -> int:
        return addressof(self.spec)

    def fit(
        self, mixer: LatentAttentionMixer, trial: MixerTrial, rows: torch.Tensor, query_inputs: torch.Tensor
    ) -> None:
        """Find how keys are rotated by their scores, and compare the kernels' choices with the modules'.

        Args:
            mixer: of the layer.
            trial: of the mixer.
            rows: of the attention.
            query_inputs: of its queries.

        Raises:
            UnsupportedLayerError: the indexer computes something else.
        """
        if self.parts is None:
            return
        wanted = trial.captured.index_scores
        pool = max(1, self.parts.pool)
        if wanted is None or wanted.shape != (trial.num_tokens, trial.num_tokens // pool):
            raise UnsupportedLayerError("its indexer chooses by other scores than one of each token and key")
        tokens, ends = torch.arange(trial.num_tokens), torch.arange(1, wanted.shape[1] + 1) * pool
        seen = ends <= tokens.unsqueeze(1) + 1

        def scores_of(kind: RopeKind, *, is_last: bool = False) -> torch.Tensor:
            assert self.parts is not None
            return self.parts.scores(rows, query_inputs, trial.positions, kind, is_last=is_last)[seen]

        try:
            self.spec.rope_kind = find_index_rotation(trial, self.spec.dim, scores_of, wanted[seen])
        except UnsupportedLayerError:
            if trial.positions.rotary_dim == self.spec.dim:
                raise
            of_last = partial(scores_of, is_last=True)
            self.spec.rope_kind = find_index_rotation(trial, self.spec.dim, of_last, wanted[seen])
            self.spec.rotates_last = 1
        self._check_choices(mixer, trial, wanted.masked_fill(~seen, -torch.inf))

    def _check_choices(self, mixer: LatentAttentionMixer, trial: MixerTrial, scores: torch.Tensor) -> None:
        """Compare the keys that the kernels choose with those of the modules, where rounding does not decide."""
        own = mixer.for_choice(trial.captured, trial.num_tokens)
        trial.run(own)
        wanted, top_k = chosen_of(trial.captured, self.spec.pool)
        pool = max(1, self.spec.pool)
        for token in range(top_k + pool - 1, trial.num_tokens):
            ranked = scores[token, : (token + 1) // pool].sort(descending=True).values
            is_steady = ranked[top_k // pool - 1] - ranked[top_k // pool] > trial.tolerance * ranked.abs().max()
            count = top_k + (token + 1) % pool
            if is_steady and not np.array_equal(own.chosen[token, :count], wanted[token, :count]):
                raise UnsupportedLayerError("its indexer chooses other keys than the kernels do")


def check_choice(parts: IndexerParts | None, captured: LayerCapture, config: Any) -> None:
    """Raise ``UnsupportedLayerError`` if a layer attends to chosen keys, and an indexer chose others.

    Args:
        parts: of the indexer that the layer has; None if it may take a choice of a layer before.
        captured: a call of the layer.
        config: of the attention.
    """
    chosen = None if captured.options is None else captured.options.chosen
    if chosen is None:
        if parts is not None:
            raise UnsupportedLayerError("it has an indexer that chooses no keys")
        return
    owner = config if parts is None else parts.module
    top_k, pool = getattr(owner, TOP_K, None), pool_of(owner)
    most = top_k + max(0, pool - 1) if isinstance(top_k, int) else 0
    if len(chosen) != len(captured.given) or chosen.shape[1] > most:
        raise UnsupportedLayerError("its attention takes other keys than those that an indexer chose")


def indexer_of(parts: IndexerParts | None, config: Any) -> NativeIndexer:
    """Return the indexer of a layer whose tokens attend to chosen keys.

    Args:
        parts: of the indexer that the layer has; None if it takes the choice of a layer before.
        config: of the attention.
    """
    owner = config if parts is None else parts.module
    top_k, pool = int(getattr(owner, TOP_K)), pool_of(owner)
    return NativeIndexer(parts, top_k // pool * pool if pool else top_k, pool)


def chosen_of(captured: LayerCapture, pool: int) -> tuple[np.ndarray[Any, np.dtype[np.int32]], int]:
    """Return the positions of the keys that each token attends to, in order, and how many an indexer chooses.

    The first tokens attend to all that they see, and tokens take those of their own pool besides.
    """
    assert captured.options is not None
    assert captured.options.chosen is not None
    chosen = captured.options.chosen
    positions = torch.where(chosen < 0, len(chosen), chosen).sort(1).values  # those that stand for none are last
    chosen = positions.masked_fill(positions == len(chosen), 0).to(torch.int32)
    top_k = chosen.shape[1]
    if pool:
        top_k = (top_k - pool + 1) // pool * pool
        chosen = chosen[:, : top_k + pool - 1]
    return np.ascontiguousarray(chosen.numpy()), top_k
