"""Decides how much memory the experts get on the device and on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expert_store import ExpertCatalog, least_bytes
from server.byte_sizes import format_bytes
from server.device import free_and_total_bytes, is_gpu
from server.setting_values import Budget
from server.settings import ServeSettings

DEVICE_RESERVE_BYTES = 1 << 30  # device memory kept for the tensors of a step and for CUDA libraries
STEP_RESERVE_BYTES = DEVICE_RESERVE_BYTES // 2  # of these, for a step; larger ones are planned for


@dataclass(frozen=True)
class ExpertBudgets:
    """Budgets of the tiers in bytes, each at most the size of all experts unless variants may be loaded."""

    host: int
    device: int
    notes: tuple[str, ...] = ()  # budgets that were raised to the minimum, for the log


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that experts and KV cache may use beside the trunk."""

    host: int
    device: int  # memory that compute reads; equal to ``host`` on a CPU
    has_gpu: bool

    @classmethod
    def beside(
        cls, settings: ServeSettings, device: torch.device, host_bytes: int, unloaded_trunk_bytes: int
    ) -> FreeMemory:
        """Return the free memory of the host's and the device's budget.

        Args:
            host_bytes: free bytes of the host's budget.
            unloaded_trunk_bytes: bytes of a trunk that is yet to be loaded onto the device.
        """
        host_bytes = max(0, host_bytes)
        if not is_gpu(device):
            return cls(host_bytes, host_bytes, has_gpu=False)
        free, total = free_and_total_bytes(device)
        limit = settings.device_memory.resolve(total, total)
        left = min(free, limit - (total - free)) - unloaded_trunk_bytes - DEVICE_RESERVE_BYTES
        return cls(host_bytes, max(0, left), has_gpu=True)


def host_bytes(settings: ServeSettings, catalog: ExpertCatalog, auto: int) -> int:
    """Return the asked bytes of the host tier: at most those of all experts, unless variants may be loaded.

    Args:
        auto: the value of ``auto``.
    """
    return _tier_bytes(settings, settings.host_expert_memory, catalog, auto)


def _tier_bytes(settings: ServeSettings, budget: Budget, catalog: ExpertCatalog, auto: int) -> int:
    asked = budget.resolve(catalog.total_bytes, auto)
    takes_variants = (settings.experts_dir is not None or settings.variant) and not budget.is_auto
    return asked if takes_variants else min(catalog.total_bytes, asked)


def plan_experts(
    settings: ServeSettings, catalog: ExpertCatalog, top_k: int, free: FreeMemory, kv_bytes: int
) -> ExpertBudgets:
    """Decide the budgets of the host tier and the device tier. One below the minimum is raised to it, with a note.

    Args:
        top_k: experts per token, of the layer with the most.
        kv_bytes: initial size of the KV cache, in the memory that compute reads.
    """
    total, least = catalog.total_bytes, least_bytes(catalog, top_k)
    auto = min(total, max(0, free.device - kv_bytes)) if free.has_gpu else 0
    asked = _tier_bytes(settings, settings.device_expert_memory, catalog, auto)
    has_device = free.has_gpu or asked > 0
    device = max(asked, least) if has_device else 0
    taken = 0 if free.has_gpu else kv_bytes + device
    auto = min(total, max(0, free.host - taken))
    host = host_bytes(settings, catalog, auto)
    tiers = [("--host-expert-memory", settings.host_expert_memory, host)]
    if has_device:
        tiers.append(("--device-expert-memory", settings.device_expert_memory, asked))
    notes = (
        f"{flag} {budget} is {format_bytes(nbytes)}; raised to {format_bytes(least)}, the minimum for the {top_k} "
        "experts of a token"
        for flag, budget, nbytes in tiers
        if nbytes < least and not budget.is_auto
    )
    return ExpertBudgets(max(host, least), device, tuple(notes))
