"""Models and health of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.parsing import dataclass_from


@dataclass(frozen=True)
class Model:
    """A served model: the base model, an expert variant or an adapter of it, or an alias."""

    id: str
    created: int  # seconds since 1970
    owned_by: str
    max_model_len: int | None = None  # limit of prompt and completion together, in tokens
    parent: str | None = None  # the base model of a variant or an adapter
    tasks: tuple[str, ...] = ("generate",)  # of "generate", "embed" and "classify"
    labels: tuple[str, ...] = ()  # of a model that classifies


@dataclass(frozen=True)
class Health:
    """Health of a server. ``status`` is "ok", "ready", "loading", "draining", "dead", "failing" or "files_changed"."""

    status: str
    is_ok: bool


def parse_models(body: Mapping[str, Any]) -> list[Model]:
    return [
        dataclass_from(
            Model,
            model,
            max_model_len=model.get("max_model_len"),
            parent=model.get("parent"),
            tasks=tuple(model.get("meta", {}).get("tasks", ("generate",))),
            labels=tuple(model.get("meta", {}).get("labels", ())),
        )
        for model in body["data"]
    ]
