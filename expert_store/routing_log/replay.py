"""Hit ratios that a policy, a number of slots, or Belady's optimum would have had on recorded routing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from expert_store.entry import Entry
from expert_store.keys import ExpertKey
from expert_store.policies import make_policy
from expert_store.policies.fair import slots_per_layer
from expert_store.routing_log.log import LoggedLease, RoutingLog, RoutingLogHeader
from expert_store.statistics import PHASES, Phase
from expert_store.tier import Tier, max_held


@dataclass
class ReplayResult:
    """Look-ups and hits of each phase, and bytes read for the misses."""

    lookups: Counter[Phase] = field(default_factory=Counter)
    hits: Counter[Phase] = field(default_factory=Counter)
    bytes_loaded: int = 0

    def hit_ratio(self, *phases: Phase) -> float | None:
        """Return hits over look-ups of some phases, or of all; None if there were no look-ups."""
        phases = phases or PHASES
        lookups = sum(self.lookups[phase] for phase in phases)
        return sum(self.hits[phase] for phase in phases) / lookups if lookups else None

    def count(self, lease: LoggedLease, hits: int, slot_bytes: int) -> None:
        self.lookups[lease.phase] += len(lease.experts)
        self.hits[lease.phase] += hits
        self.bytes_loaded += (len(lease.experts) - hits) * slot_bytes


@dataclass(frozen=True)
class SlotPool:
    """Layers whose experts have slots of the same size, and the number of slots that they share."""

    experts_per_layer: dict[int, int]
    slot_bytes: int
    num_slots: int


def slot_pools(header: RoutingLogHeader, num_slots: int) -> list[SlotPool]:
    """Group layers by the size of their slots, and give each group slots in proportion to its experts.

    Raises:
        ValueError: a pool would get none.
    """
    total = sum(header.layers.values())
    pools = []
    for slot_bytes in sorted(set(header.slot_bytes.values())):
        layers = {layer: count for layer, count in header.layers.items() if header.slot_bytes[layer] == slot_bytes}
        slots = sum(layers.values()) * min(num_slots, total) // total
        if not slots:
            raise ValueError(f"{num_slots} slots leave none for the experts of layer {next(iter(layers))}; give more")
        pools.append(SlotPool(layers, slot_bytes, slots))
    return pools


def replay(routing_log: RoutingLog, policy_name: str, num_slots: int) -> ReplayResult:
    """Replay a routing log through the tiers of a store that begins empty.

    Raises:
        ValueError: no policy has this name, or there are too few slots.
    """
    result = ReplayResult()
    tiers = {}
    for pool in slot_pools(routing_log.header, num_slots):
        tier = Tier(pool.num_slots, make_policy(policy_name, pool.num_slots, pool.experts_per_layer))
        for layer, share in slots_per_layer(pool.num_slots, pool.experts_per_layer).items():
            tiers[layer] = (tier, share, pool.slot_bytes)
    for lease in routing_log.leases:
        tier, share, slot_bytes = tiers[lease.layer]
        result.count(lease, replay_lease(tier, lease, share), slot_bytes)
    return result


def replay_optimal(routing_log: RoutingLog, num_slots: int) -> ReplayResult:
    """Replay a routing log with the most hits that any policy could have had, from empty slots.

    Raises:
        ValueError: there are too few slots.
    """
    result = ReplayResult()
    for pool in slot_pools(routing_log.header, num_slots):
        leases = [lease for lease in routing_log.leases if lease.layer in pool.experts_per_layer]
        for lease, hits in zip(leases, optimal_by_lease(leases, pool.num_slots), strict=True):
            result.count(lease, hits, pool.slot_bytes)
    return result


class _ReplayedLease:
    """A ``Lease`` of the store, whose reads end one by one, each when the lease waits for it.

    ``tests/expert_store/routing_log/test_replay_and_lease.py`` compares the two.
    """

    def __init__(self, tier: Tier, lease: LoggedLease, share: int):
        keys = [ExpertKey(lease.layer, expert) for expert in lease.experts]
        find = tier.lease_without_use if lease.is_passing else tier.lease
        entries = [(key, find(key)) for key in keys]
        self._tier, self._is_passing = tier, lease.is_passing
        self._held = [entry for _, entry in entries if entry is not None]
        self._loading: deque[Entry] = deque()
        self._wanted = deque(key for key, entry in entries if entry is None)
        self.hits = len(self._held)
        self._max_held = len(keys) if lease.is_passing else max_held(len(keys), share, self.hits)

    def run(self) -> None:
        while self._wanted or self._loading:
            self._load_wanted()
            if self._loading:
                entry = self._loading.popleft()
                self._tier.finish_load(entry)
                self._held.append(entry)
                if self._wanted:
                    self._release([entry])
            elif self._held:  # every slot is in use
                self._release(list(self._held))
            else:
                raise ValueError(f"there is no slot for {self._wanted[0]}; give a tier at least one")
        self._release(list(self._held))

    def _load_wanted(self) -> None:
        while self._wanted and len(self._held) + len(self._loading) < self._max_held:
            entry = self._tier.reserve(self._wanted[0], is_passing=self._is_passing)
            if entry is None:
                return
            self._loading.append(entry)
            self._wanted.popleft()

    def _release(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._held.remove(entry)
            self._tier.release(entry)


def replay_lease(tier: Tier, lease: LoggedLease, share: int) -> int:
    """Take a lease as the store does, and return how many of its experts were resident.

    Args:
        share: the share of slots of the lease's layer; see ``max_held``.
    """
    replayed = _ReplayedLease(tier, lease, share)
    replayed.run()
    return replayed.hits


def optimal(leases: Sequence[LoggedLease], num_slots: int, initial_residents: Iterable[ExpertKey] = ()) -> int:
    """Return the most hits that any policy can have; see ``optimal_by_lease``."""
    return sum(optimal_by_lease(leases, num_slots, initial_residents))


def optimal_by_lease(
    leases: Sequence[LoggedLease], num_slots: int, initial_residents: Iterable[ExpertKey] = ()
) -> list[int]:
    """Return the hits of each lease under Belady's MIN, which evicts the expert whose next use is the farthest away.

    Experts of the running lease may be evicted too, once they have been used. The one that is read last stays. For a
    lease of several experts it is left open which one that is, so the result is a bound that may not be quite reached.
    O(n log n). Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.

    Args:
        leases: leases of layers that share slots, in their order.
        num_slots: the number of these slots.
        initial_residents: experts in the slots before the first lease.

    Raises:
        ValueError: there is no slot, or more residents than slots.
    """
    never = len(leases)
    initial = set(initial_residents)
    if len(initial) > num_slots or num_slots < 1:
        raise ValueError(f"{num_slots} slots can't hold {len(initial)} residents and serve a lease; give more slots")
    highest = max((expert for lease in leases for expert in lease.experts), default=0)
    stride = 1 + max(highest, *(key.expert for key in initial), 0)
    next_use: dict[int, int] = {}  # by expert, as a number
    uses: list[list[tuple[int, int]]] = []  # for each lease, its experts and the lease that needs each next
    for index in range(len(leases) - 1, -1, -1):
        keys = [leases[index].layer * stride + expert for expert in leases[index].experts]
        uses.append([(key, next_use.get(key, never)) for key in keys])
        for key in keys:
            next_use[key] = index
    places = (key.layer * stride + key.expert for key in initial)
    resident = {place: next_use.get(place, never) for place in places}
    width = 1 + max((*next_use, *resident), default=0)
    heap = _heap(resident, width)
    result = []
    for lease in reversed(uses):
        result.append(sum(key in resident for key, _ in lease))
        stays = lease[0][0] if len(lease) == 1 else None
        resident.update(lease)
        for key, use in lease:
            if key != stays:
                heappush(heap, -(use * width + key))
        while len(resident) > num_slots:
            use, key = divmod(-heappop(heap), width)
            if resident.get(key) == use:  # else it was used since, and has a newer entry
                del resident[key]
        if stays is not None:
            heappush(heap, -(resident[stays] * width + stays))
    return result


def _heap(resident: Mapping[int, int], width: int) -> list[int]:
    """Return a heap of next use and expert, as one number each, which compares quickly; the farthest use first."""
    heap = [-(use * width + key) for key, use in resident.items()]
    heapify(heap)
    return heap
