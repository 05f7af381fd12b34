"""Layers of experts in slots, in each format that the Triton kernels know."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from expert_store import ExpertLayout, ParameterSpec
from expert_store.arena import RESERVE, slot_views
from server.kernels.backend import SortedRows
from server.kernels.formats import block_int4, block_int8
from server.kernels.formats.ggml_types import GGML_TYPES
from tests.server.kernels.formats.ggml_matrices import NUMBERS, random_rows
from tests.server.kernels.native.slots import Maker

HIDDEN, INTERMEDIATE = 96, 64  # FP8 and FP4 take complete blocks alone
RAGGED_HIDDEN, RAGGED_INTERMEDIATE = 90, 37
SUPERBLOCK = 256
SPOILT = 255

Tensors = dict[str, torch.Tensor]
Make = Callable[[Maker, str, int, int], Tensors]


def _renamed(tensors: Tensors, name: str) -> Tensors:
    return {name + key.removeprefix("w"): tensor for key, tensor in tensors.items()}


def _plain(dtype: torch.dtype) -> Make:
    def make(maker: Maker, name: str, outputs: int, inputs: int) -> Tensors:
        return {name: (maker.ints((outputs, inputs), -99, 100, torch.float32) / 300).to(dtype)}

    return make


def _packed(module: object) -> Make:
    def make(maker: Maker, name: str, outputs: int, inputs: int) -> Tensors:
        matrix = maker.ints((outputs, inputs), -99, 100, torch.float32) / 300
        return module.quantise(name, matrix)  # type: ignore[attr-defined, no-any-return]

    return make


def _fp4(group: int, dtype: torch.dtype, *, has_divisor: bool) -> Make:
    def make(maker: Maker, name: str, outputs: int, inputs: int) -> Tensors:
        return _renamed(maker.fp4((outputs, inputs), group, dtype, has_divisor=has_divisor), name)

    return make


def _fp8(rows: int, columns: int, dtype: torch.dtype) -> Make:
    def make(maker: Maker, name: str, outputs: int, inputs: int) -> Tensors:
        return _renamed(maker.fp8((outputs, inputs), (outputs // rows, inputs // columns), dtype), name)

    return make


def _gguf(type_name: str) -> Make:
    def make(maker: Maker, name: str, outputs: int, inputs: int) -> Tensors:
        seed = int(maker.ints((1,), 0, 1 << 20, torch.int64))
        return GGML_TYPES[NUMBERS[type_name]].repack(name, random_rows(type_name, outputs, inputs, seed), inputs)

    return make


class SoftCaps:
    """A gate whose results are capped softly, as in Inkling 2."""

    def __init__(self, gate: float, up: float):
        self.gate_softcap, self.up_softcap = (SimpleNamespace(softcap=cap) for cap in (gate, up))

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        by_gate, by_up = self.gate_softcap.softcap, self.up_softcap.softcap
        return torch.tanh(gate / by_gate) * by_gate * torch.sigmoid(gate) * torch.tanh(up / by_up) * by_up


@dataclass(frozen=True)
class Kind:
    """A format and what else differs between layers."""

    make: Make
    is_ragged: bool = False
    has_superblocks: bool = False  # rows of 256 numbers
    is_transposed: bool = False
    num_parts: int = 1
    has_bias: bool = False
    has_gate: bool = True
    is_concatenated: bool = True
    scales_input: bool = False
    activation: Callable[..., torch.Tensor] = F.silu
    limit: float | None = None  # of a clamped gate


KINDS = {
    "float32": Kind(_plain(torch.float32), is_ragged=True),
    "bfloat16 with biases": Kind(_plain(torch.bfloat16), has_bias=True, is_ragged=True),
    "float16 without a gate": Kind(_plain(torch.float16), has_gate=False, activation=lambda x: F.relu(x).square()),
    "bfloat16 transposed, interleaved and clamped": Kind(
        _plain(torch.bfloat16), is_transposed=True, is_concatenated=False, has_bias=True, limit=0.3
    ),
    "float16 with scaled inputs": Kind(_plain(torch.float16), scales_input=True, activation=F.gelu),
    "bfloat16 with soft caps": Kind(_plain(torch.bfloat16), activation=SoftCaps(0.5, 0.3)),
    "block_int8": Kind(_packed(block_int8), is_ragged=True),
    "block_int4": Kind(_packed(block_int4), is_ragged=True, activation=lambda x: F.gelu(x, approximate="tanh")),
    "MXFP4 with biases": Kind(_fp4(32, torch.uint8, has_divisor=False), has_bias=True),
    "NVFP4 in parts": Kind(_fp4(16, torch.float8_e4m3fn, has_divisor=True), num_parts=2),
    "FP8 in blocks": Kind(_fp8(32, 32, torch.float32)),
    "FP8 in parts with biases": Kind(_fp8(16, 32, torch.bfloat16), num_parts=2, has_bias=True),
    "MXFP8": Kind(_fp8(1, 32, torch.uint8)),
    "Q4_K in parts": Kind(_gguf("Q4_K"), has_superblocks=True, num_parts=2),
    "Q6_K": Kind(_gguf("Q6_K"), has_superblocks=True),
    "IQ2_XXS in parts": Kind(_gguf("IQ2_XXS"), has_superblocks=True, num_parts=2),
    "IQ1_M": Kind(_gguf("IQ1_M"), has_superblocks=True),
}


class Module:
    """An experts module as transformers has them, without weights."""

    has_post_expert_norm = False

    def __init__(self, kind: Kind, hidden: int, intermediate: int, num_experts: int):
        self.num_experts, self.scales_input = num_experts, kind.scales_input
        self.has_gate, self.has_bias, self.is_transposed = kind.has_gate, kind.has_bias, kind.is_transposed
        self.is_concatenated, self._kind = kind.is_concatenated, kind
        self.act_fn = kind.activation
        if kind.limit is not None:
            self.alpha, self.limit = 1.702, kind.limit
        self.first = "gate_up_proj" if kind.has_gate else "up_proj"
        width = intermediate * (2 if kind.has_gate else 1)
        shapes = {self.first: (width, hidden), "down_proj": (hidden, intermediate)}
        self.parameter_shapes = {name: shape[::-1] if kind.is_transposed else shape for name, shape in shapes.items()}

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1) if self.is_concatenated else (gate_up[..., ::2], gate_up[..., 1::2])
        if isinstance(self._kind.activation, SoftCaps):
            return self._kind.activation(gate, up)
        if self._kind.limit is None:
            return self._kind.activation(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)


@dataclass
class Layer:
    """Experts in the slots of an arena, whose other slots hold NaN."""

    module: Module
    layout: ExpertLayout
    arena: torch.Tensor  # uint8 (slots, slot_bytes)
    slots: dict[int, int]  # of each expert
    hidden: int

    def to(self, device: torch.device) -> Layer:
        """Return the layer with a copy of its slots on a device; on the CPU, with these."""
        return self if device.type == "cpu" else replace(self, arena=self.arena.to(device))

    def weights(self, expert: int) -> Mapping[str, torch.Tensor]:
        return slot_views(self.layout, self.arena[self.slots[expert]])

    def batches(self, *groups: Sequence[int], gives_back: bool = False) -> Iterator[Batch]:
        """Yield batches of experts; if each gives back its slots, they are spoilt before the next one."""
        for number, group in enumerate(groups):
            is_last = number == len(groups) - 1
            yield Batch(self, group, gives_back=gives_back and not is_last)
            if gives_back and not is_last:
                for expert in group:
                    self.arena[self.slots[expert]] = SPOILT


@dataclass
class Batch:
    layer: Layer
    keys: Sequence[int]
    gives_back: bool
    addresses: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    @property
    def slots(self) -> np.ndarray:
        return np.array([self.layer.slots[key] for key in self.keys], np.int64)

    @property
    def arena(self) -> torch.Tensor:
        return self.layer.arena

    def weights(self, index: int) -> Mapping[str, torch.Tensor]:
        return self.layer.weights(self.keys[index])


def make_layer(kind: Kind, num_experts: int, seed: int = 0, first_slot: int = 1) -> Layer:
    """Make random experts.

    Args:
        first_slot: the first slot that is used; those before it are reserved alone.
    """
    maker = Maker(seed)
    hidden, intermediate = (RAGGED_HIDDEN, RAGGED_INTERMEDIATE) if kind.is_ragged else (HIDDEN, INTERMEDIATE)
    if kind.has_superblocks:
        hidden = intermediate = SUPERBLOCK
    module = Module(kind, hidden, intermediate, num_experts)
    experts = [_make_expert(kind, module, maker, hidden, intermediate) for _ in range(num_experts)]
    layout = ExpertLayout(
        tuple(ParameterSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in experts[0].items())
    )
    num_slots = first_slot + num_experts + 1
    memory = mmap.mmap(-1, num_slots * layout.slot_bytes, flags=RESERVE)
    arena = torch.frombuffer(memory, dtype=torch.uint8).view(num_slots, layout.slot_bytes)
    arena[first_slot:] = SPOILT
    arena[0] = SPOILT
    slots = {expert: first_slot + num_experts - expert for expert in range(num_experts)}
    layer = Layer(module, layout, arena, slots, hidden)
    for number, tensors in enumerate(experts):
        for name, view in layer.weights(number).items():
            view.copy_(tensors[name])
    return layer


def _make_expert(kind: Kind, module: Module, maker: Maker, hidden: int, intermediate: int) -> Tensors:
    tensors: Tensors = {}
    for name, shape in module.parameter_shapes.items():
        if kind.num_parts == 1 or name == "down_proj":
            tensors |= kind.make(maker, name, *shape)
        else:
            for part in range(kind.num_parts):
                tensors |= kind.make(maker, f"{name}.{part}", shape[0] // kind.num_parts, shape[1])
    if kind.has_bias:
        width = intermediate * (2 if kind.has_gate else 1)
        for name, size in ((module.first, width), ("down_proj", hidden)):
            tensors[f"{name}_bias"] = (maker.ints((size,), -99, 100, torch.float32) / 99).bfloat16()
    return tensors


def make_rows(
    layer: Layer, num_tokens: int, top_k: int, dtype: torch.dtype = torch.float32, seed: int = 1
) -> SortedRows:
    """Make random rows; some choices go to no expert, and the last expert gets none."""
    random = torch.Generator().manual_seed(seed)
    num_experts = layer.module.num_experts
    chosen = torch.randint(-1, num_experts - 1, (num_tokens * top_k,), generator=random).numpy()
    bucket = np.where(chosen < 0, num_experts, chosen)
    order, spans, start = bucket.argsort(kind="stable"), {}, 0
    for expert, count in enumerate(np.bincount(bucket, minlength=num_experts + 1)[:num_experts].tolist()):
        if count:
            spans[expert] = (start, start + count)
            start += count
    hidden = torch.randn(num_tokens, layer.hidden, generator=random).to(dtype)
    return SortedRows(hidden, torch.rand(num_tokens, top_k, generator=random).to(dtype), order, spans)
