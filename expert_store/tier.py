"""One level of the cache: which expert lies in which slot, who uses it, and which one is evicted next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from expert_store.entry import Entry, EntryState
from expert_store.keys import ExpertKey
from expert_store.policies import Policy
from expert_store.slot_numbers import SlotNumbers, no_op

READS_PER_WIDE_LEASE = 2  # at a time; they keep the disk busy
RECENT_CHANGES = 1024  # that can be looked up one by one


def max_held(num_requested: int, share: int, hits: int) -> int:
    """Return how many slots a lease holds at once.

    A lease of more experts than its layer's share keeps its hits and reads the others through a few slots, in waves.
    Otherwise it would evict other layers' experts, and the popular ones of its own.
    """
    return num_requested if num_requested <= share else hits + READS_PER_WIDE_LEASE


class Tier:
    """Slots, residency, leases, pins and eviction. Torch-free, and not thread-safe: the store's lock guards it.

    A key has at most one entry that is LOADING or READY, so all leases that wait for it share one load. The policy
    knows exactly the keys that are READY and not pinned.

    Three things keep an expert in its slot: a *lease* (``lease`` to ``release``), the *hold* of a step on all resident
    experts (``hold`` to ``end_hold``), and a *pin* (``pin`` to ``unpin``).

    Args:
        num_slots: slots in use.
        policy: chooses the victims.
        on_retire: called with each slot that ``resize`` takes out of use.
        on_revive: called with each slot that ``resize`` puts into use.
    """

    def __init__(
        self,
        num_slots: int,
        policy: Policy,
        on_retire: Callable[[int], None] = no_op,
        on_revive: Callable[[int], None] = no_op,
    ):
        self.evictions = 0
        self.wasted = 0  # prefetched experts that were evicted before any use
        self._slots, self._policy = SlotNumbers(num_slots, on_retire, on_revive), policy
        self._entries: dict[ExpertKey, Entry] = {}
        self._leaving: list[Entry] = []  # no look-up finds them; their slots are free once nobody uses them
        self._pinned: set[ExpertKey] = set()
        self._redundant: dict[ExpertKey, None] = {}
        self._passing: dict[ExpertKey, None] = {}  # the first victims after those: only a pass has asked for them
        self._held: frozenset[ExpertKey] = frozenset()
        self._num_holds = 0
        self.num_changes = 0  # counts changes of which experts are resident and in which slots
        self._changed: deque[ExpertKey] = deque(maxlen=RECENT_CHANGES)  # the experts of the last of them

    def find(self, key: ExpertKey) -> Entry | None:
        """Return the entry of an expert that is resident or loading, without leasing it."""
        return self._entries.get(key)

    def changed_since(self, num_changes: int) -> list[ExpertKey] | None:
        """Return the experts that have come or gone since there were so many changes; None if those are too many."""
        count = self.num_changes - num_changes
        return None if count > len(self._changed) else list(islice(reversed(self._changed), count))

    def find_ready(self, keys: Iterable[ExpertKey]) -> list[Entry] | None:
        """Return the entries of experts that are all resident, without leasing them; None if one is not."""
        find, ready = self._entries.get, EntryState.READY
        found = []
        for key in keys:
            entry = find(key)
            if entry is None or entry.state is not ready:
                return None
            found.append(entry)
        return found

    def lease(self, key: ExpertKey) -> Entry | None:
        """Lease an expert that is resident or loading, as a use of it; None if it is neither."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leases += 1
            self._keep(entry)
            if entry.state is EntryState.READY and key not in self._pinned:
                self._policy.touch(key)
        return entry

    def lease_without_use(self, key: ExpertKey) -> Entry | None:
        """Lease an expert without counting a use, so that a load does not evict it; None if it is not here."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.leases += 1
        return entry

    def lease_ready(self, keys: tuple[ExpertKey, ...]) -> list[Entry] | None:
        """Lease experts of one layer that are all resident; None, and no lease at all, if one is not."""
        found = self.find_ready(keys)
        if found is not None:
            for entry in found:
                entry.leases += 1
            self.touch(keys)
        return found

    def touch(self, keys: tuple[ExpertKey, ...]) -> None:
        """Count a use of resident experts of one layer."""
        if self._passing:
            for key in keys:
                self._keep(self._entries[key])
        if self._pinned:
            keys = tuple(key for key in keys if key not in self._pinned)
        self._policy.touch_all(keys)

    def release(self, entry: Entry) -> None:
        """End one lease of an entry."""
        self.release_all((entry,))

    def release_all(self, entries: Iterable[Entry]) -> None:
        """End one lease of each entry."""
        for entry in entries:
            if entry.leases < 1:
                raise ValueError(f"{entry.key} was released more often than leased")
            entry.leases -= 1
            if self._leaving:
                self._drop_if_unused(entry)
        if self.excess:
            self._retire_excess()

    def hold(self, keys: frozenset[ExpertKey]) -> None:
        """Keep resident experts in their slots until ``end_hold``, as a lease of each would.

        Args:
            keys: the same for all holds that overlap.
        """
        self._held = keys
        self._num_holds += 1

    def end_hold(self) -> None:
        """End one ``hold``."""
        if self._num_holds < 1:
            raise ValueError("more holds were ended than begun")
        self._num_holds -= 1
        if not self._num_holds:
            self._held = frozenset()
            for entry in list(self._leaving):
                self._drop_if_unused(entry)
            self._retire_excess()

    @property
    def is_held(self) -> bool:
        """True while residents are held for a step."""
        return self._num_holds > 0

    def can_reserve(self, key: ExpertKey) -> bool:
        """Return True if an expert is resident, loading, or would get a slot."""
        return key in self._entries or not self._slots.are_all_taken or self._victim(key) is not None

    def keep(self, keys: Iterable[ExpertKey]) -> None:
        """Count a use of those experts that are here, which a pass over a prompt has brought."""
        for key in keys:
            entry = self.lease(key)
            if entry is not None:
                self.release(entry)

    def reserve(self, key: ExpertKey, *, is_passing: bool = False) -> Entry | None:
        """Return a leased LOADING entry for an expert that is not here; None while every slot is in use.

        Args:
            is_passing: on behalf of a pass over a prompt. Until something else asks for it, such an expert is evicted
                before all others, and so a pass takes few slots from what decoding uses.
        """
        replaces = None
        if self._slots.are_all_taken:
            replaces = self._victim(key)
            if replaces is None:
                return None
            self._evict(replaces)
        entry = Entry(key, self._slots.take(), leases=1, replaces=replaces, is_passing=is_passing)
        self._entries[key] = entry
        return entry

    def finish_load(self, entry: Entry, error: Exception | None = None) -> None:
        """Make a LOADING entry READY, or FAILED if there is an error."""
        entry.read = None
        is_here = self._entries.get(entry.key) is entry
        if error is None:
            entry.state = EntryState.READY
        else:
            entry.state, entry.error = EntryState.FAILED, error
        if not is_here:
            self._drop_if_unused(entry)
        elif error is not None:
            self._leave(entry)
        else:
            self._note_change(entry.key)
            if entry.is_passing:
                self._passing[entry.key] = None
            if entry.key not in self._pinned:
                self._policy.insert(entry.key)
            self._retire_excess()

    def cancel_load(self, entry: Entry) -> None:
        """Free the slot of a LOADING entry without leases whose load has not begun and never will."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        else:
            self._leaving.remove(entry)
        self._slots.free(entry.slot)
        self._retire_excess()

    def discard(self, key: ExpertKey) -> Entry | None:
        """Forget an expert and its pin; whoever uses it may do so to the end. Return its entry, if it has one.

        No look-up finds it any more, so another expert may take its key. Its slot is free once its load, its leases and
        holds have ended.
        """
        entry = self._entries.get(key)
        is_pinned = key in self._pinned
        self._pinned.discard(key)
        if entry is not None:
            if entry.state is EntryState.READY and not is_pinned:
                self._policy.remove(key)
            self._redundant.pop(key, None)
            self._passing.pop(key, None)
            self._note_change(key)
            self._leave(entry)
        return entry

    def pin(self, key: ExpertKey) -> bool:
        """Keep an expert once it is here; False if it is pinned already."""
        if key in self._pinned:
            return False
        self._pinned.add(key)
        entry = self._entries.get(key)
        if entry is not None and entry.state is EntryState.READY:
            self._policy.remove(key)
        return True

    def unpin(self, key: ExpertKey) -> bool:
        """Let an expert be evicted again; False if it is not pinned."""
        if key not in self._pinned:
            return False
        self._pinned.remove(key)
        entry = self._entries.get(key)
        if entry is not None and entry.state is EntryState.READY:
            self._policy.insert(key)
            self._retire_excess()
        return True

    def evict(self, key: ExpertKey) -> bool:
        """Drop an expert now; False if it is not resident, in use or pinned."""
        if not self._is_evictable(key):
            return False
        self._evict(key)
        self._retire_excess()
        return True

    def mark_redundant(self, key: ExpertKey, *, is_redundant: bool) -> None:
        """Note that an expert lies in a faster tier too, which makes it the first victim, or no longer does."""
        if is_redundant and key in self._entries:
            self._redundant[key] = None
        else:
            self._redundant.pop(key, None)

    def resize(self, num_slots: int) -> None:
        """Use more slots or fewer. Slots in use by leases are retired when they are released."""
        self._policy.resize(num_slots)
        self._slots.resize(num_slots)
        self._retire_excess()

    @property
    def num_slots(self) -> int:
        return self._slots.num_slots

    @property
    def excess(self) -> int:
        """Slots in use beyond ``num_slots``; more than zero only while a smaller size waits for leases to end."""
        return self._slots.excess

    @property
    def resident(self) -> Iterator[ExpertKey]:
        return (key for key, entry in self._entries.items() if entry.state is EntryState.READY)

    @property
    def num_entries(self) -> int:
        """Number of experts that are resident or loading."""
        return len(self._entries)

    @property
    def pinned(self) -> frozenset[ExpertKey]:
        return frozenset(self._pinned)

    def is_protected(self, key: ExpertKey) -> bool:
        """Return True if an expert is leased, held, loading or pinned."""
        entry = self._entries.get(key)
        if key in self._pinned or key in self._held:
            return True
        return entry is not None and (entry.leases > 0 or entry.state is EntryState.LOADING)

    def is_pinned(self, key: ExpertKey) -> bool:
        return key in self._pinned

    @property
    def is_idle(self) -> bool:
        """True while nothing is leased, held or loading."""
        return (
            not self._leaving
            and not self.is_held
            and all(entry.state is EntryState.READY and not entry.leases for entry in self._entries.values())
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free, retired or in exactly one entry, and no lease is negative."""
        self._slots.check_integrity(entry.slot for entry in (*self._entries.values(), *self._leaving))
        if any(entry.leases < 0 or entry.key != key for key, entry in self._entries.items()):
            raise AssertionError("an entry has negative leases or a wrong key")
        if self.excess > 0 and (not self._slots.are_all_taken or any(map(self._is_evictable, self._entries))):
            raise AssertionError(f"there are {self.excess} slots too many, though some are unused")
        if not self._redundant.keys() | self._passing.keys() <= self._entries.keys():
            raise AssertionError("an expert that is not here is marked as one of the first victims")

    def _keep(self, entry: Entry) -> None:
        """Note that something else than a pass asks for an expert."""
        if entry.is_passing:
            entry.is_passing = False
            self._passing.pop(entry.key, None)

    def _note_change(self, key: ExpertKey) -> None:
        self.num_changes += 1
        self._changed.append(key)

    def _is_evictable(self, key: ExpertKey) -> bool:
        entry = self._entries.get(key)
        if entry is None or entry.state is not EntryState.READY or entry.leases:
            return False
        return key not in self._pinned and key not in self._held

    def _victim(self, incoming: ExpertKey) -> ExpertKey | None:
        first = next(filter(self._is_evictable, chain(self._redundant, self._passing)), None)
        return first or self._policy.victim(incoming, self._is_evictable)

    def _evict(self, key: ExpertKey) -> None:
        self._policy.remove(key)
        self._redundant.pop(key, None)
        self._passing.pop(key, None)
        entry = self._entries.pop(key)
        self._note_change(key)
        self._slots.free(entry.slot)
        self.evictions += 1
        self.wasted += entry.is_prefetched

    def _retire_excess(self) -> None:
        """Retire slots beyond ``num_slots`` as far as they are unused."""
        while self.excess > 0:
            if self._slots.are_all_taken:
                victim = self._victim(next(iter(self._entries))) if self._entries else None
                if victim is None:
                    return
                self._evict(victim)
            self._slots.retire()

    def _leave(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._leaving.append(entry)
        self._drop_if_unused(entry)

    def _drop_if_unused(self, entry: Entry) -> None:
        """Free the slot of a leaving entry, unless it is in use."""
        is_used = entry.leases > 0 or entry.state is EntryState.LOADING or entry.key in self._held
        if not is_used and entry in self._leaving:
            self._leaving.remove(entry)
            self._slots.free(entry.slot)
            self._retire_excess()
