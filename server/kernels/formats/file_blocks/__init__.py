"""Types of GGUF files whose blocks keep their bytes: IQ1, IQ2, IQ3 and the ternary TQ1 and TQ2.

``NAME_iq2_xs``, or another type's name, is uint8 ``(blocks, superblocks, 16 * block bytes)``: for each 256 inputs of 16
outputs the bytes of the file's blocks, number by number, with those of the outputs side by side. If ``out`` is no
multiple of 16, outputs of zeros follow, and ``NAME_iq2_xs_shape`` holds out and in (``blocks``). The package ``gguf``
has the tables of these types, which the native kernels take from it, and dequantises some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from server.kernels.formats import blocks
from server.kernels.formats.blocks import OUTPUTS, Spec
from server.kernels.formats.chunked import num_rows
from server.kernels.native import ggml, library, slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix


@dataclass(frozen=True)
class FileBlocks:
    """A type, as a format of matrices in slots.

    Attributes:
        kind: its number in the native kernels, with the name that ``gguf`` has for it.
        inputs: the inputs of a block.
        fields: bytes of a block, and the bytes of each number there.
    """

    kind: Format
    inputs: int
    fields: tuple[tuple[int, int], ...]

    OUTPUTS = OUTPUTS

    @property
    def block_bytes(self) -> int:
        return sum(nbytes for nbytes, _ in self.fields)

    @property
    def KINDS(self) -> tuple[Format, ...]:  # noqa: N802  as in modules of formats
        return (self.kind,)

    @property
    def TAG(self) -> Tag:  # noqa: N802
        return Tag(self.CODES, torch.uint8)

    @property
    def CODES(self) -> str:  # noqa: N802
        return f"_{self.kind.name.lower()}"

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        """Name, dtype and shape of each tensor of a matrix, whose inputs are a multiple of ``inputs``."""
        shape = blocks.num_blocks(out_features), in_features // self.inputs, OUTPUTS * self.block_bytes
        return [
            (name + self.CODES, torch.uint8, shape),
            *blocks.shape_specs(name + self.CODES, out_features, in_features),
        ]

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)``."""
        return blocks.join(self._chunks(weights, name, torch.float32), self._shape(weights, name))

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
        return blocks.project(rows, self._chunks(weights, name, rows.dtype), self._shape(weights, name)[0], bias)

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        """Describe a matrix to the native kernels; None if its tensor is not that of the type."""
        codes = places.get(name + self.CODES)
        if codes is None or shape[1] % self.inputs or not library.is_available():
            return None
        if (name + self.CODES, codes.dtype, tuple(codes.shape)) != self.specs(name, *shape)[0]:
            return None
        _set_grid(self.kind)
        return slot_format.matrix(self.kind, shape, codes, None)

    def pack(self, name: str, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make the tensors of a matrix of a file's rows, uint8 ``(out, superblocks, block bytes)``."""
        padded = F.pad(raw, (0, 0, 0, 0, 0, -len(raw) % OUTPUTS)).unflatten(0, (-1, OUTPUTS))  # type: ignore[no-untyped-call]
        parts = torch.split(padded, [nbytes for nbytes, _ in self.fields], 3)
        numbers = [
            part.unflatten(3, (-1, size)).permute(0, 2, 3, 1, 4).flatten(2)  # type: ignore[no-untyped-call]
            for part, (_, size) in zip(parts, self.fields, strict=True)
        ]
        shape = torch.empty((len(raw), raw.shape[1] * self.inputs), device="meta")
        return {name + self.CODES: torch.cat(numbers, 2)} | blocks.shape_tensors(name + self.CODES, shape)

    def _rows(self, packed: torch.Tensor) -> torch.Tensor:
        """The file's rows ``(out, superblocks * block bytes)`` of blocks ``(blocks, superblocks, bytes)``."""
        parts = torch.split(packed, [OUTPUTS * nbytes for nbytes, _ in self.fields], 2)
        numbers = [
            part.unflatten(2, (-1, OUTPUTS, size)).permute(0, 3, 1, 2, 4).flatten(3)  # type: ignore[no-untyped-call]
            for part, (_, size) in zip(parts, self.fields, strict=True)
        ]
        return torch.cat(numbers, 3).flatten(0, 1).flatten(1)

    def _shape(self, weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, int]:
        key = name + self.CODES
        if key + blocks.SHAPE in weights:
            return blocks.shape_of(weights, key, weights[key])
        return weights[key].shape[0] * OUTPUTS, weights[key].shape[1] * self.inputs

    def _chunks(self, weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
        from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  it is slow to import, and seldom needed

        packed = weights[name + self.CODES]
        count = -(-num_rows(packed.shape[1] * self.inputs) // OUTPUTS)
        for part in torch.split(packed, count):
            values = quants.dequantize(self._rows(part.cpu()).numpy(), GGMLQuantizationType[self.kind.name])
            yield torch.from_numpy(values).to(packed.device, dtype)


@cache
def _set_grid(kind: Format) -> None:
    """Give the native kernels the table of a type, if it has one."""
    codebook = codebook_of(kind)
    if codebook is not None:
        ggml.set_grid(kind, codebook)


def codebook_of(kind: Format) -> npt.NDArray[np.uint8] | None:
    """Return the codebook of a format, ``(entries, numbers)``, that of IQ1 times 8 plus 128; None if it has none."""
    if kind not in {form.kind for form in FORMATS}:
        return None
    from gguf import quants  # noqa: PLC0415  it is slow to import, and seldom needed

    own = getattr(quants, kind.name)
    own.init_grid()
    if own.grid is None:
        return None
    numbers = own.grid[0, 0]
    if kind in {Format.IQ1_S, Format.IQ1_M}:
        numbers = 8 * numbers + 128
    return np.ascontiguousarray(numbers, dtype=np.uint8)


FORMATS = (
    FileBlocks(Format.IQ2_XXS, 256, ((2, 2), (64, 4))),
    FileBlocks(Format.IQ2_XS, 256, ((2, 2), (64, 4), (8, 1))),
    FileBlocks(Format.IQ3_XXS, 256, ((2, 2), (96, 4))),
    FileBlocks(Format.IQ1_S, 256, ((2, 2), (32, 4), (16, 2))),
    FileBlocks(Format.IQ3_S, 256, ((2, 2), (64, 4), (8, 1), (32, 4), (4, 1))),
    FileBlocks(Format.IQ2_S, 256, ((2, 2), (64, 4), (16, 1))),
    FileBlocks(Format.IQ1_M, 256, ((32, 4), (24, 2))),
    FileBlocks(Format.TQ1_0, 256, ((52, 4), (2, 2))),
    FileBlocks(Format.TQ2_0, 256, ((64, 4), (2, 2))),
)
