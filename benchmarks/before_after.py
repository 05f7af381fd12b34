"""Measures another checkout (before) and this one (after) by turns, and compares each figure.

    python -m benchmarks.before_after engine CHECKOUT [--streams 1 8] [--turns 9] -- [MODEL] [flags of greenroom serve]
    python -m benchmarks.before_after store CHECKOUT [--turns 3] -- [flags of benchmarks.store]

``CHECKOUT`` is a folder with its own ``.venv``. ``engine`` keeps ``benchmarks.engine_alone`` of both loaded and
measures a batch of one, then of the other; ``store`` runs ``benchmarks.store`` of both as a whole. Who begins changes
from turn to turn. The last line is one JSON object: of each figure the medians, and the median of after / before over
the turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.load_generator import Completion
from benchmarks.serving_processes import engine_alone
from benchmarks.store import parse_flags

SIDES = ("before", "after")
PROMPT_TOKENS, DECODED_TOKENS = 32, 64

Figures = Mapping[str, float]


def turns(sides: Mapping[str, Callable[[], Figures]], count: int) -> list[dict[str, Figures]]:
    """Measure both sides so many times, each turn in the other order than the last."""
    found = []
    for number in range(count):
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        found.append({side: sides[side]() for side in order})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def compared(found: Sequence[Mapping[str, Figures]]) -> dict[str, dict[str, float]]:
    """Return for each figure the medians of both sides, and the median of after / before over the turns."""
    result = {}
    for name in found[0]["after"].keys() & found[0]["before"].keys():
        row = {side: statistics.median(turn[side][name] for turn in found) for side in SIDES}
        if all(turn["before"][name] for turn in found):
            row["ratio"] = statistics.median(turn["after"][name] / turn["before"][name] for turn in found)
        result[name] = {key: round(value, 4) for key, value in row.items()}
    return dict(sorted(result.items()))


def compare_engines(pythons: Mapping[str, Path], flags: Sequence[str], streams: Sequence[int], count: int) -> Any:
    """Compare decode steps of the same batches; ``flags`` are those of ``greenroom serve``."""
    with ExitStack() as stack:
        engines = {
            side: stack.enter_context(engine_alone(flags, python=str(python), folder=folder_of(python)))
            for side, python in pythons.items()
        }
        result = {}
        for size in streams:
            prompts = [tuple(random.Random(seed).choices(range(100, 1000), k=PROMPT_TOKENS)) for seed in range(size)]  # noqa: S311  no secret
            batch = [Completion(prompt, DECODED_TOKENS) for prompt in prompts]

            def measure(side: str, batch: Sequence[Completion] = batch) -> Figures:
                seconds, cpu_seconds = engines[side].run(batch)
                return {"step_ms": seconds * 1e3, "cpu_ms_a_token": cpu_seconds * 1e3 / DECODED_TOKENS / len(batch)}

            for side in SIDES:
                measure(side)  # its experts come into memory
            result[f"streams_{size}"] = compared(
                turns({side: lambda side=side: measure(side) for side in SIDES}, count)  # type: ignore[misc]
            )
    return result


def compare_stores(pythons: Mapping[str, Path], flags: Sequence[str], count: int) -> Any:
    """Compare what ``benchmarks.store`` prints; ``flags`` are its own."""

    def measure(side: str) -> Figures:
        python = pythons[side]
        command = [str(python), "-m", "benchmarks.store", *flags]
        run = subprocess.run(command, cwd=folder_of(python), stdout=subprocess.PIPE, text=True, check=True)
        return dict(numbers_of(json.loads(run.stdout.splitlines()[-1])))

    return compared(turns({side: lambda side=side: measure(side) for side in SIDES}, count))  # type: ignore[misc]


def numbers_of(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Return all numbers of a JSON value, by their paths."""
    if isinstance(value, (int, float)):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in items for found in numbers_of(each, f"{path}.{key}" if path else str(key))]


def folder_of(python: Path) -> Path:
    """Return the checkout of an interpreter in its ``.venv/bin``."""
    return python.parents[2]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("engine", "store"))
    parser.add_argument("checkout", type=Path, help="the other checkout, with its own .venv")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], help="batch sizes of the engine")
    parser.add_argument("--turns", type=int, help="times that each is measured (default: engine 9, store 3)")
    own, flags = sys.argv[1:], []
    if "--" in own:
        end = own.index("--")
        own, flags = own[:end], own[end + 1 :]
    arguments = parser.parse_args(own)
    checkouts = {"before": arguments.checkout.resolve(), "after": Path(__file__).parents[1]}
    pythons = {side: folder / ".venv/bin/python" for side, folder in checkouts.items()}
    for python in pythons.values():
        if not python.exists():
            parser.error(f"{folder_of(python)} has no .venv; run `make run` there")
    if arguments.benchmark == "engine":
        result = compare_engines(pythons, flags, arguments.streams, arguments.turns or 9)
    else:
        parse_flags(flags)  # an older checkout may not say what is wrong with them
        result = compare_stores(pythons, flags, arguments.turns or 3)
    print(json.dumps({"benchmark": arguments.benchmark, "flags": flags, **result}))


if __name__ == "__main__":
    main()
