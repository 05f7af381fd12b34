"""Slots with matrices of every published format, and products by the native kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from server.kernels.format_table import describe_matrix
from server.kernels.formats import channel_int8, fp4, fp8, group_int4, group_int8, lookup4
from server.kernels.formats.group_int4 import repack_int4
from server.kernels.native.library import Kernels
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.matrices import Format, LinearCall, Matrix

ALIGNMENT = 64
ADDRESSES = ("data", "scales", "zeros", "rest", "divisor", "order")
Tensors = dict[str, torch.Tensor]
Dequantise = Callable[[Mapping[str, torch.Tensor], str], torch.Tensor]


class Slot(NamedTuple):
    """The bytes of a slot, and dtype, shape and offset of each tensor in it."""

    memory: torch.Tensor
    parameters: dict[str, tuple[torch.dtype, tuple[int, ...], int]]

    @property
    def address(self) -> int:
        return self.memory.data_ptr()


def fill_slot(tensors: Tensors) -> Slot:
    """Make a slot without spare bytes, so that a sanitizer detects reads beyond it."""
    parameters, pieces, end = {}, [], 0
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(torch.uint8).flatten() if tensor.numel() else tensor.view(torch.uint8)
        parameters[name] = (tensor.dtype, tuple(tensor.shape), end)
        pieces += [data, torch.zeros(-len(data) % ALIGNMENT, dtype=torch.uint8)]
        end += len(data) + len(pieces[-1])
    return Slot(torch.cat(pieces[:-1]), parameters)


def matrix_in(slot: Slot, name: str, outputs: int, inputs: int) -> Matrix:
    """Describe a matrix with addresses instead of offsets."""
    matrix = describe_matrix(slot.parameters, name, False, outputs, inputs)
    assert matrix is not None
    for field in ADDRESSES:
        offset = getattr(matrix, field)
        if offset is not None or field == "data":
            setattr(matrix, field, slot.address + (offset or 0))
    return matrix


def multiply(kernels: Kernels, matrix: Matrix, rows: torch.Tensor, *, is_exact: bool = True) -> torch.Tensor:
    """``rows`` float32 ``(rows, in)`` times a matrix: float32 ``(rows, out)``."""
    output = torch.full((len(rows), matrix.outputs), torch.nan)
    kernels.linear(
        LinearCall(
            matrix=matrix,
            x=rows.data_ptr(),
            y=output.data_ptr(),
            rows=len(rows),
            x_stride=rows.shape[1],
            y_stride=matrix.outputs,
            x_format=PLAIN[rows.dtype],
            y_format=Format.FLOAT32,
            is_exact=int(is_exact),
        )
    )
    return output


class Maker:
    """Makes random tensors of a format."""

    def __init__(self, seed: int):
        self._random = torch.Generator().manual_seed(seed)

    def ints(self, shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._random).to(dtype)

    def scales(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if dtype == torch.uint8:
            return self.ints(shape, 115, 130)
        return (torch.rand(shape, generator=self._random) * 0.01 + 0.001).to(dtype)

    def order(self, inputs: int) -> torch.Tensor:
        return torch.randperm(inputs, generator=self._random).int()

    def fp8(self, shape: tuple[int, int], grid: tuple[int, int], dtype: torch.dtype) -> Tensors:
        codes = self.ints(shape, 0, 127) | self.ints(shape, 0, 2) << 7
        return {"w": codes.view(torch.float8_e4m3fn), "w_scale_inv": self.scales(grid, dtype)}

    def fp4(self, shape: tuple[int, int], group: int, dtype: torch.dtype, *, has_divisor: bool) -> Tensors:
        blocks = self.ints((shape[0], shape[1] // group, group // 2), 0, 256)
        grid = (shape[0], shape[1] // group)
        scales = self.scales(grid, dtype) if dtype != torch.float8_e4m3fn else (self.scales(grid) * 9000).to(dtype)
        divisor = {"w_divisor": torch.tensor([300.0])} if has_divisor else {}
        return {"w_blocks": blocks, "w_scales": scales, **divisor}

    def lookup4(self, shape: tuple[int, int], group: int) -> Tensors:
        grid = (shape[0], shape[1] // group)
        return {
            "w_lookup": self.ints((*grid, group // 2), 0, 256),
            "w_lookup_scale": self.scales(grid),
            "w_lookup_table": torch.randn(16, generator=self._random),
        }

    def int8(self, shape: tuple[int, int]) -> Tensors:
        return {"w": self.ints(shape, -127, 128, torch.int8), "w_scale": self.scales((shape[0],))}

    def int8_groups(
        self, shape: tuple[int, int], groups: int, dtype: torch.dtype, *, has_zero: bool, has_order: bool
    ) -> Tensors:
        tensors = {
            "w_codes": self.ints(shape, -128, 128, torch.int8),
            "w_steps": self.scales((shape[0], groups), dtype),
        }
        if has_zero:
            tensors["w_zero"] = self.ints((shape[0], groups), -128, 128, torch.int16)
        if has_order:
            tensors["w_order"] = self.order(shape[1])
        return tensors

    def int4(
        self, shape: tuple[int, int], group: int, block: int, dtype: torch.dtype, *, has_zero: bool, has_order: bool
    ) -> Tensors:
        outputs, inputs = shape
        codes = self.ints((-(-outputs // block), inputs, block // 2), 0, 256)
        grid = (-(-inputs // group), outputs)
        zero = self.ints(grid, 0, 16) if has_zero else None
        values = repack_int4.scales(self.scales(grid).to(dtype), zero, inputs, (group, group))
        tensors = {"w": codes, "w_scale": values if dtype == torch.float32 else values.bfloat16()}
        if dtype == torch.float16:
            tensors["w_rest"] = repack_int4.rest(values).bfloat16()
        if has_order:
            tensors["w_order"] = self.order(inputs)
        return tensors


DEQUANTISE: dict[str, Dequantise] = {
    "fp8": fp8.dequantise,
    "fp4": fp4.dequantise,
    "lookup4": lookup4.dequantise,
    "int8": channel_int8.dequantise,
    "int8_groups": group_int8.dequantise,
    "int4": group_int4.dequantise,
}
