"""Types of GGUF files that stay as they are in the file: IQ1, IQ2, IQ3 and the ternary TQ1 and TQ2.

``NAME_iq2_xs``, or another type's name, is uint8 ``(out, row bytes)``. The package ``gguf`` has the tables of these
types, which the native kernels take from it, and dequantises some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from server.kernels.formats.blocks import Spec
from server.kernels.formats.chunked import num_rows, project_chunks
from server.kernels.native import ggml, slot_format
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Format, Matrix


@dataclass(frozen=True)
class FileBlocks:
    """A type, as a format of matrices in slots.

    Attributes:
        kind: its number in the native kernels, with the name that ``gguf`` has for it.
        inputs: the inputs of a block.
        block_bytes: the bytes of a block.
    """

    kind: Format
    inputs: int
    block_bytes: int

    OUTPUTS = 1  # per element of the first dimension

    @property
    def KINDS(self) -> tuple[Format, ...]:  # noqa: N802  as in modules of formats
        return (self.kind,)

    @property
    def CODES(self) -> str:  # noqa: N802
        return f"_{self.kind.name.lower()}"

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        """Name, dtype and shape of each tensor of a matrix, whose inputs are a multiple of ``inputs``."""
        return [(name + self.CODES, torch.uint8, (out_features, in_features // self.inputs * self.block_bytes))]

    def is_quantised(self, weights: Mapping[str, torch.Tensor], name: str) -> bool:
        return name + self.CODES in weights

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)``."""
        return torch.cat(list(self._chunks(weights, name, torch.float32)))

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
        output = project_chunks(rows, self._chunks(weights, name, rows.dtype))
        return output if bias is None else output + bias

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        """Describe a matrix to the native kernels; None if its tensor is not that of the type."""
        codes = places.get(name + self.CODES)
        if codes is None or shape[1] % self.inputs or not ggml.is_available():
            return None
        if [(name + self.CODES, codes.dtype, tuple(codes.shape))] != self.specs(name, *shape):
            return None
        _set_grid(self.kind)
        return slot_format.matrix(self.kind, shape, codes, None)

    def _chunks(self, weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
        from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  it is slow to import, and seldom needed

        raw = weights[name + self.CODES]
        for rows in torch.split(raw, num_rows(raw.shape[1] // self.block_bytes * self.inputs)):
            values = quants.dequantize(rows.cpu().numpy(), GGMLQuantizationType[self.kind.name])
            yield torch.from_numpy(values).to(raw.device, dtype)


@cache
def _set_grid(kind: Format) -> None:
    """Give the native kernels the table of a type, if it has one."""
    from gguf import quants  # noqa: PLC0415

    own = getattr(quants, kind.name)
    own.init_grid()
    if own.grid is None:
        return
    numbers = own.grid[0, 0]
    if kind in {Format.IQ1_S, Format.IQ1_M}:
        numbers = 8 * numbers + 128
    ggml.set_grid(kind, np.ascontiguousarray(numbers, dtype=np.uint8))


FORMATS = (
    FileBlocks(Format.IQ2_XXS, 256, 66),
    FileBlocks(Format.IQ2_XS, 256, 74),
    FileBlocks(Format.IQ3_XXS, 256, 98),
    FileBlocks(Format.IQ1_S, 256, 50),
    FileBlocks(Format.IQ3_S, 256, 110),
    FileBlocks(Format.IQ2_S, 256, 82),
    FileBlocks(Format.IQ1_M, 256, 56),
    FileBlocks(Format.TQ1_0, 256, 54),
    FileBlocks(Format.TQ2_0, 256, 66),
)
