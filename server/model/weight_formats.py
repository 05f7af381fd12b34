"""The formats that experts can be packed in: what of a parameter lies in a slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch

from expert_store import ExpertLayout, ParameterSpec, Weights
from server.kernels import int4, int8

from .errors import ModelError

WeightFormat = Literal["bfloat16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
MATRIX_DIMENSIONS = 2


def packed_layout(
    shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str], weights: WeightFormat, block: int
) -> ExpertLayout:
    """The layout of an expert.

    Args:
        shapes: of its parameters in the module.
        transposed: which of the module's matrices are ``(in, out)``; quantised ones are always ``(out, in)``.
        block: of 4-bit matrices (``server.kernels.int4``).
    """
    specs: list[ParameterSpec] = []
    for name, shape in shapes.items():
        out_in = (shape[-1], shape[0]) if name in transposed else (shape[0], shape[-1])
        if weights == "bfloat16" or len(shape) != MATRIX_DIMENSIONS:
            specs.append(ParameterSpec(name, torch.bfloat16, shape))
        elif weights == "int8":
            specs.extend(ParameterSpec(*spec) for spec in int8.specs(name, *out_in))
        else:
            specs.extend(ParameterSpec(*spec) for spec in int4.specs(name, *out_in, block))
    return ExpertLayout(tuple(specs))


def encode(parameters: Weights, transposed: Collection[str], weights: WeightFormat, block: int) -> Weights:
    """An expert's parameters as ``packed_layout`` has them.

    Raises:
        ModelError: a matrix has a number that can't be quantised.
    """
    encoded: Weights = {}
    for name, value in parameters.items():
        if weights == "bfloat16" or value.ndim != MATRIX_DIMENSIONS:
            encoded[name] = value.to(torch.bfloat16)
            continue
        matrix = (value.mT if name in transposed else value).float()
        if not matrix.isfinite().all():
            raise ModelError(f"{name} holds NaN or infinity, which {weights} can't; pack it with --weights bfloat16")
        encoded |= int8.quantise(name, matrix) if weights == "int8" else int4.quantise(name, matrix, block)
    return encoded
