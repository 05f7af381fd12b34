"""Runs ftllm (fastllm), with experts in memory or on disk: ``run_ftllm.py MODEL --threads 2 [--cache 700m]``."""

from __future__ import annotations

import argparse
import ctypes
import time
from importlib.metadata import version
from typing import Any

from protocol import Prompts, serve  # before modules that may print

# isort: split
from ftllm.llm import fastllm_lib as lib
from ftllm.util import make_normal_llm_model, make_normal_parser

POLL_SECONDS = 0.0003


class Runner:
    def __init__(self, arguments: list[str], *, is_sampled: bool = False):
        self._is_sampled = is_sampled
        self._model = make_normal_llm_model(make_normal_parser("run_ftllm").parse_args(arguments))

    def generate(self, prompts: Prompts, new_tokens: int, seconds: float) -> dict[str, Any]:
        started = time.perf_counter()
        handles = [self._launch(prompt, new_tokens) for prompt in prompts]
        running = set(handles)
        arrivals: dict[int, list[float]] = {handle: [] for handle in handles}
        while running:
            idle = True
            for handle in sorted(running):
                if not lib.can_fetch_response_llm_model(self._model.model, handle):
                    continue
                idle = False
                if lib.fetch_response_llm_model(self._model.model, handle) < 0:
                    running.discard(handle)
                else:
                    arrivals[handle].append(time.perf_counter())
            if idle:
                time.sleep(POLL_SECONDS)
            if all(arrivals.values()):
                since = max(times[0] for times in arrivals.values())
                if time.perf_counter() - since > seconds:
                    for handle in running:
                        lib.abort_response_llm_model(self._model.model, handle)
                    running.clear()
        first = max(times[0] for times in arrivals.values())
        after = [arrival for times in arrivals.values() for arrival in times if arrival > first]
        taken = max(after, default=first) - first
        return {"first_token_seconds": first - started, "tokens": len(after), "seconds": taken}

    def _launch(self, prompt: list[int], new_tokens: int) -> int:
        stops, stop_list = self._model.stop_token_ctypes(None)
        ids = (ctypes.c_int * len(prompt))(*prompt)
        return lib.launch_response_llm_model(
            self._model.model,
            len(prompt),
            ids,
            ctypes.c_int(new_tokens),
            ctypes.c_int(new_tokens),  # minimum
            ctypes.c_bool(self._is_sampled),
            ctypes.c_float(1.0),
            ctypes.c_int(0 if self._is_sampled else 1),  # 0: of all tokens
            ctypes.c_float(1.0),
            ctypes.c_float(1.0),
            ctypes.c_bool(False),
            stops,
            stop_list,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--cache", help="cache size for experts on disk; without it, all experts are in memory")
    parser.add_argument("--sampled", action="store_true", help="decode at temperature 1 instead of greedily")
    options = parser.parse_args()
    workers = max(
        1, options.threads - 1
    )  # one fewer, because the main thread spins: with more, the threads wait for each other
    arguments = [options.model, "--device", "cpu", "-t", str(workers), "--dtype", "float16"]
    arguments += ["--moe_dtype", "float16", "--tokens", str(options.max_model_len), "--max_batch", "8"]
    arguments += ["--prefix_cache", "false"]
    if options.cache:
        arguments += ["--moe_device", "disk", "--moe_cpu_cache", options.cache, "--chunked_prefill_size", "128"]
    serve(Runner(arguments, is_sampled=options.sampled).generate, version=f"ftllm {version('ftllm')}")


if __name__ == "__main__":
    main()
