"""Moves memory that is in use onto huge pages, from which products read it faster."""

from __future__ import annotations

import ctypes
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import torch

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python's mmap does not name
MOST_REFUSED = 16  # calls for which the system found no huge page; each one costs it a search
MOST_BLOCKS = 16  # of a call, which ends where the system finds no huge page

Advise = Callable[[int, int], int]  # takes an address and bytes; returns 0 or an error number of ``madvise(2)``


def use_huge_pages(tensors: Iterable[torch.Tensor], settings: Path = SETTINGS, advise: Advise | None = None) -> None:
    """Move tensors of the host's memory onto huge pages, where the system can. Their addresses stay.

    Tensors that are each smaller than a huge page share one. A block of the size of a huge page is moved if they fill
    at least half of it, so the process grows by less than their bytes. Systems without huge pages, and those that
    never use them, are not asked.

    Args:
        settings: the system's settings of huge pages.
        advise: asks the system to move memory.
    """
    size = _block_bytes(settings)
    if not size:
        return
    advise = advise or _collapse
    num_refused = 0
    for run in _runs(_blocks(tensors, size)):
        num_refused += advise(run.start * size, len(run) * size) in {errno.ENOMEM, errno.EBUSY}
        if num_refused == MOST_REFUSED:
            return


def _runs(blocks: Iterable[int]) -> Iterator[range]:
    """Yield neighbouring blocks together, up to ``MOST_BLOCKS``."""
    run = range(0)
    for block in blocks:
        if block == run.stop and 0 < len(run) < MOST_BLOCKS:
            run = range(run.start, block + 1)
            continue
        if run:
            yield run
        run = range(block, block + 1)
    if run:
        yield run


def _blocks(tensors: Iterable[torch.Tensor], block_bytes: int) -> list[int]:
    """Return the numbers of the blocks of memory that tensors fill at least by half, in order."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (each.untyped_storage() for each in tensors)}
    filled: Counter[int] = Counter()
    storages.pop(0, None)  # tensors without memory
    for address, nbytes in storages.items():
        end = address + nbytes
        for block in range(address // block_bytes, -(-end // block_bytes)):
            filled[block] += min(end, (block + 1) * block_bytes) - max(address, block * block_bytes)
    return sorted(block for block, covered in filled.items() if 2 * covered >= block_bytes)


def _block_bytes(settings: Path) -> int:
    try:
        chosen = (settings / "enabled").read_text("ascii")
        size = int((settings / "hpage_pmd_size").read_text("ascii"))
    except OSError:  # another system, or a kernel without them
        return 0
    return 0 if "[never]" in chosen else size


def _collapse(address: int, nbytes: int) -> int:
    return ctypes.get_errno() if _madvise()(address, nbytes, COLLAPSE) else 0


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
