"""LeanModel: steps of a model whose decoder layers are all run by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expert_store import StepLease
from server.kernels.native.library import Kernels
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures import HeadCall, LayerSpec
from server.model.experts import StepExperts
from server.model.kv_cache import KVCache
from server.model.step import SequenceChunk

from .spec import LeanLayer
from .workspace import BLOCK, Positions, Workspace


class LeanModel:
    """Runs steps; what a token gives does not depend on what else is in its step.

    Keys lie in the cache in an order of their own (``src/attention.h``), so a cache is for this class alone.

    Args:
        layers: in their order.
        workspace, positions: what steps need.
        embedding: ``(vocabulary, hidden)``, multiplied by ``embedding_scale``.
        head: all but what is a step's own.
        keeps: tensors that the head refers to.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LeanLayer],
        workspace: Workspace,
        positions: Positions,
        embedding: torch.Tensor,
        embedding_scale: float,
        head: HeadCall,
        keeps: Sequence[torch.Tensor],
    ):
        self._kernels, self._layers, self._workspace, self._positions = kernels, layers, workspace, positions
        self._embedding, self._embedding_scale, self._head, self._keeps = embedding, embedding_scale, head, keeps
        self._specs = (LayerSpec * len(layers))(*(layer.spec for layer in layers))
        self._routed = [layer.experts for layer in layers if layer.experts is not None]
        self._numbers = [layer.number for layer in self._routed]
        self._top_ks = [layer.spec.router.top_k for layer in layers if layer.experts is not None]
        self._cache: KVCache | None = None

    def run(
        self,
        chunks: Sequence[SequenceChunk],
        token_ids: Sequence[int],
        kv_cache: KVCache,
        experts: StepExperts,
        rows: Sequence[int],
        hidden_rows: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step.

        Args:
            token_ids: of all chunks.
            rows: tokens that want logits.
            hidden_rows: tokens that want their last states.

        Returns:
            Logits of some tokens, float32 ``(rows, vocabulary)``, and normed last states of some, float32
            ``(hidden_rows, hidden)``.
        """
        self._bind(kv_cache)
        workspace = self._workspace
        workspace.begin(chunks, len(kv_cache.groups))
        self._embed(token_ids)
        self._positions.place(workspace.call, max(chunk.num_cached + chunk.num_tokens for chunk in chunks) - 1)
        lease = experts.hold_residents()
        if lease is None:
            self._run_by_layers(experts)
        else:
            with lease:
                self._run_at_once(experts, lease)
        return self._finish(rows, hidden_rows)

    def _run_at_once(self, experts: StepExperts, lease: StepLease) -> None:
        """All layers in one call, for all experts are where the lease says."""
        workspace = self._workspace
        slots = lease.addresses
        if lease.layers != self._numbers:
            slots = slots[[lease.layers.index(number) for number in self._numbers]]
        counts = np.zeros(slots.shape, dtype=np.int64)
        call = workspace.call
        call.slots, call.counts, call.most_experts = slots.ctypes.data, counts.ctypes.data, slots.shape[1]
        self._kernels.layers(self._specs, call)
        experts.note_residents(self._routed, workspace.all_chosen(self._top_ks), counts, lease)

    def _run_by_layers(self, experts: StepExperts) -> None:
        """Layer by layer, each with a lease of its own experts."""
        workspace, kernels, place = self._workspace, self._kernels, 0
        for layer, spec in zip(self._layers, self._specs, strict=True):
            kernels.attention(spec, workspace.call, place)
            outputs = 0
            if layer.experts is not None:
                chosen, weights = (of(place, spec.router.top_k) for of in (workspace.chosen, workspace.weights))
                hidden_states, router_weights = torch.from_numpy(workspace.normed), torch.from_numpy(weights)
                outputs = experts.compute(
                    layer.experts,
                    hidden_states,
                    chosen.astype(np.int64),
                    router_weights,
                    is_exact=bool(workspace.call.is_exact),
                )
            kernels.finish_layer(spec, workspace.call, place, outputs)
            place += layer.experts is not None

    def _embed(self, token_ids: Sequence[int]) -> None:
        embedded = torch.from_numpy(self._workspace.hidden)
        embedded.copy_(self._embedding[torch.tensor(token_ids)])
        if self._embedding_scale != 1.0:
            embedded.mul_(self._embedding_scale)

    def _finish(self, rows: Sequence[int], hidden_rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        call, size = self._head, self._workspace.call.hidden_size
        places = {row: place for place, row in enumerate(dict.fromkeys([*rows, *hidden_rows]))}
        wanted = np.array(list(places), dtype=np.int32)
        logits = np.empty((len(rows), call.matrix.outputs), dtype=np.float32)
        normed = np.empty((len(wanted), size), dtype=np.float32)
        call.hidden, call.rows = self._workspace.call.hidden, wanted.ctypes.data
        call.normed, call.logits, call.num_rows, call.num_logits = (
            normed.ctypes.data,
            logits.ctypes.data,
            len(wanted),
            len(rows),
        )
        self._kernels.head(call)
        return torch.from_numpy(logits), torch.from_numpy(normed[[places[row] for row in hidden_rows]])

    def _bind(self, kv_cache: KVCache) -> None:
        """Tell the layers where their keys and values are."""
        if self._cache is kv_cache:
            return
        if kv_cache.block_size != BLOCK:
            raise ValueError(f"blocks of {kv_cache.block_size} tokens; the native kernels take {BLOCK}")
        for layer, spec in zip(self._layers, self._specs, strict=True):
            cache = kv_cache.layers[layer.attention_layer]
            spec.key_cache, spec.value_cache = cache.keys.data_ptr(), cache.values.data_ptr()
            spec.cache_slots, spec.cache_dim = cache.keys.shape[2], cache.shape.dim
            spec.cache_format = PLAIN[cache.shape.dtype]
            spec.group = kv_cache.group_of[layer.attention_layer]
        self._cache = kv_cache
