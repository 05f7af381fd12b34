"""The server itself: its models, and whether it is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.parsing import record


@dataclass(frozen=True)
class Model:
    """A model that is served; ``max_model_len`` is its longest prompt and completion together, in tokens."""

    id: str
    created: int  # seconds since 1970
    owned_by: str
    max_model_len: int | None = None


@dataclass(frozen=True)
class Health:
    """What a server says of itself, as "ok", "ready", "loading", "draining" or "dead"; it may be well or not."""

    status: str
    is_ok: bool


def models_of(body: Mapping[str, Any]) -> list[Model]:
    return [record(Model, model, max_model_len=model.get("max_model_len")) for model in body["data"]]
