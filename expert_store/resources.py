"""Lock, threads and counters that the layouts of a store share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from expert_store.catalog import ExpertCatalog, sources_of
from expert_store.errors import ChecksumError
from expert_store.io.copier import Copier
from expert_store.io.device_memory import Device, open_device
from expert_store.io.reader import SourceReader
from expert_store.keys import BASE, ExpertKey
from expert_store.sources.open_sources import OpenSources
from expert_store.statistics import StoreStatistics
from expert_store.store_lock import StoreLock


@dataclass(eq=False)
class StoreResources:
    """Everything that ``LayoutPool`` needs beside its own slots. ``lock`` guards all but the threads' own queues."""

    catalog: ExpertCatalog  # replaced when a variant comes or goes
    sources: dict[str, OpenSources]  # by variant
    lock: StoreLock
    reader: SourceReader
    device: Device
    copier: Copier | None  # None without a device tier
    statistics: StoreStatistics
    slot_table: npt.NDArray[np.int32]  # (layers, experts): slots in the device tier, or -1
    quarantined: dict[ExpertKey, str] = field(default_factory=dict)  # damaged experts, and what is wrong with each

    def count_failure(self, key: ExpertKey, error: Exception) -> None:
        """Count a read that failed, and quarantine the expert if its bytes are damaged; the lock is held."""
        self.statistics.load_failures += 1
        if isinstance(error, ChecksumError):
            self.quarantined[key] = str(error)

    def close(self) -> None:
        """Stop the threads after the work that they have begun; the lock is not held."""
        self.reader.close()
        if self.copier is not None:
            self.copier.close()
        self.device.close()
        for sources in self.sources.values():
            sources.close()


def open_resources(
    catalog: ExpertCatalog, device: torch.device, num_readers: int, *, has_device_tier: bool
) -> StoreResources:
    """Open the sources and the device, and start the threads.

    Raises:
        BudgetError: there is no memory to read with.
        SourceError: a file can't be opened.
    """
    shape = len(catalog.layers), catalog.num_experts
    slot_table = np.full(shape, -1, np.int32)
    sources = {BASE: OpenSources(catalog.sources)}
    for variant, recipes in catalog.variants.items():
        sources[variant] = OpenSources(sources_of(recipes.values()))
    memory, lock = open_device(device), StoreLock()
    return StoreResources(
        catalog,
        sources,
        lock,
        SourceReader(num_readers, lock.fail, lambda: list(sources.values())),
        memory,
        Copier(memory, lock.fail) if has_device_tier else None,
        StoreStatistics(np.zeros(shape, dtype=np.int64)),
        slot_table,
    )
