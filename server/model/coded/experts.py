"""Codes experts in bfloat16 when they are read: slots have the same weights to the bit, in fewer bytes.

More experts fit into the same memory, and products with few rows read less of it (``coded_bfloat16``).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

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

MOST_BYTES = 64 << 20  # of an expert as it is read, for which each thread that reads experts has memory
NUM_TRIED = 4  # layers, spread over the model, in which experts are coded first to count their plain blocks
SPREAD, SPARE = 1.5, 0.01  # room for plain blocks: so many times the largest share that was found, and that much more


@dataclass(frozen=True)
class CodedExperts:
    """Codes experts of one stored layout; see ``SlotEncoding``.

    Args:
        matrices: the parameters that are coded, as ``(out, in)``; True for those that are stored ``(in, out)``.
        share: of a matrix's blocks, for which a slot has room to keep them plain.
    """

    stored: ExpertLayout
    matrices: Mapping[str, bool]
    share: float = 0.0
    _left: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)  # by the slot's tensor that names it

    @cached_property
    def layout(self) -> ExpertLayout:
        """The layout of slots."""
        specs: list[ParameterSpec] = []
        for spec in self.stored.parameters:
            is_transposed = self.matrices.get(spec.name)
            if is_transposed is None:
                specs.append(spec)
                continue
            outputs, inputs = reversed(spec.shape) if is_transposed else spec.shape
            most = math.ceil(self.share * outputs * inputs / coded_bfloat16.BLOCK)
            specs += [ParameterSpec(*each) for each in coded_bfloat16.slot_specs(spec.name, outputs, inputs, most)]
        return ExpertLayout(tuple(specs))

    def encode(self, stored: Mapping[str, torch.Tensor], slot: Mapping[str, torch.Tensor]) -> None:
        """See ``SlotEncoding``."""
        for name, tensor in stored.items():
            if name not in self.matrices:
                slot[name].copy_(tensor)
                continue
            place = slot[name + coded_bfloat16.MORE].data_ptr()
            left = coded_bfloat16.code_into(slot, name, self._upright(name, tensor))
            if left is not None:
                self._left[place] = left
            else:
                self._left.pop(place, None)  # of the expert that was in the slot before

    def share_of_plain(self, stored: Mapping[str, torch.Tensor]) -> float:
        """Return the largest share of plain blocks in a matrix of an expert."""
        return max(coded_bfloat16.share_of_plain(self._upright(name, stored[name])) for name in self.matrices)

    def _upright(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.mT if self.matrices[name] else matrix


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
    if catalog.total_bytes < coded_bfloat16.LEAST_BYTES or not is_on_disk(catalog):
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
    modules: dict[ExpertLayout, dict[int, ExpertsModule]] = defaultdict(dict)
    for module, layer in layers.items():
        modules[catalog.layout(layer)][layer] = module
    for layout, found in modules.items():
        matrices = _matrices(layout, next(iter(found.values())))
        if not matrices or layout.slot_bytes > MOST_BYTES:
            continue
        share = _share_of_plain(catalog, sorted(found), CodedExperts(layout, matrices))
        encoding = CodedExperts(layout, matrices, SPREAD * share + SPARE)
        coded = encoding.layout
        runs = not any(isinstance(expert_shape(module, coded), str) for module in found.values())
        if runs and coded.slot_bytes <= coded_bfloat16.MOST_OF_PLAIN * layout.slot_bytes:
            yield layout, encoding


def _matrices(layout: ExpertLayout, module: ExpertsModule) -> dict[str, bool]:
    """Return the parameters that can be coded, and whether they are stored ``(in, out)``."""
    transposed = transposed_names(module)
    return {
        name: name in transposed
        for name, dtype, shape in layout.parameters
        if coded_bfloat16.takes_shape(dtype, shape[::-1] if name in transposed else shape)
    }


def _share_of_plain(catalog: ExpertCatalog, layers: list[int], encoding: CodedExperts) -> float:
    """Return the largest share of plain blocks in some experts; who needs a damaged one will report it."""
    tried = layers[:: max(1, len(layers) // NUM_TRIED)]
    keys = [ExpertKey(layer, expert) for layer in tried for expert in {0, len(catalog.layers[layer].experts) - 1}]
    store, share = ExpertStore(catalog, least_bytes(catalog, 1), policy="lru"), 0.0
    try:
        for key in keys:
            with suppress(ExpertLoadError), store.lease({key: 1}) as lease:
                share = max(share, *(encoding.share_of_plain(stored) for _, stored in lease))
    finally:
        store.close()
    return share
