"""Matrices that come with codes of 4 bits, as ``int4`` has them, without loss.

They come as ``(code - zero) * scale`` with scales of any floating-point dtype, in groups of any multiple of 8 inputs.
A scale of float16 and its centre ``(8 - zero) * scale`` are the sum of two bfloat16 numbers each; of float32 they are
kept as they are, but then the product is never fused.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .int4 import BLOCKS, GROUPS, MIDDLE, ORDER, REST, SCALE, native_block


def block_size() -> int:
    """Output channels of a block: what this processor multiplies by without dequantising."""
    return native_block() or BLOCKS[0]


def group_of(in_features: int, num_groups: int, group: int) -> int | None:
    """The group size in a slot of a matrix that comes with another one; None if there is none that divides it."""
    if num_groups == 1:
        return next(size for size in GROUPS if size <= max(GROUPS[-1], in_features))
    return next((size for size in GROUPS if group % size == 0), None)


def specs(
    out_features: int, in_features: int, group: int, scale_dtype: torch.dtype, has_zero: bool, has_order: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """By suffix, dtype and shape of each tensor of a matrix.

    Args:
        group: inputs, one of ``int4.GROUPS``.
        has_zero: whether the middle of the codes is another one than 8.
    """
    block, scales = block_size(), (-(-in_features // group), out_features, 2)
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "": (torch.uint8, (-(-out_features // block), in_features, block // 2)),
        SCALE: (torch.float32 if scale_dtype == torch.float32 else torch.bfloat16, scales),
    }
    if scale_dtype == torch.float16 or (scale_dtype == torch.bfloat16 and has_zero):
        found[REST] = (torch.bfloat16, scales)
    if has_order:
        found[ORDER] = (torch.int32, (in_features,))
    return found


def blocks(codes: torch.Tensor) -> torch.Tensor:
    """Codes uint8 ``(in, out)`` to ``(blocks, in, block / 2)``, filled up with zeros."""
    half = block_size() // 2
    low, high = F.pad(codes, (0, -codes.shape[1] % (2 * half))).view(len(codes), -1, 2, half).unbind(2)
    return (low | high << 4).transpose(0, 1).contiguous()


def scales(scale: torch.Tensor, zero: torch.Tensor | None, in_features: int, of: tuple[int, int]) -> torch.Tensor:
    """Scales and centres, float32 ``(groups, out, 2)``.

    Args:
        scale: ``(groups, out)``.
        zero: the code that means zero, of the same shape; 8 without it.
        of: the size of groups that they come in, and that of the slot, which divides it.
    """
    came, group = of
    numbers = torch.arange(-(-in_features // group)) * group // came
    factor = scale.float()
    centre = torch.zeros_like(factor) if zero is None else (MIDDLE - zero.float()) * factor
    return torch.stack((factor, centre), -1)[numbers]


def rest(values: torch.Tensor) -> torch.Tensor:
    """What bfloat16 leaves of float32 scales."""
    return values - values.bfloat16()
