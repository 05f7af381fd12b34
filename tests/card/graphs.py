"""CUDA graphs of the card: operations that are recorded, and run again when the graph is replayed.

What a capture refuses on a card is refused here: waits, copies from or to the host, and pinning. Unlike on a card,
operations run while they are recorded, as shapes depend on it; what they made is spoilt at the end, so that only a
replay gives results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch

from tests.card.counts import NOT_PERMITTED, captures, launch_places, launches, lock, place

made: list[CUDAGraph] = []  # all graphs of the process


class CUDAGraph:
    """Recorded operations, and the memory that they write."""

    def __init__(self, *_: Any, **__: Any):
        self.operations: list[Callable[[], None]] = []
        self.results: list[torch.Tensor] = []
        self.num_replays = 0
        made.append(self)

    def replay(self) -> None:
        with lock:
            launches["graph"] += 1
            launch_places[place()] += 1
            self.num_replays += 1
            for operation in self.operations:
                operation()

    def reset(self) -> None:
        self.operations, self.results = [], []


class graph:  # noqa: N801  torch's name
    """A context in which operations are recorded; see ``torch.cuda.graph``."""

    def __init__(self, cuda_graph: CUDAGraph, *_: Any, capture_error_mode: str = "global", **__: Any):
        assert capture_error_mode == "thread_local", "threads that pin memory would break a capture of all threads"
        self._graph = cuda_graph

    def __enter__(self) -> Self:
        if captures:
            raise RuntimeError(NOT_PERMITTED)
        captures.append(self._graph)
        return self

    def __exit__(self, *_: object) -> None:
        captures.pop()
        for result in self._graph.results:
            if result.is_contiguous() and result.numel():
                result.view(torch.uint8 if result.dim() else result.dtype).fill_(255 if result.dim() else 0)


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
