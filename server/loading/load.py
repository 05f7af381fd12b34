"""Loads a model and starts its engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from expert_store import ExpertStore, Preloader
from expert_store.disk_cache.fill import Fill
from server.administration.store_administration import StoreAdministration
from server.engine.engine import Engine
from server.engine.interface import ModelCard, RequestMemory, SamplingDefaults
from server.engine.text.codec import Codec
from server.heap import trim_heap
from server.loading.adapters import Adapters, load_adapters, open_adapter_store
from server.loading.build_engine import ExpertPaging, build_codec, build_engine, open_experts
from server.loading.bundled_weights import variants_folder
from server.loading.load_model import ModelParts, load_checkpoint, open_model
from server.loading.memory import describe_model, log_plan, memory_usage, plan_beside_trunk, request_memory
from server.loading.remote_models import make_fill
from server.loading.repack_cache import make_repack_fill, use_records
from server.loading.repacked import load_unreplaced
from server.loading.start_weights import load_start_variants, open_state, report_unloadable
from server.loading.variants import open_variants
from server.memory.elastic_budget import ElasticBudget
from server.memory.kv_cache_plan import BLOCK_SIZE
from server.memory.plan import MemoryPlan
from server.memory.usage import MemoryUsage
from server.memory.watcher import Watcher
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.transformers_output import silence_transformers
from server.observability.metrics import Metrics
from server.observability.routing_recorder import RoutingRecorder
from server.settings import ServeSettings, SettingsError
from server.weights.directory import Directory
from server.weights.expert_restrictions import ExpertRestrictions
from server.weights.variant_registry import VariantRegistry

log = logging.getLogger(__name__)


@dataclass
class LoadedServer:
    """The parts of a running server; `greenroom serve` keeps them until it ends."""

    name: str
    engine: Engine
    codec: Codec
    defaults: SamplingDefaults
    card: ModelCard
    metrics: Metrics
    store: ExpertStore
    experts: StoreAdministration
    memory: MemoryUsage
    request_memory: RequestMemory
    routing_recorder: RoutingRecorder | None
    preloader: Preloader
    memory_watcher: Watcher | None
    adapters: Adapters | None
    variants: VariantRegistry
    directory: Directory
    fill: Fill | None
    repack: Fill | None
    num_kv_blocks: int  # of the KV cache, in its smallest group

    def close(self) -> None:
        if self.memory_watcher is not None:
            self.memory_watcher.stop()
        self.engine.stop()
        if self.adapters is not None:
            self.adapters.memory.close()
        self.preloader.stop()
        for fill in (self.fill, self.repack):
            if fill is not None:
                fill.stop()
        self.store.close()
        if self.routing_recorder is not None:
            self.routing_recorder.close()


class _Opened(NamedTuple):
    """All that is read from the checkpoint, and the memory planned for it."""

    parts: ModelParts
    plan: MemoryPlan
    paging: ExpertPaging


def _open(checkpoint: Checkpoint, name: str, settings: ServeSettings) -> _Opened:
    parts = load_checkpoint(checkpoint, name, settings)
    use_records(parts.trunk, name, settings)
    trim_heap()  # what reading the trunk left free would be missing for experts
    plan = plan_beside_trunk(parts.trunk, settings, parts.device)
    return _Opened(parts, plan, open_experts(settings, parts, plan))


def load_server(model: str | None, settings: ServeSettings) -> LoadedServer:
    """Load a model and start its engine.

    Raises:
        ModelError, ExpertStoreError: the model can't be served.
        SettingsError: a budget or limit does not suit the model.
    """
    silence_transformers()
    state = open_state(settings)
    parts, plan, paging = load_unreplaced(
        partial(open_model, model, settings),
        lambda checkpoint, name: _open(checkpoint, name, settings),
        lambda opened: opened.paging.close(),
    )
    kv_cache = KVCache(plan.kv.groups, plan.kv.num_blocks, BLOCK_SIZE, parts.device)
    log.info("compute: %s", parts.compute)
    log_plan(parts.trunk, paging.store, plan)
    store = open_adapter_store(settings, parts, plan.adapter_bytes)

    def adapter_bytes() -> int:
        return 0 if store is None else store.resident_bytes

    def unfilled_beside() -> int:
        return plan.adapter_bytes - adapter_bytes() + memory.unused_bytes

    elastic = ElasticBudget(paging.store, plan, unfilled_beside=unfilled_beside) if plan.kv.is_elastic else None
    memory = request_memory(plan, elastic, lambda: engine.wake())  # noqa: PLW0108  made later
    watcher = None if elastic is None else Watcher(elastic, plan.budget_bytes, before_check=memory.follow)
    codec = build_codec(parts, memory)
    engine = build_engine(
        settings,
        parts,
        plan,
        experts=paging,
        kv_cache=kv_cache,
        codec=codec,
        elastic=elastic,
        weights=lambda names: directory.select(names),  # noqa: PLW0108  made later
    )
    adapters = None
    if store is None:
        report_unloadable(state)
    else:
        adapters = load_adapters(settings, parts, store, wake=engine.wake, on_drop=engine.discard_prefixes, state=state)
    on_change = (lambda: None) if elastic is None else elastic.count_experts
    variants = open_variants(variants_folder(model, settings), parts, paging.store, on_change, engine.discard_prefixes)
    try:
        load_start_variants(settings, variants, state)
    except SettingsError:
        if adapters is not None:
            adapters.memory.close()
        paging.close()
        raise
    directory = Directory(
        parts.name,
        variants,
        None if adapters is None else (adapters.registry, adapters.memory),
        ExpertRestrictions(parts.trunk.model, parts.trunk.catalog, parts.trunk.routers),
    )

    torch.set_num_threads(1)  # for the engine's thread, which is about to start; the pool has the others
    engine.start()
    preloader = Preloader(paging.store)
    preload = preloader.start if settings.prefetch != "off" else _do_nothing
    fill = make_fill(paging.store, settings, preload)  # once all is on the disk: demand passes the link's other uses
    if fill is None:
        preload()
    else:
        fill.start()
    repack = make_repack_fill(paging.store)
    if repack is not None:
        repack.start()
    usage = memory_usage(plan, paging.store, elastic, adapter_bytes, lambda: memory.held_bytes)
    registry = None if adapters is None else adapters.registry
    metrics = Metrics(
        parts.name,
        paging.store,
        engine.statistics,
        memory=usage,
        prefetcher=paging.prefetcher,
        adapters=registry,
        variants=variants,
        fill=fill,
        repack=repack,
        expert_metrics=settings.expert_metrics,
    )
    experts = StoreAdministration(parts.name, paging.store, engine.statistics, usage, fill)
    if watcher is not None:
        watcher.start()
    return LoadedServer(
        parts.name,
        engine,
        codec,
        defaults=parts.defaults,
        card=describe_model(parts.trunk, parts.description, usage),
        metrics=metrics,
        store=paging.store,
        experts=experts,
        memory=usage,
        request_memory=memory,
        routing_recorder=paging.recorder,
        preloader=preloader,
        memory_watcher=watcher,
        adapters=adapters,
        variants=variants,
        directory=directory,
        fill=fill,
        repack=repack,
        num_kv_blocks=min(plan.kv.num_blocks),
    )


def _do_nothing() -> None:
    pass
