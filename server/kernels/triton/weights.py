"""Decodes tiles of weights from a slot, in every format that the kernels know (``forms.py``).

An address is a pointer to the slot plus an offset of 64 bits; within an expert's matrix 32 bits are enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.kernels.formats.file_blocks.triton_kernels import IQ2_XXS, TQ2_0, load_file_blocks
from server.kernels.formats.superblocks.triton_kernels import BLOCK_MXFP4, IQ4_XS, Q4_0, load_codes, load_superblocks

FLOAT32: tl.constexpr = tl.constexpr(0)
BFLOAT16: tl.constexpr = tl.constexpr(1)
FLOAT16: tl.constexpr = tl.constexpr(2)
Q8: tl.constexpr = tl.constexpr(3)
Q4: tl.constexpr = tl.constexpr(4)
MXFP4: tl.constexpr = tl.constexpr(5)
FP8: tl.constexpr = tl.constexpr(6)
E8M0: tl.constexpr = tl.constexpr(7)
FP4: tl.constexpr = tl.constexpr(10)

GROUP: tl.constexpr = tl.constexpr(32)  # inputs that share a scale in Q8, Q4 and both kinds of MXFP4
BLOCK: tl.constexpr = tl.constexpr(16)  # outputs of a block of Q8, Q4 and BLOCK_MXFP4


@triton.jit
def load_numbers(start, index, mask, FORM: tl.constexpr):
    """Load numbers of a format, counted from an address, as float32; 0 where they are masked."""
    if FORM == FLOAT32:
        return tl.load(start.to(tl.pointer_type(tl.float32)) + index, mask=mask, other=0.0)
    elif FORM == BFLOAT16:
        bits = tl.load(start.to(tl.pointer_type(tl.uint16)) + index, mask=mask, other=0).to(tl.uint32)
        return (bits << 16).to(tl.float32, bitcast=True)
    elif FORM == FLOAT16:
        return tl.load(start.to(tl.pointer_type(tl.float16)) + index, mask=mask, other=0.0).to(tl.float32)
    elif FORM == E8M0:  # an exponent of two; the least is no normal number
        exponent = tl.load(start + index, mask=mask, other=0).to(tl.uint32)
        power = tl.where(exponent == 0, 0x00400000, exponent << 23).to(tl.uint32).to(tl.float32, bitcast=True)
        return tl.where(mask, power, 0.0)
    else:
        return decode_e4m3(tl.load(start + index, mask=mask, other=0))


@triton.jit
def decode_e4m3(codes):
    """Decode bytes of float8 (E4M3): their bits are moved to a float32's, whose exponent has another bias."""
    wide = codes.to(tl.uint32)
    bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120


@triton.jit
def decode_e2m1(codes):
    """Decode 4-bit numbers (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""
    exponent, fraction = (codes >> 1) & 3, (codes & 1).to(tl.float32)
    power = tl.where(exponent == 0, 1.0, (1 << tl.maximum(exponent - 1, 0)).to(tl.float32))
    size = tl.where(exponent == 0, 0.5 * fraction, power * (1.0 + 0.5 * fraction))
    return tl.where(codes >= 8, -size, size)


@triton.jit
def decode_table(codes):
    """Return the number that each code of Q4 stands for (``formats/block_int4``)."""
    low = tl.where(
        codes < 4,
        tl.where(codes < 2, tl.where(codes == 0, -51, -37), tl.where(codes == 2, -26, -17)),
        tl.where(codes < 6, tl.where(codes == 4, -9, -2), tl.where(codes == 6, 5, 11)),
    )
    high = tl.where(
        codes < 12,
        tl.where(codes < 10, tl.where(codes == 8, 17, 23), tl.where(codes == 10, 29, 36)),
        tl.where(codes < 14, tl.where(codes == 12, 43, 51), tl.where(codes == 14, 60, 74)),
    )
    return tl.where(codes < 8, low, high).to(tl.float32)


@triton.jit
def load_mxfp4(codes, scales, n, k, K, mask, FORM: tl.constexpr):
    """Load weights of MXFP4, stored row by row or in blocks of outputs."""
    if FORM == MXFP4:
        place, at = n * (K // 2) + k // 2, n * (K // GROUP) + k // GROUP
        code = (tl.load(codes + place, mask=mask, other=0).to(tl.int32) >> (k % 2 * 4)) & 15
    else:
        at = ((n // BLOCK) * (K // GROUP) + k // GROUP) * BLOCK + n % BLOCK
        code = load_codes(codes, n, k, K, mask, 4)
    return decode_e2m1(code) * load_numbers(scales, at, mask, E8M0)


@triton.jit
def load_weights(
    slot,  # pointers to the slot's first byte, and to the codebook of a format that has one
    codebook,
    data,  # offsets in the slot, of codes or numbers, scales, and a divisor of the scales
    scales,
    divisor,
    n,  # outputs and inputs of the tile, shaped so that they broadcast
    k,
    N,  # outputs and inputs of the matrix
    K,
    FORM: tl.constexpr,
    IS_TRANSPOSED: tl.constexpr,
    ROW_BLOCK: tl.constexpr,  # outputs and inputs that share a scale, in FP8 and FP4
    COLUMN_BLOCK: tl.constexpr,
    SCALE_FORM: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
):
    """Load a tile of a matrix as float32; 0 beyond its outputs and inputs."""
    mask = (n < N) & (k < K)
    codes = slot + data
    if (FORM == FLOAT32) | (FORM == BFLOAT16) | (FORM == FLOAT16):
        if IS_TRANSPOSED:
            return load_numbers(codes, k * N + n, mask, FORM)
        else:
            return load_numbers(codes, n * K + k, mask, FORM)
    elif FORM == Q8:
        groups = (K + GROUP - 1) // GROUP
        place = ((n // BLOCK) * (groups * 8) + k // 4) * 64 + (n % BLOCK) * 4 + k % 4
        value = tl.load((codes + place).to(tl.pointer_type(tl.int8)), mask=mask, other=0).to(tl.float32)
        at = ((n // BLOCK) * groups + k // GROUP) * BLOCK + n % BLOCK
        return value * load_numbers(slot + scales, at, mask, FLOAT16)
    elif FORM == Q4:
        groups = (K + GROUP - 1) // GROUP
        place = ((n // BLOCK) * (groups * 4) + k // 8) * 64 + (n % BLOCK) * 4 + k % 4
        code = (tl.load(codes + place, mask=mask, other=0).to(tl.int32) >> ((k % 8) // 4 * 4)) & 15
        at = ((n // BLOCK) * groups + k // GROUP) * BLOCK + n % BLOCK
        word = tl.load((slot + scales).to(tl.pointer_type(tl.uint16)) + at, mask=mask, other=0)
        scale = (word & 0xFFE0).to(tl.float16, bitcast=True).to(tl.float32) * 0.015625  # a 64th
        return (decode_table(code) - (word & 31).to(tl.float32)) * scale
    elif (FORM == MXFP4) | (FORM == BLOCK_MXFP4):
        return load_mxfp4(codes, slot + scales, n, k, K, mask, FORM)
    elif (FORM >= Q4_0) & (FORM <= IQ4_XS):
        return load_superblocks(codes, slot + scales, n, k, K, mask, FORM)
    elif (FORM >= IQ2_XXS) & (FORM <= TQ2_0):
        return load_file_blocks(codes, codebook, n, k, K, mask, FORM)
    else:
        at = (n // ROW_BLOCK) * ((K + COLUMN_BLOCK - 1) // COLUMN_BLOCK) + k // COLUMN_BLOCK
        scale = load_numbers(slot + scales, at, mask, SCALE_FORM)
        if HAS_DIVISOR:
            scale = scale / tl.load((slot + divisor).to(tl.pointer_type(tl.float32)))
        if FORM == FP8:
            return decode_e4m3(tl.load(codes + n * K + k, mask=mask, other=0)) * scale
        else:
            code = (tl.load(codes + n * (K // 2) + k // 2, mask=mask, other=0).to(tl.int32) >> (k % 2 * 4)) & 15
            return decode_e2m1(code) * scale
