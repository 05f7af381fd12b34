"""Finds how much of a model fits the memory budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expert_store import slots_per_layout
from server.device import is_gpu
from server.inspection.model_summary import ModelSummary
from server.memory.budget import host_budget
from server.memory.fit_checks import predict_plan
from server.memory.plan import PROCESS_BYTES, MemoryPlan, ModelNeeds, least_budget, nothing_fits
from server.memory.step_memory import StepShape
from server.model.recurrent.states import state_rows, states_bytes
from server.settings import ServeSettings, SettingsError


@dataclass(frozen=True)
class MemoryFit:
    """A memory plan, and the expert slots that its tiers hold; empty if serving is refused."""

    memory: MemoryPlan
    host_slots: int
    device_slots: int  # 0 where there is no device tier
    least_bytes: int  # the smallest budget of host memory in which the model can be served
    refusal: str | None = None  # the error of `greenroom serve`

    @property
    def has_gpu(self) -> bool:
        return self.memory.free.has_gpu

    @property
    def holds_trunk(self) -> bool:
        """True if the budget holds the trunk and a minimum of the rest."""
        return self.refusal is None or self.least_bytes <= self.memory.budget_bytes


def fit_memory(summary: ModelSummary, settings: ServeSettings, device: torch.device) -> MemoryFit:
    """Plan the memory as `greenroom serve` does."""
    budget, needs = host_budget(settings), needs_of_summary(summary, has_gpu=is_gpu(device))
    least = least_budget(settings, needs, device, PROCESS_BYTES)
    try:
        plan = predict_plan(settings, needs, summary.outline.dtype, device, budget)
    except SettingsError as error:
        return MemoryFit(nothing_fits(settings, needs, budget), 0, 0, least, str(error))
    host, on_device = (
        sum(slots_per_layout(summary.kept, nbytes).values()) if nbytes else 0
        for nbytes in (plan.host_bytes, plan.device_bytes)
    )
    return MemoryFit(plan, host, on_device, least)


def needs_of_summary(summary: ModelSummary, *, has_gpu: bool = False) -> ModelNeeds:
    """Return the sizes that the memory planner needs."""
    shape, catalog = summary.outline, summary.kept
    step = StepShape.of(
        shape.model.config.get_text_config(),
        shape.kv_groups,
        catalog.num_experts,
        num_routed=len(catalog.layers),
        top_k=max(shape.top_k.values()),
        itemsize=shape.dtype.itemsize,
        has_native=summary.program.has_native,
        has_modules=not summary.program.is_native,
        states=summary.states,
    )
    return ModelNeeds(
        catalog,
        shape.trunk_bytes,
        max(shape.top_k.values()),
        kv_groups=shape.kv_groups,
        longest=shape.max_model_len,
        state_bytes=states_bytes(summary.states),
        state_rows=state_rows(has_gpu=has_gpu, has_native=summary.program.has_native),
        shares_prefixes=shape.shares_prefixes,
        step=step,
    )
