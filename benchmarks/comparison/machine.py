"""Describes the machine: processor, cores, memory and instruction sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """The processor, the flags of it that matter to kernels, memory and kernel."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    found = {name.strip(): value.strip() for name, value in fields.items()}
    have = found.get("flags", "").split()
    return {
        "cpu": found.get("model name", platform.processor()),
        "family": found.get("cpu family"),
        "model": found.get("model"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in have],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
