"""Opens the registry of expert variants."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from expert_store import ExpertStore
from server.loading.load_model import ModelParts
from server.model.model_building import build_model
from server.model.opening.variant_files import BaseModel
from server.model.trunk.fingerprint import fingerprint
from server.weights.variant_registry import VariantRegistry


def open_variants(
    folder: Path | None,
    model: ModelParts,
    store: ExpertStore,
    on_change: Callable[[], None],
    on_drop: Callable[[str], None],
) -> VariantRegistry:
    """Return a registry without variants.

    Args:
        folder: the folder below which they are; None if none may be loaded.
        on_change, on_drop: see ``VariantRegistry``.
    """
    find_fingerprint = cache(lambda: fingerprint(model.trunk))
    return VariantRegistry(
        store,
        lambda: base_model(model, find_fingerprint()),
        find_fingerprint,
        folder=folder,
        on_change=on_change,
        on_drop=on_drop,
    )


def base_model(parts: ModelParts, fingerprint: str) -> BaseModel:
    """Describe a loaded model to its variants.

    Raises:
        ModelError, ExpertStoreError: its files can't be read any more.
    """
    checkpoint = parts.checkpoint
    model = build_model(checkpoint.read_config(), parts.trunk.dtype)
    return BaseModel(model, parts.trunk.catalog, parts.trunk.routers, fingerprint, checkpoint.index())
