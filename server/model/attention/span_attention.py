"""Attention to a span of a sequence's keys, in a form that merges with attention to other spans.

``attend_span`` returns the output and the logarithm of the sum of the exponentials of the scores (lse). Two spans with
``(a, lse_a)`` and ``(b, lse_b)`` make ``(a * exp(lse_a - lse) + b * exp(lse_b - lse), lse)`` with
``lse = logaddexp(lse_a, lse_b)`` (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
"""

from __future__ import annotations

import math

import torch

from server.model.attention.attention_plan import Band

FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001
FLASH_CUDA = torch.ops.aten._scaled_dot_product_efficient_attention.default  # noqa: SLF001
FOLDED_ROWS = 128  # most queries of one key head that are worth stacking
FEW_QUERIES = 16  # for which a copy in float32 costs less than products of torch in bfloat16, compiled for each length


def attend_span(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    *,
    is_causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention of some queries to some keys.

    Args:
        query: ``(1, heads, queries, dim)``.
        key, value: ``(1, kv_heads, keys, dim)``, of any strides but the last; nothing is copied.
        is_causal: whether each of as many queries as keys sees the keys up to its own.
        mask: ``(queries, keys)``, 0 or minus infinity, in the query's dtype; each query sees some key.

    Returns:
        The output ``(1, heads, queries, dim)`` and the lse ``(1, heads, queries)`` in float32.
    """
    if softcap is None:
        if query.device.type == "cpu":
            return _attend_cpu(query, key, value, scaling, is_causal=is_causal, mask=mask)
        if query.device.type == "cuda" and mask is None and query.shape[-1] % 8 == 0:
            return _attend_cuda(query, key, value, scaling, is_causal)
    return attend_span_reference(query, key, value, scaling, softcap, is_causal=is_causal, mask=mask)


def _attend_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    *,
    is_causal: bool,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the fused function of torch, which reads each key once for all rows of one head.

    The query heads of a key head are stacked into one where that is possible.
    """
    heads, queries, dim = query.shape[1:]
    kv_heads = key.shape[1]
    if heads == kv_heads or mask is not None or is_causal or heads * queries > FOLDED_ROWS * kv_heads:
        output, lse = FLASH_CPU(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scaling)
        return output, lse
    output, lse = FLASH_CPU(query.reshape(1, kv_heads, -1, dim), key, value, scale=scaling)
    return output.reshape(1, heads, queries, dim), lse.reshape(1, heads, queries)


def _attend_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the memory-efficient function of torch, with key heads as the batch, expanded over their query heads."""
    _, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    groups = heads // kv_heads
    output, lse, _, _ = FLASH_CUDA(
        query.view(kv_heads, groups, queries, dim),
        key.view(kv_heads, 1, keys, dim).expand(-1, groups, -1, -1),
        value.view(kv_heads, 1, keys, dim).expand(-1, groups, -1, -1),
        None,
        compute_log_sumexp=True,
        is_causal=is_causal,
        scale=scaling,
    )
    return output.reshape(1, heads, queries, dim), lse[..., :queries].reshape(1, heads, queries)


def attend_span_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    *,
    is_causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``attend_span`` in plain torch, on any device and with a soft cap; the reference."""
    _, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    dtype = value.dtype
    if queries <= FEW_QUERIES and query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    rows = query.reshape(kv_heads, -1, dim)
    scores = (rows @ key[0].mT).float().view(kv_heads, -1, queries, keys) * scaling  # of groups of heads
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if is_causal:
        later = torch.ones((queries, keys), dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1, keepdim=True)  # (kv_heads, groups, queries, 1)
    weights = (scores - lse).exp().to(value.dtype).view(kv_heads, -1, keys)
    output = (weights @ value[0]).to(dtype)  # (kv_heads, groups * queries, value_dim)
    return output.reshape(1, heads, queries, -1), lse.reshape(1, heads, queries)


def band_mask(band: Band, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the mask of a band for ``attend_span``, ``(num_queries, num_keys)``."""
    queries = torch.arange(band.num_queries, device=device)[:, None]
    back = band.offset + queries - torch.arange(band.num_keys, device=device)
    seen = (back >= 0) & (back < band.window)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -math.inf)


def merge(
    output: torch.Tensor, lse: torch.Tensor, further: torch.Tensor, further_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge attention to some keys with attention to further ones.

    Args:
        output, further: ``(..., dim)``.
        lse, further_lse: ``(...)`` in float32.

    Returns:
        Output and lse in float32.
    """
    both = torch.logaddexp(lse, further_lse)
    weight, further_weight = (lse - both).exp().unsqueeze(-1), (further_lse - both).exp().unsqueeze(-1)
    return output.float() * weight + further.float() * further_weight, both
