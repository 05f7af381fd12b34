"""Describes registered adapters and mixtures in JSON."""

from __future__ import annotations

from typing import Any

from server.engine.interface import AdapterExamples
from server.weights.adapter_version import AdapterVersion, GateVersion, Version


def describe(version: Version, total: int, is_resident: bool) -> dict[str, Any]:
    """Return an adapter or a mixture as ``GET /v1/adapters`` lists it.

    Args:
        total: sequences that have used its name.
        is_resident: whether all of it is in memory.
    """
    parts = version.parts
    files = [part.files for part in parts]
    ranks = sorted({rank for each in files for rank in each.ranks})
    return {
        "name": version.name,
        "path": str(version.folder),
        "version": version.number,
        "state": _state(version, is_resident),
        "tier": "host" if is_resident else "disk",
        "rank": max(ranks),
        "ranks": ranks,
        "tensors": sum(each.match.num_applied for each in files),
        "bytes": sum(each.nbytes for each in files),
        "memory_bytes": sum(each.memory_bytes for each in files),
        "base_model": files[0].config.base_model,
        "routing": _describe_examples(version.examples),
        "gate": _describe_gate(version),
        "requests": {"unfinished": max(part.num_sequences for part in parts), "total": total},
    }


def summary(version: Version) -> str:
    """Return a line about what was loaded, for the log."""
    if isinstance(version, GateVersion):
        names = ", ".join(version.files.config.adapters)
        return f"a gate over {names}, the best {version.files.config.top_k} for each token"
    match, ranks = version.files.match, ", ".join(map(str, version.files.ranks))
    return f"tensors: {match.summary}; rank {ranks}"


def _state(version: Version, is_resident: bool) -> str:
    if all(part.lora is not None for part in version.parts):
        return "running"
    if any(part.is_loading for part in version.parts):
        return "loading"
    return "resident" if is_resident else "registered"


def _describe_examples(examples: AdapterExamples) -> dict[str, Any] | None:
    return {"description": examples.description, "examples": len(examples.examples)} if examples.texts else None


def _describe_gate(version: Version) -> dict[str, Any] | None:
    if isinstance(version, AdapterVersion):
        return None
    config = version.files.config
    return {
        "adapters": list(config.adapters),
        "top_k": config.top_k,
        "temperature": config.temperature,
        "bytes": version.files.nbytes,
    }
