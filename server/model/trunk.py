"""The trunk: a transformers model without its routed experts, which the expert store holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.device import is_gpu
from server.kernels.backend import ResidentBackend
from server.kernels.batch_invariant import batch_invariant
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.adapters.step_adapters import StepAdapters
from server.model.architecture import head_of, set_implementations
from server.model.attention.by_sequence.modules import SequenceStepStates
from server.model.attention.invariant_attention import InvariantAttention
from server.model.attention.key_choice import INDEXED, hook_indexers
from server.model.attention.kv_cache import KVCache
from server.model.attention.mla import LatentAttention, attend_latents, replace_projections, resolve_projections
from server.model.attention.paged_attention import StepAttention
from server.model.coded_linears import CodedLinears
from server.model.errors import ModelError, NotBatchableError
from server.model.experts.cost_attribution import RowOwners, attribute_costs, last_choices_of_chunks
from server.model.experts.hits_first import ChoiceReader
from server.model.experts.host_compute import HostCompute, MissCompute, MissPlacement
from server.model.experts.next_layer_gate import find_next_layer_gates, find_routers
from server.model.experts.router import changeable
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_record import StepRouting
from server.model.experts.step_variants import StepVariants, has_variants
from server.model.experts.waitless_experts import SlotTables
from server.model.first_pass import FirstPass
from server.model.forward import Forward
from server.model.fused_heads import fuse_heads
from server.model.fused_latents import fuse_latents
from server.model.fused_mixers import fuse_mixers
from server.model.fused_mlps import fuse_mlps
from server.model.fused_normed_routers import fuse_normed_routers
from server.model.fused_norms import fuse_norms
from server.model.fused_residuals import fuse_residuals
from server.model.fused_routers import fuse_routers
from server.model.hooks import INDEXED_IMPLEMENTATION, use_hooks
from server.model.linear import speed_up_linears
from server.model.lora.linear_hooks import add_to_linears, find_linears, sizes_of
from server.model.lora.router_hooks import find_routers_with_products, routed_by_weights
from server.model.lora_adapter import LoraAdapter
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.find_program import find_program
from server.model.native_layers.model import NativeModel, NativeResult
from server.model.recurrent.recurrent_modules import recurrent_batches
from server.model.recurrent.states import StateCache, StepStates
from server.model.resident_model import ResidentModel, TrunkFacts
from server.model.step import HostLogits, SequenceChunk, StepOutput, StepTokens, positions_of
from server.model.step_graphs import StepGraphs
from server.model.transformers_hooks.batching_checks import INVARIANT, MAY_BE_NATIVE, find_special_layers

NOTHING = nullcontext()


class Trunk(ResidentModel):
    """A model that runs many sequences in one step, with batch-invariant arithmetic if it is deterministic.

    A step runs either through native kernels (``NativeModel``) or through the modules of transformers, whose attention
    and experts call the hooks of the step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        is_deterministic: bool = False,
        *,
        pool: ComputePool | None = None,
        max_model_len: int | None = None,
    ):
        super().__init__(
            model, catalog, layers, is_deterministic=is_deterministic, pool=pool, max_model_len=max_model_len
        )
        self._forward = Forward(model)
        special = find_special_layers(model)
        coded = CodedLinears(model, self._pool.kernels if special in (None, *MAY_BE_NATIVE) else None)
        self._is_by_sequence = special is not None
        if special is None:
            replace_projections(model)
            hook_indexers(model)
        first = FirstPass(
            model, self._forward, min(self.max_model_len, self.vocab_size), is_by_sequence=self._is_by_sequence
        )
        probe, self._recurrent = first.probe, first.recurrent
        self._native, program = find_program(
            model,
            self._forward,
            self._layers,
            tokens=first.tokens,
            kernels=self._pool.kernels,
            longest=self.max_model_len,
            recurrent=self._recurrent,
            special=special,
            coded=coded,
        )
        if probe.indexed and not program.is_native:
            if is_deterministic or probe.indexed.keys() - probe.choosing:
                raise NotBatchableError(f"{type(model).__name__} has {INDEXED}, and {program.reason or 'modules'}")
            set_implementations(model.config, INDEXED_IMPLEMENTATION)
        if is_deterministic and not program.is_native:
            if special is not None:
                raise NotBatchableError(f"{program.reason}, and {INVARIANT}")
            first.check_invariance()
        if special is None and not is_deterministic and not probe.choosing:
            fuse_heads(model, self._pool.triton_device, first.run_isolated, self._recurrent)
            fuse_latents(model, self._pool.triton_device, first.run_isolated, self._recurrent)
            fuse_mixers(first.recurrent_calls, self._pool.triton_device, first.states)
        resolve_projections(model, probe.latent_layers, () if self._native is None else self._native.replaced)
        linears = find_linears(model, first.linear_calls, len(first.tokens))
        self._linears = self._outside_of_native(linears)
        speed_up_linears(model, self._pool)
        if not is_deterministic:
            fuse_routers(model, self._pool.triton_device)
            fuse_normed_routers(model, self._pool.triton_device)
        fuse_norms(model, self._pool.triton_device)
        fuse_residuals(model, self._pool.triton_device)
        if not is_deterministic:
            fuse_mlps(model, self._pool.triton_device)
        text_layers = tuple(layer for module, layer in layers.items() if module in probe.routed)
        as_native = probe.kv_groups if program.is_native and not self._is_by_sequence else first.kv_groups
        self.facts = TrunkFacts(
            as_native if self._native is None else self._native.groups(as_native),
            probe.top_k,
            first.states if self._native is None else self._native.states(first.states),
            text_layers,
            program,
            hidden_size=self._forward.hidden_size,
            is_by_sequence=self._is_by_sequence,
            has_gpu=is_gpu(self.device),
        )
        has_waitless = self._native is None and all(
            isinstance(layer.backend, ResidentBackend) for layer in self._layers.values()
        )
        self._tables = SlotTables(list(self._layers.values()), self.device) if has_waitless else None
        self._reader = ChoiceReader(self.device) if has_waitless and is_gpu(self.device) else None
        self._misses = MissPlacement("copy")
        self._graphs: StepGraphs | None = None
        is_plain = special is None and not is_deterministic and not probe.choosing
        if has_waitless and is_gpu(self.device) and is_plain:
            self._graphs = StepGraphs(self._pool, self.device, self._run_on_device)
        routers = find_routers(model, layers, probe.routed)
        self.routers = changeable(routers)
        self._router_layers = find_routers_with_products(model, self.routers, first.router_calls, len(first.tokens))
        self.gates = find_next_layer_gates(routers, layers, probe.routed)

    def place_misses(self, mode: MissCompute, kernels: Kernels) -> None:
        """Let the CPU compute missed experts in steps of decodes.

        Args:
            mode: ``auto`` for wherever whole steps are faster.

        Raises:
            ModelError: the CPU can't compute them, or the device has no kernels that run the others meanwhile.
        """
        if self._reader is None:
            raise ModelError(
                f"--miss-compute {mode}: experts of {type(self._model).__name__} do not run by Triton's kernels; "
                "use --miss-compute copy"
            )
        self._misses = MissPlacement(mode, HostCompute(self._layers, kernels))

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*super().tensors, *(() if self._native is None else self._native.tensors)]

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        if self._native is None:
            return super().adaptable
        native = self._native.adapters.targets.items()
        in_mixers = {name: sizes_of(module) for name, module in self._linears.items()}
        return in_mixers | {name: (target.inputs, target.outputs) for name, target in native}

    def prepare_adapter(self, adapter: LoraAdapter) -> None:
        super().prepare_adapter(adapter)
        if self._native is not None:
            self._native.adapters.prepare(adapter)

    @property
    def is_invariant(self) -> bool:
        """True if a token's results do not depend on what else is in its step."""
        return self._is_deterministic or self.facts.program.is_native

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    def new_states(self, num_slots: int, num_snapshots: int = 0) -> StateCache:
        """Allocate the states of recurrent layers for so many sequences, and for snapshots."""
        num_double = num_slots if self.facts.state_rows > 1 else 0
        return StateCache(self.facts.states, num_slots + num_snapshots, self.device, num_double=num_double)

    @property
    def runs_ahead(self) -> bool:
        return self._native is not None and self._native.may_run_ahead

    def prepare_step(self, chunks: Sequence[SequenceChunk]) -> None:
        if self._native is not None and not self._native.ahead.continues(chunks):
            self._native.ahead.stop()

    def forward(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> StepOutput:
        """Run one ragged step. A step that failed changed nothing, and can be run again.

        The prefetcher takes part in steps of decodes only; a piece of a prompt asks for most experts anyway. It may
        have another one for these, which keeps a slow source busy.

        Args:
            states: the result of ``new_states``; a model without recurrent layers needs none.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
        """
        if torch.is_inference_mode_enabled():  # as in the engine's thread: to begin and end it takes long in a step
            return self._run(chunks, kv_cache, store, prefetcher, states)
        with torch.inference_mode():
            return self._run(chunks, kv_cache, store, prefetcher, states)

    def _run(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None,
        states: StateCache | None,
    ) -> StepOutput:
        tokens = StepTokens.of(chunks)
        phase: Phase = "decode" if len(tokens.token_ids) == len(chunks) else "prefill"
        ahead = None
        if phase == "prefill" or (tokens.has_media and any(chunk.shows_images for chunk in chunks)):
            ahead, prefetcher = None if prefetcher is None else prefetcher.for_prompts, None
        started = time.perf_counter()
        if prefetcher is not None:
            prefetcher.begin_step()
        overlay = StepImages.of(self._model, chunks) if tokens.has_media else None
        rows = self._rows(chunks, tokens, overlay)
        adapters = variants = None
        if tokens.has_weights:
            adapters = StepAdapters.of(chunks)
            variants = StepVariants(self._places, chunks, rows.owners) if has_variants(chunks) else None
        experts = StepExperts(
            store, self._layers, phase, prefetcher, stream=ahead, variants=variants, adapters=adapters
        )
        if adapters is not None and (self._native is None or rows.are_images is not None):
            adapters.rows_of_layer = rows.tokens
        logits: torch.Tensor | HostLogits
        next_tokens: Sequence[int | None] | None = None
        if self._native is not None:
            logits, hidden, next_tokens = self._run_native(
                self._native,
                chunks,
                tokens,
                kv_cache=kv_cache,
                experts=experts,
                overlay=overlay,
                states=states,
                adapters=adapters,
            )
        else:
            logits, hidden = self._run_modules(
                chunks, tokens, kv_cache, experts=experts, overlay=overlay, states=states, adapters=adapters
            )
        if prefetcher is not None:
            prefetcher.end_step(time.perf_counter() - started)
        record, num_tokens, text_layers = experts.record, len(tokens.token_ids), self.facts.text_layers
        return StepOutput(
            logits,
            StepRouting(record, num_tokens),
            record.cost,
            attribute_costs(record.parts, rows),
            last_choices_of_chunks(record.parts, rows, text_layers),
            hidden,
            record.stalls,
            () if adapters is None or adapters.choices is None else adapters.choices.chosen(chunks),
            tokens=next_tokens,
        )

    def _rows(self, chunks: Sequence[SequenceChunk], tokens: StepTokens, overlay: StepImages | None) -> RowOwners:
        are_images = None if overlay is None else overlay.image_token_mask(len(tokens.token_ids))
        return RowOwners(chunks, are_images, self.facts.text_layers)

    def _run_native(
        self,
        native: NativeModel,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        *,
        kv_cache: KVCache,
        experts: StepExperts,
        overlay: StepImages | None,
        states: StateCache | None,
        adapters: StepAdapters | None,
    ) -> NativeResult:
        """Run a step through the native kernels, with modules where mixers are such."""
        step_states = self._step_states(chunks, states)
        with self._around_mixers(adapters, tokens, step_states) if native.outside else NOTHING:
            result = native.run(
                chunks, tokens, kv_cache, experts=experts, adapters=adapters, states=step_states, images=overlay
            )
        if step_states is not None:
            step_states.commit()
        return result

    @contextmanager
    def _around_mixers(
        self, adapters: StepAdapters | None, tokens: StepTokens, states: StepStates | None
    ) -> Iterator[None]:
        """Return what modules need that are mixers of native layers."""
        with (
            nullcontext() if adapters is None else self._add_to_linears(adapters, tokens, states),
            batch_invariant() if self._is_deterministic else nullcontext(),
        ):
            yield

    def _run_modules(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        *,
        experts: StepExperts,
        overlay: StepImages | None,
        states: StateCache | None,
        adapters: StepAdapters | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a step through the modules of transformers; return logits and hidden states of the wanted rows."""
        with experts.without_waits(self._tables) as waitless:
            graphs = self._graphs
            by_table = waitless or experts.with_hits_first(self._tables, self._reader, self._misses.now)
            has_choice = waitless is None and by_table is not None and experts.phase == "decode"
            with self._misses.measured(experts.record) if has_choice else nullcontext():
                if by_table is not None and graphs is not None and overlay is None and graphs.takes(chunks, tokens):
                    step_states = self._step_states(chunks, states, in_batches=False)
                    logits = graphs.run(chunks, tokens, kv_cache, experts, by_table, states=states)
                    hidden = torch.empty((0, 0))
                else:
                    step_states = self._step_states(chunks, states)
                    if isinstance(step_states, SequenceStepStates):
                        step_states.add_pages(chunks, kv_cache)
                    logits = self._call_modules(
                        chunks, tokens, kv_cache, experts=experts, overlay=overlay, states=step_states,
                        adapters=adapters,
                    )  # fmt: skip
                    hidden = self._forward.hidden
        if step_states is not None:
            step_states.commit()
        return logits, hidden

    def _call_modules(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        *,
        experts: StepExperts,
        overlay: StepImages | None,
        states: StepStates | None,
        adapters: StepAdapters | None,
    ) -> torch.Tensor:
        """Call the modules with the hooks of a step; return logits of the wanted rows."""
        attention = self._attention(chunks, kv_cache)
        variants = experts.variants
        with (
            use_hooks(_StepHooks(attention, LatentAttention(attention, adapters), experts)),
            nullcontext() if adapters is None else self._add_to_linears(adapters, tokens, states, attention),
            routed_by_weights(self._model, self.routers, self._router_layers, variants, adapters),
            batch_invariant() if self._is_deterministic else nullcontext(),
        ):
            return self._forward(
                tokens.token_ids,
                positions_of(chunks),
                tokens.logit_rows,
                states,
                overlay=overlay,
                hidden_rows=tokens.hidden_rows,
                stays_on_device=True,
            )

    def _run_on_device(
        self, attention: StepAttention, experts: StepExperts, numbers: Sequence[torch.Tensor],
        states: StepStates | None,
    ) -> torch.Tensor:  # fmt: skip
        """Run a step of single new tokens without waiting for the device; see ``StepGraphs``."""
        with use_hooks(_StepHooks(attention, LatentAttention(attention), experts)):
            return self._forward.on_device(numbers, states)

    def _outside_of_native(self, linears: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """Return those linear layers that modules compute."""
        if self._native is None:
            return linears
        inside = {module for mixer in self._native.outside for module in mixer.module.modules()}
        return {name: module for name, module in linears.items() if module in inside}

    def _add_to_linears(
        self,
        adapters: StepAdapters,
        tokens: StepTokens,
        states: StepStates | None,
        attention: StepAttention | InvariantAttention | None = None,
    ) -> AbstractContextManager[None]:
        def rows_now() -> torch.Tensor | None:
            if isinstance(attention, StepAttention) and attention.chosen.rows_now is not None:
                return attention.chosen.rows_now
            return None if states is None else states.rows_now

        return add_to_linears(
            adapters,
            self._linears,
            head_of(self._model),
            tokens.logit_rows,
            rows_now,
        )

    def _attention(self, chunks: Sequence[SequenceChunk], kv_cache: KVCache) -> InvariantAttention | StepAttention:
        if self._is_deterministic:
            return InvariantAttention(chunks, kv_cache)
        return StepAttention(chunks, kv_cache, self._pool)

    def _step_states(
        self, chunks: Sequence[SequenceChunk], states: StateCache | None, *, in_batches: bool = True
    ) -> StepStates | None:
        """Return the cache that recurrent mixers take their states from; None if the model has none of them.

        Args:
            in_batches: False if no module is called with it.
        """
        if not self._recurrent and (self._native is not None or not self._is_by_sequence):
            return None
        copies = [(chunk.slot, chunk.snapshot) for chunk in chunks if chunk.snapshot is not None]
        if self._native is not None and states is None:
            states = self.new_states(1 + max(chunk.slot for chunk in chunks))
        has_modules = self._native is None or bool(self._native.outside)
        batches = []
        if has_modules and in_batches:
            batches = recurrent_batches(chunks, self.device, states, token_by_token=self._is_deterministic)
        slots = [chunk.slot for chunk in chunks]
        kind = SequenceStepStates if self._is_by_sequence else StepStates
        return kind(batches, slots, copies, states, self._is_deterministic)


class _StepHooks:
    """The hooks of a step: attention over the KV cache, and experts from the store."""

    def __init__(self, attention: StepAttention | InvariantAttention, latents: LatentAttention, experts: StepExperts):
        self.attend, self.expand, self.run_experts = latents.attend, latents.expand, experts.run
        if isinstance(attention, StepAttention):
            self.choose_keys = attention.chosen.choose_keys
            if attention.has_kernels:
                self.attend_projected = attention.attend_projected
                if not latents.has_adapters:
                    self.attend_latents = partial(attend_latents, attention)
