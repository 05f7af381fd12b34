"""The formats that experts can be packed in: what of a parameter lies in a slot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, get_args

import torch

from expert_store import ExpertLayout, ParameterSpec, Weights
from server.kernels import int4, int8, q4, q8

from .errors import ModelError

WeightFormat = Literal["bfloat16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
MATRIX_DIMENSIONS = 2

Specs = Callable[[str, int, int], list[tuple[str, torch.dtype, tuple[int, ...]]]]


def packed_layout(
    shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], weights: WeightFormat
) -> ExpertLayout:
    """The layout of an expert that is packed now.

    Args:
        shapes: of its parameters in the module.
        transposed: which of the module's matrices are ``(in, out)``; quantised ones are always ``(out, in)``.
    """
    specs = {"bfloat16": None, "int8": q8.specs, "int4": q4.specs}[weights]
    return _layout(shapes, transposed, specs)


def readable_layouts(
    shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], weights: WeightFormat
) -> list[ExpertLayout]:
    """The layouts that an expert of a pack may have: today's, and those of older packs."""
    before: list[Specs] = []
    if weights == "int8":
        before = [int8.specs]
    elif weights == "int4":
        before = [partial(int4.specs, block=block) for block in int4.BLOCKS]
    return [packed_layout(shapes, transposed, weights), *(_layout(shapes, transposed, specs) for specs in before)]


def encode(parameters: Weights, transposed: Collection[str], weights: WeightFormat) -> Weights:
    """An expert's parameters as ``packed_layout`` has them.

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


def quantise(name: str, matrix: torch.Tensor, weights: Literal["int8", "int4"]) -> Weights:
    """The tensors of a matrix ``(out, in)``.

    Raises:
        ModelError: it has a number that can't be quantised.
    """
    largest = q8.LARGEST_WEIGHT if weights == "int8" else q4.LARGEST_WEIGHT
    if not matrix.isfinite().all():
        raise ModelError(f"{name} holds NaN or infinity, which {weights} can't")
    most = max(abs(extreme.item()) for extreme in matrix.aminmax()) if matrix.numel() else 0.0
    if most > largest:
        raise ModelError(f"{name} holds {most:.3g}, more than the {largest:.3g} that {weights} can")
    return q8.quantise(name, matrix) if weights == "int8" else q4.quantise(name, matrix)


def _layout(shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], specs: Specs | None) -> ExpertLayout:
    parameters: list[ParameterSpec] = []
    for name, shape in shapes.items():
        if specs is None or len(shape) != MATRIX_DIMENSIONS:
            parameters.append(ParameterSpec(name, torch.bfloat16, shape))
        else:
            out_in = reversed(shape) if name in transposed else shape
            parameters.extend(ParameterSpec(*spec) for spec in specs(name, *out_in))
    return ExpertLayout(tuple(parameters))
