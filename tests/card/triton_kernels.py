"""Launches of Triton's kernels on the card, which Triton's interpreter runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from triton.runtime import interpreter

from server.kernels.triton import available
from server.kernels.triton.launch import Tiles
from tests.card import fast_interpreter
from tests.card.counts import captures, lock
from tests.card.graphs import record
from tests.card.memory import Allocation
from tests.card.streams import Stream, current_index, current_stream
from tests.card.tensors import SPOILT, CardTensor, launch, memory

WIDE = Tiles(128, 128, many_rows=64, first_outputs=128, second_outputs=128, many_inputs=128)  # fewer to interpret
LINE = 64  # bytes, to which accesses are rounded

runs = True  # kernels are run, or counted only; then they write zeros to memory that is new

Lines = npt.NDArray[np.int64]


def install() -> None:
    """Let kernels take the card's tensors, and let the project find a driver."""
    fast_interpreter.install(checks_overflow=False)
    interpret = interpreter.InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if not any(isinstance(each, CardTensor) for each in args):
            return interpret(self, *args, grid=grid, warmup=warmup, **options)
        return _run(lambda given: interpret(self, *given, grid=grid, warmup=warmup, **options), self.__name__, args)

    interpreter.InterpretedFunction.run = run
    Tiles.of = lambda _: WIDE
    available.has_driver = lambda: True


def _run(kernel: Callable[[list[Any]], Any], name: str, args: tuple[Any, ...]) -> Any:
    tensors = [each for each in args if isinstance(each, torch.Tensor)]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"Pointer argument cannot be accessed from Triton ({name} on {sorted(map(str, devices))})")
    if tensors[0].device.index != current_index():  # kernels are launched in the context of the current device
        raise ValueError(f"Pointer argument cannot be accessed from Triton ({name} on {tensors[0].device})")
    with lock:
        stream = current_stream(tensors[0].device)
        launch(name, stream, has_kernel=True)
        number = stream.begin()
        found = [memory.find(tensor.inner) for tensor in tensors]
        shared = list({id(each): each for each in found if each is not None and each.is_shared}.values())
        given = [each.inner if isinstance(each, CardTensor) else each for each in args]
        if not runs:
            for inner in {id(tensor.inner): tensor.inner for tensor in tensors}.values():
                _clear_new(inner)
            return None

        def again() -> list[torch.Tensor]:
            now = current_stream()
            _run_recorded(partial(kernel, given), shared, now, now.begin())
            return []

        record(again, [])
        with np.errstate(invalid="ignore" if captures else None), warnings.catch_warnings(), _unprofiled():
            if captures:  # what earlier graphs of a cut step made is spoilt
                warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            accessed = [] if captures else shared  # a card runs nothing while it captures
            return _run_recorded(partial(kernel, given), accessed, stream, number)


def _clear_new(inner: torch.Tensor) -> None:
    """Fill a tensor with zeros if nothing has been written to its memory."""
    if inner.is_contiguous() and inner.numel() and bool((inner.view(-1).view(torch.uint8) == SPOILT).all()):
        inner.zero_()


@contextmanager
def _unprofiled() -> Iterator[None]:
    """Let the interpreter call functions without a profile, which slows each call."""
    profile = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


def _run_recorded(kernel: Callable[[], Any], shared: list[Allocation], stream: Stream, number: int) -> Any:
    """Run a kernel, and note what it accesses of memory that streams share."""
    if not shared:
        return kernel()
    with _recorded() as seen:
        result = kernel()
    for is_write, addresses in seen.items():
        for allocation in shared:
            for first, last in _ranges(addresses, allocation):
                memory.touch(allocation, first, last, stream, number, is_write=is_write)
    return result


@contextmanager
def _recorded() -> Iterator[dict[bool, list[Lines]]]:
    """Record the lines that kernels read (False) and write (True)."""
    builder, seen = interpreter.InterpreterBuilder, {False: [], True: []}
    load, store = builder.create_masked_load, builder.create_masked_store

    def add(is_write: bool, pointers: Any, mask: Any) -> None:
        seen[is_write].append(np.unique(pointers.data[mask.data.astype(bool)].astype(np.int64) // LINE))

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        add(False, pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        add(True, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
    try:
        yield seen
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def _ranges(lines: list[Lines], allocation: Allocation) -> Iterator[tuple[int, int]]:
    """Yield the ranges of addresses in an allocation that lines make."""
    first, last = allocation.first // LINE, -(-(allocation.first + allocation.nbytes) // LINE)
    every = np.unique(np.concatenate([np.empty(0, np.int64), *lines]))
    inside = every[(every >= first) & (every < last)]
    if len(inside):
        for part in np.split(inside, (np.flatnonzero(np.diff(inside) > 1) + 1).tolist()):
            yield int(part[0]) * LINE, int(part[-1] + 1) * LINE
