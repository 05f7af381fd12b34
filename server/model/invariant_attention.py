"""Attention whose bits depend on a query and the keys it sees, not on how the step was cut.

Keys are taken in segments that begin at fixed positions of the sequence, each multiplied in tiles of fixed size, and
what the segments give is added up in order. A segment that a query does not see counts exactly nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from server.kernels.batch_invariant import usual_functions
from server.kernels.tiles import batched_product

from .seam import AttentionOptions

SEGMENT = 128  # keys
MOST_SCORES = 1 << 19  # that are held at a time, so that they stay in the processor's cache


@usual_functions()
def attend_invariant(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first_key: int, options: AttentionOptions
) -> torch.Tensor:
    """As ``attend_sequence``, with the same bits for a token however its sequence is cut into steps.

    Scores and products with values are rounded to the dtype of the query, segment by segment; the rest is float32.
    """
    heads, new = query.shape[:2]
    last = first_key + key.shape[1]
    keys, values = _segments(key, first_key), _segments(value, first_key)
    most = max(1, MOST_SCORES // (heads * keys.shape[1] * SEGMENT))
    outputs, position = [], last - new
    for part in torch.split(query, most, 1):
        outputs.append(_attend(part, keys, values, first_key // SEGMENT * SEGMENT, position, options))
        position += part.shape[1]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_key: int,
    first_query: int,
    options: AttentionOptions,
) -> torch.Tensor:
    """Attention over whole segments, ``(kv_heads, segments, SEGMENT, ...)``."""
    heads, new = query.shape[:2]
    kv_heads, segments = keys.shape[:2]
    columns = heads // kv_heads * new  # queries that share keys
    queries = query.reshape(kv_heads, 1, columns, -1).expand(-1, segments, -1, -1)
    scores = _product(keys, queries).float() * options.scaling  # (kv_heads, segments, columns, SEGMENT)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    seen = _seen(new, segments, first_key, first_query, options.sliding_window, query.device)
    scores.view(kv_heads, segments, -1, new, SEGMENT).masked_fill_(~seen, -torch.inf)
    largest = scores.amax((1, 3))  # (kv_heads, columns)
    if options.sinks is not None:
        sinks = options.sinks.float().view(kv_heads, -1, 1).expand(-1, -1, new).reshape(kv_heads, columns)
        largest = torch.maximum(largest, sinks)
    weights = torch.exp(scores - largest[:, None, :, None])
    total = _in_order(weights.sum(-1))  # (kv_heads, columns)
    if options.sinks is not None:
        total = total + torch.exp(sinks - largest)
    output = _in_order(_product(values.mT, weights.to(values.dtype)).float())  # (kv_heads, columns, value_dim)
    return (output / total.unsqueeze(-1)).to(query.dtype).view(heads, new, -1)


def _product(matrices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    output = batched_product(matrices.flatten(0, 1), rows.flatten(0, 1))
    return output.view(*rows.shape[:-1], -1)


def _in_order(parts: torch.Tensor) -> torch.Tensor:
    """The sum over segments ``(kv_heads, segments, ...)``, one after the other."""
    first, *others = parts.unbind(1)
    for part in others:
        first = first + part
    return first


def _segments(tensor: torch.Tensor, first: int) -> torch.Tensor:
    """``(kv_heads, kept, dim)`` filled up with zeros to whole segments, ``(kv_heads, segments, SEGMENT, dim)``."""
    before, after = first % SEGMENT, -(first + tensor.shape[1]) % SEGMENT
    return F.pad(tensor, (0, 0, before, after)).view(len(tensor), -1, SEGMENT, tensor.shape[-1])


def _seen(
    new: int, segments: int, first_key: int, first_query: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Which keys each query sees, ``(segments, 1, new, SEGMENT)``."""
    queries = torch.arange(first_query, first_query + new, device=device).unsqueeze(-1)
    keys = torch.arange(first_key, first_key + segments * SEGMENT, device=device).view(segments, 1, 1, SEGMENT)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)
