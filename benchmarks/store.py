"""Benchmark of the expert store: cold loads compared with raw direct reads, lease cost, shared loads, memory.

Everything runs in one process on the same files. Prints medians over interleaved rounds. The last line is one JSON
object.

    python -m benchmarks.store --folder DIR     # a folder on the disk to measure; writes up to 1.5 GiB
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import xxhash
from safetensors.torch import save_file

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
    checksum_seed,
    read_index,
)
from expert_store.arena import HostArena

NUM_READERS = 6
NUM_SLOTS = 16
FILE_BYTES = 768 << 20
HIDDEN = {1: 1024, 3: 1024, 9: 2048}  # hidden size by MiB per expert


def make_layout(megabytes: int) -> ExpertLayout:
    """Return the layout of a SwiGLU expert in bfloat16 of 1, 3 or 9 MiB."""
    hidden = HIDDEN[megabytes]
    intermediate = (megabytes << 20) // (3 * 2 * hidden)
    return ExpertLayout(
        (
            ParameterSpec("gate_up_proj", torch.bfloat16, (2 * intermediate, hidden)),
            ParameterSpec("down_proj", torch.bfloat16, (hidden, intermediate)),
        )
    )


def write_packed(path: Path, layout: ExpertLayout, num_experts: int) -> ExpertCatalog:
    rng = np.random.default_rng(0)
    records, source = [], FileSource(path)
    with path.open("wb") as file:
        for expert in range(num_experts):
            record = rng.integers(0, 256, layout.slot_bytes, dtype=np.uint8)
            checksum = xxhash.xxh3_64_intdigest(record.data, seed=checksum_seed(ExpertKey(0, expert)))
            records.append(PackedRecord(Extent(source, file.tell(), layout.slot_bytes), checksum))
            file.write(record.data)
        file.flush()
        os.fsync(file.fileno())
    return ExpertCatalog({0: LayerEntry(layout, tuple(records))})


def write_plain(path: Path, layout: ExpertLayout, num_experts: int) -> ExpertCatalog:
    """Write safetensors in the hub's layout: one tensor per expert and projection, at unaligned offsets."""
    gate_up, down = layout.parameters
    half = (gate_up.shape[0] // 2, gate_up.shape[1])
    tensors = {}
    for expert in range(num_experts):
        for name, shape in (("down", down.shape), ("gate", half), ("up", half)):
            tensors[f"experts.{expert}.{name}"] = torch.randint(0, 2**15, shape, dtype=torch.int16).view(torch.bfloat16)
    save_file(tensors, path)
    os.sync()
    index = read_index([path])
    recipes = tuple(
        {
            "gate_up_proj": ParameterRecipe((index[f"experts.{expert}.gate"], index[f"experts.{expert}.up"])),
            "down_proj": ParameterRecipe((index[f"experts.{expert}.down"],)),
        }
        for expert in range(num_experts)
    )
    return ExpertCatalog({0: LayerEntry(layout, recipes)})


class RawReads:
    """Direct reads of complete experts into slots, with as many threads as the store has."""

    def __init__(self, path: Path, layout: ExpertLayout, num_experts: int):
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._arena = HostArena(layout, NUM_SLOTS, NUM_SLOTS)
        self._nbytes, self._num_experts = layout.slot_bytes, num_experts

    def read(self, order: list[int]) -> None:
        def work(first: int) -> None:
            for index in range(first, len(order), NUM_READERS):
                target, done = self._arena.bytes_of(index % NUM_SLOTS), 0
                while done < self._nbytes:
                    done += os.preadv(self._file, [target[done:].data], order[index] * self._nbytes + done)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(NUM_READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        os.close(self._file)


def lease_all(store: ExpertStore, order: list[int]) -> None:
    with store.lease({ExpertKey(0, expert): 1 for expert in order}) as lease:
        for _ in lease:
            pass


def throughput(folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """Return GB/s of raw reads and of cold leases from a pack and from safetensors, and their ratios to raw reads."""
    layout = make_layout(megabytes)
    num_experts = FILE_BYTES // layout.slot_bytes
    packed_path, plain_path = folder / "experts.pack", folder / "experts.safetensors"
    packed = write_packed(packed_path, layout, num_experts)
    plain = write_plain(plain_path, layout, num_experts)
    raw = RawReads(packed_path, layout, num_experts)
    stores = [
        ExpertStore(catalog, NUM_SLOTS * layout.slot_bytes, num_readers=NUM_READERS) for catalog in (packed, plain)
    ]
    readers: dict[str, Callable[[list[int]], None]] = {
        "raw": raw.read,
        "packed": lambda order: lease_all(stores[0], order),
        "safetensors": lambda order: lease_all(stores[1], order),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    rng = np.random.default_rng(1)
    for number in range(rounds + 1):
        for name, read in readers.items():
            order = rng.permutation(num_experts).tolist()
            started = time.perf_counter()
            read(order)
            if number:  # the first round faults in the pages of the slots
                seconds[name].append(time.perf_counter() - started)
    raw.close()
    for store in stores:
        store.check_integrity()
        store.close()
    packed_path.unlink()
    plain_path.unlink()
    total = num_experts * layout.slot_bytes
    speeds = {name: total / statistics.median(times) / 1e9 for name, times in seconds.items()}
    ratios = {
        f"{name}_of_raw": statistics.median(r / t for r, t in zip(seconds["raw"], seconds[name], strict=True))
        for name in ("packed", "safetensors")
    }
    return {f"{name}_gb_per_s": round(speed, 3) for name, speed in speeds.items()} | {
        name: round(ratio, 3) for name, ratio in ratios.items()
    }


def resident_lease(folder: Path) -> float:
    """Return the median microseconds to enter, iterate and exit a lease of 8 resident experts."""
    layout = make_layout(1)
    catalog = write_packed(folder / "experts.pack", layout, 16)
    store = ExpertStore(catalog, catalog.total_bytes)
    rows = {ExpertKey(0, expert): 1 for expert in range(8)}
    times = []
    for _ in range(5000):
        started = time.perf_counter()
        with store.lease(rows) as lease:
            for _ in lease:
                pass
        times.append(time.perf_counter() - started)
    store.close()
    return statistics.median(times[100:]) * 1e6


def reads_of_one_expert(folder: Path) -> int:
    """Return the number of reads of one cold expert that 64 threads lease at once."""
    layout = make_layout(9)
    catalog = write_packed(folder / "experts.pack", layout, 4)
    store = ExpertStore(catalog, catalog.total_bytes)
    barrier = threading.Barrier(64)

    def lease() -> None:
        barrier.wait()
        lease_all(store, [2])

    threads = [threading.Thread(target=lease) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nbytes = store.statistics().loaded_bytes
    store.close()
    return nbytes // layout.slot_bytes


def memory(folder: Path) -> Iterator[dict[str, int]]:
    """Yield the resident bytes that the store adds to the process, at several budgets."""
    layout = make_layout(3)
    catalog = write_packed(folder / "experts.pack", layout, 128)
    process = psutil.Process()
    before = process.memory_info().rss
    store = None
    for share in (0.25, 0.75, 0.1):
        budget = int(share * catalog.total_bytes)
        if store is None:
            store = ExpertStore(catalog, budget)
        else:
            store.resize(host_bytes=budget)
        for _ in range(2):
            lease_all(store, list(range(128)))
        yield {"budget_bytes": budget, "resident_bytes": process.memory_info().rss - before}
    if store is not None:
        store.close()


def parse_flags(
    flags: list[str] | None = None, description: str | None = __doc__, rounds: int = 7
) -> argparse.Namespace:
    """Return the options of the command line, or of some flags; bad ones end the process with a sentence."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=rounds)
    options = parser.parse_args(flags)
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder {options.folder} is no folder; make it first, on the disk to measure")
    return options


def main() -> None:
    options = parse_flags()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        result: dict[str, object] = {"benchmark": "store", "readers": NUM_READERS, "slots": NUM_SLOTS}
        sizes = list(memory(folder))
        result["memory"] = sizes
        result["memory_beyond_budget_bytes"] = max(size["resident_bytes"] - size["budget_bytes"] for size in sizes)
        print("memory:", sizes)
        result["resident_lease_us"] = round(resident_lease(folder), 1)
        print("lease of 8 resident experts:", result["resident_lease_us"], "us")
        result["reads_for_64_threads"] = reads_of_one_expert(folder)
        print("reads of one cold expert leased by 64 threads:", result["reads_for_64_threads"])
        for megabytes in HIDDEN:
            figures = throughput(folder, megabytes, options.rounds)
            print(f"{megabytes} MiB per expert:", figures)
            result[f"{megabytes}_mib"] = figures
    print(json.dumps(result))


if __name__ == "__main__":
    main()
