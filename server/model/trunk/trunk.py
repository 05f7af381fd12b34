"""The trunk: a transformers model without its routed experts, which the expert store holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.device import is_gpu
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.adapters.step_adapters import StepAdapters
from server.model.architecture import decoder_layers, text_body
from server.model.attention.kv_cache import KVCache
from server.model.blocks.block_attention import starts_block
from server.model.experts.cost_attribution import RowOwners, attribute_costs, last_choices_of_chunks
from server.model.experts.host_compute import MissCompute
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_record import StepRouting
from server.model.experts.step_variants import StepVariants, has_variants
from server.model.lora.linear_hooks import sizes_of
from server.model.lora_adapter import LoraAdapter
from server.model.modules.steps import NOTHING, AdaptableModules, ModuleSteps, RecurrentSteps
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.model import NativeModel, NativeResult
from server.model.prompt_pass import PromptPass
from server.model.recurrent.states import StateCache
from server.model.step import HostLogits, SequenceChunk, StepOutput, StepTokens
from server.model.trunk.base_trunk import BaseTrunk, TrunkFacts
from server.model.trunk.passes import PreparedModel, prepare
from server.model.trunk.trunk_pass import TrunkPass


class Trunk(BaseTrunk):
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
        prepared = prepare(PreparedModel(model, self._layers, self._pool, self.max_model_len, is_deterministic))
        self._native, self._linears = prepared.native, prepared.linears
        self.routers, self._router_layers, self.gates = prepared.routers, prepared.router_layers, prepared.gates
        self.facts = _facts_of(prepared)
        self._states = RecurrentSteps(
            self.device,
            is_needed=bool(prepared.first.recurrent) or (self._native is None and prepared.is_by_sequence),
            is_by_sequence=prepared.is_by_sequence,
            has_modules=self._native is None or bool(self._native.outside),
            is_deterministic=is_deterministic,
            new_states=None if self._native is None else self.new_states,
        )
        self.module_steps = ModuleSteps(
            model,
            prepared.forward,
            self._layers,
            pool=self._pool,
            adaptable=AdaptableModules(self._linears, self.routers, self._router_layers),
            states=self._states,
            is_deterministic=is_deterministic,
            runs_model=self._native is None,
            may_have_graphs=prepared.has_free_attention,
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
    def dtype(self) -> torch.dtype:
        """The dtype to which modules round."""
        found: torch.dtype = text_body(self._model).dtype
        return found

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    def new_states(self, num_slots: int, num_snapshots: int = 0) -> StateCache:
        """Allocate the states of recurrent layers for so many sequences, and for snapshots."""
        num_double = num_slots if self.facts.state_rows > 1 else 0
        return StateCache(self.facts.states, num_slots + num_snapshots, self.device, num_double=num_double)

    @contextmanager
    def watch_layers(self, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
        """Call a function after each decoder layer of the steps within.

        Args:
            seen: takes the number of the layer and the tokens' residual stream, float32 ``(tokens, numbers)``.
        """
        layers = [*(decoder_layers(text_body(self._model)) or ())]
        if self._native is not None:
            together = len(self.facts.program.layers) // len(layers)
            keeps_rows = any(map(starts_block, layers))  # of earlier layers, before those of the residual stream

            def after_block(index: int, hidden: torch.Tensor) -> None:
                if index % together == together - 1:
                    seen(index // together, hidden[:, -1] if keeps_rows else hidden.flatten(1))

            with self._native.watch_layers(after_block):
                yield
            return

        def after_layer(index: int, _layer: nn.Module, _args: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen(index, hidden[0].float().flatten(1).clone())

        hooks = [layer.register_forward_hook(partial(after_layer, index)) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

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

    def can_pass(self, store: ExpertStore) -> bool:
        if self._native is None or not self._native.can_pass or is_gpu(self.device):
            return False
        at_once = pairwise([*self._native.expert_layers, ()])
        return all(store.holds_at_once((*layers, *following), self.facts.top_k) for layers, following in at_once)

    @property
    def pass_token_bytes(self) -> int:
        return 0 if self._native is None else self._native.pass_token_bytes

    def begin_pass(
        self,
        steps: Sequence[Sequence[SequenceChunk]],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> PromptPass:
        assert self._native is not None
        gates = {} if prefetcher is None else self.gates
        return TrunkPass(
            self._model,
            self._native,
            steps,
            kv_cache=kv_cache,
            store=store,
            states=states if self._states.is_needed else None,
            layers=self._layers,
            places=self._places,
            gates=gates,
            text_layers=self.facts.text_layers,
        )

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
        if adapters is not None and self._native is None:
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


def _facts_of(prepared: PreparedModel) -> TrunkFacts:
    """Return the facts that the passes have found of a model."""
    first, native, program = prepared.first, prepared.native, prepared.program
    probe = first.probe
    groups = probe.kv_groups if program.is_native and not prepared.is_by_sequence else first.kv_groups
    return TrunkFacts(
        groups if native is None else native.groups(groups),
        probe.top_k,
        first.states if native is None else native.states(first.states),
        tuple(layer.number for module, layer in prepared.layers.items() if module in probe.routed),
        program,
        hidden_size=prepared.forward.hidden_size,
        is_by_sequence=prepared.is_by_sequence,
        has_gpu=is_gpu(prepared.model.device),
    )
