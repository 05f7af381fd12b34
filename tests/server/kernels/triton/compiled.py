"""Compiles the kernels for cards that are not there: ``python -m tests.server.kernels.triton.compiled`` prints JSON.

All are compiled for NVIDIA's, and those of one kind for one of AMD's if this build of Triton has the compiler for it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from server.kernels.native.backend import describe_experts
from server.kernels.native.structures.experts import Activation
from server.kernels.native.structures.layers import RouterKind
from server.kernels.triton import (
    attention,
    decode_attention,
    experts,
    gated_activation,
    gated_rows,
    norms,
    rotation,
    router_choice,
    routers,
)
from server.kernels.triton.launch import ExpertLaunch, Tiles
from server.kernels.triton.rms_norm import options_of
from server.model.blocks.gated_delta_net.triton_kernels import step_delta
from server.model.blocks.gated_delta_net.triton_step import delta_options
from server.model.blocks.grouped_attention import triton_step as head_preparation
from server.model.blocks.grouped_attention.triton_kernels import prepare_heads
from server.model.blocks.latent_attention import triton_step as latent_preparation
from server.model.blocks.latent_attention.triton_kernels import prepare_latents
from server.model.blocks.mamba2.triton_kernels import step_mamba2
from server.model.blocks.mamba2.triton_step import mamba2_options
from server.model.blocks.recurrent.triton_kernels import norm_gated_rows
from server.model.blocks.recurrent.triton_step import norm_options
from server.model.blocks.short_convolution.triton_kernels import step_convolution
from server.model.blocks.short_convolution.triton_step import CHANNELS
from tests.server.kernels.triton.layers import KINDS, make_layer

CARDS = (80, 86, 89, 90, 120)
# One card of each kind of code that Triton makes: for 86 and 89 it makes that of 80, within less memory.
GENERATIONS = (80, 90, 120)
ROCM = GPUTarget("hip", "gfx942", 64)
EVERYWHERE = "bfloat16 with biases"  # is compiled for all generations, all its kernels; each other kind for one card
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {
    "arena": "*u8",
    "slots": "*i32",
    "codebook": "*u8",
    "logits": "*fp32",
    "chosen": "*i64",
    "correction": "*fp32",
    "expert_scales": "*bf16",
    "scores_kept": "*fp32",
    "experts": "*i32",
    "tile_experts": "*i32",
    "choices": "*i32",
    "x": "*bf16",
    "weights": "*fp32",
    "hidden": "*bf16",
    "output": "*bf16",
    "products": "*bf16",
    "rows": "*i32",
    "table": "*i32",
    **dict.fromkeys(("key", "value", "query", "keys", "values", "sinks"), "*bf16"),
    **dict.fromkeys(("cosines", "sines", "rotated", "new_keys", "new_values"), "*bf16"),
    **dict.fromkeys(("query_norm", "key_norm", "value_norm"), "*fp32"),
    "parts": "*fp32",
    "weight": "*fp32",
    **dict.fromkeys(("y", "added", "total"), "*bf16"),
    "extremes": "*fp32",
    **dict.fromkeys(("latent", "absorbed", "new_rows"), "*bf16"),
    **dict.fromkeys(("projected", "conv", "conv_weight", "conv_bias"), "*bf16"),
    **dict.fromkeys(("state", "decay", "decay_bias", "norm", "step_bias", "direct"), "*fp32"),
    **dict.fromkeys(("sources", "targets"), "*i64"),
}
NUMBERS = {
    "alpha": "fp32",
    "limit": "fp32",
    "scaling": "fp32",
    "softcap": "fp32",
    "epsilon": "fp32",
    "scale": "fp32",
    "least_step": "fp32",
    "longest_step": "fp32",
}  # others are integers
STRIDES = {f"{of}_{by}" for of in ("query", "key", "value") for by in ("head", "token")} | {"cache_head", "cache_row"}
# Multiples of 16, of which the compiler makes use.
ROWS = {"conv_row", "state_row", "projected_token", "head_dim", "state_size", "channels"}
ALIGNED = {"slot_bytes", "K", "I", "N", "key_dim", "value_dim", "size", *ROWS, *STRIDES, *POINTERS}
NORMS = {128: (90,), 7168: GENERATIONS}  # numbers of a row, and the cards
SOFTMAX = router_choice.RouterRule(RouterKind.SOFTMAX_FIRST, 8, 1, 1, is_by_best=False, is_normalised=True, scale=1.0)
GROUPS = router_choice.RouterRule(RouterKind.SIGMOID, 8, 8, 4, is_by_best=False, is_normalised=True, scale=2.5)
ROUTERS = {128: (SOFTMAX, (86,)), 256: (GROUPS, GENERATIONS)}  # experts, how a token chooses, cards
# Widths of keys and values, whether they are a latent, the type of rows, and the cards.
ATTENTION = {
    "attention of 128": (128, 128, False, torch.bfloat16, GENERATIONS),
    "attention of 64": (64, 64, False, torch.bfloat16, (80,)),
    "attention of 80": (80, 80, False, torch.bfloat16, (86,)),
    "attention of 256": (256, 256, False, torch.bfloat16, (89,)),
    "attention of 192 and 128": (192, 128, False, torch.bfloat16, (120,)),
    "attention to a latent": (576, 512, True, torch.bfloat16, GENERATIONS),
    "attention of 128 in float32": (128, 128, False, torch.float32, (120,)),
}


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


def attention_kernels(
    key_dim: int, value_dim: int, dtype: torch.dtype, *, is_latent: bool
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the kernels that attend to keys and values, with the constants that they are compiled with."""
    tiles = decode_attention.Tiles.of(key_dim, value_dim, dtype).options
    partition, width = {"PARTITION": decode_attention.PARTITION}, tiles["BLOCK_V"]
    rules = {"HAS_SINKS": True, "HAS_SOFTCAP": True, "IS_SPLIT": False, "BLOCK": 16}
    yield attention.attend_partition, {**tiles, **partition, **rules, "IS_LATENT": is_latent}
    if is_latent:
        rules = {"ROTATION": rotation.HALVES_OF_PAIRS.value, "STEP": 1, "KEEPS_ROWS": True}
        yield prepare_latents, {**rules, **latent_preparation.options_of(value_dim, key_dim - value_dim)}
    if dtype != torch.float32 and width == tiles["BLOCK_D"]:
        merged = {"HAS_SINKS": True, "BLOCK_P": decode_attention.MERGED}
        yield attention.merge_partitions, {**partition, **merged, "BLOCK_V": width}
        yield attention.write_tokens, {"IS_LATENT": is_latent, "BLOCK": width}
    if dtype != torch.float32 and width == tiles["BLOCK_D"] and not is_latent:
        rules = {"HAS_NORMS": True, "HAS_VALUE_NORM": True, "KEEPS_KEYS": True}
        rotated = {"ROTATION": rotation.PAIRS.value, "STEP": 2}
        yield prepare_heads, {**rules, **rotated, **head_preparation.options_of(key_dim, value_dim)}


def recurrent_kernels() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the kernels of recurrent mixers at the sizes of Qwen3-Next, Nemotron 3 Nano and LFM2."""
    conv = {"WIDTH": 4, "TAPS": 4}
    yield step_delta, {**conv, **delta_options(128)}
    yield step_mamba2, {**conv, "HAS_BIAS": True, **mamba2_options(64, 128)}
    yield norm_gated_rows, {"GATES_FIRST": True, **norm_options(8192)}
    yield step_convolution, {**conv, "HAS_BIAS": False, "BLOCK": CHANNELS}


def compile_for(
    kernel: Any, constants: dict[str, Any], card: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Compile a kernel; return what it uses of a card.

    Args:
        dtype: of rows.
    """
    made = _compile(kernel, constants, GPUTarget("cuda", card, 32), dtype)
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
        "multiplies_64_bits": re.search(r"m(ul|ad)\.(lo\.s64|wide\.s32)", made.asm["ptx"]) is not None,
        **found,
    }


def compile_for_rocm(kernel: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """Compile a kernel for a card of AMD; return what it uses of it."""
    made = _compile(kernel, constants, ROCM, torch.bfloat16)
    spills = re.findall(r"\.[sv]gpr_spill_count: *(\d+)", made.asm["amdgcn"])
    return {"kernel": kernel.fn.__name__, "shared": made.metadata.shared, "spills": [int(each) for each in spills]}


def _compile(kernel: Any, constants: dict[str, Any], target: GPUTarget, dtype: torch.dtype) -> Any:
    names, constants = kernel.arg_names, dict(constants)
    options = {"num_warps": constants.pop("num_warps", 4)}
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name) or NUMBERS.get(name) or "i32" for name in names
    }
    if dtype == torch.float32:
        signature = {name: "*fp32" if of == "*bf16" else of for name, of in signature.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in ALIGNED}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=options)


def every_kernel() -> Iterator[tuple[str, Any, dict[str, Any], torch.dtype, Sequence[int]]]:
    """Yield each kernel with its kind, its constants, the type of rows, and the cards to compile it for."""
    for number, (name, kind) in enumerate(KINDS.items()):
        layer = make_layer(kind, 1)
        shape = describe_experts(layer.module, layer.layout)
        assert not isinstance(shape, str)
        launch = ExpertLaunch.of(shape, scales_input=kind.scales_input)
        kernels = list(kernels_of(launch))
        if name == EVERYWHERE:
            cards: Sequence[int] = GENERATIONS
        else:  # of a format's kernels for few and for many rows one each, as all read weights by the same functions
            cards, kernels = CARDS[number % len(CARDS) :][:1], kernels[::3] if number % 2 else kernels[1:3]
        for kernel, constants in kernels:
            yield name, kernel, constants, torch.bfloat16, cards
    for size, cards in NORMS.items():
        for kernel in (norms.norm_rows, norms.add_and_norm_rows):
            yield f"norm of {size}", kernel, options_of(size), torch.bfloat16, cards
    rules = {"ACTIVATION": Activation.SILU.value, "BLOCK": gated_activation.NUMBERS}
    yield "gated MLPs", gated_rows.gate_rows, rules, torch.bfloat16, GENERATIONS
    for kernel, constants in recurrent_kernels():
        yield "recurrent mixers", kernel, constants, torch.bfloat16, GENERATIONS
    for count, (rule, cards) in ROUTERS.items():
        is_corrected = rule.kind == RouterKind.SIGMOID
        of_one = {"HAS_CORRECTION": is_corrected, "HAS_SCALES": not is_corrected, "KEEPS_SCORES": not is_corrected}
        constants = {**router_choice.options_of(rule, count), **of_one}
        yield f"router of {count}", routers.route_row, constants, torch.bfloat16, cards
    for name, (key_dim, value_dim, is_latent, dtype, cards) in ATTENTION.items():
        for kernel, constants in attention_kernels(key_dim, value_dim, dtype, is_latent=is_latent):
            yield name, kernel, constants, dtype, cards


def main() -> None:
    results, of_rocm = [], []
    for kind, kernel, constants, dtype, cards in every_kernel():
        results += [{"kind": kind, **compile_for(kernel, constants, card, dtype)} for card in cards]
        if cards == GENERATIONS and "amd" in backends:
            of_rocm.append({"kind": kind, **compile_for_rocm(kernel, constants)})
    print(json.dumps({"cards": results, "rocm": of_rocm}))


if __name__ == "__main__":
    main()
