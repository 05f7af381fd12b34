"""Compiles the kernels for cards that are not there: ``python -m tests.server.kernels.triton.compiled`` prints JSON."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from server.kernels.native.backend import describe_experts
from server.kernels.triton import experts
from server.kernels.triton.launch import ExpertLaunch, Tiles
from tests.server.kernels.triton.layers import KINDS, make_layer

CARDS = (80, 86, 89, 90, 120)
EVERYWHERE = "bfloat16 with biases"  # is compiled for all cards; each other kind for one
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {
    "arena": "*u8",
    "slots": "*i32",
    "experts": "*i32",
    "tile_experts": "*i32",
    "choices": "*i32",
    "x": "*bf16",
    "weights": "*fp32",
    "hidden": "*bf16",
    "output": "*bf16",
    "products": "*bf16",
}
NUMBERS = {"alpha": "fp32", "limit": "fp32"}  # others are integers
ALIGNED = {"slot_bytes", "K", "I", "N", *POINTERS}  # multiples of 16, of which the compiler makes use


def kernels_of(launch: ExpertLaunch) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the kernels that run a layer, with the constants that they are compiled with."""
    tiles = asdict(Tiles.of(launch))
    few = {"BLOCK_N": tiles["few_outputs"], "BLOCK_K": tiles["few_inputs"]}
    many = {"BLOCK_M": tiles["many_rows"], "BLOCK_K": tiles["many_inputs"]}
    without = {name: value for name, value in launch.second_options.items() if name != "SCALES_INPUT"}
    yield experts.first_few, {**launch.first_options, **few}
    yield experts.second_few, {**launch.second_options, **few, "ADDS": True}
    yield experts.first_many, {**launch.first_options, **many, "BLOCK_N": tiles["first_outputs"]}
    yield experts.second_many, {**without, **many, "BLOCK_N": tiles["second_outputs"]}


def compile_for(kernel: Any, constants: dict[str, Any], card: int) -> dict[str, Any]:
    """Compile a kernel; return what it uses of a card."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name) or NUMBERS.get(name) or "i32" for name in names
    }
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in ALIGNED}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "kernel": kernel.fn.__name__,
        "card": card,
        "shared": made.metadata.shared,
        "multiplies_64_bits": re.search(r"m(ul|ad)\.lo\.s64", made.asm["ptx"]) is not None,
        **found,
    }


def main() -> None:
    results = []
    for number, (name, kind) in enumerate(KINDS.items()):
        layer = make_layer(kind, 1)
        shape = describe_experts(layer.module, layer.layout)
        assert not isinstance(shape, str)
        launch = ExpertLaunch.of(shape, scales_input=kind.scales_input)
        for card in CARDS if name == EVERYWHERE else CARDS[number % len(CARDS) :][:1]:
            results += [{"kind": name, **compile_for(*each, card)} for each in kernels_of(launch)]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
