"""The table of weight formats by tag: a row is a folder of ``formats``, with what torch and the native kernels need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from server.kernels.formats import (
    block_int4,
    block_int8,
    channel_int8,
    coded_bfloat16,
    dense,
    file_blocks,
    fp4,
    fp8,
    group_int4,
    group_int8,
    lookup4,
    superblocks,
)
from server.kernels.native.slot_format import Place, Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix


class QuantisedFormat(Protocol):
    """The interface of the modules in ``QUANTISED``."""

    @property
    def KINDS(self) -> tuple[Format, ...]:  # noqa: N802  a constant of the modules
        """The formats of the native kernels that its matrices are described as."""

    @property
    def TAG(self) -> Tag:  # noqa: N802
        """The tensor of its codes, by which a matrix in a slot is known to have this format."""

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None: ...


QUANTISED: tuple[QuantisedFormat, ...] = (
    block_int4,
    block_int8,
    channel_int8,
    coded_bfloat16,
    fp4,
    fp8,
    group_int4,
    group_int8,
    lookup4,
    *superblocks.FORMATS,
    *file_blocks.FORMATS,
)
BY_TAG: Mapping[Tag, QuantisedFormat] = {each.TAG: each for each in QUANTISED}


def format_of(tensors: Mapping[str, torch.Tensor] | Places, name: str) -> QuantisedFormat | None:
    """Return the format of a quantised matrix in a slot; None if there is none of this name."""
    for tag, form in BY_TAG.items():
        codes = tensors.get(name + tag.suffix)
        if codes is not None and codes.dtype == tag.dtype:
            return form
    return None


def describe_matrix(
    parameters: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]],
    name: str,
    is_transposed: bool,
    outputs: int,
    inputs: int,
) -> Matrix | None:
    """Describe the matrix of a parameter to the native kernels; None if they do not support its format.

    Args:
        parameters: dtype, shape and offset in bytes of each tensor of a slot, or its address.
        name: the parameter, or a part of it such as ``gate_up_proj.0``.
        is_transposed: whether an unquantised matrix is ``(in, out)``.
    """
    places, shape = {key: Place(*value) for key, value in parameters.items()}, (outputs, inputs)
    form = format_of(places, name)
    if form is None:
        return dense.describe(places, name, shape, is_transposed)
    return form.describe(places, name, shape)
