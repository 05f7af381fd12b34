"""Memory that a cache on a disk takes beside the memory that is read into."""

from __future__ import annotations

from expert_store.catalog import ExpertCatalog, is_on_disk
from expert_store.disk_cache.delayed_writer import MAX_UNWRITTEN_BYTES
from expert_store.disk_cache.extent_log import EXTENT_BYTES
from expert_store.disk_cache.fill import NUM_THREADS


def cache_memory_bytes(catalog: ExpertCatalog) -> int:
    """Return the most bytes that wait to be stored or are read to complete a model; 0 if its files are on a disk.

    A model elsewhere without a cache counts too, so that a plan made before there is one holds.
    """
    return 0 if is_on_disk(catalog) else MAX_UNWRITTEN_BYTES + NUM_THREADS * EXTENT_BYTES
