"""Plans and reports the memory of a model whose trunk is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from expert_store import ExpertCatalog, ExpertStore, is_on_disk
from server.byte_sizes import format_bytes
from server.device import is_gpu, tensor_bytes
from server.engine.interface import ModelCard, RequestMemory
from server.memory.budget import host_budget, wait_for_counters, warn_if_lowered
from server.memory.elastic_budget import REQUESTS_IN_GROWTH, ElasticBudget
from server.memory.fit_checks import plan_that_fits
from server.memory.machine import own_bytes
from server.memory.plan import GROWTH_BYTES, PROCESS_BYTES, MemoryPlan, ModelNeeds
from server.memory.step_memory import StepShape
from server.memory.usage import Adjustments, MemoryUsage
from server.model.checkpoint.description import ModelDescription
from server.model.trunk_loader import AnyTrunk
from server.settings import ServeSettings

log = logging.getLogger(__name__)


def plan_beside_trunk(trunk: AnyTrunk, settings: ServeSettings, device: torch.device) -> MemoryPlan:
    """Plan the memory beside a loaded trunk. The process is measured as it is now.

    The plan of `inspect` and `doctor`, which assume the size of the process, must fit as well, so that all three refuse
    the same.

    Raises:
        SettingsError: a budget or limit does not suit the model, or does not fit.
    """
    wait_for_counters()
    budget_bytes, trunk_bytes = host_budget(settings), 0 if is_gpu(device) else trunk.nbytes
    warn_if_lowered(settings, budget_bytes)
    needs = needs_of_trunk(trunk)
    plan_that_fits(settings, needs, device, budget_bytes, PROCESS_BYTES)
    plan = plan_that_fits(settings, needs, device, budget_bytes, max(0, own_bytes() - trunk_bytes))
    for note in plan.notes:
        log.warning("%s", note)
    return plan


def needs_of_trunk(trunk: AnyTrunk) -> ModelNeeds:
    """Return the sizes of a loaded model that the memory planner needs."""
    facts, catalog = trunk.facts, trunk.catalog
    shape = StepShape.of(
        trunk.config,
        facts.kv_groups,
        catalog.num_experts,
        num_routed=len(catalog.layers),
        top_k=facts.top_k,
        itemsize=trunk.dtype.itemsize,
        has_native=facts.program.has_native,
        has_modules=not facts.program.is_native,
        states=facts.states,
    )
    return ModelNeeds(
        catalog,
        trunk.nbytes,
        facts.top_k,
        kv_groups=facts.kv_groups,
        longest=trunk.max_model_len,
        state_bytes=facts.state_bytes,
        state_rows=facts.state_rows,
        shares_prefixes=facts.shares_prefixes,
        step=shape,
        is_loaded=True,
    )


def request_memory(plan: MemoryPlan, elastic: ElasticBudget | None, wake: Callable[[], None]) -> RequestMemory:
    """Return the memory that requests may hold.

    Args:
        wake: wakes the engine, so that it frees blocks of the KV cache that no sequence uses.
    """
    if elastic is None:
        left = plan.budget_bytes - plan.fixed_bytes - plan.step_bytes - plan.host_bytes
        limit = max(REQUESTS_IN_GROWTH, left)
        return RequestMemory(lambda: limit)

    def make_room(nbytes: int) -> int:
        room = elastic.make_room_for_requests(nbytes)
        if room < nbytes:
            wake()
        return room

    return RequestMemory(lambda: elastic.request_limit_bytes, make_room)


def memory_usage(
    plan: MemoryPlan,
    store: ExpertStore,
    elastic: ElasticBudget | None,
    adapters: Callable[[], int],
    requests: Callable[[], int],
) -> MemoryUsage:
    """Return the memory use of a server, which is measured at each call of its functions.

    Args:
        adapters: returns the bytes of adapters in memory.
        requests: returns the bytes that requests hold.
    """
    states = 0 if plan.free.has_gpu else plan.kv.fixed_bytes
    return MemoryUsage(
        budget_bytes=plan.budget_bytes,
        trunk_bytes=plan.trunk_bytes,
        process_bytes=plan.process_bytes,
        experts=lambda: store.host_resident_bytes,
        kv_cache=lambda: states + (0 if elastic is None else elastic.allowance.taken_bytes),
        step=lambda: 0 if elastic is None else elastic.step_bytes,
        expert_budget=lambda: plan.host_bytes if elastic is None else elastic.expert_budget,
        kv_budget=lambda: states + (0 if elastic is None else elastic.allowance.limit_bytes),
        adapters=adapters,
        requests=requests,
        growth_bytes=GROWTH_BYTES + plan.needs.reading_bytes,
        adjustments=Adjustments() if elastic is None else elastic.adjustments,
    )


def describe_model(trunk: AnyTrunk, description: ModelDescription, usage: MemoryUsage) -> ModelCard:
    """Return what lists of models show of a loaded model."""

    def host_bytes() -> int:
        return usage.trunk_bytes + usage.experts() + usage.kv_cache()

    def device_bytes() -> int:
        return tensor_bytes(trunk.device)

    return ModelCard(
        description.architecture,
        trunk.nbytes + trunk.catalog.stored_bytes,
        host_bytes,
        device_bytes,
        format=description.format,
        weights=description.weights,
        num_parameters=description.num_parameters or trunk.num_parameters,
        licence=description.licence,
        metadata=description.metadata,
    )


def log_plan(trunk: AnyTrunk, store: ExpertStore, memory: MemoryPlan) -> None:
    """Log the sizes of the trunk, the expert tiers and the KV cache."""
    plan = memory.kv
    catalog: ExpertCatalog = trunk.catalog
    log.info(
        "memory: budget %s, of which the process uses %s and steps use up to %s",
        *map(format_bytes, (memory.budget_bytes, memory.process_bytes, memory.step_bytes)),
    )
    log.info("trunk: %s resident", format_bytes(trunk.nbytes))
    log.info(
        "experts: %d in %d layers, %s %s",
        sum(catalog.layouts.values()),
        len(catalog.layers),
        format_bytes(catalog.stored_bytes),
        "on disk" if is_on_disk(catalog) else "on a server",
    )
    for tier in store.tiers().values():
        log.info(
            "%s tier: slots for %d experts, %s of memory", tier.name, tier.num_slots, format_bytes(tier.slot_bytes)
        )
    if memory.adapter_bytes:
        log.info("adapters: up to %s of memory", format_bytes(memory.adapter_bytes))
    log.info(
        "KV cache: %s%s for %d tokens; context %d",
        "up to " if plan.is_elastic else "",
        format_bytes(plan.nbytes),
        plan.num_tokens,
        plan.max_model_len,
    )
    if plan.state_bytes:
        snapshots = f" and {plan.num_snapshots} prefix snapshots" if plan.num_snapshots else ""
        nbytes = format_bytes(plan.fixed_bytes)
        log.info("recurrent states: %s of the KV cache for %d sequences%s", nbytes, plan.num_slots, snapshots)
