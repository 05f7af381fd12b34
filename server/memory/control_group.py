"""Memory and CPU limits of this process' control groups, version 1 or 2.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60  # version 1 writes "no limit" as the largest multiple of the page size


@dataclass(frozen=True)
class MemoryLimit:
    """Limit and use of the control group that has the least memory free."""

    limit_bytes: int
    used_bytes: int  # without unmapped page cache, which the kernel reclaims first

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> MemoryLimit | None:
    """Return the tightest memory limit of this process; None without one."""
    limits = [
        limit
        for folder in _folders("memory", root, membership)
        for limit in (
            _memory(folder, "memory.max", "memory.current", "{}_file", "file_mapped"),
            _memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_{}_file", "total_mapped_file"),
        )
        if limit is not None
    ]
    return min(limits, key=lambda limit: limit.free_bytes, default=None)


def memory_pressure(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Return the percentage of the last ten seconds in which a thread of this process' group waited for memory.

    None if it is unknown. A group without a memory counter is the machine's root group; other processes cause its
    pressure, so it is skipped.
    """
    for folder in _folders("memory", root, membership):
        if not (folder / "memory.current").exists():
            continue
        words = (_read(folder / "memory.pressure") or "").split()
        if words[:1] == ["some"]:
            return float(words[1].removeprefix("avg10="))
    return None


def processor_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Return the CPU seconds that this process may use per second; None without a limit."""
    shares = []
    for folder in _folders("cpu", root, membership):
        words = (_read(folder / "cpu.max") or "").split()
        quota, period = words or (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota and period and quota.isdecimal():  # "max" and -1 mean no limit
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of this process' control groups and of their parents.

    In a container the paths may be those of the host; the folders under the root are then the container's own.
    """
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = [controllers, controller] if controllers else ["unified", ""]
        base = next((root / name for name in names if (root / name / "cgroup.procs").exists()), None)
        if base is None:
            continue
        folder = base / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base) and each.is_dir())


def _memory(folder: Path, limit_name: str, used_name: str, cache_name: str, mapped_name: str) -> MemoryLimit | None:
    limit, used, statistics = (_read(folder / name) for name in (limit_name, used_name, "memory.stat"))
    if limit is None or used is None or not limit.isdecimal() or int(limit) >= NO_LIMIT:
        return None
    fields = dict(line.split() for line in (statistics or "").splitlines())
    cached = sum(int(fields.get(cache_name.format(kind), 0)) for kind in ("inactive", "active"))
    return MemoryLimit(int(limit), max(0, int(used) - max(0, cached - int(fields.get(mapped_name, 0)))))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
