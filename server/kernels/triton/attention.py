"""Kernels over the paged KV cache: writing a step's keys and values, and attention of sequences' single new tokens.

Key ``position`` of a row lies in slot ``table[row, position // block - first // block] * block + position % block``. A
row's keys are divided into partitions of a fixed size, counted from the sequence's beginning, so that no bit of its
result depends on other rows. A program reads the keys of one partition once, for all query heads of one key head. Where
a row has several partitions, a second kernel merges them by their maxima and sums (Dao et al. 2023, "Flash-Decoding").
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_tokens(
    slots, key, value, keys, values, key_head, key_token, value_head, value_token, cache_head, cache_row,
    key_dim, value_dim, IS_LATENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one token's key and value of one head to its slot; other arguments are strides in numbers."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    at = head * cache_head + slot * cache_row
    d = tl.arange(0, BLOCK)
    new = tl.load(key + head * key_head + token * key_token + d, mask=d < key_dim, other=0.0)
    tl.store(keys + at + d, new, mask=d < key_dim)
    if not IS_LATENT:
        new = tl.load(value + head * value_head + token * value_token + d, mask=d < value_dim, other=0.0)
        tl.store(values + at + d, new, mask=d < value_dim)


@triton.jit
def row_of(rows, row, PARTITION: tl.constexpr):
    """Return a row's token in the step, its first key, the end of its keys, and its first partition."""
    token = tl.load(rows + row * 3).to(tl.int64)
    first = tl.load(rows + row * 3 + 1)
    return token, first, tl.load(rows + row * 3 + 2), first // PARTITION


@triton.jit
def normalise(sums, most, total, sinks, head, is_head, HAS_SINKS: tl.constexpr):
    """Divide weighted sums of values ``(heads, dim)`` by the sums of weights, a sink's weight included."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_head, other=0.0).to(tl.float32)
        both = tl.maximum(most, sink)
        factor = tl.exp(most - both)
        return sums * (factor / (total * factor + tl.exp(sink - both)))[:, None]
    return sums / total[:, None]


@triton.jit
def attend_partition(
    rows, table, query, keys, values, sinks, output, parts, extremes, table_width, num_partitions,
    query_head, query_token, cache_head, cache_row, heads, group, key_dim, value_dim, scaling, softcap,
    IS_LATENT: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IS_SPLIT: tl.constexpr,
    BLOCK: tl.constexpr, PARTITION: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    REST_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend to the keys of one partition of a row, for a tile of the query heads of one key head.

    Args:
        query_head, query_token, cache_head, cache_row: strides in numbers.
        group: query heads of a key head.
        IS_SPLIT: write sums to ``parts (rows, heads, partitions, value_dim)``, and maxima and sums of weights to
            ``extremes (rows, heads, partitions, 2)``; else ``output (tokens, heads, value_dim)``.
        BLOCK: tokens of a block of the cache.
        BLOCK_D, REST_D: a key's numbers are read in two parts; the second is 0 if there is none.
    """
    row = tl.program_id(0).to(tl.int64)
    tiles = (group + BLOCK_H - 1) // BLOCK_H
    kv_head = (tl.program_id(1) // tiles).to(tl.int64)
    in_group = tl.program_id(1) % tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = in_group < group
    head = kv_head * group + in_group
    token, first, end, first_partition = row_of(rows, row, PARTITION)
    begin = (first_partition + tl.program_id(2)) * PARTITION
    if begin < end:
        d = tl.arange(0, BLOCK_D)
        v = tl.arange(0, BLOCK_V)
        start = query + token * query_token + head[:, None] * query_head
        q = tl.load(start + d[None, :], mask=is_head[:, None] & (d[None, :] < key_dim), other=0.0)
        if REST_D > 0:
            rest = BLOCK_D + tl.arange(0, REST_D)
            q_rest = tl.load(start + rest[None, :], mask=is_head[:, None] & (rest[None, :] < key_dim), other=0.0)
        most = tl.full((BLOCK_H,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        sums = tl.zeros((BLOCK_H, BLOCK_V), tl.float32)
        first_block = first // BLOCK
        for tile in range(tl.maximum(begin, first // BLOCK_N * BLOCK_N), tl.minimum(begin + PARTITION, end), BLOCK_N):
            position = tile + tl.arange(0, BLOCK_N)
            is_seen = (position >= first) & (position < end)
            place = table + row * table_width + tl.where(is_seen, position // BLOCK - first_block, 0)
            slot = tl.load(place).to(tl.int64) * BLOCK + position % BLOCK
            at = kv_head * cache_head + slot * cache_row
            k = tl.load(keys + at[None, :] + d[:, None], mask=is_seen[None, :] & (d[:, None] < key_dim), other=0.0)
            scores = tl.dot(q, k, input_precision="ieee")
            if REST_D > 0:
                is_there = is_seen[None, :] & (rest[:, None] < key_dim)
                k_rest = tl.load(keys + at[None, :] + rest[:, None], mask=is_there, other=0.0)
                scores = tl.dot(q_rest, k_rest, scores, input_precision="ieee")
            scores = scores * scaling
            if HAS_SOFTCAP:
                scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # tanh
            scores = tl.where(is_seen[None, :], scores, float("-inf"))
            higher = tl.maximum(most, tl.max(scores, axis=1))
            weights = tl.exp(scores - higher[:, None])
            factor = tl.exp(most - higher)
            total = total * factor + tl.sum(weights, axis=1)
            if IS_LATENT and BLOCK_D == BLOCK_V:
                value = tl.trans(k)  # the numbers that are read already, if the rest is no part of the value
            else:
                is_there = is_seen[:, None] & (v[None, :] < value_dim)
                value = tl.load(values + at[:, None] + v[None, :], mask=is_there, other=0.0)
            sums = tl.dot(weights.to(value.dtype), value, sums * factor[:, None], input_precision="ieee")
            most = higher
        is_value = is_head[:, None] & (v[None, :] < value_dim)
        if IS_SPLIT:
            part = (row * heads + head) * num_partitions + tl.program_id(2)
            tl.store(parts + part[:, None] * value_dim + v[None, :], sums, mask=is_value)
            tl.store(extremes + part * 2, most, mask=is_head)
            tl.store(extremes + part * 2 + 1, total, mask=is_head)
        else:
            result = normalise(sums, most, total, sinks, head, is_head, HAS_SINKS)
            place = output + (token * heads + head[:, None]) * value_dim + v[None, :]
            tl.store(place, result.to(output.dtype.element_ty), mask=is_value)


@triton.jit
def merge_partitions(
    rows, parts, extremes, sinks, output, num_partitions, heads, value_dim,
    HAS_SINKS: tl.constexpr, PARTITION: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Merge the partitions of a row for one head: ``output (tokens, heads, value_dim)``."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) + tl.arange(0, 1)
    token, _, end, first_partition = row_of(rows, row, PARTITION)
    count = (end - 1) // PARTITION - first_partition + 1
    v = tl.arange(0, BLOCK_V)
    most = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((1, BLOCK_V), tl.float32)
    for begin in range(0, count, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        is_there = p < count
        part = (row * heads + tl.program_id(1)) * num_partitions + p
        own = tl.load(extremes + part * 2, mask=is_there, other=float("-inf"))
        higher = tl.maximum(most, tl.max(own, axis=0))
        factor = tl.exp(most - higher)
        weight = tl.exp(own - higher)
        total = total * factor + tl.sum(weight * tl.load(extremes + part * 2 + 1, mask=is_there, other=0.0), axis=0)
        mask = is_there[:, None] & (v[None, :] < value_dim)
        values = tl.load(parts + part[:, None] * value_dim + v[None, :], mask=mask, other=0.0)
        sums = sums * factor[:, None] + tl.sum(values * weight[:, None], axis=0)[None, :]
        most = higher
    result = normalise(sums, most, total, sinks, head, head < heads, HAS_SINKS)
    place = output + (token * heads + head[:, None]) * value_dim + v[None, :]
    tl.store(place, result.to(output.dtype.element_ty), mask=v[None, :] < value_dim)
