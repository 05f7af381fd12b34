"""How much memory the experts get on the device and in host memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from expert_store import ExpertCatalog, least_bytes
from server.settings import ServeSettings, parse_budget

from .sizes import format_bytes

log = logging.getLogger(__name__)

DEVICE_RESERVE_BYTES = 1 << 30  # of a device's memory: for the tensors of a step, and what its libraries take


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that experts and KV cache may take once the trunk is resident."""

    host: int
    device: int  # where compute runs; the same memory on a CPU
    is_cuda: bool

    @classmethod
    def beside(
        cls, settings: ServeSettings, device: torch.device, host_bytes: int, unloaded_trunk_bytes: int
    ) -> FreeMemory:
        """Free memory of the host's budget and of the device's.

        Args:
            unloaded_trunk_bytes: of a trunk that the device does not hold yet.
        """
        host_bytes = max(0, host_bytes)
        if device.type != "cuda":
            return cls(host_bytes, host_bytes, is_cuda=False)
        free, total = torch.cuda.mem_get_info(device)
        limit = parse_budget(settings.device_memory).resolve(total, total)
        left = min(free, limit - (total - free)) - unloaded_trunk_bytes - DEVICE_RESERVE_BYTES
        return cls(host_bytes, max(0, left), is_cuda=True)


def plan_experts(
    settings: ServeSettings, catalog: ExpertCatalog, top_k: int, free: FreeMemory, kv_bytes: int
) -> tuple[int, int]:
    """The budgets of the host and the device tier in bytes, each no more than all experts take.

    One that is too little is raised, with a warning.

    Args:
        top_k: experts a token, of the widest layer.
        kv_bytes: that the KV cache takes where compute runs, at the start.
    """
    total = catalog.total_bytes
    auto = min(total, max(0, free.device - kv_bytes)) if free.is_cuda else 0
    device_bytes = min(total, parse_budget(settings.device_expert_memory).resolve(total, auto))
    if device_bytes or free.is_cuda:
        device_bytes = _at_least("--device-expert-memory", settings.device_expert_memory, device_bytes, catalog, top_k)
    taken = 0 if free.is_cuda else kv_bytes + device_bytes
    auto = min(total, max(0, free.host - taken))
    host_bytes = min(total, parse_budget(settings.host_expert_memory).resolve(total, auto))
    return _at_least("--host-expert-memory", settings.host_expert_memory, host_bytes, catalog, top_k), device_bytes


def _at_least(flag: str, text: str, asked: int, catalog: ExpertCatalog, top_k: int) -> int:
    least = least_bytes(catalog, top_k)
    if asked < least and text != "auto":
        log.warning(
            "%s %s is %s; raised to %s, the least that holds the %d experts of a token",
            flag,
            text,
            format_bytes(asked),
            format_bytes(least),
            top_k,
        )
    return max(asked, least)
