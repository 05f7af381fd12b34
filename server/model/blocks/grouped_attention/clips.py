"""Limits of queries, keys and values, which trials lower so that some numbers of a short sequence reach them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CLIP = "clip_qkv"  # attribute of an attention, or setting of its config
REACHED = 0.5  # the largest limit in a trial: normed numbers are about 1


def clip_of(attention: Any) -> float:
    """Return the largest number of an attention's queries, keys and values; 0 if there is no limit."""
    owner = _owner_of(attention)
    return 0.0 if owner is None else float(getattr(owner, CLIP) or 0.0)


@contextmanager
def low_clips(model: nn.Module) -> Iterator[None]:
    """Lower the limits of a model's attentions to ``REACHED``."""
    owners = {id(owner): owner for module in model.modules() if (owner := _owner_of(module)) is not None}
    limits = [(owner, getattr(owner, CLIP)) for owner in owners.values() if getattr(owner, CLIP)]
    for owner, limit in limits:
        setattr(owner, CLIP, min(limit, REACHED))
    try:
        yield
    finally:
        for owner, limit in limits:
            setattr(owner, CLIP, limit)


def _owner_of(attention: Any) -> Any:
    """Return what has the limit of an attention; None if neither it nor its config has one."""
    candidates = attention, getattr(attention, "config", None)
    return next((each for each in candidates if hasattr(each, CLIP)), None)
