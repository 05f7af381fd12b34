"""Comparison of inclusive and exclusive tiers: ``python -m benchmarks.tier_inclusion``.

Replays routing logs on a device tier above a host tier above disk, with the default policy in both tiers:

- inclusive: the host keeps a copy of all experts on the device; victims of the device are dropped;
- exclusive: experts loaded to the device leave the host; victims of the device are written back to the host;
- lazy: experts loaded to the device stay in the host until the host needs a slot, and are evicted first; victims of the
  device are dropped if the host still has them, else written back.

Prints bytes per decoded token over disk and PCIe, and the transfer time if reads and copies do not overlap, with
full-duplex and half-duplex PCIe. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from benchmarks.hit_ratios import TRACES
from benchmarks.synthetic_routing import synthetic_trace
from expert_store import ExpertKey
from expert_store.policies import make_policy
from expert_store.routing_log.log import LoggedLease, RoutingLog, RoutingLogHeader, read_routing_log

POLICY = "lfru"
DEVICE_SHARES, HOST_SHARES = (10, 25), (25, 50, 75, 100)  # percent of the experts
DISK, PCIE = 2e9, (12e9, 25e9)  # bytes per second


class SimulatedTier:
    """Resident experts of one tier, and their policy."""

    def __init__(self, header: RoutingLogHeader, share: int):
        self.num_slots = sum(header.layers.values()) * share // 100
        self.policy = make_policy(POLICY, self.num_slots, header.layers)
        self.resident: set[ExpertKey] = set()

    def insert(self, key: ExpertKey) -> None:
        self.resident.add(key)
        self.policy.insert(key)

    def remove(self, key: ExpertKey) -> None:
        self.resident.remove(key)
        self.policy.remove(key)

    def evict_for(self, key: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        """Evict an expert if the tier is full. Return the victim, or None."""
        if len(self.resident) < self.num_slots:
            return None
        victim = self.policy.victim(key, is_evictable)
        if victim is not None:
            self.remove(victim)
        return victim


class Tiers(ABC):
    """Two tiers, and the number of experts moved between them."""

    def __init__(self, header: RoutingLogHeader, device_share: int, host_share: int):
        self.device, self.host = SimulatedTier(header, device_share), SimulatedTier(header, host_share)
        self.moved: Counter[str] = Counter()

    def run(self, lease: LoggedLease) -> None:
        """Load all experts of a lease to the device. Experts of the lease are evicted only if there are no others."""
        keys = [ExpertKey(lease.layer, expert) for expert in lease.experts]
        missing = [key for key in keys if key not in self.device.resident]
        hits = [key for key in keys if key in self.device.resident]
        for key in hits:
            self.device.policy.touch(key)
        in_use = set(hits)
        for key in missing:
            victim = self.device.evict_for(key, lambda candidate: candidate not in in_use)
            if victim is None and len(self.device.resident) >= self.device.num_slots:
                in_use.clear()  # next wave
                victim = self.device.evict_for(key, lambda _: True)
            self.load_to_device(key)
            self.moved["host_to_device"] += 1
            if victim is not None:
                self.drop_from_device(victim)
            self.device.insert(key)
            in_use.add(key)

    @abstractmethod
    def load_to_device(self, key: ExpertKey) -> None:
        """Load an expert to the device, from the host or from disk."""

    @abstractmethod
    def drop_from_device(self, victim: ExpertKey) -> None:
        """Handle an expert that was evicted from the device."""


class Inclusive(Tiers):
    def load_to_device(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.policy.touch(key)
            return
        self.moved["disk_to_host"] += 1
        self.host.evict_for(key, lambda candidate: candidate not in self.device.resident)
        self.host.insert(key)

    def drop_from_device(self, victim: ExpertKey) -> None:
        """Do nothing: the host has a copy."""


class Exclusive(Tiers):
    def load_to_device(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.remove(key)
        else:
            self.moved["disk_to_host"] += 1

    def drop_from_device(self, victim: ExpertKey) -> None:
        self.moved["device_to_host"] += 1
        self.host.evict_for(victim, lambda _: True)
        self.host.insert(victim)


class Lazy(Tiers):
    """``host.resident`` holds experts in the host only; ``duplicates`` are also on the device, oldest first."""

    def __init__(self, header: RoutingLogHeader, device_share: int, host_share: int):
        super().__init__(header, device_share, host_share)
        self.duplicates: dict[ExpertKey, None] = {}

    def load_to_device(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.remove(key)
        else:
            self.moved["disk_to_host"] += 1
            self._free_slot(key)
        self.duplicates[key] = None

    def drop_from_device(self, victim: ExpertKey) -> None:
        if victim in self.duplicates:
            del self.duplicates[victim]
        else:
            self.moved["device_to_host"] += 1
            self._free_slot(victim)
        self.host.insert(victim)

    def _free_slot(self, key: ExpertKey) -> None:
        if len(self.host.resident) + len(self.duplicates) < self.host.num_slots:
            return
        if self.duplicates:
            del self.duplicates[next(iter(self.duplicates))]
        else:
            self.host.evict_for(key, lambda _: True)


MODES: dict[str, type[Tiers]] = {"inclusive": Inclusive, "exclusive": Exclusive, "lazy": Lazy}


def measure(
    traces: Sequence[RoutingLog], streams: int, mode: str, device_share: int, host_share: int
) -> dict[str, float]:
    """Return megabytes by route and milliseconds, both per decoded token; means over the logs of one model."""
    moved: Counter[str] = Counter()
    tokens = 0
    for trace in traces:
        tiers = MODES[mode](trace.header, device_share, host_share)
        first = next(iter(trace.header.layers))
        for lease in trace.leases:
            before = tiers.moved.copy()
            tiers.run(lease)
            if lease.phase == "decode":
                moved += tiers.moved - before
                tokens += streams * (lease.layer == first)
    slot_bytes = next(iter(traces[0].header.slot_bytes.values()))
    routes = ("disk_to_host", "host_to_device", "device_to_host")
    nbytes = {route: moved[route] * slot_bytes / tokens for route in routes}
    read, to_device, back = nbytes["disk_to_host"] / DISK, nbytes["host_to_device"], nbytes["device_to_host"]
    seconds = {f"ms_{rate / 1e9:.0f}": 1e3 * (read + max(to_device, back) / rate) for rate in PCIE}
    seconds |= {f"ms_{rate / 1e9:.0f}_half_duplex": 1e3 * (read + (to_device + back) / rate) for rate in PCIE}
    return {**{f"{route}_mb": value / 1e6 for route, value in nbytes.items()}, **seconds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="length of the synthetic logs")
    steps = parser.parse_args().steps
    one_stream = [read_routing_log(path) for path in sorted(TRACES.glob("*.gz")) if path.name != "mixed.jsonl.gz"]
    groups: dict[str, tuple[list[RoutingLog], int]] = {
        "bundled model, domains and chat": (one_stream, 1),
        "bundled model, four mixed streams": ([read_routing_log(TRACES / "mixed.jsonl.gz")], 4),
        "synthetic 48 x 128, one stream": ([synthetic_trace(steps, 1, seed=0)], 1),
        "synthetic 48 x 128, four streams": ([synthetic_trace(steps // 2, 4, seed=1)], 4),
    }
    result: dict[str, list[dict[str, object]]] = {}
    for group, (traces, streams) in groups.items():
        print(f"\n{group}: MB per token by route; ms per token at 12 and 25 GB/s, full and half duplex")
        print("| device | host | mode | disk to host | host to device | device to host | 12 | 25 | 12 half | 25 half |")
        print("| --- |" + " --- |" * 9)
        for device, host, mode in product(DEVICE_SHARES, HOST_SHARES, MODES):
            found = {name: round(value, 3) for name, value in measure(traces, streams, mode, device, host).items()}
            print(f"| {device} % | {host} % | {mode} | " + " | ".join(map(str, found.values())) + " |", flush=True)
            result.setdefault(group, []).append({"device": device, "host": host, "mode": mode, **found})
    print(json.dumps({"benchmark": "tiers", "policy": POLICY, "disk_bytes_per_second": DISK, "groups": result}))


if __name__ == "__main__":
    main()
