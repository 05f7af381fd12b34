"""How much memory the experts get on the device and in host memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from expert_store import ExpertCatalog, least_bytes
from server.settings import ServeSettings, parse_budget

from .machine import available_bytes
from .sizes import format_bytes

log = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 30  # left to the system, and for the tensors of a step


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that may still be taken once the trunk is resident."""

    host: int
    device: int  # where compute runs; the same memory on a CPU
    is_cuda: bool

    @classmethod
    def beside_trunk(cls, device: torch.device, trunk_bytes: int = 0) -> FreeMemory:
        """What there is now, less a trunk that is yet to be loaded."""
        is_cuda, host = device.type == "cuda", available_bytes()
        if is_cuda:
            return cls(host, max(0, torch.cuda.mem_get_info(device)[0] - trunk_bytes), is_cuda)
        host = max(0, host - trunk_bytes)
        return cls(host, host, is_cuda)


def plan_experts(
    settings: ServeSettings, catalog: ExpertCatalog, top_k: int, free: FreeMemory, kv_bytes: int
) -> tuple[int, int]:
    """The budgets of the host and the device tier in bytes, each no more than all experts take.

    One that is too little is raised, with a warning.

    Args:
        top_k: experts a token, of the widest layer.
        kv_bytes: that the KV cache takes where compute runs.
    """
    total = catalog.total_bytes
    auto = min(total, max(0, free.device - kv_bytes - RESERVE_BYTES)) if free.is_cuda else 0
    device_bytes = min(total, parse_budget(settings.device_expert_memory).resolve(total, auto))
    if device_bytes or free.is_cuda:
        device_bytes = _at_least("--device-expert-memory", settings.device_expert_memory, device_bytes, catalog, top_k)
    taken = RESERVE_BYTES if free.is_cuda else RESERVE_BYTES + kv_bytes + device_bytes
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
