"""Refuses a model or a budget that does not fit in memory, before the system kills the process."""

from __future__ import annotations

import torch

from expert_store import ExpertCatalog, least_bytes
from server.byte_sizes import as_flag, format_bytes
from server.memory.advice import SMALL_EXPERTS, describe_budget, how_to_fit
from server.memory.expert_plan import FreeMemory
from server.memory.plan import (
    GROWTH_BYTES,
    PROCESS_BYTES,
    MemoryPlan,
    ModelNeeds,
    plan_memory,
    reading_memory_bytes,
)
from server.setting_values import Budget
from server.settings import ServeSettings, SettingsError

USUAL_STEP_BYTES = 64 << 20  # a guess for a step and some KV cache, before more of the model is known


def predict_plan(
    settings: ServeSettings, needs: ModelNeeds, dtype: torch.dtype, device: torch.device, budget_bytes: int
) -> MemoryPlan:
    """Plan the memory of a model that is not loaded. `inspect` and `doctor` refuse here what `serve` refuses.

    Raises:
        SettingsError: a budget or limit does not suit the model, or does not fit.
    """
    check_trunk(settings, needs.trunk_bytes, needs.catalog, dtype=dtype, device=device, budget_bytes=budget_bytes)
    return plan_that_fits(settings, needs, device, budget_bytes, PROCESS_BYTES)


def plan_that_fits(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> MemoryPlan:
    """Plan the memory, and check the plan; see ``plan_memory``.

    Raises:
        SettingsError: a budget or limit does not suit the model, or does not fit.
    """
    plan = plan_memory(settings, needs, device, budget_bytes, process_bytes)
    check_plan(settings, plan)
    return plan


def check_trunk(
    settings: ServeSettings,
    trunk_bytes: int,
    catalog: ExpertCatalog,
    *,
    dtype: torch.dtype,
    device: torch.device,
    budget_bytes: int,
) -> None:
    """Check that a trunk and one expert of every layer fit, before the trunk is loaded.

    Args:
        budget_bytes: the budget of host memory.

    Raises:
        SettingsError: they do not fit; the message names the flag to change.
    """
    free = FreeMemory.beside(settings, device, budget_bytes - PROCESS_BYTES, 0)
    least = least_bytes(catalog, 1)
    # The trunk passes through host memory on its way to a device.
    short = free.device if trunk_bytes + least > free.device else free.host
    if trunk_bytes + least <= short:
        return
    fixed = PROCESS_BYTES + GROWTH_BYTES + reading_memory_bytes(catalog) + trunk_bytes
    advice = how_to_fit(settings, budget_bytes, fixed + least + USUAL_STEP_BYTES, fixed_bytes=fixed)
    is_asked = not settings.memory.is_auto and short == free.host  # of host memory by --memory
    if not is_asked and (dtype == torch.float32 or free.has_gpu):
        advice = "try --dtype bfloat16" if dtype == torch.float32 else "try --device cpu"
    beside = f" beside the process ({describe_budget(settings, budget_bytes)})" if is_asked else ""
    raise SettingsError(
        f"the model does not fit: its trunk needs {format_bytes(trunk_bytes)} in {str(dtype).removeprefix('torch.')} "
        f"and its experts at least {format_bytes(least)}, "
        f"but only {format_bytes(max(0, short))} are available{beside}; {advice}"
    )


def check_plan(settings: ServeSettings, plan: MemoryPlan) -> None:
    """Check that the budgets which the user set fit beside the rest, before experts and KV cache are allocated.

    Raises:
        SettingsError: they do not fit; the message names the flag to change and a value that fits.
    """
    if not (plan.free.has_gpu or plan.has_kv_budget or plan.has_expert_budget or plan.device_bytes):
        return  # the planner chose all budgets, so they fit
    kv_bytes = plan.kv.nbytes if plan.free.has_gpu or plan.has_kv_budget else plan.kv.first_bytes
    host_bytes = plan.host_bytes if plan.has_expert_budget or plan.free.has_gpu else plan.least_host_bytes
    needs = plan.needs
    check_budgets(
        settings,
        needs.catalog,
        needs.top_k,
        free=plan.free,
        kv_bytes=kv_bytes,
        host_bytes=host_bytes,
        device_bytes=plan.device_bytes,
    )


def check_budgets(
    settings: ServeSettings,
    catalog: ExpertCatalog,
    top_k: int,
    *,
    free: FreeMemory,
    kv_bytes: int,
    host_bytes: int,
    device_bytes: int,
) -> None:
    """Check that experts and KV cache fit beside the trunk.

    Args:
        top_k: experts per token, of the layer with the most.

    Raises:
        SettingsError: they do not fit; the message names the flag to change and a value that fits.
    """
    least, device, host = least_bytes(catalog, top_k), settings.device_expert_memory, settings.host_expert_memory
    if free.has_gpu:
        _check("--device-expert-memory", device, device_bytes, least=least, free=free.device, kv_bytes=kv_bytes)
        _check("--host-expert-memory", host, host_bytes, least=least, free=free.host, kv_bytes=0)
        return
    if device_bytes:  # a device tier in host memory
        _check("--device-expert-memory", device, device_bytes, least=least, free=free.host - least, kv_bytes=kv_bytes)
    _check("--host-expert-memory", host, host_bytes, least=least, free=free.host - device_bytes, kv_bytes=kv_bytes)


def _check(flag: str, budget: Budget, planned: int, *, least: int, free: int, kv_bytes: int) -> None:
    """Check that the experts of one tier fit, with the KV cache if it is in the same memory."""
    if planned + kv_bytes <= free:
        return
    beside = f" beside {format_bytes(kv_bytes)} of KV cache" if kv_bytes else ""
    if least + kv_bytes <= free:
        change = (
            f"{flag} {budget} is {format_bytes(planned)}{beside}, but only {format_bytes(max(0, free))} are available"
        )
        raise SettingsError(f"{change}; set {flag} to {as_flag(free - kv_bytes)} at most, or to auto")
    available = f"but only {format_bytes(max(0, free))} are available"
    needs = f"the experts of a token need {format_bytes(least)}{beside}, {available}"
    if kv_bytes and least < free:
        raise SettingsError(
            f"{needs}; set --kv-cache-memory to {as_flag(free - least)} at most, or lower --max-model-len"
        )
    raise SettingsError(f"{needs} beside the trunk; free some memory, use a machine with more, or {SMALL_EXPERTS}")
