"""Shares out the memory budget at the start, for serving and for predicting alike.

Out of the budget come, in this order: the process, the trunk, what a step may take, a least of KV cache and of experts.
The rest belongs to experts until the KV cache needs it; see ``shares``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from expert_store import ExpertCatalog, least_bytes
from server.engine.scheduler import MOST_ROWS_OF_LOGITS
from server.model.kv_cache import KVGroup
from server.settings import ServeSettings, SettingsError, parse_budget

from .expert_plan import FreeMemory, plan_experts
from .kv_plan import ELASTIC_SHARE, KV_SHARE, KVPlan, first_bytes, plan_kv_cache
from .sizes import as_flag, format_bytes
from .step import StepShape, step_bytes

FIRST_TOKENS = 64  # of a step for which memory is set aside from the start

# Measured with the bundled model and a Qwen3-MoE of 3.4 GB; see docs/log.md.
PROCESS_BYTES = 256 << 20  # of a server without trunk, experts and KV cache, when it is ready to load these
GROWTH_BYTES = 64 << 20  # that it takes besides by the time it has answered some requests


@dataclass(frozen=True)
class ModelNeeds:
    """A model's sizes, as the planner needs them.

    Args:
        top_k: experts a token, of the widest layer.
        longest: the model's context, in tokens.
        state_bytes: that each running sequence takes besides its blocks.
    """

    catalog: ExpertCatalog
    trunk_bytes: int
    top_k: int
    kv_groups: Sequence[KVGroup]
    longest: int
    state_bytes: int
    shares_prefixes: bool
    step: StepShape


@dataclass(frozen=True)
class MemoryPlan:
    """The budget of the host's memory, and its parts.

    ``free`` is what experts and KV cache may share beside the largest step.
    """

    needs: ModelNeeds
    budget_bytes: int
    process_bytes: int
    trunk_bytes: int  # in the host's memory
    step_bytes: int  # of the largest step
    first_step_bytes: int
    free: FreeMemory
    kv: KVPlan
    host_bytes: int  # of experts at the start
    device_bytes: int
    is_kv_pinned: bool
    are_experts_pinned: bool

    @property
    def least_host_bytes(self) -> int:
        """The least of experts."""
        return least_bytes(self.needs.catalog, self.needs.top_k)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the budget that neither steps nor experts nor KV cache take."""
        device_bytes = 0 if self.free.is_cuda else self.device_bytes
        return self.process_bytes + GROWTH_BYTES + self.trunk_bytes + device_bytes


def least_budget(settings: ServeSettings, needs: ModelNeeds, device: torch.device, process_bytes: int) -> int:
    """The smallest budget of the host's memory that a model can be served in."""
    is_cuda = device.type == "cuda"
    largest, _ = _steps(settings, needs)
    beside = 0 if is_cuda else needs.trunk_bytes + largest + _first_kv_bytes(settings, needs)
    return process_bytes + GROWTH_BYTES + beside + least_bytes(needs.catalog, needs.top_k)


def nothing_fits(needs: ModelNeeds, budget_bytes: int) -> MemoryPlan:
    """The plan where a budget is too small."""
    kv = KVPlan(needs.kv_groups, [0] * len(needs.kv_groups), 0, 0)
    free = FreeMemory(0, 0, is_cuda=False)
    return MemoryPlan(
        needs,
        budget_bytes,
        PROCESS_BYTES,
        needs.trunk_bytes,
        0,
        0,
        free,
        kv,
        0,
        0,
        is_kv_pinned=False,
        are_experts_pinned=False,
    )


def plan_memory(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> MemoryPlan:
    """Share out a budget.

    Args:
        budget_bytes: of the host's memory.
        process_bytes: of it, what the process takes without the trunk.

    Raises:
        SettingsError: a budget or limit does not suit the model.
    """
    is_cuda = device.type == "cuda"
    largest, first = _steps(settings, needs)
    _refuse_too_little(settings, needs, device, budget_bytes, process_bytes)
    trunk_bytes = 0 if is_cuda else needs.trunk_bytes
    beside = process_bytes + GROWTH_BYTES + trunk_bytes
    free = FreeMemory.beside(settings, device, budget_bytes - beside - (0 if is_cuda else largest), needs.trunk_bytes)
    least = least_bytes(needs.catalog, needs.top_k)
    pinned_experts = settings.host_expert_memory != "auto"
    asked = parse_budget(settings.host_expert_memory).resolve(needs.catalog.total_bytes, least)
    experts = 0 if is_cuda else min(needs.catalog.total_bytes, max(least, asked))
    first_kv = _first_kv_bytes(settings, needs)
    kv = plan_kv_cache(
        settings,
        needs.kv_groups,
        needs.longest,
        max(first_kv, free.device - experts) if pinned_experts else free.device,
        needs.state_bytes,
        needs.shares_prefixes,
        KV_SHARE if is_cuda else 1 if pinned_experts else ELASTIC_SHARE,
        0 if is_cuda else max(first_kv, free.device - experts),
    )
    roomy = FreeMemory(free.host + (0 if is_cuda else largest - first), free.device, is_cuda)
    at_first = kv.nbytes if is_cuda or settings.kv_cache_memory != "auto" else kv.first_bytes
    host_bytes, device_bytes = plan_experts(settings, needs.catalog, needs.top_k, roomy, at_first)
    return MemoryPlan(
        needs,
        budget_bytes,
        process_bytes,
        trunk_bytes,
        largest,
        first,
        free,
        kv,
        host_bytes,
        device_bytes,
        settings.kv_cache_memory != "auto",
        pinned_experts,
    )


def _first_kv_bytes(settings: ServeSettings, needs: ModelNeeds) -> int:
    """Bytes of KV cache and states that one sequence needs to run: blocks for its beginning, and its states."""
    longest = min(needs.longest, settings.max_model_len or needs.longest)
    num_states = 2 if needs.shares_prefixes else 1  # its own, and a snapshot
    return first_bytes(needs.kv_groups, longest) + num_states * needs.state_bytes


def _refuse_too_little(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> None:
    least = least_budget(settings, needs, device, process_bytes)
    if least <= budget_bytes:
        return
    largest, _ = _steps(settings, needs)
    trunk = "" if device.type == "cuda" else f"{format_bytes(needs.trunk_bytes)} for the trunk, "
    raise SettingsError(
        f"the server needs {format_bytes(least)} of memory: {trunk}{format_bytes(process_bytes)} for the process, "
        f"{format_bytes(largest)} for steps of --max-batched-tokens {settings.max_batched_tokens}, the rest for the "
        f"least of experts and KV cache; --memory {settings.memory} is {format_bytes(budget_bytes)}; give --memory "
        f"{as_flag(least, rounds_up=True)} or more, where there is as much"
    )


def _steps(settings: ServeSettings, needs: ModelNeeds) -> tuple[int, int]:
    """Bytes of the largest step and of the first ones."""
    rows = max(settings.max_running_requests, MOST_ROWS_OF_LOGITS)
    largest, first = settings.max_batched_tokens, min(FIRST_TOKENS, settings.max_batched_tokens)
    return step_bytes(needs.step, largest, min(rows, largest)), step_bytes(needs.step, first, first)
