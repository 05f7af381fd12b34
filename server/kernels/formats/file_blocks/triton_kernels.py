"""Decodes the types of GGUF files whose blocks keep their bytes (``formats/file_blocks``).

Numbers of a block lie beside those of 15 other outputs: the one that begins at byte ``at`` is at ``16 * at``, plus its
size times the output's place among them. The IQ types have codebooks, whose entries are 8 or 4 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

IQ2_XXS: tl.constexpr = tl.constexpr(23)
IQ2_XS: tl.constexpr = tl.constexpr(24)
IQ3_XXS: tl.constexpr = tl.constexpr(25)
IQ1_S: tl.constexpr = tl.constexpr(26)
IQ3_S: tl.constexpr = tl.constexpr(27)
IQ2_S: tl.constexpr = tl.constexpr(28)
IQ1_M: tl.constexpr = tl.constexpr(29)
TQ1_0: tl.constexpr = tl.constexpr(30)
TQ2_0: tl.constexpr = tl.constexpr(31)

INPUTS: tl.constexpr = tl.constexpr(256)  # of a block


@triton.jit
def load_byte(block, at, byte, mask, SIZE: tl.constexpr):
    """Load a byte of the numbers of so many bytes that begin at ``at``.

    Args:
        block: pointer to the first byte of 16 blocks, plus ``SIZE`` times the output's place.
    """
    return tl.load(block + at * 16 + byte // SIZE * (16 * SIZE) + byte % SIZE, mask=mask, other=0).to(tl.int32)


@triton.jit
def load_at(block, at, mask, DTYPE: tl.constexpr):
    """Load the number at ``at``."""
    return tl.load((block + at * 16).to(tl.pointer_type(DTYPE)), mask=mask, other=0)


@triton.jit
def sign_of(seven, bit):
    """Return one of eight signs of which seven are stored: the eighth makes the number of negative ones even."""
    odd = seven ^ (seven >> 4)
    odd = odd ^ (odd >> 2)
    odd = odd ^ (odd >> 1)
    return tl.where(bit == 7, odd, seven >> bit) & 1


@triton.jit
def load_ternary(blocks, lane, i, mask, FORM: tl.constexpr):
    """Load inputs of TQ1 and TQ2: -1, 0 or 1 times the block's scale."""
    group, quad = i // 32, i % 32 // 4
    if FORM == TQ2_0:  # of 32 bytes, all lowest two bits come first
        code = (load_byte(blocks + lane * 4, 0, group // 4 * 32 + i % 32, mask, 4) >> (group % 4 * 2)) & 3
        scale = load_at(blocks + lane * 2, 64, mask, tl.float16)
    else:  # five digits a byte, a fraction in base three; first all first digits of 32 bytes, then of 16, then of 4
        is_last = (group == 7) & (quad >= 4)
        word = tl.where(group < 5, quad, tl.where(is_last, 12, 8 + quad % 4))
        digit = tl.where(group < 5, group, tl.where(is_last, quad - 4, (group - 5) * 2 + quad // 4))
        power = tl.where(digit < 2, 1 + 2 * digit, tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81)))
        code = (((load_byte(blocks + lane * 4, 0, word * 4 + i % 4, mask, 4) * power) & 255) * 3) >> 8
        scale = load_at(blocks + lane * 2, 52, mask, tl.float16)
    return (code - 1).to(tl.float32) * scale.to(tl.float32)


@triton.jit
def load_ones(blocks, codebook, lane, i, mask, FORM: tl.constexpr):
    """Load inputs of IQ1, whose codebook has eight times a number plus 128; to this, 1 is added or subtracted."""
    group, eight = i // 32, i % 32 // 8
    words, halves = blocks + lane * 4, blocks + lane * 2
    if FORM == IQ1_S:
        high = load_at(halves, 34 + 2 * group, mask, tl.uint16).to(tl.int32)
        place = load_byte(words, 2, 4 * group + eight, mask, 4) | (((high >> (3 * eight)) & 7) << 8)
        is_less, step = high >> 15, high >> 12
        scale = load_at(halves, 0, mask, tl.float16)
    else:
        high = load_byte(halves, 32, 2 * group + eight // 2, mask, 2) >> (eight % 2 * 4)
        place = load_byte(words, 0, 4 * group + eight, mask, 4) | ((high & 7) << 8)
        is_less = (high >> 3) & 1
        step = load_at(halves, 48 + group // 2 * 2, mask, tl.uint16).to(tl.int32) >> (group % 2 * 6 + eight // 2 * 3)
        bits = load_at(halves, 48, mask, tl.uint16) >> 12  # the highest bits of four words are those of the scale
        bits |= (load_at(halves, 50, mask, tl.uint16) >> 8) & 0x00F0
        bits |= (load_at(halves, 52, mask, tl.uint16) >> 4) & 0x0F00
        bits |= load_at(halves, 54, mask, tl.uint16) & 0xF000
        scale = bits.to(tl.float16, bitcast=True)
    number = tl.load(codebook + place * 8 + i % 8, mask=mask, other=0).to(tl.int32) - 127 - 2 * is_less
    return number.to(tl.float32) * (scale.to(tl.float32) * (2 * (step & 7) + 1).to(tl.float32) * 0.125)


@triton.jit
def load_signed(blocks, codebook, lane, i, mask, FORM: tl.constexpr):
    """Load inputs of IQ2 and IQ3, which are numbers of a codebook, with signs that are stored beside them."""
    group, eight = i // 32, i % 32 // 8
    words, halves = blocks + lane * 4, blocks + lane * 2
    if (FORM == IQ3_XXS) | (FORM == IQ3_S):
        place = load_byte(words, 2, i // 4, mask, 4)
        if FORM == IQ3_S:
            place |= ((load_byte(blocks + lane, 66, group, mask, 1) >> (i % 32 // 4)) & 1) << 8
        at = place * 4 + i % 4
    else:
        if FORM == IQ2_XXS:
            place = load_byte(words, 2, 8 * group + eight, mask, 4)
        elif FORM == IQ2_XS:
            both = tl.load(
                (words + (2 + 8 * group + eight // 2 * 4) * 16 + eight % 2 * 2).to(tl.pointer_type(tl.uint16)),
                mask=mask, other=0,
            ).to(tl.int32)  # fmt: skip
            place = both & 511
        else:
            high = load_byte(blocks + lane, 66, group, mask, 1) >> (2 * eight)
            place = load_byte(words, 2, 4 * group + eight, mask, 4) | ((high & 3) << 8)
        at = place * 8 + i % 8
    if (FORM == IQ2_XXS) | (FORM == IQ3_XXS):
        AT: tl.constexpr = 6 if FORM == IQ2_XXS else 66
        EACH: tl.constexpr = 8 if FORM == IQ2_XXS else 4
        rest = load_at(words, AT + EACH * group, mask, tl.uint32)
        is_negative = sign_of((rest >> (7 * eight)) & 127, i % 8) != 0
        step = (rest >> 28).to(tl.int32)
    elif FORM == IQ2_XS:
        is_negative = sign_of(both >> 9, i % 8) != 0
        step = load_byte(blocks + lane, 66, group, mask, 1) >> (eight // 2 * 4)
    elif FORM == IQ2_S:
        is_negative = ((load_byte(words, 34, i // 8, mask, 4) >> (i % 8)) & 1) != 0
        step = load_byte(blocks + lane, 74, group, mask, 1) >> (eight // 2 * 4)
    else:
        is_negative = ((load_byte(words, 74, i // 8, mask, 4) >> (i % 8)) & 1) != 0
        step = load_byte(blocks + lane, 106, group // 2, mask, 1) >> (group % 2 * 4)
    FACTOR: tl.constexpr = 1.0 if FORM == IQ3_S else 0.25 if FORM == IQ3_XXS else 0.125
    scale = load_at(halves, 0, mask, tl.float16).to(tl.float32) * (2 * (step & 15) + 1).to(tl.float32) * FACTOR
    number = tl.load(codebook + at, mask=mask, other=0).to(tl.float32)
    return tl.where(is_negative, -number, number) * scale


@triton.jit
def load_file_blocks(codes, codebook, n, k, K, mask, FORM: tl.constexpr):
    """Load weights of one of these types as float32.

    Args:
        codes, codebook: pointers to the matrix, and to the type's codebook if it has one.
    """
    BYTES: tl.constexpr = (
        66 if (FORM == IQ2_XXS) | (FORM == TQ2_0) else 74 if FORM == IQ2_XS else 98 if FORM == IQ3_XXS
        else 50 if FORM == IQ1_S else 110 if FORM == IQ3_S else 82 if FORM == IQ2_S
        else 56 if FORM == IQ1_M else 54
    )  # fmt: skip
    blocks = codes + ((n // 16) * (K // INPUTS) + k // INPUTS) * (16 * BYTES)
    if (FORM == TQ1_0) | (FORM == TQ2_0):
        return load_ternary(blocks, n % 16, k % INPUTS, mask, FORM)
    if (FORM == IQ1_S) | (FORM == IQ1_M):
        return load_ones(blocks, codebook, n % 16, k % INPUTS, mask, FORM)
    return load_signed(blocks, codebook, n % 16, k % INPUTS, mask, FORM)
