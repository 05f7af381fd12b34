"""Packed records of known bytes, one file a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xxhash

from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    Extent,
    LayerEntry,
    PackedRecord,
    ParameterSpec,
    checksum_seed,
)

LAYOUT = ExpertLayout((ParameterSpec("weight", torch.int32, (16,)),))


def make_records(folder: Path, num_layers: int = 2, num_experts: int = 8) -> ExpertCatalog:
    """Each weight is ``layer * 1000 + expert``."""
    layers = {}
    for layer in range(num_layers):
        path, records = folder / f"layer{layer}.pack", []
        with path.open("wb") as file:
            for expert in range(num_experts):
                record = np.zeros(LAYOUT.slot_bytes, dtype=np.uint8)
                record[:64].view(np.int32)[:] = layer * 1000 + expert
                checksum = xxhash.xxh3_64_intdigest(record.data, seed=checksum_seed(ExpertKey(layer, expert)))
                records.append(PackedRecord(Extent(path, file.tell(), LAYOUT.slot_bytes), checksum))
                file.write(record.data)
        layers[layer] = LayerEntry(LAYOUT, tuple(records))
    return ExpertCatalog(layers)
