"""SequentialTrunk: a trunk for models that can't run many sequences in one step.

Sequences run one after the other, with the attention and the cache that transformers chooses for the model; only the
routed experts call our hooks. So a sequence gives what transformers gives, whatever its layers keep of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.adapters.step_adapters import SequenceAdapters
from server.model.attention.kv_cache import KVCache
from server.model.chunk_weights import ChosenAdapters
from server.model.experts.cost_attribution import RowOwners, last_choices
from server.model.experts.next_layer_gate import find_next_layer_gates, find_routers
from server.model.experts.router import changeable
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_variants import StepVariants, has_variants
from server.model.experts.strategies.leased import LeasedExperts
from server.model.experts.switch_capacity import SwitchDrops
from server.model.hooks import use_hooks
from server.model.lora.linear_hooks import add_to_linears, find_linears, watch_linears
from server.model.lora.router_hooks import find_routers_with_products, routed_by_weights, watch_routers
from server.model.modules.linear import speed_up_linears
from server.model.program import ModelProgram, Target
from server.model.recurrent.states import StateCache
from server.model.sequential.decoder_only import DecoderOnly
from server.model.sequential.sequential_model import sequential_model
from server.model.sequential.transformers_cache import TransformersCache, TransformersCaches
from server.model.step import ExpertCost, SequenceChunk, StepOutput
from server.model.trunk.base_trunk import BaseTrunk, TrunkFacts


class SequentialTrunk(BaseTrunk):
    """A model that runs one sequence after the other, with the interface of ``Trunk``.

    In deterministic steps prompts run token by token, so that their bits do not depend on their chunks.

    Args:
        model: with the attention that transformers chooses.
        reason: why it can't run many sequences in one step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        *,
        reason: str,
        is_deterministic: bool = False,
        pool: ComputePool | None = None,
        max_model_len: int | None = None,
    ):
        super().__init__(
            model, catalog, layers, is_deterministic=is_deterministic, pool=pool, max_model_len=max_model_len
        )
        self._sequential = sequential_model(model)
        if not is_deterministic:  # products on several threads may be summed in another order
            speed_up_linears(model, self._pool)
        sizes = int(self.config.vocab_size), self.max_model_len
        with watch_linears(model) as calls, watch_routers(model) as router_calls:
            seen = self._sequential.probe(*sizes)
        self._linears = find_linears(model, calls, None)
        self._drops = SwitchDrops(model)
        self._resumes_by_token = isinstance(self._sequential, DecoderOnly) and self._sequential.resumes_by_token(*sizes)
        self.vocab_size = seen.vocab_size  # size of the logits; some models pad their table of embeddings
        text_layers = tuple(layer for module, layer in layers.items() if module in seen.writing)
        self.facts = TrunkFacts(
            seen.kv_groups,
            seen.top_k,
            seen.states,
            text_layers,
            ModelProgram.uniform(model, Target.TRANSFORMERS, reason),
            self._sequential.is_encoder_decoder,
            hidden_size=self._sequential.hidden_size,
        )
        routers = find_routers(model, layers, seen.routed)
        self.routers = changeable(routers)
        self._router_layers = find_routers_with_products(model, self.routers, router_calls, None)
        self.gates = find_next_layer_gates(routers, layers, seen.routed)

    def new_states(self, num_slots: int, num_snapshots: int = 0) -> TransformersCaches:
        """Return a place for the caches of running sequences; each is made when its sequence begins."""
        del num_slots, num_snapshots
        return TransformersCaches()

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

        If it fails, the sequences before the failing one have advanced, and the failing one can't continue. A caller
        that needs to know which one failed passes one chunk at a time.

        Args:
            kv_cache: is not used.
            states: the result of ``new_states``; complete sequences need none.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
            LostCacheError: the tokens before a chunk are not in its sequence's cache.
        """
        del kv_cache
        caches = states if isinstance(states, TransformersCaches) else self.new_states(len(chunks))
        outputs = []
        for chunk in chunks:
            cache = caches.pop(chunk)
            is_prompt = self.facts.is_encoder_decoder and chunk.num_cached < chunk.num_prompt
            phase: Phase = "prefill" if is_prompt or chunk.num_tokens > 1 else "decode"
            pieces = [self._run(piece, cache, store, phase, prefetcher) for piece in self._split(chunk)]
            output = _join(pieces)
            routed = _sum_routed(pieces)
            outputs.append(replace(output, costs=[output.experts], chosen=pieces[-1].chosen, routed=[routed]))
            caches.put(chunk, cache)
        return _join(outputs)

    def _split(self, chunk: SequenceChunk) -> list[SequenceChunk]:
        """Split a chunk into pieces that the model runs right: single tokens, or prompt and answer."""
        if self._is_deterministic or (self._resumes_by_token and chunk.num_cached > 0):
            return chunk.split(range(1, chunk.num_tokens))
        end = chunk.num_prompt - chunk.num_cached  # end of the prompt, inside the chunk if some of the answer follows
        return chunk.split([end] if 0 < end < chunk.num_tokens else [])

    def _run(
        self,
        chunk: SequenceChunk,
        cache: TransformersCache,
        store: ExpertStore,
        phase: Phase,
        prefetcher: Prefetcher | None,
    ) -> StepOutput:
        ahead = None
        if phase == "prefill" or chunk.shows_images:
            ahead, prefetcher = None if prefetcher is None else prefetcher.for_prompts, None
        started = time.perf_counter()
        if prefetcher is not None:
            prefetcher.begin_step()
        adapters = SequenceAdapters.of([chunk])
        variants = StepVariants(self._places, [chunk], RowOwners([chunk]).owners) if has_variants([chunk]) else None
        experts = StepExperts(
            store, self._layers, phase, prefetcher, stream=ahead, variants=variants, adapters=adapters
        )
        self._drops.take()
        with (
            use_hooks(_StepHooks(experts)),
            nullcontext() if adapters is None else add_to_linears(adapters, self._linears),
            routed_by_weights(self._model, self.routers, self._router_layers, variants, adapters),
        ):
            logits = self._sequential.logits(chunk, cache)
        if prefetcher is not None:
            prefetcher.end_step(time.perf_counter() - started)
        record = experts.record
        record.cost.num_dropped = self._drops.take()
        chosen = last_choices(record.runs, self.facts.text_layers) if chunk.wants_experts else None
        return StepOutput(
            logits,
            record.routing,
            record.cost,
            [record.cost],
            [chosen],
            self._sequential.hidden,
            record.stalls,
            [None if adapters is None else adapters.routed(chunk)],
        )


class _StepHooks:
    """The hooks of a step: experts from the store. Attention is transformers' own."""

    def __init__(self, experts: StepExperts):
        self.run_experts = LeasedExperts(experts).run


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
        [each for output in outputs for each in output.routed],
    )


def _sum_routed(pieces: Sequence[StepOutput]) -> ChosenAdapters | None:
    """Return what a router of adapters chose for the pieces of one chunk; None without a router."""
    total: ChosenAdapters | None = None
    for piece in pieces:
        for each in piece.routed:
            total = each if total is None or each is None else total + each
    return total
