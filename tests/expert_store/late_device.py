"""LateDevice: an emulated device that is as late as its events allow, and finds what no event orders."""

from __future__ import annotations

import os
import random
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
import xxhash

from expert_store import resources
from expert_store.io.device_memory import Device, EmulatedDevice, open_device

MAX_DELAY = 0.002  # seconds for which the end of a copy is put off, unless compute waits for it
MAX_UNENDED = 32  # uses that compute is behind

PROBLEMS: list[str] = []  # of all devices since the last look


@dataclass(eq=False)
class LateCopy:
    """A copy on the copy stream, and the event of its end."""

    source: torch.Tensor
    target: torch.Tensor
    after: LateUse | None
    source_digest: int | None  # when it was queued; None if the source is the device's
    digest: int = 0  # of the target, at the end
    is_over: bool = False


@dataclass(eq=False)
class LateUse:
    """All compute that a thread has queued since the last one, and the event of its end."""

    reads: list[LateCopy] = field(default_factory=list)  # the slots that it reads, by the copies that filled them


class LateDevice(EmulatedDevice):
    """A device in CPU memory with a copy stream and a compute stream, both of which do everything late.

    A copy happens when its event is waited for, on the host or by compute, in the order of the stream; now and then
    earlier, as a seed decides. From when it is queued its target holds ones in every bit, which is NaN in each format
    of numbers, as does memory that was never filled. Compute on a CPU can't be late, so it is as if it read its slots
    once more at the end of its use: they have to hold the same bytes still. A use ends when a copy that comes after it
    begins. ``PROBLEMS`` gets a sentence for each copy that changes what compute still reads, whose source was changed
    before it happened, or that is ordered after nothing at all.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())  # guards all fields
        self._random = random.Random(zlib.crc32(os.environ.get("PYTEST_CURRENT_TEST", "").encode()))
        self._copies: deque[LateCopy] = deque()  # that have not happened
        self._uses: deque[LateUse] = deque()  # that have not ended
        self._reads: dict[int, list[LateCopy]] = {}  # of each thread since its last use
        self._memory: list[tuple[int, int]] = []  # begin and end of what was allocated

    def allocate(self, nbytes: int) -> torch.Tensor:
        memory = super().allocate(nbytes)
        memory.fill_(255)
        with self._changed:
            self._memory.append((memory.data_ptr(), memory.data_ptr() + nbytes))
        return memory

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: LateUse | None) -> LateCopy:
        with self._changed:
            is_download = self._is_here(source)
            copy = LateCopy(source, target, after, None if is_download else _digest(source))
            if after is None and source.numel():
                PROBLEMS.append("a copy is ordered after nothing, though its memory may have been in use before")
            if self._random.random() < 0.5:  # else what the slot held before stays in it
                self._spoil(copy)
            self._copies.append(copy)
            if self._random.random() < 0.25:
                self._run_until(copy)
        return copy

    def wait(self, event: LateCopy) -> None:
        with self._changed:
            if self._random.random() < 0.25:
                self._changed.wait_for(lambda: event.is_over, MAX_DELAY)
            self._run_until(event)

    def has_ended(self, event: LateCopy) -> bool:
        with self._changed:
            return event.is_over

    def order(self, event: LateCopy) -> None:
        with self._changed:
            self._run_until(event)
            self._reads.setdefault(threading.get_ident(), []).append(event)

    def mark(self) -> LateUse:
        with self._changed:
            reads = self._reads.pop(threading.get_ident(), [])
            use = LateUse(list(dict.fromkeys(reads)))
            self._uses.append(use)
            if len(self._uses) > MAX_UNENDED:
                self._end(self._uses[self._random.randrange(MAX_UNENDED)])
        return use

    def close(self) -> None:
        with self._changed:
            if self._copies:
                self._run_until(self._copies[-1])
            if self._uses:
                self._end(self._uses[-1])

    def _is_here(self, memory: torch.Tensor) -> bool:
        return any(begin <= memory.data_ptr() < end for begin, end in self._memory)

    def _spoil(self, copy: LateCopy) -> None:
        """Fill the target of a copy that is about to be queued, after all that comes before it in its slot."""
        last = next((each for each in reversed(self._copies) if copy.target.data_ptr() in _addresses(each)), None)
        if last is not None:
            self._run_until(last)
        if copy.after is not None and self._is_here(copy.target):
            self._end(copy.after)
        copy.target.fill_(255)

    def _run_until(self, copy: LateCopy) -> None:
        """Run the copy stream up to the end of a copy."""
        while not copy.is_over:
            self._run(self._copies.popleft())
        self._changed.notify_all()

    def _run(self, copy: LateCopy) -> None:
        if copy.after is not None:
            self._end(copy.after)
        if copy.source_digest is not None and _digest(copy.source) != copy.source_digest:
            PROBLEMS.append("host memory was used for something else before it was copied to the device")
        super().copy(copy.source, copy.target, None)
        copy.digest, copy.is_over = _digest(copy.target), True

    def _end(self, use: LateUse) -> None:
        """Run the compute stream up to the end of a use."""
        while use in self._uses:
            ended = self._uses.popleft()
            if any(_digest(read.target) != read.digest for read in ended.reads):
                PROBLEMS.append("a slot of the device was overwritten while compute still read it")


def _digest(memory: torch.Tensor) -> int:
    return xxhash.xxh3_64_intdigest(memory.numpy().data)


def _addresses(copy: LateCopy) -> tuple[int, int]:
    return copy.source.data_ptr(), copy.target.data_ptr()


def open_late_device(device: torch.device) -> Device:
    return LateDevice() if device.type == "cpu" else open_device(device)


@pytest.fixture(scope="session", autouse=True)
def late_devices() -> Iterator[None]:
    """Emulate devices as ``LateDevice`` in all tests of a folder whose ``conftest.py`` imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "open_device", open_late_device)
        yield


@pytest.fixture(autouse=True)
def check_order(late_devices: None) -> Iterator[None]:
    """Fail a test in which something was done on a device that no event had ordered."""
    PROBLEMS.clear()
    yield
    assert not PROBLEMS, set(PROBLEMS)
