"""Repacks published 4-bit matrices to the format of ``group_int4``, without loss.

Published weights are ``(code - zero) * scale``, with scales of any floating-point dtype and groups of any multiple of
8 inputs. A float16 scale and its centre ``(8 - zero) * scale`` become sums of two bfloat16 numbers each. float32 scales
and centres are kept as they are, but then the product is never fused.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from server.kernels.formats.group_int4 import BLOCKS, GROUPS, MIDDLE, ORDER, REST, SCALE, native_block

LOW_HALVES = 0x0F0F0F0F  # mask of the low half of each byte of an int32


def block_size() -> int:
    """Output channels per block: the size that this processor's fused product takes."""
    return native_block() or BLOCKS[0]


def group_of(in_features: int, num_groups: int, group: int) -> int | None:
    """The group size in a slot for a published group size; None if no supported size divides it."""
    if num_groups == 1:
        return next(size for size in GROUPS if size <= max(GROUPS[-1], in_features))
    return next((size for size in GROUPS if group % size == 0), None)


def specs(
    out_features: int, in_features: int, group: int, scale_dtype: torch.dtype, *, has_zero: bool, has_order: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of each tensor of a matrix, by suffix.

    Args:
        group: inputs, one of ``group_int4.GROUPS``.
        has_zero: whether the code that means zero may be another one than 8.
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


def blocks_of_inputs(words: torch.Tensor) -> torch.Tensor:
    """Repack int32 ``(in / 8, out)`` with the codes of eight consecutive inputs, the first in the lowest bits.

    Returns:
        uint8 ``(blocks, in, block / 2)``, padded with zeros.
    """
    half = block_size() // 2
    pairs = _pairs(words, half)  # (in / 8, blocks, half, 2, 4)
    return pairs.permute(1, 0, 4, 3, 2).reshape(pairs.shape[1], -1, half)


def blocks_of_outputs(words: torch.Tensor) -> torch.Tensor:
    """Repack int32 ``(in, out / 8)`` with the codes of eight outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.

    Returns:
        uint8 ``(blocks, in, block / 2)``, padded with zeros.
    """
    half = block_size() // 2
    pairs = _pairs(words, half // 8)
    pairs = pairs.view(*pairs.shape[:4], 2, 2)
    # Output 4 * x + 2 * y + z: z is the byte's pair, x its place in it, y is 0 for codes from low bits, 1 from high.
    return pairs.permute(1, 0, 2, 5, 3, 4).reshape(pairs.shape[1], -1, half)


def _pairs(words: torch.Tensor, half: int) -> torch.Tensor:
    """Put the codes of the first and the second half of a block into one byte: ``(rows, blocks, half, 2, 4)``.

    The last two dimensions are the codes of a word: those from the low halves of its bytes, and from the high halves.
    """
    filled = F.pad(words, (0, -words.shape[1] % (2 * half)))
    low, high = filled.view(len(words), -1, 2, half).unbind(2)
    even, odd = low & LOW_HALVES | (high & LOW_HALVES) << 4, low >> 4 & LOW_HALVES | high & ~LOW_HALVES
    return torch.stack((even, odd), -1).view(torch.uint8).view(*even.shape, 2, 4)


def scales(scale: torch.Tensor, zero: torch.Tensor | None, in_features: int, of: tuple[int, int]) -> torch.Tensor:
    """Scales and centres, float32 ``(groups, out, 2)``.

    Args:
        scale: ``(groups, out)``.
        zero: the codes that mean zero, of the same shape; 8 without it.
        of: the published group size, and that in the slot, which divides it.
    """
    published, group = of
    numbers = torch.arange(-(-in_features // group)) * group // published
    factor = scale.float()
    centre = torch.zeros_like(factor) if zero is None else (MIDDLE - zero.float()) * factor
    return torch.stack((factor, centre), -1)[numbers]


def rest(values: torch.Tensor) -> torch.Tensor:
    """The rounding error of float32 scales in bfloat16."""
    return values - values.bfloat16()
