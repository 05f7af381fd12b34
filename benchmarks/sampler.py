"""Benchmark of the sampler: ``python -m benchmarks.sampler``.

Prints microseconds of CPU time per step (not per row) by rows, vocabulary and parameters: medians over interleaved
rounds. Logits are Gaussian: with a standard deviation of 3, the top-p set has some thousand of 150,000 tokens; with 6,
it has some dozen, as for a trained model. Run it with OMP_NUM_THREADS=1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from server.engine.interface import SamplingParams
from server.engine.sampling.logprobs import token_logprobs
from server.engine.sampling.sampler import sample
from server.engine.sampling.sampling_state import SamplingState

ROWS = (1, 8, 64)
VOCABULARIES = (2048, 151936)
SPREADS = (3, 6)
PROMPT, GENERATED = 200, 100
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "min_p": {"min_p": 0.05},
    "top_k": {"temperature": 0.7, "top_k": 20},
    "top_p": {"top_p": 0.95},
    "top_k_top_p": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Any] = {"benchmark": "sampler", "threads": torch.get_num_threads()}
    for size in VOCABULARIES:
        token_ids = torch.randint(size, (PROMPT + GENERATED,), generator=generator).tolist()
        for rows in ROWS:
            for spread in SPREADS:
                original = torch.randn((rows, size), generator=generator) * spread
                times: dict[str, list[float]] = {name: [] for name in (*CASES, "logprobs")}
                for _ in range(options.rounds):
                    for name, params in CASES.items():
                        logits = original.clone()
                        states = [
                            SamplingState(SamplingParams(1, **params), row, list(token_ids), PROMPT)
                            for row in range(rows)
                        ]
                        for state in states:
                            _ = state.counts  # computed by the previous step of a sequence
                        start = time.thread_time()
                        sample(logits, states)
                        times[name].append(time.thread_time() - start)
                    start = time.thread_time()
                    token_logprobs(original, [0] * rows, [5] * rows)
                    times["logprobs"].append(time.thread_time() - start)
                figures = {name: round(statistics.median(taken) * 1e6) for name, taken in times.items()}
                result[f"vocabulary_{size}_rows_{rows}_spread_{spread}"] = figures
                print(f"{size} tokens, {rows} rows, spread {spread}:", figures, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
