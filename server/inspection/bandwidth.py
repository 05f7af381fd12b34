"""Measures how fast this machine reads experts from disk and from memory."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertRecipe,
    ExpertStore,
    Extent,
    FileSource,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
    extents,
    least_bytes,
)
from expert_store.arena import page_aligned
from expert_store.catalog import num_reads
from expert_store.sources.base import PAGE_BYTES
from server.device import wait_for

DISK_SECONDS, MEMORY_SECONDS = 0.25, 0.05  # duration of a measurement
LEAST_MATRIX_BYTES, MOST_MATRIX_BYTES = 128 << 20, 256 << 20
NUM_CACHES = 4  # a matrix of so many times the last cache is read from memory
CACHE_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
FILE_BYTES = 256 << 20
MOST_EXPERTS = 1024  # in a file: of tiny ones, which each take longer to describe than to read, it is smaller
READ_BYTES = 64 << 20  # in flight, so that readers are nearly always busy
LEAST_READS = 12  # experts in flight, if they are large
RECORD_LAYERS, RECORD_MISSES = 8, 4  # layers in which records are tried, and misses of a step's layer
RECORD_ROUNDS, RECORD_SECONDS = 3, 0.15  # of both forms by turns


def begin_matrix() -> Future[torch.Tensor]:
    """Make a matrix that no CPU cache holds, in a thread of its own: its pages take longer to get than to read."""
    executor = ThreadPoolExecutor(1)
    matrix = executor.submit(_make_matrix)
    executor.shutdown(wait=False)
    return matrix


def _make_matrix() -> torch.Tensor:
    memory = page_aligned(_matrix_bytes())  # on huge pages if possible
    return torch.from_numpy(memory).view(torch.float32).fill_(1).view(-1, 4096)


def measure_memory(device: torch.device, matrix: torch.Tensor) -> float:
    """Return the bytes per second that a float32 matrix-vector product reads; the best of several rounds.

    On a CPU it uses torch's threads.

    Args:
        matrix: of ``begin_matrix``.
    """
    matrix = matrix.to(device)
    vector = torch.ones(matrix.shape[1], device=device)
    return _best(lambda: matrix @ vector, matrix.nbytes, device)


def _matrix_bytes() -> int:
    """Return the size of a matrix that no CPU cache holds, as small as possible, because its pages take time to get."""
    try:
        kibibytes = int(CACHE_SIZE.read_text().removesuffix("K\n"))
    except (OSError, ValueError):  # unknown
        return MOST_MATRIX_BYTES
    return min(max(NUM_CACHES * (kibibytes << 10), LEAST_MATRIX_BYTES), MOST_MATRIX_BYTES)


def measure_copy(device: torch.device) -> float:
    """Return the bytes per second from pinned host memory to a CUDA device; the best of several rounds."""
    source = torch.ones(MOST_MATRIX_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    return _best(lambda: target.copy_(source, non_blocking=True), MOST_MATRIX_BYTES, device)


def measure_disk(catalog: ExpertCatalog, num_misses: int | None = None, seconds: float = DISK_SECONDS) -> float:
    """Return the bytes per second that the expert store reads from files: complete experts in random order.

    Args:
        num_misses: experts that are asked for at once; by default enough to keep the disk busy.
        seconds: of the measurement.

    Raises:
        ExpertLoadError: an expert can't be read.
    """
    largest = max(layout.slot_bytes for layout in catalog.layouts)
    count = num_misses or max(LEAST_READS, READ_BYTES // largest)
    layers, order = list(catalog.layers.items()), random.Random(0)  # noqa: S311  any order will do
    budget = min(catalog.total_bytes, max(least_bytes(catalog, 1), LEAST_READS * largest))
    store = ExpertStore(catalog, budget)

    def read_some() -> None:
        layer, entry = order.choice(layers)
        experts = order.sample(range(len(entry.experts)), min(count, len(entry.experts)))
        with store.lease({ExpertKey(layer, expert): 1 for expert in experts}) as lease:
            for _ in lease:
                pass
        store.evict(store.residents())

    try:
        read_some()  # the first use of slots is slower
        before, begun = store.statistics().loaded_bytes, time.perf_counter()
        while time.perf_counter() < begun + seconds:
            read_some()
        return (store.statistics().loaded_bytes - before) / (time.perf_counter() - begun)
    finally:
        store.close()


def measure_record_gain(catalog: ExpertCatalog) -> float | None:
    """Return by what share a miss is read faster if an expert is one record; None if each takes one read already.

    A record is as many bytes of the same files in one piece, from a page on.

    Args:
        catalog: of files.

    Raises:
        ExpertLoadError: an expert can't be read.
    """
    apart = [entry for entry in catalog.layers.values() if num_reads(entry.experts[0]) > 1]
    if not apart:
        return None
    entries = apart[:: -(-len(apart) // RECORD_LAYERS)]
    forms = [
        ExpertCatalog({number: _as_bytes(entry, is_record=is_record) for number, entry in enumerate(entries)})
        for is_record in (False, True)
    ]
    gains = []
    for _ in range(RECORD_ROUNDS):
        parts, record = (measure_disk(form, RECORD_MISSES, RECORD_SECONDS) for form in forms)
        gains.append(record / parts - 1)
    return median(gains)


def _as_bytes(entry: LayerEntry, *, is_record: bool) -> LayerEntry:
    """Return a layer whose experts are the bytes that are read for them, in parts or in one piece of a file."""

    def places(recipe: ExpertRecipe, number: int = 0) -> list[Extent]:
        found = list(extents(recipe))
        if not is_record:
            return found
        part = found[number % len(found)]  # all parts of the file are read, as by the other form
        source = part.source
        assert isinstance(source, FileSource)
        in_file = source.path.stat().st_size
        nbytes = min(_pages(sum(each.nbytes for each in found)), in_file)
        return [Extent(source, min(part.offset, in_file - nbytes) // PAGE_BYTES * PAGE_BYTES, nbytes)]

    first = places(entry.experts[0])
    layout = ExpertLayout(
        tuple(ParameterSpec(str(number), torch.uint8, (each.nbytes,)) for number, each in enumerate(first))
    )

    def recipe(expert: ExpertRecipe, number: int) -> dict[str, ParameterRecipe]:
        return {
            spec.name: ParameterRecipe((TensorSource(spec.name, spec.dtype, spec.shape, place),))
            for spec, place in zip(layout.parameters, places(expert, number), strict=True)
        }

    return LayerEntry(layout, tuple(recipe(expert, number) for number, expert in enumerate(entry.experts)))


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


@contextmanager
def temporary_experts(layout: ExpertLayout, folder: Path | None = None) -> Iterator[ExpertCatalog]:
    """Write experts of random bytes to a temporary file, for models whose weights are not on this machine.

    Args:
        folder: folder for the file; None is the system's folder for temporary files.

    Raises:
        OSError: the file can't be written.
    """
    with TemporaryDirectory(prefix="greenroom-", dir=folder) as scratch:
        path = Path(scratch) / "experts"
        nbytes = sum(parameter.nbytes for parameter in layout.parameters)
        count = min(max(2, FILE_BYTES // nbytes), MOST_EXPERTS)
        random_bytes = np.random.default_rng(0).bytes(nbytes)
        with path.open("wb") as file:
            for _ in range(count):
                file.write(random_bytes)
            file.flush()
            os.fsync(file.fileno())
        experts = tuple(_recipe(layout, FileSource(path), number * nbytes) for number in range(count))
        yield ExpertCatalog({0: LayerEntry(layout, experts)})


def _recipe(layout: ExpertLayout, source: FileSource, offset: int) -> dict[str, ParameterRecipe]:
    recipe = {}
    for name, dtype, shape in layout.parameters:
        nbytes = ParameterSpec(name, dtype, shape).nbytes
        recipe[name] = ParameterRecipe((TensorSource(name, dtype, shape, Extent(source, offset, nbytes)),))
        offset += nbytes
    return recipe


def _best(work: Callable[[], object], nbytes: int, device: torch.device) -> float:
    """Return the bytes per second of the fastest of several rounds; the first round is a warm-up."""
    work()
    fastest, end = float("inf"), time.perf_counter() + MEMORY_SECONDS
    while fastest == float("inf") or time.perf_counter() < end:
        wait_for(device)
        begun = time.perf_counter()
        work()
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - begun)
    return nbytes / fastest
