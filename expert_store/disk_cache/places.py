"""Tells which experts have their bytes on a disk now."""

from __future__ import annotations

from expert_store.catalog import ExpertCatalog, extents
from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.keys import ExpertKey
from expert_store.sources.base import LocalSource, Source


def is_remote(catalog: ExpertCatalog, key: ExpertKey) -> bool:
    """Return True if reading an expert asks a source that is no disk."""
    if catalog.is_in_files(key):
        return False
    parts = extents(catalog.recipe(key))
    return any(not _is_here(each.source, each.offset, each.offset + each.nbytes) for each in parts)


def lowest_tiers(catalog: ExpertCatalog) -> list[str]:
    """Return the tiers below memory in which the experts of a model may be found."""
    sources = catalog.sources
    tiers = ["disk"] if any(isinstance(source, LocalSource | CachedSource) for source in sources) else []
    return [*tiers, "remote"] if any(not isinstance(source, LocalSource) for source in sources) else tiers


def caches(catalog: ExpertCatalog) -> set[DiskCache]:
    """Return the caches in front of the sources of a model."""
    return {source.cache for source in catalog.sources if isinstance(source, CachedSource)}


def _is_here(source: Source, begin: int, end: int) -> bool:
    if isinstance(source, LocalSource):
        return True
    return isinstance(source, CachedSource) and source.holds(begin, end)
