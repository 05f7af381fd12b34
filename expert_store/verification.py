"""Every expert read once, so that damage is found before a request finds it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .budget import least_bytes
from .catalog import ExpertCatalog
from .errors import ExpertLoadError
from .keys import ExpertKey
from .store import NUM_READERS, ExpertStore


def unreadable_experts(catalog: ExpertCatalog, report: Callable[[int], None]) -> dict[ExpertKey, str]:
    """Experts that can't be read, or whose bytes are not those that were packed, and what is wrong with each.

    They are read as for serving: past the page cache, and what is damaged once more.

    Args:
        report: is told the bytes of each expert that was read.

    Raises:
        OSError: a file can't be opened.
    """
    store = ExpertStore(catalog, least_bytes(catalog, NUM_READERS), policy="lru")
    keys = [ExpertKey(layer, expert) for layer, entry in catalog.layers.items() for expert in range(len(entry.experts))]
    found = {}
    try:
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="verify") as pool:
            for key, reason in zip(keys, pool.map(lambda key: _complaint(store, key), keys), strict=True):
                if reason is not None:
                    found[key] = reason
                report(catalog.layout(key.layer).slot_bytes)
    finally:
        store.close()
    return found


def _complaint(store: ExpertStore, key: ExpertKey) -> str | None:
    try:
        with store.lease({key: 1}) as lease:
            for _ in lease:
                pass
    except ExpertLoadError as error:
        return str(error.__cause__)
    return None
