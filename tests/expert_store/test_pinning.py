"""Pinning of host slots, against a CUDA runtime that only keeps count."""

from __future__ import annotations

import logging

import pytest
import torch

from expert_store.arena import HostArena
from expert_store.io.device_memory import CudaDevice
from tests.expert_store.records import LAYOUT


class Runtime:
    """Registers so many ranges of memory and refuses the next."""

    def __init__(self, quota: int):
        self.quota = quota
        self.ranges: dict[int, int] = {}

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 0
        if len(self.ranges) == self.quota:
            return 2  # cudaErrorMemoryAllocation
        self.ranges[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.ranges[address]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime(quota=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    return runtime


@pytest.fixture
def device(runtime: Runtime) -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


def test_each_slot_is_pinned_once_and_by_itself(device: CudaDevice, runtime: Runtime) -> None:
    arena = HostArena(LAYOUT, 4, 4)
    for slot in (2, 0, 2):
        device.pin(arena, slot)
    assert runtime.ranges == {arena.tensor_of(slot).data_ptr(): LAYOUT.slot_bytes for slot in (2, 0)}


def test_a_quota_that_is_used_up_is_said_once_and_is_no_failure(
    device: CudaDevice, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    arena = HostArena(LAYOUT, 4, 4)
    with caplog.at_level(logging.WARNING):
        for slot in range(4):
            device.pin(arena, slot)
    assert len(runtime.ranges) == 2
    assert len(caplog.records) == 1
    assert f"failed after {2 * LAYOUT.slot_bytes} bytes (CUDA error 2)" in caplog.text
    assert "ulimit -l" in caplog.text


def test_what_is_pinned_is_given_back(device: CudaDevice, runtime: Runtime) -> None:
    arena = HostArena(LAYOUT, 2, 2)
    device.pin(arena, 0)
    device.pin(arena, 1)
    device.unpin(arena, 0)
    device.unpin(arena, 0)
    assert len(runtime.ranges) == 1
    device.close()
    assert runtime.ranges == {}
