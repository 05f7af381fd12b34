"""Loads a packed model again if another pack replaced it meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from expert_store import CheckpointError, ExpertStoreError, is_pack, read_manifest
from server.model.errors import ModelError

log = logging.getLogger(__name__)

MAX_LOADS = 20
T = TypeVar("T")


def load_unreplaced(model: str | None, load: Callable[[], T], close: Callable[[T], None]) -> T:
    """Return what ``load`` returns, if the model's folder holds the same pack before and after; else load again.

    Args:
        close: releases what was loaded of a pack that is no longer there.

    Raises:
        ModelError: the pack is replaced again and again. Errors of ``load`` are passed on.
    """
    for _ in range(MAX_LOADS):
        before = _data_folder(model)
        try:
            loaded = load()
        except (ModelError, ExpertStoreError, OSError):
            if _data_folder(model) == before:
                raise
        else:
            if _data_folder(model) == before:
                return loaded
            close(loaded)
            del loaded
        log.warning("%s was packed again while it was loaded; loading the new pack", model)
    raise ModelError(f"{model} is packed again and again; start the server when greenroom pack has ended")


def _data_folder(model: str | None) -> str | None:
    """Return the data folder that a packed model's manifest names; None for any other model."""
    with suppress(OSError, CheckpointError):
        if model is not None and is_pack(Path(model)):
            return read_manifest(Path(model)).data
    return None
