"""Memory that a cache on a disk takes beside the memory that is read into."""

from __future__ import annotations

from expert_store.catalog import ExpertCatalog, is_on_disk
from expert_store.disk_cache.delayed_writer import MAX_UNWRITTEN_BYTES
from expert_store.disk_cache.expert_records import RecordSource, on_huge_pages
from expert_store.disk_cache.extent_log import EXTENT_BYTES
from expert_store.disk_cache.fill import NUM_THREADS
from expert_store.store import NUM_READERS


def cache_memory_bytes(catalog: ExpertCatalog) -> int:
    """Return the most bytes that wait to be stored, are read to complete a model, or are records on their way to slots.

    It is 0 for files on a disk without records. A model elsewhere without a cache counts, so that a plan made before
    there is one holds.
    """
    filling = NUM_THREADS * EXTENT_BYTES
    if not is_on_disk(catalog):
        return MAX_UNWRITTEN_BYTES + filling
    records = [source.source.layout.largest_bytes for source in catalog.sources if isinstance(source, RecordSource)]
    return filling + NUM_READERS * on_huge_pages(max(records)) if records else 0
