"""What the engine asks of a model; a fake one makes its tests instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from expert_store import ExpertStore, Prefetcher
from server.model.kv_cache import KVCache
from server.model.solo import SoloTrunk
from server.model.states import StateCache
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk import Trunk


class ModelRunner(Protocol):
    """A model with its KV cache."""

    @property
    def is_solo(self) -> bool:
        """Whether sequences are computed one after the other, and none can be tried again, so that each is a step."""

    @property
    def reads_whole(self) -> bool:
        """Whether prompts are answered by an encoder and a decoder, and have no logits of their own."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a last hidden state; 0 if the model gives none."""

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        """One ragged step; see ``StepOutput``."""

    def release(self, slot: int) -> None:
        """The sequence that had a slot does not go on; another may get the slot."""


class PagedModelRunner:
    """A trunk with its cache, its store of experts, and what asks the store for experts ahead of time.

    Args:
        before_step: is told of the tokens of each step, and of the rows of logits that it gives.
    """

    def __init__(
        self,
        trunk: Trunk | SoloTrunk,
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
        before_step: Callable[[int, int], None] | None = None,
    ):
        self._trunk, self._kv_cache, self._states = trunk, kv_cache, states
        self._store, self._prefetcher, self._before_step = store, prefetcher, before_step

    @property
    def is_solo(self) -> bool:
        return self._trunk.facts.is_solo

    @property
    def reads_whole(self) -> bool:
        return self._trunk.facts.reads_whole

    @property
    def hidden_size(self) -> int:
        return self._trunk.facts.hidden_size

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        if self._before_step is not None:
            self._before_step(sum(chunk.num_tokens for chunk in chunks), sum(chunk.num_logits for chunk in chunks))
        return self._trunk.forward(chunks, self._kv_cache, self._store, self._prefetcher, self._states)

    def release(self, slot: int) -> None:
        if self._states is not None:
            self._states.release(slot)
