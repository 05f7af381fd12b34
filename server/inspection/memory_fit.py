"""Finds how much of a model fits the memory budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expert_store import slots_per_layout
from server.inspection.model_summary import ModelSummary
from server.kernels.native.available import choose_level
from server.memory.budget import host_budget
from server.memory.plan import PROCESS_BYTES, MemoryPlan, ModelNeeds, least_budget, nothing_fits, plan_memory
from server.memory.step_memory import StepShape
from server.model.recurrent.states import states_bytes
from server.settings import ServeSettings


@dataclass(frozen=True)
class MemoryFit:
    """A memory plan, and the expert slots that its tiers hold."""

    memory: MemoryPlan
    host_slots: int
    device_slots: int  # 0 where there is no device tier

    @property
    def is_cuda(self) -> bool:
        return self.memory.free.is_cuda

    @property
    def holds_trunk(self) -> bool:
        return self.memory.free.device > 0


def fit_memory(summary: ModelSummary, settings: ServeSettings, device: torch.device) -> MemoryFit:
    """Plan the memory as `greenroom serve` does. The plan is empty if the trunk does not fit.

    Raises:
        SettingsError: a budget or limit does not suit the model.
    """
    budget, needs = host_budget(settings), needs_of_summary(summary, settings, device)
    if least_budget(settings, needs, device, PROCESS_BYTES) > budget:
        return MemoryFit(nothing_fits(needs, budget), 0, 0)
    return count_slots(summary, plan_memory(settings, needs, device, budget, PROCESS_BYTES))


def count_slots(summary: ModelSummary, plan: MemoryPlan) -> MemoryFit:
    """Count the expert slots in the tiers of a plan."""
    host, on_device = (
        sum(slots_per_layout(summary.catalog, nbytes).values()) if nbytes else 0
        for nbytes in (plan.host_bytes, plan.device_bytes)
    )
    return MemoryFit(plan, host, on_device)


def needs_of_summary(summary: ModelSummary, settings: ServeSettings, device: torch.device) -> ModelNeeds:
    """Return the sizes that the memory planner needs. Native kernels, if available, are assumed to run all layers."""
    shape, catalog = summary.outline, summary.catalog
    is_native = device.type == "cpu" and shape.sequential_reason is None and choose_level(settings.kernels) is not None
    step = StepShape.of(
        shape.model.config.get_text_config(),
        shape.kv_groups,
        catalog.num_experts,
        len(catalog.layers),
        max(shape.top_k.values()),
        shape.dtype.itemsize,
        is_native=is_native,
    )
    return ModelNeeds(
        catalog,
        shape.trunk_bytes,
        max(shape.top_k.values()),
        shape.kv_groups,
        shape.max_model_len,
        states_bytes(shape.states),
        shape.sequential_reason is None,
        step,
    )
