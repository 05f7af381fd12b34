"""Opens the memory for adapters, and loads those that are named at start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from server.loading.bundled_weights import ADAPTERS
from server.loading.load_model import ModelParts
from server.loading.start_weights import load_start_adapters
from server.model.lora.pages import page_layout
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk.fingerprint import fingerprint
from server.settings import ServeSettings, SettingsError
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_store import AdapterStore
from server.weights.adapters_on_request import AdaptersOnRequest
from server.weights.saved_state import SavedState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapters:
    """The adapters of a server."""

    registry: AdapterRegistry
    memory: AdapterMemory
    on_request: AdaptersOnRequest | None  # loads others when requests name them; None if they name loaded ones only


def open_adapter_store(settings: ServeSettings, model: ModelParts, nbytes: int) -> AdapterStore | None:
    """Open the store of adapters; None if the server can't load any, or has no memory for the bundled ones.

    Raises:
        SettingsError: the memory holds none.
    """
    if not settings.serves_adapters:
        return None
    layout = page_layout(lora_targets(model.trunk))
    if settings.adapters_dir == ADAPTERS and nbytes < layout.slot_bytes:
        log.info("the bundled adapters are not loaded, because --memory has no room for them")
        return None
    return AdapterStore(layout, nbytes, model.device, model.trunk.prepare_adapter)


def load_adapters(
    settings: ServeSettings,
    model: ModelParts,
    store: AdapterStore,
    *,
    wake: Callable[[], None],
    on_drop: Callable[[str], None],
    state: SavedState | None = None,
) -> Adapters:
    """Load the adapters of the start.

    Args:
        wake: called when an adapter has come into memory.
        on_drop: see ``AdapterMemory``.
        state: what was loaded in the last run; None if nothing is kept.

    Raises:
        SettingsError: one can't be served.
    """
    if settings.adapters_dir is not None and not settings.adapters_dir.is_dir():
        raise SettingsError(f"--adapters-dir {settings.adapters_dir}: there is no such folder")
    memory = AdapterMemory(store, wake, on_drop)
    taken = [model.name, *(alias.name for alias in settings.model_alias if not alias.is_pattern)]
    registry = AdapterRegistry(
        lora_targets(model.trunk), memory, settings.adapters_dir, taken, cache(lambda: fingerprint(model.trunk))
    )
    try:
        load_start_adapters(settings, registry, state)
    except SettingsError:
        memory.close()
        raise
    folder = settings.adapters_dir if settings.load_adapters == "on-request" else None
    return Adapters(registry, memory, None if folder is None else AdaptersOnRequest(registry, folder))
