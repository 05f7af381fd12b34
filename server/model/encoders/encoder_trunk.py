"""EncoderTrunk: a trunk for encoders, whose steps hold whole sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, LayerStream, Prefetcher
from server.kernels.batch_invariant import batch_invariant
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.attention.kv_cache import KVCache
from server.model.encoders.facts import encoder_facts
from server.model.encoders.image_inputs import PIXELS
from server.model.encoders.packed_attention import PackedAttention
from server.model.encoders.routed_rows import RoutedRows
from server.model.errors import ModelError
from server.model.experts.cost_attribution import attribute_costs
from server.model.experts.next_layer_gate import NextLayerGate
from server.model.experts.step_experts import StepExperts
from server.model.experts.strategies.leased import LeasedExperts
from server.model.hooks import use_hooks
from server.model.modules.linear import speed_up_linears
from server.model.recurrent.states import StateCache
from server.model.step import SequenceChunk, StepOutput, StepTokens
from server.model.trunk.base_trunk import BaseTrunk


class EncoderTrunk(BaseTrunk):
    """An encoder that runs whole sequences, many in one step, with the interface of ``Trunk``.

    Attention, and routers whose tokens depend on each other, see one sequence at a time; experts are leased once a
    layer for all of them.
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
        self.facts = encoder_facts(model, layers.values())
        self.routers, self._linears, self._router_layers = {}, {}, {}
        self.gates: Mapping[int, NextLayerGate] = {}
        self._encoder: Any = model
        self._routed = RoutedRows(model, layers)
        speed_up_linears(model, self._pool)
        if is_deterministic and self._routed.depends_on_company:
            raise ModelError(
                "a capacity of its experts makes a sequence's results depend on the others in its step; leave out "
                "--deterministic, or the capacity (--switch-capacity, or eval_capacity_factor of config.json)"
            )

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    def new_states(self, num_slots: int, num_snapshots: int = 0) -> StateCache:
        """Return a place for no states."""
        del num_snapshots
        return StateCache({}, num_slots, self.device)

    @torch.inference_mode()
    def forward(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> StepOutput:
        """Run whole sequences. A step that failed changed nothing, and can be run again.

        Args:
            kv_cache, prefetcher, states: are not used.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
        """
        del kv_cache, prefetcher, states
        lengths = [chunk.num_tokens for chunk in chunks]
        self._routed.begin(lengths)
        experts = StepExperts(store, self._layers, "prefill", stream=self._stream(store))
        with (
            use_hooks(_StepHooks(PackedAttention(lengths), experts)),
            batch_invariant() if self._is_deterministic else nullcontext(),
        ):
            output = self._encoder.get_decoder()(**self._inputs(chunks), lengths=lengths)
            hidden: torch.Tensor = output.last_hidden_state[0]
            labels = self._encoder.label_logits(hidden, lengths)
        record = experts.record
        costs = attribute_costs(record.parts, _Rows(chunks, self._routed))
        for cost, num_dropped in zip(costs, self._routed.num_dropped(), strict=True):
            cost.num_dropped = num_dropped
        return StepOutput(
            torch.empty((0, self.vocab_size)),
            {},
            record.cost,
            costs,
            [None] * len(chunks),
            hidden[StepTokens.of(chunks).hidden_rows].float().cpu(),
            record.stalls,
            label_logits=labels.float().cpu(),
        )

    def _stream(self, store: ExpertStore) -> LayerStream | None:
        """Return what reads the layers in order, if not all experts fit and a sequence uses every one of them."""
        if not self.facts.uses_every_expert or store.holds_all:
            return None
        return LayerStream(store, {layer.number: len(layer.keys) for layer in self._layers.values()})

    def _inputs(self, chunks: Sequence[SequenceChunk]) -> dict[str, torch.Tensor]:
        """Return the inputs of the model for all sequences."""
        if self.config.image_size:
            images = [chunk.media.inputs[PIXELS] for chunk in chunks if chunk.media is not None]
            return {PIXELS: torch.cat([torch.as_tensor(image) for image in images]).to(self.device, self.dtype)}
        return {"input_ids": torch.tensor([StepTokens.of(chunks).token_ids], device=self.device)}


class _StepHooks:
    """The hooks of a step: attention within sequences, and experts from the store."""

    def __init__(self, attention: PackedAttention, experts: StepExperts):
        self.attend, self.run_experts = attention.attend, LeasedExperts(experts).run


@dataclass(frozen=True)
class _Rows:
    """The sequence of each row of a layer of experts, where rows need not be tokens."""

    chunks: Sequence[SequenceChunk]
    routed: RoutedRows
    is_decode: bool = False

    def owners(self, layer: int) -> npt.NDArray[np.int64]:
        """Return the index of the sequence of each of a layer's rows."""
        return self.routed.owners(layer)
