"""Verification: reads every expert once, so that damage is found before a request meets it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from expert_store.catalog import ExpertCatalog
from expert_store.errors import ExpertLoadError
from expert_store.keys import ExpertKey
from expert_store.slot_budget import least_bytes
from expert_store.store import NUM_READERS, ExpertStore


def unreadable_experts(catalog: ExpertCatalog, report: Callable[[int], None]) -> dict[ExpertKey, str]:
    """Return the experts that can't be read or differ from what was packed, and what is wrong with each.

    They are read as for serving: past the page cache, and a second time if the checksum is wrong.

    Args:
        report: called with the bytes of each expert that was read.

    Raises:
        SourceError: a file can't be opened.
    """
    store = ExpertStore(catalog, least_bytes(catalog, NUM_READERS), policy="lru")
    keys = [ExpertKey(layer, expert) for layer, entry in catalog.layers.items() for expert in range(len(entry.experts))]
    found = {}
    try:
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="verify") as pool:
            for key, reason in zip(keys, pool.map(lambda key: _read_error(store, key), keys), strict=True):
                if reason is not None:
                    found[key] = reason
                report(catalog.layout(key.layer).slot_bytes)
    finally:
        store.close()
    return found


def _read_error(store: ExpertStore, key: ExpertKey) -> str | None:
    try:
        with store.lease({key: 1}) as lease:
            for _ in lease:
                pass
    except ExpertLoadError as error:
        return str(error.__cause__)
    return None
