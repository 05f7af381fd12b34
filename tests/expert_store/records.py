"""Packed records of known values, one file per layer."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from pathlib import Path

import numpy as np
import torch
import xxhash

from expert_store import (
    BASE,
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    Extent,
    FileSource,
    LayerEntry,
    PackedRecord,
    ParameterSpec,
    checksum_seed,
)
from expert_store.catalog import Variant

LAYOUT = ExpertLayout((ParameterSpec("weight", torch.int32, (16,)),))


def value_of(key: ExpertKey) -> int:
    """Return the value of each weight of an expert."""
    return key.layer * 1000 + key.expert + (0 if key.variant == BASE else 500)


def make_records(
    folder: Path, num_layers: int = 2, num_experts: int = 8, variants: Collection[str] = (), shift: int = 0
) -> ExpertCatalog:
    """Return a catalog of experts whose every weight is ``value_of`` and a shift; each has all the variants."""
    layers, others = {}, {}
    for layer in range(num_layers):
        source, records = FileSource(folder / f"layer{layer}.pack"), {}
        with source.path.open("wb") as file:
            for variant, expert in product([BASE, *variants], range(num_experts)):
                key = ExpertKey(layer, expert, variant)
                record = np.zeros(LAYOUT.slot_bytes, dtype=np.uint8)
                record[:64].view(np.int32)[:] = value_of(key) + shift
                checksum = xxhash.xxh3_64_intdigest(record.data, seed=checksum_seed(key))
                records[key] = PackedRecord(Extent(source, file.tell(), LAYOUT.slot_bytes), checksum)
                file.write(record.data)
        layers[layer] = LayerEntry(LAYOUT, tuple(records.values())[:num_experts])
        others.update({key: record for key, record in records.items() if key.variant != BASE})
    catalog = ExpertCatalog(layers)
    for variant in variants:
        catalog = catalog.with_variant(
            variant, {(key.layer, key.expert): record for key, record in others.items() if key.variant == variant}
        )
    return catalog


def make_recipes(folder: Path, *places: tuple[int, int], shift: int = 0) -> Variant:
    """Return the recipes of some experts of a variant, in files of their own."""
    folder.mkdir(exist_ok=True)
    made = make_records(folder, variants=["made"], shift=shift).variants["made"]
    return {place: made[place] for place in places}
