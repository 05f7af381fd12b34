r"""Memory that a server takes under limits, and what it does with it, seen from outside.

    python -m benchmarks.memory MODEL [--limits 820,1640,3000,none] [--streams 1,8,32] [--prompts 64,4000]
    python -m benchmarks.memory MODEL --limits 820,1640 --sweep 0.4,0.5,0.6,0.7
    python -m benchmarks.memory MODEL --limits 1640 --minutes 60

For each limit, in MiB, `greenroom serve` starts in a memory control group of its own, for which root is needed; page
cache counts, and the model's files are dropped from it first. Each load is a number of streams that begin together,
with prompts of so many random tokens. A server that was killed is started again for the next load. Columns:

- ``peak``: the most that the group held since its server started, page cache included, by the kernel's counter;
- ``used``: of the limit, at the end of the load, without page cache of files;
- ``beside``: anonymous memory of the process and its children without trunk, experts and KV cache in use;
- ``slots``: experts that have room, and how many are resident;
- ``tokens/s``: generated over the whole load, prompts included, and once all streams have their first token.

``--sweep`` serves each limit again with ``--host-expert-memory`` set to parts of the limit, and gives the speed of the
budget that was planned as part of the best of these that was not killed. ``--minutes`` gives a mixed load instead:
streams, prompts of 4,000 tokens or what the context holds, 128 choices, embeddings of 128 prompts, logprobs of prompts.
It tells the most memory of each third of the time, which shows whether it is flat. Flags after ``--`` go to the server.

The last line is one JSON object. The exit status is 1 if a server was killed, failed at a load or passed its limit; a
load that is refused, such as a prompt longer than the context, is no failure.
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
from benchmarks.memory_use.report import Entry, limit_name, make_table, missed, mixture_lines, sweep_lines
from benchmarks.memory_use.sampler import Sampler, by_thirds
from benchmarks.memory_use.server import GroupedServer, ServerError

MIB = 1 << 20
WARM_UP = Load(streams=1, prompt_tokens=16, new_tokens=2)
ENDED = (OSError, RuntimeError, TimeoutError, httpx.TransportError, psutil.NoSuchProcess)


class Runs:
    """Loads under one limit after another, and what was noted."""

    def __init__(self, model: Path, flags: Sequence[str], logs: Path):
        self._model, self._flags, self._logs = model, flags, logs
        self._vocab_size: int = json.loads((model / "config.json").read_text())["vocab_size"]
        self.entries: list[Entry] = []
        self.skipped: list[str] = []

    def run_loads(self, limit_mib: int | None, budget: str, loads: Sequence[Load]) -> None:
        """Every load under one limit, with one budget of experts."""
        server: GroupedServer | None = None
        try:
            for seed, load in enumerate(loads):
                if server is None:
                    server = self._start(limit_mib, budget)
                    self._run(server, WARM_UP, len(loads))
                self._note(limit_mib, budget, load, self._run(server, load, seed))
                if self.entries[-1]["state"] in ("killed", "failed"):
                    server.close()
                    server = None
        except (ControlGroupError, ServerError) as error:
            self._skip(limit_mib, budget, error)
        finally:
            if server is not None:
                server.close()

    def run_mixture(self, limit_mib: int | None, budget: str, minutes: float) -> None:
        """The mixed load under one limit, with memory sampled all the while."""
        try:
            server = self._start(limit_mib, budget)
        except (ControlGroupError, ServerError) as error:
            self._skip(limit_mib, budget, error)
            return
        with server:
            mixture = Mixture(server.url, self._vocab_size, seed=0)
            with Sampler(server.usage) as sampler:
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
                    **by_thirds(sampler.samples),
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
            reason = f"{type(error).__name__} {error}; its log ends with: {server.last_words()}"
            return {"state": state, "reason": reason, "peak_bytes": server.peak_bytes()}

    def _note(self, limit_mib: int | None, budget: str, load: Load, figures: dict[str, Any]) -> None:
        self.entries.append({"limit_mib": limit_mib, "budget": budget, **asdict(load), **figures})
        speed = figures.get("tokens_per_second")
        shown = f"{figures['state']}: {figures['reason']}" if speed is None else f"{speed:.2f} tokens/s"
        name = f"{limit_name(limit_mib)}, {budget}, {load.streams} x {load.prompt_tokens}"
        print(f"{name}: {shown}", file=sys.stderr, flush=True)

    def _skip(self, limit_mib: int | None, budget: str, error: Exception) -> None:
        self.skipped.append(f"{limit_name(limit_mib)}, {budget}: {error}")
        print(f"left out: {self.skipped[-1]}", file=sys.stderr, flush=True)


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
    parser.add_argument("model", type=Path, help="folder of a checkpoint, or packed")
    parser.add_argument("--limits", type=_limits, default="820,1640,3000,none", help="MiB, or none")
    parser.add_argument("--streams", type=_numbers, default="1,8,32")
    parser.add_argument("--prompts", type=_numbers, default="64,4000", help="their tokens")
    parser.add_argument("--tokens", type=int, default=32, help="to write after each prompt")
    parser.add_argument("--budget", default="auto", help="--host-expert-memory of the server")
    parser.add_argument("--sweep", type=_parts, default=(), help="parts of a limit to give to experts by hand")
    parser.add_argument("--minutes", type=float, help="of mixed load, instead of the loads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "greenroom-memory")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of the server")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(f"{options.model} has no config.json; name a model's folder")
    options.logs.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.model, options.flags, options.logs)
    loads = [Load(streams, tokens, options.tokens) for tokens in options.prompts for streams in options.streams]
    for _ in range(options.rounds):
        for limit in options.limits:
            if options.minutes:
                runs.run_mixture(limit, options.budget, options.minutes)
                continue
            by_hand = [] if limit is None else [f"{round(part * limit)}MiB" for part in options.sweep]
            for budget in [options.budget, *by_hand]:
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
    sys.exit(1 if missed(runs.entries) else 0)


if __name__ == "__main__":
    main()
