"""Decides how much memory the experts get on the device and on the host."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from expert_store import ExpertCatalog, least_bytes
from server.byte_sizes import format_bytes
from server.setting_values import Budget
from server.settings import ServeSettings

log = logging.getLogger(__name__)

DEVICE_RESERVE_BYTES = 1 << 30  # device memory kept for the tensors of a step and for CUDA libraries


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that experts and KV cache may use beside the trunk."""

    host: int
    device: int  # memory that compute reads; equal to ``host`` on a CPU
    is_cuda: bool

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
        if device.type != "cuda":
            return cls(host_bytes, host_bytes, is_cuda=False)
        free, total = torch.cuda.mem_get_info(device)
        limit = settings.device_memory.resolve(total, total)
        left = min(free, limit - (total - free)) - unloaded_trunk_bytes - DEVICE_RESERVE_BYTES
        return cls(host_bytes, max(0, left), is_cuda=True)


def plan_experts(
    settings: ServeSettings, catalog: ExpertCatalog, top_k: int, free: FreeMemory, kv_bytes: int
) -> tuple[int, int]:
    """Return the budgets of the host tier and the device tier in bytes, each at most the size of all experts.

    A budget below the minimum is raised to it, with a warning.

    Args:
        top_k: experts per token, of the layer with the most.
        kv_bytes: initial size of the KV cache, in the memory that compute reads.
    """
    total = catalog.total_bytes
    auto = min(total, max(0, free.device - kv_bytes)) if free.is_cuda else 0
    device_bytes = min(total, settings.device_expert_memory.resolve(total, auto))
    if device_bytes or free.is_cuda:
        device_bytes = _at_least("--device-expert-memory", settings.device_expert_memory, device_bytes, catalog, top_k)
    taken = 0 if free.is_cuda else kv_bytes + device_bytes
    auto = min(total, max(0, free.host - taken))
    host_bytes = min(total, settings.host_expert_memory.resolve(total, auto))
    return _at_least("--host-expert-memory", settings.host_expert_memory, host_bytes, catalog, top_k), device_bytes


def _at_least(flag: str, budget: Budget, asked: int, catalog: ExpertCatalog, top_k: int) -> int:
    least = least_bytes(catalog, top_k)
    if asked < least and not budget.is_auto:
        log.warning(
            "%s %s is %s; raised to %s, the minimum for the %d experts of a token",
            flag,
            budget,
            format_bytes(asked),
            format_bytes(least),
            top_k,
        )
    return max(asked, least)
