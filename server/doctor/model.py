"""Checks that a model can be served here, and how much of it fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from expert_store import ExpertStoreError, FileSource
from server.byte_sizes import format_bytes
from server.device import find_device
from server.doctor.disk import check_disk
from server.doctor.finding import Finding
from server.inspection.memory_fit import fit_memory
from server.inspection.model_summary import ModelSummary, summarise_model
from server.model.checkpoint.download import free_bytes
from server.model.checkpoint.hub_listing import list_upload
from server.model.checkpoint.locate import find_local
from server.model.errors import ModelError
from server.settings import ServeSettings, SettingsError

REFUSALS = (ModelError, ExpertStoreError, SettingsError)


def check_model(model: str | None, settings: ServeSettings) -> Iterator[Finding]:
    """Check the model's files, what runs its layers, the disk, and the memory plan."""
    try:
        device = find_device(settings.device)
        is_on_hub = model is not None and find_local(model) is None
        listing = list_upload(model, settings.revision) if is_on_hub and model is not None else None
        missing = 0 if listing is None else listing.missing_bytes
        summary = summarise_model(model, settings, device)
    except REFUSALS as error:
        yield Finding("model", "fail", str(error))
        return
    yield Finding("model", "ok", _describe(summary, missing))
    if missing > free_bytes(Path(constants.HF_HUB_CACHE)):
        yield Finding(
            "download",
            "warn",
            f"the disk of {constants.HF_HUB_CACHE} has no room, so experts are read from the hub again and again",
            "free some space, set HF_HOME to a folder on a larger disk, or give --disk-cache",
        )
    yield Finding("layers", "ok", summary.program.describe())
    source = summary.catalog.sources[0]
    if model is not None and summary.has_experts and isinstance(source, FileSource):
        yield check_disk(source.path.parent, summary.catalog, summary.active_expert_bytes)
    else:  # the folder for downloads
        yield check_disk(Path(constants.HF_HUB_CACHE), None, summary.active_expert_bytes)
    yield _check_fit(summary, settings, device)


def _describe(summary: ModelSummary, missing: int) -> str:
    shape, catalog = summary.outline, summary.catalog
    text = (
        f"{summary.name}: {shape.architecture}, trunk {format_bytes(shape.trunk_bytes)} in "
        f"{str(shape.dtype).removeprefix('torch.')}, {summary.num_experts} experts in {len(catalog.layers)} layers, "
        f"{format_bytes(catalog.total_bytes)}"
    )
    return f"{text}; {format_bytes(missing)} to download" if missing else text


def _check_fit(summary: ModelSummary, settings: ServeSettings, device: torch.device) -> Finding:
    shape, num_experts = summary.outline, summary.num_experts
    plan = fit_memory(summary, settings, device)
    if plan.refusal is not None:
        reason, _, advice = plan.refusal.partition("; ")
        return Finding("memory plan", "fail", reason, advice or None)
    memory = plan.memory
    parts = [
        f"{slots} of {num_experts} experts ({slots / num_experts:.0%}) in {format_bytes(budget)} of {name}"
        for name, slots, budget in (
            ("device memory", plan.device_slots, memory.device_bytes),
            ("host memory", plan.host_slots, memory.host_bytes),
        )
        if slots
    ]
    cache = memory.kv
    upto = "up to " if cache.is_elastic else ""
    kv = f"{upto}{format_bytes(cache.nbytes)} of KV cache for {cache.num_tokens} tokens, context {cache.max_model_len}"
    if cache.max_model_len < shape.max_model_len and settings.max_model_len is None:
        advice = f"the model's context is {shape.max_model_len} tokens; free memory, or raise --kv-cache-memory"
        return Finding("memory plan", "warn", "; ".join([*parts, kv]), advice)
    return Finding("memory plan", "ok", "; ".join([*parts, kv]))
