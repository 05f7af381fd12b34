"""Checks CPU cores, instruction sets and native kernels."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

from server.doctor.finding import Finding
from server.kernels.native.available import availability, choose_level, describe_level
from server.kernels.native.library import UNTIMED, KernelError
from server.memory.control_group import processor_limit

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX BF16"}


def check_cores(threads: int | None) -> Finding:
    """Check that compute uses all cores that this process may use.

    Args:
        threads: the value of ``--threads``; None is torch's number, as for serving.
    """
    physical, usable, quota = psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)), processor_limit()
    planned = threads or torch.get_num_threads()
    cores = "unknown number of cores" if physical is None else f"{physical} cores"
    message = f"{cores}, {psutil.cpu_count()} hardware threads, {usable} usable by this process"
    if quota is not None:
        message += f" with a CPU quota of {quota:g}"
    message += f"; {planned} compute threads"
    most = max(1, int(min(usable, quota or usable)))
    best = min(most, physical or most)
    if planned > most:
        return Finding("cores", "warn", message, "more compute threads than usable cores", (f"--threads {best}",))
    if planned < best:
        reason = (
            f"OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS']}"
            if "OMP_NUM_THREADS" in os.environ
            else "some cores are idle"
        )
        return Finding("cores", "warn", message, reason, (f"--threads {best}",))
    return Finding("cores", "ok", message)


def check_instructions(cpuinfo: Path = CPUINFO) -> Finding:
    """Report the instruction sets that matrix products can use."""
    is_fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    dtype = "bfloat16 is fast" if is_fast else "bfloat16 is slow, except in native layers"
    flags = _flags(cpuinfo)
    if flags is None:
        return Finding("instructions", "ok", f"unknown, as {cpuinfo} can't be read; {dtype}")
    there = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    missing = [name for flag, name in INSTRUCTIONS.items() if flag not in flags]
    message = f"{', '.join(there) or 'none of interest'}; missing: {', '.join(missing) or 'none'}; {dtype}"
    if "avx2" not in flags:
        return Finding("instructions", "warn", message, "without AVX2, compute is slow")
    return Finding("instructions", "ok", message)


def check_kernels(wanted: str) -> Finding:
    """Report the level of the native kernels.

    Args:
        wanted: the value of ``--kernels``.
    """
    try:
        level = choose_level(wanted)
    except KernelError as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("kernels", "fail", f"--kernels {wanted}: {reason}", advice)
    found = availability()
    if level is None and found.reason is not None and wanted == "auto":
        remedy = "reinstall with a working C++ compiler (set CXX to it)"
        if "found no" in found.reason:
            remedy = "install g++ and reinstall"
        message = f"no native kernels: {found.reason}"
        return Finding("kernels", "warn", message, f"{remedy}; without, decoding is about six times slower")
    message = describe_level(wanted, level)
    if wanted != "auto":
        message += ", set by --kernels"
        if found.best is not None and level != found.best:
            message += f"; auto is {found.best}" if level in UNTIMED else f"; this CPU can run {found.best}"
    elif untimed := [name for name in UNTIMED if name in found.runnable]:
        message += f"; this CPU can also run {', '.join(untimed)}, whose speed is unknown: try --kernels {untimed[-1]}"
    if found.lacking and found.reason is None:
        message += f"; not in this build: {', '.join(found.lacking)}"
    return Finding("kernels", "ok", message)


def _flags(cpuinfo: Path) -> set[str] | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
