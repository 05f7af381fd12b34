"""Measures a server's engine on a GPU, with all of the experts on it, a half and a quarter.

Missed experts are copied to the GPU, and then computed by the CPU.

``python -m benchmarks.gpu_first_run OUT [--device cuda] [MODEL ...]`` prints one JSON line and writes a profile to OUT.
Without a model it is the bundled one. ``--device cpu`` has the emulated device in the GPU's place, which tries this
program and measures nothing of a GPU. ``gpu_first_run.sh`` runs it after the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_alone import run
from server.device import find_device
from server.inspection.bandwidth import measure_copy
from server.loading.load import LoadedServer, load_server
from server.model.errors import ModelError
from server.settings import load_settings

RUNS = (("100%", "copy"), ("50%", "copy"), ("25%", "copy"), ("50%", "cpu"), ("25%", "cpu"))  # share, --miss-compute
STREAMS = (1, 8, 32)
PROMPT = list(range(10, 42))
WARM_UP, TOKENS, PROFILED = 8, 64, 8  # tokens a stream
PACKAGES = ("torch", "transformers", "triton")
SHOWN = 15  # operations of the profile


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def generate(loaded: LoadedServer, streams: int, tokens: int) -> dict[str, float]:
    return asyncio.run(run(loaded, [(PROMPT, tokens)] * streams))


def measure(model: str | None, device: str, share: str, misses: str, out: Path) -> dict[str, Any]:
    """Load a model with a share of its experts on the device, and decode with more and more streams."""
    result: dict[str, Any] = {"model": model or "bundled", "share": share, "miss_compute": misses}
    given = {"device": device, "device_expert_memory": share, "miss_compute": misses}
    try:
        loaded = load_server(model, load_settings(given, {}, None))
    except ModelError as error:  # the CPU has no kernels for its experts
        return {**result, "failed": str(error)}
    try:
        result["tokens_per_second"] = {}
        for streams in STREAMS:
            generate(loaded, streams, WARM_UP)
            took = generate(loaded, streams, TOKENS)
            result["tokens_per_second"][streams] = round(streams * took["steps"] / took["seconds"], 1)
        if (share, misses) == RUNS[0]:
            result["profile"] = profile(loaded, out / f"profile_{Path(model or 'bundled').name}.json")
    finally:
        loaded.close()
    return result


def profile(loaded: LoadedServer, path: Path) -> dict[str, int]:
    """Write a profile of some steps of one stream; return how often each of the most frequent operations ran."""
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # noqa: SLF001  the engine's too
    with torch.profiler.profile(experimental_config=every_thread) as found:
        generate(loaded, 1, PROFILED)
    found.export_chrome_trace(str(path))
    events = sorted(found.key_averages(), key=lambda event: -event.count)
    return {event.key: event.count for event in events[:SHOWN]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*", default=[None])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = find_device(arguments.device)
    runs: list[dict[str, Any]] = []
    report: dict[str, object] = {"versions": versions(), "runs": runs}
    if device.type == "cuda":
        report["device"] = torch.cuda.get_device_name(device)
        report["copy_bytes_per_second"] = measure_copy(device)
    for model in arguments.models:
        for share, misses in RUNS if device.type == "cuda" else RUNS[:3]:
            runs.append(measure(model, arguments.device, share, misses, arguments.out))
            print(runs[-1], file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
