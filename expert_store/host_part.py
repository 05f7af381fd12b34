"""HostPart: the experts of a lease that are computed from host memory, as the device has no slot for them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from expert_store.entry import Entry, EntryState
from expert_store.errors import ExpertLoadError
from expert_store.io.reader import Priority
from expert_store.keys import ExpertKey
from expert_store.layout_pool import LayoutPool


class HostPart:
    """Experts that are leased in the host tier. Methods expect the store's lock to be held, but for ``addresses``."""

    def __init__(self, pool: LayoutPool):
        self._pool = pool
        self._entries: list[Entry] = []

    @property
    def keys(self) -> Sequence[ExpertKey]:
        return [entry.key for entry in self._entries]

    @property
    def addresses(self) -> array[int]:
        """The address of each expert's slot in host memory, uint64 ``(keys,)``."""
        return self._pool.host_addresses(self._entries)

    def take(self, keys: Sequence[ExpertKey]) -> list[ExpertKey]:
        """Lease experts that are not on the device, and read those that the host lacks.

        Returns:
            The experts that are left: as many as the device has free slots for, and those that find none on the host.
        """
        pool = self._pool
        num_free = max(0, pool.device.num_slots - pool.device.num_entries)
        left, asked = list(keys[:num_free]), keys[num_free:]
        found = {key: entry for key in asked if (entry := pool.host.lease(key)) is not None}
        for key in asked:
            entry = found.get(key) or pool.load_to_host(key, Priority.DEMAND)
            if entry is None:
                left.append(key)
            else:
                self._entries.append(entry)
        return left

    @property
    def loading(self) -> list[Entry]:
        """Those that are not ready yet.

        Raises:
            ExpertLoadError: one could not be read.
        """
        for entry in self._entries:
            if entry.state is EntryState.FAILED:
                raise ExpertLoadError(entry.key, entry.error) from entry.error
        return [entry for entry in self._entries if entry.state is EntryState.LOADING]

    def release(self) -> None:
        """End the leases."""
        self._pool.host.release_all(self._entries)
        self._entries = []
