"""Tensors whose memory is allocated page by page at its first use, and can be released."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import torch

from server.model.errors import ModelError

FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class ReservedTensor:
    """A tensor of zeros in host memory at a fixed address.

    Huge pages are not used, since one would take memory for rows that nobody has written.

    Raises:
        ModelError: the addresses could not be reserved.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        try:
            self._map = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), flags=FLAGS)
        except OSError as error:
            raise ModelError(
                f"cannot reserve {nbytes} bytes of addresses: {error.strerror}; lower --kv-cache-memory or raise "
                "`ulimit -v`"
            ) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with suppress(OSError):  # kernels without huge pages refuse it
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
        raw = torch.from_numpy(np.frombuffer(self._map, np.uint8, nbytes))  # type: ignore[no-untyped-call,unused-ignore]
        self.tensor = raw.view(dtype).view(shape)

    def release(self, offset: int, nbytes: int) -> None:
        """Release the pages that lie completely in a range of bytes; they hold zeros from then on."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
