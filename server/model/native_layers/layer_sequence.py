"""LayerSequence: runs the layers of a step, as many in one call of the kernels as find their experts in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ctypes import c_float
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from expert_store.prefetching.prefetcher import NUM_RANKS
from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import LayerSpec
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import mix_outside
from server.model.blocks.mixer import MixerStep
from server.model.blocks.workspace import Workspace
from server.model.experts.resident_experts import ResidentExperts, RoutedLayers
from server.model.experts.step_experts import StepExperts
from server.model.native_layers.step_images import ImageRows
from server.model.program import Target


class LayerSequence:
    """The layers of a model, and the calls that run them.

    A *segment* of neighbouring layers ends before a layer whose mixer runs outside of the kernels, so a model without
    such is one segment. One call runs a segment up to the first layer that chooses an expert which is not in memory.
    That layer leases its own experts; then the next call goes on behind it. In a step that predicts, so does a layer
    whose successor is predicted to choose an expert that is not in memory: a read takes a slot, and the hold of all
    residents leaves none.

    Other threads evict, resize and remove variants meanwhile, so:

    - the kernels read a slot only during a hold or a lease that was taken before the call and ends after it;
    - addresses are taken anew at each hold, and no hold is open while a layer leases or anything is requested;
    - each layer is counted, recorded and observed once, in the order in which layers run, however it ran.

    Args:
        layers: in their order.
        image_layers: the experts for images of each layer with experts; empty if there are none.
        workspace: the arrays of a step.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[NativeLayer],
        image_layers: Sequence[NativeLayer],
        workspace: Workspace,
    ):
        self._kernels, self._layers, self._workspace = kernels, layers, workspace
        self._image_layers = image_layers
        self.specs = (LayerSpec * (len(layers) + len(image_layers)))(*(each.spec for each in (*layers, *image_layers)))
        routed = [spec for spec, layer in zip(self.specs, layers, strict=False) if layer.experts is not None]
        for spec, following in pairwise(routed):
            spec.next_mixture = following.feed_forward
        self._routed = [layer.experts for layer in layers if layer.experts is not None]
        self._numbers = [layer.number for layer in self._routed]
        self._top_ks = [layer.mixture.router.top_k for layer in layers if layer.experts is not None]
        self._places = list(accumulate((layer.experts is not None for layer in layers), initial=0))
        self._segments = self._split(())
        self._ranges: dict[tuple[int, int], _Routed] = {}  # those that were recorded, by their first and last one
        self._counts = np.zeros((0, 0), np.int64)  # rows of each expert, by layer
        self._addresses = self._slots = np.zeros((0, 0), np.uint64)  # as they were held last, and those of these layers
        self._slots_address = self._counts_address = 0
        self._predicts = False  # whether this step does
        self._reads = [False] * len(self._routed)  # layers that leased their experts last time, and had to read

    def run(self, experts: StepExperts, mixers: MixerStep, images: ImageRows | None) -> None:
        """Run all layers on the rows of the workspace."""
        segments = self._segments
        if images is not None and images.additions:
            segments = self._split({layer + 1 for layer in images.additions})
        num_routed = 0  # layers with experts that have run
        are_images = None if images is None else images.to_image_experts
        self._predicts = are_images is None and experts.predicts
        held = self._hold(experts, 0) if are_images is None else None
        try:
            for segment in segments:
                mixer, spec = self._layers[segment.first].mixer, self.specs[segment.first]
                mix_outside(self._kernels, mixer, spec, self._workspace, mixers)
                index = segment.first
                while (index := self._run_held(index, segment.end, held)) < segment.end:
                    self._record(experts, held, num_routed, self._places[index])
                    held = None
                    if are_images is None:
                        self._run_leased(index, experts)
                    else:
                        self._run_divided(index, experts, are_images)
                    index += 1
                    num_routed = self._places[index]
                    held = self._hold(experts, num_routed) if are_images is None else None
                if images is not None:
                    images.add_after(segment.end - 1, torch.from_numpy(self._workspace.hidden))
            self._record(experts, held, num_routed, len(self._routed))
        except BaseException:
            if held is not None:
                held.cancel()
            raise
        if self._predicts:
            experts.request()

    def _hold(self, experts: StepExperts, place: int) -> ResidentExperts | None:
        """Hold the experts that are in memory, and describe them to the kernels.

        Args:
            place: of the next layer with experts; if it had to read last time, a hold would hardly outlast it.
        """
        will_read = place == len(self._reads) or self._reads[place]
        held, call = None if will_read else experts.hold_residents(), self._workspace.call
        self._predicts = self._predicts and not (held is not None and held.holds_all)
        if self._predicts:
            self._workspace.predict(experts.asked_ranks(self._numbers), NUM_RANKS)
        else:
            call.predictions = None
        if held is not None:
            if held.addresses is not self._addresses:  # experts have moved
                self._addresses, self._slots = held.addresses, held.slots(self._numbers)
                if self._counts.shape != self._slots.shape:
                    self._counts = np.zeros(self._slots.shape, np.int64)
                self._slots_address, self._counts_address = self._slots.ctypes.data, self._counts.ctypes.data
            call.slots, call.counts = self._slots_address, self._counts_address
            call.most_experts = self._slots.shape[1]
        return held

    def _run_held(self, first: int, end: int, held: ResidentExperts | None) -> int:
        """Run layers whose experts are held.

        Returns:
            The first layer with other experts, which has only begun; ``end`` if there is none.
        """
        kernels, call = self._kernels, self._workspace.call
        if held is not None:
            return first + kernels.layers(self.specs, call, self._places[first], first, end)
        for index in range(first, end):
            kernels.begin_layer(self.specs[index], call, self._places[index])
            if self._layers[index].experts is not None:
                return index
            kernels.finish_layer(self.specs[index], call, self._places[index], 0)
        return end

    def _run_leased(self, index: int, experts: StepExperts) -> None:
        """Run the experts of a layer that has begun under a lease of its own, and finish the layer."""
        place = self._places[index]
        outputs = self._run_experts(self._layers[index], place, experts, slice(None))
        self._reads[place] = experts.has_read
        self._kernels.finish_layer(self.specs[index], self._workspace.call, place, outputs)

    def _run_divided(self, index: int, experts: StepExperts, are_images: npt.NDArray[np.bool_]) -> None:
        """Run the experts of a layer that has begun, and those for images on the tokens of images.

        Args:
            are_images: ``(tokens,)``.
        """
        workspace, place = self._workspace, self._places[index]
        top_k, image_place = self._top_ks[place], len(self._routed) + place
        self._kernels.begin_layer(self.specs[len(self._layers) + place], workspace.call, image_place)
        weights, of_images = (workspace.weights(each, top_k) for each in (place, image_place))
        weights[are_images] = of_images[are_images]
        outputs = np.empty((len(are_images), top_k, workspace.call.hidden_size), dtype=np.float32)
        for layer, own_place, rows in (
            (self._layers[index], place, ~are_images),
            (self._image_layers[place], image_place, are_images),
        ):
            found, shape = self._run_experts(layer, own_place, experts, rows), outputs[rows].shape
            if found:
                numbers = (c_float * int(np.prod(shape))).from_address(found)
                outputs[rows] = np.ctypeslib.as_array(numbers).reshape(shape)
        self._kernels.finish_layer(self.specs[index], workspace.call, place, outputs.ctypes.data)

    def _run_experts(
        self, layer: NativeLayer, place: int, experts: StepExperts, rows: slice | npt.NDArray[np.bool_]
    ) -> int:
        """Run the chosen experts of a layer on some tokens; return the address of the outputs.

        Args:
            place: of the layer among those with experts.
        """
        workspace, top_k = self._workspace, layer.mixture.router.top_k
        assert layer.experts is not None
        predicted = self._predicted(experts, place, place + 1)[0] if self._predicts else None
        normed, weights = workspace.layer_inputs(place, top_k)
        are_all = isinstance(rows, slice)
        return experts.run_unweighted(
            layer.experts,
            normed if are_all else normed[torch.from_numpy(rows)],
            workspace.chosen(place, top_k)[rows].astype(np.int64),
            weights if are_all else weights[torch.from_numpy(rows)],
            is_exact=bool(workspace.call.is_exact),
            predicted=predicted,
        )

    def _record(self, experts: StepExperts, held: ResidentExperts | None, first: int, end: int) -> None:
        """End a hold, and record the layers with experts that ran under it."""
        if held is not None and first == end:
            held.cancel()
        elif held is not None:
            ran = self._ranges.get((first, end)) or self._range(first, end)
            chosen = self._workspace.all_chosen(first, ran.top_ks)
            predicted = self._predicted(experts, first, end) if self._predicts else None
            held.finish(ran.layers, chosen, ran.num_choices, self._counts[first:end].copy(), predicted)

    def _range(self, first: int, end: int) -> _Routed:
        """Describe some neighbouring layers with experts."""
        top_ks = self._top_ks[first:end]
        described = _Routed(RoutedLayers(self._routed[first:end]), top_ks, sum(top_ks))
        self._ranges[first, end] = described
        return described

    def _predicted(self, experts: StepExperts, first: int, end: int) -> list[npt.NDArray[np.int64] | None]:
        """Return for each layer with experts the numbers that were predicted of the next one; None after the last."""
        return [
            experts.numbers_of(self._numbers[place], self._workspace.predicted(place, self._top_ks[place]))
            if place < len(self._numbers)
            else None
            for place in range(first + 1, end + 1)
        ]

    def _split(self, more: Collection[int]) -> list[_Segment]:
        """Return the segments; the layers in ``more`` begin one, too."""
        firsts = [
            index
            for index, layer in enumerate(self._layers)
            if not index or layer.mixer.target is not Target.NATIVE or index in more
        ]
        return [_Segment(first, end) for first, end in pairwise([*firsts, len(self._layers)])]


class _Routed(NamedTuple):
    """Neighbouring layers with experts."""

    layers: RoutedLayers
    top_ks: list[int]  # experts a token
    num_choices: int  # of a token in all of them


class _Segment(NamedTuple):
    """Neighbouring layers that may run in one call."""

    first: int
    end: int
