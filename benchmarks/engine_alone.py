"""The engine without a server in front of it: what its steps take when no event loop shares its cores.

``python -m benchmarks.engine_alone [MODEL] [flags of greenroom serve]`` prints ``{}`` once the model is loaded, then
answers each line of standard input, a JSON list of ``[prompt_ids, max_tokens]``, with the decode steps that these took
together, their seconds, and the CPU time of all: ``{"steps": ..., "seconds": ..., "cpu_seconds": ...}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict

from server.engine.request import GenerationRequest, SamplingParams
from server.loading import LoadedServer, load_server
from server.serve_command import add_arguments
from server.settings import load_settings

POLL_SECONDS = 0.02


async def run(loaded: LoadedServer, work: list[tuple[list[int], int]]) -> dict[str, float]:
    """Generate all of it at once; the event loop stands still until the last token is there."""
    statistics = loaded.engine.statistics
    steps, seconds, cpu = statistics.steps["decode"], statistics.step_seconds["decode"], time.process_time()
    num_finished = statistics.finished.total() + len(work)
    for number, (prompt_ids, max_tokens) in enumerate(work):
        sampling = SamplingParams(max_tokens, ignore_eos=True, **asdict(loaded.defaults))
        loaded.engine.submit(GenerationRequest(str(number), tuple(prompt_ids), sampling))
    while statistics.finished.total() < num_finished or statistics.num_running:
        time.sleep(POLL_SECONDS)  # noqa: ASYNC251  the loop is to do nothing meanwhile
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
    loaded = load_server(arguments.model, load_settings(vars(arguments), os.environ, arguments.config))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(loaded, json.loads(line)))), flush=True)
    loaded.close()


if __name__ == "__main__":
    main()
