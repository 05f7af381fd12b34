"""Benchmark of one expert in every published quantisation format: ``python -m benchmarks.published_formats``.

Prints microseconds of CPU time of one thread, which other processes hardly affect, for SwiGLU experts of the sizes of
Qwen3-30B-A3B and gpt-oss-20b with random codes and bfloat16 rows: the minimum over interleaved rounds. Also prints the
time to repack 4-bit codes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels import MODULE
from server.kernels.expert import run_expert
from server.kernels.formats.group_int4 import repack_int4

SHAPES = {
    "qwen3_30b": (2048, 768, 12),
    "gpt_oss_20b": (2880, 2880, 4),
}  # hidden, intermediate, number of experts used in rotation
ROWS = (1, 4, 16, 64)
Tensors = dict[str, torch.Tensor]


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def bf16(out_features: int, in_features: int) -> Tensors:
    return {"": torch.randn(out_features, in_features).bfloat16() * 0.02}


def fp8(out_features: int, in_features: int) -> Tensors:
    weight = (torch.randn(out_features, in_features) * 100).to(torch.float8_e4m3fn)
    block = 128 if in_features % 128 == 0 else 64
    return {"": weight, "_scale_inv": torch.rand(out_features // block, in_features // block) * 1e-3}


def mxfp4(out_features: int, in_features: int) -> Tensors:
    groups = in_features // 32
    return {"_blocks": codes(out_features, groups, 16), "_scales": codes(out_features, groups) // 32 + 118}


def nvfp4(out_features: int, in_features: int) -> Tensors:
    groups = in_features // 16
    scales = torch.rand(out_features, groups).to(torch.float8_e4m3fn)
    return {"_blocks": codes(out_features, groups, 8), "_scales": scales, "_divisor": torch.tensor([100.0])}


def int4(dtype: torch.dtype, group: int, *, has_zero: bool) -> Callable[[int, int], Tensors]:
    def make(out_features: int, in_features: int) -> Tensors:
        size = group if in_features % group == 0 else 32
        shape = (in_features // size, out_features)
        scale, zero = (torch.rand(shape) * 0.01).to(dtype), codes(*shape) & 15 if has_zero else None
        values = repack_int4.scales(scale, zero, in_features, (size, size))
        words = torch.randint(-(2**31), 2**31 - 1, (in_features // 8, out_features), dtype=torch.int32)
        made = {"": repack_int4.blocks_of_inputs(words), "_scale": values}
        made["_rest"] = repack_int4.rest(values)
        specs = repack_int4.specs(out_features, in_features, size, dtype, has_zero=has_zero, has_order=False)
        return {suffix: made[suffix].to(kept) for suffix, (kept, _) in specs.items()}

    return make


def int8_channels(out_features: int, in_features: int) -> Tensors:
    scale = (torch.rand(out_features) * 0.01).bfloat16().float()
    return {"": codes(out_features, in_features).view(torch.int8), "_scale": scale}


def int8_groups(out_features: int, in_features: int) -> Tensors:
    group = 128 if in_features % 128 == 0 else 64
    return {
        "_codes": codes(out_features, in_features).view(torch.int8),
        "_steps": (torch.rand(out_features, in_features // group) * 0.01).half(),
    }


FORMATS: dict[str, Callable[[int, int], Tensors]] = {
    "bf16": bf16,
    "fp8": fp8,
    "mxfp4": mxfp4,
    "nvfp4": nvfp4,
    "awq_or_gptq_int4": int4(torch.float16, 128, has_zero=True),
    "ct_int4_group_32": int4(torch.bfloat16, 32, has_zero=False),
    "int8_channels": int8_channels,
    "int8_groups": int8_groups,
}


def expert(make: Callable[[int, int], Tensors], hidden: int, intermediate: int) -> Tensors:
    """Return an expert as in a slot: gate and up are separate if quantised, unless they are published together."""
    parts = {"down_proj": (hidden, intermediate), "gate_up_proj": (2 * intermediate, hidden)}
    if make not in {bf16, mxfp4}:
        half = (intermediate, hidden)
        parts = {"down_proj": (hidden, intermediate), "gate_up_proj.0": half, "gate_up_proj.1": half}
    return {name + suffix: value for name, shape in parts.items() for suffix, value in make(*shape).items()}


def milliseconds(action: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.thread_time()
        action()
        taken.append(time.thread_time() - start)
    return round(min(taken) * 1e3, 2)


def repacking(hidden: int, intermediate: int, rounds: int) -> dict[str, float]:
    """Return milliseconds to repack the codes of one expert's three matrices, by original packing."""
    size = 3 * intermediate
    packed = torch.randint(-(2**31), 2**31 - 1, (size * hidden // 8,), dtype=torch.int32)
    actions = {
        "gptq": lambda: repack_int4.blocks_of_inputs(packed.view(-1, size)),
        "awq": lambda: repack_int4.blocks_of_outputs(packed.view(-1, size // 8)),
        "compressed_tensors": lambda: repack_int4.blocks_of_inputs(packed.view(size, -1).mT.contiguous()),
    }
    return {name: milliseconds(action, rounds) for name, action in actions.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "benchmark": "published",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    for shape, (hidden, intermediate, count) in SHAPES.items():
        experts = {name: [expert(make, hidden, intermediate) for _ in range(count)] for name, make in FORMATS.items()}
        found: dict[str, Any] = {"bytes": {n: sum(v.nbytes for v in e[0].values()) for n, e in experts.items()}}
        for num_rows in ROWS:
            rows = torch.randn((num_rows, hidden)).bfloat16()
            times: dict[str, list[float]] = {name: [] for name in FORMATS}
            for index in range(options.rounds):
                for name, taken in times.items():
                    start = time.thread_time()
                    run_expert(MODULE, experts[name][index % count], rows)
                    taken.append(time.thread_time() - start)
            found[str(num_rows)] = {name: round(min(taken) * 1e6) for name, taken in times.items()}
            print(f"{shape}, {num_rows} rows:", found[str(num_rows)])
        found["repacking_ms"] = repacking(hidden, intermediate, options.rounds)
        print(f"{shape}, repacking 4-bit codes, ms:", found["repacking_ms"])
        result[shape] = found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
