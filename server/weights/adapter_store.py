"""AdapterStore: the pages of adapters in an expert store of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from expert_store import ExpertCatalog, ExpertStore, LayerEntry
from expert_store.catalog import ExpertLayout
from expert_store.statistics import StoreStatistics
from server.byte_sizes import as_flag, format_bytes
from server.model.lora.pages import PARAMETER
from server.model.lora_adapter import LoraAdapter
from server.settings import SettingsError
from server.weights.adapter_version import LAYER, AdapterVersion, PlacedAdapter

NUM_READERS = 2
MOST_OPEN = 64  # adapters whose files stay open though none of their pages is in memory


class AdapterStore:
    """Reads pages into slots and evicts the least recently used ones that no lease holds. Thread-safe.

    Args:
        layout: the layout of all pages.
        nbytes: the memory for pages.
        device: on which the model computes. Pages stay in host memory; matrices of adapters in use are copied.
        prepare: makes what the model needs of an adapter before its first step.

    Raises:
        SettingsError: the memory holds no page.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        nbytes: int,
        device: torch.device,
        prepare: Callable[[LoraAdapter], object] = lambda _: None,
    ):
        if nbytes < layout.slot_bytes:
            raise SettingsError(
                f"--adapter-memory is {format_bytes(nbytes)}, but a page of this model's adapters takes "
                f"{format_bytes(layout.slot_bytes)}; set it to {as_flag(layout.slot_bytes, rounds_up=True)} or more"
            )
        self.page_bytes, self.num_slots = layout.slot_bytes, nbytes // layout.slot_bytes
        self._device, self._prepare = device, prepare
        self._store = ExpertStore(
            ExpertCatalog({LAYER: LayerEntry(layout, ())}), nbytes, num_readers=NUM_READERS, policy="lru"
        )

    def open(self, version: AdapterVersion) -> None:
        """Open the file of an adapter.

        Raises:
            OSError: it can't be opened.
        """
        recipes = {(LAYER, page): recipe for page, recipe in enumerate(version.files.recipes)}
        self._store.add_variant(version.variant, recipes)

    def close_file(self, version: AdapterVersion) -> None:
        """Drop the pages of an adapter that no lease holds, and close its file."""
        self._store.remove_variant(version.variant)
        version.last = None

    def try_lease(self, version: AdapterVersion) -> bool:
        """Lease the pages of an open adapter, and begin to read those that are not in memory.

        Returns:
            True if all of them are.
        """
        lease = self._store.lease(dict.fromkeys(version.keys, 1))
        lease.__enter__()
        version.lease = lease
        return not lease.missed

    def wait(self, version: AdapterVersion) -> LoraAdapter:
        """Wait for the pages of a leased adapter, and return its matrices in them.

        Raises:
            ExpertStoreError: a page can't be read.
        """
        assert version.lease is not None
        pages = {key.expert: weights[PARAMETER] for key, weights in version.lease}
        addresses = tuple(pages[page].data_ptr() for page in range(version.num_pages))
        if version.last is not None and version.last.addresses == addresses:
            return version.last.lora
        lora = version.files.pages.adapter(
            version.name, [pages[page].to(self._device) for page in range(version.num_pages)]
        )
        if version.gate is not None:
            lora = replace(lora, gate={name: vector.to(self._device) for name, vector in version.gate.items()})
        self._prepare(lora)
        if self._device.type == "cpu":
            version.last = PlacedAdapter(addresses, lora)
        return lora

    def release(self, version: AdapterVersion) -> None:
        """End the lease of an adapter, so that its pages may be evicted."""
        if version.lease is not None:
            version.lease.__exit__(None, None, None)
            version.lease = None

    def resident_pages(self) -> dict[str, int]:
        """Return the number of pages in memory by variant."""
        counts: dict[str, int] = {}
        for key in self._store.residents():
            counts[key.variant] = counts.get(key.variant, 0) + 1
        return counts

    def idle(self, versions: Collection[AdapterVersion]) -> list[AdapterVersion]:
        """Return those open adapters whose files should be closed, as they have no pages in memory."""
        if len(versions) <= MOST_OPEN:
            return []
        resident = self.resident_pages()
        return [version for version in versions if version.variant not in resident]

    @property
    def resident_bytes(self) -> int:
        return self._store.host_resident_bytes

    def statistics(self) -> StoreStatistics:
        return self._store.statistics()

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is lost or used twice."""
        self._store.check_integrity()

    def close(self) -> None:
        self._store.close()
