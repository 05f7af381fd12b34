"""The trunk: a transformers model without its routed experts, which the expert store holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.device import is_gpu
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.adapters.step_adapters import StepAdapters
from server.model.architecture import set_implementations
from server.model.attention.key_choice import hook_indexers
from server.model.attention.kv_cache import KVCache
from server.model.attention.mla import replace_projections, resolve_projections
from server.model.coded_linears import CodedLinears
from server.model.experts.cost_attribution import RowOwners, attribute_costs, last_choices_of_chunks
from server.model.experts.host_compute import MissCompute
from server.model.experts.next_layer_gate import find_next_layer_gates, find_routers
from server.model.experts.router import changeable
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_record import StepRouting
from server.model.experts.step_variants import StepVariants, has_variants
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
from server.model.hooks import INDEXED_IMPLEMENTATION
from server.model.linear import speed_up_linears
from server.model.lora.linear_hooks import find_linears, sizes_of
from server.model.lora.router_hooks import find_routers_with_products
from server.model.lora_adapter import LoraAdapter
from server.model.module_steps import NOTHING, AdaptableModules, ModuleSteps, RecurrentSteps
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.find_program import check_modules, find_program
from server.model.native_layers.model import NativeModel, NativeResult
from server.model.recurrent.states import StateCache
from server.model.resident_model import ResidentModel, TrunkFacts
from server.model.step import HostLogits, SequenceChunk, StepOutput, StepTokens
from server.model.transformers_hooks.batching_checks import MAY_BE_NATIVE, find_special_layers


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
        forward = Forward(model)
        special = find_special_layers(model)
        coded = CodedLinears(model, self._pool.kernels if special in (None, *MAY_BE_NATIVE) else None)
        is_by_sequence = special is not None
        if special is None:
            replace_projections(model)
            hook_indexers(model)
        first = FirstPass(model, forward, min(self.max_model_len, self.vocab_size), is_by_sequence=is_by_sequence)
        probe, recurrent = first.probe, first.recurrent
        self._native, program = find_program(
            model,
            self._layers,
            kernels=self._pool.kernels,
            longest=self.max_model_len,
            recurrent=recurrent,
            special=special,
            coded=coded,
        )
        if not program.is_native:
            check_modules(model, first, program, special=special, is_deterministic=is_deterministic)
        if probe.indexed and not program.is_native:
            set_implementations(model.config, INDEXED_IMPLEMENTATION)
        if special is None and not is_deterministic and not probe.choosing:
            fuse_heads(model, self._pool.triton_device, first.run_isolated, recurrent)
            fuse_latents(model, self._pool.triton_device, first.run_isolated, recurrent)
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
        as_native = probe.kv_groups if program.is_native and not is_by_sequence else first.kv_groups
        self.facts = TrunkFacts(
            as_native if self._native is None else self._native.groups(as_native),
            probe.top_k,
            first.states if self._native is None else self._native.states(first.states),
            text_layers,
            program,
            hidden_size=forward.hidden_size,
            is_by_sequence=is_by_sequence,
            has_gpu=is_gpu(self.device),
        )
        routers = find_routers(model, layers, probe.routed)
        self.routers = changeable(routers)
        self._router_layers = find_routers_with_products(model, self.routers, first.router_calls, len(first.tokens))
        self.gates = find_next_layer_gates(routers, layers, probe.routed)
        self._states = RecurrentSteps(
            self.device,
            is_needed=bool(recurrent) or (self._native is None and is_by_sequence),
            is_by_sequence=is_by_sequence,
            has_modules=self._native is None or bool(self._native.outside),
            is_deterministic=is_deterministic,
            new_states=None if self._native is None else self.new_states,
        )
        self.module_steps = ModuleSteps(
            model,
            forward,
            self._layers,
            pool=self._pool,
            adaptable=AdaptableModules(self._linears, self.routers, self._router_layers),
            states=self._states,
            is_deterministic=is_deterministic,
            runs_model=self._native is None,
            may_have_graphs=special is None and not is_deterministic and not probe.choosing,
        )

    def place_misses(self, mode: MissCompute, kernels: Kernels) -> None:
        """Let the CPU compute missed experts in steps of decodes.

        Args:
            mode: ``auto`` for wherever whole steps are faster.

        Raises:
            ModelError: the CPU can't compute them, or the device has no kernels that run the others meanwhile.
        """
        self.module_steps.place_misses(mode, kernels)

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
            logits, hidden = self.module_steps.run(
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
        step_states = self._states.of(chunks, states)
        with self.module_steps.around_mixers(adapters, tokens, step_states) if native.outside else NOTHING:
            result = native.run(
                chunks, tokens, kv_cache, experts=experts, adapters=adapters, states=step_states, images=overlay
            )
        if step_states is not None:
            step_states.commit()
        return result

    def _outside_of_native(self, linears: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """Return those linear layers that modules compute."""
        if self._native is None:
            return linears
        inside = {module for mixer in self._native.outside for module in mixer.module.modules()}
        return {name: module for name, module in linears.items() if module in inside}
