"""Memory control groups (cgroups v1 and v2), one for each measured process.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path("/sys/fs/cgroup")
NUMBERS = itertools.count()
CACHED_SHARE = 0.05  # tolerated share of cached pages, from readahead


class ControlGroupError(Exception):
    """No memory control group can be created on this machine by this user."""


class ControlGroup:
    """A new memory control group; page cache counts towards its limit.

    Raises:
        ControlGroupError: If the group cannot be created.
    """

    def __init__(self, limit_bytes: int | None, root: Path = ROOT):
        self._is_v1 = (root / "memory" / "memory.limit_in_bytes").exists()
        base = root / "memory" if self._is_v1 else root
        self._folder = base / f"greenroom-compare-{os.getpid()}-{next(NUMBERS)}"
        try:
            if not self._is_v1 and "memory" not in (root / "cgroup.subtree_control").read_text().split():
                (root / "cgroup.subtree_control").write_text("+memory")
            self._folder.mkdir()
            if limit_bytes is not None:
                self._limit(limit_bytes)
        except OSError as error:
            raise ControlGroupError(f"no memory control group can be created in {base}: {error}") from error

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs ``command`` in this group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._folder), *command]

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]

    def peak_bytes(self) -> int | None:
        """Return the maximum memory of the group, including page cache; None if the kernel does not report it."""
        try:
            name = "memory.max_usage_in_bytes" if self._is_v1 else "memory.peak"
            return int((self._folder / name).read_text())
        except OSError:
            return None

    def used_bytes(self) -> int:
        """Return the bytes in use, without page cache of files, which the kernel can reclaim."""
        usage = int((self._folder / ("memory.usage_in_bytes" if self._is_v1 else "memory.current")).read_text())
        statistics = dict(line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        return max(0, usage - int(statistics["active_file"]) - int(statistics["inactive_file"]))

    def num_kills(self) -> int:
        """Return the number of processes that the OOM killer ended."""
        text = (self._folder / ("memory.oom_control" if self._is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def close(self) -> None:
        """Kill the remaining processes of the group, and remove it."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            pids = self.pids()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not pids:
                break
            time.sleep(0.1)
        if self._is_v1:
            (self._folder / "memory.force_empty").write_text("0")
        self._folder.rmdir()

    def _limit(self, limit_bytes: int) -> None:
        if self._is_v1:
            (self._folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
            return
        (self._folder / "memory.max").write_text(str(limit_bytes))
        swap = self._folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")


def drop_page_cache(path: Path) -> None:
    """Drop a file, or all files of a folder, from the page cache.

    Raises:
        ControlGroupError: If files stay cached because another process maps them; the limit would not count them.
    """
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if cached_share(opened.fileno()) > CACHED_SHARE:
                raise ControlGroupError(
                    f"{file} stays in the page cache because another process maps it; stop that process first"
                )


def cached_share(descriptor: int) -> float:
    """Return the share of a file's pages that are in the page cache."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 0.0
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:  # writable, as from_buffer requires
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
        )
    if failed:
        raise OSError("mincore failed")
    return float((pages & 1).mean())
