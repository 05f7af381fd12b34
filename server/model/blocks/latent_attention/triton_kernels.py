"""Kernel between the projections of a latent attention and its scores: norm of latents, rotation, cache writes."""

from __future__ import annotations

import triton
import triton.language as tl

from server.kernels.triton.rotation import rotate_row


@triton.jit
def prepare_latents(
    slots, query, latent, norm, cosines, sines, absorbed, new_rows, keys, query_token, latent_token, angle_token,
    absorbed_head, absorbed_token, cache_row, heads, nope_dim, rank, rope_dim, half, epsilon,
    ROTATION: tl.constexpr, STEP: tl.constexpr, KEEPS_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Prepare one head of one token: the rotated part of a query, or the row ``[latent | rotated key]`` of the cache.

    Args:
        query: of each head ``[not rotated | rotated]``, one head behind the other.
        latent: ``[latent | key to be rotated]`` of each token.
        absorbed: queries, of which the part behind the first ``rank`` numbers is written.
        KEEPS_ROWS: also write the row to ``new_rows (tokens, rank + rope_dim)``.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    cosine, sine = cosines + token * angle_token, sines + token * angle_token
    if head < heads:
        start = query + token * query_token + head * (nope_dim + rope_dim) + nope_dim
        turned = rotate_row(start, norm, cosine, sine, rope_dim, half, epsilon, False, ROTATION, STEP, BLOCK_D)
        place = absorbed + head * absorbed_head + token * absorbed_token + rank + d
        tl.store(place, turned.to(absorbed.dtype.element_ty), mask=d < rope_dim)
    else:
        row = keys + tl.load(slots + token).to(tl.int64) * cache_row
        r = tl.arange(0, BLOCK_R)
        begin = latent + token * latent_token
        numbers = tl.load(begin + r, mask=r < rank, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(numbers * numbers, axis=0) / rank + epsilon)
        normed = (numbers * scale * tl.load(norm + r, mask=r < rank, other=0.0)).to(keys.dtype.element_ty)
        key = rotate_row(begin + rank, norm, cosine, sine, rope_dim, half, epsilon, False, ROTATION, STEP, BLOCK_D)
        turned_key = key.to(keys.dtype.element_ty)
        tl.store(row + r, normed, mask=r < rank)
        tl.store(row + rank + d, turned_key, mask=d < rope_dim)
        if KEEPS_ROWS:
            kept = new_rows + token * (rank + rope_dim)
            tl.store(kept + r, normed, mask=r < rank)
            tl.store(kept + rank + d, turned_key, mask=d < rope_dim)
