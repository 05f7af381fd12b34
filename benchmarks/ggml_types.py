"""Benchmark of native products with GGUF's weight types, by rows: ``python -m benchmarks.ggml_types``.

Multiplies rows by a matrix of 2,048 inputs and 16,384 outputs in each type, on one thread and by turns. For each type
it prints the least milliseconds of processor time, the bytes of the matrix by that time, and both as parts of those of
the first type. ``chrt -r 1`` before the command keeps other processes away. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from server.kernels.format_table import describe_matrix
from server.kernels.formats.ggml_types import GGML_TYPES
from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear

OUTPUTS, INPUTS = 16384, 2048
MADE = 1024  # outputs that are made; the others are copies of them
BYTES = (0x20, 0x40)  # of the file, so that its scales are finite and normal
TYPES = {kind.name: kind for kind in GGML_TYPES.values() if kind.format is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=sorted(TYPES, key=lambda name: name != "Q8_0"))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kernels", help="a level of the native kernels")
    options = parser.parse_args()
    kernels = Kernels(1, options.kernels, rounds_float32=True)
    tensors, matrices = {}, {}
    for name in options.types:
        kind, random = TYPES[name], torch.Generator().manual_seed(0)
        raw = torch.randint(*BYTES, (MADE, kind.row_bytes(INPUTS)), dtype=torch.uint8, generator=random)
        made = kind.repack("w", raw, INPUTS)
        tensors[name] = {key: each.repeat(OUTPUTS // MADE, *[1] * (each.dim() - 1)) for key, each in made.items()}
        places = {key: (each.dtype, tuple(each.shape), each.data_ptr()) for key, each in tensors[name].items()}
        matrices[name] = describe_matrix(places, "w", False, OUTPUTS, INPUTS)
    result = {}
    for count in options.rows:
        rows = torch.randn((count, INPUTS), generator=torch.Generator().manual_seed(0))
        least = dict.fromkeys(options.types, float("inf"))
        for _ in range(options.rounds):
            for name, matrix in matrices.items():
                assert matrix is not None
                start = time.thread_time()
                native_linear(kernels, rows, matrix)
                least[name] = min(least[name], time.thread_time() - start)
        speed = {name: sum(each.nbytes for each in tensors[name].values()) / least[name] / 1e9 for name in least}
        first = options.types[0]
        for name, seconds in least.items():
            parts = f"{speed[name] / speed[first]:.2f} of the bytes a second, {seconds / least[first]:.2f} of the time"
            print(f"{count} rows, {name}: {seconds * 1e3:.2f} ms, {speed[name]:.1f} GB/s, {parts}")
        result[count] = {name: round(seconds * 1e3, 3) for name, seconds in least.items()}
    kernels.close()
    print(json.dumps({"benchmark": "ggml_types", "level": kernels.level, "ms": result}))


if __name__ == "__main__":
    main()
