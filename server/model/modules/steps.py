"""ModuleSteps: runs steps through the modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.batch_invariant import batch_invariant
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.adapters.step_adapters import StepAdapters
from server.model.architecture import head_of
from server.model.attention.by_sequence.modules import SequenceStepStates
from server.model.attention.invariant_attention import InvariantAttention
from server.model.attention.kv_cache import KVCache
from server.model.attention.mla import LatentAttention, attend_latents
from server.model.attention.paged_attention import StepAttention
from server.model.errors import ModelError
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.host_compute import HostCompute, MissCompute, MissPlacement
from server.model.experts.router import RouterWeights
from server.model.experts.step_experts import StepExperts
from server.model.experts.strategies.hits_first import HitsFirst
from server.model.experts.strategies.selection import StrategySelection
from server.model.experts.strategies.strategy import ExpertStrategy
from server.model.experts.strategies.waitless import WaitlessExperts
from server.model.hooks import use_hooks
from server.model.lora.linear_hooks import add_to_linears
from server.model.lora.router_hooks import routed_by_weights
from server.model.modules.forward import Forward
from server.model.modules.step_graphs import StepGraphs
from server.model.multimodal.image_embeddings import StepImages
from server.model.recurrent.recurrent_modules import recurrent_batches
from server.model.recurrent.states import StateCache, StepStates
from server.model.step import SequenceChunk, StepTokens, positions_of

NOTHING = nullcontext()


@dataclass(frozen=True)
class RecurrentSteps:
    """Makes the cache that recurrent mixers take their states from in a step.

    Args:
        device: of the states.
        is_needed: False for a model without such mixers.
        is_by_sequence: whether modules of attention run sequence by sequence.
        has_modules: whether some mixers are modules.
        is_deterministic: whether modules take one token after the other.
        new_states: makes states of so many sequences, for a step that is given none; None if modules start without.
    """

    device: torch.device
    is_needed: bool
    is_by_sequence: bool
    has_modules: bool
    is_deterministic: bool
    new_states: Callable[[int], StateCache] | None

    def of(
        self, chunks: Sequence[SequenceChunk], states: StateCache | None, *, in_batches: bool = True
    ) -> StepStates | None:
        """Return the cache of a step; None if the model needs none.

        Args:
            in_batches: False if no module is called with it.
        """
        if not self.is_needed:
            return None
        copies = [(chunk.slot, chunk.snapshot) for chunk in chunks if chunk.snapshot is not None]
        if states is None and self.new_states is not None:
            states = self.new_states(1 + max(chunk.slot for chunk in chunks))
        batches = []
        if self.has_modules and in_batches:
            batches = recurrent_batches(chunks, self.device, states, token_by_token=self.is_deterministic)
        slots = [chunk.slot for chunk in chunks]
        kind = SequenceStepStates if self.is_by_sequence else StepStates
        return kind(batches, slots, copies, states, self.is_deterministic)


@dataclass(frozen=True)
class AdaptableModules:
    """The modules that the adapters of a step can add to."""

    linears: Mapping[str, nn.Module]  # by name
    routers: Mapping[int, RouterWeights]  # by layer
    router_layers: Mapping[str, int]  # layers of the routers that adapters can add to, by the routers' names


class ModuleSteps:
    """Runs steps through the modules of transformers, whose attention and experts call the hooks of the step.

    Where native kernels run the model, it has what modules need that are mixers of native layers.

    Args:
        layers: of experts.
        runs_model: False if native kernels run the model.
        may_have_graphs: whether steps of decodes may run as CUDA graphs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        layers: Mapping[ExpertsModule, ExpertLayer],
        *,
        pool: ComputePool,
        adaptable: AdaptableModules,
        states: RecurrentSteps,
        is_deterministic: bool,
        runs_model: bool,
        may_have_graphs: bool,
    ):
        self._model, self._forward, self._layers = model, forward, layers
        self._pool, self._adaptable, self._states = pool, adaptable, states
        self._is_deterministic = is_deterministic
        self.strategies = StrategySelection(layers if runs_model else {}, model.device)
        self.graphs: StepGraphs | None = None
        if self.strategies.has_hits_first and may_have_graphs:
            self.graphs = StepGraphs(pool, model.device, self._run_on_device)

    def place_misses(self, mode: MissCompute, kernels: Kernels) -> None:
        """Let the CPU compute missed experts in steps of decodes; see ``Trunk.place_misses``."""
        if not self.strategies.has_hits_first:
            raise ModelError(
                f"--miss-compute {mode}: experts of {type(self._model).__name__} do not run by Triton's kernels; "
                "use --miss-compute copy"
            )
        self.strategies.misses = MissPlacement(mode, HostCompute(self._layers, kernels))

    def run(
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
        """Run a step; return logits and hidden states of the wanted rows."""
        with self.strategies.select(experts) as strategy:
            graphs = self.graphs if overlay is None else None
            if (
                graphs is not None
                and isinstance(strategy, WaitlessExperts | HitsFirst)
                and graphs.takes(chunks, tokens)
            ):
                step_states = self._states.of(chunks, states, in_batches=False)
                logits = graphs.run(chunks, tokens, kv_cache, strategy, states=states)
                hidden = torch.empty((0, 0))
            else:
                step_states = self._states.of(chunks, states)
                if isinstance(step_states, SequenceStepStates):
                    step_states.add_pages(chunks, kv_cache)
                logits = self._call_modules(
                    chunks, tokens, kv_cache, strategy=strategy, overlay=overlay, states=step_states, adapters=adapters
                )
                hidden = self._forward.hidden
        if step_states is not None:
            step_states.commit()
        return logits, hidden

    @contextmanager
    def around_mixers(
        self, adapters: StepAdapters | None, tokens: StepTokens, states: StepStates | None
    ) -> Iterator[None]:
        """Return what modules need that are mixers of native layers."""
        with self._adapted(adapters, tokens, states), self._invariant():
            yield

    def _call_modules(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        *,
        strategy: ExpertStrategy,
        overlay: StepImages | None,
        states: StepStates | None,
        adapters: StepAdapters | None,
    ) -> torch.Tensor:
        """Call the modules with the hooks of a step; return logits of the wanted rows."""
        attention: InvariantAttention | StepAttention
        if self._is_deterministic:
            attention = InvariantAttention(chunks, kv_cache)
        else:
            attention = StepAttention(chunks, kv_cache, self._pool)
        routers, router_layers = self._adaptable.routers, self._adaptable.router_layers
        with (
            use_hooks(_StepHooks(attention, LatentAttention(attention, adapters), strategy)),
            self._adapted(adapters, tokens, states, attention),
            routed_by_weights(self._model, routers, router_layers, strategy.experts.variants, adapters),
            self._invariant(),
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
        self,
        attention: StepAttention,
        strategy: ExpertStrategy,
        numbers: Sequence[torch.Tensor],
        states: StepStates | None,
    ) -> torch.Tensor:
        """Run a step of single new tokens without waiting for the device; see ``StepGraphs``."""
        with use_hooks(_StepHooks(attention, LatentAttention(attention), strategy)):
            return self._forward.on_device(numbers, states)

    def _adapted(
        self,
        adapters: StepAdapters | None,
        tokens: StepTokens,
        states: StepStates | None,
        attention: StepAttention | InvariantAttention | None = None,
    ) -> AbstractContextManager[None]:
        """Let linear layers add what the adapters of a step add."""
        if adapters is None:
            return NOTHING

        def rows_now() -> torch.Tensor | None:
            if isinstance(attention, StepAttention) and attention.chosen.rows_now is not None:
                return attention.chosen.rows_now
            return None if states is None else states.rows_now

        return add_to_linears(adapters, self._adaptable.linears, head_of(self._model), tokens.logit_rows, rows_now)

    def _invariant(self) -> AbstractContextManager[None]:
        return batch_invariant() if self._is_deterministic else NOTHING


class _StepHooks:
    """The hooks of a step: attention over the KV cache, and experts from the store."""

    def __init__(
        self, attention: StepAttention | InvariantAttention, latents: LatentAttention, strategy: ExpertStrategy
    ):
        self.attend, self.expand, self.run_experts = latents.attend, latents.expand, strategy.run
        if isinstance(attention, StepAttention):
            self.choose_keys = attention.chosen.choose_keys
            if attention.has_kernels:
                self.attend_projected = attention.attend_projected
                if not latents.has_adapters:
                    self.attend_latents = partial(attend_latents, attention)
