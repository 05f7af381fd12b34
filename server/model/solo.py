"""A trunk for what can't run many sequences in one step: one after the other, by transformers' own means.

Attention and cache are those that transformers would take for the model; the routed experts alone come to us. So a
sequence gives what stock transformers gives, whatever its layers keep of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.kernels.expert import ExpertsModule
from server.kernels.pool import ComputePool

from .encdec import stock_model
from .experts import StepExperts
from .gates import find_next_gates
from .kv_cache import KVCache
from .linear import speed_up_linears
from .routing import last_choices
from .seam import running
from .states import StateCache
from .step import ExpertCost, SequenceChunk, StepOutput
from .stock import StockModel, cut
from .stock_cache import Past, StockCaches
from .trunk import ResidentModel, TrunkFacts


class SoloTrunk(ResidentModel):
    """A model that runs one sequence after the other; its face to the engine is that of ``Trunk``.

    In deterministic steps prompts go token by token, so that no bit depends on how they were cut.

    Args:
        model: with the attention that transformers would take.
        reason: why it can't run many sequences in one step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        reason: str,
        is_deterministic: bool = False,
        pool: ComputePool | None = None,
        max_model_len: int | None = None,
    ):
        super().__init__(model, catalog, layers, is_deterministic, pool, max_model_len)
        self._stock = stock_model(model)
        if not is_deterministic:  # what threads share out may be added in another order
            speed_up_linears(model, self._pool)
        sizes = int(self.config.vocab_size), self.max_model_len
        seen = self._stock.look(*sizes)
        self._steps_singly = isinstance(self._stock, StockModel) and self._stock.goes_on_singly(*sizes)
        self.vocab_size = seen.vocab_size  # of the logits; some models pad their table of embeddings
        text_layers = tuple(layer for module, layer in layers.items() if module in seen.writing)
        self.facts = TrunkFacts(
            seen.kv_groups,
            seen.top_k,
            seen.states,
            text_layers,
            reason,
            self._stock.reads_whole,
            self._stock.hidden_size,
        )
        self.gates = find_next_gates(model, layers, seen.routed)

    def new_states(self, num_slots: int) -> StockCaches:
        """Room for the caches of running sequences; each is made when its sequence begins."""
        del num_slots
        return StockCaches()

    @torch.inference_mode()
    def forward(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> StepOutput:
        """Run some tokens of each sequence, one sequence after the other.

        If it fails, the sequences before the failing one have gone on, and the failing one can't any more. Who needs to
        know which one it was gives one chunk at a time.

        Args:
            kv_cache: is not used.
            states: what ``new_states`` gave; whole sequences need none.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
            LostCacheError: a chunk goes on from tokens that are not in its sequence's cache.
        """
        del kv_cache
        caches = states if isinstance(states, StockCaches) else self.new_states(len(chunks))
        outputs = []
        for chunk in chunks:
            past = caches.take(chunk)
            is_prompt = self.facts.reads_whole and chunk.num_cached < chunk.num_prompt
            phase: Phase = "prefill" if is_prompt or chunk.num_tokens > 1 else "decode"
            pieces = [self._run(piece, past, store, phase, prefetcher) for piece in self._pieces(chunk)]
            whole = _join(pieces)
            outputs.append(replace(whole, costs=[whole.experts], chosen=pieces[-1].chosen))
            caches.give_back(chunk, past)
        return _join(outputs)

    def _pieces(self, chunk: SequenceChunk) -> list[SequenceChunk]:
        if self._is_deterministic or (self._steps_singly and chunk.num_cached > 0):
            return cut(chunk, range(1, chunk.num_tokens))
        end = chunk.num_prompt - chunk.num_cached  # of the prompt, if what follows is there already
        return cut(chunk, [end] if 0 < end < chunk.num_tokens else [])

    def _run(
        self, chunk: SequenceChunk, past: Past, store: ExpertStore, phase: Phase, prefetcher: Prefetcher | None
    ) -> StepOutput:
        started = time.perf_counter()
        if phase == "prefill" or chunk.shows_images:
            prefetcher = None
        experts = StepExperts(store, self._layers, phase, prefetcher)
        if prefetcher is not None:
            prefetcher.begin_step()
        with running(_StockStep(experts)):
            logits = self._stock.logits(chunk, past)
        if prefetcher is not None:
            prefetcher.end_step(time.perf_counter() - started)
        chosen = last_choices(experts.runs, self.facts.text_layers) if chunk.wants_experts else None
        return StepOutput(
            logits, experts.routing, experts.cost, [experts.cost], [chosen], self._stock.hidden, experts.stalls
        )


class _StockStep:
    """A step whose experts come from the store; attention does not come to us."""

    def __init__(self, experts: StepExperts):
        self.run_experts = experts.run


def _join(outputs: Sequence[StepOutput]) -> StepOutput:
    cost = ExpertCost()
    for output in outputs:
        cost.add(output.experts)
    layers = dict.fromkeys(layer for output in outputs for layer in output.routing)
    routing = {
        layer: np.concatenate([output.routing[layer] for output in outputs if layer in output.routing])
        for layer in layers
    }
    costs = [each for output in outputs for each in output.costs]
    chosen = [each for output in outputs for each in output.chosen]
    hidden = [output.hidden for output in outputs if output.hidden is not None and len(output.hidden)]
    return StepOutput(
        torch.cat([output.logits for output in outputs]),
        routing,
        cost,
        costs,
        chosen,
        torch.cat(hidden) if hidden else None,
        [stall for output in outputs for stall in output.stalls],
    )
