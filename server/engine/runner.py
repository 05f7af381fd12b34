"""The engine's interface to a model, and the runner of a paged model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from expert_store import ExpertStore, Prefetcher
from server.device import is_gpu
from server.engine.expected_reads import ExpectedReads
from server.kernels.current_device import current_device
from server.model.attention.kv_cache import KVCache
from server.model.prompt_pass import PromptPass
from server.model.recurrent.states import StateCache
from server.model.step import SequenceChunk, StepOutput

if TYPE_CHECKING:
    from server.model.trunk_loader import AnyTrunk


class ModelRunner(Protocol):
    """A model with its KV cache."""

    @property
    def is_sequential(self) -> bool:
        """True if each sequence is a step of its own, because a failed one can't run again."""

    @property
    def is_encoder_decoder(self) -> bool:
        """True if an encoder reads prompts and a decoder answers them, so that prompt tokens have no logits."""

    @property
    def is_encoder(self) -> bool:
        """True if the model reads whole prompts, each in one step, and writes no text."""

    @property
    def reads_images(self) -> bool:
        """True if prompts are images alone."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its labels; none if it does not classify."""

    @property
    def hidden_size(self) -> int:
        """Size of a last hidden state; 0 if the model gives none."""

    @property
    def runs_ahead(self) -> bool:
        """True if it may begin the step after one of decodes before it is asked for."""

    @property
    def can_pass(self) -> bool:
        """True if prompts may run as passes now: there are slots for the experts of two layers and of a step beside."""

    @property
    def pass_token_bytes(self) -> int:
        """Bytes that a pass holds for each of its tokens; 0 if the model runs no passes."""

    def expected_bytes(self, num_tokens: int) -> float:
        """Return the bytes of experts that a step with so many tokens of prompts will probably read."""

    def missing_share(self) -> float:
        """Return the part of the experts' bytes that is not in memory, 0 to 1."""

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        """Run one ragged step."""

    def begin_pass(self, steps: Sequence[Sequence[SequenceChunk]]) -> PromptPass:
        """Begin a pass over steps of prompts, only if ``can_pass``; one at a time."""

    def on_starvation(self, give_back: Callable[[], None]) -> None:
        """Call a function when a step waits while a pass may have all slots of experts; in the thread of the step."""

    def pause(self) -> None:
        """Stop a step that has begun ahead, so that nothing is in use until the next step."""

    def release(self, slot: int) -> None:
        """Free the slot of a sequence that does not continue, after ``pause``."""


class PagedModelRunner:
    """A ``ModelRunner`` over a trunk, its KV cache and its expert store.

    Args:
        prefetcher: asks the store for experts ahead of time.
        states: states of recurrent layers, or caches of sequential models.
        before_step: called before each step with its numbers of tokens and of rows of logits, and before a pass with
            the most of its steps.
        before_pass: called before each pass of prompts.
    """

    def __init__(
        self,
        trunk: AnyTrunk,
        kv_cache: KVCache,
        store: ExpertStore,
        *,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
        before_step: Callable[[int, int], None] | None = None,
        before_pass: Callable[[], None] = lambda: None,
    ):
        self._trunk, self._facts, self._states, self._before_step = trunk, trunk.facts, states, before_step
        self._before_pass = before_pass
        self._gpu = kv_cache.device if is_gpu(kv_cache.device) else None
        self._store, self._expected_reads = store, ExpectedReads(store, trunk.facts.top_k)
        self._begin_pass: Callable[[Sequence[Sequence[SequenceChunk]]], PromptPass] = partial(
            trunk.begin_pass, kv_cache=kv_cache, store=store, prefetcher=prefetcher, states=states
        )
        self._forward: Callable[[Sequence[SequenceChunk]], StepOutput] = partial(
            trunk.forward, kv_cache=kv_cache, store=store, prefetcher=prefetcher, states=states
        )

    @property
    def is_sequential(self) -> bool:
        return self._facts.is_sequential

    @property
    def is_encoder_decoder(self) -> bool:
        return self._facts.is_encoder_decoder

    @property
    def is_encoder(self) -> bool:
        return self._facts.is_encoder

    @property
    def reads_images(self) -> bool:
        return self._facts.reads_images

    @property
    def labels(self) -> tuple[str, ...]:
        return self._facts.labels

    @property
    def hidden_size(self) -> int:
        return self._facts.hidden_size

    @property
    def runs_ahead(self) -> bool:
        return self._trunk.runs_ahead

    @property
    def can_pass(self) -> bool:
        return self._trunk.can_pass(self._store)

    @property
    def pass_token_bytes(self) -> int:
        return self._trunk.pass_token_bytes

    def expected_bytes(self, num_tokens: int) -> float:
        return self._expected_reads(num_tokens)

    def missing_share(self) -> float:
        return self._expected_reads.missing_share()

    def begin_pass(self, steps: Sequence[Sequence[SequenceChunk]]) -> PromptPass:
        self.pause()
        self._before_pass()
        if self._before_step is not None:
            num_tokens = max(sum(chunk.num_tokens for chunk in step) for step in steps)
            self._before_step(num_tokens, max(sum(chunk.num_logits for chunk in step) for step in steps))
        return self._begin_pass(steps)

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        self._trunk.prepare_step(chunks)
        if self._before_step is not None:
            num_tokens = num_logits = 0
            for chunk in chunks:
                num_tokens += len(chunk.token_ids)
                num_logits += chunk.num_logits
            self._before_step(num_tokens, num_logits)
        if self._gpu is None:
            return self._forward(chunks)
        with current_device(self._gpu):
            return self._forward(chunks)

    def on_starvation(self, give_back: Callable[[], None]) -> None:
        self._store.on_starvation(give_back)

    def pause(self) -> None:
        self._trunk.prepare_step(())

    def release(self, slot: int) -> None:
        self.pause()
        if self._states is not None:
            self._states.release(slot)
