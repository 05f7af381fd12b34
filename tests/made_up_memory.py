"""A server's memory, as tests make it up."""

from __future__ import annotations

from server.memory.usage import MemoryUsage


def made_up_memory() -> MemoryUsage:
    """1 GiB of budget: 300 bytes of trunk, 100 of the process, and round numbers for the rest."""
    return MemoryUsage(
        budget_bytes=1 << 30,
        trunk_bytes=300,
        process_bytes=100,
        experts=lambda: 2000,
        kv_cache=lambda: 40,
        step=lambda: 5,
        expert_budget=lambda: 3000,
        kv_budget=lambda: 50,
    )
