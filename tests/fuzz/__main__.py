"""`python -m tests.fuzz`: plays random traces for some seconds, or the traces of files.

It ends with a line of JSON. A failing trace is shrunk and written to a file, which this program plays again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.children import FORK, Result, run_all, run_one
from tests.fuzz.generator import make_trace
from tests.fuzz.shrink import shrink
from tests.fuzz.subjects import FAMILIES, make_subject
from tests.fuzz.trace import FOLDER, Trace

COMMAND_SHARE = 12  # one of so many traces is played against the real command, which takes seconds to start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", nargs="*", type=Path, help="files of traces to play instead of random ones")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=sys.maxsize, help="random traces at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first trace; those after it count up; 0: random")
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=tuple(FAMILIES))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for shrunk traces")
    parser.add_argument("--keep-events", action="store_true", help="do not shrink")
    parser.add_argument("--command", choices=("some", "all", "none"), default="some", help="play on the real command")
    options = parser.parse_args()
    seed = options.seed or random.randrange(1, 1 << 32)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make_subjects(root, [Trace.read(path).family for path in options.traces] or options.families)
        counts: Counter[str] = Counter()
        begun = time.monotonic()

        def jobs() -> Iterator[tuple[Trace, str]]:
            if options.traces:
                yield from ((Trace.read(path), "engine") for path in options.traces)
                return
            for number in itertools.count(seed):
                is_command = {"all": True, "none": False, "some": not (number + 1) % COMMAND_SHARE}[options.command]
                yield make_trace(number, tuple(options.families)), "command" if is_command else "engine"

        def report(result: Result) -> bool:
            counts["traces"] += 1
            counts["events"] += len(result.trace.events)
            counts[result.trace.family] += 1
            print(
                f"seed {result.trace.seed} {result.trace.family} {result.serving} "
                f"{len(result.trace.events)} events {result.seconds:.1f} s {result.finding or 'ok'}",
                file=sys.stderr,
                flush=True,
            )
            has_time = time.monotonic() - begun < options.seconds and counts["traces"] < options.count
            return bool(options.traces) or has_time

        findings = run_all(jobs(), root, report)
        line = {"seed": seed, "seconds": round(time.monotonic() - begun, 1), **counts, "finding": None}
        for found in findings:
            line |= {"finding": found.finding[:2000], "failed_seed": found.trace.seed}
            if not options.traces:
                line["file"] = str(_keep(found, root, options.out, is_shrunk=not options.keep_events))
    print(json.dumps(line))
    return 1 if findings else 0


def _make_subjects(root: Path, families: list[str]) -> None:
    """Make the models in another process, so that this one stays without threads."""
    process = FORK.Process(target=lambda: [make_subject(family, root) for family in families])
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the models could not be made")


def _keep(found: Result, root: Path, out: Path, *, is_shrunk: bool) -> Path:
    """Write a failing trace to a file, shrunk if it fails again, and return the file's path."""
    trace = found.trace
    if is_shrunk:
        trace = shrink(trace, lambda part: bool(run_one(part, found.serving, root).finding))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{trace.family}-{trace.seed}.json"
    path.write_text(trace.to_json(found.finding[:2000]), "utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
