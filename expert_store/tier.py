"""One level of the cache: which expert lies in which slot, who uses it, and which one goes next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from .catalog import ExpertKey
from .policies import Policy


class State(Enum):
    LOADING = auto()
    READY = auto()
    FAILED = auto()  # the slot is kept until the last of those who waited has seen the error


@dataclass(eq=False)
class Entry:
    """One stay of an expert in a slot. While ``leases`` is positive, it is neither moved nor evicted."""

    key: ExpertKey
    slot: int
    state: State = State.LOADING
    leases: int = 0
    error: Exception | None = None


class Tier:
    """Slots, residency, leases and eviction. Torch-free, and not thread-safe: the store's lock guards it.

    A key has at most one entry that is LOADING or READY, so any number of waiters share one read.
    """

    def __init__(self, num_slots: int, policy: Policy):
        self.num_slots = num_slots
        self.evictions = 0
        self._policy = policy
        self._free = list(range(num_slots))[::-1]
        self._entries: dict[ExpertKey, Entry] = {}
        self._failed: list[Entry] = []

    def lease(self, key: ExpertKey) -> Entry | None:
        """Lease an expert that is resident or on its way; None if it is neither."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leases += 1
            if entry.state is State.READY:
                self._policy.touch(key)
        return entry

    def reserve(self, key: ExpertKey) -> Entry | None:
        """A leased slot for an expert that is about to be read; None while every slot is in use."""
        if not self._free:
            victim = self._policy.victim(key, lambda candidate: self._entries[candidate].leases == 0)
            if victim is None:
                return None
            self._evict(victim)
        entry = Entry(key, self._free.pop(), leases=1)
        self._entries[key] = entry
        return entry

    def finish(self, entry: Entry, error: Exception | None = None) -> None:
        """The read of an entry ended."""
        if error is None:
            entry.state = State.READY
            self._policy.insert(entry.key)
            return
        entry.state, entry.error = State.FAILED, error
        del self._entries[entry.key]
        self._failed.append(entry)
        self._drop_if_unused(entry)

    def release(self, entry: Entry) -> None:
        """Give one lease back."""
        if entry.leases < 1:
            raise ValueError(f"{entry.key} was released more often than leased")
        entry.leases -= 1
        self._drop_if_unused(entry)

    @property
    def resident(self) -> Iterable[ExpertKey]:
        return (key for key, entry in self._entries.items() if entry.state is State.READY)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free or in exactly one entry and no lease is negative."""
        entries = [*self._entries.values(), *self._failed]
        slots = sorted([*self._free, *(entry.slot for entry in entries)])
        if slots != list(range(self.num_slots)):
            raise AssertionError(f"slots are lost or used twice: {slots}")
        if any(entry.leases < 0 or entry.key != key for key, entry in self._entries.items()):
            raise AssertionError("an entry has negative leases or a wrong key")

    def _evict(self, key: ExpertKey) -> None:
        self._policy.remove(key)
        self._free.append(self._entries.pop(key).slot)
        self.evictions += 1

    def _drop_if_unused(self, entry: Entry) -> None:
        if entry.state is State.FAILED and entry.leases == 0:
            self._failed.remove(entry)
            self._free.append(entry.slot)
