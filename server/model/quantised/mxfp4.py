"""``quant_method: mxfp4``: the experts of gpt-oss.

``X_blocks`` uint8 ``(experts, out, groups, 16)`` and ``X_scales`` uint8 ``(experts, out, groups)``, groups of 32
inputs; the rest of the model is not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from expert_store import TensorSource
from server.kernels.formats import fp4
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix, expect, require

GROUP = 32


class Mxfp4:
    """The scheme of MXFP4, which has no settings."""

    dimensions = 3

    def name_of(self, codes: TensorSource) -> str | None:
        is_codes = codes.name.endswith(fp4.BLOCKS) and codes.dtype == torch.uint8
        return codes.name.removesuffix(fp4.BLOCKS) if is_codes else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        return {"scales": require(index, codes, codes.name.removesuffix(fp4.BLOCKS) + fp4.SCALES)}

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        return replace(fp4_matrix(codes, parts["scales"]), is_out_in=True)

    def specs(self, out_features: int, in_features: int) -> Specs:
        return fp4_specs(out_features, in_features, GROUP, torch.uint8)


def fp4_specs(out_features: int, in_features: int, group: int, scale_dtype: torch.dtype) -> Specs:
    groups = in_features // group
    return {
        fp4.BLOCKS: (torch.uint8, (out_features, groups, group // 2)),
        fp4.SCALES: (scale_dtype, (out_features, groups)),
    }


def packed_fp4_matrix(codes: TensorSource, scales: TensorSource, group: int) -> StoredMatrix:
    """Build the matrix of codes ``(out, in / 2)``, two per byte, and scales ``(out, in / group)``."""
    out_features, width = codes.shape
    num_groups = width * 2 // group
    expect(scales, (out_features, num_groups), codes)
    return fp4_matrix(replace(codes, shape=(out_features, num_groups, group // 2)), scales)


def fp4_matrix(codes: TensorSource, scales: TensorSource) -> StoredMatrix:
    """Build the matrix of blocks ``(out, groups, group / 2)`` and scales ``(out, groups)``."""
    out_features, groups, half = codes.shape
    expect(scales, (out_features, groups), codes)
    specs = fp4_specs(out_features, groups * half * 2, half * 2, scales.dtype)
    sources = {fp4.BLOCKS: codes, fp4.SCALES: scales}
    return StoredMatrix(
        (out_features, groups * half * 2),
        tuple(SlotTensor(suffix, *spec, (sources[suffix],)) for suffix, spec in specs.items()),
    )
