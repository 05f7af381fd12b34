"""CUDA graphs of the card: operations that are recorded, and run again when the graph is replayed.

What a capture refuses on a card is refused here: waits, copies from or to the host, and pinning. Unlike on a card,
operations run while they are recorded, as shapes depend on it; what they made is spoilt at the end, so that only a
replay gives results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from tests.card.counts import NOT_PERMITTED, ROOT, captured, captures, launch_places, launches, lock, place
from tests.card.streams import current_stream, default_streams

PACKAGES = (f"{ROOT}server/", f"{ROOT}expert_store/")


class CUDAGraph:
    """Recorded operations, and the memory that they write."""

    def __init__(self, *_: Any, **__: Any):
        self.operations: list[Callable[[], None]] = []
        self.results: list[torch.Tensor] = []

    def replay(self) -> None:
        with lock:
            launches["graph"] += 1
            launch_places[place()] += 1
            for operation in self.operations:
                operation()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Record the operations of this thread from now on."""
        del pool
        assert capture_error_mode == "thread_local", "threads that pin memory would break a capture of all threads"
        if captures or current_stream() in default_streams:
            raise RuntimeError(NOT_PERMITTED)
        captures.append(self)
        sys.setprofile(_note_function)

    def capture_end(self) -> None:
        sys.setprofile(None)
        captures.pop()
        for result in self.results:
            if result.is_contiguous() and result.numel():
                result.reshape(-1).view(torch.uint8).fill_(255 if result.dim() else 0)


def _note_function(frame: FrameType, event: str, argument: object) -> None:
    """Note a call of a function of the project while a graph is captured."""
    del argument
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(PACKAGES):
        captured.add(f"{name.removeprefix(ROOT)}:{frame.f_code.co_qualname.partition('.<locals>')[0]}")


def record(operation: Callable[[], list[torch.Tensor]], results: list[torch.Tensor]) -> None:
    """Record an operation that gives such results anew; they stay where it wrote them first."""
    if not captures:
        return
    kept = list(results)

    def again() -> None:
        for target, result in zip(kept, operation(), strict=True):
            target.copy_(result)

    captures[-1].operations.append(again)
    captures[-1].results += kept
