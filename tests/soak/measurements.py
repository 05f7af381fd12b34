"""Resources of a process, and the speed of its answers, at rest."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.soak.requests import MODEL

NUM_PROBES = 20
PROBE = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0, "stream": True}
MEMORY_SHARE, MEMORY_BYTES = 0.05, 48 << 20  # growth that caches and the heap's fragments explain
FEW = 6  # threads or handles, such as those of pools that grow on demand
SLOWER, SLOWER_SECONDS = 2.0, 0.1  # noise of a busy machine


@dataclass(frozen=True)
class Measurement:
    """A server at rest, after all clients have left."""

    memory_bytes: int  # without pages of files
    handles: int
    threads: int
    first_token_seconds: float  # median of the probes
    whole_seconds: float

    @classmethod
    def take(cls, url: str, pid: int) -> Measurement:
        """Measure an idle server."""
        first, whole = zip(*(_probe(url) for _ in range(NUM_PROBES)), strict=True)
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            int(status["RssAnon"].split()[0]) << 10,
            len(list((process / "fd").iterdir())),
            int(status["Threads"]),
            round(statistics.median(first), 4),
            round(statistics.median(whole), 4),
        )


def _probe(url: str) -> tuple[float, float]:
    """Return the seconds until the first token, and until the last."""
    begun, first = time.perf_counter(), None
    with httpx.stream("POST", f"{url}/v1/completions", json=PROBE, timeout=60) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {") and first is None:
                first = time.perf_counter() - begun
    return first or 0.0, time.perf_counter() - begun


def both(start: Measurement, end: Measurement) -> dict[str, Any]:
    """Return each figure at the start and at the end."""
    return {name: {"start": value, "end": asdict(end)[name]} for name, value in asdict(start).items()}


def growth(start: Measurement, end: Measurement) -> list[str]:
    """Return what has grown more than noise explains, as sentences."""
    found = []
    if end.memory_bytes > start.memory_bytes * (1 + MEMORY_SHARE) + MEMORY_BYTES:
        found.append(f"memory grew from {start.memory_bytes} to {end.memory_bytes} bytes")
    for name in ("handles", "threads"):
        before, after = getattr(start, name), getattr(end, name)
        if after > before + FEW:
            found.append(f"{name} grew from {before} to {after}")
    for name in ("first_token_seconds", "whole_seconds"):
        before, after = getattr(start, name), getattr(end, name)
        if after > before * SLOWER + SLOWER_SECONDS:
            found.append(f"{name} grew from {before} to {after}")
    return found
