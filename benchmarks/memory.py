r"""Benchmark of a server's memory use under limits, measured from outside.

    python -m benchmarks.memory MODEL [--limits 820,1640,3000,none] [--streams 1,8,32] [--prompts 64,4000]
    python -m benchmarks.memory MODEL --limits 820,1640 --sweep 0.4,0.5,0.6,0.7
    python -m benchmarks.memory MODEL --limits 1640 --minutes 60

For each limit, in MiB, `greenroom serve` starts in its own memory control group, which requires root. Page cache
counts, and the model's files are dropped from it first. Each load is a number of streams that begin together, with
prompts of random tokens. A server that was killed is restarted for the next load. Columns:

- ``peak``: maximum of the control group since the start of the server, including page cache, by the kernel's counter;
- ``used``: share of the limit in use at the end of the load, without page cache of files;
- ``other``: anonymous memory of the process and its children, without trunk, experts and used KV cache;
- ``slots``, ``resident``: slots for experts, and resident experts;
- ``tokens/s``: generated tokens over the time of the load, including prompts; ``decoding`` counts from the moment when
all
  streams have their first token.

``--sweep`` repeats each limit with ``--host-expert-memory`` set to parts of the limit, and prints the speed of the
planned budget relative to the best of these that was not killed. ``--minutes`` runs a mixed load instead: streams,
prompts of 4,000 tokens or the context length, 128 choices, embeddings of 128 prompts, and prompt logprobs. It prints
the maximum memory of each third of the time, which shows whether it is flat. Flags after ``--`` are passed to the
server.

The last line is one JSON object. The exit status is 1 if a server was killed, failed at a load or exceeded its limit. A
refused load, such as a prompt longer than the context, is no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.machine import describe_machine
from benchmarks.load_generator import RefusedError
from benchmarks.memory_use.load import Load, Mixture
from benchmarks.memory_use.report import Entry, has_failures, limit_name, make_table, mixture_lines, sweep_lines
from benchmarks.memory_use.server import GroupedServer, ServerError
from benchmarks.memory_use.usage_sampler import UsageSampler, max_by_thirds

MIB = 1 << 20
WARM_UP = Load(streams=1, prompt_tokens=16, new_tokens=2)
ENDED = (OSError, RuntimeError, TimeoutError, httpx.TransportError, psutil.NoSuchProcess)


class Runs:
    """Runs loads under each limit and collects the results."""

    def __init__(self, model: Path, flags: Sequence[str], logs: Path):
        self._model, self._flags, self._logs = model, flags, logs
        self._vocab_size: int = json.loads((model / "config.json").read_text())["vocab_size"]
        self.entries: list[Entry] = []
        self.skipped: list[str] = []

    def run_loads(self, limit_mib: int | None, budget: str, loads: Sequence[Load]) -> None:
        """Run all loads under one limit, with one expert budget."""
        server: GroupedServer | None = None
        try:
            for seed, load in enumerate(loads):
                if server is None:
                    server = self._start(limit_mib, budget)
                    self._run(server, WARM_UP, len(loads))
                self._add_entry(limit_mib, budget, load, self._run(server, load, seed))
                if self.entries[-1]["state"] in ("killed", "failed"):
                    server.close()
                    server = None
        except (ControlGroupError, ServerError) as error:
            self._skip(limit_mib, budget, error)
        finally:
            if server is not None:
                server.close()

    def run_mixture(self, limit_mib: int | None, budget: str, minutes: float) -> None:
        """Run the mixed load under one limit, and sample memory meanwhile."""
        try:
            server = self._start(limit_mib, budget)
        except (ControlGroupError, ServerError) as error:
            self._skip(limit_mib, budget, error)
            return
        with server:
            mixture = Mixture(server.url, self._vocab_size, seed=0)
            with UsageSampler(server.usage) as sampler:
                asyncio.run(mixture.run(60 * minutes))
            self.entries.append(
                {
                    "limit_mib": limit_mib,
                    "budget": budget,
                    "minutes": minutes,
                    "state": "killed" if server.was_killed else "failed" if mixture.failed else "alive",
                    "peak_bytes": server.peak_bytes(),
                    "answered": mixture.answered,
                    "refused": mixture.refused,
                    "failed": mixture.failed,
                    **max_by_thirds(sampler.samples),
                }
            )

    def _start(self, limit_mib: int | None, budget: str) -> GroupedServer:
        flags = ["--host-expert-memory", budget, *self._flags]
        limit = None if limit_mib is None else limit_mib * MIB
        return GroupedServer(self._model, limit, flags, self._logs / f"{limit_mib}-{budget}.log")

    def _run(self, server: GroupedServer, load: Load, seed: int) -> dict[str, Any]:
        try:
            speed = load.run(server.url, self._vocab_size, seed)
            return {"state": "alive", **asdict(speed), **asdict(server.usage())}
        except RefusedError as error:
            return {"state": "refused", "reason": str(error), "peak_bytes": server.peak_bytes()}
        except ENDED as error:
            state = "killed" if server.was_killed else "failed"
            reason = f"{type(error).__name__} {error}; its log ends with: {server.last_log_line()}"
            return {"state": state, "reason": reason, "peak_bytes": server.peak_bytes()}

    def _add_entry(self, limit_mib: int | None, budget: str, load: Load, figures: dict[str, Any]) -> None:
        self.entries.append({"limit_mib": limit_mib, "budget": budget, **asdict(load), **figures})
        speed = figures.get("tokens_per_second")
        shown = f"{figures['state']}: {figures['reason']}" if speed is None else f"{speed:.2f} tokens/s"
        name = f"{limit_name(limit_mib)}, {budget}, {load.streams} x {load.prompt_tokens}"
        print(f"{name}: {shown}", file=sys.stderr, flush=True)

    def _skip(self, limit_mib: int | None, budget: str, error: Exception) -> None:
        self.skipped.append(f"{limit_name(limit_mib)}, {budget}: {error}")
        print(f"skipped: {self.skipped[-1]}", file=sys.stderr, flush=True)


def _limits(text: str) -> list[int | None]:
    return [None if word == "none" else int(word) for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _parts(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of a checkpoint or a pack")
    parser.add_argument("--limits", type=_limits, default="820,1640,3000,none", help="memory limits in MiB, or none")
    parser.add_argument("--streams", type=_numbers, default="1,8,32")
    parser.add_argument("--prompts", type=_numbers, default="64,4000", help="prompt lengths in tokens")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate after each prompt")
    parser.add_argument("--budget", default="auto", help="--host-expert-memory of the server")
    parser.add_argument("--sweep", type=_parts, default=(), help="parts of the limit to set as expert budget")
    parser.add_argument("--minutes", type=float, help="minutes of mixed load, instead of the loads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "greenroom-memory")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of the server")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(f"{options.model} has no config.json; give the folder of a model")
    options.logs.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.model, options.flags, options.logs)
    loads = [Load(streams, tokens, options.tokens) for tokens in options.prompts for streams in options.streams]
    for _ in range(options.rounds):
        for limit in options.limits:
            if options.minutes:
                runs.run_mixture(limit, options.budget, options.minutes)
                continue
            swept = [] if limit is None else [f"{round(part * limit)}MiB" for part in options.sweep]
            for budget in [options.budget, *swept]:
                runs.run_loads(limit, budget, loads)
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    if options.minutes:
        console.print(*mixture_lines(runs.entries), sep="\n")
    else:
        console.print(make_table(runs.entries), *sweep_lines(runs.entries, options.budget), sep="\n")
    result = {
        "benchmark": "memory",
        "model": str(options.model),
        "machine": describe_machine(),
        "entries": runs.entries,
        "skipped": runs.skipped,
    }
    print(json.dumps(result))
    sys.exit(1 if has_failures(runs.entries) else 0)


if __name__ == "__main__":
    main()
