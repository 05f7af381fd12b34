"""LayerSequence: runs the layers of a step, as many in one call of the kernels as find their experts in memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from expert_store import StepLease
from expert_store.prefetching.prefetcher import NUM_RANKS
from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import LayerSpec, Mixture
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import mix_outside
from server.model.blocks.mixer import MixerStep
from server.model.blocks.workspace import Workspace
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_hold import RoutedLayers, StepHold, slots_of
from server.model.native_layers.image_experts import ChosenRows, ImageExperts
from server.model.native_layers.step_images import ImageRows
from server.model.program import Target


class LayerSequence:
    """The layers of a model, and the calls that run them.

    A *segment* of neighbouring layers ends before a layer whose mixer runs outside of the kernels, so a model without
    such is one segment. One call runs a segment up to the first layer that chooses an expert which is not in memory.
    That layer leases its own experts, and runs them batch by batch; then the next call goes on behind it. In a step
    that predicts, so does a layer whose successor is predicted to choose an expert that is not in memory: a read takes
    a slot, and the hold of all residents leaves none.

    Other threads evict, resize and remove variants meanwhile, so:

    - the kernels read a slot only during a hold or a lease that was taken before the call and ends after it;
    - each hold updates the table of addresses, and none is open while a layer leases or anything is requested;
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
        self.specs = (LayerSpec * (len(layers) + len(image_layers)))(*(each.spec for each in (*layers, *image_layers)))
        self.images = ImageExperts(kernels, self.specs, layers, image_layers)
        routed = [spec for spec, layer in zip(self.specs, layers, strict=False) if layer.experts is not None]
        for spec, following in pairwise(routed):
            if not Mixture.from_address(following.feed_forward).router.mlp:  # which takes what this layer's carries
                spec.next_mixture = following.feed_forward
        self._routed = [layer.experts for layer in layers if layer.experts is not None]
        self._numbers = [layer.number for layer in self._routed]
        self.num_layers = len(layers)
        self.top_ks = [layer.mixture.router.top_k for layer in layers if layer.experts is not None]
        self._places = list(accumulate((layer.experts is not None for layer in layers), initial=0))
        self._segments = self._split(())
        self._ranges: dict[tuple[int, int], _Routed] = {}  # those that were recorded, by their first and last one
        self._counts = np.zeros((0, 0), np.int64)  # rows of each expert, by layer, and by image layer
        self._slots = np.zeros((0, 0), np.uint64)  # the addresses that were held last
        self._slots_version = -1
        self._slots_address = self._counts_address = 0
        self._num_places = max((len(layer.keys) for layer in self.images.routed), default=0)
        self._predicts = False  # whether this step does
        self.after_layer: Callable[[int, torch.Tensor], None] | None = None  # gets its number and the residual stream

    def run(self, experts: StepExperts, mixers: MixerStep, images: ImageRows | None) -> None:
        """Run all layers on the rows of the workspace."""
        segments = self._segments_of(images)
        num_routed = 0  # layers with experts that have run
        are_images = None if images is None else images.to_image_experts
        self._predicts = are_images is None and experts.predicts
        variants = experts.variants
        self._count(self._num_places if variants is None else max(map(len, variants.keys.values())))
        held = self._hold(experts, 0) if are_images is None else None
        try:
            for segment in segments:
                mixer, spec = self._layers[segment.first].mixer, self.specs[segment.first]
                mix_outside(self._kernels, mixer, spec, self._workspace, mixers)
                index = segment.first
                while (index := self._run_layers(index, segment.end)) < segment.end:
                    self._record(experts, held, num_routed, self._places[index])
                    held = None
                    if are_images is None:
                        self._run_leased(index, experts)
                    else:
                        self._run_divided(index, experts, are_images)
                    index += 1
                    num_routed = self._places[index]
                    held = self._hold(experts, num_routed) if are_images is None else None
                self._end_segment(segment, images)
            self._record_last(experts, held, num_routed)
        except BaseException:
            if held is not None:
                held.cancel()
            raise
        if self._predicts:
            experts.request()

    def _segments_of(self, images: ImageRows | None) -> Sequence[_Segment]:
        """Return the segments of a step: neighbouring layers, between which something else happens."""
        if self.after_layer is not None:
            return self._split(range(len(self._layers)))
        if images is not None and images.additions:
            return self._split({layer + 1 for layer in images.additions})
        return self._segments

    def _end_segment(self, segment: _Segment, images: ImageRows | None) -> None:
        if images is not None:
            images.add_after(segment.end - 1, torch.from_numpy(self._workspace.hidden))
        if self.after_layer is not None:
            self.after_layer(segment.end - 1, torch.from_numpy(self._workspace.residual).clone())

    def _hold(self, experts: StepExperts, place: int) -> StepHold | None:
        """Hold the experts that are in memory, and describe them to the kernels.

        Args:
            place: of the next layer with experts.
        """
        held, call = None if place == len(self._routed) else experts.hold_residents(), self._workspace.call
        self._predicts = self._predicts and not (held is not None and held.holds_all)
        if self._predicts:
            self._workspace.predict(experts.asked_ranks(self._numbers), NUM_RANKS)
        else:
            call.predictions = None
        if held is None:
            call.slots = None
            return None
        call.slots, num_places = self.address_slots(held.lease)
        self._count(num_places)
        return held

    def address_slots(self, lease: StepLease) -> tuple[int, int]:
        """Return the address of the table of slots under a lease, ``(layers, places)``, and its places."""
        if lease.version != self._slots_version:  # experts have moved
            slots, self._slots_version = slots_of(lease, self._numbers), lease.version
            if slots is not self._slots:
                self._slots, self._slots_address = slots, slots.ctypes.data
        return self._slots_address, self._slots.shape[1]

    def finish_all(
        self,
        held: StepHold,
        chosen: Callable[[], list[npt.NDArray[np.int64]]],
        counts: npt.NDArray[np.int64],
    ) -> None:
        """End a hold of all experts, under which all layers have run; see ``StepHold.finish``."""
        ran = self._ran(0, len(self._routed))
        held.finish(ran.layers, chosen, ran.num_choices, counts)

    def _run_layers(self, first: int, end: int) -> int:
        """Run layers whose experts are held; return the first one with others, which has only begun, or ``end``."""
        return first + self._kernels.layers(self.specs, self._workspace.call, self._places[first], first, end)

    def _count(self, num_places: int) -> None:
        """Let the kernels count the rows of so many places of each layer."""
        call = self._workspace.call
        if self._counts.shape[1] != num_places:
            self._counts = np.zeros((len(self.images.routed), num_places), np.int64)
            self._counts_address = self._counts.ctypes.data
        call.counts, call.most_experts = self._counts_address, num_places

    def _run_leased(self, index: int, experts: StepExperts) -> None:
        """Run the experts of a layer that has begun under a lease of its own, and finish the layer."""
        workspace, layer, place = self._workspace, self._layers[index], self._places[index]
        top_k = self.top_ks[place]
        assert layer.experts is not None
        experts.run_chosen(
            layer.experts,
            workspace.layer_inputs(place, top_k)[0] if experts.asks_ahead else None,
            workspace.chosen(place, top_k).astype(np.int64),
            {number: count for number, count in enumerate(self._counts[place].tolist()) if count},
            lambda places, slots, are_last: self._kernels.chosen_experts(
                self.specs[index], workspace.call, place, places, slots, are_last=are_last
            ),
            predicted=self._predicted(experts, place, place + 1)[0] if self._predicts else None,
        )

    def _run_divided(self, index: int, experts: StepExperts, are_images: npt.NDArray[np.bool_]) -> None:
        """Run the experts of a layer that has begun, and those for images on the tokens of images.

        Args:
            are_images: ``(tokens,)``.
        """
        workspace, place = self._workspace, self._places[index]
        for part in self.images.divide(workspace, index, place, are_images):
            normed = torch.from_numpy(workspace.normed[part.tokens]) if experts.asks_ahead else None
            experts.run_chosen(part.layer, normed, part.chosen, None, partial(self._run_part, part))
        self._kernels.finish_layer(self.specs[index], workspace.call, place, 0)

    def _run_part(self, part: ChosenRows, places: array[int], slots: array[int], are_last: bool) -> None:
        """Run some of the experts of a layer that is finished once those for images have run, too."""
        del are_last
        call = self._workspace.call
        self._kernels.chosen_experts(self.specs[part.spec_index], call, part.place, places, slots, are_last=False)

    def _record(self, experts: StepExperts, held: StepHold | None, first: int, end: int) -> None:
        """End a hold, and record the layers with experts that ran under it."""
        if held is not None and first == end:
            held.cancel()
        elif held is not None:
            ran = self._ran(first, end)
            chosen = self._workspace.all_chosen(first, ran.top_ks)
            predicted = self._predicted(experts, first, end) if self._predicts else None
            held.finish(ran.layers, chosen, ran.num_choices, self._counts[first:end].copy(), predicted)

    def _record_last(self, experts: StepExperts, held: StepHold | None, first: int) -> None:
        """Record the last layers with experts beside the head, unless predictions are asked for at once."""
        end = len(self._routed)
        if self._predicts or held is None or first == end:
            self._record(experts, held, first, end)
        else:
            self._kernels.deferred.add(lambda: self._record(experts, held, first, end))

    def _ran(self, first: int, end: int) -> _Routed:
        """Return the description of some neighbouring layers with experts."""
        described = self._ranges.get((first, end))
        if described is None:
            top_ks = self.top_ks[first:end]
            described = _Routed(RoutedLayers(self._routed[first:end]), top_ks, sum(top_ks))
            self._ranges[first, end] = described
        return described

    def _predicted(self, experts: StepExperts, first: int, end: int) -> list[npt.NDArray[np.int64] | None]:
        """Return for each layer with experts the numbers that were predicted of the next one; None after the last."""
        return [
            experts.numbers_of(self._numbers[place], self._workspace.predicted(place, self.top_ks[place]))
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
