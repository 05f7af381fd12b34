"""Logits to tokens, vectorised over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .request import SamplingParams


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Choose one token a row.

    Temperature, then top-k, top-p and min-p in that order, each renormalising, as transformers' logits warpers do.
    A row's token depends on its own logits, parameters and draw alone.

    Args:
        logits: float32 ``(rows, vocabulary)``.
        params: of each row.
        draws: a uniform number in ``[0, 1)`` for each row.
    """
    greedy = logits.argmax(-1)
    hot = [row for row, param in enumerate(params) if param.temperature > 0]
    chosen: list[int] = greedy.tolist()
    if hot:
        picked = _draw(logits[hot], [params[row] for row in hot], [draws[row] for row in hot])
        for row, token in zip(hot, picked, strict=True):
            chosen[row] = token
    return chosen


def _draw(logits: torch.Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    vocabulary = logits.shape[-1]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values)[:, None]

    scaled = logits / column([param.temperature for param in params])
    ordered, tokens = scaled.sort(dim=-1, descending=True, stable=True)  # (rows, vocabulary)
    ranks = torch.arange(vocabulary)
    top_k = column([param.top_k or vocabulary for param in params])
    probabilities = ordered.masked_fill(ranks >= top_k, -torch.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill((before >= column([p.top_p for p in params])) & (ranks > 0), 0.0)
    floor = column([param.min_p for param in params]) * probabilities[:, :1]
    probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    cumulative = probabilities.double().cumsum(-1)
    targets = torch.tensor(draws, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    picks = torch.searchsorted(cumulative, targets, right=True).clamp(max=vocabulary - 1)
    # A target at the very end may land behind the last token that is still possible.
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    result: list[int] = tokens.gather(-1, torch.minimum(picks, last))[:, 0].tolist()
    return result
