"""StepVariants: the experts of a step in which some sequences use variants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from expert_store import ExpertKey, KeysOf
from server.model.expert_variant import ExpertVariant
from server.model.experts.expert_layer import ExpertLayer
from server.model.step import SequenceChunk

IntArray = npt.NDArray[np.int64]
NO_EXPERT = np.iinfo(np.int64).max
MOST_SETS = 16  # combinations of variants whose tables are kept


class LayerPlaces(NamedTuple):
    """The experts of one layer that sequences of a step may use, one *place* each.

    Args:
        keys: of each place; the layer's own experts come first.
        table: ``(sets, rows + 1)``: the place of each row of a set's router; ``len(keys)`` for no expert.
        numbers: the expert's number of each place, and ``NO_EXPERT`` after the last.
        numbered: ``(sets, numbers + 1)``: the place of the expert with each number in a set; ``len(keys)`` for none.
    """

    keys: tuple[ExpertKey, ...]
    table: IntArray
    numbers: IntArray
    numbered: IntArray

    def place(self, chosen: IntArray, sets: IntArray) -> IntArray:
        """Return the places of chosen router rows, ``(tokens, k)``.

        Args:
            sets: of each token, ``(tokens,)``.
        """
        rows = np.minimum(chosen, self.table.shape[1] - 1)
        places: IntArray = self.table[sets[:, None], rows]
        return places

    def keys_of(self, numbers: npt.NDArray[np.integer], sets: IntArray) -> list[ExpertKey]:
        """Return the distinct experts with some numbers, ``(tokens, k)``, those of the first column first.

        Args:
            sets: of each token, ``(tokens,)``.
        """
        places = self.numbered[sets[:, None], np.minimum(numbers, self.numbered.shape[1] - 1)]
        return [self.keys[place] for place in dict.fromkeys(places.T.ravel().tolist()) if place < len(self.keys)]


class StepVariants:
    """The variants of a step. Set 0 is the model's own experts, set i the i-th variant.

    Args:
        tables: keeps places from step to step.
        chunks: of the step; some of them have a variant.
        owners: returns the chunk of each row of a layer, ``(rows,)``.
    """

    def __init__(self, tables: PlaceTables, chunks: Sequence[SequenceChunk], owners: Callable[[int], IntArray]):
        found: dict[ExpertVariant, int] = {}
        sets = []
        for chunk in chunks:
            variant = None if chunk.weights is None else chunk.weights.variant
            sets.append(0 if variant is None else found.setdefault(variant, len(found) + 1))
        self.variants = tuple(found)
        self.sets = np.array(sets, dtype=np.int64)  # of each chunk
        self._owners = owners
        self.places_by_layer = tables.places(self.variants)
        self._sets_of_tokens = self.sets.repeat([chunk.num_tokens for chunk in chunks])

    def places(self, layer: ExpertLayer) -> LayerPlaces:
        """Return the places of a layer's experts."""
        return self.places_by_layer[layer.number]

    @property
    def keys(self) -> Mapping[int, tuple[ExpertKey, ...]]:
        """The experts of each layer, by place; the same object for the same variants."""
        return self.places_by_layer.keys_by_layer

    def keys_of_rows(self, layer: int, num_rows: int) -> KeysOf:
        """Return what maps the numbers that a layer's rows choose to experts, of that layer and others."""
        sets = self.sets_of_rows(layer, num_rows)
        return lambda number, numbers: self.places_by_layer[number].keys_of(numbers, sets)

    def numbers_of(self, layer: int, rows: IntArray) -> IntArray:
        """Return the numbers of the experts that rows of each token's router stand for, ``(tokens, k)``."""
        places = self.places_by_layer[layer]
        return places.numbers[places.place(rows, self.sets_of_rows(layer, len(rows)))]

    def sets_of_rows(self, layer: int, num_rows: int) -> IntArray:
        """Return the set of each row of a layer, ``(rows,)``."""
        if num_rows == len(self._sets_of_tokens):
            return self._sets_of_tokens
        return self.sets.repeat(num_rows) if len(self.sets) == 1 else self.sets[self._owners(layer)]


def has_variants(chunks: Sequence[SequenceChunk]) -> bool:
    """Return True if a sequence of a step uses a variant."""
    return any(chunk.weights is not None and chunk.weights.variant is not None for chunk in chunks)


class PlacesByLayer:
    """The places of all layers for one combination of variants."""

    def __init__(self, layers: Iterable[ExpertLayer], variants: Sequence[ExpertVariant]):
        self._places = {layer.number: _layer_places(layer, variants) for layer in layers}
        self.keys_by_layer = {number: places.keys for number, places in self._places.items()}

    def __getitem__(self, layer: int) -> LayerPlaces:
        return self._places[layer]


class PlaceTables:
    """Places by combination of variants; those of the last combinations are kept.

    Args:
        layers: all layers of experts, in the order of the store's layers.
    """

    def __init__(self, layers: Iterable[ExpertLayer]) -> None:
        self._layers = sorted(layers, key=lambda layer: layer.number)
        self._known: OrderedDict[tuple[str, ...], PlacesByLayer] = OrderedDict()

    def places(self, variants: tuple[ExpertVariant, ...]) -> PlacesByLayer:
        """Return the places of all layers' experts."""
        combination = tuple(variant.version for variant in variants)
        found = self._known.get(combination)
        if found is None:
            found = self._known[combination] = PlacesByLayer(self._layers, variants)
            if len(self._known) > MOST_SETS:
                self._known.popitem(last=False)
        self._known.move_to_end(combination)
        return found


def _layer_places(layer: ExpertLayer, variants: Sequence[ExpertVariant]) -> LayerPlaces:
    own = [variant.layers.get(layer.number) for variant in variants]
    rows = [layer.keys, *(layer.keys if each is None else each.keys for each in own)]
    places: dict[ExpertKey, int] = {}
    for keys in rows:
        for key in keys:
            places.setdefault(key, len(places))
    table = np.full((len(rows), max(map(len, rows)) + 1), len(places), dtype=np.int64)
    for row, keys in zip(table, rows, strict=True):
        row[: len(keys)] = [places[key] for key in keys]
    numbers = np.array([*(key.expert for key in places), NO_EXPERT], dtype=np.int64)
    numbered = np.full((len(rows), max(key.expert for key in places) + 2), len(places), dtype=np.int64)
    for row, keys in zip(numbered, rows, strict=True):
        row[[key.expert for key in keys]] = [places[key] for key in keys]
    return LayerPlaces(tuple(places), table, numbers, numbered)
