"""Whether a model fits the memory that there is; what does not is refused before the system kills the process."""

from __future__ import annotations

import torch

from expert_store import ExpertCatalog, least_bytes
from server.settings import ServeSettings, SettingsError

from .budget import host_budget
from .expert_plan import FreeMemory
from .machine import own_bytes
from .plan import GROWTH_BYTES, PROCESS_BYTES, MemoryPlan
from .sizes import as_flag, format_bytes

USUAL_STEP_BYTES = 64 << 20  # of a step and some KV cache, before more is known of the model
MORE_MEMORY = "free some, take a machine with more, or `greenroom pack --weights int4` the model"


def check_trunk(
    settings: ServeSettings, trunk_bytes: int, catalog: ExpertCatalog, dtype: torch.dtype, device: torch.device
) -> None:
    """Before a trunk is loaded: check that it fits, with one expert of every layer.

    Raises:
        SettingsError: it does not; the message says which flag to change.
    """
    free = FreeMemory.beside(settings, device, host_budget(settings) - own_bytes(), 0)
    least = least_bytes(catalog, 1)
    # On its way to a device a trunk passes through the host's memory.
    short = free.device if trunk_bytes + least > free.device else free.host
    if trunk_bytes + least <= short:
        return
    advice = "try --dtype bfloat16" if dtype == torch.float32 else "try --device cpu" if free.is_cuda else MORE_MEMORY
    if settings.memory != "auto" and short == free.host:
        enough = PROCESS_BYTES + GROWTH_BYTES + trunk_bytes + least + USUAL_STEP_BYTES
        advice = f"give --memory {as_flag(enough, rounds_up=True)} or more"
    raise SettingsError(
        f"the model does not fit: its trunk takes {format_bytes(trunk_bytes)} in {str(dtype).removeprefix('torch.')} "
        f"and its experts at least {format_bytes(least)}, of {format_bytes(short)} available; {advice}"
    )


def check_plan(settings: ServeSettings, plan: MemoryPlan) -> None:
    """Before memory is taken for experts and KV cache: check that what was asked for fits beside the rest.

    Raises:
        SettingsError: it does not; the message says which flag to change, and to what.
    """
    if not (plan.free.is_cuda or plan.is_kv_pinned or plan.are_experts_pinned or plan.device_bytes):
        return  # planned to fit
    kv_bytes = plan.kv.nbytes if plan.free.is_cuda or plan.is_kv_pinned else plan.kv.first_bytes
    host_bytes = plan.host_bytes if plan.are_experts_pinned or plan.free.is_cuda else plan.least_host_bytes
    needs = plan.needs
    check_budgets(settings, needs.catalog, needs.top_k, plan.free, kv_bytes, host_bytes, plan.device_bytes)


def check_budgets(
    settings: ServeSettings,
    catalog: ExpertCatalog,
    top_k: int,
    free: FreeMemory,
    kv_bytes: int,
    host_bytes: int,
    device_bytes: int,
) -> None:
    """Before memory is taken for experts and KV cache: check that what was planned fits beside the trunk.

    Args:
        top_k: experts a token, of the widest layer.

    Raises:
        SettingsError: it does not; the message says which flag to change, and to what.
    """
    least, device, host = least_bytes(catalog, top_k), settings.device_expert_memory, settings.host_expert_memory
    if free.is_cuda:
        _check("--device-expert-memory", device, device_bytes, least, free.device, kv_bytes)
        _check("--host-expert-memory", host, host_bytes, least, free.host, 0)
        return
    if device_bytes:  # a device tier in the host's memory
        _check("--device-expert-memory", device, device_bytes, least, free.host - least, kv_bytes)
    _check("--host-expert-memory", host, host_bytes, least, free.host - device_bytes, kv_bytes)


def _check(flag: str, text: str, planned: int, least: int, free: int, kv_bytes: int) -> None:
    """Whether the experts of one tier fit, and beside them the KV cache, if it lies in the same memory."""
    if planned + kv_bytes <= free:
        return
    beside = f" beside {format_bytes(kv_bytes)} of KV cache" if kv_bytes else ""
    if least + kv_bytes <= free:
        change = f"{flag} {text} is {format_bytes(planned)}{beside}, and {format_bytes(max(0, free))} are available"
        raise SettingsError(f"{change}; give {flag} {as_flag(free - kv_bytes)} at most, or auto")
    needs = f"the experts of a token need {format_bytes(least)}{beside}, and {format_bytes(max(0, free))} are available"
    if kv_bytes and least < free:
        raise SettingsError(f"{needs}; give --kv-cache-memory {as_flag(free - least)} at most, or less --max-model-len")
    raise SettingsError(f"{needs} beside the trunk; {MORE_MEMORY}")
