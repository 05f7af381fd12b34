"""Types of GGUF files that stay as they are in the file: IQ1, IQ2, IQ3 and the ternary TQ1 and TQ2.

``NAME_iq2_xs``, or another type's name, is uint8 ``(out, row bytes)``. The package ``gguf``, which has the tables of
these types, dequantises some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from server.kernels.formats.blocks import Spec
from server.kernels.formats.chunked import num_rows, project_chunks
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Format, Matrix


@dataclass(frozen=True)
class FileBlocks:
    """A type, as a format of matrices in slots.

    Attributes:
        name: as ``gguf`` has it.
        inputs: the inputs of a block.
        block_bytes: the bytes of a block.
    """

    name: str
    inputs: int
    block_bytes: int

    OUTPUTS = 1  # per element of the first dimension

    @property
    def KINDS(self) -> tuple[Format, ...]:  # noqa: N802  as in modules of formats
        return ()

    @property
    def CODES(self) -> str:  # noqa: N802
        return f"_{self.name.lower()}"

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

    def describe(self, _places: Places, _name: str, _shape: Shape) -> Matrix | None:
        """Return None, since the native kernels do not support the type."""
        return None

    def _chunks(self, weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
        from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  it is slow to import, and seldom needed

        raw = weights[name + self.CODES]
        for rows in torch.split(raw, num_rows(raw.shape[1] // self.block_bytes * self.inputs)):
            values = quants.dequantize(rows.cpu().numpy(), GGMLQuantizationType[self.name])
            yield torch.from_numpy(values).to(raw.device, dtype)


FORMATS = tuple(
    FileBlocks(name, 256, size)
    for name, size in (
        ("IQ2_XXS", 66),
        ("IQ2_XS", 74),
        ("IQ3_XXS", 98),
        ("IQ1_S", 50),
        ("IQ3_S", 110),
        ("IQ2_S", 82),
        ("IQ1_M", 56),
        ("TQ1_0", 54),
        ("TQ2_0", 66),
    )
)
