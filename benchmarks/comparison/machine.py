"""Description of the machine: processor, cores, memory and instruction sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """Return processor, instruction sets used by kernels, memory, and kernel version."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    found = {name.strip(): value.strip() for name, value in fields.items()}
    cpu_flags = found.get("flags", "").split()
    return {
        "cpu": found.get("model name", platform.processor()),
        "family": found.get("cpu family"),
        "model": found.get("model"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in cpu_flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
