"""Kernels that run a layer's experts on the slots of a device's arena.

The expert of choice ``token * k + place`` is ``experts[choice]``, -1 or at least ``num_experts`` for none, and lies in
``slots[expert]``; -1 means that it is not to be run now: it is still being loaded, or has been run. Two kernels run a
layer's few rows, a program for each choice or token and tile of outputs. Many rows are grouped by expert first
(``grouping.py``); then a program multiplies a tile of rows, and a third kernel adds a token's results. Either way
results are weighted and added in top-k order in float32, so that no bit depends on which experts were loaded first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.kernels.triton.activations import activate
from server.kernels.triton.weights import load_numbers, load_weights


@triton.jit
def slot_of(arena, slot_bytes, slots, num_experts, expert):
    """Return a pointer to the slot of an expert, and whether it is there."""
    is_expert = (expert >= 0) & (expert < num_experts)
    slot = tl.load(slots + tl.where(is_expert, expert, 0)).to(tl.int64)
    is_there = is_expert & (slot >= 0)
    return arena + tl.where(is_there, slot, 0) * slot_bytes, is_there


@triton.jit
def first_few(
    arena, slot_bytes, codebook, slots, num_experts, experts, x, weights, hidden, top_k, K, I,
    gate_data, gate_scales, gate_divisor, up_data, up_scales, up_divisor, up_shift, N, bias, alpha, limit,
    FORM: tl.constexpr, IS_TRANSPOSED: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
    SCALE_FORM: tl.constexpr, HAS_DIVISOR: tl.constexpr,
    HAS_GATE: tl.constexpr, STEP: tl.constexpr, ACTIVATION: tl.constexpr, BIAS_FORM: tl.constexpr,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, SCALES_INPUT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply one choice's row by gate and up, and activate: ``hidden[choice]``, a tile of its numbers.

    Args:
        K, I: inputs, and numbers of ``hidden``.
        N: outputs of the stored matrix, or of each of the two.
        STEP, up_shift: output ``i`` of the gate is row ``i * STEP``, and of up so many rows further.
        PARTS: 2 if gate and up are matrices of their own.
    """
    choice = tl.program_id(0).to(tl.int64)
    slot, is_there = slot_of(arena, slot_bytes, slots, num_experts, tl.load(experts + choice))
    if is_there:
        i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = i < I
        gate_row = tl.where(inside, i * STEP, N)
        up_row = tl.where(inside, i * STEP + up_shift, N)
        row = x + choice // top_k * K
        gate = tl.zeros((BLOCK_N,), tl.float32)
        up = tl.zeros((BLOCK_N,), tl.float32)
        factor = 1.0
        if SCALES_INPUT:
            factor = tl.load(weights + choice).to(tl.float32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            a = tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)
            if SCALES_INPUT:
                a = a * factor
            w = load_weights(
                slot, codebook, gate_data, gate_scales, gate_divisor, gate_row[:, None], k[None, :], N, K,
                FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
            )  # fmt: skip
            gate += tl.sum(w * a[None, :], axis=1)
            if HAS_GATE:
                w = load_weights(
                    slot, codebook, up_data, up_scales, up_divisor, up_row[:, None], k[None, :], N, K,
                    FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
                )  # fmt: skip
                up += tl.sum(w * a[None, :], axis=1)
        if HAS_BIAS:
            gate += load_numbers(slot + bias, gate_row, inside, BIAS_FORM)
            if HAS_GATE:
                shift = tl.where(PARTS == 2, I, 0)  # biases follow each other even if matrices do not
                up += load_numbers(slot + bias, up_row + shift, inside, BIAS_FORM)
        value = activate(gate, up, alpha, limit, ACTIVATION, HAS_GATE)
        tl.store(hidden + choice * I + i, value.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def second_few(
    arena, slot_bytes, codebook, slots, num_experts, experts, hidden, weights, output, top_k, N, K,
    data, scales, divisor, bias,
    FORM: tl.constexpr, IS_TRANSPOSED: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
    SCALE_FORM: tl.constexpr, HAS_DIVISOR: tl.constexpr, BIAS_FORM: tl.constexpr, HAS_BIAS: tl.constexpr,
    SCALES_INPUT: tl.constexpr, ADDS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply by down: ``output[token]``, a tile of the weighted sum of a token's choices.

    Args:
        ADDS: False to write each choice's product to ``output[choice]``, float32, unless its expert is not there.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    count = 1
    if ADDS:
        count = top_k
    for place in range(count):
        choice = row
        if ADDS:
            choice = row * top_k + place
        slot, is_there = slot_of(arena, slot_bytes, slots, num_experts, tl.load(experts + choice))
        if is_there:
            sums = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(0, K, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)
                a = tl.load(hidden + choice * K + k, mask=k < K, other=0.0).to(tl.float32)
                w = load_weights(
                    slot, codebook, data, scales, divisor, n[:, None], k[None, :], N, K,
                    FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
                )  # fmt: skip
                sums += tl.sum(w * a[None, :], axis=1)
            if HAS_BIAS:
                sums += load_numbers(slot + bias, n, n < N, BIAS_FORM)
            if ADDS:
                factor = 1.0
                if not SCALES_INPUT:
                    factor = tl.load(weights + choice).to(tl.float32)
                total += sums * factor
            else:
                tl.store(output + choice * N + n, sums, mask=n < N)
    if ADDS:
        tl.store(output + row * N + n, total.to(output.dtype.element_ty), mask=n < N)


@triton.jit
def add_choices(
    products, experts, num_experts, weights, output, top_k, N, SCALES_INPUT: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Add the weighted products of a token's choices: ``output[token]``, a tile of it."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for place in range(top_k):
        choice = row * top_k + place
        expert = tl.load(experts + choice)
        if (expert >= 0) & (expert < num_experts):
            factor = 1.0
            if not SCALES_INPUT:
                factor = tl.load(weights + choice).to(tl.float32)
            total += tl.load(products + choice * N + n, mask=n < N, other=0.0).to(tl.float32) * factor
    tl.store(output + row * N + n, total.to(output.dtype.element_ty), mask=n < N)


@triton.jit
def first_many(
    arena, slot_bytes, codebook, slots, num_experts, tile_experts, choices, x, weights, hidden, top_k, K, I,
    gate_data, gate_scales, gate_divisor, up_data, up_scales, up_divisor, up_shift, N, bias, alpha, limit,
    FORM: tl.constexpr, IS_TRANSPOSED: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
    SCALE_FORM: tl.constexpr, HAS_DIVISOR: tl.constexpr,
    HAS_GATE: tl.constexpr, STEP: tl.constexpr, ACTIVATION: tl.constexpr, BIAS_FORM: tl.constexpr,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, SCALES_INPUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The same as ``first_few`` for a tile of choices of one expert, ``choices[tile]``, -1 where it has none."""
    tile = tl.program_id(0).to(tl.int64)
    slot, is_there = slot_of(arena, slot_bytes, slots, num_experts, tl.load(tile_experts + tile))
    if is_there:
        choice = tl.load(choices + tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        is_row = choice >= 0
        token = tl.maximum(choice, 0) // top_k
        i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = i < I
        gate_row = tl.where(inside, i * STEP, N)
        up_row = tl.where(inside, i * STEP + up_shift, N)
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            a = tl.load(x + token[:, None] * K + k[None, :], mask=is_row[:, None] & (k[None, :] < K), other=0.0)
            if SCALES_INPUT:
                factor = tl.load(weights + tl.maximum(choice, 0), mask=is_row, other=0.0).to(tl.float32)
                a = (a.to(tl.float32) * factor[:, None]).to(x.dtype.element_ty)
            w = load_weights(
                slot, codebook, gate_data, gate_scales, gate_divisor, gate_row[None, :], k[:, None], N, K,
                FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
            )  # fmt: skip
            gate = tl.dot(a, w.to(x.dtype.element_ty), gate, input_precision="ieee")
            if HAS_GATE:
                w = load_weights(
                    slot, codebook, up_data, up_scales, up_divisor, up_row[None, :], k[:, None], N, K,
                    FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
                )  # fmt: skip
                up = tl.dot(a, w.to(x.dtype.element_ty), up, input_precision="ieee")
        if HAS_BIAS:
            gate += load_numbers(slot + bias, gate_row, inside, BIAS_FORM)[None, :]
            if HAS_GATE:
                shift = tl.where(PARTS == 2, I, 0)
                up += load_numbers(slot + bias, up_row + shift, inside, BIAS_FORM)[None, :]
        value = activate(gate, up, alpha, limit, ACTIVATION, HAS_GATE)
        place = hidden + tl.maximum(choice, 0)[:, None] * I + i[None, :]
        tl.store(place, value.to(hidden.dtype.element_ty), mask=is_row[:, None] & inside[None, :])


@triton.jit
def second_many(
    arena, slot_bytes, codebook, slots, num_experts, tile_experts, choices, hidden, products, N, K,
    data, scales, divisor, bias,
    FORM: tl.constexpr, IS_TRANSPOSED: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
    SCALE_FORM: tl.constexpr, HAS_DIVISOR: tl.constexpr, BIAS_FORM: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of choices of one expert by down: ``products[choice]``."""
    tile = tl.program_id(0).to(tl.int64)
    slot, is_there = slot_of(arena, slot_bytes, slots, num_experts, tl.load(tile_experts + tile))
    if is_there:
        choice = tl.load(choices + tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        is_row = choice >= 0
        row = tl.maximum(choice, 0)[:, None]
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            a = tl.load(hidden + row * K + k[None, :], mask=is_row[:, None] & (k[None, :] < K), other=0.0)
            w = load_weights(
                slot, codebook, data, scales, divisor, n[None, :], k[:, None], N, K,
                FORM, IS_TRANSPOSED, ROW_BLOCK, COLUMN_BLOCK, SCALE_FORM, HAS_DIVISOR,
            )  # fmt: skip
            sums = tl.dot(a, w.to(hidden.dtype.element_ty), sums, input_precision="ieee")
        if HAS_BIAS:
            sums += load_numbers(slot + bias, n, n < N, BIAS_FORM)[None, :]
        place = products + row * N + n[None, :]
        tl.store(place, sums.to(products.dtype.element_ty), mask=is_row[:, None] & (n[None, :] < N))
