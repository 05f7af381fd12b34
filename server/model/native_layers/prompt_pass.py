"""NativePass: several steps of prompts, layer by layer, with one lease of each layer's experts for all of them."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import torch

from expert_store import ExpertKey, ExpertStore, Lease
from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import LayerSpec
from server.model.adapters.step_adapters import StepAdapters
from server.model.blocks.layer import NativeLayer
from server.model.blocks.workspace import Workspace
from server.model.experts.step_experts import PlacedChoices, StepExperts
from server.model.experts.step_record import LeaseCost
from server.model.multimodal.image_embeddings import StepImages
from server.model.native_layers.image_experts import ChosenRows, ImageExperts
from server.model.native_layers.spec import INNER_RESULTS
from server.model.native_layers.step_images import ImageRows
from server.model.recurrent.states import StateCache, StateKey
from server.model.step import SequenceChunk, StepTokens

# From a step and what a layer of experts has chosen for it to experts of the next layer.
PredictNext = Callable[["PassStep", "PassChoices"], Sequence[ExpertKey]]


class PassInput(NamedTuple):
    """One step of a pass, as the trunk describes it."""

    chunks: Sequence[SequenceChunk]
    tokens: StepTokens
    experts: StepExperts
    adapters: StepAdapters | None
    images: StepImages | None


@dataclass
class PassStep:
    """One step of a pass, as the kernels run it.

    Args:
        tokens: of all chunks.
        workspace: its arrays, which describe the step.
        experts: records what its tokens use.
        keeps: what the description of the step refers to.
        snapshots: rows with states after the step, and rows to copy them to.
        last_rows: of tokens that end a prompt.
    """

    tokens: StepTokens
    workspace: Workspace
    experts: StepExperts
    images: ImageRows | None
    keeps: Sequence[object]
    snapshots: Sequence[tuple[int, int]] = ()
    last_rows: Sequence[int] = ()


class PassChoices(NamedTuple):
    """Choices of a layer of experts for a step: the layer's own experts, or those for images."""

    rows: ChosenRows
    placed: PlacedChoices


class NativePass:
    """The units of work of a pass; see ``PromptPass``.

    A *unit* is one step up to the choice of experts of the next layer that has some, or one step's experts there. A
    layer's experts are leased once for all steps, all at the same time, and the next layer's are read meanwhile: those
    that its router chooses for this layer's inputs. What the last tokens of prompts chose stays in memory for decoding;
    all else that the pass brought makes room first.

    Args:
        specs, layers: of the model, in order.
        images: the experts for images.
        steps: described, and in order: a step's tokens see those of the steps before it.
        predict: returns experts of the next layer to read ahead.
        states: of recurrent layers, if the model has some.
    """

    def __init__(
        self,
        kernels: Kernels,
        specs: ctypes.Array[LayerSpec],
        layers: Sequence[NativeLayer],
        steps: Sequence[PassStep],
        *,
        images: ImageExperts,
        store: ExpertStore,
        predict: PredictNext,
        states: StateCache | None,
    ):
        self._kernels, self._specs, self._layers, self.steps = kernels, specs, layers, steps
        self._images, self._store, self._predict, self._states = images, store, predict, states
        self._places = list(accumulate((layer.experts is not None for layer in layers), initial=0))
        self._awaited: Lease | None = None
        self._num_run = 0  # layers
        self.is_finished = False
        self.saved_bytes = 0
        self._held = ExitStack()  # leases
        self._counts = np.zeros(0, np.int64)
        self._units = self._run()

    @property
    def progress(self) -> float:
        """The part of the layers that have run, 0 to 1."""
        return self._num_run / len(self._layers)

    def advance(self, *, wait_seconds: float) -> bool:
        """Run one unit; see ``PromptPass.advance``."""
        if self._awaited is not None and not self._awaited.wait(wait_seconds):
            return False
        try:
            self._awaited = next(self._units)
        except StopIteration:
            self._awaited, self.is_finished = None, True
        return True

    def cancel(self) -> None:
        """Give back all experts."""
        self._units.close()
        self._held.close()

    def _run(self) -> Generator[Lease | None, None, None]:
        """Run all layers; after each unit yield the lease that the next one waits for, if it does."""
        first, count = 0, len(self._layers)
        with self._held:
            while first < count:
                routed = next((i for i in range(first, count) if self._layers[i].experts is not None), count)
                chosen: list[Sequence[PassChoices]] = []
                for step in self.steps:
                    self._begin(step, first, routed)
                    if routed < count:
                        chosen.append(self._choices(step, routed))
                    yield None
                if routed < count:
                    yield from self._run_experts(routed, chosen)
                self._num_run = first = min(routed + 1, count)

    def _begin(self, step: PassStep, first: int, routed: int) -> None:
        """Run a step's layers from ``first`` up to the choice of experts of the layer ``routed``."""
        workspace, stops = step.workspace, [] if step.images is None else sorted(step.images.additions)
        index = first
        for end in [*(stop + 1 for stop in stops if first <= stop < routed), min(routed + 1, len(self._layers))]:
            self._count(step)
            workspace.call.slots = workspace.call.predictions = None
            index += self._kernels.layers(self._specs, workspace.call, self._places[index], index, end)
            if index == end:
                self._add_images(step, end - 1)
        for each in range(first, min(routed + 1, len(self._layers))):
            late = self._layers[each].states_after(INNER_RESULTS) if each == routed else {}
            self._keep_states(step, [key for key in self._layers[each].states if key not in late])

    def _count(self, step: PassStep) -> None:
        """Let the kernels count the rows of each expert of a step."""
        call, variants = step.workspace.call, step.experts.variants
        routed = self._images.routed
        width = max(len(each.keys) for each in routed) if variants is None else max(map(len, variants.keys.values()))
        if len(self._counts) < len(routed) * width:
            self._counts = np.zeros(len(routed) * width, np.int64)
        call.counts, call.most_experts = self._counts.ctypes.data, width

    def _choices(self, step: PassStep, index: int) -> Sequence[PassChoices]:
        """Return the experts that a layer, which has begun, has chosen for a step."""
        layer, place, experts = self._layers[index], self._places[index], step.experts
        assert layer.experts is not None
        if step.images is not None and step.images.to_image_experts is not None:
            divided = self._images.divide(step.workspace, index, place, step.images.to_image_experts)
            return [PassChoices(rows, experts.place(rows.layer, rows.chosen, None)) for rows in divided]
        width = step.workspace.call.most_experts
        counts = self._counts[place * width : (place + 1) * width].tolist()
        chosen = step.workspace.chosen(place, layer.mixture.router.top_k).astype(np.int64)
        counted = {number: count for number, count in enumerate(counts) if count}
        rows = ChosenRows(index, place, layer.experts, chosen)
        return [PassChoices(rows, experts.place(layer.experts, chosen, counted))]

    def _run_experts(self, index: int, choices: Sequence[Sequence[PassChoices]]) -> Generator[Lease | None, None, None]:
        """Run the experts of a layer for all steps, under one lease of each layer of experts."""
        wanted: dict[int, dict[ExpertKey, int]] = {}
        for each in chain.from_iterable(choices):
            rows = wanted.setdefault(each.placed.layer.number, {})
            for key, count in each.placed.rows.items():
                rows[key] = rows.get(key, 0) + count
        leases = {layer: self._store.lease_passing(rows) for layer, rows in wanted.items()}
        with ExitStack() as leased:
            for lease in leases.values():
                leased.enter_context(lease)
            self._held.close()  # what was read ahead of this layer: the leases have what it chose
            self._read_ahead(choices)
            addresses: dict[ExpertKey, int] = {}
            for lease in leases.values():
                yield lease
                for ready in lease.batches():
                    addresses |= zip(ready.keys, ready.addresses, strict=True)
            for step, chosen in zip(self.steps, choices, strict=True):
                self._run_given(step, index, chosen, addresses)
                if step is not self.steps[-1]:
                    yield None
        for layer, lease in leases.items():
            self._record(layer, choices, lease)
        self._keep_last(choices)
        yield None

    def _read_ahead(self, choices: Sequence[Sequence[PassChoices]]) -> None:
        """Read experts of the next layer, while those of this one are read and computed."""
        keys: dict[ExpertKey, None] = {}
        for step, chosen in zip(self.steps, choices, strict=True):
            for each in chosen:
                keys |= dict.fromkeys(self._predict(step, each))
        if keys:
            self._held.enter_context(self._store.read_ahead(keys))

    def _run_given(
        self, step: PassStep, index: int, chosen: Sequence[PassChoices], addresses: Mapping[ExpertKey, int]
    ) -> None:
        """Run a step's experts of a layer that has begun, and finish the layer."""
        self._count(step)
        call = step.workspace.call
        for rows, placed in chosen:
            places = array("i", [placed.place_of[key] for key in placed.rows])
            slots = array("Q", [addresses[key] for key in placed.rows])
            self._kernels.chosen_experts(self._specs[rows.spec_index], call, rows.place, places, slots, are_last=False)
        self._kernels.finish_layer(self._specs[index], call, self._places[index], 0)
        self._keep_states(step, self._layers[index].states_after(INNER_RESULTS))
        self._add_images(step, index)

    def _add_images(self, step: PassStep, index: int) -> None:
        if step.images is not None:
            step.images.add_after(index, torch.from_numpy(step.workspace.hidden))

    def _keep_states(self, step: PassStep, keys: Iterable[StateKey]) -> None:
        """Copy states after a step to snapshots, before the next step but one overwrites them."""
        if self._states is not None and step.snapshots:
            self._states.copy_rows(keys, step.snapshots)

    def _record(self, layer: int, choices: Sequence[Sequence[PassChoices]], lease: Lease) -> None:
        """Record a layer of experts in each step; the first one that uses a missed expert bears its cost."""
        missed, read_ahead = dict(lease.missed), set(lease.read_ahead)
        for key in (*missed, *read_ahead):
            num_uses = sum(any(key in placed.rows for _, placed in chosen) for chosen in choices)
            self.saved_bytes += (num_uses - 1) * self._store.catalog.read_bytes(key)
        stall = lease.stall_seconds
        for step, chosen in zip(self.steps, choices, strict=True):
            for _, placed in chosen:
                if placed.layer.number != layer:
                    continue
                own = {key: missed.pop(key) for key in placed.rows if key in missed}
                own_ahead = read_ahead & placed.rows.keys()
                read_ahead -= own_ahead
                cost = LeaseCost(own, own_ahead, len(placed.rows), stall, lease.stalled_from, lease.stalled_to)
                step.experts.add_cost(placed, cost)
                stall = 0.0

    def _keep_last(self, choices: Sequence[Sequence[PassChoices]]) -> None:
        """Keep the experts of the last tokens of prompts for decoding."""
        for step, chosen in zip(self.steps, choices, strict=True):
            for rows, placed in chosen:
                last = step.last_rows if rows.tokens is None else np.isin(rows.tokens, step.last_rows)
                found = {int(place) for place in placed.chosen[last].ravel()}
                self._store.keep([placed.keys[place] for place in found if place < len(placed.keys)])
