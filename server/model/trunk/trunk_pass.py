"""TrunkPass: a pass over steps of prompts, from their chunks to their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedModel

from expert_store import ExpertKey, ExpertStore
from server.kernels.expert import ExpertsModule
from server.model.adapters.step_adapters import StepAdapters
from server.model.attention.kv_cache import KVCache
from server.model.experts.cost_attribution import RowOwners, attribute_costs, last_choices_of_chunks
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.next_layer_gate import GateInput, NextLayerGate
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_record import StepRouting
from server.model.experts.step_variants import PlaceTables, StepVariants, has_variants
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.model import NativeModel
from server.model.native_layers.prompt_pass import PassChoices, PassInput, PassStep
from server.model.recurrent.states import StateCache
from server.model.step import SequenceChunk, StepOutput, StepTokens

MOST = 0.75  # of a layer's experts: steps that use so many are taken to use all of the next layer


class TrunkPass:
    """A ``PromptPass`` of a native model.

    Args:
        steps: chunks of each step, in order.
        states: of recurrent layers, if the model has some.
        layers, places, text_layers: of the trunk.
        gates: predict the next layer's experts; none if nothing is to be predicted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        native: NativeModel,
        steps: Sequence[Sequence[SequenceChunk]],
        *,
        kv_cache: KVCache,
        store: ExpertStore,
        states: StateCache | None,
        layers: Mapping[ExpertsModule, ExpertLayer],
        places: PlaceTables,
        gates: Mapping[int, NextLayerGate],
        text_layers: Sequence[int],
    ):
        self._model, self._native, self._steps, self._store = model, native, steps, store
        self._layers, self._places, self._gates, self._text_layers = layers, places, gates, text_layers
        by_number = {layer.number: layer for layer in layers.values()}
        self._next = {
            number: by_number[after]
            for before, following in pairwise(native.expert_layers)
            for number, after in zip(before, following, strict=True)
        }
        described = [self._input(chunks) for chunks in steps]
        self._inputs, self._rows = [given for given, _ in described], [rows for _, rows in described]
        self._pass = native.begin_pass(self._inputs, kv_cache, states, store=store, predict=self._predict)

    @property
    def is_finished(self) -> bool:
        return self._pass.is_finished

    @property
    def progress(self) -> float:
        return self._pass.progress

    @property
    def saved_bytes(self) -> int:
        return self._pass.saved_bytes

    def advance(self, *, wait_seconds: float) -> bool:
        with torch.inference_mode():
            return self._pass.advance(wait_seconds=wait_seconds)

    def cancel(self) -> None:
        self._pass.cancel()

    def finish(self) -> Iterator[StepOutput]:
        for step, given, rows in zip(self._pass.steps, self._inputs, self._rows, strict=True):
            with torch.inference_mode():
                output = self._output(step, given, rows)
            yield output

    def _input(self, chunks: Sequence[SequenceChunk]) -> tuple[PassInput, RowOwners]:
        """Return a step as the native model takes it, and the chunk of each row."""
        tokens = StepTokens.of(chunks)
        images = StepImages.of(self._model, chunks) if tokens.has_media else None
        are_images = None if images is None else images.image_token_mask(len(tokens.token_ids))
        rows = RowOwners(chunks, are_images, self._text_layers)
        adapters = variants = None
        if tokens.has_weights:
            adapters = StepAdapters.of(chunks)
            variants = StepVariants(self._places, chunks, rows.owners) if has_variants(chunks) else None
        experts = StepExperts(self._store, self._layers, "prefill", variants=variants, adapters=adapters)
        return PassInput(chunks, tokens, experts, adapters, images), rows

    def _predict(self, step: PassStep, choices: PassChoices) -> Sequence[ExpertKey]:
        """Return the experts of the next layer that a step will probably want.

        The next layer's gate tells which; without one all are, once most of a layer are used.
        """
        rows, placed = choices
        following = self._next.get(placed.layer.number)
        if following is None:
            return ()
        gate, variants = self._gates.get(placed.layer.number), step.experts.variants
        if gate is None:
            return following.keys if len(placed.rows) >= MOST * len(placed.layer.keys) else ()
        normed = step.workspace.normed if rows.tokens is None else step.workspace.normed[rows.tokens]
        numbers = gate(GateInput(torch.from_numpy(normed), variants))
        if variants is not None:
            return variants.keys_of_rows(following.number, len(numbers))(following.number, numbers)
        return [following.keys[number] for number in np.unique(numbers).tolist() if number < len(following.keys)]

    def _output(self, step: PassStep, given: PassInput, rows: RowOwners) -> StepOutput:
        logits, hidden, _ = self._native.finish_step(step)
        record, num_tokens = step.experts.record, len(step.tokens.token_ids)
        return StepOutput(
            logits,
            StepRouting(record, num_tokens),
            record.cost,
            attribute_costs(record.parts, rows),
            last_choices_of_chunks(record.parts, rows, self._text_layers),
            hidden,
            record.stalls,
            ()
            if given.adapters is None or given.adapters.choices is None
            else given.adapters.choices.chosen(given.chunks),
        )
