"""Kernel between the projections of an attention and its scores: norms of heads, rotation, and writes to the cache."""

from __future__ import annotations

import triton
import triton.language as tl

from server.kernels.triton.rotation import rotate_row


@triton.jit
def prepare_heads(
    slots, query, key, value, query_norm, key_norm, value_norm, cosines, sines, rotated, new_keys, new_values, keys,
    values, query_token, key_token, value_token, angle_token, cache_head, cache_row, heads, kv_heads, key_dim,
    value_dim, half, epsilon, HAS_NORMS: tl.constexpr, HAS_VALUE_NORM: tl.constexpr, ROTATION: tl.constexpr,
    STEP: tl.constexpr, KEEPS_KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Prepare one head of one token: a query for ``rotated``, or a key or value for its slot of the cache.

    Args:
        query, key, value: a token's heads follow each other.
        query_token, key_token, value_token, angle_token, cache_head, cache_row: strides in numbers.
        half: half of the numbers that are rotated.
        STEP: numbers of the tables of cosines and sines from one angle to the next.
        KEEPS_KEYS: also write keys to ``new_keys (tokens, kv_heads, key_dim)``, and values to ``new_values`` if they
            are normed.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK)
    cosine, sine = cosines + token * angle_token, sines + token * angle_token
    if head < heads:
        turned = rotate_row(
            query + token * query_token + head * key_dim, query_norm, cosine, sine, key_dim, half, epsilon,
            HAS_NORMS, ROTATION, STEP, BLOCK,
        )  # fmt: skip
        tl.store(rotated + (token * heads + head) * key_dim + d, turned.to(rotated.dtype.element_ty), mask=d < key_dim)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if head < heads + kv_heads:
            own = head - heads
            turned_key = rotate_row(
                key + token * key_token + own * key_dim, key_norm, cosine, sine, key_dim, half, epsilon,
                HAS_NORMS, ROTATION, STEP, BLOCK,
            ).to(keys.dtype.element_ty)  # fmt: skip
            tl.store(keys + own * cache_head + slot * cache_row + d, turned_key, mask=d < key_dim)
            if KEEPS_KEYS:
                tl.store(new_keys + (token * kv_heads + own) * key_dim + d, turned_key, mask=d < key_dim)
        else:
            own = head - heads - kv_heads
            new_value = tl.load(value + token * value_token + own * value_dim + d, mask=d < value_dim, other=0.0)
            if HAS_VALUE_NORM:
                x = new_value.to(tl.float32)
                x = x * tl.rsqrt(tl.sum(x * x, axis=0) / value_dim + epsilon)
                new_value = (x * tl.load(value_norm + d, mask=d < value_dim, other=0.0)).to(values.dtype.element_ty)
                if KEEPS_KEYS:
                    tl.store(new_values + (token * kv_heads + own) * value_dim + d, new_value, mask=d < value_dim)
            tl.store(values + own * cache_head + slot * cache_row + d, new_value, mask=d < value_dim)
