"""Periods of compressed keys, which trials shorten so that a short sequence has several of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

PERIOD, BIAS = "compress_rate", "position_bias"  # attributes: tokens of a compressed key, and what gates add
TOP_K = "index_topk"  # attribute: compressed keys that a token attends to, at most
WINDOW = "sliding_window"  # setting: tokens whose own keys a token sees
SHORT, FEW, NARROW = 2, 2, 4  # the largest of these in a trial


@contextmanager
def short_periods(model: nn.Module) -> Iterator[None]:
    """Shorten the periods of a model's compressors, choose few of their keys, and narrow the window beside these."""
    found: list[Any] = [each for each in model.modules() if hasattr(each, PERIOD) and hasattr(each, BIAS)]
    changes: list[tuple[Any, str, Any]] = []
    for each in found:
        period = min(getattr(each, PERIOD), SHORT)
        bias = nn.Parameter(getattr(each, BIAS).detach()[:period], requires_grad=False)
        changes += [(each, PERIOD, period), (each, BIAS, bias)]
        if hasattr(each, TOP_K):
            changes.append((each, TOP_K, min(getattr(each, TOP_K), FEW)))
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if found and config is not None else None
    if text is not None and getattr(text, WINDOW, None):
        changes.append((text, WINDOW, min(getattr(text, WINDOW), NARROW)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
