"""Inclusive or exclusive: ``python -m benchmarks.tiers``.

A device tier over a host tier over disk, replayed on routing traces with the default policy in both tiers:

- inclusive: the host keeps a copy of all that is on the device, whose victims are dropped;
- exclusive: what goes to the device leaves the host, and a victim of the device is written back to it;
- lazy: what goes to the device stays in the host until the host needs a slot, and then goes first; a victim of the
  device is dropped if the host still has it, else written back.

Bytes a decoded token over disk and PCIe, and the time that they take if reads and copies do not overlap, with PCIe
carrying both ways at once or one way at a time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from benchmarks.hit_ratios import TRACES
from benchmarks.synthetic import synthetic_trace
from expert_store import ExpertKey
from expert_store.policies import make_policy
from expert_store.trace import Trace, TracedLease, TraceHeader, read_trace

POLICY = "lfru"
DEVICE_SHARES, HOST_SHARES = (10, 25), (25, 50, 75, 100)  # per cent of the experts
DISK, PCIE = 2e9, (12e9, 25e9)  # bytes a second


class Level:
    """Residents of one tier and their policy."""

    def __init__(self, header: TraceHeader, share: int):
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
        """Make room if there is none; who went."""
        if len(self.resident) < self.num_slots:
            return None
        victim = self.policy.victim(key, is_evictable)
        if victim is not None:
            self.remove(victim)
        return victim


class Tiers(ABC):
    """Two tiers and what was moved between them, in experts."""

    def __init__(self, header: TraceHeader, device_share: int, host_share: int):
        self.device, self.host = Level(header, device_share), Level(header, host_share)
        self.moved: Counter[str] = Counter()

    def run(self, lease: TracedLease) -> None:
        """Bring all experts of a lease to the device; none of them goes while there is another."""
        keys = [ExpertKey(lease.layer, expert) for expert in lease.experts]
        missing = [key for key in keys if key not in self.device.resident]
        hits = [key for key in keys if key in self.device.resident]
        for key in hits:
            self.device.policy.touch(key)
        held = set(hits)
        for key in missing:
            victim = self.device.evict_for(key, lambda candidate: candidate not in held)
            if victim is None and len(self.device.resident) >= self.device.num_slots:
                held.clear()  # a wave
                victim = self.device.evict_for(key, lambda _: True)
            self.fetch(key)
            self.moved["host_to_device"] += 1
            if victim is not None:
                self.give_up(victim)
            self.device.insert(key)
            held.add(key)

    @abstractmethod
    def fetch(self, key: ExpertKey) -> None:
        """A key goes to the device: from the host, or from disk."""

    @abstractmethod
    def give_up(self, victim: ExpertKey) -> None:
        """A key has left the device."""


class Inclusive(Tiers):
    def fetch(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.policy.touch(key)
            return
        self.moved["disk_to_host"] += 1
        self.host.evict_for(key, lambda candidate: candidate not in self.device.resident)
        self.host.insert(key)

    def give_up(self, victim: ExpertKey) -> None:
        """The host has it."""


class Exclusive(Tiers):
    def fetch(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.remove(key)
        else:
            self.moved["disk_to_host"] += 1

    def give_up(self, victim: ExpertKey) -> None:
        self.moved["device_to_host"] += 1
        self.host.evict_for(victim, lambda _: True)
        self.host.insert(victim)


class Lazy(Tiers):
    """``host.resident`` is what only the host has; duplicates are those that the device has as well, oldest first."""

    def __init__(self, header: TraceHeader, device_share: int, host_share: int):
        super().__init__(header, device_share, host_share)
        self.duplicates: dict[ExpertKey, None] = {}

    def fetch(self, key: ExpertKey) -> None:
        if key in self.host.resident:
            self.host.remove(key)
        else:
            self.moved["disk_to_host"] += 1
            self._make_room(key)
        self.duplicates[key] = None

    def give_up(self, victim: ExpertKey) -> None:
        if victim in self.duplicates:
            del self.duplicates[victim]
        else:
            self.moved["device_to_host"] += 1
            self._make_room(victim)
        self.host.insert(victim)

    def _make_room(self, key: ExpertKey) -> None:
        if len(self.host.resident) + len(self.duplicates) < self.host.num_slots:
            return
        if self.duplicates:
            del self.duplicates[next(iter(self.duplicates))]
        else:
            self.host.evict_for(key, lambda _: True)


MODES: dict[str, type[Tiers]] = {"inclusive": Inclusive, "exclusive": Exclusive, "lazy": Lazy}


def measure(traces: Sequence[Trace], streams: int, mode: str, device_share: int, host_share: int) -> dict[str, float]:
    """Megabytes a decoded token by way, and seconds a token; means over some traces of one model."""
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
    ways = {way: moved[way] * slot_bytes / tokens for way in ("disk_to_host", "host_to_device", "device_to_host")}
    read, there, back = ways["disk_to_host"] / DISK, ways["host_to_device"], ways["device_to_host"]
    seconds = {f"ms_{rate / 1e9:.0f}": 1e3 * (read + max(there, back) / rate) for rate in PCIE}
    seconds |= {f"ms_{rate / 1e9:.0f}_one_way": 1e3 * (read + (there + back) / rate) for rate in PCIE}
    return {**{f"{way}_mb": nbytes / 1e6 for way, nbytes in ways.items()}, **seconds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of the made-up traces")
    steps = parser.parse_args().steps
    one_stream = [read_trace(path) for path in sorted(TRACES.glob("*.gz")) if path.name != "mixed.jsonl.gz"]
    groups: dict[str, tuple[list[Trace], int]] = {
        "bundled model, domains and chat": (one_stream, 1),
        "bundled model, four mixed streams": ([read_trace(TRACES / "mixed.jsonl.gz")], 4),
        "made-up 48 x 128, one stream": ([synthetic_trace(steps, 1, seed=0)], 1),
        "made-up 48 x 128, four streams": ([synthetic_trace(steps // 2, 4, seed=1)], 4),
    }
    result: dict[str, list[dict[str, object]]] = {}
    for group, (traces, streams) in groups.items():
        print(f"\n{group}: MB a token by way; ms a token at 12 and 25 GB/s, then the same one way at a time")
        print("| device | host | mode | disk to host | host to device | back | 12 | 25 | 12, one way | 25, one way |")
        print("| --- |" + " --- |" * 9)
        for device, host, mode in product(DEVICE_SHARES, HOST_SHARES, MODES):
            found = {name: round(value, 3) for name, value in measure(traces, streams, mode, device, host).items()}
            print(f"| {device} % | {host} % | {mode} | " + " | ".join(map(str, found.values())) + " |", flush=True)
            result.setdefault(group, []).append({"device": device, "host": host, "mode": mode, **found})
    print(json.dumps({"benchmark": "tiers", "policy": POLICY, "disk_bytes_per_second": DISK, "groups": result}))


if __name__ == "__main__":
    main()
