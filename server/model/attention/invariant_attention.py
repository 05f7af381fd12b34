"""Batch-invariant attention: its bits depend on a query and the keys it sees, not on the chunks of the step.

Keys are split into segments that begin at fixed positions of the sequence. Each segment is multiplied in tiles of fixed
size, and the results are summed in order. A segment that a query does not see adds exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from server.kernels.batch_invariant import torch_functions
from server.kernels.invariant_matmul import batched_matmul
from server.model.attention.attention_plan import slot_ranges
from server.model.attention.image_spans import TokenSpan, split_spans
from server.model.attention.kv_cache import KVCache
from server.model.attention.window import oldest_seen
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk

SEGMENT = 128  # keys
MOST_SCORES = 1 << 19  # held at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class _PieceKeys:
    """The keys in the cache that a piece of a chunk attends to."""

    piece: TokenSpan
    first_key: int  # position of the first key that any token of the piece sees
    ranges: Sequence[tuple[int, int]]  # first slot and length of each contiguous range


class InvariantAttention:
    """The attention of all layers in one step, with the interface of ``StepAttention``, sequence by sequence.

    The keys and values that a chunk sees are copied from the cache first.
    """

    def __init__(self, chunks: Sequence[SequenceChunk], cache: KVCache):
        self._cache = cache
        self._pieces: list[list[_PieceKeys]] = []  # by group of layers
        self._slots: list[torch.Tensor] = []
        for index, group in enumerate(cache.groups):
            pieces: list[_PieceKeys] = []
            slots: list[int] = []
            for chunk in chunks:
                table, first, end = chunk.block_tables[index], chunk.num_cached, chunk.num_cached + chunk.num_tokens
                has_bidirectional = group.window is not None and not group.is_chunked
                for piece in split_spans(chunk, has_bidirectional):
                    seen = 0 if group.window is None else oldest_seen(piece.first, group.window, group.is_chunked)
                    oldest = max(0, seen)
                    pieces.append(_PieceKeys(piece, oldest, slot_ranges(table, cache.block_size, oldest, piece.last)))
                for start, length in slot_ranges(table, cache.block_size, first, end):
                    slots.extend(range(start, start + length))
            self._pieces.append(pieces)
            self._slots.append(torch.tensor(slots, device=cache.device))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """See ``StepAttention.attend``."""
        index, cache = self._cache.group_of[layer], self._cache.layers[layer]
        cache.write(self._slots[index], key, value)
        group = self._cache.groups[index]
        options = replace(options, sliding_window=group.window, is_chunked=group.is_chunked)
        pieces = self._pieces[index]
        outputs = []
        for part, each in zip(torch.split(query, [each.piece.num_tokens for each in pieces], 1), pieces, strict=True):
            keys = _read(cache.keys, each.ranges, cache.shape.key_dim)
            values = _read(cache.values, each.ranges, cache.shape.value_dim)
            ahead = each.piece.is_bidirectional
            outputs.append(
                attend_invariant(part, keys, values, each.first_key, options=options, sees_ahead=ahead).transpose(0, 1)
            )
        return torch.cat(outputs)


def _read(tensor: torch.Tensor, ranges: Sequence[tuple[int, int]], dim: int) -> torch.Tensor:
    """Read some ranges of slots: ``(1, kv_heads, slots, width)`` to ``(kv_heads, kept, dim)``."""
    parts = [tensor[0, :, start : start + length, :dim] for start, length in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@torch_functions()
def attend_invariant(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first_key: int,
    *,
    options: AttentionOptions,
    sees_ahead: bool = False,
) -> torch.Tensor:
    """Compute causal attention of the last tokens of a sequence.

    Scores and products with values are rounded to the dtype of the query, segment by segment; the rest is float32.

    Args:
        query: ``(heads, new, key_dim)``.
        key: ``(kv_heads, kept, key_dim)``, of the tokens from ``first_key`` to the last new one.
        value: ``(kv_heads, kept, value_dim)``.
        first_key: position of the first key.
        options: scaling, window, sinks and soft cap, as transformers' eager functions define them.
        sees_ahead: whether new tokens also see the new tokens after them.

    Returns:
        ``(heads, new, value_dim)``.
    """
    heads, new = query.shape[:2]
    last = first_key + key.shape[1]
    keys, values = _segments(key, first_key), _segments(value, first_key)
    most = max(1, MOST_SCORES // (heads * keys.shape[1] * SEGMENT))
    outputs, position = [], last - new
    for part in torch.split(query, most, 1):
        positions = torch.arange(position, position + part.shape[1], device=query.device)
        latest = torch.full_like(positions, last - 1) if sees_ahead else positions
        outputs.append(
            _attend(
                part,
                keys,
                values,
                first_key=first_key // SEGMENT * SEGMENT,
                positions=positions,
                latest=latest,
                options=options,
            )
        )
        position += part.shape[1]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    first_key: int,
    positions: torch.Tensor,
    latest: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """Compute attention over full segments, ``(kv_heads, segments, SEGMENT, ...)``.

    Args:
        positions: of the queries, ``(new,)``.
        latest: the last position that each of them sees, ``(new,)``.
    """
    heads, new = query.shape[:2]
    kv_heads, segments = keys.shape[:2]
    columns = heads // kv_heads * new  # queries that share keys
    queries = query.reshape(kv_heads, 1, columns, -1).expand(-1, segments, -1, -1)
    scores = _product(keys, queries).float() * options.scaling  # (kv_heads, segments, columns, SEGMENT)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    key_positions = torch.arange(first_key, first_key + segments * SEGMENT, device=query.device)
    key_positions = key_positions.view(segments, 1, 1, SEGMENT)
    seen = key_positions <= latest.unsqueeze(-1)  # (segments, 1, new, SEGMENT)
    if options.sliding_window is not None:
        seen &= key_positions >= oldest_seen(positions.unsqueeze(-1), options.sliding_window, options.is_chunked)
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
    output = batched_matmul(matrices.flatten(0, 1), rows.flatten(0, 1))
    return output.view(*rows.shape[:-1], -1)


def _in_order(parts: torch.Tensor) -> torch.Tensor:
    """Sum over segments ``(kv_heads, segments, ...)``, one after the other."""
    first, *others = parts.unbind(1)
    for part in others:
        first = first + part
    return first


def _segments(tensor: torch.Tensor, first: int) -> torch.Tensor:
    """Pad with zeros to full segments: ``(kv_heads, kept, dim)`` to ``(kv_heads, segments, SEGMENT, dim)``."""
    before, after = first % SEGMENT, -(first + tensor.shape[1]) % SEGMENT
    return F.pad(tensor, (0, 0, before, after)).view(len(tensor), -1, SEGMENT, tensor.shape[-1])
