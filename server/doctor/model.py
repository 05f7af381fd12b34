"""A model: whether it can be served here, and what of it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from expert_store import ExpertStoreError
from server.device import find_device
from server.inspection.survey import Survey, count_slots, needs_of, survey
from server.memory.budget import host_budget
from server.memory.fitting import check_plan, check_trunk
from server.memory.plan import PROCESS_BYTES, plan_memory
from server.memory.sizes import format_bytes
from server.model.checkpoint import find_local
from server.model.download import check_room
from server.model.errors import ModelError
from server.settings import ServeSettings, SettingsError

from .disk import check_disk
from .finding import Finding

REFUSALS = (ModelError, ExpertStoreError, SettingsError)


def check_model(model: str | None, settings: ServeSettings) -> Iterator[Finding]:
    """What it is, the disk that it lies on, and what of it fits."""
    try:
        device = find_device(settings.device)
        missing = check_room(model, settings.revision) if model is not None and find_local(model) is None else 0
        found = survey(model, settings, device)
    except REFUSALS as error:
        yield Finding("model", "fail", str(error))
        return
    yield Finding("model", "ok", _describe(found, missing))
    if model is not None and found.has_experts:
        yield check_disk(found.catalog.paths[0].parent, found.catalog, found.active_expert_bytes)
    else:  # where models will come to
        yield check_disk(Path(constants.HF_HUB_CACHE), None, found.active_expert_bytes)
    yield _check_fit(found, settings, device)


def _describe(found: Survey, missing: int) -> str:
    shape, catalog = found.outline, found.catalog
    text = (
        f"{found.name}: {shape.architecture}, trunk {format_bytes(shape.trunk_bytes)} in "
        f"{str(shape.dtype).removeprefix('torch.')}, {found.num_experts} experts in {len(catalog.layers)} layers, "
        f"{format_bytes(catalog.total_bytes)}"
    )
    return f"{text}; {format_bytes(missing)} to download" if missing else text


def _check_fit(found: Survey, settings: ServeSettings, device: torch.device) -> Finding:
    shape = found.outline
    try:
        check_trunk(settings, shape.trunk_bytes, found.catalog, shape.dtype, device)
        memory = plan_memory(settings, needs_of(found, settings, device), device, host_budget(settings), PROCESS_BYTES)
        check_plan(settings, memory)
    except REFUSALS as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("memory plan", "fail", reason, advice or None)
    plan = count_slots(found, memory)
    parts = [
        f"{slots} of {found.num_experts} experts ({slots / found.num_experts:.0%}) in {format_bytes(budget)} of {name}"
        for name, slots, budget in (
            ("device memory", plan.device_slots, memory.device_bytes),
            ("memory", plan.host_slots, memory.host_bytes),
        )
        if slots
    ]
    cache = memory.kv
    upto = "up to " if cache.is_elastic else ""
    kv = f"{upto}{format_bytes(cache.nbytes)} of KV cache for {cache.num_tokens} tokens, context {cache.max_model_len}"
    if cache.max_model_len < shape.max_model_len and settings.max_model_len is None:
        advice = f"the model's context is {shape.max_model_len} tokens: more memory, or --kv-cache-memory"
        return Finding("memory plan", "warn", "; ".join([*parts, kv]), advice)
    return Finding("memory plan", "ok", "; ".join([*parts, kv]))
