"""Decodes the types of GGUF files that are a scale times a code of 2 to 6 bits (``formats/superblocks``)."""

from __future__ import annotations

import triton
import triton.language as tl

Q4_0: tl.constexpr = tl.constexpr(11)
Q4_1: tl.constexpr = tl.constexpr(12)
Q5_0: tl.constexpr = tl.constexpr(13)
Q5_1: tl.constexpr = tl.constexpr(14)
IQ4_NL: tl.constexpr = tl.constexpr(15)
BLOCK_MXFP4: tl.constexpr = tl.constexpr(16)  # its weights are decoded in weights.py
Q2_K: tl.constexpr = tl.constexpr(17)
Q3_K: tl.constexpr = tl.constexpr(18)
Q4_K: tl.constexpr = tl.constexpr(19)
Q5_K: tl.constexpr = tl.constexpr(20)
Q6_K: tl.constexpr = tl.constexpr(21)
IQ4_XS: tl.constexpr = tl.constexpr(22)


@triton.jit
def decode_nonlinear(codes):
    """Return the number that each code of IQ4_NL and IQ4_XS stands for."""
    low = tl.where(
        codes < 4,
        tl.where(codes < 2, tl.where(codes == 0, -127, -104), tl.where(codes == 2, -83, -65)),
        tl.where(codes < 6, tl.where(codes == 4, -49, -35), tl.where(codes == 6, -22, -10)),
    )
    high = tl.where(
        codes < 12,
        tl.where(codes < 10, tl.where(codes == 8, 1, 13), tl.where(codes == 10, 25, 38)),
        tl.where(codes < 14, tl.where(codes == 12, 53, 69), tl.where(codes == 14, 89, 113)),
    )
    return tl.where(codes < 8, low, high).to(tl.float32)


@triton.jit
def load_codes(start, n, k, K, mask, BITS: tl.constexpr):
    """Load codes of so many bits, whose lower and upper bits are in vectors of their own."""
    quad = k % 32 // 4
    place = start + ((n // 16) * (K // 32) + k // 32) * (BITS * 64) + (n % 16) * 4 + k % 4
    if BITS >= 4:
        codes = (tl.load(place + quad // 2 * 64, mask=mask, other=0).to(tl.int32) >> (quad % 2 * 4)) & 15
    else:
        codes = (tl.load(place + quad // 4 * 64, mask=mask, other=0).to(tl.int32) >> (quad % 4 * 2)) & 3
    if (BITS == 3) | (BITS == 5):
        upper = tl.load(place + (BITS - 1) * 64, mask=mask, other=0).to(tl.int32)
        codes |= ((upper >> quad) & 1) << (BITS - 1)
    if BITS == 6:
        upper = tl.load(place + (4 + quad // 4) * 64, mask=mask, other=0).to(tl.int32)
        codes |= ((upper >> (quad % 4 * 2)) & 3) << 4
    return codes


@triton.jit
def load_steps(integers, group, mask, FORM: tl.constexpr):
    """Load the integers of a group: what ``d`` and ``dmin`` are multiplied by. Byte i is 16 i bytes further."""
    if (FORM == Q4_K) | (FORM == Q5_K):
        own, is_late = group % 4, group >= 4
        first = tl.load(integers + own * 16, mask=mask, other=0).to(tl.int32)
        second = tl.load(integers + (own + 4) * 16, mask=mask, other=0).to(tl.int32)
        rest = tl.load(integers + (own + 8) * 16, mask=mask & is_late, other=0).to(tl.int32)
        scale = tl.where(is_late, (rest & 15) | ((first >> 2) & 48), first & 63)
        low = tl.where(is_late, (rest >> 4) | ((second >> 2) & 48), second & 63)
    elif FORM == Q3_K:
        lower = tl.load(integers + group % 8 * 16, mask=mask, other=0).to(tl.int32) >> (group // 8 * 4)
        upper = tl.load(integers + (8 + group % 4) * 16, mask=mask, other=0).to(tl.int32) >> (group // 4 * 2)
        scale = ((lower & 15) | ((upper & 3) << 4)) - 32
        low = scale
    elif FORM == Q2_K:
        both = tl.load(integers + group * 16, mask=mask, other=0).to(tl.int32)
        scale, low = both & 15, both >> 4
    else:
        scale = tl.load((integers + group * 16).to(tl.pointer_type(tl.int8)), mask=mask, other=0).to(tl.int32)
        low = scale
    return scale.to(tl.float32), low.to(tl.float32)


@triton.jit
def load_superblocks(codes, records, n, k, K, mask, FORM: tl.constexpr):
    """Load weights of one of these types as float32.

    Args:
        codes, records: pointers to the matrix's codes, and to its records of scales.
    """
    BITS: tl.constexpr = (
        2 if FORM == Q2_K else 3 if FORM == Q3_K else 6 if FORM == Q6_K
        else 5 if (FORM == Q5_0) | (FORM == Q5_1) | (FORM == Q5_K) else 4
    )  # fmt: skip
    IS_LARGE: tl.constexpr = (FORM >= Q2_K) & (FORM <= IQ4_XS)  # 256 inputs share a record
    HAS_MIN: tl.constexpr = (FORM == Q4_1) | (FORM == Q5_1) | (FORM == Q2_K) | (FORM == Q4_K) | (FORM == Q5_K)
    GROUP: tl.constexpr = 16 if (FORM == Q2_K) | (FORM == Q3_K) | (FORM == Q6_K) else 32
    INPUTS: tl.constexpr = 256 if IS_LARGE else 32
    INTEGERS: tl.constexpr = (
        0 if not IS_LARGE else 8 if FORM == IQ4_XS else 16 if (FORM == Q2_K) | (FORM == Q6_K) else 12
    )
    HALVES: tl.constexpr = 64 if HAS_MIN else 32  # bytes of a record's float16 numbers
    value = load_codes(codes, n, k, K, mask, BITS)
    record = records + ((n // 16) * (K // INPUTS) + k // INPUTS) * (HALVES + 16 * INTEGERS)
    place = (record + n % 16 * 2).to(tl.pointer_type(tl.float16))
    scale = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HAS_MIN:
        low = tl.load(place + 16, mask=mask, other=0.0).to(tl.float32)
    if IS_LARGE:
        steps, mins = load_steps(record + HALVES + n % 16, k % INPUTS // GROUP, mask, FORM)
        scale = scale * steps
        if HAS_MIN:
            low = -(low * mins)
    if (FORM == IQ4_NL) | (FORM == IQ4_XS):
        number = decode_nonlinear(value)
    else:
        CENTRE: tl.constexpr = (
            8 if FORM == Q4_0 else 16 if FORM == Q5_0 else 4 if FORM == Q3_K else 32 if FORM == Q6_K else 0
        )
        number = (value - CENTRE).to(tl.float32)
    result = number * scale
    if HAS_MIN:
        result = result + low
    return result
