"""One level of the cache: which expert lies in which slot, who uses it, and which one goes next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from .keys import ExpertKey
from .policies import Policy


class State(Enum):
    LOADING = auto()
    READY = auto()
    FAILED = auto()  # the slot is kept until the last of those who waited has seen the error


@dataclass(eq=False, slots=True)
class Entry:
    """One stay of an expert in a slot. While ``leases`` is positive, it is neither moved nor evicted."""

    key: ExpertKey
    slot: int
    state: State = State.LOADING
    leases: int = 0
    error: Exception | None = None
    is_ahead: bool = False  # prefetched, and not asked for yet
    replaces: ExpertKey | None = None  # whose bytes the slot held before
    job: Any = None  # what fills the slot
    arrival: Any = None  # on a device: the event after which the slot may be read


READS_OF_WIDE_LEASE = 2  # at a time; they keep the disk busy


def most_held(num_asked: int, share: int, hits: int) -> int:
    """Slots that a lease takes at once.

    One that asks for more experts than its layer's share keeps those that it found and reads the others through a few
    slots, in waves: else it would push out other layers' experts, and the popular ones of its own.
    """
    return num_asked if num_asked <= share else hits + READS_OF_WIDE_LEASE


def _ignore(slot: int) -> None:
    del slot


class Tier:
    """Slots, residency, leases, pins and eviction. Torch-free, and not thread-safe: the store's lock guards it.

    A key has at most one entry that is LOADING or READY, so any number of waiters share one load. The policy knows
    exactly the keys that are READY and not pinned.

    Args:
        num_slots: slots in use.
        policy: chooses who goes.
        on_retire: is told each slot that is no longer used after ``resize``.
        on_revive: is told each slot that is used again, or newly.
    """

    def __init__(
        self,
        num_slots: int,
        policy: Policy,
        on_retire: Callable[[int], None] = _ignore,
        on_revive: Callable[[int], None] = _ignore,
    ):
        self.num_slots = num_slots  # as asked for; while leases hold more, `excess` tells how many
        self.evictions = 0
        self.wasted = 0  # evicted ahead of any use
        self._policy = policy
        self._on_retire, self._on_revive = on_retire, on_revive
        self._free = list(range(num_slots))[::-1]
        self._retired: list[int] = []
        self._num_made = num_slots  # slots that ever were
        self._entries: dict[ExpertKey, Entry] = {}
        self._failed: list[Entry] = []
        self._pinned: set[ExpertKey] = set()
        self._spare: dict[ExpertKey, None] = {}
        self._kept: frozenset[ExpertKey] = frozenset()
        self._num_keeping = 0
        self.num_changes = 0  # of what is resident, or where

    def find(self, key: ExpertKey) -> Entry | None:
        """The entry of an expert that is resident or on its way, without leasing it."""
        return self._entries.get(key)

    def find_ready(self, keys: Iterable[ExpertKey]) -> list[Entry] | None:
        """The entries of experts that are all resident, without leasing them; None if one is not."""
        find, ready = self._entries.get, State.READY
        found = []
        for key in keys:
            entry = find(key)
            if entry is None or entry.state is not ready:
                return None
            found.append(entry)
        return found

    def lease(self, key: ExpertKey) -> Entry | None:
        """Lease an expert that is resident or on its way; None if it is neither."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leases += 1
            if entry.state is State.READY and key not in self._pinned:
                self._policy.touch(key)
        return entry

    def lease_ready(self, keys: tuple[ExpertKey, ...]) -> list[Entry] | None:
        """Lease experts of one layer that are all resident; None, and none is leased, if one is not."""
        found = self.find_ready(keys)
        if found is not None:
            for entry in found:
                entry.leases += 1
            self.touch(keys)
        return found

    def touch(self, keys: tuple[ExpertKey, ...]) -> None:
        """Resident experts of one layer are asked for."""
        if self._pinned:
            keys = tuple(key for key in keys if key not in self._pinned)
        self._policy.touch_all(keys)

    def hold(self, key: ExpertKey) -> Entry | None:
        """Lease an expert without counting it as asked for, so that what is fetched now does not push it out."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leases += 1
        return entry

    def has_room(self, key: ExpertKey) -> bool:
        """Whether an expert is here, on its way, or would get a slot."""
        return key in self._entries or bool(self._free) or self._pick(key) is not None

    def reserve(self, key: ExpertKey) -> Entry | None:
        """A leased slot for an expert that is about to arrive; None while every slot is in use."""
        replaces = None
        if not self._free:
            replaces = self._pick(key)
            if replaces is None:
                return None
            self._evict(replaces)
        entry = Entry(key, self._free.pop(), leases=1, replaces=replaces)
        self._entries[key] = entry
        return entry

    def finish(self, entry: Entry, error: Exception | None = None) -> None:
        """The load of an entry ended."""
        entry.job = None
        if error is None:
            entry.state = State.READY
            self.num_changes += 1
            if entry.key not in self._pinned:
                self._policy.insert(entry.key)
            self._settle()
            return
        entry.state, entry.error = State.FAILED, error
        del self._entries[entry.key]
        self._failed.append(entry)
        self._drop_if_unused(entry)

    def abandon(self, entry: Entry) -> None:
        """The load of an entry that nobody leases was called off before it began."""
        del self._entries[entry.key]
        self._free.append(entry.slot)
        self._settle()

    def release_all(self, entries: Iterable[Entry]) -> None:
        """Give one lease of each entry back."""
        for entry in entries:
            if entry.leases < 1:
                raise ValueError(f"{entry.key} was released more often than leased")
            entry.leases -= 1
            if entry.state is State.FAILED:
                self._drop_if_unused(entry)
        if self.excess:
            self._settle()

    def keep(self, keys: frozenset[ExpertKey]) -> None:
        """Hold resident experts where they are, as leases of each of them would, until ``let_go``.

        Args:
            keys: the same whenever some are kept already.
        """
        self._kept = keys
        self._num_keeping += 1

    def let_go(self) -> None:
        """End one ``keep``."""
        if self._num_keeping < 1:
            raise ValueError("experts were let go more often than kept")
        self._num_keeping -= 1
        if not self._num_keeping:
            self._kept = frozenset()
            self._settle()

    def release(self, entry: Entry) -> None:
        """Give one lease back."""
        self.release_all((entry,))

    def pin(self, key: ExpertKey) -> bool:
        """Keep an expert once it is here; False if it is pinned already."""
        if key in self._pinned:
            return False
        self._pinned.add(key)
        entry = self._entries.get(key)
        if entry is not None and entry.state is State.READY:
            self._policy.remove(key)
        return True

    def unpin(self, key: ExpertKey) -> bool:
        """Let an expert be evicted again; False if it is not pinned."""
        if key not in self._pinned:
            return False
        self._pinned.remove(key)
        entry = self._entries.get(key)
        if entry is not None and entry.state is State.READY:
            self._policy.insert(key)
            self._settle()
        return True

    def evict(self, key: ExpertKey) -> bool:
        """Drop an expert now; False if it is not resident, in use or pinned."""
        if not self._is_evictable(key):
            return False
        self._evict(key)
        self._settle()
        return True

    def mark_spare(self, key: ExpertKey, *, is_spare: bool) -> None:
        """An expert that lies in a faster tier too is the first to go."""
        if is_spare and key in self._entries:
            self._spare[key] = None
        else:
            self._spare.pop(key, None)

    def resize(self, num_slots: int) -> None:
        """Use more slots or fewer. What is leased stays; its slots leave when they are given back."""
        self.num_slots = num_slots
        self._policy.resize(num_slots)
        while self.excess < 0:
            slot = self._retired.pop() if self._retired else self._num_made
            self._num_made = max(self._num_made, slot + 1)
            self._free.append(slot)
            self._on_revive(slot)
        self._settle()

    @property
    def excess(self) -> int:
        """Slots in use beyond ``num_slots``; more than zero only while a smaller size waits for leases to end."""
        return self._num_made - len(self._retired) - self.num_slots

    @property
    def resident(self) -> Iterator[ExpertKey]:
        return (key for key, entry in self._entries.items() if entry.state is State.READY)

    @property
    def num_entries(self) -> int:
        """Experts that are resident or on their way."""
        return len(self._entries)

    @property
    def pinned(self) -> frozenset[ExpertKey]:
        return frozenset(self._pinned)

    def is_held(self, key: ExpertKey) -> bool:
        """Whether an expert is in use, on its way or pinned."""
        entry = self._entries.get(key)
        if key in self._pinned or key in self._kept:
            return True
        return entry is not None and (entry.leases > 0 or entry.state is State.LOADING)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is leased and nothing on its way."""
        return not self._failed and all(
            entry.state is State.READY and not entry.leases for entry in self._entries.values()
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free, retired or in exactly one entry, and no lease is negative."""
        entries = [*self._entries.values(), *self._failed]
        slots = sorted([*self._free, *self._retired, *(entry.slot for entry in entries)])
        if slots != list(range(self._num_made)):
            raise AssertionError(f"slots are lost or used twice: {slots}")
        if any(entry.leases < 0 or entry.key != key for key, entry in self._entries.items()):
            raise AssertionError("an entry has negative leases or a wrong key")
        if self.excess < 0:
            raise AssertionError(f"{-self.excess} slots are missing")
        if self.excess > 0 and (self._free or any(map(self._is_evictable, self._entries))):
            raise AssertionError(f"{self.excess} slots too many, though some are unused")
        if not self._spare.keys() <= self._entries.keys():
            raise AssertionError("an expert that is not here counts as spare")

    def _is_evictable(self, key: ExpertKey) -> bool:
        entry = self._entries.get(key)
        if entry is None or entry.state is not State.READY or entry.leases:
            return False
        return key not in self._pinned and key not in self._kept

    def _pick(self, incoming: ExpertKey) -> ExpertKey | None:
        spare = next((key for key in self._spare if self._is_evictable(key)), None)
        return spare or self._policy.victim(incoming, self._is_evictable)

    def _evict(self, key: ExpertKey) -> None:
        self._policy.remove(key)
        self._spare.pop(key, None)
        entry = self._entries.pop(key)
        self.num_changes += 1
        self._free.append(entry.slot)
        self.evictions += 1
        self.wasted += entry.is_ahead

    def _settle(self) -> None:
        """After a smaller size was asked for: retire slots as far as they are unused."""
        while self.excess > 0:
            if not self._free:
                victim = self._pick(next(iter(self._entries))) if self._entries else None
                if victim is None:
                    return
                self._evict(victim)
            slot = self._free.pop()
            self._retired.append(slot)
            self._on_retire(slot)

    def _drop_if_unused(self, entry: Entry) -> None:
        if entry.state is State.FAILED and entry.leases == 0:
            self._failed.remove(entry)
            self._free.append(entry.slot)
            self._settle()
