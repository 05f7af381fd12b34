"""Benchmark of misses: experts in one record each, against gate, up and down apart, as most files have them.

    python -m benchmarks.one_record --folder DIR     # a folder on the disk to measure; writes 768 MB, takes a minute

All reads are the expert store's own: direct, by as many threads as it has. Records have checksums, which the store
compares; the thirds begin off a page, as in GGUF, and are copied to their slots. The forms take turns. Misses are of
some experts at once. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from benchmarks.store import parse_flags
from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertStore,
    Extent,
    FileSource,
    LayerEntry,
    PackedRecord,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
    checksum_seed,
)
from expert_store.sources.base import PAGE_BYTES
from expert_store.store import NUM_READERS

FILE_BYTES = 768_000_000
MEGABYTES = (0.3, 1.0, 3.0, 9.0)  # of an expert
MISSES = (1, 4, 24)  # experts that are asked for at once
OFF_PAGE_BYTES = 1184  # where the first third begins; in GGUF tensors begin at multiples of 32
PARTS = ("gate_proj", "up_proj", "down_proj")
TRIAL_SECONDS = 0.2


def write_file(path: Path) -> None:
    """Write random bytes."""
    rng, left = np.random.default_rng(0), FILE_BYTES
    with path.open("wb") as file:
        while left:
            chunk = rng.bytes(min(left, 64 << 20))
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_layout(megabytes: float) -> ExpertLayout:
    """Return the layout of an expert of three equal parts, each of whole pages."""
    third = max(1, round(megabytes * 1e6 / len(PARTS) / PAGE_BYTES)) * PAGE_BYTES
    return ExpertLayout(tuple(ParameterSpec(name, torch.uint8, (third,)) for name in PARTS))


def records(path: Path, layout: ExpertLayout) -> ExpertCatalog:
    """Return experts in one record each, back to back."""
    source, nbytes = FileSource(path), layout.slot_bytes
    found = []
    with path.open("rb") as file:
        for expert in range(FILE_BYTES // nbytes):
            checksum = xxhash.xxh3_64_intdigest(file.read(nbytes), seed=checksum_seed(ExpertKey(0, expert)))
            found.append(PackedRecord(Extent(source, expert * nbytes, nbytes), checksum))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return ExpertCatalog({0: LayerEntry(layout, tuple(found))})


def thirds(path: Path, layout: ExpertLayout) -> ExpertCatalog:
    """Return experts whose parts lie apart: first the gates of all experts, then the others."""
    source = FileSource(path)
    count = (FILE_BYTES - OFF_PAGE_BYTES) // layout.slot_bytes

    def recipe(expert: int) -> dict[str, ParameterRecipe]:
        return {
            name: ParameterRecipe(
                (
                    TensorSource(
                        name,
                        dtype,
                        shape,
                        Extent(source, OFF_PAGE_BYTES + (part * count + expert) * shape[0], shape[0]),
                    ),
                )
            )
            for part, (name, dtype, shape) in enumerate(layout.parameters)
        }

    return ExpertCatalog({0: LayerEntry(layout, tuple(recipe(expert) for expert in range(count)))})


class Form:
    """A store of experts in one form."""

    def __init__(self, catalog: ExpertCatalog, slots: int):
        self._store = ExpertStore(catalog, slots * next(iter(catalog.layouts)).slot_bytes)
        self._count = len(catalog.layers[0].experts)
        self._rng = np.random.default_rng(1)

    def miss(self, num_misses: int) -> float:
        """Return the seconds until some experts, which are not in memory, are there."""
        rows = {ExpertKey(0, expert): 1 for expert in self._rng.choice(self._count, num_misses, False).tolist()}
        begun = time.perf_counter()
        with self._store.lease(rows) as lease:
            for _ in lease:
                pass
        seconds = time.perf_counter() - begun
        self._store.evict(rows)
        return seconds

    def trial(self, num_misses: int) -> float:
        """Return the mean seconds of misses of so many experts at once."""
        found, end = [], time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < end:
            found.append(self.miss(num_misses))
        return statistics.mean(found)

    def close(self) -> None:
        self._store.close()


def measure(path: Path, megabytes: float, rounds: int) -> dict[str, Any]:
    """Return GB/s of both forms, and the gain of records, by the number of misses at once."""
    layout, slots = make_layout(megabytes), max(MISSES)
    forms = {"record": Form(records(path, layout), slots), "thirds": Form(thirds(path, layout), slots)}
    result: dict[str, Any] = {"bytes": layout.slot_bytes}
    for form in forms.values():
        form.trial(slots)  # the first use of slots is slower
    for num_misses in MISSES:
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(rounds):
            for name, form in forms.items():
                seconds[name].append(form.trial(num_misses))
        nbytes = num_misses * layout.slot_bytes
        ratios = [apart / one for one, apart in zip(seconds["record"], seconds["thirds"], strict=True)]
        result[f"{num_misses}_misses"] = {
            **{
                f"{name}_gb_per_s": round(nbytes / statistics.median(times) / 1e9, 3) for name, times in seconds.items()
            },
            "gain": round(statistics.median(ratios) - 1, 3),
            "gain_range": [round(min(ratios) - 1, 3), round(max(ratios) - 1, 3)],
        }
    for form in forms.values():
        form.close()
    return result


def main() -> None:
    options = parse_flags(description=__doc__, rounds=5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "experts"
        write_file(path)
        result: dict[str, Any] = {"benchmark": "one_record", "readers": NUM_READERS}
        for megabytes in MEGABYTES:
            result[f"{megabytes:g}_mb"] = figures = measure(path, megabytes, options.rounds)
            print(f"{megabytes:g} MB per expert:", figures, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
