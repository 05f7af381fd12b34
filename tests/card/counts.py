"""Counts what happened on the card: launches, synchronisations and races, by the line of the project."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = f"{Path(__file__).parents[2]}/"
NOT_PERMITTED = "operation not permitted when stream is capturing"
CARD = f"{Path(__file__).parent}/"

lock = threading.RLock()  # guards everything of the card
launches: Counter[str] = Counter()  # by operation
launch_places: Counter[str] = Counter()
syncs: Counter[str] = Counter()  # by operation and place
races: Counter[str] = Counter()
captures: list[Any] = []  # graphs that are being captured
captured: set[str] = set()  # functions of the project that ran while a graph was captured, as ``FILE:NAME``
calls: Counter[str] = Counter()  # that can fail, by kind
failing: dict[str, range] = {}  # by kind, the numbers of the calls that fail
contexts: Counter[tuple[int, str]] = Counter()  # calls that open a context, by device and thread


def place() -> str:
    """Return the innermost line of the project that is being run, as ``FILE:LINE``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and not name.startswith(CARD) and "/.venv/" not in name:
            return f"{name.removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def refuse(operation: str) -> None:
    """Raise what CUDA raises at something that the capture of a graph does not permit."""
    if captures:
        raise torch.AcceleratorError(f"CUDA error: {NOT_PERMITTED} ({operation} at {place()})")


def fails(kind: str) -> bool:
    """Count a call that can fail; return whether it does."""
    with lock:
        calls[kind] += 1
        return calls[kind] - 1 in failing.get(kind, ())


def count_sync(operation: str) -> None:
    refuse(operation)
    with lock:
        syncs[f"{operation} at {place()}"] += 1


def clear() -> None:
    """Forget all that was counted."""
    with lock:
        for counter in (launches, launch_places, syncs, races, contexts, calls):
            counter.clear()
