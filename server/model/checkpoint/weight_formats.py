"""The weight formats of packs: layouts of an expert's slot, and the encoding of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, get_args

import torch

from expert_store import ExpertLayout, ParameterSpec, Weights
from server.kernels.formats import block_int4, block_int8, channel_int8, group_int4
from server.kernels.formats.blocks import BlockFormat
from server.model.errors import ModelError

WeightFormat = Literal["bfloat16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
StoredFormat = WeightFormat | Literal["unchanged"]  # as the file has them, of GGUF
QuantisedWeights = Literal["int8", "int4"]
BLOCK_FORMATS: Mapping[QuantisedWeights, BlockFormat] = {"int8": block_int8, "int4": block_int4}
MATRIX_DIMENSIONS = 2

Specs = Callable[[str, int, int], list[tuple[str, torch.dtype, tuple[int, ...]]]]


def packed_layout(
    shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], weights: WeightFormat
) -> ExpertLayout:
    """Return the layout of an expert in a new pack.

    Args:
        shapes: the shapes of its parameters in the module.
        transposed: names of the module's matrices that are ``(in, out)``; quantised ones are always ``(out, in)``.
    """
    return _layout(shapes, transposed, None if weights == "bfloat16" else BLOCK_FORMATS[weights].specs)


def readable_layouts(
    shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], weights: WeightFormat
) -> list[ExpertLayout]:
    """Return the layouts that an expert of a pack may have: that of new packs, and those of older ones."""
    older: list[Specs] = []
    if weights == "int8":
        older = [channel_int8.specs]
    elif weights == "int4":
        older = [partial(group_int4.specs, block=block) for block in group_int4.BLOCKS]
    return [packed_layout(shapes, transposed, weights), *(_layout(shapes, transposed, specs) for specs in older)]


def format_of(
    layout: ExpertLayout, shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str]
) -> WeightFormat | None:
    """Return the format of new packs that gives an expert this layout; None if there is none."""
    return next((each for each in WEIGHT_FORMATS if packed_layout(shapes, transposed, each) == layout), None)


def encode(parameters: Weights, transposed: Collection[str], weights: WeightFormat) -> Weights:
    """Encode an expert's parameters for ``packed_layout``.

    Raises:
        ModelError: a matrix has a number that can't be quantised.
    """
    encoded: Weights = {}
    for name, value in parameters.items():
        if weights == "bfloat16" or value.ndim != MATRIX_DIMENSIONS:
            encoded[name] = value.to(torch.bfloat16)
        else:
            try:
                encoded |= quantise(name, value.mT if name in transposed else value, weights)
            except ModelError as error:
                raise ModelError(f"{error}; pack it with --weights bfloat16") from error
    return encoded


def quantise(name: str, matrix: torch.Tensor, weights: QuantisedWeights) -> Weights:
    """Quantise a matrix ``(out, in)`` to the tensors of its format.

    Raises:
        ModelError: the matrix has a number that can't be quantised.
    """
    block_format = BLOCK_FORMATS[weights]
    low, high = (extreme.item() for extreme in matrix.aminmax()) if matrix.numel() else (0.0, 0.0)
    most = max(-low, high)
    if not math.isfinite(most):  # NaN is both extremes of a matrix that has one
        raise ModelError(f"{name} holds NaN or infinity, which {weights} can't represent")
    if most > block_format.LARGEST_WEIGHT:
        largest = block_format.LARGEST_WEIGHT
        raise ModelError(f"{name} holds {most:.3g}, more than the largest number of {weights}, {largest:.3g}")
    return block_format.quantise(name, matrix)


def _layout(shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], specs: Specs | None) -> ExpertLayout:
    parameters: list[ParameterSpec] = []
    for name, shape in shapes.items():
        if specs is None or len(shape) != MATRIX_DIMENSIONS:
            parameters.append(ParameterSpec(name, torch.bfloat16, shape))
        else:
            out_in = reversed(shape) if name in transposed else shape
            parameters.extend(ParameterSpec(*spec) for spec in specs(name, *out_in))
    return ExpertLayout(tuple(parameters))
