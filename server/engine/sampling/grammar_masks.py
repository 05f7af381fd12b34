"""Masking of logits by grammars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from server.engine.sampling.sampling_state import SamplingState


def mask_by_grammars(logits: torch.Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> frozenset[int]:
    """Set the logits of tokens that the grammars do not allow to ``-inf``.

    A grammar that can't be followed any further allows no token.

    Args:
        logits: float32 ``(rows, vocabulary)``; they are changed.
        rows: rows with a grammar.

    Returns:
        The rows whose grammar allows only end tokens, although they are shorter than ``min_tokens``.
    """
    must_end = []
    for row in rows:
        state, matcher = states[row], states[row].matcher
        if matcher is None:
            continue
        allowed = matcher.allowed()
        if state.is_too_short and not matcher.may_go_on(allowed):
            must_end.append(row)
        size = min(len(allowed), logits.shape[-1])  # the embedding may have more rows than there are tokens, or fewer
        forbidden = torch.from_numpy(np.logical_not(allowed[:size])).to(logits.device)
        logits[row, :size].masked_fill_(forbidden, -torch.inf)
        logits[row, size:] = -torch.inf
    return frozenset(must_end)
