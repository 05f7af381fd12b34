"""Runs the engine without a server, to measure its steps when no event loop shares its cores.

``python -m benchmarks.engine_alone [MODEL] [flags of greenroom serve]`` prints ``{"ready": true}`` once the model
is loaded. For each line of standard input, a JSON list of ``[prompt_ids, max_tokens]``, it generates all completions in
one batch and prints the number of decode steps, their seconds, and the total CPU time: ``{"steps": ..., "seconds":
..., "cpu_seconds": ...}``. ``benchmarks.before_after engine`` measures it beside another checkout's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from server.cli.serve import add_arguments
from server.engine.interface import GenerationRequest, SamplingParams
from server.loading.load import LoadedServer, load_server
from server.settings import load_settings

POLL_SECONDS = 0.02


def sampling_defaults(loaded: LoadedServer) -> dict[str, Any]:
    """Return the model's defaults of the parameters that choose a token."""
    return {name: value for name, value in asdict(loaded.defaults).items() if name != "max_new_tokens"}


async def run(loaded: LoadedServer, work: list[tuple[list[int], int]]) -> dict[str, float]:
    """Generate all completions in one batch; blocks the event loop until the last token."""
    statistics = loaded.engine.statistics
    steps, seconds, cpu = statistics.steps["decode"], statistics.step_seconds["decode"], time.process_time()
    num_finished = statistics.finished.total() + len(work)
    for number, (prompt_ids, max_tokens) in enumerate(work):
        sampling = SamplingParams(max_tokens, ignore_eos=True, **sampling_defaults(loaded))
        loaded.engine.submit(GenerationRequest(str(number), tuple(prompt_ids), sampling))
    while statistics.finished.total() < num_finished or statistics.num_running:
        time.sleep(POLL_SECONDS)  # noqa: ASYNC251  the event loop must stay idle
    return {
        "steps": statistics.steps["decode"] - steps,
        "seconds": statistics.step_seconds["decode"] - seconds,
        "cpu_seconds": time.process_time() - cpu,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    if sys.stdin.isatty():
        parser.error("standard input has no batches; write lines such as [[[5, 17, 300], 64]] there, or --help")
    loaded = load_server(arguments.model, load_settings(vars(arguments), os.environ, arguments.config))
    print(json.dumps({"ready": True}), flush=True)
    line = None
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(loaded, json.loads(line)))), flush=True)
    loaded.close()
    if line is None:
        sys.exit("nothing was measured: standard input had no line such as [[[5, 17, 300], 64]]")


if __name__ == "__main__":
    main()
