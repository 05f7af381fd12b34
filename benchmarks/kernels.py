"""Benchmark of one expert in every packed format, by rows: ``python -m benchmarks.kernels``.

Prints microseconds of a SwiGLU expert of hidden size 2,048 and intermediate size 768 (Qwen3-30B-A3B's): medians over
interleaved rounds. OMP_NUM_THREADS sets the number of threads. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from server.kernels.expert import run_expert
from server.model.checkpoint.weight_formats import WEIGHT_FORMATS, encode

HIDDEN, INTERMEDIATE = 2048, 768
ROWS = (1, 4, 16, 64, 256)
NUM_EXPERTS = 24  # used in rotation, so that none stays in the CPU caches


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    first, second = gate_up.chunk(2, -1)
    return F.silu(first) * second


MODULE: Any = SimpleNamespace(
    has_gate=True, has_bias=False, has_post_expert_norm=False, is_transposed=False, _apply_gate=gate
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    plain = {
        "gate_up_proj": torch.randn((2 * INTERMEDIATE, HIDDEN), generator=generator) * 0.02,
        "down_proj": torch.randn((HIDDEN, INTERMEDIATE), generator=generator) * 0.02,
    }
    first = {weights: encode(plain, (), weights) for weights in WEIGHT_FORMATS}
    experts = {
        weights: [{name: value.clone() for name, value in tensors.items()} for _ in range(NUM_EXPERTS)]
        for weights, tensors in first.items()
    }
    result: dict[str, Any] = {
        "benchmark": "kernels",
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "expert_bytes": {w: sum(v.nbytes for v in tensors.values()) for w, tensors in first.items()},
    }
    for dtype in (torch.bfloat16, torch.float32):
        for count in ROWS:
            rows = torch.randn((count, HIDDEN), generator=generator).to(dtype)
            times: dict[str, list[float]] = {weights: [] for weights in WEIGHT_FORMATS}
            for index in range(options.rounds):
                for weights in WEIGHT_FORMATS:
                    start = time.perf_counter()
                    run_expert(MODULE, experts[weights][index % NUM_EXPERTS], rows)
                    times[weights].append(time.perf_counter() - start)
            figures = {weights: round(statistics.median(taken) * 1e6) for weights, taken in times.items()}
            result[f"{str(dtype).removeprefix('torch.')}_{count}"] = figures
            print(f"{dtype}, {count} rows:", figures)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
