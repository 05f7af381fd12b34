"""Builds the expert store and the engine of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from expert_store import ExpertStore, Prefetcher, SourceError, is_on_disk, make_prefetcher
from expert_store.policies import STREAM
from expert_store.prefetching.prompt_stream import DevicePromptStream, PromptStream
from server.engine.admission.planner import GroupPlanner
from server.engine.admission.rotation import DecodeGroupRotation
from server.engine.admission.working_set import WorkingSets
from server.engine.engine import Engine, EngineLimits
from server.engine.interface import RequestMemory, RequestWeights
from server.engine.kv.block_manager import BlockManager
from server.engine.kv.state_snapshots import SnapshotPool
from server.engine.pass_planning import PassLimits
from server.engine.runner import PagedModelRunner
from server.engine.scheduler import SchedulerLimits
from server.engine.sequence_weights import SequenceWeights
from server.engine.text.codec import Codec
from server.loading.load_model import ModelParts
from server.memory.elastic_budget import ElasticBudget
from server.memory.kv_cache_plan import BLOCK_SIZE
from server.memory.plan import MemoryPlan
from server.model.attention.kv_cache import KVCache
from server.model.errors import ModelError
from server.observability.routing_recorder import RoutingRecorder
from server.settings import ServeSettings


@dataclass(frozen=True)
class ExpertPaging:
    """The store of a model's experts, its prefetcher, and the recorder of routing."""

    store: ExpertStore
    prefetcher: Prefetcher | None
    recorder: RoutingRecorder | None

    def close(self) -> None:
        self.store.close()
        if self.recorder is not None:
            self.recorder.close()


def open_experts(settings: ServeSettings, model: ModelParts, plan: MemoryPlan) -> ExpertPaging:
    """Open the expert store in the planned memory.

    Raises:
        ExpertStoreError: the store or the routing log can't be opened.
        ModelError: a file of experts can't be opened.
    """
    trunk = model.trunk
    recorder = RoutingRecorder(settings.trace_file, model.name, trunk.catalog) if settings.trace_file else None
    try:
        store = ExpertStore(
            trunk.catalog,
            plan.host_bytes,
            device_bytes=plan.device_bytes,
            device=model.device,
            policy=STREAM if trunk.facts.uses_every_expert else settings.cache_policy,
            least_unpinned=trunk.facts.top_k,
            recorder=recorder,
        )
    except SourceError as error:
        raise ModelError(f"{error.source} can't be opened: {error.reason}") from error
    is_far = not is_on_disk(trunk.catalog)
    prefetcher = make_prefetcher(settings.prefetch, store, model.experts_per_layer, trunk.gates, begins_active=is_far)
    if prefetcher is not None and is_far:
        prefetcher.for_prompts = PromptStream(store, model.experts_per_layer, trunk.gates)
    elif prefetcher is not None and plan.device_bytes:
        prefetcher.for_prompts = DevicePromptStream(store, model.experts_per_layer, trunk.gates)
    return ExpertPaging(store, prefetcher, recorder)


def build_codec(model: ModelParts, memory: RequestMemory) -> Codec:
    """Build the codec between requests and token ids."""
    return Codec(
        model.tokenizer,
        model.media,
        model.eos_token_ids,
        memory,
        model.template_options,
        image_inputs=model.image_inputs,
    )


def build_engine(
    settings: ServeSettings,
    model: ModelParts,
    plan: MemoryPlan,
    *,
    experts: ExpertPaging,
    kv_cache: KVCache,
    codec: Codec,
    elastic: ElasticBudget | None,
    weights: Callable[[RequestWeights], SequenceWeights],
) -> Engine:
    """Build an engine that is yet to be started.

    Args:
        weights: returns what a request names.
    """
    trunk, kv, store = model.trunk, plan.kv, experts.store
    snapshots = SnapshotPool(range(kv.num_slots, kv.num_states)) if kv.num_snapshots else None
    before_step, allowance = (None, None) if elastic is None else (elastic.reserve_for_step, elastic.allowance)
    blocks = BlockManager(
        kv.block_groups,
        BLOCK_SIZE,
        trunk.facts.shares_prefixes,
        snapshots=snapshots,
        allowance=allowance,
        release=kv_cache.release,
    )
    rotates = settings.admission == "auto" and not trunk.facts.is_encoder
    runner = PagedModelRunner(
        trunk,
        kv_cache,
        store,
        prefetcher=experts.prefetcher,
        states=trunk.new_states(kv.num_slots, kv.num_snapshots),
        before_step=before_step,
        before_pass=(lambda: None) if elastic is None else elastic.reserve_for_pass,
    )
    if elastic is not None:
        elastic.before_growth = runner.pause
    return Engine(
        runner,
        blocks,
        EngineLimits(
            kv.max_model_len,
            settings.max_queued_requests,
            SchedulerLimits(kv.num_slots, plan.batched_tokens),
            _pass_limits(settings, plan, runner.pass_token_bytes),
        ),
        vocab_size=trunk.vocab_size,
        eos_token_ids=model.eos_token_ids,
        detokenizer=codec.detokenizer,
        grammar=codec.grammar,
        weights=weights,
        kernels=model.kernels,
        deferred=model.kernels.deferred if model.kernels is not None and model.trunk.facts.program.has_native else None,
        admission=make_admission(store, model.experts_per_layer) if rotates else None,
        reclaim=(lambda: False) if elastic is None else partial(elastic.reclaim, blocks),
    )


def _pass_limits(settings: ServeSettings, plan: MemoryPlan, token_bytes: int) -> PassLimits | None:
    """Return the limits of passes of prompts; None if prompts run by chunks.

    Args:
        token_bytes: what the model holds of each token of a pass; 0 if it runs none.
    """
    if not plan.pass_bytes or not token_bytes:
        return None
    return PassLimits(plan.pass_bytes // token_bytes, plan.batched_tokens, takes_all=settings.prefill == "layers")


def make_admission(store: ExpertStore, experts_per_layer: Mapping[int, int]) -> DecodeGroupRotation:
    """Make the admission that lets requests decode alternately if their experts do not fit in the store together."""
    working_sets = WorkingSets(experts_per_layer)

    def layer_slots() -> npt.NDArray[np.int64]:
        slots = store.layer_slots()
        return np.array([slots[layer] for layer in working_sets.layers])

    return DecodeGroupRotation(GroupPlanner(working_sets, layer_slots))
