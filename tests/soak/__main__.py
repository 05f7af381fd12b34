"""`python -m tests.soak`: mixed traffic with faults for an hour; the last line is JSON, and fails if anything grew."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import Server, serving
from tests.faults.file_faults import FileFaults, preload
from tests.fuzz.subjects import save_adapter
from tests.server.model.variants import other, read_tensors, save_variant
from tests.soak.disturbances import NAMES, Disturbances
from tests.soak.measurements import Measurement, both, growth
from tests.soak.requests import MODEL
from tests.soak.traffic import Counts, Traffic

NUM_CLIENTS = 8
QUEUE = 4  # requests that may wait, so that some are refused
RUNNING = 5
WARM_UP_SHARE = 0.15
MIN_WARM_UP_SECONDS, MAX_WARM_UP_SECONDS = 4.0, 300.0
PAUSE_SECONDS = 1.0  # between disturbances, on average; a soak of less than a minute has as many in less time
MODELS = (*(f"{MODEL}:{name}" for name in NAMES), *NAMES)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with _serving() as (server, faults):
        line = asyncio.run(_soak(server, faults, options.minutes * 60, options.seed))
        status, _, log = server.interrupt()
    line["tracebacks"] = log.count("Traceback (most recent call last)")
    if status or line["tracebacks"]:
        line["failures"].append(f"the server ended with status {status}; its log ends in {log[-2000:]}")
    print(json.dumps(line))
    return 1 if line["failures"] else 0


@contextmanager
def _serving() -> Iterator[tuple[Server, FileFaults]]:
    """Serve a copy of the bundled model, with half of its experts in memory, whose reads can be made to fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(shutil.copytree(BUNDLED, folder / MODEL))
        tensors = read_tensors(model)
        for seed, each in enumerate(NAMES):
            changed = other(tensors, lambda name: re.search(r"layers\.[345]\.mlp\.experts\.", name) is not None, seed)
            save_variant(folder / "experts" / each, changed)
            save_adapter(folder / "adapters" / each, tensors, seed)
        faults, variables = preload(folder, model)
        flags = {
            "--host-expert-memory": "50%",
            "--experts-dir": folder / "experts",
            "--adapters-dir": folder / "adapters",
            "--adapter-memory": "8MiB",
            "--max-running-requests": RUNNING,
            "--max-queued-requests": QUEUE,
            "--dtype": "float32",
        }
        arguments = [str(part) for flag in flags.items() for part in flag]
        with serving(str(model), *arguments, environment=variables) as server:
            yield server, faults


async def _soak(server: Server, faults: FileFaults, seconds: float, seed: int) -> dict[str, Any]:
    counts, chance, begun = Counts(), random.Random(seed), time.monotonic()
    warm_up = min(MAX_WARM_UP_SECONDS, max(MIN_WARM_UP_SECONDS, WARM_UP_SHARE * seconds))
    pause = PAUSE_SECONDS * min(1.0, seconds / 60)
    disturbed = await _load(server, faults, counts, chance, warm_up, pause)
    start = await asyncio.to_thread(_measure, server)
    disturbed += await _load(server, faults, counts, chance, seconds - warm_up, pause)
    end = await asyncio.to_thread(_measure, server)
    unexpected = counts.unexpected + [each for part in disturbed for each in part.unexpected]
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "seed": seed,
        "requests": dict(counts.requests),
        "clients_left": counts.left,
        "disturbances": dict(sum((part.counts for part in disturbed), start=type(disturbed[0].counts)())),
        "errors": dict(counts.errors),
        **both(start, end),
        "failures": [*unexpected, *counts.wrong_texts, *growth(start, end)],
    }


async def _load(
    server: Server, faults: FileFaults, counts: Counts, chance: random.Random, seconds: float, pause: float
) -> list[Disturbances]:
    """Run clients and disturbances for some seconds, until the last answer."""
    traffic = Traffic(server.url, counts, MODELS, chance)
    disturbances = Disturbances(server.url, faults, chance, pause)
    running = asyncio.gather(traffic.run(NUM_CLIENTS), disturbances.run())
    await asyncio.sleep(seconds)
    traffic.is_over.set()
    disturbances.is_over.set()
    await running
    return [disturbances]


def _measure(server: Server) -> Measurement:
    """Measure the server once nothing runs in it."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        deadline = time.monotonic() + 60
        while http.get("/v1/requests").json()["data"] and time.monotonic() < deadline:
            time.sleep(0.1)
    return Measurement.take(server.url, server.process.pid)


if __name__ == "__main__":
    sys.exit(main())
