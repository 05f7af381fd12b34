"""Cores and instructions."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

from server.kernels.native.available import availability, choose_level, describe_level
from server.kernels.native.library import KernelError
from server.memory.control_group import processor_limit

from .finding import Finding

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX BF16"}


def check_cores(threads: int | None) -> Finding:
    """Whether compute uses the cores that this process may use.

    Args:
        threads: that were asked for; None is torch's number, as for serving.
    """
    physical, usable, quota = psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)), processor_limit()
    planned = threads or torch.get_num_threads()
    cores = "cores can't be told from threads" if physical is None else f"{physical} cores"
    message = f"{cores}, {psutil.cpu_count()} hardware threads, {usable} for this process"
    if quota is not None:
        message += f", whose quota is {quota:g}"
    message += f"; {planned} compute"
    most = max(1, int(min(usable, quota or usable)))
    best = min(most, physical or most)
    if planned > most:
        return Finding("cores", "warn", message, "more threads than cores take turns", (f"--threads {best}",))
    if planned < best:
        reason = (
            f"OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else "idle cores"
        )
        return Finding("cores", "warn", message, reason, (f"--threads {best}",))
    return Finding("cores", "ok", message)


def check_instructions(cpuinfo: Path = CPUINFO) -> Finding:
    """Which instructions products of matrices can use."""
    is_fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    dtype = "bfloat16 is fast" if is_fast else "bfloat16 is slow, so --dtype auto computes in float32"
    flags = _flags(cpuinfo)
    if flags is None:
        return Finding("instructions", "ok", f"can't be read from {cpuinfo}; torch says that {dtype}")
    there = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    missing = [name for flag, name in INSTRUCTIONS.items() if flag not in flags]
    message = f"{', '.join(there) or 'none that matter'}; not {', '.join(missing) or 'one missing'}; {dtype}"
    if "avx2" not in flags:
        return Finding("instructions", "warn", message, "compute will be slow without AVX2")
    return Finding("instructions", "ok", message)


def check_kernels(wanted: str) -> Finding:
    """The level of the native kernels that compute.

    Args:
        wanted: a value of ``--kernels``.
    """
    try:
        level = choose_level(wanted)
    except KernelError as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("kernels", "fail", f"--kernels {wanted}: {reason}", advice)
    found = availability()
    if level is None and found.reason is not None and wanted == "auto":
        remedy = "reinstall with a compiler that works (CXX names it)"
        if "found no" in found.reason:
            remedy = "install g++ and reinstall"
        message = f"no native kernels: {found.reason}"
        return Finding("kernels", "warn", message, f"{remedy}; decoding is about six times slower")
    message = describe_level(wanted, level)
    if wanted != "auto":
        message += ", as --kernels asks"
        if found.runnable and level != found.runnable[-1]:
            message += f"; {found.runnable[-1]} would run"
    if found.lacking and found.reason is None:
        message += f"; the build lacks {', '.join(found.lacking)}"
    return Finding("kernels", "ok", message)


def _flags(cpuinfo: Path) -> set[str] | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
