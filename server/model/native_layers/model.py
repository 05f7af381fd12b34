"""NativeModel: steps of a model whose decoder layers are run by the native kernels, with modules as some mixers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from expert_store import ExpertStore
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
from server.model.native_layers.adapters import NativeAdapters, NativeStep
from server.model.native_layers.decode_steps import DecodeSteps
from server.model.native_layers.embedding_rows import EmbeddingRows
from server.model.native_layers.expert_sets import VariantSets
from server.model.native_layers.layer_sequence import LayerSequence
from server.model.native_layers.prompt_pass import NativePass, PassInput, PassStep, PredictNext
from server.model.native_layers.step_images import ImageRows
from server.model.program import Target
from server.model.recurrent.states import StateCache, StateShapes, StepStates
from server.model.step import HostLogits, SequenceChunk, StepTokens, positions_of


class NativeResult(NamedTuple):
    """The results of a step."""

    logits: HostLogits  # float32 (logit_rows, vocabulary); no rows if the tokens are chosen
    hidden: torch.Tensor  # normed last states, float32 (hidden_rows, hidden)
    tokens: Sequence[int | None] | None = None  # the next token of each chunk, if they are chosen


class NativeModel:
    """Runs batch-invariant steps: a token's results do not depend on what else is in its step, but for modules.

    Keys lie in the cache in an order of their own (``blocks/grouped_attention/attention.h``), so only this class can
    use such a cache.

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

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that the kernels read, but for experts."""
        layers = (*self._layers, *self._image_layers)
        kept = [each for layer in layers for each in (layer.kept, layer.mixer.kept)]
        kept += [layer.ngrams.kept for layer in layers if layer.ngrams is not None]
        return [tensor for each in kept for tensor in each]

    @contextmanager
    def watch_layers(self, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
        """Call a function after each layer of the steps within, with its number and the residual stream, float32."""
        self._sequence.after_layer = seen
        try:
            yield
        finally:
            self._sequence.after_layer = None

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
        rows = None if cache is None else [cache.rows_of(chunk) for chunk in chunks]
        described, image_rows, _keeps = self._describe(
            self._workspace, chunks, tokens, kv_cache, rows=rows, experts=experts, adapters=adapters, images=images
        )
        if self.may_run_ahead and images is None and (cache is None or cache.is_double):
            chosen = self.ahead.begin(chunks, len(kv_cache.groups), experts, self._logits_of, described)
            if chosen is not None:
                return NativeResult(self._no_logits, self._no_states, chosen)
        mixers = MixerStep(self._rotary, positions_of(chunks) if self.outside else (), self._dtype, states)
        self._sequence.run(experts, mixers, image_rows)
        return NativeResult(*self._run_head(self._workspace, tokens.logit_rows, tokens.hidden_rows))

    @property
    def can_pass(self) -> bool:
        """True if steps of prompts may run layer by layer."""
        return not self.outside

    @property
    def expert_layers(self) -> Sequence[tuple[int, ...]]:
        """The layers of experts that run at the same time in each layer that has some, by number, in their order."""
        own, images = (
            [layer.experts.number for layer in each if layer.experts is not None]
            for each in (self._layers, self._image_layers)
        )
        return [*zip(own, images, strict=True)] if images else [(number,) for number in own]

    @property
    def pass_token_bytes(self) -> int:
        """Bytes that a pass holds for each of its tokens."""
        recorded = np.dtype(np.int64).itemsize * sum(self._sequence.top_ks)  # choices of all layers
        kept = np.dtype(np.float32).itemsize * sum(self._kept_sizes.values())
        return self._workspace.token_bytes + kept + recorded

    @cached_property
    def _kept_sizes(self) -> Mapping[str, int]:
        """Numbers a token that layers keep while other steps run, by the field of ``StepCall``; 0 for none.

        Keys are kept for later layers that attend to them too: the chosen ones, and those of an incomplete pool.
        """
        mixtures = [layer.mixture for layer in self._layers if layer.experts is not None]
        adds, streams = any(layer.spec.adds_deferred for layer in self._layers), self._workspace.num_streams
        given = [keys.top_k for layer in self._layers if (keys := layer.mixer.chosen_keys) and not keys.are_own]
        return {
            "chosen_keys": max(given) + BLOCK if given else 0,
            "deferred": int(self._workspace.call.hidden_size) if adds else 0,
            "router_rows": max((each.router_mlp.width for each in self._layers if each.router_mlp), default=0),
            "projected": max(mixture.input_projection.outputs for mixture in mixtures),
            "shares": max(mixture.router.num_shared for mixture in mixtures),
            "stream_weights": streams * (1 + streams),
        }

    def begin_pass(
        self,
        steps: Sequence[PassInput],
        kv_cache: KVCache,
        states: StateCache | None,
        *,
        store: ExpertStore,
        predict: PredictNext,
    ) -> NativePass:
        """Begin a pass over steps of prompts.

        Args:
            steps: in their order; a sequence may be in several.
            kv_cache: of the layers with attention.
            states: of the mixers that keep some. The states of the sequences are lost if the pass does not finish.
            store: leases the experts.
            predict: see ``NativePass``.
        """
        self._bind(kv_cache, states)
        described = [self._describe_in_pass(step, kv_cache, states) for step in steps]
        return NativePass(
            self._kernels,
            self._sequence.specs,
            self._layers,
            described,
            images=self._sequence.images,
            store=store,
            predict=predict,
            states=states,
        )

    def finish_step(self, step: PassStep) -> NativeResult:
        """Return the results of a step of a pass whose layers have run."""
        self._head.lora = step.workspace.call.lora
        return NativeResult(*self._run_head(step.workspace, step.tokens.logit_rows, step.tokens.hidden_rows))

    def _describe_in_pass(self, step: PassInput, kv_cache: KVCache, states: StateCache | None) -> PassStep:
        """Describe a step whose sequences go on in later ones of the pass."""
        workspace, chunks = self._workspace.of_one_step(), step.chunks
        rows, snapshots = None, []
        if states is not None:
            rows = [states.begin_chunk(chunk) for chunk in chunks]
            for (_, target), chunk in zip(rows, chunks, strict=True):
                if chunk.snapshot is not None:
                    snapshots.append((target, states.row_of(chunk.snapshot)))
        _, image_rows, keeps = self._describe(
            workspace,
            chunks,
            step.tokens,
            kv_cache,
            rows=rows,
            experts=step.experts,
            adapters=step.adapters,
            images=step.images,
        )
        for field, size in self._kept_sizes.items():
            if size:
                kept = np.empty((len(step.tokens.token_ids), size), dtype=np.float32)
                setattr(workspace.call, field, kept.ctypes.data)
                keeps = (*keeps, kept)
        ends = accumulate(len(chunk.token_ids) for chunk in chunks)
        last_rows = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.num_logits]
        return PassStep(step.tokens, workspace, step.experts, image_rows, keeps, snapshots, last_rows)

    def _describe(
        self,
        workspace: Workspace,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        kv_cache: KVCache,
        *,
        rows: Sequence[tuple[int, int]] | None,
        experts: StepExperts,
        adapters: StepAdapters | None,
        images: StepImages | None,
    ) -> tuple[NativeStep | None, ImageRows | None, tuple[object, ...]]:
        """Describe a step to the kernels.

        Args:
            rows: with the states before and after the step, of each chunk; None if there are none.

        Returns:
            The step's adapters and images, and what has to be kept until it has run.
        """
        last = workspace.begin(chunks, len(kv_cache.groups), rows)
        described = None if adapters is None else self.adapters.step(adapters)
        workspace.call.lora = self._head.lora = None if described is None else described.address
        self._embedding.write(tokens.token_ids, workspace)
        self._positions.update(workspace.call, last)
        self._query_scales.update(workspace.call, last)
        image_rows, own_positions = (None, None) if images is None else self._insert_images(workspace, images, chunks)
        workspace.begin_streams()
        variants = experts.variants
        workspace.call.sets, sets = (
            (None, None) if variants is None else self._variant_sets.of(variants).of_step(variants.sets)
        )
        return described, image_rows, (described, image_rows, own_positions, sets)

    def _insert_images(
        self, workspace: Workspace, images: StepImages, chunks: Sequence[SequenceChunk]
    ) -> tuple[ImageRows, object]:
        """Set the rows of a step with images, and what their attention sees; return what has to be kept, too."""
        call, hidden = workspace.call, torch.from_numpy(workspace.hidden)
        rows = ImageRows.of(images, chunks, hidden)
        hidden.copy_(rows.embedded)
        kept = None if rows.positions is None else self._positions.take_rows(call, rows.positions)
        call.newest = None if rows.newest is None else rows.newest.ctypes.data
        return rows, kept

    def _run_head(
        self, workspace: Workspace, rows: Sequence[int], hidden_rows: Sequence[int]
    ) -> tuple[HostLogits, torch.Tensor]:
        call, size = self._head, self._workspace.call.hidden_size
        indices = {row: index for index, row in enumerate(dict.fromkeys([*rows, *hidden_rows]))} if hidden_rows else {}
        wanted = list(indices) if hidden_rows else rows
        numbers = array("i", wanted)
        if len(wanted) > len(self._normed):
            self._normed = np.empty((len(wanted), size), dtype=np.float32)
            call.normed = self._normed.ctypes.data
        logits = self._logits_of(len(rows))
        call.hidden, call.rows = workspace.residual_address, numbers.buffer_info()[0]
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
