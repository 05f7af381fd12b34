"""Loads a model again if another took its place meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from expert_store import ExpertStoreError
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.errors import ModelError

log = logging.getLogger(__name__)

MAX_LOADS = 20
T = TypeVar("T")


def load_unreplaced(
    reopen: Callable[[], tuple[Checkpoint, str]], load: Callable[[Checkpoint, str], T], close: Callable[[T], None]
) -> T:
    """Return what ``load`` returns, if no other model took the checkpoint's place meanwhile; else load that.

    Args:
        reopen: opens what is at the place now, and returns it with its name.
        close: releases what was loaded of a model that is no longer there.

    Raises:
        ModelError: the model is replaced again and again. Errors of ``reopen`` and ``load`` are passed on.
    """
    for _ in range(MAX_LOADS):
        checkpoint, name = reopen()
        try:
            loaded = load(checkpoint, name)
        except (ModelError, ExpertStoreError, OSError):
            if not checkpoint.is_replaced():
                raise
        else:
            if not checkpoint.is_replaced():
                return loaded
            close(loaded)
            del loaded
        log.warning("%s was packed again while it was loaded; loading the new pack", checkpoint.location)
    raise ModelError(f"{checkpoint.location} is packed again and again; start the server when greenroom pack has ended")
