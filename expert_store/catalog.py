"""Catalog of experts: the bytes of the sources that make up each, and their places in a slot."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple, Protocol

import torch

from expert_store.errors import CheckpointError
from expert_store.keys import BASE, ExpertKey
from expert_store.sources.base import PAGE_BYTES, LocalSource, Source
from expert_store.sources.runs import MAX_GAP_BYTES

TENSOR_ALIGNMENT = 64  # bytes; suits vector loads


@dataclass(frozen=True)
class Extent:
    """A run of bytes in a source, such as a file."""

    source: Source
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a checkpoint, or some slices of its first dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    extent: Extent

    def leading_part(self, index: int, num_parts: int) -> TensorSource:
        """Return part ``index`` of the first dimension, cut into ``num_parts`` equal parts of one slice or several."""
        nbytes = self.extent.nbytes // num_parts
        extent = Extent(self.extent.source, self.extent.offset + index * nbytes, nbytes)
        return TensorSource(self.name, self.dtype, (self.shape[0] // num_parts, *self.shape[1:]), extent)

    def rows(self, first: int, count: int) -> TensorSource:
        """Return some slices of the first dimension."""
        nbytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        extent = Extent(self.extent.source, self.extent.offset + first * nbytes, count * nbytes)
        return TensorSource(self.name, self.dtype, (count, *self.shape[1:]), extent)


class ParameterSpec(NamedTuple):
    """Name, dtype and shape of one tensor of an expert in a slot."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ExpertLayout:
    """The tensors of one expert at fixed, aligned offsets of a slot. Layers of equal layout share slots."""

    parameters: tuple[ParameterSpec, ...]

    @cached_property
    def offsets(self) -> dict[str, int]:
        offsets, end = {}, 0
        for parameter in self.parameters:
            offsets[parameter.name] = end
            end += _aligned(parameter.nbytes)
        return offsets

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of a slot: a multiple of a page, so that one direct read fills it and its pages can be freed alone."""
        used = sum(_aligned(parameter.nbytes) for parameter in self.parameters)
        return -(-used // PAGE_BYTES) * PAGE_BYTES


Assemble = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class MakeParts(Protocol):
    """A function that makes several tensors of the same sources."""

    def __call__(
        self, sources: Sequence[torch.Tensor], into: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor]:
        """Return the tensors by name.

        Args:
            into: tensors to write, some or all; by default new ones.
        """


@dataclass(frozen=True)
class PartOf:
    """One of the tensors that a function makes; whoever needs several calls it once."""

    make: MakeParts
    name: str

    def __call__(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """Make all of them, and return this one."""
        return self.make(sources)[self.name]


@dataclass(frozen=True)
class ParameterRecipe:
    """The tensors of a checkpoint from which one parameter is made.

    Without ``assemble`` the sources are the parameter's bytes, one after the other, and are read straight into the
    slot. With it they are read into memory of their own, and ``assemble(sources)`` returns the parameter (a transpose,
    say).
    """

    sources: tuple[TensorSource, ...]
    assemble: Assemble | None = None


@dataclass(frozen=True)
class PackedRecord:
    """One expert in the packed format: all bytes of a slot in one piece.

    ``extent`` starts at a multiple of ``PAGE_BYTES`` and is ``layout.slot_bytes`` long. ``checksum`` is the XXH3 of
    these bytes (64 bits), seeded by ``checksum_seed(key)``, so that a record in another's place is detected too.
    """

    extent: Extent
    checksum: int


ExpertRecipe = Mapping[str, ParameterRecipe] | PackedRecord
Variant = Mapping[tuple[int, int], ExpertRecipe]  # by layer and expert


def checksum_seed(key: ExpertKey) -> int:
    """Return the seed of an expert's checksum."""
    return key.layer << 32 | key.expert


class SlotEncoding(Protocol):
    """Encodes experts when they are read, as slots have them in another form than files.

    A slot's bytes may refer to memory of the encoding, and mean nothing in another slot.
    """

    @property
    def stored(self) -> ExpertLayout:
        """The layout of what is read."""

    def encode(self, stored: Mapping[str, torch.Tensor], slot: Mapping[str, torch.Tensor]) -> None:
        """Write the tensors of a slot; called from many threads, for different slots.

        Args:
            stored: the expert's tensors in the layout of what is read.
        """


@dataclass(frozen=True)
class LayerEntry:
    """One MoE layer: the layout of its experts and the recipe of each.

    ``encoding`` is None if recipes give the bytes of slots.
    """

    layout: ExpertLayout
    experts: tuple[ExpertRecipe, ...]
    encoding: SlotEncoding | None = None

    @property
    def stored(self) -> ExpertLayout:
        """The layout in which recipes give an expert."""
        return self.layout if self.encoding is None else self.encoding.stored


class ExpertCatalog:
    """All experts of a model, an immutable value; recipes are checked when it is built.

    A *variant* is another set of weights for some places, in the stored layouts of their layers; it may add experts
    beyond the model's own. A catalog with one more variant is a new catalog, as a union file system has one more layer.

    Args:
        layers: the model's own experts of each MoE layer.

    Raises:
        CheckpointError: an expert lacks a parameter, or its sources do not fill it; the message names both.
    """

    def __init__(self, layers: Mapping[int, LayerEntry]):
        if not layers:
            raise CheckpointError("the checkpoint holds no routed experts")
        self.layers = dict(sorted(layers.items()))
        for index, entry in self.layers.items():
            for expert, recipe in enumerate(entry.experts):
                _check_recipe(ExpertKey(index, expert), entry.stored, recipe)
        self.variants: Mapping[str, Variant] = {}

    def with_variant(self, variant: str, recipes: Variant) -> ExpertCatalog:
        """Return a catalog with one more variant.

        Args:
            recipes: by layer and expert.

        Raises:
            CheckpointError: an expert lacks a parameter, or its sources do not fill it; the message names both.
            ValueError: there is such a variant already, or a layer has no experts.
        """
        if variant == BASE or variant in self.variants:
            raise ValueError(f"there is a variant {variant!r} already")
        for (layer, expert), recipe in recipes.items():
            if layer not in self.layers or expert < 0:
                raise ValueError(f"the model has no {ExpertKey(layer, expert)}")
            _check_recipe(ExpertKey(layer, expert, variant), self.layers[layer].stored, recipe)
        return self._with_variants({**self.variants, variant: dict(recipes)})

    def without_variant(self, variant: str) -> ExpertCatalog:
        """Return a catalog without a variant."""
        return self._with_variants({name: recipes for name, recipes in self.variants.items() if name != variant})

    def _with_variants(self, variants: Mapping[str, Variant]) -> ExpertCatalog:
        catalog = copy.copy(self)
        catalog.variants = variants
        catalog.__dict__.pop("places_per_layer", None)
        catalog.__dict__.pop("_reads", None)
        return catalog

    def recipe(self, key: ExpertKey) -> ExpertRecipe:
        """Return the recipe by which an expert is read.

        Raises:
            ValueError: the model has no such expert.
        """
        recipe = self._find(key)
        if recipe is None:
            raise ValueError(f"the model has no {key}")
        return recipe

    def has(self, key: ExpertKey) -> bool:
        """Return True if there is such an expert."""
        return self._find(key) is not None

    def _find(self, key: ExpertKey) -> ExpertRecipe | None:
        if key.variant != BASE:
            return self.variants.get(key.variant, {}).get((key.layer, key.expert))
        entry = self.layers.get(key.layer)
        return entry.experts[key.expert] if entry and 0 <= key.expert < len(entry.experts) else None

    def layout(self, layer: int) -> ExpertLayout:
        return self.layers[layer].layout

    def read_bytes(self, key: ExpertKey) -> int:
        """Return the number of bytes that are read from disk for an expert."""
        return self._read(key)[0]

    def is_in_files(self, key: ExpertKey) -> bool:
        """Return True if all bytes of an expert are in files of this machine."""
        return self._read(key)[1]

    @cached_property
    def _reads(self) -> dict[ExpertKey, tuple[int, bool]]:
        """The results of ``_read`` so far."""
        return {}

    def _read(self, key: ExpertKey) -> tuple[int, bool]:
        """Return the bytes that are read for an expert, and whether all are in files of this machine."""
        known = self._reads.get(key)
        if known is None:
            parts = list(extents(self.recipe(key)))
            is_in_files = all(isinstance(part.source, LocalSource) for part in parts)
            known = self._reads[key] = sum(part.nbytes for part in parts), is_in_files
        return known

    @cached_property
    def num_experts(self) -> int:
        """Number of the model's own experts in the widest layer."""
        return max(len(entry.experts) for entry in self.layers.values())

    @cached_property
    def layouts(self) -> dict[ExpertLayout, int]:
        """Number of the model's own experts of each layout."""
        counts: dict[ExpertLayout, int] = {}
        for entry in self.layers.values():
            counts[entry.layout] = counts.get(entry.layout, 0) + len(entry.experts)
        return counts

    @cached_property
    def places_per_layer(self) -> dict[int, int]:
        """Number of experts of each layer, those of variants included."""
        counts = {layer: len(entry.experts) for layer, entry in self.layers.items()}
        for recipes in self.variants.values():
            for layer, _ in recipes:
                counts[layer] += 1
        return counts

    @property
    def num_places(self) -> dict[ExpertLayout, int]:
        """Number of experts of each layout, those of variants included."""
        counts: dict[ExpertLayout, int] = {}
        for layer, count in self.places_per_layer.items():
            layout = self.layout(layer)
            counts[layout] = counts.get(layout, 0) + count
        return counts

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of one slot for each of the model's own experts."""
        return sum(len(entry.experts) * entry.layout.slot_bytes for entry in self.layers.values())

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the model's own experts as they are read."""
        return sum(len(entry.experts) * entry.stored.slot_bytes for entry in self.layers.values())

    @property
    def all_bytes(self) -> int:
        """Bytes of one slot for every expert, those of variants included."""
        return sum(count * layout.slot_bytes for layout, count in self.num_places.items())

    @cached_property
    def sources(self) -> list[Source]:
        """Every source that holds a part of one of the model's own experts."""
        return sources_of(recipe for entry in self.layers.values() for recipe in entry.experts)


def is_on_disk(catalog: ExpertCatalog) -> bool:
    """Return True if all of the model's own experts are in files of this machine."""
    return all(isinstance(source, LocalSource) for source in catalog.sources)


def sources_of(recipes: Iterable[ExpertRecipe]) -> list[Source]:
    """Return every source that some experts are read from."""
    found = {extent.source for recipe in recipes for extent in extents(recipe)}
    return sorted(found, key=lambda source: source.name)


def extents(recipe: ExpertRecipe) -> Iterator[Extent]:
    """Yield the extents that an expert is read from."""
    if isinstance(recipe, PackedRecord):
        yield recipe.extent
        return
    shared: set[tuple[object, tuple[TensorSource, ...]]] = set()  # of parts that are read together
    for parameter in recipe.values():
        if isinstance(parameter.assemble, PartOf):
            group = parameter.assemble.make, parameter.sources
            if group in shared:
                continue
            shared.add(group)
        for source in parameter.sources:
            yield source.extent


def num_reads(recipe: ExpertRecipe) -> int:
    """Return how many reads an expert takes: one for parts that lie close together."""
    found = sorted(extents(recipe), key=lambda each: (each.source.name, each.offset))
    return 1 + sum(
        last.source != following.source or following.offset - last.offset - last.nbytes > MAX_GAP_BYTES
        for last, following in pairwise(found)
    )


def reads_per_expert(catalog: ExpertCatalog) -> float:
    """Return how many reads an expert takes, on average over the layers."""
    return fmean(num_reads(entry.experts[0]) for entry in catalog.layers.values())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT


def _check_recipe(key: ExpertKey, layout: ExpertLayout, recipe: ExpertRecipe) -> None:
    if isinstance(recipe, PackedRecord):
        if recipe.extent.nbytes != layout.slot_bytes or recipe.extent.offset % PAGE_BYTES:
            raise CheckpointError(
                f"the record of {key} lies at {recipe.extent.offset} and is {recipe.extent.nbytes} bytes long; "
                f"it should start on a page and be {layout.slot_bytes} bytes long"
            )
        return
    for parameter in layout.parameters:
        part = recipe.get(parameter.name)
        if part is None or not part.sources:
            raise CheckpointError(f"{key} has no tensor for {parameter.name}")
        if part.assemble is not None:
            continue
        nbytes = sum(source.extent.nbytes for source in part.sources)
        wrong = [source for source in part.sources if source.dtype != parameter.dtype]
        if wrong:
            raise CheckpointError(f"{wrong[0].name} is {wrong[0].dtype}, {key} needs {parameter.dtype}")
        if nbytes != parameter.nbytes:
            names = ", ".join(source.name for source in part.sources)
            raise CheckpointError(
                f"{names}: {nbytes} bytes for {parameter.name} of {key}, which takes {parameter.nbytes}"
            )
