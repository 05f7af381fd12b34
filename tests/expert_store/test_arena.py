"""Slots in one allocation, whose memory is freed and used again one by one."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expert_store import BudgetError, ExpertLayout, ParameterSpec
from expert_store.arena import RESERVE, DeviceArena, HostArena, page_aligned
from server.model.attention.reserved_tensor import ReservedTensor

LAYOUT = ExpertLayout((ParameterSpec("a", torch.bfloat16, (3, 5)), ParameterSpec("b", torch.float32, (2, 700))))


def test_tensors_of_a_slot_are_views_of_its_bytes() -> None:
    arena = HostArena(LAYOUT, 2, 3)
    arena.bytes_of(1)[:] = 0
    arena.weights(1)["b"][1, 699] = 7.5
    assert arena.bytes_of(1)[64 + 1399 * 4 :][:4].view(np.float32)[0] == 7.5
    assert arena.weights(1)["a"].dtype == torch.bfloat16
    assert arena.tensor_of(1).data_ptr() % mmap.PAGESIZE == 0
    assert arena.weights(1) is arena.weights(1)


def test_a_retired_slot_is_empty_and_its_neighbours_are_not() -> None:
    arena = HostArena(LAYOUT, 3, 3)
    for slot in range(3):
        arena.bytes_of(slot)[:] = slot + 1
    arena.retire(1)
    assert [int(arena.bytes_of(slot).max()) for slot in range(3)] == [1, 0, 3]
    arena.revive(1)
    arena.bytes_of(1)[:] = 9
    assert [int(arena.bytes_of(slot).min()) for slot in range(3)] == [1, 9, 3]


WIDE = ExpertLayout((ParameterSpec("a", torch.uint8, (64 << 20,)), ParameterSpec("b", torch.int32, (700,))))
FAR = (1 << 33) // WIDE.slot_bytes + 1  # a slot that begins behind 2^33 bytes, of which hardly any are used


def far_host_arena() -> HostArena:
    return HostArena(WIDE, 1, FAR + 1)


def far_device_arena() -> DeviceArena:
    reserved = mmap.mmap(-1, (FAR + 1) * WIDE.slot_bytes, flags=RESERVE)
    return DeviceArena(WIDE, torch.frombuffer(reserved, dtype=torch.uint8))


@pytest.mark.parametrize("make", [far_host_arena, far_device_arena])
def test_a_slot_behind_32_bits_of_bytes_is_where_it_should_be(make: Callable[[], HostArena | DeviceArena]) -> None:
    arena = make()
    last = arena.weights(FAR)["b"][-1:]
    last.fill_(7)
    assert last.data_ptr() == arena.address + FAR * WIDE.slot_bytes + WIDE.offsets["b"] + 699 * 4
    assert int(arena.tensor_of(FAR)[WIDE.offsets["b"] :].view(torch.int32)[699]) == 7
    assert not arena.weights(FAR % 64)["b"].any()  # where 32 bits would lead


@pytest.fixture
def without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give advice that this kernel does not know, so that it answers as one without huge pages does."""
    for name in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE"):
        monkeypatch.setattr(mmap, name, 12345)


@pytest.mark.usefixtures("without_huge_pages")
def test_slots_work_without_huge_pages() -> None:
    test_a_retired_slot_is_empty_and_its_neighbours_are_not()
    assert page_aligned(2 * mmap.PAGESIZE).ctypes.data % mmap.PAGESIZE == 0
    assert float(ReservedTensor((4, 1000), torch.float32).tensor.sum()) == 0


def refuse_beyond(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mmap.mmap

    def reserve(file: int, nbytes: int, **options: Any) -> mmap.mmap:
        if nbytes > limit:
            raise OSError(12, "Cannot allocate memory")
        return real(file, nbytes, **options)

    monkeypatch.setattr(mmap, "mmap", reserve)


def test_an_arena_that_cannot_reserve_addresses_to_grow_has_its_first_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_beyond(2 * LAYOUT.slot_bytes, monkeypatch)
    assert HostArena(LAYOUT, 2, 100).capacity == 2


def test_an_arena_has_whole_slots_of_the_addresses_that_it_can_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_beyond(5 * LAYOUT.slot_bytes, monkeypatch)
    assert HostArena(LAYOUT, 1, 100).capacity == 3


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_an_arena_leaves_half_of_the_addresses_that_a_limit_leaves(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0 if kind == resource.RLIMIT_AS else 5]) * mmap.PAGESIZE
    limits = {kind: used + (1 << 30)}
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (limits.get(asked, resource.RLIM_INFINITY),) * 2)
    assert HostArena(WIDE, 1, 100).capacity == pytest.approx((1 << 29) // WIDE.slot_bytes, abs=1)


def test_memory_that_cannot_be_reserved_is_a_budget_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_beyond(LAYOUT.slot_bytes, monkeypatch)
    with pytest.raises(BudgetError, match=rf"cannot reserve {2 * LAYOUT.slot_bytes} bytes .* smaller budget"):
        HostArena(LAYOUT, 2, 100)


def test_slots_of_a_device_share_one_tensor() -> None:
    memory = torch.zeros(2 * LAYOUT.slot_bytes, dtype=torch.uint8)
    arena = DeviceArena(LAYOUT, memory)
    arena.weights(1)["a"].fill_(1)
    assert int(memory[: LAYOUT.slot_bytes].max()) == 0
    assert torch.equal(arena.tensor_of(1), memory[LAYOUT.slot_bytes :])
