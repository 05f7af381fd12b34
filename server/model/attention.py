"""Causal attention of one sequence's new tokens over all its tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .seam import AttentionOptions


def attend_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first_key: int, options: AttentionOptions
) -> torch.Tensor:
    """Attention with the queries at the end of the sequence.

    Args:
        query: ``(heads, new, key_dim)``.
        key: ``(kv_heads, kept, key_dim)``, tokens ``first_key`` and later.
        value: ``(kv_heads, kept, value_dim)``.
        first_key: position of the first key.
        options: scaling, window, sinks and soft cap, as transformers' eager functions define them.

    Returns:
        ``(heads, new, value_dim)``.
    """
    new, kept = query.shape[1], key.shape[1]
    mask = _mask(new, kept, first_key, options.sliding_window, query.device)
    if options.sinks is None and options.softcap is None:
        output = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            scale=options.scaling,
            enable_gqa=len(query) != len(key),
        )
        return output[0]
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = query @ key.mT * options.scaling  # (heads, new, kept)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is not None:
        sinks = options.sinks.view(-1, 1, 1).expand(-1, new, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights[..., :kept] @ value


def _mask(new: int, kept: int, first_key: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees, ``(new, kept)``; None if it is all of them."""
    last = first_key + kept
    if new == 1 and (window is None or kept <= window):
        return None
    queries = torch.arange(last - new, last, device=device)[:, None]
    keys = torch.arange(first_key, last, device=device)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)
