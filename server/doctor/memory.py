"""Memory, and limits of this process."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import torch

from server.memory.budget import asked_bytes, host_budget
from server.memory.control_group import memory_limit
from server.memory.machine import available_bytes
from server.memory.sizes import format_bytes
from server.settings import ServeSettings

from .finding import Finding

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LITTLE_BYTES = 2 << 30
PINNED_BYTES = 256 << 20
FEW_FILES = 4096


def check_memory() -> Finding:
    """What there is, and what is left."""
    machine, swap, limit, available = psutil.virtual_memory(), psutil.swap_memory(), memory_limit(), available_bytes()
    message = f"{format_bytes(available)} available of {format_bytes(machine.total)}"
    message += (
        ", no limit by a control group"
        if limit is None
        else f", a control group allows {format_bytes(limit.limit_bytes)} and has used {format_bytes(limit.used_bytes)}"
    )
    message += f"; swap {format_bytes(swap.used)} of {format_bytes(swap.total)} used" if swap.total else "; no swap"
    if available < LITTLE_BYTES:
        return Finding("memory", "warn", message, "budgets are shares of what is available: free some")
    return Finding("memory", "ok", message)


def check_budget(settings: ServeSettings) -> Finding:
    """The memory that a server may take, beside what ``auto`` would be where something else is asked for."""
    budget, auto = host_budget(settings), host_budget(settings.model_copy(update={"memory": "auto"}))
    message = f"{format_bytes(budget)} for the server and its children, by --memory {settings.memory}"
    if settings.memory == "auto":
        return Finding("memory budget", "ok", message)
    if asked_bytes(settings, budget) > budget:
        return Finding("memory budget", "warn", f"{message}, which is more than there is", "leave it to auto")
    message += f"; auto would be {format_bytes(auto)}"
    if budget > auto:
        advice = "leave it to auto, or the kernel may end the server when others need memory"
        return Finding("memory budget", "warn", message, advice)
    return Finding("memory budget", "ok", message)


def check_huge_pages(path: Path = HUGE_PAGES) -> Finding:
    """Whether slots of experts may lie in huge pages, which direct reads are faster into."""
    try:
        text = path.read_text()
    except OSError as error:
        return Finding("huge pages", "ok", f"{path} can't be read: {error.strerror}")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        advice = f"reads are slower by a tenth to a half: as root, echo madvise > {path}"
        return Finding("huge pages", "warn", f"{chosen} (transparent)", advice)
    return Finding("huge pages", "ok", f"{chosen} (transparent)")


def check_pinning() -> Finding:
    """Whether host memory can be pinned, where a device copies from it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "no limit of locked memory" if soft == resource.RLIM_INFINITY else f"{format_bytes(soft)} may be locked"
    if not torch.cuda.is_available():
        return Finding("pinning", "ok", f"{limit}; nothing is pinned without CUDA")
    try:
        torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("pinning", "warn", f"{limit}; pinning failed: {reason}", "copies are slower: raise `ulimit -l`")
    return Finding("pinning", "ok", f"{limit}; {format_bytes(PINNED_BYTES)} could be pinned")


def check_open_files() -> Finding:
    """Files and connections that may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = f"{soft} files and connections at once"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        return Finding("open files", "warn", message, f"a client is one, a file of a model two: ulimit -n {most}")
    return Finding("open files", "ok", message)
