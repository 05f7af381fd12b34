"""The tensors that a published checkpoint stores for a parameter, by the format of its matrices.

A quantised matrix consists of codes of heavy tails, taken from a pool, and of scales that differ by group of inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from expert_store.sources.base import Bytes
from tests.full_width.made_files import MadeTensor
from tests.full_width.trained_like import CORRECTION, ROUTER, generator, numbers, taken, trained_like_weights

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64}
DTYPES |= {"U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn}
IN_FLOAT32 = re.compile(rf"A_log|dt_bias|\.D$|{CORRECTION.pattern}")
EXPERTS = re.compile(r"\.experts\.")
PLAIN = re.compile(
    r"embed|norm|lm_head|conv|shared_expert_gate|in_proj_ba|in_proj_a\b|in_proj_b\b|bias|" + ROUTER.pattern
)
GROUP = 128  # inputs of GPTQ and AWQ
FP8_BLOCK = 128


@dataclass(frozen=True)
class Model:
    """The facts of a model that its weights depend on."""

    hidden_size: int
    embedding_scale: float


Store = Callable[[str, tuple[int, ...], Model], Sequence[MadeTensor]]


@dataclass(frozen=True)
class StoredFormat:
    """A format of published checkpoints.

    Attributes:
        quantisation: the ``quantization_config``.
        store: returns the tensors of a matrix.
        is_quantised: whether a parameter is such a matrix.
    """

    quantisation: dict[str, Any] | None
    store: Store
    is_quantised: Callable[[str, tuple[int, ...]], bool]

    def tensors(self, name: str, shape: tuple[int, ...], model: Model) -> Sequence[MadeTensor]:
        """Return the tensors of a parameter."""
        return self.store(name, shape, model) if self.is_quantised(name, shape) else plain(name, shape, model)


def plain(name: str, shape: tuple[int, ...], model: Model) -> Sequence[MadeTensor]:
    """Return a parameter in bfloat16, or in float32 where published ones are."""
    dtype = "F32" if IN_FLOAT32.search(name) else "BF16"
    stacked = len(shape) == 3 and "conv" not in name
    units = shape[0] if stacked else 1
    own = shape[1:] if stacked else shape

    def make(unit: int) -> torch.Tensor:
        place = f"{name} {unit}" if stacked else name
        return trained_like_weights(place, own, model.hidden_size, model.embedding_scale).to(DTYPES[dtype])

    return [made(name, dtype, shape, make, units)]


def made(
    name: str, dtype: str, shape: Sequence[int], make: Callable[[int], torch.Tensor], num_units: int = 1
) -> MadeTensor:
    """Return a tensor of a file that torch makes."""
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize

    def content(unit: int) -> Bytes:
        found = make(unit).contiguous()
        assert found.dtype == DTYPES[dtype], name
        return found.flatten().view(torch.uint8).numpy()

    return MadeTensor(name, dtype, tuple(shape), nbytes, content, num_units)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return True for matrices that are quantised where all linear layers are, but for heads and routers."""
    return len(shape) > 1 and not PLAIN.search(name)


def is_expert(name: str, shape: tuple[int, ...]) -> bool:
    """Return True for matrices of routed experts."""
    return is_matrix(name, shape) and EXPERTS.search(name) is not None


@cache
def fp8_codes() -> torch.Tensor:
    """Codes of heavy tails, whose standard deviation is 32."""
    return (numbers() * 32).clamp_(-448, 448).to(torch.float8_e4m3fn)


@cache
def nibbles() -> torch.Tensor:
    """Bytes of two codes of four bits each, of heavy tails around eight, whose standard deviation is about two."""
    codes = (numbers() * 2 + 8).round_().clamp_(0, 15).to(torch.uint8)
    return codes[:-1] | codes[1:] << 4


def scales(name: str, shape: Sequence[int], centre: float) -> torch.Tensor:
    """Return positive numbers around a centre, of which some are four times as large."""
    spread = torch.empty(tuple(shape)).normal_(generator=generator(name)).mul_(0.3).exp_()
    spread.flatten()[::97] *= 4
    return spread * centre


def fp8(name: str, shape: tuple[int, ...], _: Model) -> Sequence[MadeTensor]:
    """Return float8 with a scale for each block of 128 by 128."""
    grid = [-(-size // FP8_BLOCK) for size in shape]
    scale_name = f"{name}_scale_inv"
    return [
        made(name, "F8_E4M3", shape, lambda _: taken(fp8_codes(), name, math.prod(shape)).view(shape)),
        made(scale_name, "F32", grid, lambda _: scales(scale_name, grid, shape[1] ** -0.5 / 32)),
    ]


def words(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Return codes of four bits in int32."""
    return taken(nibbles(), name, 4 * math.prod(shape)).clone().view(torch.int32).view(tuple(shape))


def gptq(name: str, shape: tuple[int, ...], _: Model) -> Sequence[MadeTensor]:
    """Return GPTQ's int4, symmetric: each zero is eight, stored as seven."""
    module, (outputs, inputs) = name.removesuffix(".weight"), shape
    groups = inputs // GROUP
    return [
        made(f"{module}.qweight", "I32", (inputs // 8, outputs), lambda _: words(name, (inputs // 8, outputs))),
        made(
            f"{module}.qzeros",
            "I32",
            (groups, outputs // 8),
            lambda _: torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        ),
        made(
            f"{module}.scales",
            "F16",
            (groups, outputs),
            lambda _: scales(name, (groups, outputs), inputs**-0.5 / 2).half(),
        ),
        made(f"{module}.g_idx", "I32", (inputs,), lambda _: (torch.arange(inputs) // GROUP).int()),
    ]


def awq(name: str, shape: tuple[int, ...], _: Model) -> Sequence[MadeTensor]:
    """Return AWQ's int4, with zeros around eight."""
    module, (outputs, inputs) = name.removesuffix(".weight"), shape
    groups = inputs // GROUP
    return [
        made(f"{module}.qweight", "I32", (inputs, outputs // 8), lambda _: words(name, (inputs, outputs // 8))),
        made(
            f"{module}.qzeros", "I32", (groups, outputs // 8), lambda _: words(name + " zeros", (groups, outputs // 8))
        ),
        made(
            f"{module}.scales",
            "F16",
            (groups, outputs),
            lambda _: scales(name, (groups, outputs), inputs**-0.5 / 3).half(),
        ),
    ]


def packed_int4(name: str, shape: tuple[int, ...], _: Model) -> Sequence[MadeTensor]:
    """Return compressed-tensors' symmetric int4 in groups of 32 inputs."""
    module, (outputs, inputs) = name.removesuffix(".weight"), shape
    grid = (outputs, inputs // 32)
    return [
        made(f"{module}.weight_packed", "I32", (outputs, inputs // 8), lambda _: words(name, (outputs, inputs // 8))),
        made(f"{module}.weight_scale", "BF16", grid, lambda _: scales(name, grid, inputs**-0.5 / 2).bfloat16()),
        made(f"{module}.weight_shape", "I64", (2,), lambda _: torch.tensor(shape)),
    ]


def mxfp4(name: str, shape: tuple[int, ...], _: Model) -> Sequence[MadeTensor]:
    """Return MXFP4 for a stack of experts, whose matrices transformers names ``(in, out)``."""
    experts, inputs, outputs = shape
    groups = inputs // 32
    blocks, kept = (experts, outputs, groups, 16), (experts, outputs, groups)
    centre = 127 + math.floor(math.log2(inputs**-0.5 / 3))

    def exponents(unit: int) -> torch.Tensor:
        return torch.randint(centre - 1, centre + 3, kept[1:], generator=generator(f"{name} {unit}")).to(torch.uint8)

    def codes(unit: int) -> torch.Tensor:
        return taken(mxfp4_bytes(), f"{name} {unit}", math.prod(blocks[1:])).view(blocks[1:])

    return [
        made(f"{name}_blocks", "U8", blocks, codes, experts),
        made(f"{name}_scales", "U8", kept, exponents, experts),
    ]


@cache
def mxfp4_bytes() -> torch.Tensor:
    """Bytes of two codes of float4, any of them."""
    return torch.randint(0, 256, (1 << 22 | 1,), dtype=torch.uint8, generator=generator("float4"))


PACKED_INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
}
STORED_FORMATS = {
    "bf16": StoredFormat(None, plain, lambda *_: False),
    "fp8": StoredFormat(
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK] * 2},
        fp8,
        is_matrix,
    ),
    "gptq": StoredFormat(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, gptq, is_matrix
    ),
    "awq": StoredFormat(
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq, is_matrix
    ),
    "int4": StoredFormat(PACKED_INT4, packed_int4, is_expert),
    "mxfp4": StoredFormat(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
        mxfp4,
        lambda name, shape: len(shape) == 3 and "experts" in name,
    ),
}
