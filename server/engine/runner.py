"""What the engine asks of a model; a fake one makes its tests instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from expert_store import ExpertStore, Prefetcher
from server.model.kv_cache import KVCache
from server.model.states import StateCache
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk import Trunk


class ModelRunner(Protocol):
    """A model with its KV cache."""

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        """One ragged step; see ``StepOutput``."""


class PagedModelRunner:
    """A trunk with its cache, its store of experts, and what asks the store for experts ahead of time."""

    def __init__(
        self,
        trunk: Trunk,
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ):
        self._trunk, self._kv_cache, self._states = trunk, kv_cache, states
        self._store, self._prefetcher = store, prefetcher

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        return self._trunk.forward(chunks, self._kv_cache, self._store, self._prefetcher, self._states)
