"""Measures Greenroom and llama.cpp with one GGUF file, in all memory and under limits of a control group.

    python -m benchmarks.gguf_memory FILE.gguf --llama-cpp PYTHON [--limits none,1/2,1/4] [--streams 1,8]

Limits are parts of the file's size; page cache counts, and the file is dropped from it first. Under a limit both
engines read experts from the disk: llama.cpp maps the file, and leaves them to the page cache. Prompts are random
tokens, equal for both. ``peak`` is the sum of VmHWM of the engine's processes: anonymous memory and the pages of files
that they have mapped, of the mapped model too. Without limits it is what each needs to have everything in memory. Root
is needed for limits. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.engine_process import (
    EngineError,
    EngineProcess,
    Greenroom,
    LaunchSpec,
    Measurement,
    Peer,
    Workload,
)
from benchmarks.comparison.engines import PAGED_MODEL_LEN, PAGED_PROMPT_TOKENS
from benchmarks.comparison.gguf_files import SCRIPTS_FOLDER
from benchmarks.comparison.plan import Task

VOCABULARY = 4096  # prompts have lower tokens
MIB = 1 << 20


def starters(options: argparse.Namespace) -> dict[str, Callable[[int | None], EngineProcess]]:
    """Return for each engine a function of the limit that starts it."""
    threads = ["--threads", str(options.threads)]
    environment = {"OMP_NUM_THREADS": str(options.threads)}

    def greenroom(limit: int | None) -> EngineProcess:
        command = [sys.executable, "-m", "server.cli", "serve", str(options.file), "--port", "0", *threads]
        command += ["--max-model-len", str(PAGED_MODEL_LEN)]
        if limit is not None:
            command += ["--max-batched-tokens", str(PAGED_PROMPT_TOKENS)]
        start = LaunchSpec(command, options.file, limit, Path.cwd(), niceness=options.niceness)
        return Greenroom(start, options.logs / "greenroom.log")

    def llama(limit: int | None) -> EngineProcess:
        command = [options.llama_cpp, str(SCRIPTS_FOLDER / "run_llama_cpp.py"), str(options.file), *threads]
        start = LaunchSpec(command, options.file, limit, None, environment, options.niceness)
        return Peer(start, options.logs / "llama.log")

    return {"greenroom": greenroom, "llama.cpp": llama}


def measure(engine: EngineProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens/s and first tokens by streams, what was read for them, and the peak memory."""

    def run(streams: int, round_index: int) -> Measurement:
        task = Task("decode", streams, options.prompt, options.tokens)
        return engine.measure(Workload(task.prompts(round_index, VOCABULARY), options.tokens, options.seconds))

    run(1, 0)  # warm-up
    found = {str(streams): run(streams, 1) for streams in options.streams}
    return {
        "streams": {
            streams: {
                "tokens_per_second": each.tokens_per_second,
                "first_token_seconds": each.first_token_seconds,
                "bytes_read": each.bytes_read,
            }
            for streams, each in found.items()
        },
        "peak_bytes": engine.peak_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-cpp", required=True, metavar="PYTHON", help="has the package llama-cpp-python")
    parser.add_argument("--limits", type=lambda text: text.split(","), default=["none", "1/2", "1/4"])
    parser.add_argument("--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=30.0, help="of decoding, at most, for slow engines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--niceness", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    options.file, size = options.file.resolve(), options.file.stat().st_size
    entries = []
    for limit in options.limits:
        nbytes = None if limit == "none" else int(size * Fraction(limit))
        for name, start in starters(options).items():
            entry: dict[str, Any] = {"engine": name, "limit": limit, "limit_bytes": nbytes}
            try:
                with start(nbytes) as engine:
                    entry |= measure(engine, options)
            except (EngineError, ControlGroupError) as error:
                entry["error"] = str(error)
            entries.append(entry)
            speeds = [f"{n} {each['tokens_per_second']:.1f}" for n, each in entry.get("streams", {}).items()]
            shown = entry.get("error") or f"tokens/s {', '.join(speeds)}; peak {entry['peak_bytes'] / MIB:.0f} MiB"
            print(f"{limit:5} {name:10} {shown}", flush=True)
    print(json.dumps({"benchmark": "gguf_memory", "file": options.file.name, "bytes": size, "entries": entries}))


if __name__ == "__main__":
    main()
