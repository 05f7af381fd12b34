"""Tokens that a grammar does not allow become impossible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .sampling_state import SamplingState


def follow_grammars(logits: torch.Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> frozenset[int]:
    """Make impossible what the grammars of some rows do not allow; the rows that have to end before ``min_tokens``.

    A grammar that can't be followed any further leaves nothing.

    Args:
        logits: float32 ``(rows, vocabulary)``; they are changed.
        rows: those with a grammar.
    """
    must_end = []
    for row in rows:
        state, matcher = states[row], states[row].matcher
        if matcher is None:
            continue
        allowed = matcher.allowed()
        if state.is_too_short and not matcher.may_go_on(allowed):
            must_end.append(row)
        size = min(len(allowed), logits.shape[-1])  # rows of an embedding may be more than tokens, or fewer
        forbidden = torch.from_numpy(np.logical_not(allowed[:size])).to(logits.device)
        logits[row, :size].masked_fill_(forbidden, -torch.inf)
        logits[row, size:] = -torch.inf
    return frozenset(must_end)
