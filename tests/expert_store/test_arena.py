"""Slots in one allocation, whose memory is freed and used again one by one."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch

from expert_store import BudgetError, ExpertLayout, ParameterSpec
from expert_store.arena import DeviceArena, HostArena, page_aligned
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
