"""Codes experts in bfloat16 when they are read: slots have the same weights to the bit, in fewer bytes.

More experts fit into the same memory, and products with few rows read less of it (``coded_bfloat16``).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertLoadError,
    ExpertStore,
    LayerEntry,
    ParameterSpec,
    is_on_disk,
    least_bytes,
)
from server.byte_sizes import format_bytes
from server.kernels.expert import ExpertsModule, transposed_names
from server.kernels.formats import coded_bfloat16
from server.kernels.native.backend import expert_shape
from server.kernels.native.library import Kernels

log = logging.getLogger(__name__)

LEAST_BYTES = 32 << 20  # of all experts; less may lie in the processor's caches, and is read fast from there
MOST_BYTES = 64 << 20  # of an expert as it is read, for which each thread that reads experts has memory
MOST_OF_PLAIN = 0.82  # of an expert's bytes; 0.76 without plain blocks, which take long to read where there are many
NUM_TRIED = 4  # layers, spread over the model, in which experts are coded first to count their plain blocks
SPREAD, SPARE = 1.5, 0.01  # room for plain blocks: so many times the largest share that was found, and that much more


@dataclass(frozen=True)
class CodedExperts:
    """Codes experts of one stored layout; see ``SlotEncoding``.

    Args:
        matrices: the parameters that are coded.
        share: of a matrix's blocks, for which a slot has room to keep them plain.
    """

    stored: ExpertLayout
    matrices: tuple[ParameterSpec, ...]
    share: float
    _left: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)  # by the slot's tensor that names it

    @property
    def layout(self) -> ExpertLayout:
        """The layout of slots."""
        specs: list[ParameterSpec] = []
        for spec in self.stored.parameters:
            if spec not in self.matrices:
                specs.append(spec)
                continue
            outputs, inputs = spec.shape
            most = math.ceil(self.share * outputs * inputs / coded_bfloat16.BLOCK)
            specs += [ParameterSpec(*each) for each in coded_bfloat16.slot_specs(spec.name, outputs, inputs, most)]
        return ExpertLayout(tuple(specs))

    def encode(self, stored: Mapping[str, torch.Tensor], slot: Mapping[str, torch.Tensor]) -> None:
        """See ``SlotEncoding``."""
        for spec in self.stored.parameters:
            if spec not in self.matrices:
                slot[spec.name].copy_(stored[spec.name])
                continue
            place = slot[spec.name + coded_bfloat16.MORE].data_ptr()
            left = coded_bfloat16.code_into(slot, spec.name, stored[spec.name])
            if left is not None:
                self._left[place] = left
            else:
                self._left.pop(place, None)  # of the expert that was in the slot before


def code_experts(
    catalog: ExpertCatalog, layers: Mapping[ExpertsModule, int], dtype: torch.dtype, kernels: Kernels | None
) -> ExpertCatalog:
    """Return a catalog whose experts are coded when they are read; the same one if nothing would be gained.

    Args:
        layers: the modules of experts and their layers.
        dtype: of the model.
        kernels: that run the experts; None if torch does.
    """
    if kernels is None or not kernels.gains_from_codes or dtype != torch.bfloat16:
        return catalog
    if catalog.total_bytes < LEAST_BYTES or not is_on_disk(catalog):
        return catalog
    encodings = dict(_encodings(catalog, layers))
    if not encodings:
        return catalog

    def coded(entry: LayerEntry) -> LayerEntry:
        found = encodings.get(entry.layout)
        return entry if found is None else replace(entry, layout=found.layout, encoding=found)

    result = ExpertCatalog({layer: coded(entry) for layer, entry in catalog.layers.items()})
    before, after = format_bytes(catalog.total_bytes), format_bytes(result.total_bytes)
    log.info("experts take 12 bits a weight in memory, without loss: %s instead of %s", after, before)
    return result


def _encodings(
    catalog: ExpertCatalog, layers: Mapping[ExpertsModule, int]
) -> Iterator[tuple[ExpertLayout, CodedExperts]]:
    """Yield the layouts whose experts are worth to be coded, and what codes them."""
    modules: dict[ExpertLayout, list[tuple[int, ExpertsModule]]] = defaultdict(list)
    for module, layer in layers.items():
        modules[catalog.layout(layer)].append((layer, module))
    for layout, found in modules.items():
        if layout.slot_bytes > MOST_BYTES:
            continue
        transposed = {name for _, module in found for name in transposed_names(module)}
        matrices = tuple(
            spec
            for spec in layout.parameters
            if spec.name not in transposed and coded_bfloat16.takes_shape(spec.dtype, spec.shape)
        )
        if not matrices:
            continue
        share = _share_of_plain(catalog, sorted(layer for layer, _ in found), matrices)
        encoding = CodedExperts(layout, matrices, SPREAD * share + SPARE)
        coded = encoding.layout
        runs = all(not isinstance(expert_shape(module, coded), str) for _, module in found)
        if runs and coded.slot_bytes <= MOST_OF_PLAIN * layout.slot_bytes:
            yield layout, encoding


def _share_of_plain(catalog: ExpertCatalog, layers: list[int], matrices: tuple[ParameterSpec, ...]) -> float:
    """Return the largest share of plain blocks in a matrix of some experts; damaged ones are left to who needs them."""
    tried = layers[:: max(1, len(layers) // NUM_TRIED)]
    keys = [ExpertKey(layer, expert) for layer in tried for expert in {0, len(catalog.layers[layer].experts) - 1}]
    store, share = ExpertStore(catalog, least_bytes(catalog, len(keys)), policy="lru"), 0.0
    try:
        for key in keys:
            share = max(share, _share_in(store, key, matrices))
    finally:
        store.close()
    return share


def _share_in(store: ExpertStore, key: ExpertKey, matrices: tuple[ParameterSpec, ...]) -> float:
    try:
        with store.lease({key: 1}) as lease:
            for _, weights in lease:
                return max(coded_bfloat16.share_of_plain(weights[spec.name]) for spec in matrices)
    except ExpertLoadError as error:
        log.warning("%s", error)
    return 0.0
