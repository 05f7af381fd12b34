"""Divides the memory budget at start; `serve`, `inspect` and `doctor` make the same plan.

But a model that is not on this machine may get more room: whether its weights can be coded is not known yet
(``server.model.coded.experts``). And only `serve` knows of records in a cache (``--repack-cache``).

The parts are, in this order: the process, the trunk, the tensors of a step, a minimum of KV cache, a minimum of experts
and the adapters. The experts get the rest until the KV cache needs it; see ``elastic_budget``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from expert_store import ExpertCatalog, encoding_memory_bytes, least_bytes
from expert_store.disk_cache.memory import cache_memory_bytes
from server.byte_sizes import format_bytes
from server.device import is_gpu
from server.engine.step_limits import MAX_LOGITS_ROWS
from server.memory.adapter_plan import adapter_bytes, asked_adapter_bytes
from server.memory.advice import describe_budget, how_to_fit
from server.memory.expert_plan import STEP_RESERVE_BYTES, FreeMemory, host_bytes, plan_experts
from server.memory.kv_cache_plan import ELASTIC_SHARE, KV_SHARE, KVPlan, first_bytes, plan_kv_cache
from server.memory.pass_plan import plan_pass
from server.memory.step_memory import StepShape, graph_bytes, pass_token_bytes, step_bytes
from server.model.attention.kv_cache import KVGroup
from server.model.modules.step_graphs import MOST_GRAPHS
from server.settings import BATCHED_TOKENS, ServeSettings, SettingsError

FIRST_TOKENS = 64  # size of the step for which memory is reserved at start
# Tokens of a step on a GPU that pages experts: each step with a piece of a prompt copies nearly all experts, so larger
# ones copy less for each token. They leave most of what a step of BATCHED_TOKENS leaves to experts and KV cache.
LARGE_STEPS = range(8192, 4095, -1024)
LEAST_LEFT = 7 / 8

# Measured with the bundled model and a Qwen3-MoE of 3.4 GB, most of it in
# benchmarks/results/2026-11-26-epyc/one-budget-for-experts-and-kv-cache.json.
PROCESS_BYTES = 256 << 20  # a server that is ready to load trunk, experts and KV cache
GROWTH_BYTES = 64 << 20  # growth of the process while it answers its first requests


@dataclass(frozen=True)
class ModelNeeds:
    """Sizes of a model that the planner needs.

    Args:
        top_k: experts per token, of the layer with the most.
        longest: the model's context, in tokens.
        state_bytes: recurrent state of one sequence, beside its blocks.
        state_rows: such states of a running sequence.
    """

    catalog: ExpertCatalog
    trunk_bytes: int
    top_k: int
    kv_groups: Sequence[KVGroup]
    longest: int
    state_bytes: int
    shares_prefixes: bool
    step: StepShape
    state_rows: int = 1
    is_loaded: bool = False  # the trunk is in the device's memory already

    @cached_property
    def reading_bytes(self) -> int:
        """See ``reading_memory_bytes``."""
        return reading_memory_bytes(self.catalog)


@dataclass(frozen=True)
class MemoryPlan:
    """The budget of host memory, and its parts.

    ``free`` is the memory that experts and KV cache share beside the largest step.
    """

    needs: ModelNeeds
    budget_bytes: int
    process_bytes: int
    trunk_bytes: int  # in host memory
    batched_tokens: int  # of the largest step
    step_bytes: int  # the largest step, and the longest pass of prompts
    first_step_bytes: int  # reserved at start
    free: FreeMemory
    kv: KVPlan
    host_bytes: int  # host tier at start
    device_bytes: int  # device tier
    has_kv_budget: bool  # the user set --kv-cache-memory
    has_expert_budget: bool  # the user set --host-expert-memory
    adapter_bytes: int = 0  # pages of adapters
    graph_bytes: int = 0  # CUDA graphs of decode steps, on a device
    pass_bytes: int = 0  # the part of ``step_bytes`` that a pass holds; 0 if prompts run by chunks
    notes: tuple[str, ...] = ()  # differences from the settings, with reasons, for the log

    @property
    def pass_tokens(self) -> int:
        """Tokens of the longest pass of prompts; 0 if prompts run by chunks."""
        return self.pass_bytes // pass_token_bytes(self.needs.step)

    @property
    def least_host_bytes(self) -> int:
        """Minimum bytes of the host tier."""
        return least_bytes(self.needs.catalog, self.needs.top_k)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the budget that are neither for steps nor for host experts nor for the KV cache."""
        device_bytes = 0 if self.free.has_gpu else self.device_bytes
        beside = GROWTH_BYTES + self.needs.reading_bytes
        return self.process_bytes + beside + self.trunk_bytes + device_bytes + self.adapter_bytes


def reading_memory_bytes(catalog: ExpertCatalog) -> int:
    """Return the bytes on their way to or from a cache on a disk, and of experts that are encoded for their slots."""
    return cache_memory_bytes(catalog) + encoding_memory_bytes(catalog)


def least_budget(settings: ServeSettings, needs: ModelNeeds, device: torch.device, process_bytes: int) -> int:
    """Return the smallest budget of host memory in which a model can be served."""
    has_gpu = is_gpu(device)
    largest, _ = _steps(settings, needs)
    beside = 0 if has_gpu else needs.trunk_bytes + largest + _first_kv_bytes(settings, needs)
    experts = least_bytes(needs.catalog, needs.top_k)
    return process_bytes + GROWTH_BYTES + needs.reading_bytes + beside + experts + asked_adapter_bytes(settings)


def nothing_fits(settings: ServeSettings, needs: ModelNeeds, budget_bytes: int) -> MemoryPlan:
    """Return the plan of a budget that is too small for the model."""
    kv = KVPlan(needs.kv_groups, [0] * len(needs.kv_groups), 0, 0)
    free = FreeMemory(0, 0, has_gpu=False)
    return MemoryPlan(
        needs,
        budget_bytes,
        PROCESS_BYTES,
        trunk_bytes=needs.trunk_bytes,
        batched_tokens=_batched_tokens(settings),
        step_bytes=0,
        first_step_bytes=0,
        free=free,
        kv=kv,
        host_bytes=0,
        device_bytes=0,
        has_kv_budget=False,
        has_expert_budget=False,
    )


def plan_memory(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> MemoryPlan:
    """Divide a budget of host memory.

    Args:
        budget_bytes: the budget.
        process_bytes: the part that the process uses without the trunk.

    Raises:
        SettingsError: a budget or limit does not suit the model.
    """
    plan = _plan(settings, needs, device, budget_bytes, process_bytes)
    if settings.max_batched_tokens is not None or not is_gpu(device) or not _pages_layers(plan):
        return plan
    for num_tokens in LARGE_STEPS:
        large = settings.model_copy(update={"max_batched_tokens": num_tokens})
        if _device_step_bytes(large, needs) > plan.free.device * (1 - LEAST_LEFT):
            continue
        larger = _plan(large, needs, device, budget_bytes, process_bytes)
        if _leaves_enough(larger, plan):
            return larger
    return plan


def _pages_layers(plan: MemoryPlan) -> bool:
    """Return True if the device tier holds any two layers, but not all experts."""
    catalog = plan.needs.catalog
    largest = max(len(layer.experts) for layer in catalog.layers.values())
    return least_bytes(catalog, 2 * largest) <= plan.device_bytes < catalog.total_bytes


def _leaves_enough(large: MemoryPlan, small: MemoryPlan) -> bool:
    """Return True if a plan with larger steps leaves most of the experts and of the KV cache."""
    return (
        large.device_bytes >= LEAST_LEFT * small.device_bytes
        and large.device_bytes + large.kv.nbytes <= large.free.device
        and _pages_layers(large)
        and large.kv.max_model_len == small.kv.max_model_len
        and large.kv.num_tokens >= LEAST_LEFT * small.kv.num_tokens
    )


def _plan(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> MemoryPlan:
    """Divide the budget for steps of ``--max-batched-tokens``; see ``plan_memory``."""
    has_gpu = is_gpu(device)
    largest, first = _steps(settings, needs)
    _refuse_too_little(settings, needs, device, budget_bytes, process_bytes)
    trunk_bytes = 0 if has_gpu else needs.trunk_bytes
    spare = budget_bytes - least_budget(settings, needs, device, process_bytes)
    adapters = adapter_bytes(settings, budget_bytes, spare)
    of_pass = plan_pass(settings, needs, device, spare - adapters)
    largest += of_pass
    beside = process_bytes + GROWTH_BYTES + needs.reading_bytes + trunk_bytes + adapters
    graphs = _graph_bytes(settings, needs) if has_gpu else 0
    free = FreeMemory.beside(
        settings,
        device,
        budget_bytes - beside - (0 if has_gpu else largest),
        (0 if needs.is_loaded else needs.trunk_bytes) + adapters + graphs,  # adapters in use are copied to a device
    )
    if has_gpu:
        free = replace(free, device=max(0, free.device - _device_step_bytes(settings, needs)))
    least = least_bytes(needs.catalog, needs.top_k)
    has_expert_budget = not settings.host_expert_memory.is_auto
    experts = 0 if has_gpu else max(least, host_bytes(settings, needs.catalog, least))
    first_kv = _first_kv_bytes(settings, needs)
    kv = plan_kv_cache(
        settings,
        needs.kv_groups,
        needs.longest,
        free_bytes=max(first_kv, free.device - experts) if has_expert_budget else free.device,
        state_bytes=needs.state_bytes,
        state_rows=needs.state_rows,
        shares_prefixes=needs.shares_prefixes,
        share=KV_SHARE if has_gpu else 1 if has_expert_budget else ELASTIC_SHARE,
        most_bytes=0 if has_gpu else max(first_kv, free.device - experts),
    )
    free_at_first = FreeMemory(free.host + (0 if has_gpu else largest - first), free.device, has_gpu)
    kv_at_first = kv.nbytes if has_gpu or not settings.kv_cache_memory.is_auto else kv.first_bytes
    budgets = plan_experts(settings, needs.catalog, needs.top_k, free_at_first, kv_at_first)
    return MemoryPlan(
        needs,
        budget_bytes,
        process_bytes,
        trunk_bytes=trunk_bytes,
        batched_tokens=_batched_tokens(settings),
        step_bytes=largest,
        first_step_bytes=first,
        free=free,
        kv=kv,
        host_bytes=budgets.host,
        device_bytes=budgets.device,
        has_kv_budget=not settings.kv_cache_memory.is_auto,
        has_expert_budget=has_expert_budget,
        adapter_bytes=adapters,
        graph_bytes=graphs,
        pass_bytes=of_pass,
        notes=kv.notes + budgets.notes,
    )


def _first_kv_bytes(settings: ServeSettings, needs: ModelNeeds) -> int:
    """Return the bytes that one sequence needs to run: its first blocks, and its states."""
    longest = min(needs.longest, settings.max_model_len or needs.longest)
    num_states = needs.state_rows + needs.shares_prefixes  # its own and a snapshot
    return first_bytes(needs.kv_groups, longest) + num_states * needs.state_bytes


def _refuse_too_little(
    settings: ServeSettings, needs: ModelNeeds, device: torch.device, budget_bytes: int, process_bytes: int
) -> None:
    least = least_budget(settings, needs, device, process_bytes)
    if least <= budget_bytes:
        return
    largest, _ = _steps(settings, needs)
    trunk = "" if is_gpu(device) else f"{format_bytes(needs.trunk_bytes)} for the trunk, "
    asked = asked_adapter_bytes(settings)
    adapters = f"{format_bytes(asked)} for adapters, " if asked else ""
    reading = f"{format_bytes(needs.reading_bytes)} to read experts, " if needs.reading_bytes else ""
    raise SettingsError(
        f"the server needs {format_bytes(least)} of memory: {trunk}{format_bytes(process_bytes)} for the process, "
        f"{format_bytes(largest)} for steps of --max-batched-tokens {_batched_tokens(settings)}, "
        f"{adapters}{reading}the rest for a minimum of experts and KV cache; "
        f"{describe_budget(settings, budget_bytes)}; "
        + how_to_fit(settings, budget_bytes, least, fixed_bytes=least - least_bytes(needs.catalog, needs.top_k))
    )


def _graph_bytes(settings: ServeSettings, needs: ModelNeeds) -> int:
    """Return the bytes that CUDA graphs may take; see ``StepGraphs``."""
    if settings.deterministic or settings.kernels == "off" or needs.state_bytes:
        return 0
    num_layers = max(needs.step.num_routed, sum(group.num_layers for group in needs.kv_groups))
    return graph_bytes(needs.step, num_layers, settings.max_running_requests, MOST_GRAPHS)


def _batched_tokens(settings: ServeSettings) -> int:
    """Return the tokens of the largest step."""
    return settings.max_batched_tokens or BATCHED_TOKENS


def _device_step_bytes(settings: ServeSettings, needs: ModelNeeds) -> int:
    """Return what the largest step takes of a device's memory beyond what is kept for steps anyway."""
    return max(0, _steps(settings, needs)[0] - STEP_RESERVE_BYTES)


def _steps(settings: ServeSettings, needs: ModelNeeds) -> tuple[int, int]:
    """Return the bytes of the largest step and of the step that memory is reserved for at start."""
    rows = max(settings.max_running_requests, MAX_LOGITS_ROWS)
    largest = _batched_tokens(settings)
    first = min(FIRST_TOKENS, largest)
    return step_bytes(needs.step, largest, min(rows, largest)), step_bytes(needs.step, first, first)
