"""Tensors in memory are moved onto huge pages where the system has some."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from expert_store.huge_pages import MOST_BLOCKS, MOST_REFUSED, use_huge_pages

HUGE = 2 << 20


def tensor_at(address: int, nbytes: int) -> torch.Tensor:
    """Return bytes that seem to be at an address."""

    class Storage:
        def data_ptr(self) -> int:
            return address

        def nbytes(self) -> int:
            return nbytes

    class Tensor:
        def untyped_storage(self) -> Storage:
            return Storage()

    return Tensor()  # type: ignore[return-value]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings of a system with huge pages of 2 MiB for those who ask."""
    (tmp_path / "enabled").write_text("always [madvise] never\n", "ascii")
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n", "ascii")
    return tmp_path


class System:
    """A system that is asked for huge pages, and answers with an error number."""

    def __init__(self, error: int = 0):
        self.error = error
        self.blocks: list[int] = []  # that it was asked for, in order
        self.num_calls = 0

    def advise(self, address: int, nbytes: int) -> int:
        assert address % HUGE == nbytes % HUGE == 0
        self.num_calls += 1
        self.blocks += range(address // HUGE, (address + nbytes) // HUGE)
        return self.error


def moved_blocks(tensors: list[torch.Tensor], settings: Path) -> list[int]:
    """Return the numbers of the blocks of which a system is asked."""
    system = System()
    use_huge_pages(tensors, settings, system.advise)
    return system.blocks


def test_blocks_are_moved_that_tensors_fill_by_half(settings: Path) -> None:
    half = HUGE // 2
    neighbours = [tensor_at(10 * HUGE + i * half // 4, half // 4) for i in range(4)]
    alone = [tensor_at(20 * HUGE + 4096, half - 4096)]
    long = [tensor_at(30 * HUGE + half, 2 * HUGE + half - 1)]
    meta = [torch.empty(8 * HUGE, dtype=torch.uint8, device="meta")]
    assert moved_blocks([*neighbours, *alone, *long, *meta], settings) == [10, 30, 31, 32]


def test_a_tensor_counts_once_however_many_share_its_memory(settings: Path) -> None:
    third = HUGE // 3
    assert moved_blocks([tensor_at(5 * HUGE, third), tensor_at(5 * HUGE, third)], settings) == []


def test_a_system_without_a_free_huge_page_is_not_asked_for_ever(settings: Path) -> None:
    system = System(errno.ENOMEM)
    use_huge_pages([tensor_at(HUGE, 2 * MOST_REFUSED * MOST_BLOCKS * HUGE)], settings, system.advise)
    assert system.num_calls == MOST_REFUSED


def test_a_system_is_not_asked_for_much_at_once(settings: Path) -> None:
    system = System()
    use_huge_pages([tensor_at(HUGE, (2 * MOST_BLOCKS + 1) * HUGE)], settings, system.advise)
    assert (system.num_calls, len(system.blocks)) == (3, 2 * MOST_BLOCKS + 1)


def never(settings: Path) -> None:
    (settings / "enabled").write_text("always madvise [never]\n", "ascii")


def absent(settings: Path) -> None:
    (settings / "enabled").unlink()


@pytest.mark.parametrize("change", [never, absent])
def test_a_system_that_uses_none_is_not_asked(change: Callable[[Path], None], settings: Path) -> None:
    change(settings)
    assert moved_blocks([tensor_at(HUGE, 8 * HUGE)], settings) == []


def test_moved_tensors_keep_their_place_and_their_bytes() -> None:
    memory = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, dtype=np.int32)
    numbers[:] = np.arange(len(numbers))
    tensor = torch.from_numpy(numbers)
    address = tensor.data_ptr()
    use_huge_pages([tensor])
    assert tensor.data_ptr() == address
    assert torch.equal(tensor, torch.arange(len(numbers), dtype=torch.int32))
