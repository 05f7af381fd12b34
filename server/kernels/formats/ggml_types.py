"""The weight types of GGUF files by number, and how a matrix of each lies in a slot.

A matrix in a file is ``out`` rows of ``row_bytes(in)`` bytes. ``GGML_TYPES[number]`` knows its type, and turns these
bytes into the tensors of a slot, with nothing lost::

    kind = GGML_TYPES.get(number)                     # None: no type that holds weights
    kind.row_bytes(in_features)                       # ValueError: in_features is no multiple of kind.inputs
    kind.specs("up_proj", out_features, in_features)  # name, dtype and shape of each tensor of the slot
    kind.repack("up_proj", raw, in_features)          # these tensors of raw, uint8 (out, row bytes); in any thread
    kind.format                                       # the format that multiplies them; None for plain types

The tensors belong to a row of ``format_table``, so that ``describe_matrix`` and ``format_of`` know them, and a
``QuantisedLinear`` takes ``kind`` as its format. A matrix of a plain type is the one tensor ``NAME`` in its dtype.
``dequantise_rows`` is for what is not multiplied, such as embeddings, and ``quantise`` for experts that come in another
format, if ``can_round``. Rows may be permuted, cut and joined before they
are repacked, since each consists of blocks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from server.kernels.format_table import QuantisedFormat
from server.kernels.formats import block_int8, file_blocks, fp4, ggml_layouts, superblocks
from server.kernels.formats.blocks import Spec
from server.kernels.formats.file_blocks import FileBlocks
from server.kernels.formats.superblocks import Superblocks, rounding
from server.kernels.native import ggml, library
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Format, Matrix

Tensors = dict[str, torch.Tensor]
Q8_0, MXFP4, NVFP4 = "Q8_0", "MXFP4", "NVFP4"


@dataclass(frozen=True)
class GgmlType:
    """A type of matrices in files, which is also the format of a ``QuantisedLinear``.

    Attributes:
        name: as in ggml.
        inputs: the inputs of a block.
        block_bytes: the bytes of a block.
        dtype: of the numbers of a plain type.
        format: what multiplies its matrices in a slot; None for plain types.
    """

    name: str
    inputs: int
    block_bytes: int
    dtype: torch.dtype | None = None
    format: QuantisedFormat | None = None

    @property
    def OUTPUTS(self) -> int:  # noqa: N802  as in modules of formats
        """The outputs in an element of the first dimension of its tensors, except that of the shape."""
        in_blocks = self.format is block_int8 or isinstance(self.format, Superblocks | FileBlocks)
        return block_int8.OUTPUTS if in_blocks else 1

    def row_bytes(self, in_features: int) -> int:
        """The bytes of a row of a matrix.

        Raises:
            ValueError: a row does not consist of complete blocks.
        """
        if in_features % self.inputs:
            raise ValueError(f"rows of {in_features} numbers are no multiple of {self.inputs}, as {self.name} needs")
        return in_features // self.inputs * self.block_bytes

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        """Name, dtype and shape of each tensor of a matrix."""
        if self.dtype is not None:
            return [(name, self.dtype, (out_features, in_features))]
        if self.format is block_int8:
            return block_int8.specs(name, out_features, in_features)
        if isinstance(self.format, Superblocks | FileBlocks):
            return self.format.specs(name, out_features, in_features)
        group, dtype = (32, torch.uint8) if self.name == MXFP4 else (16, torch.float8_e4m3fn)
        shape = (out_features, in_features // group)
        return [(name + fp4.BLOCKS, torch.uint8, (*shape, group // 2)), (name + fp4.SCALES, dtype, shape)]

    def repack(
        self, name: str, raw: torch.Tensor, in_features: int, into: Mapping[str, torch.Tensor] | None = None
    ) -> Tensors:
        """Turn a matrix of a file into the tensors of ``specs``, by the native kernels if there are any.

        Args:
            raw: uint8 ``(out, row bytes)``. That of a plain type becomes a view.
            into: tensors to write, some or all by name, such as those of a slot; by default new ones.

        Raises:
            ValueError: ``raw`` or a tensor to write has another size than it must have.
        """
        specs = self.specs(name, len(raw), in_features)
        if raw.shape[1] != self.row_bytes(in_features):
            raise ValueError(f"{in_features} numbers of {self.name} are not {raw.shape[1]} bytes")
        for key, dtype, shape in specs:
            if into and key in into and (into[key].dtype, tuple(into[key].shape)) != (dtype, shape):
                raise ValueError(f"{key} must be {dtype} {list(shape)}")
        if into is None and self.dtype is not None:
            return {specs[0][0]: raw.view(specs[0][1])}
        if into is None:
            into = {key: torch.empty(shape, dtype=dtype) for key, dtype, shape in specs}
        if self.dtype is None and library.is_available():
            places, others = (specs[:1], specs[1:]) if isinstance(self.format, FileBlocks) else (specs[:2], specs[2:])
            ggml.repack(self._stored_as, raw, in_features, [into.get(key) for key, *_ in places])
            made = {key: torch.tensor((len(raw), in_features), dtype=dtype) for key, dtype, _ in others}
        else:
            made = self._repack(name, raw, in_features)
        for key, value in made.items():
            if key in into:
                into[key].copy_(value)
        return dict(into)

    @property
    def _stored_as(self) -> Format:
        if isinstance(self.format, Superblocks | FileBlocks):
            return self.format.kind
        return {Q8_0: Format.Q8, MXFP4: Format.MXFP4, NVFP4: Format.FP4}[self.name]

    def _repack(self, name: str, raw: torch.Tensor, in_features: int) -> Tensors:
        """The tensors of ``specs`` by torch."""
        if self.dtype is not None:
            (key, dtype, _), *_ = self.specs(name, len(raw), in_features)
            return {key: raw.view(dtype)}
        layout = raw.view(len(raw), in_features // self.inputs, self.block_bytes)
        if isinstance(self.format, FileBlocks):
            return self.format.pack(name, layout)
        if isinstance(self.format, Superblocks):
            return self.format.pack(name, *ggml_layouts.SUPERBLOCKS[self.format.kind](layout))
        made = {Q8_0: ggml_layouts.q8_0, MXFP4: ggml_layouts.mxfp4, NVFP4: ggml_layouts.nvfp4}[self.name](layout)
        return {name + suffix: tensor for suffix, tensor in made.items()}

    @property
    def can_round(self) -> bool:
        """True if ``quantise`` rounds matrices to the type."""
        return self.format is block_int8 or isinstance(self.format, Superblocks) or self.name == MXFP4

    def quantise(self, name: str, matrix: torch.Tensor) -> Tensors:
        """Round a matrix ``(out, in)`` to the tensors of ``specs``.

        Raises:
            ValueError: a weight is too large for the type.
        """
        if self.name == MXFP4:
            from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  it is slow to import, and seldom needed

            raw = quants.quantize(matrix.float().numpy(), GGMLQuantizationType.MXFP4)
            return self.repack(name, torch.from_numpy(raw), matrix.shape[1])
        if isinstance(self.format, Superblocks):
            return rounding.quantise(self.format, name, matrix)
        assert self.format is block_int8
        if matrix.abs().max() > block_int8.LARGEST_WEIGHT:
            raise ValueError(f"{name} holds weights that are too large for {self.name}")
        return block_int8.quantise(name, matrix)

    def dequantise_rows(self, raw: torch.Tensor, in_features: int) -> torch.Tensor:
        """The float32 matrix ``(out, in)`` of a file's rows, uint8 ``(out, row bytes)``."""
        tensors = self.repack("", raw, in_features)
        return tensors[""].float() if self.format is None else self.format.dequantise(tensors, "")

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)`` of a slot's tensors."""
        assert self.format is not None
        return self.format.dequantise(weights, name)

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
        assert self.format is not None
        return self.format.project(weights, name, rows, bias)

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        """Describe a matrix to the native kernels; None if they do not support it."""
        assert self.format is not None
        return self.format.describe(places, name, shape)


def _superblocks(form: Superblocks, block_bytes: int) -> GgmlType:
    return GgmlType(form.kind.name, form.inputs, block_bytes, format=form)


def _file_blocks(name: str) -> GgmlType:
    form = next(each for each in file_blocks.FORMATS if each.kind.name == name)
    return GgmlType(name, form.inputs, form.block_bytes, format=form)


GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4, dtype=torch.float32),
    1: GgmlType("F16", 1, 2, dtype=torch.float16),
    2: _superblocks(superblocks.Q4_0, 18),
    3: _superblocks(superblocks.Q4_1, 20),
    6: _superblocks(superblocks.Q5_0, 22),
    7: _superblocks(superblocks.Q5_1, 24),
    8: GgmlType(Q8_0, 32, 34, format=block_int8),
    10: _superblocks(superblocks.Q2_K, 84),
    11: _superblocks(superblocks.Q3_K, 110),
    12: _superblocks(superblocks.Q4_K, 144),
    13: _superblocks(superblocks.Q5_K, 176),
    14: _superblocks(superblocks.Q6_K, 210),
    16: _file_blocks("IQ2_XXS"),
    17: _file_blocks("IQ2_XS"),
    18: _file_blocks("IQ3_XXS"),
    19: _file_blocks("IQ1_S"),
    20: _superblocks(superblocks.IQ4_NL, 18),
    21: _file_blocks("IQ3_S"),
    22: _file_blocks("IQ2_S"),
    23: _superblocks(superblocks.IQ4_XS, 136),
    29: _file_blocks("IQ1_M"),
    30: GgmlType("BF16", 1, 2, dtype=torch.bfloat16),
    34: _file_blocks("TQ1_0"),
    35: _file_blocks("TQ2_0"),
    39: GgmlType(MXFP4, 32, 17, format=superblocks.BLOCK_MXFP4),
    40: GgmlType(NVFP4, 64, 36, format=fp4),
}

MXFP4_ROWS = GgmlType(MXFP4, 32, 17, format=fp4)  # experts of safetensors, row by row, to which variants are rounded
