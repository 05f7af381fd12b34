"""NativeModel: steps of a model whose decoder layers are run by the native kernels, with modules as some mixers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ctypes import Array, sizeof
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import HeadCall, LayerSpec
from server.model.attention.kv_cache import KVCache
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import mix_outside
from server.model.blocks.mixer import Mixer, MixerStep
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.workspace import BLOCK, PositionTables, Workspace
from server.model.experts.resident_experts import ResidentExperts
from server.model.experts.step_experts import StepExperts
from server.model.lora.step_adapters import StepAdapters
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.adapters import NativeAdapters
from server.model.native_layers.expert_sets import VariantSets
from server.model.native_layers.step_images import ImageRows
from server.model.program import Block, ModelProgram, Target
from server.model.recurrent.states import StateCache, StateShapes, StepStates
from server.model.step import SequenceChunk, StepTokens, positions_of


class NativeModel:
    """Runs batch-invariant steps: a token's results do not depend on what else is in its step, but for modules.

    If all experts are in memory, a *segment* of neighbouring layers is one call of the kernels. It ends before a layer
    whose mixer runs outside of the kernels, so a model without such is one segment.

    Keys lie in the cache in an order of their own (``src/levels/attention.h``), so only this class can use such a
    cache.

    Args:
        layers: in their order.
        workspace: the arrays of a step.
        positions: rotary positions.
        query_scales: factors of queries by their positions.
        embedding: ``(vocabulary, hidden)``, multiplied by ``embedding_scale``.
        head: the call of the head, without the fields of a step.
        keeps: tensors whose memory the head refers to.
        adapters: describes the adapters of steps.
        rotary: the model's module that computes cosines and sines for its mixers; None if it has none.
        dtype: of its mixers.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[NativeLayer],
        workspace: Workspace,
        positions: PositionTables,
        query_scales: QueryScales,
        embedding: torch.Tensor,
        embedding_scale: float,
        head: HeadCall,
        keeps: Sequence[torch.Tensor],
        adapters: NativeAdapters,
        rotary: Any,
        dtype: torch.dtype,
    ):
        self._rotary, self._dtype = rotary, dtype
        self.adapters = adapters
        self._kernels, self._layers, self._workspace = kernels, layers, workspace
        self._positions, self._query_scales = positions, query_scales
        self._embedding, self._embedding_scale, self._head, self._keeps = embedding, embedding_scale, head, keeps
        self._specs = (LayerSpec * len(layers))(*(layer.spec for layer in layers))
        self._routed = [layer.experts for layer in layers if layer.experts is not None]
        self._numbers = [layer.number for layer in self._routed]
        self._top_ks = [layer.mixture.router.top_k for layer in layers if layer.experts is not None]
        self._variant_sets = VariantSets([layer for layer in layers if layer.experts is not None])
        self._segments = _segments(layers, self._specs)
        self._bound: tuple[KVCache | None, StateCache | None] = None, None

    @property
    def program(self) -> ModelProgram:
        """The target of each part."""
        return ModelProgram(tuple(map(_block, self._layers)))

    @property
    def outside(self) -> Sequence[Mixer]:
        """The mixers that run outside of the kernels."""
        return [layer.mixer for layer in self._layers if layer.mixer.target is not Target.NATIVE]

    @property
    def replaced(self) -> Sequence[nn.Module]:
        """The modules of the mixers that the kernels run."""
        return [layer.mixer.module for layer in self._layers if layer.mixer.target is Target.NATIVE]

    def states(self, probed: StateShapes) -> StateShapes:
        """Return the states of one sequence.

        Args:
            probed: those that the modules of all mixers keep.
        """
        own = {key: shape for layer in self._layers for key, shape in layer.mixer.states.items()}
        inside = {key.layer for key in own}
        return {key: shape for key, shape in probed.items() if key.layer not in inside} | own

    def run(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        experts: StepExperts,
        adapters: StepAdapters | None = None,
        states: StepStates | None = None,
        images: StepImages | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step.

        Args:
            chunks: of the sequences.
            tokens: of all chunks.
            kv_cache: of the layers with attention.
            experts: of the step.
            adapters: of the step, if it has any.
            states: of the mixers that keep some; needed if there are such.
            images: of the step, if it has any.

        Returns:
            Logits, float32 ``(logit_rows, vocabulary)``, and normed last states, float32 ``(hidden_rows, hidden)``.
        """
        cache = None if states is None else states.cache
        self._bind(kv_cache, cache)
        workspace = self._workspace
        rows = None if cache is None else [cache.rows_of(chunk) for chunk in chunks]
        workspace.begin(chunks, len(kv_cache.groups), rows)
        described = None if adapters is None else self.adapters.step(adapters)  # kept until the step has run
        workspace.call.lora = self._head.lora = None if described is None else described.address
        self._embed(tokens.token_ids)
        last = max(chunk.num_cached + chunk.num_tokens for chunk in chunks) - 1
        self._positions.update(workspace.call, last)
        self._query_scales.update(workspace.call, last)
        image_rows = None if images is None else self._insert_images(images, chunks)
        variants = experts.variants
        sets = None if variants is None else self._variant_sets.of(variants)
        workspace.call.sets = None if variants is None or sets is None else sets.address(variants.sets)
        step = MixerStep(self._rotary, positions_of(chunks) if self.outside else (), self._dtype, states)
        residents = experts.hold_residents()
        if residents is None:
            self._run_by_layers(experts, step, image_rows)
        else:
            with residents:
                self._run_segments(residents, step, image_rows)
        return self._run_head(tokens.logit_rows, tokens.hidden_rows)

    def _insert_images(self, images: StepImages, chunks: Sequence[SequenceChunk]) -> ImageRows:
        """Set the rows of a step with images, and what their attention sees."""
        call, hidden = self._workspace.call, torch.from_numpy(self._workspace.hidden)
        rows = ImageRows.of(images, chunks, hidden)
        hidden.copy_(rows.embedded)
        if rows.positions is not None:
            self._positions.take_rows(call, rows.positions)
        call.newest = None if rows.newest is None else rows.newest.ctypes.data
        return rows

    def _run_segments(self, residents: ResidentExperts, step: MixerStep, images: ImageRows | None) -> None:
        """Run each segment in one call of the kernels, since all experts are in memory."""
        workspace = self._workspace
        slots = residents.slots(self._numbers)
        counts = np.zeros(slots.shape, dtype=np.int64)
        call = workspace.call
        call.slots, call.counts, call.most_experts = slots.ctypes.data, counts.ctypes.data, slots.shape[1]
        segments = self._segments
        if images is not None and images.additions:
            segments = _segments(self._layers, self._specs, {layer + 1 for layer in images.additions})
        for segment in segments:
            self._mix_outside(segment.first, step)
            self._kernels.layers(segment.specs, call, segment.place)
            if images is not None:
                images.add_after(segment.first + len(segment.specs) - 1, torch.from_numpy(workspace.hidden))
        residents.finish(self._routed, workspace.all_chosen(self._top_ks), counts)

    def _mix_outside(self, index: int, step: MixerStep) -> None:
        mix_outside(self._kernels, self._layers[index].mixer, self._specs[index], self._workspace, step)

    def _run_by_layers(self, experts: StepExperts, step: MixerStep, images: ImageRows | None) -> None:
        """Run layer by layer, each with a lease of its own experts."""
        workspace, kernels, index = self._workspace, self._kernels, 0  # among the layers with experts
        for number, (layer, spec) in enumerate(zip(self._layers, self._specs, strict=True)):
            self._mix_outside(number, step)
            kernels.begin_layer(spec, workspace.call, index)
            outputs = 0
            if layer.experts is not None:
                chosen, weights = (of(index, self._top_ks[index]) for of in (workspace.chosen, workspace.weights))
                hidden_states, router_weights = torch.from_numpy(workspace.normed), torch.from_numpy(weights)
                outputs = experts.run_unweighted(
                    layer.experts,
                    hidden_states,
                    chosen.astype(np.int64),
                    router_weights,
                    is_exact=bool(workspace.call.is_exact),
                )
            kernels.finish_layer(spec, workspace.call, index, outputs)
            if images is not None:
                images.add_after(number, torch.from_numpy(workspace.hidden))
            index += layer.experts is not None

    def _embed(self, token_ids: Sequence[int]) -> None:
        embedded = torch.from_numpy(self._workspace.hidden)
        embedded.copy_(self._embedding[torch.tensor(token_ids)])
        if self._embedding_scale != 1.0:
            embedded.mul_(self._embedding_scale)

    def _run_head(self, rows: Sequence[int], hidden_rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        call, size = self._head, self._workspace.call.hidden_size
        indices = {row: index for index, row in enumerate(dict.fromkeys([*rows, *hidden_rows]))}
        wanted = np.array(list(indices), dtype=np.int32)
        logits = np.empty((len(rows), call.matrix.outputs), dtype=np.float32)
        normed = np.empty((len(wanted), size), dtype=np.float32)
        call.hidden, call.rows = self._workspace.call.hidden, wanted.ctypes.data
        call.normed, call.logits, call.num_rows, call.num_logits = (
            normed.ctypes.data,
            logits.ctypes.data,
            len(wanted),
            len(rows),
        )
        self._kernels.head(call)
        return torch.from_numpy(logits), torch.from_numpy(normed[[indices[row] for row in hidden_rows]])

    def _bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        """Set the addresses of keys, values and states in the specs of the layers' mixers."""
        if self._bound == (kv_cache, states):
            return
        if kv_cache.block_size != BLOCK:
            raise ValueError(f"blocks of {kv_cache.block_size} tokens; the native kernels take {BLOCK}")
        for layer, spec in zip(self._layers, self._specs, strict=True):
            layer.mixer.bind(kv_cache, states)
            slot_bytes = 0 if layer.experts is None else layer.experts.layout.slot_bytes
            reason = impossible("greenroom_check_layer", spec, self._workspace.call.hidden_size, slot_bytes)
            if reason is not None:
                raise ValueError(f"layer {spec.index} has {reason}")
        self._bound = kv_cache, states


def _block(layer: NativeLayer) -> Block:
    return Block(layer.mixer.name, layer.mixer.target, Target.NATIVE)


@dataclass(frozen=True)
class _Segment:
    """Neighbouring layers that run in one call."""

    first: int
    place: int  # of the first layer among those with experts
    specs: Array[LayerSpec]  # in the memory of the specs of all layers


def _segments(layers: Sequence[NativeLayer], specs: Array[LayerSpec], more: Collection[int] = ()) -> list[_Segment]:
    """Return the segments of layers; those in ``more`` begin one, too."""
    firsts = [
        index
        for index, layer in enumerate(layers)
        if not index or layer.mixer.target is not Target.NATIVE or index in more
    ]
    return [
        _Segment(
            first,
            sum(layer.experts is not None for layer in layers[:first]),
            (LayerSpec * (end - first)).from_buffer(specs, first * sizeof(LayerSpec)),
        )
        for first, end in pairwise([*firsts, len(layers)])
    ]
