"""Pinning of host memory, against a CUDA runtime that only keeps count and a device in CPU memory."""

from __future__ import annotations

import ctypes
import logging
from contextlib import nullcontext

import pytest
import torch

from expert_store.arena import HostArena
from expert_store.io import pinned_memory
from expert_store.io.pinned_memory import PinnedMemory
from tests.expert_store.records import LAYOUT

CUDA = torch.device("cuda", 1)


class Runtime:
    """Registers so many ranges of memory and refuses the next. Notes for which device each call was."""

    def __init__(self, quota: int):
        self.quota = quota
        self.ranges: dict[int, int] = {}
        self.current: torch.device | None = None
        self.devices: set[torch.device | None] = set()

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 0
        self.devices.add(self.current)
        if len(self.ranges) == self.quota:
            return 2  # cudaErrorMemoryAllocation
        self.ranges[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.devices.add(self.current)
        del self.ranges[address]
        return 0

    def device(self, device: torch.device) -> CurrentDevice:
        return CurrentDevice(self, device)


class CurrentDevice:
    def __init__(self, runtime: Runtime, device: torch.device):
        self._runtime, self._device = runtime, device

    def __enter__(self) -> None:
        self._runtime.current = self._device

    def __exit__(self, *_: object) -> None:
        self._runtime.current = None


class DeafMemory(torch.Tensor):
    """Memory of a device into which copies do nothing."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        del source, non_blocking
        return self


def zeros(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime(quota=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", runtime.device)
    return runtime


@pytest.fixture
def pinned(runtime: Runtime) -> PinnedMemory:
    return PinnedMemory(CUDA, zeros)


def slots(count: int) -> list[torch.Tensor]:
    arena = HostArena(LAYOUT, count, count)
    return [arena.tensor_of(slot) for slot in range(count)]


def test_each_slot_is_pinned_once_and_by_itself(pinned: PinnedMemory, runtime: Runtime) -> None:
    memory = slots(4)
    for slot in (2, 0, 2):
        pinned.pin(memory[slot])
    assert runtime.ranges == {memory[slot].data_ptr(): LAYOUT.slot_bytes for slot in (2, 0)}


def test_a_quota_that_is_used_up_is_said_once_and_is_no_failure(
    pinned: PinnedMemory, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for memory in slots(4):
            pinned.pin(memory)
    assert len(runtime.ranges) == 2
    assert len(caplog.records) == 1
    assert f"failed after {2 * LAYOUT.slot_bytes} bytes (CUDA error 2)" in caplog.text
    assert "ulimit -l" in caplog.text


def test_the_error_of_a_refused_range_is_taken_from_the_runtime(
    pinned: PinnedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next launch of the thread reports it."""
    cleared: list[None] = []
    monkeypatch.setattr(pinned_memory, "clear_error", lambda: cleared.append(None))
    for memory in slots(4):
        pinned.pin(memory)
    assert len(cleared) == 1


def test_an_error_is_taken_from_the_library_that_torch_has_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def refuse(name: str, mode: int) -> object:
        del mode
        opened.append(name)
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    for version in ("12.8", "13.0"):
        monkeypatch.setattr(torch.version, "cuda", version)
        pinned_memory.clear_error()
    assert opened == ["libcudart.so.12", "libcudart.so.13"]


def test_memory_that_is_not_copied_is_not_pinned(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    pinned = PinnedMemory(CUDA, lambda nbytes: zeros(nbytes).as_subclass(DeafMemory))
    memory = slots(2)
    memory[0].fill_(7)
    with caplog.at_level(logging.WARNING):
        pinned.pin(memory[0])
        pinned.pin(memory[1])
    assert runtime.ranges == {}
    assert "failed after 0 bytes (copies of it do nothing)" in caplog.text


def test_what_is_pinned_is_given_back(pinned: PinnedMemory, runtime: Runtime) -> None:
    memory = slots(2)
    pinned.pin(memory[0])
    pinned.pin(memory[1])
    pinned.unpin(memory[0])
    pinned.unpin(memory[0])
    assert len(runtime.ranges) == 1
    pinned.close()
    assert runtime.ranges == {}


def test_the_runtime_is_called_for_the_device_whatever_the_thread(pinned: PinnedMemory, runtime: Runtime) -> None:
    for memory in slots(1):
        pinned.pin(memory)
        pinned.unpin(memory)
    assert runtime.devices == {CUDA}
