"""Converts tensors of a checkpoint in several threads while the next ones are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from expert_store import TensorReads, TensorSource

RUNNING = 2  # conversions for each thread that are begun and not taken; each holds what was read for it
T = TypeVar("T")


@dataclass(frozen=True)
class Conversion(Generic[T]):
    """Tensors of a checkpoint, and what they become."""

    sources: Sequence[TensorSource]
    convert: Callable[[Sequence[torch.Tensor]], T]  # of the tensors; runs in any thread
    is_copy: bool = False  # the result does not have the memory of the tensors


def convert_all(conversions: Sequence[Conversion[T]], num_threads: int) -> Iterator[T]:
    """Read and convert; yield the results in the order of the conversions.

    Args:
        num_threads: that convert.

    Raises:
        SourceError: a source can't be read, or ends too early. Errors of conversions are passed on.
    """
    running: deque[Future[T]] = deque()
    with ExitStack() as stack:
        reads = stack.enter_context(TensorReads([source for each in conversions for source in each.sources]))
        pool = ThreadPoolExecutor(num_threads, "conversion", torch.set_num_threads, (1,))
        stack.callback(pool.shutdown, cancel_futures=True)
        for conversion in conversions:
            tensors = [reads.take(source) for source in conversion.sources]
            running.append(pool.submit(_run, conversion, tensors, reads))
            del tensors
            if len(running) > RUNNING * num_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _run(conversion: Conversion[T], tensors: list[torch.Tensor], reads: TensorReads) -> T:
    result = conversion.convert(tensors)
    if conversion.is_copy:
        while tensors:
            reads.reuse(tensors.pop())
    return result
