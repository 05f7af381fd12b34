"""The arguments by which a layer's experts are described to the kernels, and the sizes of their tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.matrices import Format, Matrix

PLAIN = {Format.FLOAT32, Format.BFLOAT16, Format.FLOAT16}
SUPERBLOCKS = {form for form in Format if Format.Q4_0 <= form <= Format.IQ4_XS}
FILE_BLOCKS = {form for form in Format if Format.IQ2_XXS <= form <= Format.TQ2_0}
FORMATS = PLAIN | SUPERBLOCKS | FILE_BLOCKS | {Format.Q8, Format.Q4, Format.MXFP4, Format.FP8, Format.FP4}


@dataclass(frozen=True)
class Tiles:
    """Sizes of the kernels' tiles, powers of two. None was ever timed: they are the largest that spill no register."""

    few_outputs: int = 16
    few_inputs: int = 128
    many_rows: int = 32
    first_outputs: int = 32  # of gate and of up, where there are many rows
    second_outputs: int = 64
    many_inputs: int = 64

    @classmethod
    def of(cls, launch: ExpertLaunch) -> Tiles:
        """Return the tiles of a layer; decoding takes registers, and so do matrices that are stored inputs first."""
        forms = {launch.first_options["FORM"], launch.second_options["FORM"]}
        if FILE_BLOCKS & forms:
            return cls(few_inputs=32, many_rows=16, first_outputs=16, second_outputs=32, many_inputs=32)
        if SUPERBLOCKS & forms:
            return cls(few_inputs=64, many_rows=16, first_outputs=16, second_outputs=32, many_inputs=32)
        if Format.FP8 in forms:  # sm_80 has no instructions for it
            return cls(few_inputs=64, many_rows=16, first_outputs=16, many_inputs=32)
        if launch.second_options["FORM"] not in PLAIN:
            return cls(few_inputs=64, first_outputs=16, many_inputs=32)
        return cls(few_inputs=64) if launch.first_options["IS_TRANSPOSED"] else cls()


@dataclass(frozen=True)
class Product:
    """A matrix in the slots, as arguments of a kernel.

    Args:
        offsets: of codes, scales and divisor in a slot.
        options: constants that the kernel is compiled with.
    """

    offsets: tuple[int, int, int]
    options: dict[str, Any]


def unsupported(shape: ExpertShape) -> str | None:
    """Return why the kernels can't run experts of a shape; None if they can."""
    matrices = [shape.second, *(shape.first[part] for part in range(shape.num_parts))]
    if any(matrix.format not in FORMATS for matrix in matrices):
        return "the format of its weights has no Triton kernel"
    if any(matrix.order is not None for matrix in matrices):
        return "the inputs of its weights are in another order"
    options = [product(matrix).options for matrix in matrices[1:]]
    if any(each != options[0] for each in options):
        return "gate and up have different formats"
    return None


def product(matrix: Matrix) -> Product:
    return Product(
        (matrix.data or 0, matrix.scales or 0, matrix.divisor or 0),
        {
            "FORM": int(matrix.format),
            "IS_TRANSPOSED": bool(matrix.is_transposed),
            "ROW_BLOCK": int(matrix.row_block) or 1,
            "COLUMN_BLOCK": int(matrix.column_block) or 1,
            "SCALE_FORM": int(matrix.scale_format),
            "HAS_DIVISOR": matrix.divisor is not None,
        },
    )


@dataclass(frozen=True)
class ExpertLaunch:
    """The arguments that stay the same in every launch for a layer.

    Args:
        hidden: numbers of a row, and of a result.
        intermediate: numbers after the activation.
        first: arguments of gate and up after the sizes, and their constants.
        second: the same of down.
    """

    hidden: int
    intermediate: int
    first: tuple[Any, ...]
    first_options: dict[str, Any]
    second: tuple[Any, ...]
    second_options: dict[str, Any]

    @classmethod
    def of(cls, shape: ExpertShape, *, scales_input: bool) -> ExpertLaunch:
        gate, has_parts = shape.gate, shape.num_parts > 1
        first, up, second = product(shape.first[0]), product(shape.first[int(has_parts)]), product(shape.second)
        intermediate = int(shape.second.inputs)
        is_interleaved = bool(gate.is_interleaved) and not has_parts
        shift = 0 if has_parts or not gate.has_gate else 1 if is_interleaved else intermediate
        bias = {"BIAS_FORM": int(shape.bias_format), "SCALES_INPUT": scales_input}
        return cls(
            hidden=int(shape.first[0].inputs),
            intermediate=intermediate,
            first=(
                *first.offsets,
                *up.offsets,
                shift,
                int(shape.first[0].outputs),
                max(0, shape.first_bias),
                gate.alpha,
                gate.limit,
            ),
            first_options={
                **first.options,
                **bias,
                "HAS_GATE": bool(gate.has_gate),
                "STEP": 2 if is_interleaved else 1,
                "ACTIVATION": int(gate.activation),
                "HAS_BIAS": shape.first_bias >= 0,
                "PARTS": int(shape.num_parts),
            },
            second=(*second.offsets, max(0, shape.second_bias)),
            second_options={**second.options, **bias, "HAS_BIAS": shape.second_bias >= 0},
        )
