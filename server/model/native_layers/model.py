"""NativeModel: steps of a model whose decoder layers are run by the native kernels, with modules as some mixers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import HeadCall
from server.model.adapters.step_adapters import StepAdapters
from server.model.attention.kv_cache import KVCache, KVGroup
from server.model.blocks.layer import NativeLayer
from server.model.blocks.mixer import Mixer, MixerStep
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.workspace import BLOCK, PositionTables, Workspace
from server.model.experts.step_experts import StepExperts
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.adapters import NativeAdapters
from server.model.native_layers.decode_steps import DecodeSteps
from server.model.native_layers.embedding_rows import EmbeddingRows
from server.model.native_layers.expert_sets import VariantSets
from server.model.native_layers.layer_sequence import LayerSequence
from server.model.native_layers.step_images import ImageRows
from server.model.program import Block, ModelProgram, Target
from server.model.recurrent.states import StateCache, StateShapes, StepStates
from server.model.step import HostLogits, SequenceChunk, StepTokens, positions_of


class NativeResult(NamedTuple):
    """The results of a step."""

    logits: HostLogits  # float32 (logit_rows, vocabulary); no rows if the tokens are chosen
    hidden: torch.Tensor  # normed last states, float32 (hidden_rows, hidden)
    tokens: Sequence[int | None] | None = None  # the next token of each chunk, if they are chosen


class NativeModel:
    """Runs batch-invariant steps: a token's results do not depend on what else is in its step, but for modules.

    Keys lie in the cache in an order of their own (``src/levels/attention.h``), so only this class can use such a
    cache.

    Args:
        layers: in their order.
        workspace: the arrays of a step.
        positions: rotary positions.
        query_scales: factors of queries by their positions.
        embedding: of tokens.
        head: the call of the head, without the fields of a step.
        keeps: what owns the memory that the head refers to.
        adapters: describes the adapters of steps.
        rotary: the model's module that computes cosines and sines for its mixers; None if it has none.
        dtype: of its mixers.
        image_layers: the experts for images of each layer with experts, in order; empty if there are none.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[NativeLayer],
        workspace: Workspace,
        *,
        positions: PositionTables,
        query_scales: QueryScales,
        embedding: EmbeddingRows,
        head: HeadCall,
        keeps: Sequence[Any],
        adapters: NativeAdapters,
        rotary: Any,
        dtype: torch.dtype,
        image_layers: Sequence[NativeLayer] = (),
    ):
        self._rotary, self._dtype = rotary, dtype
        self.adapters = adapters
        self._kernels, self._layers, self._workspace = kernels, layers, workspace
        self._positions, self._query_scales = positions, query_scales
        self._embedding, self._head, self._keeps = embedding, head, keeps
        self._image_layers = image_layers
        self._sequence = LayerSequence(kernels, layers, image_layers, workspace)
        self._variant_sets = VariantSets([layer for layer in (*layers, *image_layers) if layer.experts is not None])
        self._normed = np.empty((0, workspace.call.hidden_size), dtype=np.float32)  # the head's input, of any step
        self._no_states = torch.from_numpy(self._normed)
        self._logits = self._no_logits = HostLogits.empty(0, head.vocabulary)  # of the last step; and none
        self._own_references = self._logits_references()
        self.ahead = DecodeSteps(
            kernels,
            self._sequence,
            workspace,
            positions=positions,
            query_scales=query_scales,
            embedding=embedding,
            head=head,
        )
        self._bound: tuple[KVCache | None, StateCache | None] = None, None

    @cached_property
    def program(self) -> ModelProgram:
        """The target of each part."""
        return ModelProgram(tuple(map(block_of, self._layers)))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that the kernels read, but for experts."""
        layers = (*self._layers, *self._image_layers)
        kept = [each for layer in layers for each in (layer.kept, layer.mixer.kept)]
        kept += [layer.ngrams.kept for layer in layers if layer.ngrams is not None]
        return [tensor for each in kept for tensor in each]

    @cached_property
    def outside(self) -> Sequence[Mixer]:
        """The mixers that run outside of the kernels."""
        return [layer.mixer for layer in self._layers if layer.mixer.target is not Target.NATIVE]

    @cached_property
    def may_run_ahead(self) -> bool:
        """True if the kernels can run steps one after another."""
        return not self.outside and self.ahead.can_run

    @property
    def replaced(self) -> Sequence[nn.Module]:
        """The modules of the mixers that the kernels run."""
        return [layer.mixer.module for layer in self._layers if layer.mixer.target is Target.NATIVE]

    def states(self, probed: StateShapes) -> StateShapes:
        """Return the states of one sequence.

        Args:
            probed: those that the modules of all mixers keep.
        """
        own = {key: shape for layer in self._layers for key, shape in layer.states.items()}
        inside = {key.layer for key in own}
        return {key: shape for key, shape in probed.items() if key.layer not in inside} | own

    def groups(self, probed: Sequence[KVGroup]) -> tuple[KVGroup, ...]:
        """Return what is kept of tokens.

        Args:
            probed: what the layers keep, but for mixers that tell it (``Mixer.kept_of_tokens``).
        """
        mixers = [layer.mixer for layer in self._layers]
        own = {mixer.attention_layer: shape for mixer in mixers if (shape := mixer.kept_of_tokens) is not None}
        return tuple(
            replace(group, shapes={layer: own.get(layer, shape) for layer, shape in group.shapes.items()})
            for group in probed
        )

    def run(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        *,
        experts: StepExperts,
        adapters: StepAdapters | None = None,
        states: StepStates | None = None,
        images: StepImages | None = None,
    ) -> NativeResult:
        """Run one step.

        Args:
            chunks: of the sequences.
            tokens: of all chunks.
            kv_cache: of the layers with attention.
            experts: of the step.
            adapters: of the step, if it has any.
            states: of the mixers that keep some; needed if there are such.
            images: of the step, if it has any.
        """
        cache = None if states is None else states.cache
        self._bind(kv_cache, cache)
        chosen = self.ahead.take(chunks, experts)
        if chosen is not None:
            return NativeResult(self._no_logits, self._no_states, chosen)
        workspace = self._workspace
        rows = None if cache is None else [cache.rows_of(chunk) for chunk in chunks]
        last = workspace.begin(chunks, len(kv_cache.groups), rows)
        described = None if adapters is None else self.adapters.step(adapters)  # kept until the step has run
        workspace.call.lora = self._head.lora = None if described is None else described.address
        self._embedding.write(tokens.token_ids, workspace)
        self._positions.update(workspace.call, last)
        self._query_scales.update(workspace.call, last)
        image_rows = None if images is None else self._insert_images(images, chunks)
        workspace.begin_streams()
        variants = experts.variants
        sets = None if variants is None else self._variant_sets.of(variants)
        workspace.call.sets = None if variants is None or sets is None else sets.address(variants.sets)
        if self.may_run_ahead and images is None and (cache is None or cache.is_double):
            chosen = self.ahead.begin(chunks, len(kv_cache.groups), experts, self._logits_of, described)
            if chosen is not None:
                return NativeResult(self._no_logits, self._no_states, chosen)
        mixers = MixerStep(self._rotary, positions_of(chunks) if self.outside else (), self._dtype, states)
        self._sequence.run(experts, mixers, image_rows)
        return NativeResult(*self._run_head(tokens.logit_rows, tokens.hidden_rows))

    def _insert_images(self, images: StepImages, chunks: Sequence[SequenceChunk]) -> ImageRows:
        """Set the rows of a step with images, and what their attention sees."""
        call, hidden = self._workspace.call, torch.from_numpy(self._workspace.hidden)
        rows = ImageRows.of(images, chunks, hidden)
        hidden.copy_(rows.embedded)
        if rows.positions is not None:
            self._positions.take_rows(call, rows.positions)
        call.newest = None if rows.newest is None else rows.newest.ctypes.data
        return rows

    def _run_head(self, rows: Sequence[int], hidden_rows: Sequence[int]) -> tuple[HostLogits, torch.Tensor]:
        call, size = self._head, self._workspace.call.hidden_size
        indices = {row: index for index, row in enumerate(dict.fromkeys([*rows, *hidden_rows]))} if hidden_rows else {}
        wanted = list(indices) if hidden_rows else rows
        numbers = array("i", wanted)
        if len(wanted) > len(self._normed):
            self._normed = np.empty((len(wanted), size), dtype=np.float32)
            call.normed = self._normed.ctypes.data
        logits = self._logits_of(len(rows))
        call.hidden, call.rows = self._workspace.residual_address, numbers.buffer_info()[0]
        call.num_rows, call.num_logits = len(wanted), len(rows)
        self._kernels.head(call)
        if not hidden_rows:
            return logits, self._no_states
        return logits, torch.from_numpy(self._normed[[indices[row] for row in hidden_rows]])

    def _logits_of(self, num_rows: int) -> HostLogits:
        """Return logits for the head to write: those of the last step, if there are as many and nobody has them."""
        if len(self._logits.rows) != num_rows or self._logits_references() > self._own_references:
            self._logits = HostLogits.empty(num_rows, self._head.vocabulary)
            self._own_references = self._logits_references()  # Python versions count those of a call differently
            self._head.logits = self._logits.address
        return self._logits

    def _logits_references(self) -> int:
        return getrefcount(self._logits) + getrefcount(self._logits.rows)

    def _bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        """Set the addresses of keys, values and states in the specs of the layers' mixers."""
        if self._bound == (kv_cache, states):
            return
        if kv_cache.block_size != BLOCK:
            raise ValueError(f"blocks of {kv_cache.block_size} tokens; the native kernels take {BLOCK}")
        for layer, spec in zip((*self._layers, *self._image_layers), self._sequence.specs, strict=True):
            layer.bind(kv_cache, states)
            slot_bytes = 0 if layer.experts is None else layer.experts.layout.slot_bytes
            reason = impossible("greenroom_check_layer", spec, self._workspace.call.hidden_size, slot_bytes)
            if reason is not None:
                raise ValueError(f"layer {spec.index} has {reason}")
        self._bound = kv_cache, states


def block_of(layer: NativeLayer) -> Block:
    """Return the targets of a layer's parts."""
    return Block(layer.mixer.name, layer.mixer.target, Target.NATIVE)
