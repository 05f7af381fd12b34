"""Small models to pack: two layers of four experts, whose values identify layer and expert."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from expert_store import (
    ExpertKey,
    ExpertLayout,
    ExpertStore,
    FileSource,
    Pack,
    PackedLayer,
    PackSource,
    ParameterSpec,
    Weights,
    open_pack,
    read_index,
    write_pack,
)
from tests.expert_store.lease_rows import one_row_each

NUM_LAYERS, NUM_EXPERTS = 2, 4
LAYOUT = ExpertLayout((ParameterSpec("weight", torch.float32, (30, 50)), ParameterSpec("bias", torch.bfloat16, (30,))))
RECORDS_PER_FILE = 3


def weights(key: ExpertKey, shift: float = 0.0) -> Weights:
    return {
        "weight": torch.full((30, 50), key.layer * 100 + key.expert + shift),
        "bias": torch.full((30,), -float(key.expert), dtype=torch.bfloat16),
    }


def make_source(folder: Path, shift: float = 0.0, model: str = "tiny") -> PackSource:
    """Return a model of one shard; another ``shift`` makes another model of the same shapes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    keys = [ExpertKey(layer, expert) for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
    experts = {f"{key.layer}.{key.expert}": weights(key, shift)["weight"] for key in keys}
    trunk = {"embed": torch.arange(12.0).view(3, 4) + shift, "norm": torch.ones(5, dtype=torch.bfloat16)}
    save_file(experts | trunk, folder / "model.safetensors")
    index = read_index([folder / "model.safetensors"])
    return PackSource(
        model=model,
        weights="float32",
        layers={layer: PackedLayer(LAYOUT, NUM_EXPERTS) for layer in range(NUM_LAYERS)},
        encode=lambda key: weights(key, shift),
        trunk=[index[name] for name in trunk],
        files={"config.json": (folder / "config.json").read_bytes()},
        shards=[FileSource(folder / "model.safetensors")],
    )


def pack(source: PackSource, out: Path, jobs: int = 1) -> bool:
    return write_pack(source, out, jobs, lambda _: None, max_file_bytes=RECORDS_PER_FILE * LAYOUT.slot_bytes)


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def served(opened: Pack) -> dict[ExpertKey, float]:
    """Return one value of every expert, as a store reads it."""
    store = ExpertStore(opened.catalog, opened.catalog.total_bytes)
    try:
        found = {}
        for layer in opened.catalog.layers:
            with store.lease(one_row_each(layer, range(NUM_EXPERTS))) as lease:
                for key, tensors in lease:
                    found[key] = float(tensors["weight"][7, 9])
        return found
    finally:
        store.close()


def state(out: Path) -> float | None:
    """Return the shift of the model in a folder, or None if there is none; fail if models are mixed."""
    if not (out / "manifest.json").exists():
        return None
    found = served(open_pack(out))
    shifts = {value - key.layer * 100 - key.expert for key, value in found.items()}
    assert len(shifts) == 1
    return shifts.pop()
