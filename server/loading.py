"""Settings to a running engine: find the checkpoint, share out the memory, put the rooms together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging as transformers_logging

from expert_store import ExpertCatalog, ExpertStore, Preloader, make_prefetcher
from server.administration.experts import StoreAdministration
from server.device import find_device
from server.engine.block_manager import BlockManager
from server.engine.codec import Codec
from server.engine.engine import Engine, EngineLimits
from server.engine.image_room import ImageRoom
from server.engine.request import SamplingDefaults
from server.engine.runner import PagedModelRunner
from server.engine.scheduler import SchedulerLimits
from server.engine.snapshots import SnapshotPool
from server.engine.stage import WorkingSetStage
from server.engine.working_set import WorkingSets
from server.kernels.native.available import choose_level, describe_level
from server.kernels.native.library import KernelError, Kernels
from server.kernels.pool import ComputePool
from server.memory.budget import host_budget, wait_for_counters, warn_if_lowered
from server.memory.fitting import check_plan, check_trunk
from server.memory.kv_plan import BLOCK_SIZE
from server.memory.machine import own_bytes
from server.memory.plan import MemoryPlan, ModelNeeds, plan_memory
from server.memory.shares import Shares
from server.memory.sizes import format_bytes
from server.memory.step import StepShape
from server.memory.usage import Adjustments, MemoryUsage
from server.memory.watcher import Watcher
from server.model.checkpoint import config_folder, find_checkpoint
from server.model.dtype import compute_dtype
from server.model.generation_config import read_generation_config
from server.model.kv_cache import KVCache
from server.model.loading import load_trunk, read_config
from server.model.processor import MediaProcessor, NoImagesError
from server.model.solo import SoloTrunk
from server.model.tokenizer import Tokenizer
from server.model.trunk import Trunk, TrunkFacts
from server.observability.metrics import Metrics
from server.routing_trace import RoutingTrace
from server.settings import ServeSettings, SettingsError

log = logging.getLogger(__name__)


@dataclass
class LoadedServer:
    """What `greenroom serve` keeps until it ends."""

    name: str
    engine: Engine
    codec: Codec
    defaults: SamplingDefaults
    metrics: Metrics
    store: ExpertStore
    experts: StoreAdministration
    memory: MemoryUsage
    trace: RoutingTrace | None
    preloader: Preloader
    watcher: Watcher | None  # of memory

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
        self.engine.stop()
        self.preloader.stop()
        self.store.close()
        if self.trace is not None:
            self.trace.close()


def load_server(model: str | None, settings: ServeSettings) -> LoadedServer:
    """Load a model and start its engine.

    Raises:
        ModelError, ExpertStoreError: the model can't be served.
        SettingsError: a budget or limit does not suit the model.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    num_threads = settings.threads or torch.get_num_threads()
    folder, name = find_checkpoint(model, settings.revision)
    name = settings.served_model_name or name
    device, config = find_device(settings.device), config_folder(folder)
    dtype = compute_dtype(settings.dtype, read_config(folder), device)
    level, pool_threads = kernel_level(settings, device), num_threads if device.type == "cpu" else 1
    pool = ComputePool(pool_threads, None if level is None else Kernels(num_threads, level))

    def admit(trunk_bytes: int, catalog: ExpertCatalog) -> None:
        check_trunk(settings, trunk_bytes, catalog, dtype, device)
        log.info("loading %s from %s", name, folder)

    trunk = load_trunk(folder, dtype, device, settings.deterministic, pool, settings.max_model_len, admit)
    tokenizer = Tokenizer(config, trunk.max_model_len)
    tokenizer.prepare()
    generation = read_generation_config(config)
    defaults = SamplingDefaults(**generation.sampling)
    facts = trunk.facts
    memory_plan = plan_beside(trunk, settings, device)
    plan = memory_plan.kv
    trace = RoutingTrace(settings.trace_file, name, trunk.catalog) if settings.trace_file else None
    store = ExpertStore(
        trunk.catalog,
        memory_plan.host_bytes,
        device_bytes=memory_plan.device_bytes,
        device=device,
        policy=settings.cache_policy,
        least_unpinned=facts.top_k,
        recorder=trace,
    )
    experts_per_layer = {layer: len(trunk.catalog.layers[layer].experts) for layer in trunk.facts.text_layers}
    prefetcher = make_prefetcher(settings.prefetch, store, experts_per_layer, trunk.gates)
    kv_cache = KVCache(plan.groups, plan.num_blocks, BLOCK_SIZE, device)
    kernels = f", kernels: {describe_level(settings.kernels, level)}" if device.type == "cpu" else ""
    log.info("compute: %s in %s, threads: %d%s", device, str(dtype).removeprefix("torch."), pool.num_threads, kernels)
    describe(trunk, store, memory_plan)
    eos_token_ids = generation.eos_token_ids | tokenizer.eos_token_ids
    snapshots = SnapshotPool(range(plan.num_slots, plan.num_states)) if plan.num_snapshots else None
    shares = Shares(store, memory_plan) if plan.is_elastic else None
    watcher = None if shares is None else Watcher(shares, memory_plan.budget_bytes)
    image_room = ImageRoom(make_free=None if watcher is None else watcher.make_free)
    codec = Codec(tokenizer, load_media_processor(config, facts), eos_token_ids, image_room)
    before_step, allowance = (None, None) if shares is None else (shares.before_step, shares.allowance)
    blocks = BlockManager(plan.block_groups, BLOCK_SIZE, facts.shares_prefixes, snapshots, allowance, kv_cache.release)
    engine = Engine(
        PagedModelRunner(trunk, kv_cache, store, prefetcher, trunk.new_states(plan.num_states), before_step),
        blocks,
        EngineLimits(
            plan.max_model_len,
            settings.max_queued_requests,
            SchedulerLimits(plan.num_slots, settings.max_batched_tokens),
        ),
        trunk.vocab_size,
        eos_token_ids,
        codec.detokenizer,
        make_stage(store, experts_per_layer) if settings.admission == "auto" else None,
        (lambda: False) if shares is None else partial(shares.reclaim, blocks),
    )
    torch.set_num_threads(1)  # of the engine's thread, which is about to begin; the pool has the others
    engine.start()
    preloader = Preloader(store)
    if settings.prefetch != "off":
        preloader.start()
    memory = memory_usage(memory_plan, store, shares)
    metrics = Metrics(name, store, engine.statistics, memory, prefetcher)
    experts = StoreAdministration(name, store, engine.statistics, memory)
    if watcher is not None:
        watcher.start()
    return LoadedServer(name, engine, codec, defaults, metrics, store, experts, memory, trace, preloader, watcher)


def plan_beside(trunk: Trunk | SoloTrunk, settings: ServeSettings, device: torch.device) -> MemoryPlan:
    """Share out the memory beside a trunk that is loaded; the process is measured as it is now.

    Raises:
        SettingsError: a budget or limit does not suit the model, or what was asked for does not fit.
    """
    wait_for_counters()
    budget_bytes, trunk_bytes = host_budget(settings), 0 if device.type == "cuda" else trunk.nbytes
    warn_if_lowered(settings, budget_bytes)
    plan = plan_memory(settings, needs_of(trunk), device, budget_bytes, max(0, own_bytes() - trunk_bytes))
    check_plan(settings, plan)
    return plan


def needs_of(trunk: Trunk | SoloTrunk) -> ModelNeeds:
    """Describe a model that is loaded to the memory's planner."""
    facts, catalog = trunk.facts, trunk.catalog
    shape = StepShape.of(
        trunk.config,
        facts.kv_groups,
        catalog.num_experts,
        len(catalog.layers),
        facts.top_k,
        trunk.dtype.itemsize,
        is_native=facts.is_native,
    )
    return ModelNeeds(
        catalog,
        trunk.nbytes,
        facts.top_k,
        facts.kv_groups,
        trunk.max_model_len,
        facts.state_bytes,
        facts.shares_prefixes,
        shape,
    )


def memory_usage(plan: MemoryPlan, store: ExpertStore, shares: Shares | None) -> MemoryUsage:
    """Put together what tells the memory by part."""
    states = 0 if plan.free.is_cuda else plan.kv.fixed_bytes
    return MemoryUsage(
        budget_bytes=plan.budget_bytes,
        trunk_bytes=plan.trunk_bytes,
        process_bytes=plan.process_bytes,
        experts=lambda: store.host_resident_bytes,
        kv_cache=lambda: states + (0 if shares is None else shares.allowance.taken_bytes),
        step=lambda: 0 if shares is None else shares.step_bytes,
        expert_budget=lambda: plan.host_bytes if shares is None else shares.expert_budget,
        kv_budget=lambda: states + (0 if shares is None else shares.allowance.limit_bytes),
        adjustments=Adjustments() if shares is None else shares.adjustments,
    )


def kernel_level(settings: ServeSettings, device: torch.device) -> str | None:
    """The level of native kernels to compute with; None if torch is to.

    Raises:
        SettingsError: ``--kernels`` names a level that can't be run here.
    """
    if device.type != "cpu":
        return None
    try:
        return choose_level(settings.kernels)
    except KernelError as error:
        raise SettingsError(f"--kernels {settings.kernels}: {error}") from error


def load_media_processor(folder: Path, facts: TrunkFacts) -> MediaProcessor | str:
    """What images of prompts go through, or why none can be sent."""
    try:
        processor = MediaProcessor(folder)
    except NoImagesError as error:
        return str(error)
    if facts.reads_whole:
        return "the encoder that reads this model's prompts takes none yet; send text alone"
    if facts.is_solo and processor.sees_whole_images:
        return "their tokens see those that follow, which this model's own attention is not told yet; send text alone"
    return processor


def make_stage(store: ExpertStore, experts_per_layer: Mapping[int, int]) -> WorkingSetStage:
    """What lets requests decode in turns when their experts do not fit the store together."""
    working_sets = WorkingSets(experts_per_layer)

    def layer_slots() -> npt.NDArray[np.int64]:
        slots = store.layer_slots()
        return np.array([slots[layer] for layer in working_sets.layers])

    return WorkingSetStage(working_sets, layer_slots)


def describe(trunk: Trunk | SoloTrunk, store: ExpertStore, memory: MemoryPlan) -> None:
    """Say what lies where."""
    plan = memory.kv
    catalog: ExpertCatalog = trunk.catalog
    log.info(
        "memory: %s in all, of which the process takes %s and steps up to %s",
        *map(format_bytes, (memory.budget_bytes, memory.process_bytes, memory.step_bytes)),
    )
    log.info("trunk: %s resident", format_bytes(trunk.nbytes))
    log.info(
        "experts: %d in %d layers, %s on disk",
        sum(catalog.layouts.values()),
        len(catalog.layers),
        format_bytes(catalog.total_bytes),
    )
    for tier in store.tiers().values():
        log.info(
            "%s tier: slots for %d experts, %s of memory", tier.name, tier.num_slots, format_bytes(tier.slot_bytes)
        )
    log.info(
        "KV cache: %s%s for %d tokens; context %d",
        "up to " if plan.is_elastic else "",
        format_bytes(plan.nbytes),
        plan.num_tokens,
        plan.max_model_len,
    )
    if plan.state_bytes:
        beginnings = f" and {plan.num_snapshots} beginnings" if plan.num_snapshots else ""
        nbytes = format_bytes(plan.num_states * plan.state_bytes)
        log.info("states: %s of it for %d sequences%s", nbytes, plan.num_slots, beginnings)
