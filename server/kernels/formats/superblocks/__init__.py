"""Types of GGUF files whose weights are a scale times a code of 2 to 6 bits, in blocks of 16 outputs.

The weight is ``d * scale * number - dmin * min``, or ``d * number + m`` where groups have scales of their own; the
number is the code less a centre, or the code's entry of a table. A group of 16 or 32 inputs has a scale, and 32 or 256
inputs share ``d`` and ``dmin``. In MXFP4 the scale of 32 inputs is an exponent of two instead (E8M0; OCP Microscaling
Formats, version 1.0). These are the numbers of the file in another order, so that a matrix takes as many bytes as
there, in IQ4_XS 1.5 % more:

- ``NAME_q4_k``, or another type's name, is uint8 ``(blocks, groups, vectors, 16, 4)``. For each 32 inputs of a block
  there are vectors of 16 outputs with four bytes each, and byte j of an output belongs to the inputs 4 i + j. A type of
  4 to 6 bits begins with four vectors of 4 bits (vector v has i = 2 v in the low halves and i = 2 v + 1 in the high
  ones), one of 2 or 3 bits with two vectors of 2 bits (vector v has i = 4 v + k in the bits 2 k). Vectors of the upper
  bits follow: one of 1 bit (bit i), or two of 2 bits.
- ``NAME_q4_k_scale`` is uint8 ``(blocks, records, bytes)``. A record holds ``d`` and then ``dmin`` or ``m`` of 16
  outputs, float16, and the integers of their groups, as many bytes as the file has for each, with byte k of all 16
  outputs side by side. In IQ4_XS, these are int8, one for each group; in MXFP4 a record is the 16 exponents.

If ``out`` is no multiple of 16, outputs of zeros follow, and ``NAME_q4_k_shape`` holds out and in (``blocks``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from server.kernels.formats import blocks, fp4
from server.kernels.formats.blocks import GROUP, OUTPUTS, Spec
from server.kernels.formats.fp8 import scales as read_scales
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # the numbers of IQ4 codes
QUADS = 8  # per group; of four inputs
HALF = 2  # bytes of a float16
SCALE = "_scale"


@dataclass(frozen=True)
class Superblocks:
    """A type, as a format of matrices in slots.

    Attributes:
        kind: its number in the native kernels.
        inputs: the inputs of a record.
        group: the inputs that share a scale.
        bits: the bits of a code.
        integers: the bytes of a record's integers, per output.
        centre: what is subtracted from a code.
        table: the numbers of codes, if they are no integers in a row.
        has_min: whether a record has ``dmin`` or ``m``.
        has_exponent: whether a record has exponents of two, and no float16 numbers.
    """

    kind: Format
    inputs: int
    group: int
    bits: int
    integers: int = 0
    centre: int = 0
    table: tuple[float, ...] | None = None
    has_min: bool = False
    has_exponent: bool = False

    OUTPUTS = OUTPUTS

    @property
    def KINDS(self) -> tuple[Format, ...]:  # noqa: N802  as in modules of formats
        return (self.kind,)

    @property
    def TAG(self) -> Tag:  # noqa: N802
        return Tag(self.CODES, torch.uint8)

    @property
    def CODES(self) -> str:  # noqa: N802
        return f"_{self.kind.name.lower()}"

    @property
    def SCALE(self) -> str:  # noqa: N802
        return self.CODES + SCALE

    @property
    def record_bytes(self) -> int:
        return OUTPUTS if self.has_exponent else OUTPUTS * (HALF * (1 + self.has_min) + self.integers)

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        """Name, dtype and shape of each tensor of a matrix, whose inputs are a multiple of ``inputs``."""
        count, groups = blocks.num_blocks(out_features), in_features // GROUP
        return [
            (name + self.CODES, torch.uint8, (count, groups, self.bits, OUTPUTS, 4)),
            (name + self.SCALE, torch.uint8, (count, in_features // self.inputs, self.record_bytes)),
            *blocks.shape_specs(name + self.CODES, out_features, in_features),
        ]

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)``, bit by bit that of the file's type."""
        shape = self._shape(weights, name)
        return blocks.join(self._chunks(weights, name, torch.float32), shape)

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
        return blocks.project(rows, self._chunks(weights, name, rows.dtype), self._shape(weights, name)[0], bias)

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        """Describe a matrix to the native kernels; None if its tensors are not those of the type."""
        codes, scales = places.get(name + self.CODES), places.get(name + self.SCALE)
        if codes is None or scales is None or shape[1] % self.inputs:
            return None
        wanted = {key: (dtype, size) for key, dtype, size in self.specs(name, *shape)}
        found = {name + self.CODES: (codes.dtype, codes.shape), name + self.SCALE: (scales.dtype, scales.shape)}
        if any(wanted[key] != (dtype, tuple(size)) for key, (dtype, size) in found.items()):
            return None
        return slot_format.matrix(self.kind, shape, codes, scales)

    def pack(self, name: str, codes: torch.Tensor, records: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the tensors of a matrix.

        Args:
            codes: uint8 ``(out, in)``.
            records: uint8 ``(out, records, bytes)`` each: the float16 numbers, and the integers if there are any; or
                the exponents.
        """
        out_features, in_features = codes.shape
        padding = -out_features % OUTPUTS
        quads = F.pad(codes, (0, 0, 0, padding)).view(-1, OUTPUTS, in_features // GROUP, QUADS, 4)
        quads = quads.permute(0, 2, 3, 1, 4)  # (blocks, groups, quads, 16, 4)
        vectors = [*_low_vectors(quads, self.bits), *_high_vectors(quads, self.bits)]
        numbers = []
        for part, size in zip(records, (1,) if self.has_exponent else (HALF, 1), strict=False):
            split = F.pad(part, (0, 0, 0, 0, 0, padding)).unflatten(2, (-1, size))  # type: ignore[no-untyped-call]
            split = split.unflatten(0, (-1, OUTPUTS))  # (blocks, 16, records, n, size)
            numbers.append(split.permute(0, 2, 3, 1, 4).flatten(2))
        tensors = {name + self.CODES: torch.stack(vectors, 2), name + self.SCALE: torch.cat(numbers, 2)}
        return tensors | blocks.shape_tensors(name + self.CODES, codes)

    def _shape(self, weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, int]:
        key = name + self.CODES
        if key + blocks.SHAPE in weights:
            return blocks.shape_of(weights, key, weights[key])
        return weights[key].shape[0] * OUTPUTS, weights[key].shape[1] * GROUP

    def _chunks(self, weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
        codes, scales = weights[name + self.CODES], weights[name + self.SCALE]
        count = blocks.blocks_per_chunk(codes)
        for start in range(0, len(codes), count):
            numbers = self._numbers(_codes(codes[start : start + count]))  # (blocks, 16, in)
            scale, low = self._scales(scales[start : start + count])  # (blocks, 16, groups) each
            values = numbers.unflatten(2, (-1, self.group)) * scale.unsqueeze(3)  # type: ignore[no-untyped-call]
            if low is not None:
                values += low.unsqueeze(3)
            yield values.flatten(2).flatten(0, 1).to(dtype)

    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            return codes.float() - self.centre
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        return table.index_select(0, codes.flatten().int()).view(codes.shape)

    def _scales(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scale of each group and what is added to its weights, ``(blocks, 16, groups)``."""
        if self.has_exponent:
            return read_scales(records).mT, None
        halves = OUTPUTS * HALF * (1 + self.has_min)
        floats = records[..., :halves].contiguous().view(torch.float16).float()
        floats = floats.unflatten(2, (-1, OUTPUTS)).permute(2, 0, 3, 1)  # type: ignore[no-untyped-call]
        scale, low = floats[0].unsqueeze(3), floats[1].unsqueeze(3) if self.has_min else None
        if self.integers:  # (blocks, 16, records, integers)
            integers = records[..., halves:].unflatten(2, (-1, OUTPUTS)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
            steps, mins = UNPACK[self.kind](integers)
            scale = scale * steps.float()
            low = None if low is None or mins is None else -(low * mins.float())
        return scale.flatten(2), None if low is None else low.flatten(2)


def _low_vectors(quads: torch.Tensor, bits: int) -> list[torch.Tensor]:
    """The vectors of the lowest 4 or 2 bits, ``(blocks, groups, 16, 4)`` each."""
    if bits >= 4:  # noqa: PLR2004
        return [quads[:, :, 2 * v] & 15 | (quads[:, :, 2 * v + 1] & 15) << 4 for v in range(QUADS // 2)]
    return _pairs(quads)


def _high_vectors(quads: torch.Tensor, bits: int) -> list[torch.Tensor]:
    """The vectors of the bits above."""
    if bits in {3, 5}:
        return [sum((quads[:, :, i] >> (bits - 1) & 1) << i for i in range(QUADS))]  # type: ignore[list-item]
    return _pairs(quads >> 4) if bits == 6 else []  # noqa: PLR2004


def _pairs(quads: torch.Tensor) -> list[torch.Tensor]:
    return [sum((quads[:, :, 4 * v + k] & 3) << 2 * k for k in range(4)) for v in range(2)]  # type: ignore[misc]


def _codes(vectors: torch.Tensor) -> torch.Tensor:
    """The codes ``(blocks, 16, in)`` of vectors ``(blocks, groups, bits, 16, 4)``."""
    bits = vectors.shape[2]
    if bits >= 4:  # noqa: PLR2004
        low = torch.stack((vectors[:, :, :4] & 15, vectors[:, :, :4] >> 4), 3).flatten(2, 3)
    else:
        low = _of_pairs(vectors[:, :, :2])
    if bits in {3, 5}:
        low |= torch.stack([vectors[:, :, -1] >> i & 1 for i in range(QUADS)], 2) << bits - 1
    elif bits == 6:  # noqa: PLR2004
        low |= _of_pairs(vectors[:, :, 4:]) << 4
    return low.permute(0, 3, 1, 2, 4).flatten(2)  # of (blocks, groups, quads, 16, 4)


def _of_pairs(vectors: torch.Tensor) -> torch.Tensor:
    return torch.stack([vectors >> 2 * k & 3 for k in range(4)], 3).flatten(2, 3)


Integers = tuple[torch.Tensor, torch.Tensor | None]


def _k_scales(packed: torch.Tensor) -> Integers:
    """Scales and minima of 6 bits each, of Q4_K and Q5_K; ``packed`` is ``(..., 12)``."""
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, rest & 15 | first >> 2 & 48), -1)
    return scales, torch.cat((second & 63, rest >> 4 | second >> 2 & 48), -1)


def _q3_scales(packed: torch.Tensor) -> Integers:
    """Scales of 6 bits, of Q3_K; ``packed`` is ``(..., 12)``."""
    low, high = packed[..., :8], packed[..., 8:]
    low = torch.cat((low & 15, low >> 4), -1)
    high = torch.cat([high >> 2 * k & 3 for k in range(4)], -1)
    return (low | high << 4).to(torch.int8) - 32, None


def _q2_scales(packed: torch.Tensor) -> Integers:
    """Scales and minima of 4 bits each, of Q2_K; ``packed`` is ``(..., 16)``."""
    return packed & 15, packed >> 4


def _bytes(packed: torch.Tensor) -> Integers:
    return packed.contiguous().view(torch.int8), None


UNPACK = {
    Format.Q2_K: _q2_scales,
    Format.Q3_K: _q3_scales,
    Format.Q4_K: _k_scales,
    Format.Q5_K: _k_scales,
    Format.Q6_K: _bytes,
    Format.IQ4_XS: _bytes,
}

Q4_0 = Superblocks(Format.Q4_0, 32, 32, 4, centre=8)
Q4_1 = Superblocks(Format.Q4_1, 32, 32, 4, has_min=True)
Q5_0 = Superblocks(Format.Q5_0, 32, 32, 5, centre=16)
Q5_1 = Superblocks(Format.Q5_1, 32, 32, 5, has_min=True)
IQ4_NL = Superblocks(Format.IQ4_NL, 32, 32, 4, table=NONLINEAR)
BLOCK_MXFP4 = Superblocks(Format.BLOCK_MXFP4, 32, 32, 4, table=fp4.VALUES, has_exponent=True)
Q2_K = Superblocks(Format.Q2_K, 256, 16, 2, integers=16, has_min=True)
Q3_K = Superblocks(Format.Q3_K, 256, 16, 3, integers=12, centre=4)
Q4_K = Superblocks(Format.Q4_K, 256, 32, 4, integers=12, has_min=True)
Q5_K = Superblocks(Format.Q5_K, 256, 32, 5, integers=12, has_min=True)
Q6_K = Superblocks(Format.Q6_K, 256, 16, 6, integers=16, centre=32)
IQ4_XS = Superblocks(Format.IQ4_XS, 256, 32, 4, integers=8, table=NONLINEAR)
FORMATS = (Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, BLOCK_MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS)
