"""Checks memory, and limits of this process."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import torch

from server.byte_sizes import format_bytes
from server.doctor.finding import Finding
from server.memory.budget import asked_bytes, host_budget
from server.memory.control_group import memory_limit
from server.memory.machine import available_bytes
from server.setting_values import AUTO
from server.settings import ServeSettings

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LITTLE_BYTES = 2 << 30
PINNED_BYTES = 256 << 20
FEW_FILES = 4096


def check_memory() -> Finding:
    """Report the machine's memory and the available part."""
    machine, swap, limit, available = psutil.virtual_memory(), psutil.swap_memory(), memory_limit(), available_bytes()
    message = f"{format_bytes(available)} available of {format_bytes(machine.total)}"
    message += (
        ", no control group limit"
        if limit is None
        else f", control group limit {format_bytes(limit.limit_bytes)}, {format_bytes(limit.used_bytes)} of it used"
    )
    message += f"; swap {format_bytes(swap.used)} of {format_bytes(swap.total)} used" if swap.total else "; no swap"
    if available < LITTLE_BYTES:
        return Finding("memory", "warn", message, "little memory is available: stop other programs")
    return Finding("memory", "ok", message)


def check_budget(settings: ServeSettings) -> Finding:
    """Report the memory budget, and the one that ``auto`` would give if ``--memory`` is set."""
    budget, auto = host_budget(settings), host_budget(settings.model_copy(update={"memory": AUTO}))
    message = f"{format_bytes(budget)} for the server and its child processes, from --memory {settings.memory}"
    if settings.memory.is_auto:
        return Finding("memory budget", "ok", message)
    if asked_bytes(settings, budget) > budget:
        return Finding("memory budget", "warn", f"{message}, which is more than is available", "use --memory auto")
    message += f"; auto would be {format_bytes(auto)}"
    if budget > auto:
        advice = "use --memory auto, or the kernel may kill the server when other programs need memory"
        return Finding("memory budget", "warn", message, advice)
    return Finding("memory budget", "ok", message)


def check_huge_pages(path: Path = HUGE_PAGES) -> Finding:
    """Check that weights may lie on huge pages, from which products and direct reads are faster."""
    try:
        text = path.read_text()
    except OSError as error:
        return Finding("huge pages", "ok", f"unknown, as {path} can't be read: {error.strerror}")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        advice = f"weights are read at half to two thirds of the speed; run as root: echo madvise > {path}"
        return Finding("huge pages", "warn", f"{chosen} (transparent)", advice)
    return Finding("huge pages", "ok", f"{chosen} (transparent)")


def check_pinning() -> Finding:
    """Check that host memory can be pinned for copies to a device."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "no limit of locked memory" if soft == resource.RLIM_INFINITY else f"{format_bytes(soft)} may be locked"
    if not torch.cuda.is_available():
        return Finding("pinning", "ok", f"{limit}; not needed without CUDA")
    try:
        torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding(
            "pinning",
            "warn",
            f"{limit}; pinning failed: {reason}",
            "copies to the device are slower; raise `ulimit -l`",
        )
    return Finding("pinning", "ok", f"{limit}; pinning {format_bytes(PINNED_BYTES)} works")


def check_open_files() -> Finding:
    """Check the number of files and connections that may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = f"at most {soft} open files and connections"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        return Finding(
            "open files", "warn", message, f"each client needs one and each model file two; run: ulimit -n {most}"
        )
    return Finding("open files", "ok", message)
